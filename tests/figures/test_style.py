import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from aae_jax.figures import code_scatter, style


def lab(color: str) -> np.ndarray:
    """CIELAB coordinates (D65) of an sRGB colour."""
    srgb = np.array(to_rgb(color))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(("num_labels", "apart"), [(10, 30.0), (20, 14.0), (30, 14.0)])
def test_label_colors_are_far_apart(num_labels, apart):
    points = np.array([lab(color) for color in style.label_colors(num_labels)])
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert distances[~np.eye(num_labels, dtype=bool)].min() > apart


def test_no_label_looks_like_the_prior_or_the_unknown():
    for grey in (style.PRIOR, style.UNKNOWN):
        for color in style.label_colors(10):
            assert np.linalg.norm(lab(color) - lab(grey)) > 25
    assert style.label_color(-1) == style.UNKNOWN
    red, green, blue = to_rgb(style.UNKNOWN)
    assert min(red, green, blue) > 0.6
    assert max(red, green, blue) - min(red, green, blue) < 0.1


def test_many_labels_still_have_colors_of_their_own():
    assert len(set(style.label_colors(60))) == 60
    assert style.label_colors(60)[:10] == style.label_colors(10)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.text("abcdefghij", min_size=1, max_size=12), min_size=1, max_size=30))
def test_headings_fit_into_the_figure_and_keep_every_word(words):
    figure = style.titled_figure(4.0, 1.0, " ".join(words), ["a note"])
    figure.canvas.draw()
    heading = figure.texts[0]
    assert heading.get_text().split() == words
    box, note = heading.get_window_extent(), figure.texts[1].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
    assert note.y1 <= box.y0 + 2
    assert note.y0 >= 1.0 * figure.dpi


def test_dollar_signs_are_no_mathematics():
    figure = style.titled_figure(4.0, 1.0, "from $1 to $\\frac", ["$a and $\\b"])
    figure.canvas.draw()


def test_drawing_leaves_global_settings_alone():
    before = dict(matplotlib.rcParams)
    figure = code_scatter(np.zeros((3, 2)), np.arange(3, dtype=np.int32))
    figure.canvas.draw()
    assert dict(matplotlib.rcParams) == before


def test_counted_has_a_plural():
    assert style.counted(1, "code") == "1 code"
    assert style.counted(1200, "code") == "1,200 codes"
