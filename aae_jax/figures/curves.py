"""Curves over training steps and over the number of samples of the Parzen estimate."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.lib.stride_tricks import sliding_window_view

from aae_jax.figures import style

# Steps and values of one metric, in the order of the steps.
Curve = tuple[Real[np.ndarray, "steps"], Real[np.ndarray, "steps"]]

_SMOOTHED_FROM = 40
_WIDEST_WINDOW = 101
_ADVERSARIAL = ("discriminator", "generator")
_ACCURACIES = ("prior_accuracy", "code_accuracy")
_CHANCE = 0.5


class _Panel(NamedTuple):
    title: str
    names: tuple[str, ...]


def training_curves(
    metrics: Mapping[str, Curve],
    equilibria: Mapping[str, float] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    title: str = "Training curves",
) -> Figure:
    """Losses, discriminator accuracies and validation scores over the steps.

    Raw values are drawn light, a running median over them full. Panels are found from the metrics'
    names: `NAME` and `valid/NAME` share one, `PART/discriminator` and `PART/generator` share one,
    so do `PART/prior_accuracy` and `PART/code_accuracy`; every other metric has its own.

    Args:
        metrics: steps [n] and values [n] under the metric's name; losses in nats, accuracies as
            fractions. Values that are not finite leave a gap and are counted in the panel's title.
        equilibria: value of a metric where codes and prior cannot be told apart, drawn dashed and
            labelled: 2 ln 2 for the discriminator's and ln 2 for the generator's GAN loss
            (Goodfellow et al. 2014).
        groups: panel titles with the metrics in each, in place of the panels found from the names.
        title: heading.

    Raises:
        ValueError: on no metrics, on steps and values of unequal length, or on a group that names
            no metric.
    """
    if not metrics:
        raise ValueError("training_curves needs at least one metric, got none")
    for name, (steps, values) in metrics.items():
        if len(steps) != len(values) or len(steps) == 0:
            raise ValueError(f"metric {name!r} has {len(steps)} steps and {len(values)} values")
    panels = _panels(metrics) if groups is None else _given_panels(metrics, groups)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    smoothed = any(len(values) >= _SMOOTHED_FROM for _, values in metrics.values())
    note = "light: as measured; full: running median" if smoothed else ""
    figure = style.titled_figure(max(4.1 * columns, 5.5), 2.7 * rows, title, [note])
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        _draw_panel(axes, panel, metrics, equilibria or {})
    return figure


def parzen_curve(
    num_samples: Real[np.ndarray, "k"],
    log_likelihood: Real[np.ndarray, "k"],
    paper_points: Mapping[str, tuple[float | int, float | int]] | None = None,
    standard_errors: Real[np.ndarray, "k"] | None = None,
    title: str = "Parzen-window log-likelihood of the test images",
) -> Figure:
    """The Parzen estimate against the number of samples it rests on (Table 1).

    Args:
        num_samples: numbers of decoded samples, positive.
        log_likelihood: estimates, nats.
        paper_points: published (number of samples, nats) under the name to print beside each.
        standard_errors: of the estimates, nats, drawn as error bars.
        title: heading.

    Raises:
        ValueError: on no points, or on a number of samples that is not positive.
    """
    if len(num_samples) == 0:
        raise ValueError("parzen_curve needs at least one point, got none")
    if num_samples.min() <= 0:
        raise ValueError(f"numbers of samples must be positive, got {num_samples.min()}")
    order = np.argsort(num_samples)
    figure = style.titled_figure(6.4, 3.8, title)
    axes = figure.add_subplot()
    style.plain_axes(axes)
    axes.set_xscale("log")
    axes.errorbar(
        num_samples[order],
        log_likelihood[order],
        yerr=None if standard_errors is None else standard_errors[order],
        color=style.CODES,
        marker="o",
        markersize=5,
        capsize=3,
        label="this run",
    )
    for name, (count, value) in (paper_points or {}).items():
        axes.plot(
            [count],
            [value],
            linestyle="",
            marker="D",
            markersize=8,
            markerfacecolor="none",
            color=style.FRAME,
            zorder=5,
        )
        axes.annotate(
            f"{name}: {value:g}",
            (count, value),
            xytext=(-9, 5),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=style.TEXT_SIZE,
            color=style.FRAME,
        )
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel("number of samples", fontsize=style.TEXT_SIZE, color=style.SOFT_INK)
    axes.set_ylabel("log-likelihood (nats)", fontsize=style.TEXT_SIZE, color=style.SOFT_INK)
    axes.legend(frameon=False, fontsize=style.TEXT_SIZE, labelcolor=style.INK, loc="lower right")
    return figure


def running_median(values: Float[np.ndarray, "n"], window: int) -> Float[np.ndarray, "n"]:
    """Centred median over an odd number of values, over fewer at the ends; NaN where they are."""
    half = window // 2
    padded = np.pad(values, half, constant_values=np.nan)
    windows = sliding_window_view(padded, 2 * half + 1)
    known = np.isfinite(values)
    smooth = np.full(len(values), np.nan)
    # A window around a known value is never empty, so that nanmedian has nothing to warn of.
    smooth[known] = np.nanmedian(windows[known], axis=1)
    return smooth


def _panels(metrics: Mapping[str, Curve]) -> list[_Panel]:
    """Group the metrics by their names, training before validation, in a fixed order."""
    left = list(metrics)
    panels: list[_Panel] = []

    def take(title: str, *wanted: str) -> None:
        names = tuple(name for name in wanted if name in left)
        if names:
            panels.append(_Panel(title, names))
            for name in names:
                left.remove(name)

    take("reconstruction", "reconstruction", "valid/reconstruction")
    parts = dict.fromkeys(name.rpartition("/")[0] for name in metrics)
    for part in [part for part in parts if part != "valid"]:
        prefix, heading = (f"{part}/", f"{part}: ") if part else ("", "")
        take(f"{heading}adversarial losses", *(prefix + name for name in _ADVERSARIAL))
        take(f"{heading}discriminator's accuracy", *(prefix + name for name in _ACCURACIES))
    for name in [name for name in left if not name.startswith("valid/")]:
        take(name, name, f"valid/{name}")
    for name in list(left):
        take(name, name)
    return panels


def _given_panels(
    metrics: Mapping[str, Curve], groups: Mapping[str, Sequence[str]]
) -> list[_Panel]:
    for title, names in groups.items():
        missing = [name for name in names if name not in metrics]
        if missing or not names:
            raise ValueError(f"group {title!r} names no metric: {missing}")
    if not groups:
        raise ValueError("groups needs at least one panel, got none")
    return [_Panel(title, tuple(names)) for title, names in groups.items()]


def _draw_panel(
    axes: Axes, panel: _Panel, metrics: Mapping[str, Curve], equilibria: Mapping[str, float]
) -> None:
    lost = sum(int((~np.isfinite(metrics[name][1])).sum()) for name in panel.names)
    title = panel.title + (f" ({lost:,} values not finite)" if lost else "")
    style.plain_axes(axes, title)
    lines: dict[float, str] = {}
    for index, name in enumerate(panel.names):
        color = style.label_color(index)
        label = _legend_text(name, panel) if len(panel.names) > 1 else None
        _draw_curve(axes, name, metrics[name], color, label)
        if name in equilibria:
            lines[equilibria[name]] = color
    if any(name.rpartition("/")[2] in _ACCURACIES for name in panel.names):
        lines.setdefault(_CHANCE, style.SOFT_INK)
    for value, color in lines.items():
        _draw_equilibrium(axes, value, color)
    _set_limits(axes, [metrics[name][1] for name in panel.names], list(lines))
    steps = np.concatenate([metrics[name][0] for name in panel.names])
    if steps.min() == steps.max():
        axes.set_xlim(float(steps.min()) - 1.0, float(steps.max()) + 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: _short(step)))
    axes.set_xlabel("step", fontsize=style.TEXT_SIZE, color=style.SOFT_INK)
    if len(panel.names) > 1:
        axes.legend(
            frameon=False,
            fontsize=style.TEXT_SIZE,
            labelcolor=style.INK,
            loc="best",
            handlelength=1.4,
        )


def _draw_curve(axes: Axes, name: str, curve: Curve, color: str, label: str | None) -> None:
    steps, values = curve[0], curve[1].astype(np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    if len(values) < _SMOOTHED_FROM:
        axes.plot(steps, values, color=color, marker="o", markersize=3, label=label, gid=name)
        return
    axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8, gid=name)
    smooth = running_median(values, min(max(3, len(values) // 40), _WIDEST_WINDOW))
    axes.plot(steps, smooth, color=color, linewidth=1.7, label=label, gid=f"{name} smoothed")


def _legend_text(name: str, panel: _Panel) -> str:
    if set(panel.names) == {name, f"valid/{name}"}:
        return "train"
    if set(panel.names) == {name, name.removeprefix("valid/")}:
        return "valid"
    shared = len({other.rpartition("/")[2] for other in panel.names}) < len(panel.names)
    return (name if shared else name.rpartition("/")[2]).replace("_", " ")


def _draw_equilibrium(axes: Axes, value: float, color: str) -> None:
    axes.axhline(value, color=color, linestyle=(0, (3, 2)), linewidth=1.1, gid="equilibrium")
    axes.annotate(
        _equilibrium_text(value),
        (1.0, value),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        ha="left",
        va="center",
        fontsize=style.TEXT_SIZE,
        color=color,
    )


def _equilibrium_text(value: float) -> str:
    for factor, text in ((1, "ln 2"), (2, "2 ln 2")):
        if math.isclose(value, factor * math.log(2), rel_tol=1e-4):
            return text
    return f"{value:.3g}"


def _set_limits(axes: Axes, curves: Sequence[np.ndarray], lines: Sequence[float]) -> None:
    """Limits around the data and the lines; rare spikes may leave the frame at the top."""
    values = np.concatenate([np.ravel(curve) for curve in curves]).astype(np.float64)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center")
        return
    low, high = float(values.min()), float(values.max())
    usual = float(np.quantile(values, 0.99))
    if len(values) >= _SMOOTHED_FROM and high - low > 3 * (usual - low) > 0:
        high = usual + 0.5 * (usual - low)
    low, high = min([low, *lines]), max([high, *lines])
    margin = 0.07 * (high - low) if high > low else max(0.1, 0.1 * abs(high))
    axes.set_ylim(low - margin, high + margin)


def _short(step: float) -> str:
    if abs(step) >= 1_000_000:
        return f"{step / 1_000_000:g}M"
    return f"{step / 1_000:g}k" if abs(step) >= 1_000 else f"{step:g}"
