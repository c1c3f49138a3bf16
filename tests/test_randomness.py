"""Keys: one for each example and use, the same however the batch is split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from aae_jax.randomness import all_named, example_keys, named

few_examples = settings(deadline=None, max_examples=10, derandomize=True)


def bits(keys: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(keys))


@few_examples
@given(
    seed=st.integers(0, 2**31 - 1),
    step=st.integers(0, 2**31 - 1),
    indices=st.lists(st.integers(0, 2**31 - 1), min_size=8, max_size=8),
)
def test_a_key_depends_on_the_examples_index_only_and_not_on_its_batch(seed, step, indices):
    key, step, indices = jax.random.key(seed), jnp.int32(step), jnp.array(indices, jnp.int32)
    whole = bits(example_keys(key, step, indices))
    np.testing.assert_array_equal(
        whole, bits(example_keys(key, step, indices[::-1]))[::-1], "order"
    )
    halves = [bits(example_keys(key, step, half)) for half in (indices[:4], indices[4:])]
    np.testing.assert_array_equal(whole, np.concatenate(halves), "split")


def test_keys_differ_between_examples_steps_and_runs():
    of_run = jax.jit(jax.vmap(example_keys, in_axes=(None, 0, None)))
    steps, indices = jnp.arange(50), jnp.arange(100)
    seen = [bits(of_run(jax.random.key(seed), steps, indices)) for seed in (0, 1)]
    rows = np.concatenate([keys.reshape(-1, keys.shape[-1]) for keys in seen])
    assert len(np.unique(rows, axis=0)) == 2 * 50 * 100


def test_noise_by_example_is_standard_normal_and_uncorrelated_between_neighbours():
    keys = jax.vmap(lambda step: example_keys(jax.random.key(3), step, jnp.arange(200)))(
        jnp.arange(50)
    )
    noise = np.asarray(jax.vmap(jax.vmap(jax.random.normal))(keys), np.float64)
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    # Each correlation has a standard deviation of 1 / sqrt(10,000).
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.04
    assert abs(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]) < 0.04


@pytest.mark.parametrize("name", ["reconstruction", "input_noise", ""])
def test_naming_many_keys_is_naming_each(name):
    keys = jax.random.split(jax.random.key(1), 5)
    each = np.stack([bits(named(key, name)) for key in keys])
    np.testing.assert_array_equal(bits(all_named(keys, name)), each)


def test_names_give_different_keys_and_none_gives_the_parent():
    key = jax.random.key(0)
    names = ["reconstruction", "regularization", "classification", "images", "labelled", "init"]
    names += [f"hidden_dropout_{number}" for number in range(20)] + ["style_prior", "label_prior"]
    rows = np.stack([bits(key)] + [bits(named(key, name)) for name in names])
    assert len(np.unique(rows, axis=0)) == len(names) + 1


def test_names_mean_the_same_in_every_process_and_version():
    # An old run is resumed with the numbers it began with, so these never change. (Python's own
    # hash of a string, for one, differs from process to process.)
    key = jax.random.key(0)
    assert bits(named(key, "reconstruction")).tolist() == [2966096677, 54113036]
    of_example = example_keys(key, jnp.int32(7), jnp.array([3]))[0]
    assert bits(of_example).tolist() == [2775954248, 3506251837]
