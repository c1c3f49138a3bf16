"""Rows of results: one config over several seeds, each finished run a line of CSV.

Everything that RESULTS.md says, and README's scores, are filled in from those lines, so that no
number stands there which no run gave.
"""

import csv
import fcntl
import io
import json
import os
import re
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from aae_jax import parallel, program
from aae_jax.config import base, digest
from aae_jax.files import write_whole
from aae_jax.recording import read_metrics
from aae_jax.workdir import WorkdirError, read_config, start_of, write_text

Row = Mapping[str, str | float | int]
# Lines of a file that differ in this were not made by one recipe.
_RECIPE = "recipe_digest"
_MARKED = re.compile(r"(<!-- ([^:|<>]+): ([^|<>]+) -->)[^|<\n]*")
# Beside the folder of results; what is filled in from it.
_DOCUMENTS = ("RESULTS.md", "README.md")


class Recipe(NamedTuple):
    """What a table's lines come from.

    Attributes:
        config: of every run, but for its seed.
        folder: where the runs live, `seed-0`, `seed-1` and so on.
        table: the CSV file, one line a seed.
        command: what repeats them.
    """

    config: ConfigDict
    folder: Path
    table: Path
    command: str


def of_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """The same config with another seed."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.seed = seed
    return changed.lock()


def recipe_digest(config: ConfigDict) -> str:
    """A fingerprint of what decides a score, but for the seed: not names, nor where data lie.

    Nor how often validation images are scored, nor which scores come beside the others: those of
    samples, and of the Parzen estimator, which scores fewer samples on the way to many.
    """
    recipe = of_seed(config, 0)
    with recipe.unlocked():
        recipe.data.source = _data_set(config)
        recipe.data.download, recipe.data.data_dir = False, ""
        recipe.experiment, recipe.title, recipe.paper, recipe.data.paper = "", "", {}, ""
        recipe.evaluation.parzen_samples, recipe.evaluation.sample_quality = 0, False
        recipe.evaluation.every_epochs = base().evaluation.every_epochs
    return digest(recipe)


def _data_set(config: ConfigDict) -> str:
    kind, _, place = config.data.source.partition(":")
    return f"{kind}:{Path(place).name}"


def reproduce(
    recipe: Recipe, seeds: Sequence[int], processes: parallel.Processes | None = None
) -> int:
    """Runs a recipe with each seed that its table lacks; the exit status.

    What an earlier, interrupted call has finished is not run again, and what it has begun goes on.
    """
    return program.session(lambda: _reproduce(recipe, seeds), processes)


def record(folders: Sequence[Path], results: Path) -> int:
    """Writes validation scores of runs, finished or not, to results/trials/RUN.csv; the status.

    For choosing between recipes: no test image is looked at.
    """

    def record_all() -> None:
        for folder in folders:
            _record(folder, results / "trials")

    return program.explained(record_all)


def fill_in_documents(results: Path) -> int:
    """Fills in RESULTS.md and README.md beside the folder of results; the exit status."""
    return program.explained(lambda: _fill_in_documents(results))


def _reproduce(recipe: Recipe, seeds: Sequence[int]) -> None:
    found = recipe_digest(recipe.config)
    for seed in seeds:
        _refuse_other_labels(of_seed(recipe.config, seed))
    for seed in seeds:
        if any(row["seed"] == str(seed) for row in rows_of(recipe.table, found)):
            print(f"seed {seed} is in {recipe.table}")
            continue
        run = recipe.folder / f"seed-{seed}"
        if not program.run(of_seed(recipe.config, seed), run, recipe.command):
            return
        if parallel.is_first():
            add_row(recipe.table, {"seed": seed, _RECIPE: found, **finished_run(run)})
            # Rows in a folder of another name are a reader's own, and no others are beside them.
            if recipe.table.parent.name == "results":
                _fill_in_documents(recipe.table.parent)
    print(summary(rows_of(recipe.table)))


def _refuse_other_labels(config: ConfigDict) -> None:
    """A run that starts from another one knows that one's labels too.

    Raises:
        WorkdirError: those are others than its own.
    """
    if not config.init_from or config.data.labels < 1 or not start_of(config).is_dir():
        return
    other = read_config(start_of(config))
    told, own = (other.seed, other.data.labels), (config.seed, config.data.labels)
    if _data_set(other) == _data_set(config) and other.data.labels and told != own:
        count = other.data.labels if other.data.labels > 0 else "all"
        raise WorkdirError(
            f"init_from: {start_of(config)} was told {count} labels with seed {other.seed}, this "
            f"run has {config.data.labels} with seed {config.seed}; name the run of the same "
            "labels, {seed} in its name being the seed"
        )


def _record(folder: Path, trials: Path) -> None:
    config, scores = read_config(folder), last_validation(folder)
    if not scores:
        raise WorkdirError(f"{folder} has no validation scores")
    row: dict[str, str | float | int] = {
        "seed": config.seed,
        _RECIPE: recipe_digest(config),
        "epochs": max(row.get("epoch", 0.0) for row in read_metrics(folder)),
        "command": command_of(folder),
        **scores,
    }
    table = trials / f"{folder.name}.csv"
    add_row(table, row, replace=True)
    print(f"{table}: " + ", ".join(f"{name} {value:g}" for name, value in scores.items()))


def _fill_in_documents(results: Path) -> None:
    for document in (results.parent / name for name in _DOCUMENTS):
        if document.exists():
            write_text(document, fill_in(document.read_text(), results))


def finished_run(folder: Path) -> dict[str, str | float | int]:
    """What a finished run gave: its facts, command, last validation scores and test scores."""
    facts = json.loads((folder / program.FACTS).read_text())
    scores = {
        score["name"]: score["value"] for score in json.loads((folder / program.SCORES).read_text())
    }
    return {**facts, "command": command_of(folder), **last_validation(folder), **scores}


def command_of(folder: Path) -> str:
    """The command of a run, but for the folders that it was told to write to."""
    words = shlex.split((folder / program.COMMAND).read_text())
    written = re.compile(r"--?(workdir|results)(=.*)?")
    # A flag's value is the next word unless it follows "=".
    values = {i + 1 for i, word in enumerate(words) if re.fullmatch(r"--?(workdir|results)", word)}
    kept = [w for i, w in enumerate(words) if i not in values and not written.fullmatch(w)]
    return shlex.join(kept)


def last_validation(folder: Path) -> dict[str, float]:
    """The newest validation scores of a run, finished or not."""
    scores: dict[str, float] = {}
    for row in read_metrics(folder):
        scores |= {name: value for name, value in row.items() if name.startswith("valid/")}
    return scores


def rows_of(table: Path, recipe: str | None = None) -> list[dict[str, str]]:
    """The lines of a table; none without a file.

    Raises:
        WorkdirError: it cannot be read, or is not of the recipe.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(table.read_text())))
        if not all("seed" in row for row in rows):
            raise ValueError("a line has no seed")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise WorkdirError(f"{table} cannot be read: {error}") from error
    others = {row.get(_RECIPE) for row in rows} - {recipe}
    if recipe is not None and others:
        raise WorkdirError(
            f"{table} holds runs of another config ({', '.join(map(str, others))}, this is "
            f"{recipe}); move it away or choose another --results"
        )
    return rows


def add_row(table: Path, row: Row, replace: bool = False) -> None:
    """Adds a line, in the order of seeds; the file is whole before and after, whoever else adds.

    Args:
        table: the CSV file, made if needed.
        row: the line; other lines get empty cells for columns that are new.
        replace: whether it takes the place of all lines that are there.

    Raises:
        WorkdirError: the table cannot be read or written; it stays as it was.
    """
    try:
        with _held(table.parent):
            others = [] if replace else rows_of(table)
            rows = [*others, {name: str(value) for name, value in row.items()}]
            names = dict.fromkeys(name for each in rows for name in each)
            text = io.StringIO()
            writer = csv.DictWriter(text, list(names), lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda each: int(each["seed"])))
            write_whole(table, text.getvalue().encode())
    except OSError as error:
        raise WorkdirError(f"cannot write {table}: {error.strerror}") from error


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keeps other processes from adding lines meanwhile; the folder itself is what is locked."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def mean(rows: Sequence[Mapping[str, str]], column: str) -> str:
    """Mean and standard error over seeds, such as "1.93 ± 0.07 (3 seeds)".

    Raises:
        WorkdirError: a line lacks the column.
    """
    try:
        values = [float(row[column]) for row in rows]
    except (KeyError, ValueError) as error:
        raise WorkdirError(f"no number under {column!r} in a line of results") from error
    if not values:
        return "not run"
    centre = statistics.mean(values)
    decimals = 0 if abs(centre) >= 1000 else 2 if abs(centre) >= 1 else 3
    if len(values) == 1:
        return f"{centre:.{decimals}f} (1 seed)"
    spread = statistics.stdev(values) / len(values) ** 0.5
    return f"{centre:.{decimals}f} ± {spread:.{decimals}f} ({len(values)} seeds)"


def summary(rows: Sequence[Mapping[str, str]]) -> str:
    """Mean of each number over the seeds, one line each."""
    numbers = [name for name in rows[0] if _is_number(rows[0][name]) and name != "seed"]
    width = max(map(len, numbers), default=0)
    return "\n".join(f"{name:<{width}}  {mean(rows, name)}" for name in numbers)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def fill_in(text: str, results: Path) -> str:
    """The text with what follows each mark `<!-- TABLE: COLUMN -->` taken from results/TABLE.csv.

    What follows reaches to the next "|" or the end of the line, a cell of a table, or to the next
    comment, `<!-- in words -->`, after which a cell may go on.

    Raises:
        WorkdirError: a table cannot be read, or lacks the column.
    """

    def filled(match: re.Match[str]) -> str:
        mark, table, column = match.groups()
        return f"{mark} {mean(rows_of(results / f'{table}.csv'), column)} "

    return _MARKED.sub(filled, text)
