"""Between images in the data's units and codes: a trained model as functions of a batch.

`Coder` holds what a model does once it is trained; `in_blocks` does it to any number of examples.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from aae_jax.data import preprocessing as pre
from aae_jax.model import Code, Images, Model, reconstruct
from aae_jax.state import Params, TrainState, evaluated_params

Weights = tuple[Params, Params]


class Coder(NamedTuple):
    """A model with its preprocessing, as pure functions; nothing is noisy, dropped or moved.

    Attributes:
        encode: (weights, keys, image) -> Code.
        decode: (weights, keys, style, label) -> image in the data's units, not clipped; the label
            is [batch, labels], a distribution or one-hot, or None for the layout "style".
        reconstruct: (weights, keys, image, given label [batch]) -> a dictionary of "style"
            [batch, style_dim], "reconstruction" [batch, ...] in the data's units, "error" [batch]
            in nats per image, and where the encoder infers a label "label_logits" [batch, labels].
    """

    encode: Callable[..., Code]
    decode: Callable[..., Images]
    reconstruct: Callable[..., dict[str, Array]]


def weights_of(state: TrainState) -> Weights:
    """What a `Coder` needs of a state: the parameters to evaluate and the running statistics."""
    return evaluated_params(state), state.batch_stats


def coder(model: Model, preprocessing: pre.Preprocessing) -> Coder:
    """The coder of a model."""

    def image_of(output: Images) -> Images:
        return pre.denormalize(preprocessing, model.likelihood.mean(output))

    def encode(weights: Weights, keys: Key[Array, "batch"], image: Array) -> Code:
        code, _ = model.encode(*weights, pre.normalize(preprocessing, image), keys, False)
        return code

    def decode(
        weights: Weights,
        keys: Key[Array, "batch"],
        style: Float[Array, "batch style"],
        label: Float[Array, "batch labels"] | None,
    ) -> Images:
        output, _ = model.decode(*weights, style, label, keys, False)
        return image_of(output)

    def reconstruct_images(
        weights: Weights, keys: Key[Array, "batch"], image: Array, label: Int[Array, "batch"]
    ) -> dict[str, Array]:
        x = pre.normalize(preprocessing, image)
        output, code, _ = reconstruct(model, *weights, x, label, keys, False)
        result = {
            "style": code.style,
            "reconstruction": image_of(output),
            "error": model.likelihood.loss(output, x),
        }
        if code.label_logits is not None:
            result["label_logits"] = code.label_logits
        return result

    return Coder(encode, decode, reconstruct_images)


def in_blocks(
    function: Callable[..., PyTree],
    size: int,
    weights: Weights,
    key: Key[Array, ""],
    *arrays: PyTree,
) -> PyTree:
    """A jitted function of a batch, applied to any number of examples in blocks of one size.

    The last block is filled up with zeros, so that the function is compiled for one size only.

    Args:
        function: (weights, keys [size], *arrays [size, ...]) -> arrays [size, ...], row by row.
        size: of a block.
        weights: handed on.
        key: of everything random; an example's own key depends on its number alone.
        arrays: [n, ...] each, or None.

    Returns:
        The function's arrays, [n, ...], in NumPy; empty ones for no example.
    """
    n = len(jax.tree.leaves(arrays)[0])
    blocks = []
    for first in range(0, max(n, 1), size):
        rows = jax.tree.map(partial(_rows, first=first, size=size), arrays)
        blocks.append(jax.device_get(function(weights, keys_of(key, first, size), *rows)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *blocks)


def _rows(array: Any, first: int, size: int) -> np.ndarray:
    rows = np.asarray(array[first : first + size])
    missing = size - len(rows)
    return np.pad(rows, [(0, missing), *[(0, 0)] * (rows.ndim - 1)]) if missing else rows


@partial(jax.jit, static_argnames="size")
def keys_of(key: Key[Array, ""], first: Int[Array, ""] | int, size: Any) -> Key[Array, "size"]:
    """The keys of `size` examples (a symbolic number too), each of the example's number alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(size))
