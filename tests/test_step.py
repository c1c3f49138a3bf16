"""The step is its phases in order; a chunk of steps is the same steps one by one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aae_jax import divergences, priors
from aae_jax.phases import Batch, Match, Phase
from aae_jax.randomness import example_keys, named
from aae_jax.state import ALONE, Update, average_params, evaluated_params, init_state
from aae_jax.step import Examples, Rows, augmented, chunk, train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

LABELS, BATCH, LABELLED, STEPS = 4, 8, 5, 3


def some_examples(n=30):
    rng = np.random.default_rng(0)
    image = rng.integers(256, size=(n, 8, 8, 1)).astype(np.uint8)
    return Examples(image, rng.integers(LABELS, size=n).astype(np.int32))


def some_rows(labelled=True):
    rng = np.random.default_rng(1)
    image = rng.integers(30, size=(STEPS, BATCH)).astype(np.int32)
    return Rows(image, image[:, :LABELLED] if labelled else None)


def normalize(image):
    return image.astype(jnp.float32) / 255


def bits(tree):
    """Every leaf as NumPy, keys too."""

    def of_leaf(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(of_leaf, tree)


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, bits(first), bits(second))


# The step, with phases made up for it


def a_state(averaged=(), seed=0):
    updates = (Update("autoencoder", ("encoder",), optax.sgd(0.1)),)
    params = {"encoder": jnp.float32(3.0), "decoder": jnp.float32(1.0)}
    return init_state(jax.random.key(seed), params, {}, updates, averaged)


def changing(name, change):
    """A phase that changes the encoder's one number and reports it."""

    def phase(state, batch):
        encoder = change(state.params["encoder"])
        return state.replace(params={**state.params, "encoder": encoder}), {name: encoder}

    return phase


NO_BATCH = Batch(jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32), jax.random.split(jax.random.key(0), 1))
PLUS_ONE, TWICE = changing("plus_one", lambda w: w + 1), changing("twice", lambda w: 2 * w)


def test_phases_run_in_order_and_their_metrics_are_joined():
    state, metrics = train_step((PLUS_ONE, TWICE))(a_state(), NO_BATCH)
    assert state.params == {"encoder": 8.0, "decoder": 1.0}
    assert metrics == {"plus_one": 4.0, "twice": 8.0}
    state, metrics = train_step((TWICE, PLUS_ONE))(a_state(), NO_BATCH)
    assert state.params == {"encoder": 7.0, "decoder": 1.0}
    assert metrics == {"twice": 6.0, "plus_one": 7.0}


def test_a_step_counts_one_whatever_its_phases_and_keeps_the_key():
    for phases in ((), (PLUS_ONE,), (PLUS_ONE, TWICE, PLUS_ONE)):
        state = a_state()
        step = train_step(phases)
        for count in (1, 2, 3):
            state, _ = step(state, NO_BATCH)
            assert state.step == count
        assert_same(state.key, a_state().key)


def test_every_phase_of_a_step_sees_the_same_batch_and_step_number():
    seen = []

    def looking(state, batch):
        seen.append((int(state.step), batch))
        return state, {}

    step = train_step((looking, looking))
    state, _ = step(a_state(), NO_BATCH)
    step(state, NO_BATCH)
    assert [number for number, _ in seen] == [0, 0, 1, 1]
    assert all(batch is NO_BATCH for _, batch in seen)


def test_the_average_is_taken_after_the_phases_and_is_what_is_evaluated():
    step = train_step((PLUS_ONE, TWICE), averaging=0.5)
    state, expected, encoder = a_state(averaged=("encoder",)), 3.0, 3.0
    for number in range(12):
        state, _ = step(state, NO_BATCH)
        encoder = 2 * (encoder + 1)
        kept = min(0.5, (1 + number) / (10 + number))
        expected = kept * expected + (1 - kept) * encoder
        np.testing.assert_allclose(state.averaged_params["encoder"], expected, rtol=1e-5)
        np.testing.assert_allclose(evaluated_params(state)["encoder"], expected, rtol=1e-5)
        np.testing.assert_allclose(state.params["encoder"], encoder, rtol=1e-5)
    assert evaluated_params(state)["decoder"] == 1.0


# The chunk: which examples and keys its steps see


class Shown(NamedTuple):
    """One batch that a step was given, as NumPy arrays."""

    image: np.ndarray
    label: np.ndarray
    key: np.ndarray


def shown_by_chunk(state, rows, collective=ALONE, augmentation=None):
    """(state after, the unlabelled batches, the labelled ones) of a step that learns nothing."""
    seen = {"images": [], "labelled": []}

    def looking(state, batch):
        for name, part in (("images", batch), ("labelled", batch.labelled)):
            if part is not None:
                arrays = part.image, part.label, jax.random.key_data(part.keys)
                jax.debug.callback(
                    lambda *of, name=name: seen[name].append(Shown(*map(np.asarray, of))),
                    *arrays,
                    ordered=True,
                )
        return state.replace(step=state.step + 1), {}

    step = looking if augmentation is None else augmented(looking, augmentation)
    state, _ = jax.jit(chunk(step, normalize, collective))(state, some_examples(), rows)
    jax.effects_barrier()
    return state, seen["images"], seen["labelled"]


def test_a_step_sees_its_rows_normalised_with_their_labels():
    examples, rows = some_examples(), some_rows()
    state, *batches = shown_by_chunk(a_state(), rows)
    assert state.step == STEPS
    for shown, indices in zip(batches, rows, strict=True):
        assert len(shown) == STEPS
        for step in range(STEPS):
            image = examples.image[indices[step]].astype(np.float64) / 255
            np.testing.assert_allclose(shown[step].image, image, rtol=1e-6)
            np.testing.assert_array_equal(shown[step].label, examples.label[indices[step]])


def test_without_labelled_rows_there_is_no_labelled_batch():
    _, images, labelled = shown_by_chunk(a_state(), some_rows(labelled=False))
    assert len(images) == STEPS and not labelled


def test_keys_are_those_of_run_step_and_place_in_the_whole_batch():
    # The second of two devices: its first example is the whole batch's ninth.
    second = ALONE._replace(rank=lambda: jnp.int32(1))
    state = a_state(seed=5).replace(step=jnp.int32(40))
    _, images, labelled = shown_by_chunk(state, some_rows(), second)
    for name, shown, size in (("images", images, BATCH), ("labelled", labelled, LABELLED)):
        for step in range(STEPS):
            places = jnp.arange(size, 2 * size)
            keys = example_keys(named(state.key, name), jnp.int32(40 + step), places)
            np.testing.assert_array_equal(shown[step].key, jax.random.key_data(keys))


def test_no_two_examples_of_a_chunk_share_a_key():
    _, images, labelled = shown_by_chunk(a_state(), some_rows())
    keys = np.concatenate([shown.key for shown in images + labelled])
    assert len(np.unique(keys, axis=0)) == len(keys) == STEPS * (BATCH + LABELLED)


# Augmented images


def brightened(keys, images):
    """An augmentation that adds to each image one number of its key's."""
    return images + jax.vmap(jax.random.uniform)(keys)[:, None, None, None]


def added(shown, plain):
    """The number that was added to each image of a batch."""
    difference = (shown.image - plain.image).reshape(len(plain.image), -1)
    np.testing.assert_allclose(np.ptp(difference, axis=1), 0, atol=1e-6)
    return difference[:, 0]


def test_an_augmented_step_sees_changed_images_with_their_labels_and_keys():
    (_, *found), (_, *plain) = (
        shown_by_chunk(a_state(), some_rows(), augmentation=augmentation)
        for augmentation in (brightened, None)
    )
    numbers = []
    for shown, before in zip(map(list, found), plain, strict=True):
        assert len(shown) == STEPS
        for step in range(STEPS):
            np.testing.assert_array_equal(shown[step].label, before[step].label)
            np.testing.assert_array_equal(shown[step].key, before[step].key)
            numbers.append(added(shown[step], before[step]))
    # Anew for every image of both batches, at every step.
    numbers = np.sort(np.concatenate(numbers))
    assert len(numbers) == STEPS * (BATCH + LABELLED) and numbers[0] >= 0
    assert np.diff(numbers).min() > 1e-5


def test_an_image_is_augmented_with_a_key_that_nothing_else_has():
    used = []

    def noting(keys, images):
        used.append(bits(keys))
        return images

    keys = jax.random.split(jax.random.key(3), BATCH + LABELLED)
    image, label = jnp.zeros((BATCH, 8, 8, 1)), jnp.zeros(BATCH, jnp.int32)
    labelled = Batch(image[:LABELLED], label[:LABELLED], keys[BATCH:])
    step = augmented(train_step((PLUS_ONE,)), noting)
    step(a_state(), Batch(image, label, keys[:BATCH], labelled))
    assert [len(part) for part in used] == [BATCH, LABELLED]
    every = np.concatenate([*used, bits(keys)])
    assert len(np.unique(every, axis=0)) == 2 * (BATCH + LABELLED)


def test_an_augmented_step_is_the_step_otherwise():
    batch = NO_BATCH._replace(image=jnp.zeros((1, 8, 8, 1)))
    seen = []

    def looking(state, batch):
        seen.append(batch.labelled)
        return state, {}

    step = train_step((looking, PLUS_ONE, TWICE))
    expected = step(a_state(), batch)
    assert_same(augmented(step, brightened)(a_state(), batch), expected)
    assert seen == [None, None]


def test_metrics_are_averaged_over_devices():
    tripled = ALONE._replace(average=lambda tree: jax.tree.map(lambda x: 3 * x, tree))
    run = chunk(train_step((PLUS_ONE,)), normalize, tripled)
    _, metrics = jax.jit(run)(a_state(), some_examples(), some_rows())
    np.testing.assert_allclose(metrics["plus_one"], [12.0, 15.0, 18.0])


# A real step


class Built(NamedTuple):
    """A semi-supervised experiment, compiled once for all tests."""

    state: Callable
    phases: tuple[Phase, ...]  # each by itself
    chunk: Callable  # of steps of them


@pytest.fixture(scope="module")
def built(small_experiment):
    matches = (
        Match("style", priors.gaussian(3, 5.0), divergences.gan()),
        Match("label", priors.categorical(LABELS), divergences.gan()),
    )
    small = small_experiment(
        matches,
        labels=LABELS,
        layout="style_and_inferred_label",
        input_noise=0.3,
        averaged=("encoder", "decoder"),
    )
    phases = small.reconstruction, small.regularization, small.classification
    steps = chunk(train_step(phases, averaging=0.9), normalize)
    return Built(small.state, tuple(map(jax.jit, phases)), jax.jit(steps))


def one_by_one(phases, state, rows):
    """The steps of a chunk, each with a batch put together by hand and one phase at a time."""
    examples, metrics = some_examples(), []
    for number in range(STEPS):
        parts = {}
        for name, indices in (("images", rows.image[number]), ("labelled", rows.labelled[number])):
            keys = example_keys(named(state.key, name), state.step, jnp.arange(len(indices)))
            image = jnp.asarray(examples.image[indices] / np.float32(255))
            parts[name] = Batch(image, jnp.asarray(examples.label[indices]), keys)
        of_step = {}
        for phase in phases:
            state, of_phase = phase(state, parts["images"]._replace(labelled=parts["labelled"]))
            of_step |= of_phase
        state = average_params(state, 0.9)
        state = state.replace(step=state.step + 1)
        metrics.append(of_step)
    return state, jax.tree.map(lambda *values: np.stack(values), *metrics)


def test_a_chunk_is_its_steps_one_by_one(built):
    state, metrics = built.chunk(built.state(), some_examples(), some_rows())
    other, by_step = one_by_one(built.phases, built.state(), some_rows())
    assert state.step == other.step == STEPS
    assert metrics.keys() == by_step.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], by_step[name], rtol=1e-5, err_msg=name)
    for found, expected in zip(*map(jax.tree.leaves, map(bits, (state, other))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_same_inputs_give_the_same_bits(built):
    first = built.chunk(built.state(), some_examples(), some_rows())
    assert_same(first, built.chunk(built.state(), some_examples(), some_rows()))


def test_another_seed_or_step_number_gives_other_noise(built):
    def first_error(state):
        _, metrics = built.chunk(state, some_examples(), some_rows())
        return float(metrics["reconstruction"][0])

    state = built.state()
    errors = {
        first_error(state),
        first_error(built.state(seed=1)),
        first_error(state.replace(step=jnp.int32(1))),
    }
    assert len(errors) == 3


def test_the_order_of_the_phases_matters(built):
    first, second, third = built.phases
    state, _ = one_by_one(built.phases, built.state(), some_rows())
    swapped, _ = one_by_one((second, first, third), built.state(), some_rows())
    for name in ("encoder", "decoder", "discriminator"):
        pairs = zip(*(jax.tree.leaves(s.params[name]) for s in (state, swapped)), strict=True)
        assert max(float(jnp.abs(a - b).max()) for a, b in pairs) > 1e-4


def test_the_metrics_of_a_semi_supervised_step(built):
    _, metrics = built.chunk(built.state(), some_examples(), some_rows())
    adversarial = ("discriminator", "generator", "prior_accuracy", "code_accuracy")
    assert metrics.keys() == {
        "reconstruction",
        *(f"{part}/{name}" for part in ("style", "label") for name in adversarial),
        "classification",
        "labelled_error_percent",
    }
    assert all(values.shape == (STEPS,) for values in metrics.values())
