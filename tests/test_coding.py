import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aae_jax.coding import in_blocks

KEY = jax.random.key(2)


def noisy_sum(weights, keys, x, extra):
    noise = jax.vmap(jax.random.normal)(keys)
    return {"sum": x.sum(axis=1) * weights[0]["w"] + weights[1]["s"], "noise": noise, "none": None}


WEIGHTS = ({"w": jnp.float32(2)}, {"s": jnp.float32(1)})


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 30])
def test_blocks_are_put_together_and_what_fills_them_is_cut_off(n):
    x = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
    seen = []

    def function(weights, keys, x, extra):
        seen.append(x.shape)
        return noisy_sum(weights, keys, x, extra)

    found = in_blocks(function, 8, WEIGHTS, KEY, x, None)
    np.testing.assert_allclose(found["sum"], 2 * x.sum(axis=1) + 1)
    assert found["none"] is None and found["noise"].shape == (n,)
    assert set(seen) == {(8, 3)} and len(seen) == max(1, -(-n // 8))


def test_an_examples_key_depends_on_its_number_alone():
    x = np.zeros((30, 3), np.float32)
    noise = in_blocks(jax.jit(noisy_sum), 30, WEIGHTS, KEY, x, None)["noise"]
    assert len(set(noise.tolist())) == 30
    for size in (1, 7, 64):
        again = in_blocks(jax.jit(noisy_sum), size, WEIGHTS, KEY, x, None)["noise"]
        np.testing.assert_array_equal(noise, again)
    expected = [jax.random.normal(jax.random.fold_in(KEY, i)) for i in range(30)]
    np.testing.assert_array_equal(noise, np.array(expected))


def test_whole_numbers_stay_whole():
    found = in_blocks(lambda w, k, x: x, 4, WEIGHTS, KEY, np.arange(6, dtype=np.uint8))
    assert found.dtype == np.uint8 and found.tolist() == [0, 1, 2, 3, 4, 5]
