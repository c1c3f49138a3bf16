"""Files that appear whole or not at all."""

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path


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


def write_folder(path: str | os.PathLike[str], contents: Mapping[str, bytes]) -> None:
    """Make a folder of files, by name, atomically: on any failure there is none.

    Raises:
        OSError: it cannot be written, or `path` is there and no empty folder; it stays as it was.
    """
    path = Path(path)
    # Unlike a file's draft, nothing that cleans up after killed processes takes it away: no lock
    # says whether somebody is still writing it.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    draft.mkdir(parents=True)
    try:
        for name, content in contents.items():
            write_whole(draft / name, content)
        os.rename(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def remove_drafts(folder: Path) -> None:
    """Removes what processes killed in `write_whole` left in a folder that nobody writes to."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name):
            path.unlink(missing_ok=True)
