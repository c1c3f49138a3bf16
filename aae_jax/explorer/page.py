"""The explorer as a Bokeh document; what a person does to it is answered by `explorer.mjs`.

The names of root models are those by which `page.html` places them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bokeh.document import Document
from bokeh.events import ConnectionLost, DocumentReady, Pan, PanStart, Tap
from bokeh.layouts import column, row
from bokeh.models import (
    AdaptiveTicker,
    ColumnDataSource,
    CustomJS,
    GlyphRenderer,
    Legend,
    LegendItem,
    RadioButtonGroup,
    Select,
    Slider,
    Toggle,
)
from bokeh.plotting import figure
from jaxtyping import Float, UInt32
from jinja2 import Template

from aae_jax.explorer.scene import LEVELS, Outline, Scene

HERE = Path(__file__).parent
INK, SOFT, LINE, PRIOR, UNKNOWN = "#1f2933", "#5f6b76", "#9aa5b1", "#eef1f4", "#a9b2bc"
# Paul Tol's muted scheme for the colour-blind (SRON/EPS/TN/09-002, section 2), and ink.
_COLORS = (
    *("#cc6677", "#332288", "#c9b458", "#117733", "#88ccee", "#882255", "#44aa99", "#999933"),
    *("#aa4499", INK),
)
# A label has a shape besides its colour.
_MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star")
_COLUMNS = 20  # of the strip
_PLANE, _DECODED, _ORIGINAL, _THUMBNAIL = 540, 304, 144, 54  # pixels


class _Shown(NamedTuple):
    """A figure, its renderers and the sources that `explorer.mjs` writes to."""

    plot: figure
    layers: list[GlyphRenderer]
    source: ColumnDataSource


def document(
    scene: Scene,
    decoder: Mapping[str, Any],
    note: str,
    policy: str,
    page: Document | None = None,
) -> Document:
    """The explorer's document.

    Args:
        scene: what it shows.
        decoder: who decodes, for `explorer.mjs`: "network", which the page holds, or "wanted" and
            "reply", sources that a server answers.
        note: how this page decodes, in a sentence.
        policy: what the page may load, its Content-Security-Policy.
        page: the document to fill; a new one unless given.
    """
    page = page or Document()
    plane, strip = _plane(scene), _strip(scene)
    decoded = _picture(scene.pictures[0], _DECODED, "decoded")
    original = _picture(scene.pictures[0], _ORIGINAL, "original")
    sliders, axes, labels = _sliders(scene), _axes(scene), _labels(scene)
    walk = Slider(start=0, end=100, value=0, step=0.5, show_value=False, width=260)
    play = Toggle(label="▶ Play", width=90)
    walk.js_on_change("value", CustomJS(code="explorer.walked(cb_obj.value)"))
    play.js_on_change("active", CustomJS(code="explorer.played(cb_obj.active)"))
    for root in (plane.plot, decoded.plot, original.plot, strip.plot):
        page.add_root(root)
    page.add_root(row(play, walk, name="walk"))
    if labels:
        page.add_root(labels)
    if sliders:
        page.add_root(row(*axes, name="axes"))
        pairs = [row(*sliders[first : first + 2]) for first in range(0, len(sliders), 2)]
        page.add_root(column(*pairs, name="sliders"))
    parts = {
        "plane": plane.plot,
        "layers": plane.layers,
        "dot": plane.source,
        "decoded": decoded.source,
        "original": original.source,
        "frames": strip.source,
        "sliders": sliders,
        "axes": axes,
        "labels": labels,
        "walk": walk,
        "play": play,
        "codes": scene.codes[scene.pictured],
        "distributions": None if scene.shown_labels is None else scene.shown_labels[scene.pictured],
        "pictures": scene.pictures,
        "percentiles": scene.percentiles,
        "levels": LEVELS,
        "columns": _COLUMNS,
        "low": scene.low,
        "high": scene.high,
        **decoder,
    }
    page.js_on_event(DocumentReady, CustomJS.from_file(HERE / "explorer.mjs", **parts))
    page.js_on_event(ConnectionLost, CustomJS(code="explorer.lost()"))
    page.title = f"{scene.name}: code space"
    page.template = Template((HERE / "page.html").read_text(encoding="utf-8"))
    page.template_variables.update(
        heading=scene.title,
        run=scene.name,
        note=note,
        policy=policy,
        label_name=scene.label_name if labels else "",
        has_sliders=bool(sliders),
        background=_background(scene),
    )
    return page


def label_color(label: int) -> str:
    """Colour of a class; grey for -1, unknown. Labels ten apart share it, and differ in shape."""
    return UNKNOWN if label < 0 else _COLORS[label % len(_COLORS)]


def label_marker(label: int) -> str:
    """Shape of a class's dots."""
    return "dot" if label < 0 else _MARKERS[label % len(_MARKERS)]


def rgba(image: Float[np.ndarray, "h w c"]) -> UInt32[np.ndarray, "h w"]:
    """Brightness from 0 to 1 as Bokeh takes pixels."""
    channels = np.empty((*image.shape[:2], 4), np.uint8)
    channels[..., :3] = np.rint(255 * image)
    channels[..., 3] = 255
    return channels.view("<u4")[..., 0].astype(np.uint32)


def _background(scene: Scene) -> str:
    if not scene.follows_prior:
        return "grey: test codes (this run was pulled to no prior)"
    return "grey: samples of the prior" + (", and what holds 95 % of it" if scene.outline else "")


def _limits(scene: Scene) -> tuple[Float[np.ndarray, "style"], float]:
    """Middle of each dimension, and half of what a plane shows of all."""
    shown = np.concatenate(
        [scene.percentiles[[0, -1]], np.percentile(scene.codes, [1, 99], axis=0)]
    )
    if scene.outline is not None:
        inside = np.argwhere(scene.outline.density > scene.outline.level)
        ends = [inside.min(axis=0), inside.max(axis=0)]
        shown = np.concatenate([shown, [[scene.outline.x[x], scene.outline.y[y]] for y, x in ends]])
    low, high = shown.min(axis=0), shown.max(axis=0)
    return (low + high) / 2, float(0.54 * (high - low).max())


def _plane(scene: Scene) -> _Shown:
    """Codes by label over the prior, and the dot."""
    center, half = _limits(scene)
    plot = figure(
        name="plane", width=_PLANE + 80, height=_PLANE, tools="", toolbar_location=None,
        x_range=(center[0] - half, center[0] + half), y_range=(center[1] - half, center[1] + half),
        outline_line_color=None,
    )  # fmt: skip
    for axis in (*plot.xaxis, *plot.yaxis):
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = None
        axis.major_label_text_color = SOFT
        axis.ticker = AdaptiveTicker(desired_num_ticks=5)
    plot.grid.grid_line_color = "#f0f2f4"
    if scene.outline is not None:
        _draw_outline(plot, scene.outline)
    faint = ColumnDataSource(_columns(scene.samples))
    layers = [plot.scatter("z0", "z1", source=faint, size=2, color="#cbd2d9", level="underlay")]
    layers += _draw_codes(plot, scene)
    dot = ColumnDataSource({"x": [0.0], "y": [0.0]})
    plot.scatter(
        "x", "y", source=dot, size=20, fill_color="#ffffff", fill_alpha=0.6, line_color=INK,
        line_width=3, level="overlay",
    )  # fmt: skip
    plot.scatter("x", "y", source=dot, size=5, color=INK, level="overlay")
    moved = CustomJS(code="explorer.dragged(cb_obj.x, cb_obj.y)")
    plot.js_on_event(PanStart, moved)
    plot.js_on_event(Pan, moved)
    plot.js_on_event(Tap, moved)
    return _Shown(plot, layers, dot)


def _draw_outline(plot: figure, outline: Outline) -> None:
    levels = [outline.level, 2 * float(outline.density.max())]
    drawn = plot.contour(
        outline.x, outline.y, outline.density, levels, fill_color=[PRIOR], line_color=LINE,
        line_width=1.5,
    )  # fmt: skip
    drawn.level = "underlay"


def _draw_codes(plot: figure, scene: Scene) -> list[GlyphRenderer]:
    """Codes of each label with a legend, and each label's name at the median of its codes."""
    found = np.unique(scene.labels)
    known = found[found >= 0]
    layers = [
        plot.scatter(
            "z0", "z1", source=ColumnDataSource(_columns(scene.codes[scene.labels == label])),
            marker=label_marker(int(label)),
            size=12 if label < 0 else 7, color=label_color(int(label)), alpha=0.85,
            line_color=None if label >= 0 else UNKNOWN,
        )
        for label in found
    ]  # fmt: skip
    names = [str(label) if label >= 0 else "unknown" for label in found]
    if len(known) == 0:
        return layers
    items = [LegendItem(label=n, renderers=[r]) for n, r in zip(names, layers, strict=True)]
    plot.add_layout(
        Legend(
            items=items, title="Label", click_policy="hide", border_line_color=None,
            background_fill_color=None, label_text_color=INK, title_text_color=SOFT,
            title_text_font_style="normal", spacing=1, glyph_height=18, ncols=-(-len(items) // 24),
        ),
        "right",
    )  # fmt: skip
    medians = np.stack([np.median(scene.codes[scene.labels == label], axis=0) for label in known])
    source = ColumnDataSource({**_columns(medians), "name": [str(label) for label in known]})
    text = plot.text(
        "z0", "z1", text="name", source=source, text_align="center", text_baseline="middle",
        text_color=INK, text_font_style="bold", text_font_size="17px",
        text_font={"value": "sans-serif"},
        text_outline_color="#ffffff",
    )  # fmt: skip
    return [*layers, text]


def _columns(codes: Float[np.ndarray, "n style"]) -> dict[str, np.ndarray]:
    return {f"z{number}": column for number, column in enumerate(codes.T.astype(np.float32))}


def _bare(width: int, height: int, columns: int, rows: int, name: str) -> figure:
    """A figure of images alone: no axes, no tools, pixels from the top left."""
    plot = figure(
        name=name, width=width, height=height, tools="", toolbar_location=None, min_border=0,
        x_range=(0, columns), y_range=(-rows, 0), outline_line_color=None,
    )  # fmt: skip
    plot.axis.visible = plot.grid.visible = False
    return plot


def _picture(image: Float[np.ndarray, "h w c"], size: int, name: str) -> _Shown:
    """One image, as high or as wide as `size`."""
    height, width = image.shape[:2]
    longer = max(height, width)
    plot = _bare(size * width // longer, size * height // longer, width, height, name)
    source = ColumnDataSource({"image": [rgba(image)]})
    drawn = plot.image_rgba("image", 0, -height, width, height, source=source, origin="top_left")
    return _Shown(plot, [drawn], source)


def _strip(scene: Scene) -> _Shown:
    """Test images to click on, and the frames of the two that a walk goes between."""
    count = len(scene.pictures)
    rows = -(-count // _COLUMNS)
    plot = _bare(_COLUMNS * _THUMBNAIL, rows * _THUMBNAIL, _COLUMNS, rows, "strip")
    places = np.arange(count)
    images = plot.image_rgba(
        [rgba(image) for image in scene.pictures],
        x=places % _COLUMNS + 0.04, y=-(places // _COLUMNS) - 0.96, dw=0.92, dh=0.92,
        origin="top_left",
    )  # fmt: skip
    frames = ColumnDataSource({"x": [0.5], "y": [-0.5], "color": [INK]})
    plot.rect(
        "x", "y", 0.94, 0.94, source=frames, fill_color=None, line_color="color", line_width=4
    )
    plot.js_on_event(Tap, CustomJS(code="explorer.picked(cb_obj.x, cb_obj.y)"))
    return _Shown(plot, [images], frames)


def _sliders(scene: Scene) -> list[Slider]:
    """A slider for each dimension of a style that is no plane, in percentiles."""
    dimensions = scene.codes.shape[1]
    sliders = []
    for number in range(dimensions if dimensions > 2 else 0):
        slider = Slider(
            start=LEVELS[0], end=LEVELS[-1], step=LEVELS[1] - LEVELS[0], value=50,
            title=f"Dimension {number + 1}", format="0.0", width=220,
        )  # fmt: skip
        code = f"explorer.slid({number}, cb_obj.value)"
        slider.js_on_change("value", CustomJS(code=code))
        sliders.append(slider)
    return sliders


def _axes(scene: Scene) -> list[Select]:
    """Which two dimensions the plane shows."""
    dimensions = scene.codes.shape[1]
    options = [(str(number), f"Dimension {number + 1}") for number in range(dimensions)]
    axes = [
        Select(title=title, options=options, value=str(number), width=150)
        for number, title in enumerate(("Across", "Up"))
    ]
    center, half = _limits(scene)
    for axis in axes:
        args = {"center": center, "half": half}
        axis.js_on_change("value", CustomJS(args=args, code="explorer.turned(center, half)"))
    return axes if dimensions > 2 else []


def _labels(scene: Scene) -> RadioButtonGroup | None:
    """A button for each label or cluster that the decoder can be asked for."""
    if scene.shown_labels is None:
        return None
    names = [str(label) for label in range(scene.shown_labels.shape[1])]
    group = RadioButtonGroup(labels=names, active=0, name="labels")
    group.js_on_change("active", CustomJS(code="explorer.labelled(cb_obj.active)"))
    return group
