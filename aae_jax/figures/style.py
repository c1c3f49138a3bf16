"""The one look of every figure: colours, fonts, headings and axes.

Nothing here touches matplotlib's global state: every setting is put on the figure at hand.
"""

import colorsys
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

DPI = 110

INK = "#1f2933"
SOFT_INK = "#5f6b76"
GRID = "#e4e8ec"
PAPER = "#ffffff"

PRIOR = "#dde1e6"
PRIOR_LINE = "#9aa5b1"
UNKNOWN = "#a9b2bc"
SPINE = "#c3cad1"
CODES = "#1f77b4"
FRAME = "#d1495b"
BROKEN_PIXEL = "#ff00ff"

TITLE_SIZE = 13.0
PANEL_SIZE = 10.5
TEXT_SIZE = 9.0

DENSITY = LinearSegmentedColormap.from_list(
    "density", ["#ffffff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"]
)

# Ten hues without grey, which is kept for the prior and for unknown labels.
_HUES = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#f781bf",
    "#e8c20a",
    "#6b7d0a",
    "#17becf",
)


def label_color(label: int) -> str:
    """Colour of a class, as a hex string; light grey for the unknown label -1.

    A label keeps its colour whatever the number of classes: 0-9 are ten hues, 10-19 the same hues
    lightened, 20-29 darkened, and from 30 on hues a golden angle apart.
    """
    if label < 0:
        return UNKNOWN
    red, green, blue = to_rgb(_HUES[label % 10])
    if label < 30:
        scale, white = ((1.0, 0.0), (0.45, 0.55), (0.5, 0.0))[label // 10]
        return to_hex((scale * red + white, scale * green + white, scale * blue + white))
    saturation, value = ((0.75, 0.85), (0.45, 0.95), (0.9, 0.6))[label % 3]
    return to_hex(colorsys.hsv_to_rgb(0.61803398875 * label % 1.0, saturation, value))


def label_colors(num_labels: int) -> list[str]:
    """Colours of the classes 0 .. num_labels - 1."""
    return [label_color(label) for label in range(num_labels)]


def text_width(text: str, size: float = TEXT_SIZE) -> float:
    """Width of one line of text at `size` points, in inches."""
    if not text.strip():
        return 0.0
    # A pair of dollar signs would be read as mathematics.
    return float(TextPath((0, 0), text.replace("$", "S"), size=size).get_extents().width) / 72


def _wrap(text: str, width: float, size: float) -> list[str]:
    """Lines of `text` that fit into `width` inches at `size` points; a long word stays whole."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".lstrip()
            if line and text_width(longer, size) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def titled_figure(
    width: float, height: float, title: str, notes: Sequence[str] = (), *, constrained: bool = True
) -> Figure:
    """An empty figure with a heading above a body of `width` x `height` inches.

    Args:
        width: of the figure, inches.
        height: of the body below the heading, inches.
        title: the heading.
        notes: joined into one softer line under the heading; empty ones are left out.
        constrained: whether matplotlib lays out the axes in the body; otherwise the caller places
            them with `body_rectangle`.
    """
    title_lines = _wrap(title, width - 0.25, TITLE_SIZE)
    note = "; ".join(note for note in notes if note)
    note_lines = _wrap(note, width - 0.25, TEXT_SIZE) if note else []
    title_height = 0.25 * len(title_lines)
    heading = 0.1 + title_height + 0.17 * len(note_lines) + 0.1
    total = height + heading
    figure = Figure(
        figsize=(width, total),
        dpi=DPI,
        facecolor=PAPER,
        layout="constrained" if constrained else None,
    )
    FigureCanvasAgg(figure)
    left = 0.1 / width
    top = 1 - 0.1 / total
    heading_text = figure.suptitle(
        "\n".join(title_lines), x=left, y=top, ha="left", va="top", fontsize=TITLE_SIZE, color=INK
    )
    heading_text.set_in_layout(False)
    heading_text.set_parse_math(False)
    if note_lines:
        note_text = figure.text(
            left,
            top - title_height / total,
            "\n".join(note_lines),
            ha="left",
            va="top",
            fontsize=TEXT_SIZE,
            color=SOFT_INK,
            parse_math=False,
        )
        note_text.set_in_layout(False)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(  # type: ignore[call-arg]
            rect=(0.0, 0.0, 1.0, height / total), w_pad=0.08, h_pad=0.06
        )
    return figure


def body_rectangle(
    figure: Figure, left: float, bottom: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """A rectangle in inches from the lower left corner, as fractions of the figure."""
    total_width, total_height = figure.get_size_inches()
    return (
        left / float(total_width),
        bottom / float(total_height),
        width / float(total_width),
        height / float(total_height),
    )


def plain_axes(axes: Axes, title: str = "", *, grid: bool = True) -> None:
    """Quiet spines, small ticks and a left-aligned panel title."""
    axes.set_facecolor(PAPER)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_color(SPINE)
        spine.set_visible(side in ("left", "bottom"))
    axes.tick_params(which="both", color=SPINE, labelcolor=SOFT_INK, labelsize=TEXT_SIZE)
    axes.tick_params(which="major", length=3)
    axes.tick_params(which="minor", length=1.5)
    if grid:
        axes.grid(True, color=GRID, linewidth=0.7)
    if title:
        axes.set_title(title, loc="left", fontsize=PANEL_SIZE, color=INK)


def dot(color: str, label: str) -> Line2D:
    """A legend entry for points of one colour."""
    return Line2D([], [], linestyle="", marker="o", markersize=6, color=color, label=label)


def label_text(label: int, class_names: Sequence[str] | None) -> str:
    """Name of a class: its own name, its number, or "unknown" for -1."""
    if label < 0:
        return "unknown"
    return class_names[label] if class_names is not None else str(label)


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 code", "1,200 codes"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
