"""What a user passes to a trained model, checked.

Every fault is an `InferenceError` of one line: what was given, what is expected.
"""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from aae_jax.data.description import Description

# Images in [0, 1] may leave it by rounding.
_ROUNDING = 1e-6


class InferenceError(ValueError):
    """An argument that cannot be used, or a function that this run does not have; one line."""


class Units(NamedTuple):
    """What a run's images look like.

    Attributes:
        shape: of one image.
        takes_uint8: whether the data came as uint8; else it is not known what 0..255 would mean.
        bounded: whether floats are in [0, 1].
    """

    shape: tuple[int, ...]
    takes_uint8: bool
    bounded: bool

    def checked(self, images: Any, name: str) -> np.ndarray:
        """Images [n, *shape] as uint8 or finite float32."""
        expected = self._described("n")
        _check_array(images, name, expected)
        if images.shape == self.shape:
            expected += "; give a single image as image[None]"
        _check_shape(images, name, (-1, *self.shape), expected)
        if images.dtype == np.uint8 and self.takes_uint8:
            return np.asarray(images)
        x = _finite(images, name, expected)
        if self.bounded and x.size and not -_ROUNDING <= x.min() <= x.max() <= 1 + _ROUNDING:
            raise InferenceError(
                f"{name}: values range over {x.min():g}..{x.max():g}; expected {expected}"
            )
        return x

    def one(self, image: Any, name: str) -> np.ndarray:
        """A single image, as a batch of one."""
        expected = self._described()
        _check_array(image, name, expected)
        _check_shape(image, name, self.shape, expected)
        return self.checked(image[None], name)

    def _described(self, *batch: str) -> str:
        types = "uint8 or float" if self.takes_uint8 else "float"
        shape = ", ".join(map(str, (*batch, *self.shape)))
        return f"{types} [{shape}]" + (" in 0..1" if self.bounded else " in the data's units")


def units_of(data: Description, output: str) -> Units:
    """The units of a run with this output of the decoder."""
    is_uint8 = data.image_type == "uint8"
    return Units(data.image_shape, is_uint8, is_uint8 or output != "linear")


def _check_array(array: Any, name: str, expected: str) -> None:
    if isinstance(array, jax.core.Tracer):
        raise InferenceError(
            f"{name}: traced by JAX; call this outside of jit, grad and vmap, or use `coder` there"
        )
    # The arithmetic below would not see the mask.
    if isinstance(array, np.ma.MaskedArray) or not isinstance(array, np.ndarray | jax.Array):
        raise InferenceError(
            f"{name}: a {type(array).__name__}; expected a NumPy or JAX array, {expected}"
        )


def _check_shape(array: Any, name: str, shape: tuple[int, ...], expected: str) -> None:
    """Sizes of -1 are free."""
    fits = len(array.shape) == len(shape) and all(
        wanted in (-1, size) for size, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise InferenceError(f"{name}: {array.dtype} {list(array.shape)}; expected {expected}")


def _finite(array: Any, name: str, expected: str) -> Float[np.ndarray, "n ..."]:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InferenceError(f"{name}: {array.dtype} {list(array.shape)}; expected {expected}")
    with np.errstate(over="ignore"):  # an overflow is named below
        x = np.asarray(array).astype(np.float32, copy=False)
    finite = np.isfinite(x).reshape(len(x), -1).all(axis=1) if x.size else np.ones(0, bool)
    if not finite.all():
        raise InferenceError(
            f"{name}: number {int(np.argmin(finite))} holds NaN or infinite values; "
            f"expected {expected}"
        )
    return x


def checked_style(style: Any, style_dim: int) -> Float[np.ndarray, "n style"]:
    """Styles, finite float32."""
    expected = f"float [n, {style_dim}]"
    _check_array(style, "style", expected)
    _check_shape(style, "style", (-1, style_dim), expected)
    return _finite(style, "style", expected)


def distributions(label: Any, n: int, count: int, what: str) -> Float[np.ndarray, "n labels"]:
    """Labels as distributions over the classes or clusters."""
    if not isinstance(label, np.ndarray | jax.Array) or not jnp.issubdtype(
        label.dtype, jnp.floating
    ):
        return np.eye(count, dtype=np.float32)[whole_labels(label, n, count, what)]
    expected = f"whole numbers or distributions [{n}, {count}] over the {what}"
    _check_array(label, "label", expected)
    _check_shape(label, "label", (n, count), expected)
    rows = _finite(label, "label", expected)
    if (rows < -_ROUNDING).any() or (np.abs(rows.sum(axis=1) - 1) > 1e-3).any():
        raise InferenceError(f"label: rows are no distributions; expected {expected}")
    return rows


def whole_labels(label: Any, n: int, count: int, what: str) -> Int[np.ndarray, "n"]:
    """One whole number for all, or one each."""
    if isinstance(label, np.ndarray | jax.Array) and label.ndim:
        expected = f"whole numbers [{n}] from 0 to {count - 1} ({what})"
        _check_array(label, "label", expected)
        _check_shape(label, "label", (n,), expected)
        if not jnp.issubdtype(label.dtype, jnp.integer):
            raise InferenceError(f"label: {label.dtype} {list(label.shape)}; expected {expected}")
        values = np.asarray(label)
        if n and not 0 <= values.min() <= values.max() < count:
            raise InferenceError(
                f"label: values range over {values.min()}..{values.max()}; expected {expected}"
            )
        return values.astype(np.int32)
    check_whole(label, "label", 0, count - 1, f" ({what})")
    return np.full(n, int(label), np.int32)


def check_whole(value: Any, name: str, low: int, high: int | None = None, of: str = "") -> None:
    """Refuses what is no whole number from low to high."""
    try:
        whole = low - 1 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        whole = low - 1
    if whole < low or (high is not None and whole > high):
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        raise InferenceError(f"{name} is {value!r}; allowed: a whole number, {allowed}{of}")


def checked_key(key: Any) -> Key[Array, ""]:
    """A typed key, made of a raw one where need be."""
    if key is None:
        return jax.random.key(0)
    if isinstance(key, jax.Array) and not isinstance(key, jax.core.Tracer):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
            return key
        if key.dtype == jnp.uint32 and key.shape == (2,):
            return jax.random.wrap_key_data(key)
    found = f"{key.dtype} {list(key.shape)}" if isinstance(key, jax.Array) else repr(key)
    raise InferenceError(f"key: {found}; expected one key, jax.random.key(seed)")
