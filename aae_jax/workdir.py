"""A run's folder: one run at a time, one config for ever, files that are whole or absent."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from aae_jax.config import ADDED, base, differences
from aae_jax.files import remove_drafts, write_whole

CONFIG, FIGURES = "config.json", "figures"
# What a trained model needs of its data, which may be elsewhere by then.
PREPROCESSING, DESCRIPTION = "preprocessing.npz", "data.json"


class WorkdirError(Exception):
    """A folder that this run cannot use; the message is one line, differences aside."""


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Creates the folder if needed and holds it for this process alone.

    Raises:
        WorkdirError: it cannot be created or written, or another process is using it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "w")  # noqa: SIM115 - held for as long as the run
        lock.write("held by a running process\n")
        lock.flush()
    except OSError as error:
        raise WorkdirError(
            f"cannot write to workdir {workdir}: {error.strerror}; choose another with --workdir"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkdirError(
                f"another process is using workdir {workdir}; wait for it or choose another folder"
            ) from error
        yield


def claim(workdir: Path, config: ConfigDict) -> None:
    """Writes the config to a new folder; compares it with the one of a folder that has one.

    What killed processes left half-written in a folder of this run is removed.

    Raises:
        WorkdirError: the folder belongs to a run with another config, or holds other files.
    """
    path = workdir / CONFIG
    if path.exists():
        changed = differences(read_config(workdir).to_dict(), config.to_dict())
        if changed:
            raise WorkdirError(
                f"workdir {workdir} belongs to a run with another config; choose another --workdir,"
                " or undo:\n  " + "\n  ".join(changed)
            )
        for folder in (workdir, workdir / FIGURES):
            remove_drafts(folder)
        return
    # A process killed while it wrote the config leaves a draft of it.
    own = (".lock", f".{CONFIG}.")
    others = [entry.name for entry in workdir.iterdir() if not entry.name.startswith(own)]
    if others:
        raise WorkdirError(
            f"workdir {workdir} is not empty ({', '.join(sorted(others)[:3])}) and holds no run; "
            "choose another --workdir"
        )
    write_text(path, config.to_json(indent=2, sort_keys=True) + "\n")


def run_name(config: str) -> str:
    """A config's FILE[:VARIANT] as the name of its runs: configs/a.py:16/best is "a-16_best"."""
    file, _, variant = config.partition(":")
    return "-".join(filter(None, [Path(file).stem, variant.replace("/", "_")]))


def read_config(workdir: Path) -> ConfigDict:
    """The config that a run saved, with the fields that were added since.

    Raises:
        WorkdirError: there is none, or it cannot be read.
    """
    path = workdir / CONFIG
    try:
        saved = json.loads(path.read_text())
        if not isinstance(saved, dict):
            raise ValueError("it holds no fields")
        return ConfigDict(_with_added(_with_tuples(saved, base().to_dict()))).lock()
    except FileNotFoundError as error:
        raise WorkdirError(f"{workdir} holds no run: {CONFIG} is missing") from error
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise WorkdirError(f"{path} cannot be read: {error}") from error


def start_of(config: ConfigDict) -> Path:
    """The workdir whose weights a run with `init_from` starts from."""
    return Path(config.init_from.replace("{seed}", str(config.seed)))


def write_text(path: Path, text: str) -> None:
    """Writes a file that is never seen half-written.

    Raises:
        WorkdirError: it cannot be written; an older file of that name stays.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise WorkdirError(f"cannot write {path}: {error.strerror}") from error


def _with_tuples(value: Any, example: Any) -> Any:
    """JSON's lists as tuples again wherever the base config has tuples."""
    if isinstance(value, dict) and isinstance(example, dict):
        return {name: _with_tuples(item, example.get(name)) for name, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _with_added(saved: dict[str, Any]) -> dict[str, Any]:
    for field in ADDED:
        *groups, name = field.split(".")
        group: Any = saved
        known: Any = base()
        for each in groups:
            group, known = group.get(each), known[each]
        if isinstance(group, dict):
            group.setdefault(name, known[name])
    return saved
