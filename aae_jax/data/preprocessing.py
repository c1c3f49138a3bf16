"""What is done to an image before the networks see it: (image - shift) / scale.

uint8 images are first divided by 255. The constants are computed from training images only and
are part of a trained model: `save` and `load` keep them beside its parameters.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, UInt8

from aae_jax.data.sources import DataError, read_npz
from aae_jax.data.stored import StoredImages
from aae_jax.files import write_whole

NAMES = ("unit", "standardize_pixels", "standardize")

# Images in one block of float64: 12 MB of 32x32 colour images.
_BLOCK = 512
# A pixel that varies by less than one grey level is taken for constant; so is a float feature
# whose spread is rounding error.
_GREY_LEVEL = 1 / 255
_ROUNDING = 1e-6


class Preprocessing(NamedTuple):
    """Constants that broadcast to one image: scalars or the image's own shape."""

    shift: Float32[np.ndarray | Array, "*shape"]
    scale: Float32[np.ndarray | Array, "*shape"]


UNIT = Preprocessing(np.zeros((), np.float32), np.ones((), np.float32))


def normalize(
    p: Preprocessing,
    image: UInt8[np.ndarray | Array, "*batch"] | Float[np.ndarray | Array, "*batch"],
) -> Float32[Array, "*batch"]:
    """Images as the networks see them: (image - shift) / scale, uint8 divided by 255 first.

    Args:
      p: the constants.
      image: one image or any batch of images, trailing axes as in training.

    Returns:
      The normalized images, same shape.
    """
    x = jnp.asarray(image)
    x = x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x.astype(jnp.float32)
    return (x - p.shift) / p.scale


def denormalize(
    p: Preprocessing, image: Float[np.ndarray | Array, "*batch"]
) -> Float32[Array, "*batch"]:
    """The inverse of `normalize`: in [0, 1] for images that came as uint8, not clipped.

    Args:
      p: the constants.
      image: normalized images, or reconstructions and samples of a model.

    Returns:
      The images in the units of the data, same shape.
    """
    return jnp.asarray(image).astype(jnp.float32) * p.scale + p.shift


def fit(
    name: str,
    train_images: UInt8[np.ndarray | StoredImages, "n *shape"] | Float32[np.ndarray, "n *shape"],
) -> Preprocessing:
    """Computes the constants from training images, block by block in float64.

    Args:
      name: "unit": shift 0, scale 1, images stay in [0, 1];
        "standardize_pixels": mean and standard deviation of each pixel over the images (the paper's
        appendix A.1 for faces, A.2.2 for SVHN), where a nearly constant pixel keeps scale 1;
        "standardize": one mean and standard deviation over all pixels and images.
      train_images: training images, in no case validation or test images. Stored ones are read
        twice, and give the same constants.

    Returns:
      The constants, scalars or of the shape of one image.

    Raises:
      ValueError: the name is unknown or there is no image.
    """
    if name not in NAMES:
        raise ValueError(f"unknown preprocessing {name!r}: known are {', '.join(NAMES)}")
    if train_images.size == 0:
        raise ValueError("preprocessing needs at least one training image")
    if name == "unit":
        return UNIT
    mean, std = _mean_and_std(train_images, per_pixel=name == "standardize_pixels")
    smallest = _GREY_LEVEL if train_images.dtype == np.uint8 else _ROUNDING * np.abs(mean)
    std = np.where(std <= smallest, 1.0, std)
    return Preprocessing(np.asarray(mean, np.float32), np.asarray(std, np.float32))


def save(p: Preprocessing, path: str | Path) -> None:
    """Writes the constants to an .npz file at exactly this path."""
    content = io.BytesIO()
    np.savez(content, shift=np.asarray(p.shift), scale=np.asarray(p.scale))
    write_whole(path, content.getvalue())


def load(path: str | Path) -> Preprocessing:
    """Reads what `save` wrote.

    Args:
      path: the file.

    Returns:
      The constants, bit for bit.

    Raises:
      DataError: the file is missing, damaged or holds something else.
    """
    arrays = read_npz(Path(path), ("shift", "scale"))
    shift, scale = arrays["shift"], arrays["scale"]
    if (
        shift.dtype != np.float32
        or scale.dtype != np.float32
        or shift.shape != scale.shape
        or not np.isfinite(shift).all()
        or not (np.isfinite(scale) & (scale > 0)).all()
    ):
        raise DataError(f"{path}: holds no preprocessing constants; fit and save them again")
    return Preprocessing(shift, scale)


def _mean_and_std(
    images: np.ndarray | StoredImages, per_pixel: bool
) -> tuple[Float64[np.ndarray, "*shape"], Float64[np.ndarray, "*shape"]]:
    """Two passes: the squares of deviations do not cancel as squares of values would."""
    axes = 0 if per_pixel else None
    count = len(images) if per_pixel else images.size
    mean = np.asarray(sum(block.sum(axis=axes) for block in _blocks(images)) / count)
    squares = sum(np.square(block - mean).sum(axis=axes) for block in _blocks(images))
    return mean, np.asarray(np.sqrt(squares / count))


def _blocks(images: np.ndarray | StoredImages) -> Iterator[Float64[np.ndarray, "block *shape"]]:
    for block in images.blocks(_BLOCK) if isinstance(images, StoredImages) else _cut(images):
        block = block.astype(np.float64)
        yield block / 255 if images.dtype == np.uint8 else block


def _cut(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), _BLOCK):
        yield images[start : start + _BLOCK]
