"""Keys: one per example, derived from the run's key, the step and the example's global index.

Noise that is keyed by example does not depend on how a batch is split over devices, so that a run
draws the same numbers on one device and on four.
"""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt32


def example_keys(
    key: Key[Array, ""], step: Int[Array, ""], indices: Int[Array, "batch"]
) -> Key[Array, "batch"]:
    """One key for each example of a step, from its index in the whole (all devices') batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, step), indices)


def named(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of one use, so that no key serves twice."""
    return jax.random.fold_in(key, _number(name))


def all_named(keys: Key[Array, "batch"], name: str) -> Key[Array, "batch"]:
    """`named` for one key per example."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, _number(name))


def _number(name: str) -> UInt32[Array, ""]:
    return jnp.uint32(zlib.crc32(name.encode()))
