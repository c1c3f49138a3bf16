import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from aae_jax.evaluation.pairwise import centred, map_rows, squared_distances


@settings(deadline=None, max_examples=10)
@given(n=st.integers(1, 9), m=st.integers(1, 9), d=st.integers(1, 5), seed=st.integers(0, 99))
def test_squared_distances_are_scipys(n, m, d, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    ours = squared_distances(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(ours, cdist(x, y, "sqeuclidean"), atol=1e-5)


def test_copies_are_never_at_a_negative_distance():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(200, 50)), jnp.float32)
    assert squared_distances(x, x).min() >= 0


def test_centring_keeps_small_distances_far_from_the_origin():
    # At 1000 from the origin the norms are 1e7, and a distance of 1 is lost in their rounding.
    x = 1000 + np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)
    expected = cdist(x.astype(np.float64), x.astype(np.float64), "sqeuclidean")
    np.testing.assert_allclose(squared_distances(*centred(x, x)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("block_size", [1, 3, 7, 50])
def test_rows_come_in_order_whatever_the_block(block_size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(7, 3)), jnp.float32)
    y = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    statistic = jax.jit(
        lambda x, y: map_rows(lambda row, number: (row.min(), number), x, y, block_size)
    )
    smallest, numbers = statistic(x, y)
    np.testing.assert_allclose(smallest, cdist(x, y, "sqeuclidean").min(1), atol=1e-5)
    np.testing.assert_array_equal(numbers, np.arange(7))
