"""Affine augmentation against SciPy, and how its amounts are drawn.

What was drawn is read off an image of coordinates: linear interpolation leaves a slope of one as it
is, so each new pixel says where in the old image it looks. Nothing here knows how keys are used.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from aae_jax.augmentation import affine

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = [(15, 15), (20, 28), (31, 18)]
ONLY = {
    "degrees": {"degrees": 25.0},
    "translate": {"translate": 0.15},
    "scale": {"scale": 0.2},
    "shear": {"shear": 15.0},
}
ALL = {name: amount for amounts in ONLY.values() for name, amount in amounts.items()}


def keys_of(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def some_images(n, shape, channels=1, seed=0):
    image = np.random.default_rng(seed).uniform(size=(n, *shape, channels))
    return jnp.asarray(image, jnp.float32)


def augment(amounts, keys, images):
    return np.asarray(jax.jit(affine(**amounts))(keys, images))


class Drawn(NamedTuple):
    """Of each image: its pixel at p is the old one's at matrix @ p + offset."""

    matrix: np.ndarray  # [n, 2, 2]
    offset: np.ndarray  # [n, 2]
    moved_centre: np.ndarray  # [n, 2], where the centre looks, from the centre


def drawn(amounts, keys, shape):
    coordinates = np.stack(np.indices(shape), axis=-1)
    ramps = jnp.broadcast_to(jnp.asarray(coordinates, jnp.float32), (len(keys), *shape, 2))
    looks = augment(amounts, keys, ramps).astype(np.float64)
    # Near the centre, from where all amounts of these tests look within the image.
    r, c = (side // 2 for side in shape)
    down, right = looks[:, r + 2, c] - looks[:, r - 2, c], looks[:, r, c + 2] - looks[:, r, c - 2]
    matrix = np.stack([down, right], axis=-1) / 4
    offset = looks[:, r, c] - matrix @ [r, c]
    centre = (np.array(shape) - 1) / 2
    return Drawn(matrix, offset, matrix @ centre + offset - centre)


def assert_spread(values, amount):
    """Uniform between minus and plus the amount, and never beyond."""
    assert np.abs(values).max() <= amount * (1 + 1e-3)
    assert scipy.stats.kstest(values, scipy.stats.uniform(-amount, 2 * amount).cdf).pvalue > 1e-3


# What is done to an image


@pytest.mark.parametrize("shape", [*SHAPES, (1, 1), (1, 6)])
def test_without_amounts_every_bit_stays(shape):
    images = some_images(3, shape, channels=2)
    np.testing.assert_array_equal(augment({}, keys_of(3), images), images)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("amounts", [*ONLY.values(), ALL], ids=[*ONLY, "all"])
def test_an_image_is_what_scipy_makes_of_it(amounts, shape):
    """Its border too, beyond which the border's pixels go on."""
    keys, images = keys_of(8), some_images(8, shape)
    found = augment(amounts, keys, images)
    assert found.shape == images.shape and np.abs(found - images).max() > 0.1
    draws = drawn(amounts, keys, shape)
    for image, new, matrix, offset in zip(images, found, draws.matrix, draws.offset, strict=True):
        expected = scipy.ndimage.affine_transform(
            np.asarray(image[..., 0], np.float64), matrix, offset, order=1, mode="nearest"
        )
        np.testing.assert_allclose(new[..., 0], expected, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["degrees", "scale", "shear"])
def test_only_a_translation_moves_the_centre(name, shape):
    np.testing.assert_allclose(drawn(ONLY[name], keys_of(20), shape).moved_centre, 0, atol=1e-4)


def test_channels_are_changed_alike():
    keys, images = keys_of(5), some_images(5, (12, 9), channels=3)
    found = augment(ALL, keys, images)
    for channel in range(3):
        alone = augment(ALL, keys, images[..., channel : channel + 1])
        np.testing.assert_allclose(found[..., channel : channel + 1], alone, atol=1e-5)


def test_a_key_gives_its_image_the_same_change_whatever_else_is_in_the_batch():
    keys, images = keys_of(6), some_images(6, (12, 9))
    whole = augment(ALL, keys, images)
    np.testing.assert_array_equal(augment(ALL, keys, images), whole)
    np.testing.assert_allclose(augment(ALL, keys[::-1], images[::-1])[::-1], whole, atol=1e-5)
    np.testing.assert_allclose(augment(ALL, keys[2:3], images[2:3]), whole[2:3], atol=1e-5)


def test_each_image_of_a_batch_is_changed_in_its_own_way():
    image = jnp.broadcast_to(some_images(1, (12, 9)), (30, 12, 9, 1))
    found = augment({"degrees": 10.0}, keys_of(30), image).reshape(30, -1)
    assert len(np.unique(found.round(4), axis=0)) == 30


# How much of it


MANY = keys_of(2000, seed=1)


def test_a_rotation_keeps_shapes_and_turns_by_any_angle_up_to_its_degrees():
    matrix = drawn({"degrees": 25.0}, MANY, (15, 15)).matrix
    products = matrix @ matrix.transpose(0, 2, 1)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(2), products.shape), atol=1e-4)
    np.testing.assert_allclose(np.linalg.det(matrix), 1, atol=1e-4)
    assert_spread(np.rad2deg(np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0])), 25.0)


def test_a_translation_is_by_shares_of_height_and_of_width():
    matrix, _, moved = drawn({"translate": 0.15}, MANY, (20, 40))
    np.testing.assert_allclose(matrix, np.broadcast_to(np.eye(2), matrix.shape), atol=1e-5)
    assert_spread(moved[:, 0], 0.15 * 20)
    assert_spread(moved[:, 1], 0.15 * 40)
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.1, "a number each"


def test_a_zoom_multiplies_both_sides_by_one_and_a_share():
    matrix = drawn({"scale": 0.4}, MANY, (15, 15)).matrix
    grown = 1 / matrix[:, 0, 0]
    same = matrix[:, 0, 0, None, None] * np.eye(2)
    np.testing.assert_allclose(matrix, same, atol=1e-5)
    assert_spread(grown - 1, 0.4)


def test_a_shear_slants_columns_by_any_angle_up_to_its_degrees_and_keeps_rows():
    matrix = drawn({"shear": 30.0}, MANY, (15, 15)).matrix
    np.testing.assert_allclose(matrix[:, 0], np.broadcast_to([1, 0], (len(MANY), 2)), atol=1e-5)
    np.testing.assert_allclose(matrix[:, 1, 1], 1, atol=1e-5)
    assert_spread(np.rad2deg(np.arctan(matrix[:, 1, 0])), 30.0)


def test_together_they_are_drawn_apart():
    """A matrix has one rotation, slant and zoom that it is made of."""
    matrix, _, moved = drawn(ALL, MANY, (31, 31))
    # Across the rows, shearing changes nothing: that column is turned and shrunk only.
    angle = np.rad2deg(np.arctan2(-matrix[:, 0, 1], matrix[:, 1, 1]))
    grown = 1 / np.linalg.norm(matrix[:, :, 1], axis=1)
    product = (matrix[:, :, 0] * matrix[:, :, 1]).sum(axis=1)
    slant = np.rad2deg(np.arctan(product * grown**2))
    amounts = [angle, grown - 1, slant, *moved.T]
    for values, amount in zip(amounts[:3], (25.0, 0.2, 15.0), strict=True):
        assert_spread(values, amount)
    # Where the centre looks is the shift, seen through the matrix.
    shift = np.linalg.solve(matrix, moved[..., None])[..., 0]
    assert_spread(shift[:, 0], 0.15 * 31)
    assert_spread(shift[:, 1], 0.15 * 31)
    correlations = np.corrcoef([*amounts[:3], *shift.T]) - np.eye(5)
    assert np.abs(correlations).max() < 0.1


# What cannot be done


@pytest.mark.parametrize(
    "amounts",
    [
        *({name: -0.1} for name in ONLY),
        *({name: value} for name in ONLY for value in (np.nan, np.inf)),
        {"scale": 1.0},
        {"shear": 90.0},
        {"degrees": 10, "translate": 0.1, "scale": 1.5},
    ],
    ids=str,
)
def test_impossible_amounts_are_named_with_what_is_allowed(amounts):
    with pytest.raises(ValueError) as caught:
        affine(**amounts)
    line = str(caught.value)
    assert all(f"{name} {value}" in line for name, value in amounts.items()), line
    assert line.endswith("allowed: 0 or more, scale below 1, shear below 90")


def test_the_largest_amounts_give_images_between_the_old_ones_darkest_and_brightest():
    images = some_images(50, (12, 9))
    found = augment(
        {"degrees": 360, "translate": 2, "scale": 0.99, "shear": 89}, keys_of(50), images
    )
    least, most = (pick(images, axis=(1, 2, 3), keepdims=True) for pick in (np.min, np.max))
    assert ((found >= least - 1e-5) & (found <= most + 1e-5)).all()
