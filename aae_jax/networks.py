"""Encoder, decoder and discriminator networks as flax.linen modules.

A network is a function of parameters, inputs and, where it has dropout, one key per example: no
module draws random numbers of its own. None knows of priors, losses or phases.

Parameters, running statistics and what a network returns are float32. `dtype` is what its hidden
layers are computed in: bfloat16 halves their bytes and uses the matrix units of GPUs and TPUs.
Codes and scores are few and are compared, exponentiated and differentiated afterwards: their linear
layers are float32 in any case.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
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
    """Batch normalisation over all devices' examples (over `axis_name`, if mapped).

    Statistics are float32 whatever the `dtype` of the result.
    """

    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], train: bool) -> Float[Array, "*shape"]:
        """Batch statistics while training, running ones otherwise."""
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.95,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name="norm",
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
        dtype: what the layers are computed in and their output is.
    """

    widths: Sequence[int]
    activation: str = "relu"
    kernel_init: Initializer = normal(0.01)
    batch_norm: bool = False
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch ..."], keys: Key[Array, "batch"], train: bool
    ) -> Float[Array, "batch features"]:
        """Flattens each example and applies the layers."""
        x = x.reshape(x.shape[0], -1)
        for number, width in enumerate(self.widths):
            name = f"dense_{number}"
            x = nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init, name=name)(x)
            x = _activated(self, x, keys, train, "hidden", number)
        return x


def _activated(
    options: MLP,
    x: Float[Array, "batch *shape"],
    keys: Key[Array, "batch"],
    train: bool,
    kind: str,
    number: int,
) -> Float[Array, "batch *shape"]:
    """Batch norm, activation and dropout as `options` has them; for use inside a module's call.

    Batch norm is per feature, and for images per channel. The kind keeps the dropout of a network's
    convolutions apart from that of its fully connected layers.
    """
    if options.batch_norm:
        x = BatchNorm(options.axis_name, options.dtype, name=f"norm_{number}")(x, train)
    x = ACTIVATIONS[options.activation](x)
    if train:
        x = dropout(x, all_named(keys, f"{kind}_dropout_{number}"), options.dropout)
    return x


class Convolution(nn.Module):
    """A convolution of images with zeros beyond their borders.

    Attributes:
        channels: of the output.
        size: side of the kernel; with an even `size - stride` the borders are alike.
        stride: pixels from one output to the next; both sides are multiples of it.
        kernel_init: initializer of the weights; biases start at 0.
        dtype: what is computed in, and the output.
    """

    channels: int
    size: int
    stride: int = 1
    kernel_init: Initializer = normal(0.01)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch h w c"]
    ) -> Float[Array, "batch out_h out_w channels"]:
        """Sides of the output are those of the image over the stride."""
        shape = (self.size, self.size, image.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        image, kernel = image.astype(self.dtype), kernel.astype(self.dtype)
        # XLA's CPU convolutions lose their threads inside a loop, and training is a scan.
        output = lax.platform_dependent(
            image,
            kernel,
            cpu=lambda x, w: convolve_patches(x, w, self.stride),
            default=lambda x, w: convolve(x, w, self.stride),
        )
        # Added in float32: the bias's gradient is a sum over all pixels, and in bfloat16, where
        # 256 + 1 = 256, it would stop growing.
        return (output + bias).astype(self.dtype)


def convolve(
    image: Float[Array, "batch h w c"], kernel: Float[Array, "size size c out"], stride: int
) -> Float[Array, "batch out_h out_w out"]:
    """The convolution of `Convolution`, by the device's own operation."""
    border = (kernel.shape[0] - stride) // 2
    return lax.conv_general_dilated(
        image,
        kernel,
        (stride, stride),
        ((border, border), (border, border)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolve_patches(
    image: Float[Array, "batch h w c"], kernel: Float[Array, "size size c out"], stride: int
) -> Float[Array, "batch out_h out_w out"]:
    """The same as one product of patches with weights."""
    size, border = kernel.shape[0], (kernel.shape[0] - stride) // 2
    height, width = image.shape[1], image.shape[2]
    padded = jnp.pad(image, ((0, 0), (border, border), (border, border), (0, 0)))
    patches = [
        padded[:, row : row + height : stride, column : column + width : stride]
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def halvings(image_shape: tuple[int, ...]) -> int:
    """How often a convolutional network halves an image's sides.

    Twice, and on while both sides are even and the longer one is above 8: 28 becomes 7, 32 and 64
    become 8, 48 becomes 6.

    Raises:
        ValueError: no image [h, w, c] with sides divisible by 4; one line.
    """
    if len(image_shape) != 3 or any(side <= 0 or side % 4 for side in image_shape[:2]):
        raise ValueError(
            "convolutions need images [h, w, c] whose sides are multiples of 4, "
            f"not {list(image_shape)}"
        )
    height, width = image_shape[0] // 4, image_shape[1] // 4
    number = 2
    while max(height, width) > 8 and height % 2 == width % 2 == 0:
        height, width, number = height // 2, width // 2, number + 1
    return number


class ConvolutionalTrunk(nn.Module):
    """Convolutions that halve the image (see `halvings`), then fully connected layers.

    Attributes:
        hidden: the fully connected layers. Their activation, initializer, batch norm, dropout and
            dtype are those of the convolutions too.
        image_shape: shape of one image.
        channels: of the first convolution; each further one has twice as many.
    """

    hidden: MLP
    image_shape: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch ..."], keys: Key[Array, "batch"], train: bool
    ) -> Float[Array, "batch features"]:
        """Features of images, which may come flattened.

        What follows a flattened image's pixels, such as the noise eta of a universal approximator,
        has no place in the picture: it joins the features that the fully connected layers see.
        """
        flat, pixels = x.reshape(x.shape[0], -1), math.prod(self.image_shape)
        image = flat[:, :pixels].reshape(-1, *self.image_shape)
        for number in range(halvings(self.image_shape)):
            # A kernel of twice the stride reads every pixel equally often.
            image = Convolution(
                self.channels * 2**number,
                size=4,
                stride=2,
                kernel_init=self.hidden.kernel_init,
                dtype=self.hidden.dtype,
                name=f"convolution_{number}",
            )(image)
            image = _activated(self.hidden, image, keys, train, "convolution", number)
        features = image.reshape(image.shape[0], -1)
        rest = flat[:, pixels:].astype(features.dtype)
        return self.hidden(jnp.concatenate([features, rest], axis=1), keys, train)


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
        hidden = self.trunk(image, keys, train).astype(jnp.float32)
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
        hidden: the hidden layers. Their dtype is that of the output's layer too, whose width is
            comparable.
        image_shape: shape of one image (or row).
    """

    hidden: MLP
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
        output = nn.Dense(
            size, dtype=self.hidden.dtype, kernel_init=self.kernel_init, name="output"
        )(hidden)
        return output.astype(jnp.float32).reshape(-1, *self.image_shape)


class ConvolutionalDecoder(nn.Module):
    """The mirror of `ConvolutionalTrunk`: fully connected layers, then an image that doubles.

    No output nonlinearity.

    Attributes:
        hidden: the fully connected layers. Their activation, initializer, batch norm, dropout and
            dtype are those of the convolutions too.
        image_shape: shape of one image.
        channels: of the last hidden image; each one before it has twice as many.
    """

    hidden: MLP
    image_shape: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(
        self, code: Float[Array, "batch features"], keys: Key[Array, "batch"], train: bool
    ) -> Float[Array, "batch h w c"]:
        """The decoder's output before the likelihood's mean function."""
        init, dtype = self.hidden.kernel_init, self.hidden.dtype
        doublings = halvings(self.image_shape)
        small = [side // 2**doublings for side in self.image_shape[:2]]
        widths = [self.channels * 2**number for number in reversed(range(doublings))]
        features = self.hidden(code, keys, train)
        size = math.prod(small) * widths[0]
        grid = nn.Dense(size, dtype=dtype, kernel_init=init, name="grid")(features)
        image = grid.reshape(-1, *small, widths[0])
        names = [*(f"convolution_{number}" for number in range(doublings - 1)), "output"]
        for number, (width, name) in enumerate(
            zip([*widths[1:], self.image_shape[2]], names, strict=True)
        ):
            image = _activated(self.hidden, image, keys, train, "convolution", number)
            convolution = Convolution(width, size=3, kernel_init=init, dtype=dtype, name=name)
            image = convolution(_doubled(image))
        return image.astype(jnp.float32)


def _doubled(image: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c"]:
    """Each pixel four times.

    Before a convolution this leaves no checkerboard, unlike a transposed convolution whose stride
    reaches some pixels by more of its weights than others: here all weights reach every pixel
    (Odena et al., 2016, doi:10.23915/distill.00003).
    """
    return jnp.repeat(jnp.repeat(image, 2, axis=1), 2, axis=2)


class Discriminator(nn.Module):
    """Scores codes; never batch-normalised, which makes discriminators on codes useless.

    Attributes:
        widths, activation, kernel_init: as in `MLP`.
        spectral_norm: divide each weight matrix by its largest singular value
            (Miyato et al., 2018, arXiv:1802.05957), which is found in float32.
        dtype: what the hidden layers are computed in.
    """

    widths: Sequence[int]
    activation: str = "relu"
    kernel_init: Initializer = normal(0.01)
    spectral_norm: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch features"], update_stats: bool = False
    ) -> Float[Array, "batch"]:
        """One score (logit) per code; `update_stats` moves the spectral norm's power iteration."""
        for number, width in enumerate(self.widths):
            x = self._dense(width, f"dense_{number}", self.dtype, x, update_stats)
            x = ACTIVATIONS[self.activation](x)
        return self._dense(1, "score", jnp.float32, x, update_stats)[:, 0]

    def _dense(
        self, width: int, name: str, dtype: DTypeLike, x: Array, update_stats: bool
    ) -> Array:
        dense = nn.Dense(width, dtype=dtype, kernel_init=self.kernel_init, name=name)
        if not self.spectral_norm:
            return dense(x)
        return nn.SpectralNorm(dense, name=f"{name}_spectral")(x, update_stats=update_stats)


def one_hot(label: Shaped[Array, "batch"], num_classes: int) -> Float[Array, "batch classes"]:
    """One-hot rows; a row of zeros for a label outside 0..num_classes-1."""
    return jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
