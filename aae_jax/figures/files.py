"""Figures as PNG bytes and as files; a file appears whole or not at all."""

import io
import os
from pathlib import Path

from matplotlib.figure import Figure

from aae_jax.files import write_whole


def to_png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG image of `dpi` pixels per inch; the same bytes for the same figure."""
    return _rendered(figure, "png", dpi)


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 110) -> None:
    """Write the figure to `path`: PDF or SVG if the name ends so, otherwise PNG.

    Missing folders are made. See `aae_jax.files.write_whole` for what happens on a failure.
    """
    suffix = Path(path).suffix.lower().lstrip(".")
    write_whole(path, _rendered(figure, suffix if suffix in ("pdf", "svg") else "png", dpi))


def _rendered(figure: Figure, image_format: str, dpi: int) -> bytes:
    # Without these fields neither a version nor a date gets into the bytes.
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=image_format, dpi=dpi, metadata=metadata[image_format])
    return buffer.getvalue()
