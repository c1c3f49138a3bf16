"""Figures as PNG bytes and as files; a file appears whole or not at all."""

import io
import os
import secrets
from pathlib import Path

from matplotlib.figure import Figure


def to_png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG image of `dpi` pixels per inch; the same bytes for the same figure."""
    return _rendered(figure, "png", dpi)


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 110) -> None:
    """Write the figure to `path`: PDF or SVG if the name ends so, otherwise PNG.

    Missing folders are made. See `write_whole` for what happens on a failure.
    """
    suffix = Path(path).suffix.lower().lstrip(".")
    write_whole(path, _rendered(figure, suffix if suffix in ("pdf", "svg") else "png", dpi))


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically: on any failure an older file at `path` stays as it was.

    The content goes to a file beside `path` and is renamed over it once it is on disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _rendered(figure: Figure, image_format: str, dpi: int) -> bytes:
    # Without these fields neither a version nor a date gets into the bytes.
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=image_format, dpi=dpi, metadata=metadata[image_format])
    return buffer.getvalue()
