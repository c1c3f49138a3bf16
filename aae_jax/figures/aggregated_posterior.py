"""The aggregated posterior q(z) against the prior p(z) it is pulled onto."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpec, GridSpecFromSubplotSpec
from scipy.ndimage import gaussian_filter

from aae_jax.figures import style

_MAX_MARGINALS = 8


class _Pair(NamedTuple):
    """Finite prior samples and codes, and the limits [dim, 2] that both are shown in."""

    prior: Float[np.ndarray, "m dim"]
    codes: Float[np.ndarray, "n dim"]
    limits: Float[np.ndarray, "dim 2"]


def prior_and_codes(
    prior_samples: Float[np.ndarray, "m dim"],
    codes: Float[np.ndarray, "n dim"],
    title: str = "Prior and aggregated posterior",
) -> Figure:
    """Samples of the prior against codes of the data (section 2: q(z) is to match p(z)).

    In two dimensions: both densities with the same limits and colour scale, and both pairs of
    marginals. Otherwise: the marginals of up to eight dimensions, and the correlations between the
    codes' dimensions. Densities are histograms, normalised by all finite samples.

    Args:
        prior_samples: samples of p(z).
        codes: codes of data, samples of q(z); rows that are not finite are dropped and counted.
        title: heading.

    Raises:
        ValueError: on no finite prior samples or codes, or on unequal dimensions.
    """
    if prior_samples.shape[1] != codes.shape[1]:
        raise ValueError(
            f"prior samples have {prior_samples.shape[1]} dimensions, codes {codes.shape[1]}"
        )
    pair = _Pair(_finite(prior_samples), _finite(codes), np.zeros((codes.shape[1], 2)))
    if len(pair.prior) == 0 or len(pair.codes) == 0:
        raise ValueError("prior_and_codes needs finite prior samples and finite codes, got none")
    pair = pair._replace(limits=_limits(pair))
    dropped = len(codes) - len(pair.codes)
    below, above = pair.codes < pair.limits[:, 0], pair.codes > pair.limits[:, 1]
    outside = int(np.any(below | above, axis=1).sum())
    notes = [
        style.counted(len(pair.prior), "prior sample"),
        style.counted(len(pair.codes), "code"),
        f"{style.counted(dropped, 'more code')} not finite, dropped" if dropped else "",
        f"{style.counted(outside, 'code')} outside the frame" if outside else "",
    ]
    if codes.shape[1] == 2:
        return _planes(pair, title, notes)
    return _marginals_and_correlations(pair, title, notes)


def _finite(points: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "kept dim"]:
    return points[np.isfinite(points).all(axis=1)].astype(np.float64)


def _limits(pair: _Pair) -> Float[np.ndarray, "dim 2"]:
    """The prior's range, widened to the codes but for the outermost 0.1 % on either side."""
    low = np.minimum(pair.prior.min(axis=0), np.quantile(pair.codes, 0.001, axis=0))
    high = np.maximum(pair.prior.max(axis=0), np.quantile(pair.codes, 0.999, axis=0))
    margin = np.where(high > low, 0.03 * (high - low), 0.5)
    return np.stack([low - margin, high + margin], axis=1)


def _planes(pair: _Pair, title: str, notes: list[str]) -> Figure:
    center, half = pair.limits.mean(axis=1), float(np.ptp(pair.limits, axis=1).max()) / 2
    square = np.stack([center - half, center + half], axis=1)
    pair = pair._replace(limits=square)
    notes = [*notes, "left: histograms smoothed over a bin, one colour scale"]
    figure = style.titled_figure(11.0, 3.6, title, notes)
    grid = GridSpec(2, 4, figure=figure, width_ratios=(1.0, 1.0, 0.04, 0.8))
    bins = int(np.clip(np.sqrt(min(len(pair.prior), len(pair.codes))), 32, 72))
    densities = [_density(points, square, bins) for points in (pair.prior, pair.codes)]
    # Twice the prior's peak: the same colour means the same density in both panels, and codes
    # collapsed to a point do not wash the prior out.
    top = min(float(max(density.max() for density in densities)), 2 * float(densities[0].max()))
    names = ("prior p(z)", "codes q(z)")
    for place, (density, name) in enumerate(zip(densities, names, strict=True)):
        axes = figure.add_subplot(grid[:, place])
        style.plain_axes(axes, name, grid=False)
        mesh = axes.imshow(
            density.T,
            origin="lower",
            extent=(square[0, 0], square[0, 1], square[1, 0], square[1, 1]),
            cmap=style.DENSITY,
            vmin=0.0,
            vmax=top,
            interpolation="nearest",
            aspect="equal",
        )
        axes.set_xlabel("dimension 1", fontsize=style.TEXT_SIZE, color=style.SOFT_INK)
        if place == 0:
            axes.set_ylabel("dimension 2", fontsize=style.TEXT_SIZE, color=style.SOFT_INK)
    extend = "max" if densities[1].max() > top else "neither"
    bar_axes = figure.add_subplot(grid[:, 2])
    bar = figure.colorbar(mesh, cax=bar_axes, extend=extend)
    bar.ax.tick_params(colors=style.SOFT_INK, labelsize=style.TEXT_SIZE - 1, length=2)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar_axes.set_title("density", loc="left", fontsize=style.TEXT_SIZE, color=style.SOFT_INK)
    for dimension in range(2):
        axes = figure.add_subplot(grid[dimension, 3])
        _marginal(axes, pair, dimension, legend=dimension == 0)
    return figure


def _density(
    points: Float[np.ndarray, "n 2"], limits: Float[np.ndarray, "2 2"], bins: int
) -> Float[np.ndarray, "bins bins"]:
    counts, x_edges, y_edges = np.histogram2d(
        points[:, 0], points[:, 1], bins=bins, range=limits.tolist()
    )
    density = counts / (len(points) * (x_edges[1] - x_edges[0]) * (y_edges[1] - y_edges[0]))
    return gaussian_filter(density, sigma=0.8, mode="constant")


def _marginal(axes: Axes, pair: _Pair, dimension: int, *, legend: bool) -> None:
    prior, codes = pair.prior[:, dimension], pair.codes[:, dimension]
    style.plain_axes(axes, grid=False)
    axes.set_title(
        f"dim {dimension + 1}: sd {codes.std():#.3g}, prior {prior.std():#.3g}",
        loc="left",
        fontsize=style.TEXT_SIZE,
        color=style.INK,
    )
    bins = int(np.clip(np.sqrt(min(len(prior), len(codes))) / 2, 20, 50))
    low, high = pair.limits[dimension]
    for values, color, fill, name in (
        (prior, style.PRIOR_LINE, True, "prior"),
        (codes, style.CODES, False, "codes"),
    ):
        counts, edges = np.histogram(values, bins=bins, range=(low, high))
        axes.stairs(
            counts / (len(values) * (edges[1] - edges[0])),
            edges,
            fill=fill,
            color=style.PRIOR if fill else color,
            linewidth=1.5,
            label=name,
        )
    axes.set_xlim(low, high)
    axes.set_ylim(0.0, 1.25 * axes.dataLim.ymax)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    if legend:
        axes.legend(
            frameon=False,
            fontsize=style.TEXT_SIZE,
            labelcolor=style.INK,
            loc="upper right",
            handlelength=1.2,
            borderaxespad=0.0,
        )


def _marginals_and_correlations(pair: _Pair, title: str, notes: list[str]) -> Figure:
    dim = pair.codes.shape[1]
    shown = min(dim, _MAX_MARGINALS)
    if dim > shown:
        notes = [*notes, f"marginals of the first {shown} of {dim} dimensions"]
    columns = min(shown, 4) if shown != 3 else 2
    rows = -(-shown // columns)
    if dim == 1:
        figure = style.titled_figure(5.5, 3.2, title, notes)
        _marginal(figure.add_subplot(), pair, 0, legend=True)
        return figure
    height = 1.9 * max(rows, 2)
    figure = style.titled_figure(2.3 * columns + height, height, title, notes)
    outer = GridSpec(1, 2, figure=figure, width_ratios=(2.3 * columns, height))
    inner = GridSpecFromSubplotSpec(rows, columns, subplot_spec=outer[0])
    for dimension in range(shown):
        axes = figure.add_subplot(inner[dimension // columns, dimension % columns])
        _marginal(axes, pair, dimension, legend=dimension == 0)
    _correlations(figure, figure.add_subplot(outer[1]), pair.codes)
    return figure


def correlation_matrix(points: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "dim dim"]:
    """Pearson correlations between dimensions; NaN for a dimension that does not vary."""
    centered = points - points.mean(axis=0)
    deviation = np.sqrt((centered**2).mean(axis=0))
    # A constant column leaves rounding noise, not an exact zero.
    still = deviation <= 1e-12 * (1.0 + np.abs(points).max(axis=0))
    deviation = np.where(still, np.nan, deviation)
    return (centered.T @ centered) / len(points) / np.outer(deviation, deviation)


def _correlations(figure: Figure | SubFigure, axes: Axes, codes: Float[np.ndarray, "n d"]) -> None:
    matrix = correlation_matrix(codes)
    off_diagonal = matrix[~np.eye(len(matrix), dtype=bool)]
    known = off_diagonal[np.isfinite(off_diagonal)]
    largest = f"{np.abs(known).max():.2f}" if len(known) else "none"
    style.plain_axes(axes, f"correlations of the codes (largest {largest})", grid=False)
    axes.set_facecolor(style.GRID)
    # Each dimension's correlation with itself says nothing; blank like a constant dimension's.
    matrix = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
    ticks = np.arange(len(matrix)) if len(matrix) <= 16 else np.arange(0, len(matrix), 10)
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1.0, vmax=1.0, interpolation="nearest")
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_yticks(ticks, [str(tick + 1) for tick in ticks])
    bar = figure.colorbar(image, ax=axes, shrink=0.95, aspect=25, ticks=[-1, 0, 1])
    bar.ax.tick_params(colors=style.SOFT_INK, labelsize=style.TEXT_SIZE - 1, length=2)
    bar.outline.set_visible(False)  # type: ignore[operator]
