"""Grids of images: samples, reconstructions, walks through the code space, cluster members.

Every grid is composed into one picture whose pixels are whole multiples of the images' pixels, so
that small images stay sharp.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from aae_jax.figures import style

_GAP = 3
_FRAMED_GAP = 8
_GROUP_GAP = 16
_CAPTION = 18
_CELL = 72
_WIDEST = 1000
_TALLEST = 1400
_PER_ROW = 10


class _Layout(NamedTuple):
    """Where the cells of a drawn grid are, in pixels of the composed picture.

    `unit` is the number of those pixels to a pixel of the screen: 1 unless the images are shrunk.
    """

    figure: Figure
    axes: Axes
    tops: Int[np.ndarray, "rows"]
    lefts: Int[np.ndarray, "cols"]
    height: int
    width: int
    unit: float


class _Groups(NamedTuple):
    """Names and sizes of blocks of neighbouring rows or columns, with a wider gap between."""

    names: Sequence[str]
    sizes: Sequence[int]


def image_grid(
    images: Float[np.ndarray, "rows cols h w c"],
    title: str,
    row_labels: Sequence[str] | None = None,
    col_labels: Sequence[str] | None = None,
) -> Figure:
    """Images in rows and columns (Figures 2 e, 6, 7).

    Args:
        images: grey (c = 1) or colour (c = 3), clipped to [0, 1]; pixels that are not finite are
            drawn in magenta and the images that have them counted in the note.
        title: heading.
        row_labels: written left of the rows.
        col_labels: written above the columns.

    Raises:
        ValueError: on no images, on another number of channels, or on a wrong number of labels.
    """
    return _grid(images, title, row_labels=row_labels, col_labels=col_labels).figure


def reconstructions(
    originals: Float[np.ndarray, "n h w c"],
    reconstructed: Float[np.ndarray, "n h w c"],
    title: str = "Reconstructions",
) -> Figure:
    """Originals above their reconstructions, ten to a row.

    Under each pair: half the squared error summed over the pixels, the paper's cost (appendix
    A.2.1), of the values as given, before any clipping.

    Args:
        originals: images in [0, 1].
        reconstructed: what the decoder made of their codes.
        title: heading.

    Raises:
        ValueError: on no images, or on unequal shapes.
    """
    _check_pairs(originals, reconstructed, "originals", "reconstructed")
    difference = originals.astype(np.float64) - reconstructed.astype(np.float64)
    errors = 0.5 * (difference**2).sum(axis=(1, 2, 3))
    return _pairs(
        originals,
        reconstructed,
        title,
        ("original", "reconstructed"),
        [_caption(error) for error in errors],
        "number: half the squared error, summed over the pixels",
    ).figure


def samples_with_nearest(
    samples: Float[np.ndarray, "n h w c"],
    nearest: Float[np.ndarray, "n h w c"],
    distances: Float[np.ndarray, "n"] | None = None,
    title: str = "Samples with their nearest training images",
) -> Figure:
    """Samples above the training image closest to each, framed in colour (Figure 5).

    Args:
        samples: decoded samples of the prior.
        nearest: for each sample the training image closest to it.
        distances: of each pair, in the caller's unit, written under it.
        title: heading.

    Raises:
        ValueError: on no images, or on unequal shapes.
    """
    _check_pairs(samples, nearest, "samples", "nearest")
    captions = None if distances is None else [_caption(float(each)) for each in distances]
    note = "framed: nearest training image"
    if captions:
        note += "; number: distance"
    layout = _pairs(samples, nearest, title, ("sample", "nearest"), captions, note, _FRAMED_GAP)
    for index in range(len(samples)):
        band, column = divmod(index, _PER_ROW)
        _frame(layout, 2 * band + 1, column)
    return layout.figure


def mode_axes(
    images: Float[np.ndarray, "modes 2 steps h w c"],
    title: str = "Images along the axes of each mode",
    axis_names: tuple[str, str] = ("along the first axis", "along the second axis"),
    row_labels: Sequence[str] | None = None,
) -> Figure:
    """Images decoded along both axes of every mode of the prior (Figure 4 b).

    Args:
        images: for every mode, the walk along its first and its second axis.
        title: heading.
        axis_names: written above the two blocks of columns.
        row_labels: one per mode; their numbers when left out.

    Raises:
        ValueError: on no images, or on a wrong number of labels.
    """
    modes, _, steps, height, width, channels = images.shape
    rows = images.reshape(modes, 2 * steps, height, width, channels)
    labels = [f"mode {mode}" for mode in range(modes)] if row_labels is None else row_labels
    groups = _Groups(axis_names, (steps, steps))
    return _grid(rows, title, row_labels=labels, col_groups=groups).figure


def roll_walk(
    images: Float[np.ndarray, "rows steps h w c"],
    title: str = "A walk along the swiss roll",
    row_labels: Sequence[str] | None = None,
) -> Figure:
    """Images decoded at even steps along the roll, read row by row (Figure 4 d).

    Args:
        images: the walk from the roll's inner end outwards, cut into rows of equal length.
        title: heading.
        row_labels: one per row; its share of the roll when left out, such as "10-20 %".

    Raises:
        ValueError: on no images, or on a wrong number of labels.
    """
    if row_labels is None:
        ends = np.linspace(0, 100, len(images) + 1)
        row_labels = [f"{a:.0f}–{b:.0f} %" for a, b in pairwise(ends)]
    notes = ["read row by row, from the inner end outwards"]
    return _grid(images, title, notes, row_labels=row_labels).figure


def cluster_heads(
    head_images: Float[np.ndarray, "clusters h w c"],
    members: Float[np.ndarray, "clusters shown h w c"],
    member_counts: Int[np.ndarray, "clusters"] | None = None,
    cluster_labels: Int[np.ndarray, "clusters"] | None = None,
    valid: Bool[np.ndarray, "clusters shown"] | None = None,
    title: str = "Cluster heads and the images assigned to them",
) -> Figure:
    """Each cluster's head, framed, followed by images assigned to the cluster (Figure 9).

    Args:
        head_images: decoded from each category with the style at zero.
        members: images assigned to each cluster.
        member_counts: number of images assigned to each cluster in all.
        cluster_labels: class given to each cluster, -1 for none.
        valid: which of `members` are images; the others stay blank.
        title: heading.

    Raises:
        ValueError: on no clusters.
    """
    if len(head_images) == 0:
        raise ValueError("cluster_heads needs at least one cluster, got none")
    clusters, shown = members.shape[:2]
    filled = np.ones((clusters, shown), dtype=bool) if valid is None else valid
    row_labels = []
    for cluster in range(clusters):
        parts = [f"cluster {cluster}"]
        if cluster_labels is not None:
            label = int(cluster_labels[cluster])
            parts.append(f"label {label}" if label >= 0 else "no label")
        if member_counts is not None:
            parts.append(f"n = {int(member_counts[cluster]):,}")
        row_labels.append(", ".join(parts))
    layout = _grid(
        np.concatenate([head_images[:, None], members], axis=1),
        title,
        ["framed: decoded from the cluster alone, style zero"],
        row_labels=row_labels,
        col_groups=_Groups(("head", "assigned images") if shown else ("head",), (1, shown)),
        valid=np.concatenate([np.ones((clusters, 1), dtype=bool), filled], axis=1),
        gap=_FRAMED_GAP,
    )
    for cluster in range(clusters):
        _frame(layout, cluster, 0)
    return layout.figure


def _check_pairs(first: np.ndarray, second: np.ndarray, name: str, other: str) -> None:
    if len(first) == 0:
        raise ValueError(f"{name} needs at least one image, got none")
    if first.shape != second.shape:
        raise ValueError(f"{name} have shape {first.shape}, {other} {second.shape}")


def _pairs(
    upper: Float[np.ndarray, "n h w c"],
    lower: Float[np.ndarray, "n h w c"],
    title: str,
    names: tuple[str, str],
    captions: Sequence[str] | None,
    note: str,
    gap: int = _GAP,
) -> _Layout:
    """Bands of two rows, `upper` over `lower`, with captions under each pair."""
    columns = min(len(upper), _PER_ROW)
    bands = -(-len(upper) // columns)
    spare = bands * columns - len(upper)
    filled = np.pad(np.ones(len(upper), dtype=bool), (0, spare)).reshape(bands, 1, columns)

    def banded(images: np.ndarray) -> np.ndarray:
        padded = np.concatenate([images, np.zeros((spare, *images.shape[1:]), images.dtype)])
        return padded.reshape(bands, columns, *images.shape[1:])

    cells = np.stack([banded(upper), banded(lower)], axis=1)
    layout = _grid(
        cells.reshape(2 * bands, columns, *upper.shape[1:]),
        title,
        [note],
        row_labels=list(names) * bands,
        row_groups=_Groups((), (2,) * bands),
        valid=np.repeat(filled, 2, axis=1).reshape(2 * bands, columns),
        captioned=captions is not None,
        gap=gap,
    )
    for index, caption in enumerate(captions or ()):
        band, column = divmod(index, columns)
        layout.axes.text(
            layout.lefts[column] + layout.width / 2,
            layout.tops[2 * band + 1] + layout.height + 3 * layout.unit,
            caption,
            ha="center",
            va="top",
            fontsize=style.TEXT_SIZE - 1,
            color=style.SOFT_INK,
        )
    return layout


def _caption(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _frame(layout: _Layout, row: int, column: int) -> None:
    pad = 2.0 * layout.unit
    layout.axes.add_patch(
        Rectangle(
            (layout.lefts[column] - 0.5 - pad / 2, layout.tops[row] - 0.5 - pad / 2),
            layout.width + pad,
            layout.height + pad,
            fill=False,
            edgecolor=style.FRAME,
            linewidth=1.8,
            clip_on=False,
        )
    )


def _grid(
    images: Float[np.ndarray, "rows cols h w c"],
    title: str,
    notes: Sequence[str] = (),
    *,
    row_labels: Sequence[str] | None = None,
    col_labels: Sequence[str] | None = None,
    row_groups: _Groups | None = None,
    col_groups: _Groups | None = None,
    valid: Bool[np.ndarray, "rows cols"] | None = None,
    captioned: bool = False,
    gap: int = _GAP,
) -> _Layout:
    """Compose the images into one picture and draw it at a whole multiple of its pixels."""
    rows, cols, height, width, _ = images.shape
    _check_grid(images, row_labels, col_labels)
    repeat, unit = _magnification(rows, cols, height, width)
    height, width = height * repeat, width * repeat
    below = _CAPTION if captioned else 0
    tops, total_height = _offsets(rows, height, row_groups, gap, below, unit)
    lefts, total_width = _offsets(cols, width, col_groups, gap, 0, unit)
    picture = np.ones((total_height, total_width, 3), dtype=np.float32)
    pixels, broken = _displayed(images)
    bad = 0
    for row, col in np.ndindex(rows, cols):
        if valid is None or valid[row, col]:
            cell = pixels[row, col].repeat(repeat, axis=0).repeat(repeat, axis=1)
            picture[tops[row] : tops[row] + height, lefts[col] : lefts[col] + width] = cell
            bad += bool(broken[row, col].any())
    all_notes = [
        *notes,
        f"{style.counted(bad, 'image')} with pixels not finite (magenta)" if bad else "",
    ]

    inches = 1.0 / (style.DPI * unit)
    margin = 0.12 if row_labels is None else 0.22 + max(map(style.text_width, row_labels))
    # Whole pixels, so that the picture is not resampled.
    left, bottom = math.ceil(margin * style.DPI) / style.DPI, 13 / style.DPI
    upright = col_labels is not None and max(map(style.text_width, col_labels)) > width * inches
    above = _room_above(col_labels, col_groups, upright)
    body_width, body_height = total_width * inches, total_height * inches
    figure_width = max(left + body_width + 0.15, 4.0)
    figure = style.titled_figure(
        figure_width, above + body_height + bottom, title, all_notes, constrained=False
    )
    axes = figure.add_axes(style.body_rectangle(figure, left, bottom, body_width, body_height))
    axes.imshow(picture, vmin=0.0, vmax=1.0, interpolation="antialiased", aspect="auto")
    axes.set_axis_off()
    layout = _Layout(figure, axes, tops, lefts, height, width, unit)
    _write_labels(layout, row_labels, col_labels, col_groups, upright)
    return layout


def _check_grid(
    images: Float[np.ndarray, "rows cols h w c"],
    row_labels: Sequence[str] | None,
    col_labels: Sequence[str] | None,
) -> None:
    rows, cols, _, _, channels = images.shape
    if images.size == 0:
        raise ValueError(f"a grid needs at least one image with pixels, got shape {images.shape}")
    if channels not in (1, 3):
        raise ValueError(f"images need 1 or 3 channels, got {channels}")
    for labels, count, name in ((row_labels, rows, "row"), (col_labels, cols, "col")):
        if labels is not None and len(labels) != count:
            raise ValueError(f"{count} {name}s but {len(labels)} {name}_labels")


def _magnification(rows: int, cols: int, height: int, width: int) -> tuple[int, float]:
    """How often a pixel is repeated, and pixels of the composed picture to one of the screen."""
    side = max(height, width)
    cell = min(max(_CELL, side), max(48.0, min(_WIDEST / cols, _TALLEST / rows)))
    if side <= cell:
        return max(1, round(cell / side)), 1.0
    return 1, side / cell


def _offsets(
    count: int, size: int, groups: _Groups | None, gap: int, below: int, unit: float
) -> tuple[Int[np.ndarray, "count"], int]:
    """Starts of `count` cells of `size` pixels with `gap` screen pixels between, and the extent.

    `below` screen pixels more are kept free after each group.
    """
    gaps = np.full(count, max(1, round(gap * unit)), dtype=np.int64)
    ends = np.cumsum(groups.sizes) - 1 if groups is not None else np.array([], dtype=np.int64)
    ends = ends[(ends >= 0) & (ends < count)]
    gaps[ends] = round((_GROUP_GAP + below) * unit)
    gaps[-1] = round(below * unit)
    starts = np.concatenate([[0], np.cumsum(gaps + size)])
    return starts[:-1], int(starts[-1])


def _displayed(
    images: Float[np.ndarray, "rows cols h w c"],
) -> tuple[Float[np.ndarray, "rows cols h w 3"], Bool[np.ndarray, "rows cols h w"]]:
    """Colour images in [0, 1], and which of their pixels were not finite."""
    broken = ~np.isfinite(images).all(axis=-1)
    clipped = np.clip(np.nan_to_num(images, posinf=1.0, neginf=0.0), 0.0, 1.0)
    colored = np.broadcast_to(clipped, (*images.shape[:-1], 3)).astype(np.float32)
    colored[broken] = to_rgb(style.BROKEN_PIXEL)
    return colored, broken


def _room_above(
    col_labels: Sequence[str] | None, col_groups: _Groups | None, upright: bool
) -> float:
    room = 0.0
    if col_labels is not None:
        room += 0.1 + max(map(style.text_width, col_labels)) if upright else 0.2
    if col_groups is not None:
        room += 0.22
    return room


def _write_labels(
    layout: _Layout,
    row_labels: Sequence[str] | None,
    col_labels: Sequence[str] | None,
    col_groups: _Groups | None,
    upright: bool,
) -> None:
    text = layout.axes.text
    for top, label in zip(layout.tops, row_labels or (), strict=False):
        text(
            -7 * layout.unit,
            top + layout.height / 2,
            label,
            ha="right",
            va="center",
            fontsize=style.TEXT_SIZE,
            color=style.INK,
            parse_math=False,
        )
    for start, label in zip(layout.lefts, col_labels or (), strict=False):
        text(
            start + layout.width / 2,
            -5 * layout.unit,
            label,
            ha="center",
            va="bottom",
            rotation=90 if upright else 0,
            parse_math=False,
            fontsize=style.TEXT_SIZE,
            color=style.INK,
        )
    if col_groups is not None:
        firsts = np.concatenate([[0], np.cumsum(col_groups.sizes)])[: len(col_groups.names)]
        for first, name in zip(firsts, col_groups.names, strict=True):
            text(
                layout.lefts[first],
                -7 * layout.unit,
                name,
                ha="left",
                va="bottom",
                fontsize=style.TEXT_SIZE,
                color=style.SOFT_INK,
            )
