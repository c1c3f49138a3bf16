"""Distances between the rows of two arrays: the ground under every evaluation by samples."""

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

Statistic = TypeVar("Statistic")


def centred(
    x: Float[Array | np.ndarray, "n d"], y: Float[Array | np.ndarray, "m d"]
) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    """Both arrays as float32, less the mean row of the first.

    Distances do not change, but the norms that `squared_distances` subtracts from one another
    shrink to the spread of the data, and with them the rounding.
    """
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    centre = x.mean(0)
    return x - centre, y - centre


def squared_distances(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Squared Euclidean distances ||x_i - y_j||^2 by one matrix product, never negative.

    The rounding is some 1e-7 of ||x_i||^2 + ||y_j||^2, whatever the distance: centre the data
    (`centred`) where small distances matter.
    """
    # On accelerators a product keeps ten bits or fewer unless told otherwise.
    product = jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)
    norms = jnp.sum(x * x, -1)[:, None] + jnp.sum(y * y, -1)
    return jnp.maximum(norms - 2 * product, 0)


def map_rows(
    statistic: Callable[[Float[Array, " m"], Int[Array, ""]], Statistic],
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    block_size: int = 256,
) -> Statistic:
    """A statistic of every row's squared distances to all of `y`, block by block of rows.

    Args:
        statistic: takes one row's squared distances [m] to `y`, and that row's number; returns
            any pytree of arrays.
        x: the rows, [n, d]; n need not divide into blocks.
        y: what they are measured against, [m, d].
        block_size: rows held at once: `block_size * m` floats of memory.

    Returns:
        The statistics, stacked along a new leading axis of length n.
    """

    def one(row: tuple[Array, Array]) -> Statistic:
        values, number = row
        return statistic(squared_distances(values[None], y)[0], number)

    # Within a block `lax.map` is `vmap`: the block's products become one matrix product.
    return lax.map(one, (x, jnp.arange(len(x))), batch_size=block_size)
