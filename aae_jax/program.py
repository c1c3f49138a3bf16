"""What the command line does: train and report, score again, draw again; and `fit` for Python."""

import contextlib
import importlib.metadata
import itertools
import json
import logging
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging as absl_logging

# TensorFlow, which writes the event files, greets every program with several lines otherwise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
import numpy as np
from clu.parameter_overview import get_parameter_overview
from ml_collections import ConfigDict

from aae_jax import checkpoints, figures, parallel, report, workdir
from aae_jax.assessment import Drawing, Options, assess, code_panel
from aae_jax.config import ConfigError, digest
from aae_jax.data import DataError
from aae_jax.evaluation.latent_space import FEWEST_CODES
from aae_jax.export import write as write_exported
from aae_jax.inference import InferenceError, Trained, load
from aae_jax.randomness import named
from aae_jax.readings import Readings
from aae_jax.recording import read_metrics
from aae_jax.report import Report, Score
from aae_jax.spec import SpecError
from aae_jax.state import TrainState
from aae_jax.train import Outcome, Run, TrainingError, prepare, restore, termination
from aae_jax.train import train as run_training

COMMAND, SCORES, FACTS, PAGE = "command.txt", "scores.json", "facts.json", "report.html"
_NO_CURVE = {"step", "epoch", "images_per_second"}
EXPLAINED = (
    ConfigError,
    SpecError,
    DataError,
    TrainingError,
    checkpoints.CheckpointError,
    workdir.WorkdirError,
    parallel.ProcessError,
    InferenceError,
)


def train(
    config: ConfigDict,
    folder: Path,
    command: str,
    processes: parallel.Processes | None = None,
) -> int:
    """Trains, or goes on training, and reports; the exit status."""
    return session(lambda: run(config, folder, command), processes)


def fit(config: ConfigDict, workdir: str | os.PathLike[str]) -> Trained:
    """Trains, or goes on training, as the command line does; the trained model.

        config = aae_jax.config.base()
        config.train.epochs = 20.0
        model = aae_jax.fit(config, "runs/mine")

    Progress and test scores are printed, and the folder holds what every run leaves behind, its
    `report.html` included. The same call again goes on where it was interrupted, and does not train
    a finished run anew. Every fault is raised.

    Args:
        config: of the run; see `aae_jax.config.base`.
        workdir: the run's folder, made if needed.

    Raises:
        ConfigError, SpecError: a value that cannot be used.
        DataError: data that cannot.
        WorkdirError: the folder belongs to another config or process, or cannot be written.
        CheckpointError: what it holds cannot be used.
        TrainingError: a loss is not finite, or SIGTERM stopped it.
    """
    folder = Path(workdir)
    if not run(config, folder, f"aae_jax.fit(config, {str(folder)!r})"):
        raise TrainingError(f"{folder}: stopped by SIGTERM; the same call goes on from there")
    return load(folder)


def session(action: Callable[[], object], processes: parallel.Processes | None = None) -> int:
    """Does the action among the run's processes; the exit status."""

    def start_and_act() -> None:
        _keep_compiled_code()
        parallel.start(processes or parallel.Processes(), os.environ)
        action()

    return explained(start_and_act)


def review(folder: Path, mode: str) -> int:
    """Scores ("eval") or draws ("figures") a run again; the exit status."""
    return explained(lambda: _review(folder, mode))


def compare(folders: Sequence[Path], out: Path) -> int:
    """Sets finished runs side by side: one picture of codes, one table of scores; the status."""
    return explained(lambda: _compare(folders, out))


def export(folder: Path, out: Path) -> int:
    """Writes a finished run's model as files that need nothing of this package; the status."""
    return explained(lambda: _export(folder, out))


def explained(action: Callable[[], object]) -> int:
    """Runs the action; a fault that the user can mend ends in one line, not in a traceback."""
    status = _status(action)
    if status and jax.distributed.is_initialized():
        # At exit JAX waits for the other processes, and they wait in a collective for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _status(action: Callable[[], object]) -> int:
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("jax").setLevel(logging.ERROR)
    checkpoints.quiet_orbax()
    try:
        action()
    except KeyboardInterrupt:
        print("aae_jax: interrupted; the same command goes on from the last checkpoint")
        return 130
    except Exception as error:
        explanation = _explanation(error)
        if explanation is not None:
            print(f"aae_jax: {explanation}", file=sys.stderr)
        elif jax.distributed.is_initialized():
            traceback.print_exc()
        else:
            raise
        return 1
    return 0


def _explanation(error: Exception) -> object | None:
    """One line on a fault that the user can mend; None for one that is the program's own."""
    lost_process = parallel.lost(error)
    if lost_process is not None:
        return lost_process
    if isinstance(error, EXPLAINED):
        return error
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        reason = str(error).partition("\n")[0] or "no reason given"
        return (
            f"the memory does not suffice ({reason}); lower train.batch_size, train.chunk_steps or "
            "the widths of the networks"
        )
    return None


def _keep_compiled_code() -> None:
    """The next run of the same program starts sooner; JAX's own variables have precedence."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "aae_jax" / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def run(config: ConfigDict, folder: Path, command: str) -> bool:
    """Trains, or goes on training, and reports; whether it came to the end, as SIGTERM stops it."""
    began = time.monotonic()
    with termination() as terminated, contextlib.ExitStack() as held:
        prepared = prepare(config)
        _check_reportable(prepared)

        def open_folder() -> None:
            held.enter_context(workdir.locked(folder))
            workdir.claim(folder, config)
            workdir.write_text(folder / COMMAND, command + "\n")
            print(_overview(prepared, folder))

        parallel.first_only(open_folder)
        if terminated():
            print("stopped by SIGTERM before training; the same command starts it")
            return False
        outcome = run_training(prepared, folder)
        if not outcome.finished or not parallel.is_first():
            return outcome.finished
        with termination(of_all=False) as terminated:
            reported = _report(prepared, outcome, folder, terminated)
        if reported:
            print(f"{time.monotonic() - began:.0f} s in all; open {folder / PAGE}")
        else:
            print("stopped by SIGTERM; the model is saved, the same command draws the report")
        return reported


def _check_reportable(run: Run) -> None:
    """Says before training what the report would fail at after it."""
    num_test = len(run.splits.test.image)
    if "reconstruction" in run.experiment.phases and num_test < FEWEST_CODES:
        raise DataError(
            f"{run.config.data.source}: there are {num_test} test images; the report, which "
            f"compares their codes with the prior, needs {FEWEST_CODES} or more"
        )


def _report(run: Run, outcome: Outcome, folder: Path, terminated: Callable[[], bool]) -> bool:
    """Writes scores, figures and page; nothing and False when told to stop meanwhile."""
    print("reading the test images, drawing the report")
    view = _view(run, outcome.state, folder, outcome.seconds, terminated)
    if terminated():
        return False
    _write_scores(view)
    _write_figures(view)
    _write_page(view)
    print(report.score_table(view.scores))
    return True


def _review(folder: Path, mode: str) -> None:
    config = workdir.read_config(folder)
    run = prepare(config)
    with workdir.locked(folder):
        state, seconds = restore(run, folder)
        view = _view(run, state, folder, seconds)
        if mode == "eval":
            _write_scores(view)
            print(report.score_table(view.scores))
        else:
            _write_figures(view)
            print(f"figures in {folder / workdir.FIGURES}")
        _write_page(view)


def code_panels(folders: Sequence[Path]) -> list[figures.CodePanel]:
    """The codes of test images of those runs whose style is two-dimensional."""
    panels = []
    for folder in folders:
        config = workdir.read_config(folder)
        if config.model.style_dim == 2:
            run = prepare(config)
            state, _ = restore(run, folder)
            panels.append(code_panel(_readings(run, state), config.title))
    return panels


def _compare(folders: Sequence[Path], out: Path) -> None:
    columns = {folder.name: _saved_scores(folder) for folder in folders}
    panels = code_panels(folders)
    table = report.comparison_table(columns)
    with workdir.locked(out):
        workdir.write_text(out / "scores.txt", table + "\n")
        if panels:
            figures.save(figures.four_panels(panels), out / "codes.png")
    print(table)
    print(f"also in {out}" + (", with the codes side by side in codes.png" if panels else ""))


def _export(folder: Path, out: Path) -> None:
    scores = _saved_scores(folder)
    write_exported(load(folder), scores, out)
    print(f"{out} holds the model; its README.md says how it is used with JAX alone")


def _saved_scores(folder: Path) -> list[Score]:
    try:
        records = json.loads((folder / SCORES).read_text())
        # JSON has no NaN: a score that is not finite is saved as null.
        return [
            Score(**{**r, "value": math.nan if r["value"] is None else r["value"]}) for r in records
        ]
    except FileNotFoundError as error:
        raise workdir.WorkdirError(f"{folder} has no {SCORES}; let the run finish") from error
    except (ValueError, TypeError) as error:
        raise workdir.WorkdirError(f"{folder / SCORES} cannot be read: {error}") from error


class _View(NamedTuple):
    """A run as it is shown."""

    run: Run
    state: TrainState
    folder: Path
    seconds: float
    scores: list[Score]
    drawings: list[Drawing]
    curves: list[Drawing]


def _view(
    run: Run,
    state: TrainState,
    folder: Path,
    seconds: float,
    terminated: Callable[[], bool] = lambda: False,
) -> _View:
    """What is to be shown; as much of it as there was time for before `terminated`."""
    evaluation = run.config.evaluation
    options = Options(evaluation.parzen_samples, evaluation.sample_quality)
    assessed = assess(_readings(run, state), options)
    items = list(itertools.takewhile(lambda item: not terminated(), assessed))
    scores = [_beside_paper(item, run.config) for item in items if isinstance(item, Score)]
    drawings = [item for item in items if isinstance(item, Drawing)]
    return _View(run, state, folder, seconds, scores, drawings, _curves(run, folder))


def _readings(run: Run, state: TrainState) -> Readings:
    evaluation = run.config.evaluation
    readings = Readings(
        run.experiment,
        state,
        run.splits,
        run.train_labels,
        run.preprocessing,
        named(jax.random.key(run.config.seed), "assessment"),
        evaluation.samples,
    )
    return readings.with_fitted_prior() if evaluation.fitted_prior else readings


def _beside_paper(score: Score, config: ConfigDict) -> Score:
    stand_in, source = config.data.stand_in_for, config.data.source
    note = f"{source.split(':')[0]} stands in for {stand_in}" if stand_in else ""
    # Figures on MNIST mean nothing beside somebody's own images.
    words = {"", *re.split(r"[^a-z0-9_]+", source.lower())}
    published = config.paper if stand_in or config.data.paper in words else {}
    return score._replace(
        paper=published.get(score.name),
        note="; ".join(part for part in (score.note, note) if part),
    )


def _curves(run: Run, folder: Path) -> list[Drawing]:
    rows = read_metrics(folder)
    names = sorted({name for row in rows for name in row} - _NO_CURVE)
    metrics = {
        name: (
            np.array([row["step"] for row in rows if name in row]),
            np.array([row[name] for row in rows if name in row]),
        )
        for name in names
    }
    if not metrics:
        return []
    figure = figures.training_curves(metrics, run.experiment.equilibria)
    caption = "Losses with their equilibrium values, discriminator accuracy, validation scores."
    return [Drawing("curves", caption, figure)]


def _write_scores(view: _View) -> None:
    workdir.write_text(view.folder / SCORES, report.scores_json(view.scores) + "\n")
    workdir.write_text(view.folder / FACTS, json.dumps(_facts(view), indent=2) + "\n")


def _write_figures(view: _View) -> None:
    (view.folder / workdir.FIGURES).mkdir(exist_ok=True)
    for drawing in [*view.drawings, *view.curves]:
        figures.save(drawing.figure, view.folder / workdir.FIGURES / f"{drawing.name}.png")


def _write_page(view: _View) -> None:
    config = view.run.config
    page = Report(
        title=config.title,
        summary=_summary(view.run),
        command=(view.folder / COMMAND).read_text().strip(),
        config_text=config.to_json(indent=2, sort_keys=True),
        facts=_shown_facts(view),
        scores=view.scores,
        figures=[_shown(drawing) for drawing in view.drawings],
        curves=[_shown(drawing) for drawing in view.curves],
    )
    report.write(page, view.folder / PAGE)


def _shown(drawing: Drawing) -> tuple[str, str, Any]:
    return drawing.name.replace("_", " ").capitalize(), drawing.caption, drawing.figure


def _summary(run: Run) -> str:
    config, splits = run.config, run.splits
    text = (
        f"{config.experiment + ' on' if config.experiment else 'On'} "
        f"{config.data.source.split(':')[0]}: "
        f"{len(splits.train.image):,} training images, {len(splits.labelled):,} of them with a "
        f"visible label, {len(splits.valid.image):,} for validation, "
        f"{len(splits.test.image):,} for the final test."
    )
    stand_in = config.data.stand_in_for
    if stand_in:
        text += f" These data stand in for {stand_in}: scores do not compare with the paper's."
    return text


def _facts(view: _View) -> dict[str, int | float | str]:
    """What a run took, for result tables; times in seconds."""
    step, batch_size = int(view.state.step), view.run.config.train.batch_size
    device = view.run.mesh.devices.flat[0]
    return {
        "seconds": round(view.seconds),
        "steps": step,
        "epochs": round(step / view.run.experiment.steps_per_epoch, 2),
        "images_seen": step * batch_size,
        "devices": f"{view.run.mesh.size} x {device.device_kind} ({device.platform})",
        "config_digest": digest(view.run.config),
    }


def _shown_facts(view: _View) -> list[tuple[str, str]]:
    facts = _facts(view)
    rates = [
        row["images_per_second"] for row in read_metrics(view.folder) if "images_per_second" in row
    ]
    rate = [("Images per second, median", f"{np.median(rates):,.0f}")] if rates else []
    versions = ", ".join(f"{name} {_version(name)}" for name in ("aae_jax", "jax", "flax"))
    return [
        ("Training time", f"{facts['seconds']} s"),
        *rate,
        ("Steps", f"{facts['steps']:,} ({facts['epochs']:.1f} epochs)"),
        ("Devices", str(facts["devices"])),
        ("Config digest", str(facts["config_digest"])),
        ("Versions", versions),
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _overview(run: Run, folder: Path) -> str:
    shapes = jax.eval_shape(run.experiment.init, jax.random.key(0)).params
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()
    }
    workdir.write_text(
        folder / "parameters.txt", get_parameter_overview(shapes, include_stats=False) + "\n"
    )
    nets = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    return f"{run.config.title}\n{_summary(run)}\nparameters: {nets}\nworkdir: {folder}"
