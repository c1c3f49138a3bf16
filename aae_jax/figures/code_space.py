"""Codes in the plane: by label, beside their prior, with cluster heads, around a circle."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.patheffects as patheffects
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from aae_jax.figures import style

_LEGEND_ROWS = 16
_PANEL_TITLE_WIDTH = 44  # characters, as wide as a panel


class CodePanel(NamedTuple):
    """One plane of `four_panels`: codes [n, 2], labels [n] (-1 unknown), prior samples or None."""

    title: str
    codes: Float[np.ndarray, "n 2"]
    labels: Int[np.ndarray, "n"]
    prior_samples: Float[np.ndarray, "m 2"] | None = None


class _Limits(NamedTuple):
    center: Float[np.ndarray, "2"]
    half: float


def code_scatter(
    codes: Float[np.ndarray, "n 2"],
    labels: Int[np.ndarray, "n"],
    prior_samples: Float[np.ndarray, "m 2"] | None = None,
    title: str = "Codes by label",
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Codes coloured by label over faint samples of the prior (Figures 2 a-d, 4 a, 4 c).

    Args:
        codes: two-dimensional codes; rows that are not finite are dropped and counted in the note.
        labels: class of each code, -1 where unknown (light grey).
        prior_samples: samples of the prior, drawn behind; they then set the limits of the axes, and
            codes outside are counted in the note.
        title: heading.
        class_names: names for the legend, one per class; numbers when left out.

    Raises:
        ValueError: on no codes, or on a label that `class_names` has no name for.
    """
    _check_codes(codes, labels, class_names)
    panel = CodePanel(title, codes, labels, prior_samples)
    limits, notes = _panel_limits(panel)
    handles = _legend_handles([panel], class_names)
    columns = _legend_columns(handles)
    figure = style.titled_figure(5.2 + _legend_width(handles, columns), 4.8, title, notes)
    axes = figure.add_subplot()
    _draw_panel(axes, panel, limits)
    _legend_beside(axes, handles, columns)
    return figure


def four_panels(
    panels: Sequence[CodePanel],
    title: str = "Codes of the test images",
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Several code planes in one picture, two to a row, with one legend (Figure 2 a-d).

    Args:
        panels: a title, codes, labels and prior samples (or None) each; see `code_scatter`.
        title: heading.
        class_names: names for the legend, one per class; numbers when left out.

    Raises:
        ValueError: on no panels, on a panel without codes, or on a label without a name.
    """
    if not panels:
        raise ValueError("four_panels needs at least one panel, got none")
    for panel in panels:
        _check_codes(panel.codes, panel.labels, class_names)
    handles = _legend_handles(panels, class_names)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    legend_columns = _legend_columns(handles, rows=_LEGEND_ROWS * rows)
    width = 4.2 * columns + _legend_width(handles, legend_columns)
    figure = style.titled_figure(width, 4.2 * rows, title)
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        limits, notes = _panel_limits(panel)
        _draw_panel(axes, panel, limits)
        heading = textwrap.fill(panel.title, _PANEL_TITLE_WIDTH)
        axes.set_title(heading, loc="left", fontsize=style.PANEL_SIZE, color=style.INK)
        axes.set_xlabel("\n".join(notes), fontsize=style.TEXT_SIZE, color=style.SOFT_INK)
        if place == columns:
            _legend_beside(axes, handles, legend_columns)
    return figure


def heads_scatter(
    codes: Float[np.ndarray, "n 2"],
    labels: Int[np.ndarray, "n"],
    heads: Float[np.ndarray, "heads 2"],
    head_labels: Int[np.ndarray, "heads"] | None = None,
    title: str = "Codes and cluster heads",
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Codes coloured by label with the numbered cluster heads among them (Figure 11 a-c).

    Args:
        codes: two-dimensional codes.
        labels: class of each code, -1 where unknown.
        heads: positions of the cluster heads, the rows of W_C.
        head_labels: class that each head stands for (-1 for none), which colours its disc; white
            discs when left out. The number on a disc is always the head's index.
        title: heading.
        class_names: names for the legend, one per class; numbers when left out.

    Raises:
        ValueError: on no codes, no heads, or a label without a name.
    """
    _check_codes(codes, labels, class_names)
    if len(heads) == 0:
        raise ValueError("heads_scatter needs at least one head, got none")
    panel = CodePanel(title, codes, labels)
    finite_heads = np.isfinite(heads).all(axis=1)
    limits = _square_limits(np.concatenate([_finite(codes), heads[finite_heads]]))
    lost = int((~finite_heads).sum())
    notes = [*_drop_notes(panel), f"{style.counted(lost, 'head')} not finite" if lost else ""]
    notes.append(
        "discs: cluster heads" if head_labels is None else "discs: heads in their label's colour"
    )
    handles = _legend_handles([panel], class_names)
    columns = _legend_columns(handles)
    figure = style.titled_figure(5.2 + _legend_width(handles, columns), 4.8, title, notes)
    axes = figure.add_subplot()
    _draw_panel(axes, panel, limits)
    for index in np.flatnonzero(finite_heads):
        fill = "#ffffff" if head_labels is None else style.label_color(int(head_labels[index]))
        axes.text(
            heads[index, 0],
            heads[index, 1],
            str(index),
            ha="center",
            va="center",
            fontsize=style.TEXT_SIZE - 0.5,
            color=style.INK,
            fontweight="bold",
            path_effects=[patheffects.withStroke(linewidth=2.5, foreground="#ffffff")],
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": fill, "edgecolor": style.INK},
            gid=f"head-{index}",
        )
    _legend_beside(axes, handles, columns)
    return figure


def circle_map(
    codes: Float[np.ndarray, "n 2"],
    labels: Int[np.ndarray, "n"],
    title: str = "Codes mapped onto a circle",
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Codes mapped linearly so that the classes lie around a circle (Figure 11 d).

    The dashed circle is centred at the origin; its radius is the mean distance of the classes'
    means from there. Each class is named at its mean.

    Args:
        codes: the mapped codes.
        labels: class of each code, -1 where unknown.
        title: heading.
        class_names: names for legend and map, one per class; numbers when left out.

    Raises:
        ValueError: on no codes, or a label without a name.
    """
    _check_codes(codes, labels, class_names)
    panel = CodePanel(title, codes, labels)
    keep = np.isfinite(codes).all(axis=1)
    known = [int(label) for label in np.unique(labels[keep]) if label >= 0]
    means = np.array([codes[keep & (labels == label)].mean(axis=0) for label in known])
    radius = float(np.linalg.norm(means, axis=1).mean()) if known else 0.0
    corners = np.array([[-radius, -radius], [radius, radius]])
    limits = _square_limits(np.concatenate([_finite(codes), corners]))
    handles = _legend_handles([panel], class_names)
    columns = _legend_columns(handles)
    notes = [*_drop_notes(panel), "dashed: mean distance of the classes' means from the origin"]
    figure = style.titled_figure(5.2 + _legend_width(handles, columns), 4.8, title, notes)
    axes = figure.add_subplot()
    _draw_panel(axes, panel, limits)
    axes.add_patch(
        Circle(
            (0.0, 0.0),
            radius,
            fill=False,
            linestyle=(0, (4, 4)),
            edgecolor=style.SOFT_INK,
            zorder=4,
        )
    )
    for label, mean in zip(known, means, strict=True):
        axes.text(
            mean[0],
            mean[1],
            style.label_text(label, class_names),
            ha="center",
            va="center",
            fontsize=style.TITLE_SIZE,
            fontweight="bold",
            color=style.INK,
            path_effects=[patheffects.withStroke(linewidth=3, foreground="#ffffff")],
            zorder=5,
        )
    _legend_beside(axes, handles, columns)
    return figure


def _check_codes(
    codes: Float[np.ndarray, "n 2"],
    labels: Int[np.ndarray, "m"],
    class_names: Sequence[str] | None,
) -> None:
    if len(codes) == 0:
        raise ValueError("a code plane needs at least one code, got none")
    if len(labels) != len(codes):
        raise ValueError(f"{len(codes)} codes but {len(labels)} labels")
    if class_names is not None and labels.max() >= len(class_names):
        raise ValueError(f"label {labels.max()} has no name: {len(class_names)} class names given")


def _finite(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "kept 2"]:
    return points[np.isfinite(points).all(axis=1)]


def _drop_notes(panel: CodePanel) -> list[str]:
    dropped = len(panel.codes) - len(_finite(panel.codes))
    notes = [f"{dropped:,} of {len(panel.codes):,} codes not finite, dropped" if dropped else ""]
    if panel.prior_samples is not None:
        lost = len(panel.prior_samples) - len(_finite(panel.prior_samples))
        notes.append(f"{style.counted(lost, 'prior sample')} not finite, dropped" if lost else "")
    return [note for note in notes if note]


def _panel_limits(panel: CodePanel) -> tuple[_Limits, list[str]]:
    """Limits from the prior when there is one, and what has to be said about the panel."""
    codes = _finite(panel.codes)
    notes = _drop_notes(panel)
    if panel.prior_samples is None:
        return _square_limits(codes), notes
    limits = _square_limits(_finite(panel.prior_samples))
    outside = int((np.abs(codes - limits.center) > limits.half).any(axis=1).sum())
    if outside:
        notes.append(f"{outside:,} of {len(panel.codes):,} codes outside the frame")
    return limits, notes


def _square_limits(points: Float[np.ndarray, "n 2"]) -> _Limits:
    """The square around the points with a margin of 5 %; a unit square around a single point."""
    if len(points) == 0:
        return _Limits(np.zeros(2), 1.0)
    low, high = points.min(axis=0).astype(np.float64), points.max(axis=0).astype(np.float64)
    half = float((high - low).max()) / 2
    return _Limits((low + high) / 2, 1.05 * half if half > 0 else 0.5)


def _draw_panel(axes: Axes, panel: CodePanel, limits: _Limits) -> None:
    style.plain_axes(axes)
    axes.set_aspect("equal", adjustable="box")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
    axes.set_xlim(limits.center[0] - limits.half, limits.center[0] + limits.half)
    axes.set_ylim(limits.center[1] - limits.half, limits.center[1] + limits.half)
    if panel.prior_samples is not None:
        prior = _finite(panel.prior_samples)
        axes.scatter(
            prior[:, 0],
            prior[:, 1],
            s=0.6 * _point_size(len(prior)),
            color=style.PRIOR,
            linewidths=0,
            rasterized=True,
            zorder=1,
            gid="prior",
        )
    keep = np.isfinite(panel.codes).all(axis=1)
    known = keep & (panel.labels >= 0)
    for drawn, zorder, gid in ((keep & ~known, 2.0, "unknown"), (known, 3.0, "codes")):
        _scatter(axes, panel, drawn, zorder, gid)
    if not keep.any():
        axes.text(
            0.5,
            0.5,
            "no finite codes",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=style.SOFT_INK,
            fontsize=style.TITLE_SIZE,
        )


def _scatter(
    axes: Axes, panel: CodePanel, drawn: Bool[np.ndarray, "n"], zorder: float, gid: str
) -> None:
    # A fixed shuffle, so that no class covers the ones before it.
    order = np.random.default_rng(0).permutation(np.flatnonzero(drawn))
    if len(order) == 0:
        return
    colors = {int(label): style.label_color(int(label)) for label in np.unique(panel.labels[order])}
    axes.scatter(
        panel.codes[order, 0],
        panel.codes[order, 1],
        s=_point_size(len(panel.codes)),
        c=[colors[int(label)] for label in panel.labels[order]],
        alpha=0.8,
        linewidths=0,
        rasterized=True,
        zorder=zorder,
        gid=gid,
    )


def _point_size(num_points: int) -> float:
    """Area of a point, in square points: small where there are many."""
    return float(np.clip(30_000 / max(num_points, 1), 4.0, 26.0))


def _legend_handles(panels: Sequence[CodePanel], class_names: Sequence[str] | None) -> list[Artist]:
    present = np.unique(np.concatenate([panel.labels for panel in panels]))
    handles: list[Artist] = [
        style.dot(style.label_color(int(label)), style.label_text(int(label), class_names))
        for label in present
        if label >= 0
    ]
    if (present < 0).any():
        handles.append(style.dot(style.UNKNOWN, "unknown"))
    if any(panel.prior_samples is not None for panel in panels):
        handles.append(style.dot(style.PRIOR, "prior"))
    return handles


def _legend_columns(handles: Sequence[Artist], rows: int = _LEGEND_ROWS) -> int:
    return -(-len(handles) // rows)


def _legend_width(handles: Sequence[Artist], columns: int) -> float:
    longest = max(style.text_width(str(handle.get_label())) for handle in handles)
    return columns * (0.42 + longest)


def _legend_beside(axes: Axes, handles: Sequence[Artist], columns: int) -> None:
    legend = axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=style.TEXT_SIZE,
        labelcolor=style.INK,
        handletextpad=0.2,
        columnspacing=0.8,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
