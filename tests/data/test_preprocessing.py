import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aae_jax.data import DataError
from aae_jax.data import preprocessing as pre


def byte_images(n=1300, shape=(4, 3, 2)) -> np.ndarray:
    """More than two blocks, and not a whole number of them; pixels of unlike spread."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (n, *shape)) // rng.integers(1, 9, shape)
    return image.astype(np.uint8)


def float_rows(n=1300, features=7) -> np.ndarray:
    rng = np.random.default_rng(1)
    offset, spread = 10.0 ** rng.integers(-3, 4, features), 10.0 ** rng.integers(-3, 2, features)
    return (offset + spread * rng.normal(size=(n, features))).astype(np.float32)


def oracle(image: np.ndarray, per_pixel: bool) -> tuple[np.ndarray, np.ndarray]:
    x = image.astype(np.longdouble) / (255 if image.dtype == np.uint8 else 1)
    axis = 0 if per_pixel else None
    return x.mean(axis).astype(np.float64), x.std(axis).astype(np.float64)


@pytest.mark.parametrize("data", [byte_images, float_rows])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_constants_are_mean_and_standard_deviation(data, per_pixel):
    image = data()
    p = pre.fit("standardize_pixels" if per_pixel else "standardize", image)
    mean, std = oracle(image, per_pixel)
    assert p.shift.dtype == p.scale.dtype == np.float32
    assert p.shift.shape == p.scale.shape == (image.shape[1:] if per_pixel else ())
    np.testing.assert_allclose(p.shift, mean, rtol=1e-6)
    np.testing.assert_allclose(p.scale, std, rtol=1e-6)


def test_small_spread_far_from_zero():
    """Float32 sums, or squares of values instead of deviations, would lose it all."""
    rng = np.random.default_rng(2)
    rows = (1000 + 0.01 * rng.normal(size=(5000, 3))).astype(np.float32)
    np.testing.assert_allclose(
        pre.fit("standardize_pixels", rows).scale, rows.astype(np.float64).std(0), rtol=1e-6
    )


@pytest.mark.parametrize("data", [byte_images, float_rows])
@pytest.mark.parametrize("name", pre.NAMES)
def test_normalize_matches_its_formula_and_denormalize_inverts_it(data, name):
    image = data()
    p = pre.fit(name, image)
    unit = image.astype(np.float64) / (255 if image.dtype == np.uint8 else 1)
    normal = pre.normalize(p, image)
    want = (unit - p.shift.astype(np.float64)) / p.scale.astype(np.float64)
    assert normal.dtype == jnp.float32
    # The image itself is rounded to float32, an error that the division magnifies.
    rounding = 2e-7 * np.abs(unit).max(0) / p.scale
    assert (np.abs(np.asarray(normal) - want) < 1e-6 + rounding + 1e-6 * np.abs(want)).all()
    np.testing.assert_allclose(
        pre.denormalize(p, normal), unit, rtol=1e-6, atol=1e-6 * np.abs(unit).max()
    )


def test_standardized_images_have_mean_0_and_std_1_per_pixel():
    image = byte_images()
    normal = np.asarray(pre.normalize(pre.fit("standardize_pixels", image), image), np.float64)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(0), 1, rtol=1e-5)


def test_unit_keeps_bytes_between_0_and_1():
    image = np.array([[[[0]], [[51]], [[255]]]], np.uint8)
    normal = pre.normalize(pre.fit("unit", image), image)
    np.testing.assert_allclose(np.ravel(normal), [0, 0.2, 1], rtol=1e-7)


def test_nearly_constant_pixels_keep_scale_1():
    image = byte_images(n=2000, shape=(4,))
    image[:, 0] = 200
    image[:, 1] = 17
    image[5, 1] = 18
    p = pre.fit("standardize_pixels", image)
    assert p.scale[0] == p.scale[1] == 1 and (p.scale[2:] < 1).all()
    assert np.abs(pre.normalize(p, image)).max() < 5

    rows = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    rows[:, 0] = 0.1  # not exact in binary: the mean in float64 differs from it by rounding
    rows[:, 1] = 0
    rows[:, 2] *= 1e-20  # tiny, but everything this feature says
    p = pre.fit("standardize_pixels", rows)
    assert p.scale[0] == p.scale[1] == 1
    np.testing.assert_allclose(p.scale[2:], rows[:, 2:].astype(np.float64).std(0), rtol=1e-6)

    assert pre.fit("standardize", np.full((3, 2), 7, np.uint8)).scale == 1


def test_jit_with_constants_inside_or_passed_and_one_image_or_many():
    image = byte_images(n=9)
    p = pre.fit("standardize_pixels", image)
    want = np.asarray(pre.normalize(p, image))
    inside = jax.jit(lambda x: pre.normalize(p, x))
    for result in (inside(image), jax.jit(pre.normalize)(p, image)):
        np.testing.assert_allclose(result, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(inside(image[4]), want[4], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        inside(image.reshape(3, 3, 4, 3, 2)), want.reshape(3, 3, 4, 3, 2), rtol=1e-6, atol=1e-6
    )
    back = jax.jit(pre.denormalize)(p, want)
    np.testing.assert_allclose(back, image / 255, rtol=1e-6, atol=1e-6)


def test_memory_stays_flat():
    image = np.broadcast_to(byte_images(n=1, shape=(28, 28, 1)), (20_000, 28, 28, 1))
    tracemalloc.start()
    pre.fit("standardize_pixels", image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # 125 MB as one array of float64


def test_images_are_left_as_they_are():
    image = byte_images()
    before = image.copy()
    p = pre.fit("standardize_pixels", image)
    pre.normalize(p, image)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", pre.NAMES)
def test_save_and_load_are_exact(tmp_path, name):
    p = pre.fit(name, byte_images())
    path = tmp_path / "constants"
    pre.save(p, path)
    assert path.is_file()  # no suffix appended
    again = pre.load(path)
    for saved, loaded in zip(p, again, strict=True):
        assert loaded.dtype == np.float32 and loaded.shape == saved.shape
        np.testing.assert_array_equal(loaded, saved)


def test_save_takes_jax_arrays_and_python_paths_as_text(tmp_path):
    p = pre.Preprocessing(jnp.float32(0.25) * jnp.ones(3), jnp.ones(3))
    pre.save(p, f"{tmp_path}/constants.npz")
    np.testing.assert_array_equal(pre.load(f"{tmp_path}/constants.npz").shift, [0.25] * 3)


@pytest.mark.parametrize(
    "arrays",
    [
        {"shift": np.zeros(3, np.float32)},
        {"shift": np.zeros(3), "scale": np.ones(3)},
        {"shift": np.zeros(3, np.float32), "scale": np.ones(2, np.float32)},
        {"shift": np.zeros(3, np.float32), "scale": np.zeros(3, np.float32)},
        {"shift": np.full(3, np.nan, np.float32), "scale": np.ones(3, np.float32)},
        {"shift": np.array(None), "scale": np.ones(3, np.float32)},
        None,
    ],
)
def test_files_that_hold_something_else(tmp_path, arrays):
    path = tmp_path / "constants.npz"
    if arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises(DataError) as caught:
        pre.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_bad_arguments():
    with pytest.raises(ValueError, match="unit, standardize_pixels, standardize"):
        pre.fit("whiten", byte_images())
    with pytest.raises(ValueError, match="at least one"):
        pre.fit("unit", byte_images(n=0))
