import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.text import Text

from aae_jax.figures import CodePanel, circle_map, code_scatter, four_panels, heads_scatter, style


def digits_like(n=200, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, n).astype(np.int32)
    angle = 2 * np.pi * labels / 10
    codes = 10 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.normal(size=(n, 2))
    return codes, labels


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))


def points(axes, gid) -> np.ndarray:
    found = [collection for collection in axes.collections if collection.get_gid() == gid]
    return np.concatenate([np.asarray(c.get_offsets()) for c in found] or [np.zeros((0, 2))])


def legend_texts(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def same_points(left, right) -> bool:
    return np.allclose(left[np.lexsort(left.T)], right[np.lexsort(right.T)])


def test_scatter_draws_every_code_in_its_labels_color():
    codes, labels = digits_like()
    (axes,) = code_scatter(codes, labels).axes
    (drawn,) = [c for c in axes.collections if c.get_gid() == "codes"]
    offsets, colors = np.asarray(drawn.get_offsets()), drawn.get_facecolors()
    assert same_points(offsets, codes)
    for offset, color in zip(offsets, colors, strict=True):
        label = labels[np.abs(codes - offset).sum(axis=1).argmin()]
        np.testing.assert_allclose(color[:3], to_rgb(style.label_color(int(label))), atol=1e-6)
    # A single colour per class, and as many colours as classes.
    assert len(np.unique(colors.round(4), axis=0)) == len(np.unique(labels))


def test_scatter_is_square_and_contains_the_codes():
    codes, labels = digits_like()
    codes = codes * [1.0, 0.1]
    (axes,) = code_scatter(codes, labels).axes
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    assert axes.get_aspect() == 1.0
    assert np.isclose(x1 - x0, y1 - y0)
    assert ((codes > [x0, y0]) & (codes < [x1, y1])).all()


def test_prior_sets_the_limits_and_codes_outside_are_counted():
    codes, labels = digits_like()
    prior = np.random.default_rng(1).uniform(-3, 3, size=(500, 2))
    figure = code_scatter(codes, labels, prior)
    (axes,) = figure.axes
    assert same_points(points(axes, "prior"), prior)
    assert 3.0 < axes.get_xlim()[1] < 3.5
    assert -3.5 < axes.get_ylim()[0] < -3.0
    outside = int((np.abs(codes) > 3.2).any(axis=1).sum())
    assert f"{outside} of 200 codes outside the frame" in texts(figure)
    assert legend_texts(axes)[-1] == "prior"
    behind, front = axes.collections[0], axes.collections[-1]
    assert behind.get_gid() == "prior"
    assert behind.get_zorder() < front.get_zorder()


def test_codes_inside_the_prior_need_no_remark():
    codes, labels = digits_like()
    prior = np.random.default_rng(1).uniform(-30, 30, size=(500, 2))
    figure = code_scatter(codes, labels, prior)
    assert "outside" not in texts(figure)
    assert "dropped" not in texts(figure)


def test_codes_that_are_not_finite_are_dropped_and_counted():
    codes, labels = digits_like()
    codes[3, 0], codes[7, 1], codes[9] = np.nan, np.inf, -np.inf
    figure = code_scatter(codes, labels)
    (axes,) = figure.axes
    assert len(points(axes, "codes")) == 197
    assert "3 of 200 codes not finite, dropped" in texts(figure)


def test_a_diverged_run_still_gets_its_figure():
    figure = code_scatter(np.full((4, 2), np.nan), np.zeros(4, np.int32), np.ones((5, 2)))
    figure.canvas.draw()
    assert "no finite codes" in texts(figure)
    assert "4 of 4 codes not finite" in texts(figure)


def test_unknown_labels_are_light_grey_behind_the_known_ones():
    codes, labels = digits_like()
    labels[:120] = -1
    (axes,) = code_scatter(codes, labels).axes
    assert same_points(points(axes, "unknown"), codes[:120])
    assert same_points(points(axes, "codes"), codes[120:])
    unknown = next(c for c in axes.collections if c.get_gid() == "unknown")
    known = next(c for c in axes.collections if c.get_gid() == "codes")
    np.testing.assert_allclose(unknown.get_facecolors()[0, :3], to_rgb(style.UNKNOWN), atol=1e-6)
    assert unknown.get_zorder() < known.get_zorder()
    assert legend_texts(axes)[-1] == "unknown"


def test_legend_names_the_classes_that_are_there():
    codes, _ = digits_like(6)
    labels = np.array([2, 0, 0, 2, 2, 0], np.int32)
    (axes,) = code_scatter(codes, labels).axes
    assert legend_texts(axes) == ["0", "2"]
    (axes,) = code_scatter(codes, labels, class_names=["cat", "dog", "$eel$"]).axes
    assert legend_texts(axes) == ["cat", "$eel$"]


@pytest.mark.parametrize("num_labels", [1, 17, 30, 45])
def test_any_number_of_classes(num_labels):
    labels = np.arange(num_labels, dtype=np.int32)
    codes = np.random.default_rng(0).normal(size=(num_labels, 2)).astype(np.float32)
    figure = code_scatter(codes, labels)
    figure.canvas.draw()
    (axes,) = figure.axes
    assert len(legend_texts(axes)) == num_labels
    box = axes.get_legend().get_window_extent()
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0


def test_one_code_gets_a_frame_around_it():
    (axes,) = code_scatter(np.array([[3.0, -4.0]]), np.zeros(1, np.int32)).axes
    assert axes.get_xlim() == (2.5, 3.5)
    assert axes.get_ylim() == (-4.5, -3.5)


def test_scatter_says_what_is_wrong():
    codes, labels = digits_like()
    with pytest.raises(ValueError, match="at least one code, got none"):
        code_scatter(codes[:0], labels[:0])
    with pytest.raises(ValueError, match="label 9 has no name: 3 class names"):
        code_scatter(codes, labels, class_names=["a", "b", "c"])


def test_four_panels_share_one_legend():
    codes, labels = digits_like()
    prior = np.random.default_rng(1).normal(size=(50, 2)) * 20
    broken = codes.copy()
    broken[0] = np.nan
    panels = [
        CodePanel("a", codes, labels, prior),
        CodePanel("b", codes[:30], np.full(30, 11, np.int32)),
        CodePanel("c", broken, labels, prior),
        CodePanel("d", codes[:5], np.full(5, -1, np.int32)),
    ]
    figure = four_panels(panels, "All")
    figure.canvas.draw()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b", "c", "d"]
    assert [len(points(axes, "codes")) for axes in figure.axes] == [200, 30, 199, 0]
    assert [len(points(axes, "prior")) for axes in figure.axes] == [50, 0, 50, 0]
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend() is not None]
    assert len(legends) == 1
    names = [text.get_text() for text in legends[0].get_texts()]
    assert names == [*map(str, range(10)), "11", "unknown", "prior"]
    assert "1 of 200 codes not finite" in figure.axes[2].get_xlabel()
    assert figure.axes[0].get_xlabel() == ""
    tops = [axes.get_window_extent().y1 for axes in figure.axes]
    assert np.isclose(tops[0], tops[1])
    assert tops[0] > tops[2]


@pytest.mark.parametrize("count", [1, 3])
def test_other_numbers_of_panels(count):
    codes, labels = digits_like(20)
    figure = four_panels([CodePanel(str(i), codes, labels) for i in range(count)])
    figure.canvas.draw()
    assert len(figure.axes) == count
    assert sum(axes.get_legend() is not None for axes in figure.axes) == 1


def test_a_long_title_stays_over_its_own_panel():
    codes, labels = np.zeros((3, 2), np.float32), np.arange(3)
    title = "Variational autoencoder on MNIST, Gaussian prior of standard deviation 5 (Fig 2 c)"
    figure = four_panels([CodePanel(title, codes, labels)] * 2)
    figure.canvas.draw()
    left, right = figure.axes[:2]
    (heading,) = [text for text in left.findobj(Text) if text.get_text().startswith("Variational")]
    assert heading.get_window_extent().x1 < right.get_window_extent().x0
    assert heading.get_text().replace("\n", " ") == title


def test_four_panels_needs_panels():
    with pytest.raises(ValueError, match="at least one panel"):
        four_panels([])


def test_heads_are_numbered_where_they_are():
    codes, labels = digits_like()
    heads = np.array([[0.0, 0.0], [40.0, 1.0], [-2.0, 5.0]])
    (axes,) = heads_scatter(codes, labels, heads).axes
    discs = {t.get_text(): t for t in axes.texts if (t.get_gid() or "").startswith("head-")}
    assert sorted(discs) == ["0", "1", "2"]
    for index, head in enumerate(heads):
        assert discs[str(index)].get_position() == tuple(head)
    # Limits contain heads far from every code.
    assert axes.get_xlim()[1] > 40
    assert len(points(axes, "codes")) == 200


def test_head_labels_colour_the_discs():
    codes, labels = digits_like()
    heads = np.array([[0.0, 0.0], [4.0, 1.0]])
    (axes,) = heads_scatter(codes, labels, heads, np.array([7, -1], np.int32)).axes
    fills = [text.get_bbox_patch().get_facecolor()[:3] for text in axes.texts]
    np.testing.assert_allclose(fills[0], to_rgb(style.label_color(7)), atol=1e-6)
    np.testing.assert_allclose(fills[1], to_rgb(style.UNKNOWN), atol=1e-6)


def test_a_lost_head_is_counted():
    codes, labels = digits_like()
    figure = heads_scatter(codes, labels, np.array([[0.0, np.nan], [1.0, 1.0]]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["1"]
    assert "1 head not finite" in texts(figure)
    with pytest.raises(ValueError, match="at least one head"):
        heads_scatter(codes, labels, np.zeros((0, 2)))


def test_circle_goes_through_the_classes_means():
    angles = 2 * np.pi * np.arange(5) / 5
    corners = 7.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    offsets = np.array([[0.5, 0.0], [-0.5, 0.0]])
    codes = (corners[:, None] + offsets).reshape(-1, 2)
    labels = np.repeat(np.arange(5), 2).astype(np.int32)
    (axes,) = circle_map(codes, labels, class_names=list("abcde")).axes
    (circle,) = [patch for patch in axes.patches if isinstance(patch, Circle)]
    assert circle.center == (0.0, 0.0)
    assert np.isclose(circle.radius, 7.0)
    named = {text.get_text(): text.get_position() for text in axes.texts}
    assert sorted(named) == list("abcde")
    np.testing.assert_allclose(named["c"], corners[2], atol=1e-9)
    assert same_points(points(axes, "codes"), codes)


def test_circle_map_without_known_labels():
    codes, _ = digits_like(20)
    figure = circle_map(codes, np.full(20, -1, np.int32))
    figure.canvas.draw()
    assert len(points(figure.axes[0], "unknown")) == 20
