"""Encoder, decoder and discriminator networks as flax.linen modules.

A network is a function of parameters, inputs and, where it has dropout, one key per example: no
module draws random numbers of its own. None knows of priors, losses or phases.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from aae_jax.randomness import all_named

Initializer = Callable[..., Any]


def normal(std: int | float = 0.01) -> Initializer:
    """Weights from N(0, std^2); the paper's is std = 0.01 (appendix A)."""
    return nn.initializers.normal(std)


# By name, for configs.
INITIALIZERS: dict[str, Callable[..., Initializer]] = {
    "normal": normal,
    "he_normal": nn.initializers.he_normal,
    "glorot_uniform": nn.initializers.glorot_uniform,
    "lecun_normal": nn.initializers.lecun_normal,
    "orthogonal": nn.initializers.orthogonal,
}
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.2),
    "gelu": nn.gelu,
    "tanh": nn.tanh,
    "softplus": nn.softplus,
}


def dropout(
    x: Float[Array, "batch *shape"], keys: Key[Array, "batch"], rate: float
) -> Float[Array, "batch *shape"]:
    """Zeroes a share `rate` of each example's values and scales the rest by 1 / (1 - rate)."""
    if rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), 0.0)


def gaussian_noise(
    x: Float[Array, "batch *shape"], keys: Key[Array, "batch"], std: float
) -> Float[Array, "batch *shape"]:
    """Adds N(0, std^2) noise, one key per example."""
    if std == 0.0:
        return x
    return x + std * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


class BatchNorm(nn.Module):
    """Batch normalisation over all devices' examples (over `axis_name`, if mapped)."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], train: bool) -> Float[Array, "*shape"]:
        """Batch statistics while training, running ones otherwise."""
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.95, axis_name=self.axis_name, name="norm"
        )(x)


class MLP(nn.Module):
    """Fully connected hidden layers.

    Attributes:
        widths: units of each layer; the paper uses (1000, 1000) and (3000, 3000).
        activation: a name of `ACTIVATIONS`.
        kernel_init: initializer of the weights; biases start at 0.
        batch_norm: normalise before each activation.
        dropout: share of hidden units dropped while training.
        axis_name: mapped axis over which batch statistics are taken.
    """

    widths: Sequence[int]
    activation: str = "relu"
    kernel_init: Initializer = normal(0.01)
    batch_norm: bool = False
    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch ..."], keys: Key[Array, "batch"], train: bool
    ) -> Float[Array, "batch features"]:
        """Flattens each example and applies the layers."""
        x = x.reshape(x.shape[0], -1)
        for number, width in enumerate(self.widths):
            x = nn.Dense(width, kernel_init=self.kernel_init, name=f"dense_{number}")(x)
            if self.batch_norm:
                x = BatchNorm(self.axis_name, name=f"norm_{number}")(x, train)
            x = ACTIVATIONS[self.activation](x)
            if train:
                x = dropout(x, all_named(keys, f"hidden_dropout_{number}"), self.dropout)
        return x


class Encoder(nn.Module):
    """A shared trunk with one linear head for each part of the code.

    Attributes:
        trunk: the hidden layers.
        heads: width of each head by name ("style", "style_log_variance", "label").
        head_batch_norm: normalise the heads too ("crucial" for clustering, appendix A.3).
    """

    trunk: nn.Module
    heads: Mapping[str, int]
    kernel_init: Initializer = normal(0.01)
    head_batch_norm: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch ..."], keys: Key[Array, "batch"], train: bool
    ) -> dict[str, Float[Array, "batch _"]]:
        """Each head's output by name."""
        hidden = self.trunk(image, keys, train)
        outputs = {}
        for name, width in self.heads.items():
            output = nn.Dense(width, kernel_init=self.kernel_init, name=name)(hidden)
            if self.head_batch_norm:
                output = BatchNorm(self.axis_name, name=f"{name}_norm")(output, train)
            outputs[name] = output
        return outputs


class Decoder(nn.Module):
    """Hidden layers and a linear layer to the image's shape; no output nonlinearity.

    Attributes:
        hidden: the hidden layers.
        image_shape: shape of one image (or row).
    """

    hidden: nn.Module
    image_shape: tuple[int, ...]
    kernel_init: Initializer = normal(0.01)

    @nn.compact
    def __call__(
        self, code: Float[Array, "batch features"], keys: Key[Array, "batch"], train: bool
    ) -> Float[Array, "batch ..."]:
        """The decoder's output before the likelihood's mean function."""
        size = 1
        for side in self.image_shape:
            size *= side
        hidden = self.hidden(code, keys, train)
        output = nn.Dense(size, kernel_init=self.kernel_init, name="output")(hidden)
        return output.reshape(-1, *self.image_shape)


class Discriminator(nn.Module):
    """Scores codes; never batch-normalised, which makes discriminators on codes useless.

    Attributes:
        widths, activation, kernel_init: as in `MLP`.
        spectral_norm: divide each weight matrix by its largest singular value
            (Miyato et al., 2018, arXiv:1802.05957).
    """

    widths: Sequence[int]
    activation: str = "relu"
    kernel_init: Initializer = normal(0.01)
    spectral_norm: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch features"], update_stats: bool = False
    ) -> Float[Array, "batch"]:
        """One score (logit) per code; `update_stats` moves the spectral norm's power iteration."""
        for number, width in enumerate(self.widths):
            x = ACTIVATIONS[self.activation](self._dense(width, f"dense_{number}", x, update_stats))
        return self._dense(1, "score", x, update_stats)[:, 0]

    def _dense(self, width: int, name: str, x: Array, update_stats: bool) -> Array:
        dense = nn.Dense(width, kernel_init=self.kernel_init, name=name)
        if not self.spectral_norm:
            return dense(x)
        return nn.SpectralNorm(dense, name=f"{name}_spectral")(x, update_stats=update_stats)


def one_hot(label: Shaped[Array, "batch"], num_classes: int) -> Float[Array, "batch classes"]:
    """One-hot rows; a row of zeros for a label outside 0..num_classes-1."""
    return jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
