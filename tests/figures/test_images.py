import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits

from aae_jax.figures import (
    cluster_heads,
    image_grid,
    mode_axes,
    reconstructions,
    roll_walk,
    samples_with_nearest,
    style,
    to_png,
)


def dark(*shape, seed=0):
    """Images darker than the white page, each of one level of its own."""
    cells = shape[:-3]
    levels = np.linspace(0.05, 0.85, int(np.prod(cells)), dtype=np.float32)
    levels = np.random.default_rng(seed).permutation(levels).reshape(*cells, 1, 1, 1)
    return np.broadcast_to(levels, shape).copy()


def picture(figure) -> np.ndarray:
    (axes,) = figure.axes
    (image,) = axes.images
    return np.asarray(image.get_array())


def boxes(figure) -> list[tuple[float, float, float, float, float]]:
    """Top, left, height, width and level of every uniform image in the picture, found by pixel."""
    pixels = picture(figure)
    found, count = ndimage.label((pixels < 1).any(axis=2))
    result = []
    for place in ndimage.find_objects(found, count):
        cell = pixels[place]
        assert np.ptp(cell) == 0
        rows, cols = place[:2]
        size = (rows.stop - rows.start, cols.stop - cols.start)
        result.append((rows.start, cols.start, *size, float(cell[0, 0, 0])))
    return sorted(result)


def levels_in_rows(figure) -> list[list[float]]:
    """Levels of the images row by row, as they stand in the picture."""
    rows: dict[float, list[float]] = {}
    for top, _, _, _, level in boxes(figure):
        rows.setdefault(top, []).append(level)
    return list(rows.values())


def texts(figure) -> list[str]:
    (axes,) = figure.axes
    return [text.get_text() for text in axes.texts]


def note(figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts[1:])


def frames(figure) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def framed_level(figure, frame: Rectangle) -> float:
    """Level of the image inside a frame, which has to enclose it closely."""
    (x, y), width, height = frame.get_xy(), frame.get_width(), frame.get_height()
    inside = [
        level
        for top, left, tall, wide, level in boxes(figure)
        if x < left and y < top and x + width > left + wide - 1 and y + height > top + tall - 1
    ]
    (level,) = inside
    return level


@settings(deadline=None, max_examples=12)
@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 5),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
)
def test_grid_keeps_order_number_and_proportions(rows, cols, height, width, channels):
    images = dark(rows, cols, height, width, channels)
    figure = image_grid(images, "A grid")
    found = boxes(figure)
    assert len(found) == rows * cols
    np.testing.assert_allclose(levels_in_rows(figure), images[:, :, 0, 0, 0])
    assert len({(tall, wide) for _, _, tall, wide, _ in found}) == 1
    _, _, tall, wide, _ = found[0]
    assert tall % height == 0
    assert tall * width == wide * height


def test_pixels_of_the_png_are_the_images_pixels():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 28, 20, 3)).astype(np.float32) / 255
    figure = image_grid(images, "Noise", row_labels=["one", "two", "three"])
    pixels = np.asarray(Image.open(io.BytesIO(to_png(figure))).convert("RGB"))
    box = figure.axes[0].get_window_extent()
    expected = picture(figure)
    bottom, left = len(pixels) - round(box.y0), round(box.x0)
    height, width = expected.shape[:2]
    shown = pixels[bottom - height : bottom, left : left + width] / 255
    np.testing.assert_allclose(shown, expected, atol=1e-6)
    side = boxes_side(expected, images[0, 0])
    np.testing.assert_allclose(expected[:: side[0], :: side[1]][:28, :20], images[0, 0])


def boxes_side(pixels, image) -> tuple[int, int]:
    """How often the first image's pixels are repeated, from its first change along both axes."""
    down = next(i for i in range(1, 100) if not np.allclose(pixels[i, 0], image[0, 0]))
    right = next(i for i in range(1, 100) if not np.allclose(pixels[0, i], image[0, 0]))
    return down, right


def test_digits_are_not_turned_or_mirrored():
    digits = (load_digits().images[:6] / 16).astype(np.float32).reshape(2, 3, 8, 8, 1)
    pixels = picture(image_grid(digits, "Digits"))
    side = 9
    np.testing.assert_allclose(
        pixels[4 : 8 * side : side, 4 : 8 * side : side, 0], digits[0, 0, ..., 0]
    )


def test_values_are_clipped():
    images = np.array([-3.0, 0.25, 0.5, 9.0]).reshape(1, 4, 1, 1, 1)
    pixels = picture(image_grid(images, "Clipped"))
    assert pixels.min() == 0.0
    assert pixels.max() == 1.0
    assert {0.25, 0.5} <= set(np.unique(pixels))


def test_pixels_that_are_not_finite_show_and_are_counted():
    images = dark(2, 3, 4, 4, 1)
    images[0, 0, 1, 2], images[1, 2] = np.nan, np.inf
    figure = image_grid(images, "Broken")
    magenta = (picture(figure) == to_rgb(style.BROKEN_PIXEL)).all(axis=2)
    assert magenta.sum() == (1 + 16) * 18**2
    assert "2 images with pixels not finite" in note(figure)
    assert note(image_grid(dark(2, 3, 4, 4, 1), "Whole")) == ""


def test_large_images_stay_within_a_page():
    figure = image_grid(dark(2, 8, 200, 200, 3), "Large")
    assert figure.get_size_inches()[0] < 12
    small = image_grid(dark(20, 20, 28, 28, 1), "Many")
    assert small.get_size_inches()[0] < 12
    side = (small.axes[0].get_window_extent().width - 19 * 3) / 20
    assert side >= 48


def test_labels_stand_at_their_rows_and_columns():
    figure = image_grid(dark(2, 3, 8, 8, 1), "Labels", ["up", "down"], ["a", "b", "c"])
    assert texts(figure) == ["up", "down", "a", "b", "c"]
    where = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    found = boxes(figure)
    top, left, tall, wide, _ = found[0]
    assert where["up"][1] == top + tall / 2
    assert where["a"][0] == left + wide / 2
    assert where["down"][1] == found[3][0] + tall / 2
    figure.canvas.draw()
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y1 <= figure.texts[0].get_window_extent().y0


def test_grid_says_what_is_wrong():
    with pytest.raises(ValueError, match="at least one image"):
        image_grid(dark(1, 1, 8, 8, 1)[:0], "Empty")
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        image_grid(np.zeros((1, 1, 8, 8, 2)), "Two channels")
    with pytest.raises(ValueError, match="2 rows but 1 row_labels"):
        image_grid(dark(2, 1, 8, 8, 1), "Labels", row_labels=["a"])
    with pytest.raises(ValueError, match="1 cols but 2 col_labels"):
        image_grid(dark(2, 1, 8, 8, 1), "Labels", col_labels=["a", "b"])


@pytest.mark.parametrize("n", [1, 10, 13])
def test_reconstructions_stand_under_their_originals(n):
    both = dark(2, n, 8, 6, 1)
    figure = reconstructions(both[0], both[1])
    expected = []
    for start in range(0, n, 10):
        expected += [list(both[row, start : start + 10, 0, 0, 0]) for row in (0, 1)]
    drawn = levels_in_rows(figure)
    assert [len(row) for row in drawn] == [len(row) for row in expected]
    np.testing.assert_allclose(np.concatenate(drawn), np.concatenate(expected))
    captions = [t for t in texts(figure) if t not in ("original", "reconstructed")]
    errors = 0.5 * 48 * (both[0, :, 0, 0, 0].astype(np.float64) - both[1, :, 0, 0, 0]) ** 2
    assert [float(caption) for caption in captions] == pytest.approx(errors, abs=0.006)


def test_reconstruction_error_is_of_the_values_before_clipping():
    figure = reconstructions(np.zeros((1, 2, 2, 1)), np.full((1, 2, 2, 1), 3.0))
    assert "18.00" in texts(figure)


def test_pairs_need_equal_shapes_and_an_image():
    with pytest.raises(ValueError, match="at least one image"):
        reconstructions(dark(1, 4, 4, 1)[:0], dark(1, 4, 4, 1)[:0])
    with pytest.raises(ValueError, match="at least one image"):
        samples_with_nearest(dark(1, 4, 4, 1)[:0], dark(1, 4, 4, 1)[:0])


def test_nearest_images_are_framed():
    both = dark(2, 12, 8, 8, 1)
    figure = samples_with_nearest(both[0], both[1])
    found = frames(figure)
    assert len(found) == 12
    framed = [framed_level(figure, frame) for frame in found]
    assert framed == pytest.approx(list(both[1, :, 0, 0, 0]))
    assert found[0].get_edgecolor()[:3] == pytest.approx(to_rgb(style.FRAME))
    assert not [text for text in texts(figure) if text not in ("sample", "nearest")]


def test_distances_are_written_under_the_pairs():
    both = dark(2, 3, 8, 8, 1)
    figure = samples_with_nearest(both[0], both[1], np.array([1.0, 2.345, 12345.6]))
    assert texts(figure)[-3:] == ["1.00", "2.35", "12,346"] or texts(figure)[-3:] == [
        "1.00",
        "2.34",
        "12,346",
    ]
    assert "distance" in note(figure)


def test_both_axes_of_a_mode_stand_beside_each_other():
    images = dark(3, 2, 4, 8, 8, 1)
    figure = mode_axes(images, axis_names=("along", "across"))
    np.testing.assert_allclose(levels_in_rows(figure), images[..., 0, 0, 0].reshape(3, 8))
    lefts = sorted({left for _, left, _, _, _ in boxes(figure)})
    steps = np.diff(lefts)
    assert steps[3] > steps[0]
    assert len(set(np.delete(steps, 3))) == 1
    where = {text.get_text(): text.get_position()[0] for text in figure.axes[0].texts}
    assert where["along"] == lefts[0]
    assert where["across"] == lefts[4]
    assert [t for t in texts(figure) if t.startswith("mode")] == ["mode 0", "mode 1", "mode 2"]


def test_walk_is_read_row_by_row():
    images = dark(4, 5, 8, 8, 1)
    figure = roll_walk(images)
    np.testing.assert_allclose(levels_in_rows(figure), images[..., 0, 0, 0])
    assert texts(figure) == ["0–25 %", "25–50 %", "50–75 %", "75–100 %"]
    assert texts(roll_walk(images, row_labels=list("abcd"))) == list("abcd")


def test_clusters_show_head_and_valid_members():
    heads_and_members = dark(3, 5, 8, 8, 1)
    heads, members = heads_and_members[:, 0], heads_and_members[:, 1:]
    valid = np.array([[True] * 4, [False] * 4, [True, True, False, False]])
    members[~valid] = np.nan
    figure = cluster_heads(
        heads,
        members,
        np.array([40, 0, 2], np.int32),
        np.array([7, -1, 3], np.int32),
        valid,
    )
    assert [len(row) for row in levels_in_rows(figure)] == [5, 1, 3]
    framed = [framed_level(figure, frame) for frame in frames(figure)]
    assert framed == pytest.approx(list(heads[:, 0, 0, 0]))
    assert texts(figure)[:3] == [
        "cluster 0, label 7, n = 40",
        "cluster 1, no label, n = 0",
        "cluster 2, label 3, n = 2",
    ]
    # Blank cells are not images with broken pixels.
    assert "not finite" not in note(figure)


def test_clusters_without_anything_known():
    images = dark(2, 4, 8, 8, 3)
    figure = cluster_heads(images[:, 0], images[:, 1:])
    assert len(boxes(figure)) == 8
    assert texts(figure)[:2] == ["cluster 0", "cluster 1"]
    assert len(boxes(cluster_heads(images[:, 0], images[:, :0]))) == 2
    with pytest.raises(ValueError, match="at least one cluster"):
        cluster_heads(images[:0, 0], images[:0, 1:])
