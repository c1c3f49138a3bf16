"""A fully connected decoder as whole numbers that a page can hold."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int16

from aae_jax.arguments import InferenceError
from aae_jax.experiment import build
from aae_jax.inference import Trained

# Largest difference of a brightness, from 0 to 1, of the page's decoder from the run's, for
# networks computed in float32: half a grey level.
TOLERANCE = 1 / 510
_STEPS = 2**15 - 1
_BATCH_NORM_EPSILON = 1e-5  # flax's


class Layer(NamedTuple):
    """A linear layer: input @ (weights * scale) + bias."""

    weights: Int16[np.ndarray, "inputs outputs"]
    scale: Float32[np.ndarray, "outputs"]
    bias: Float32[np.ndarray, "outputs"]


class Network(NamedTuple):
    """A decoder without its code.

    Attributes:
        heads: cluster heads, whose mean under the label is added to the style; None where the label
            is put beside the style, if there is one.
        layers: of which all but the last are followed by the activation.
        activation: a name of `aae_jax.networks.ACTIVATIONS`.
        output: "sigmoid" or "linear".
        scale, shift: of each pixel's normalization.
        clipped: whether images end at 0 and 1.
    """

    heads: Float32[np.ndarray, "labels style"] | None
    layers: list[Layer]
    activation: str
    output: str
    scale: Float32[np.ndarray, "pixels"]
    shift: Float32[np.ndarray, "pixels"]
    clipped: bool


def network(model: Trained) -> Network:
    """The decoder of a trained model, its weights rounded to 16 bits, batch norm folded into them.

    Raises:
        InferenceError: it is convolutional; one line.
    """
    config = model.config
    if config.decoder.channels:
        raise InferenceError(
            "explorer.html holds fully connected decoders; this run's is convolutional "
            f"(decoder.channels is {config.decoder.channels}): --mode explore shows it"
        )
    params, stats = model.weights
    hidden = params["decoder"]["hidden"]
    hidden_stats = stats["decoder"].get("hidden", {})
    layers = [
        _folded(
            hidden[f"dense_{number}"],
            hidden.get(f"norm_{number}"),
            hidden_stats.get(f"norm_{number}"),
        )
        for number in range(len(config.decoder.widths))
    ]
    pixels = model.data.image_shape
    return Network(
        heads=_heads(model),
        layers=[_rounded(*layer) for layer in [*layers, _folded(params["decoder"]["output"])]],
        activation=config.decoder.activation,
        output="linear" if config.decoder.output == "linear" else "sigmoid",
        scale=_flat(model.preprocessing.scale, pixels),
        shift=_flat(model.preprocessing.shift, pixels),
        clipped=model.data.image_type == "uint8",
    )


def size(network: Network) -> int:
    """Bytes of the weights, before they are written as text."""
    return sum(array.nbytes for layer in network.layers for array in layer)


def _folded(
    dense: Any, norm: Any = None, stats: Any = None
) -> tuple[Float[np.ndarray, "inputs outputs"], Float[np.ndarray, "outputs"]]:
    """Weights and bias of a linear layer and the batch norm after it, which is linear too."""
    kernel, bias = (np.asarray(dense[name], np.float64) for name in ("kernel", "bias"))
    if norm is None:
        return kernel, bias
    scale, shift = (np.asarray(norm["norm"][name], np.float64) for name in ("scale", "bias"))
    mean, variance = (np.asarray(stats["norm"][name], np.float64) for name in ("mean", "var"))
    gain = scale / np.sqrt(variance + _BATCH_NORM_EPSILON)
    return kernel * gain, (bias - mean) * gain + shift


def _rounded(
    kernel: Float[np.ndarray, "inputs outputs"], bias: Float[np.ndarray, "outputs"]
) -> Layer:
    """Each unit's weights as multiples of its largest one over 2^15 - 1.

    As small as float16, sixteen times finer beside the largest weight, and JavaScript reads it.
    """
    scale = np.abs(kernel).max(axis=0) / _STEPS
    scale = np.where(scale > 0, scale, 1.0)
    weights = np.rint(kernel / scale).astype(np.int16)
    return Layer(weights, scale.astype(np.float32), bias.astype(np.float32))


def _heads(model: Trained) -> Float32[np.ndarray, "labels style"] | None:
    config, data = model.config, model.data
    if config.model.layout != "cluster_heads":
        return None
    experiment = build(
        config,
        image_shape=data.image_shape,
        num_classes=data.num_classes,
        num_examples=data.num_examples,
    )
    return np.asarray(experiment.model.heads(model.weights[0]), np.float32)


def _flat(constants: Any, shape: tuple[int, ...]) -> Float32[np.ndarray, "pixels"]:
    return np.broadcast_to(np.asarray(constants, np.float32), shape).ravel()
