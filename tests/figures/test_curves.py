import math

import numpy as np
import pytest

from aae_jax.figures import parzen_curve, training_curves
from aae_jax.figures.curves import running_median

LN2 = math.log(2)


def curve(n=100, level=1.0, seed=0):
    return np.arange(n) * 10, level + 0.1 * np.random.default_rng(seed).normal(size=n)


def all_metrics():
    names = [
        "reconstruction",
        "style/discriminator",
        "style/generator",
        "style/prior_accuracy",
        "style/code_accuracy",
        "label/discriminator",
        "label/generator",
        "label/prior_accuracy",
        "label/code_accuracy",
        "classification",
        "valid/error",
        "valid/reconstruction",
    ]
    return {name: curve(seed=index) for index, name in enumerate(names)}


def panel_titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def panel(figure, title):
    return figure.axes[panel_titles(figure).index(title)]


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_gid(): np.asarray(line.get_xydata()) for line in axes.lines if line.get_gid()}


def equilibria(axes) -> list[float]:
    found = [line for line in axes.lines if line.get_gid() == "equilibrium"]
    assert all(line.get_linestyle() not in ("-", "solid") for line in found)
    return [float(line.get_ydata()[0]) for line in found]


def test_panels_follow_from_the_metrics():
    figure = training_curves(all_metrics())
    figure.canvas.draw()
    assert panel_titles(figure) == [
        "reconstruction",
        "style: adversarial losses",
        "style: discriminator's accuracy",
        "label: adversarial losses",
        "label: discriminator's accuracy",
        "classification",
        "valid/error",
    ]


def test_every_metric_is_drawn_once_and_whole():
    metrics = all_metrics()
    figure = training_curves(metrics)
    drawn = {}
    for axes in figure.axes:
        for name, points in lines(axes).items():
            if name in metrics:
                assert name not in drawn
                drawn[name] = points
    assert set(drawn) == set(metrics)
    for name, (steps, values) in metrics.items():
        np.testing.assert_allclose(drawn[name], np.stack([steps, values], axis=1))


def test_limits_contain_the_values():
    metrics = all_metrics()
    figure = training_curves(metrics)
    axes = panel(figure, "style: adversarial losses")
    low, high = axes.get_ylim()
    for name in ("style/discriminator", "style/generator"):
        assert low < metrics[name][1].min()
        assert high > metrics[name][1].max()


def test_equilibrium_lines_at_their_heights_with_their_names():
    levels = {"style/discriminator": 2 * LN2, "style/generator": LN2, "label/generator": 0.25}
    figure = training_curves(all_metrics(), levels)
    axes = panel(figure, "style: adversarial losses")
    assert equilibria(axes) == pytest.approx([1.386294361, 0.693147181])
    assert [text.get_text() for text in axes.texts] == ["2 ln 2", "ln 2"]
    assert [text.xy[1] for text in axes.texts] == pytest.approx([2 * LN2, LN2])
    other = panel(figure, "label: adversarial losses")
    assert equilibria(other) == [0.25]
    assert other.texts[0].get_text() == "0.25"
    assert other.get_ylim()[0] < 0.25
    assert equilibria(panel(figure, "classification")) == []


def test_accuracies_show_chance():
    axes = panel(training_curves(all_metrics()), "style: discriminator's accuracy")
    assert equilibria(axes) == [0.5]
    assert axes.get_ylim()[0] < 0.5
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["prior accuracy", "code accuracy"]


def test_validation_shares_the_panel_of_its_training_metric():
    axes = panel(training_curves(all_metrics()), "reconstruction")
    assert {"reconstruction", "valid/reconstruction"} <= set(lines(axes))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "valid"]
    colors = {line.get_gid(): line.get_color() for line in axes.lines}
    assert colors["reconstruction"] != colors["valid/reconstruction"]
    assert colors["reconstruction"] == colors["reconstruction smoothed"]


def test_short_curves_are_not_smoothed():
    figure = training_curves({"reconstruction": curve(12)})
    assert list(lines(figure.axes[0])) == ["reconstruction"]
    assert all("light" not in text.get_text() for text in figure.texts)


def test_smoothing_follows_the_level_and_not_a_spike():
    steps, values = curve(200, level=3.0)
    values[77] = 1e4
    axes = training_curves({"reconstruction": (steps, values)}).axes[0]
    smooth = lines(axes)["reconstruction smoothed"]
    np.testing.assert_allclose(smooth[:, 0], steps)
    np.testing.assert_allclose(smooth[:, 1], 3.0, atol=0.4)
    assert axes.get_ylim()[1] < 10


@pytest.mark.parametrize("window", [1, 3, 7, 25])
def test_running_median_against_a_loop(window):
    values = np.random.default_rng(0).normal(size=20)
    values[[4, 5, 19]] = np.nan
    half = window // 2
    expected = [
        np.nan
        if np.isnan(values[i])
        else np.median([v for v in values[max(0, i - half) : i + half + 1] if not np.isnan(v)])
        for i in range(20)
    ]
    np.testing.assert_allclose(running_median(values, window), expected)


def test_values_that_are_not_finite_leave_a_gap_and_are_counted():
    steps, values = curve(100)
    values[10:13] = [np.nan, np.inf, -np.inf]
    figure = training_curves({"reconstruction": (steps, values)})
    figure.canvas.draw()
    assert panel_titles(figure) == ["reconstruction (3 values not finite)"]
    drawn = lines(figure.axes[0])
    for points in drawn.values():
        assert np.isnan(points[10:13, 1]).all()
        assert np.isfinite(np.delete(points[:, 1], [10, 11, 12])).all()
    assert np.isfinite(figure.axes[0].get_ylim()).all()


def test_nothing_finite_at_all():
    figure = training_curves({"reconstruction": (np.arange(3), np.full(3, np.nan))})
    figure.canvas.draw()
    assert [text.get_text() for text in figure.axes[0].texts] == ["no finite values"]


def test_one_step():
    axes = training_curves({"reconstruction": (np.array([50]), np.array([2.0]))}).axes[0]
    assert axes.get_xlim() == (49.0, 51.0)
    assert axes.get_ylim()[0] < 2.0 < axes.get_ylim()[1]


def test_groups_replace_the_panels():
    figure = training_curves(
        all_metrics(), groups={"costs": ["reconstruction", "classification"], "v": ["valid/error"]}
    )
    assert panel_titles(figure) == ["costs", "v"]
    assert {"reconstruction", "classification"} <= set(lines(figure.axes[0]))


def test_unheard_of_metrics_get_panels_of_their_own():
    figure = training_curves({"penalty": curve(5), "valid/penalty": curve(5), "a/b/c": curve(5)})
    assert panel_titles(figure) == ["penalty", "a/b/c"]


def test_curves_say_what_is_wrong():
    with pytest.raises(ValueError, match="at least one metric"):
        training_curves({})
    with pytest.raises(ValueError, match="0 steps"):
        training_curves({"reconstruction": (np.zeros(0), np.zeros(0))})
    with pytest.raises(ValueError, match=r"'x' names no metric: \['nope'\]"):
        training_curves(all_metrics(), groups={"x": ["nope"]})


def test_parzen_points_are_sorted_and_inside():
    counts = np.array([10_000, 100, 1_000])
    figure = parzen_curve(
        counts, np.array([338.0, 120.0, 260.0]), {"paper": (10_000_000, 427.0)}, np.ones(3)
    )
    figure.canvas.draw()
    axes = figure.axes[0]
    ours = next(np.asarray(line.get_xydata()) for line in axes.lines if len(line.get_xdata()) == 3)
    np.testing.assert_allclose(ours, [[100, 120], [1000, 260], [10_000, 338]])
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[1] > 1e7
    assert axes.get_ylim()[1] > 427
    (point,) = [text for text in axes.texts if "paper" in text.get_text()]
    assert point.get_text() == "paper: 427"
    assert point.xy == (10_000_000, 427.0)


def test_parzen_says_what_is_wrong():
    with pytest.raises(ValueError, match="at least one point"):
        parzen_curve(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="must be positive, got 0"):
        parzen_curve(np.array([0, 10]), np.array([1.0, 2.0]))
