"""Random changes of training images that leave what they show as it is.

An augmentation is a function (keys, images) -> images of the same shape, one key per image.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

Augmentation = Callable[
    [Key[Array, "batch"], Float[Array, "batch height width channels"]],
    Float[Array, "batch height width channels"],
]


def affine(
    degrees: float | int = 0.0,
    translate: float | int = 0.0,
    scale: float | int = 0.0,
    shear: float | int = 0.0,
) -> Augmentation:
    """Rotated, moved, zoomed and slanted images, each by an amount of its own.

    The amounts are uniform between minus and plus the given ones. Pixels are interpolated linearly;
    beyond the border its own pixels go on.

    Args:
        degrees: of rotation about the centre.
        translate: shares of the height and of the width to move by.
        scale: share of its size by which an image grows or shrinks.
        shear: degrees of slant.

    Raises:
        ValueError: an amount is negative, the scale 1 or more, or the slant 90 degrees or more.
    """
    amounts = jnp.array([degrees, translate, translate, scale, shear], jnp.float32)
    if not (jnp.isfinite(amounts).all() and (amounts >= 0).all() and scale < 1 and shear < 90):
        raise ValueError(
            f"affine: degrees {degrees}, translate {translate}, scale {scale}, shear {shear}; "
            "allowed: 0 or more, scale below 1, shear below 90"
        )

    def one(key: Key[Array, ""], image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        angle, down, right, zoom, slant = amounts * jax.random.uniform(key, (5,), minval=-1.0)
        cos, sin = jnp.cos(jnp.deg2rad(angle)), jnp.sin(jnp.deg2rad(angle))
        tan = jnp.tan(jnp.deg2rad(slant))
        # Rotation times shear.
        matrix = jnp.array([[cos - sin * tan, -sin], [sin + cos * tan, cos]]) / (1.0 + zoom)
        shift = jnp.array([down * image.shape[0], right * image.shape[1]])
        return _warped(image, matrix, shift)

    return jax.vmap(one)


def _warped(
    image: Float[Array, "h w c"], matrix: Float[Array, "2 2"], shift: Float[Array, "2"]
) -> Float[Array, "h w c"]:
    """The image whose pixel at p, from the centre, is the old one's at matrix @ (p - shift)."""
    size = jnp.array(image.shape[:2])
    centre = ((size - 1) / 2)[:, None, None]
    pixels = jnp.indices(image.shape[:2]) - centre - shift[:, None, None]
    # In full precision also on devices whose products are rounded by default.
    seen = jnp.tensordot(matrix, pixels, axes=1, precision=lax.Precision.HIGHEST) + centre

    def channel(plane: Float[Array, "h w"]) -> Float[Array, "h w"]:
        return map_coordinates(plane, list(seen), order=1, mode="nearest")

    return jax.vmap(channel, in_axes=2, out_axes=2)(image)


AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {"affine": affine}
