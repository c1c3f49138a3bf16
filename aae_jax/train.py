"""The loop: the only place where step, data, checkpoints, recording and evaluation meet."""

import contextlib
import functools
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from aae_jax import checkpoints, feed, parallel
from aae_jax.config import ConfigError, validate
from aae_jax.data import description, order, preprocessing, sources, splits
from aae_jax.data.sources import Arrays, Stored
from aae_jax.experiment import Experiment, build
from aae_jax.recording import Console, Recorder, recording
from aae_jax.state import TrainState
from aae_jax.step import Rows, Step, chunk
from aae_jax.validation import validator
from aae_jax.workdir import DESCRIPTION, PREPROCESSING, start_of

# How often the processes have asked for a SIGTERM; they agree on the question to stop at.
_questions = itertools.count()


class TrainingError(Exception):
    """Training cannot go on; the message is one line."""


class Run(NamedTuple):
    """A config with its data and devices.

    Attributes:
        config: validated.
        experiment: its functions.
        splits: training, validation and test data.
        train_labels: every training label there is, hidden ones too: for evaluation only.
        preprocessing: constants from the training images.
        mesh: the devices.
    """

    config: ConfigDict
    experiment: Experiment
    splits: splits.Splits
    train_labels: np.ndarray
    preprocessing: preprocessing.Preprocessing
    mesh: Mesh


class Outcome(NamedTuple):
    """How training ended.

    Attributes:
        state: the last one.
        finished: False when a signal asked to stop.
        seconds: spent in training, over all resumptions.
    """

    state: TrainState
    finished: bool
    seconds: float


def prepare(
    config: ConfigDict,
    devices: list[jax.Device] | None = None,
    source: sources.Source | None = None,
) -> Run:
    """Reads the data and builds the experiment; nothing is compiled and nothing written.

    Args:
        config: of the run.
        devices: to train on; all by default.
        source: the data, if they are in memory already; else the config says where they are.

    Raises:
        ConfigError, SpecError, DataError: what is wrong, in one line.
    """
    validate(config)
    mesh = parallel.device_mesh(devices)
    _check_divisible(config, mesh.size)
    _check_streaming(config)
    data = config.data
    if source is None:
        source = sources.load(data.source, data.download, data.data_dir or None, data.streaming)
    parts = splits.split(source, config.data.validation, config.data.labels, config.seed)
    if "classification" in config.phases and not len(parts.labelled):
        raise ConfigError(f"the phase classification needs labels; {source.name} has none")
    if config.model.layout == "style_and_given_label" and (parts.train.label < 0).any():
        raise ConfigError(
            "model.layout style_and_given_label needs every label: "
            "data.labels of -1, and data that have them"
        )
    if config.evaluation.parzen_samples and not len(parts.valid.image):
        raise ConfigError(
            f"evaluation.parzen_samples is {config.evaluation.parzen_samples}, but no validation "
            "image is left to choose sigma on; allowed: 0, or data.validation of 1 or more"
        )
    if config.decoder.output != "linear" and isinstance(parts.train, Arrays):
        _check_unit_range(config, parts.train.image)
    experiment = _experiment(config, description.describe(parts), mesh)
    constants = preprocessing.fit(config.data.preprocessing, parts.train.image)
    every_label = splits.split(source, config.data.validation, -1, config.seed).train.label
    return Run(config, experiment, parts, every_label, constants, mesh)


def _experiment(config: ConfigDict, data: description.Description, mesh: Mesh) -> Experiment:
    """The experiment, the very same one for data of the same shape: code is compiled once for it.

    Cross-validation, for one, trains many times.
    """
    shared = config.copy_and_resolve_references()
    shared.seed, shared.data.source = 0, ""
    return _built(FrozenConfigDict(shared), data, mesh)


# An entry keeps compiled code alive, some megabytes.
@functools.lru_cache(maxsize=8)
def _built(config: FrozenConfigDict, data: description.Description, mesh: Mesh) -> Experiment:
    return build(
        config,
        image_shape=data.image_shape,
        num_classes=data.num_classes,
        num_examples=data.num_examples,
        collective=parallel.collective(mesh),
    )


def train(
    run: Run, workdir: Path, say: Callable[[str], None] | None = None, record: bool = True
) -> Outcome:
    """Trains from the newest good checkpoint of the folder, or from the start.

    The folder must be locked and claimed (see `aae_jax.workdir`). Of several processes all must
    call this, with the same folder; the state returned is on this process's devices. Without
    `record`, checkpoints are all that is written: no metrics, no events, no progress, and no
    validation scores.

    Raises:
        TrainingError: a loss is not finite.
        CheckpointError, WorkdirError: something cannot be written or used.
    """
    console = Console(run.experiment.num_steps)
    say = say or (console.say if parallel.is_first() else lambda line: None)
    manager = checkpoints.open_checkpoints(workdir / "checkpoints", run.config.checkpoint.keep)
    try:
        state, seconds = _start(run, manager, say)
        if parallel.is_first():
            preprocessing.save(run.preprocessing, workdir / PREPROCESSING)
            description.save(description.describe(run.splits), workdir / DESCRIPTION)
        if int(state.step) >= run.experiment.num_steps:
            return Outcome(parallel.own(state, run.mesh), True, seconds)
        with (
            termination() as terminated,
            _recorder(run, workdir, state, console, record) as recorder,
            contextlib.closing(chunks_from(run, int(state.step))) as chunks,
        ):
            outcome = _loop(run, state, chunks, manager, recorder, terminated, seconds)
        if not outcome.finished:
            kept = "; the checkpoint is saved, the same command goes on from there"
            say(f"stopped by SIGTERM at step {int(outcome.state.step)}{kept if record else ''}")
        return outcome
    finally:
        checkpoints.close(manager)


@contextlib.contextmanager
def _recorder(
    run: Run, workdir: Path, state: TrainState, console: Console, record: bool
) -> Iterator[Recorder | None]:
    """Process 0's recorder; the others record nothing."""
    if not record or not parallel.is_first():
        yield None
        return
    with recording(workdir, int(state.step), console) as recorder:
        recorder.describe(_flat(run.config.to_dict()))
        yield recorder


def initial_state(run: Run) -> TrainState:
    """The state before the first step, in its place."""
    key = jax.random.key(run.config.seed)
    place = parallel.home(run.mesh, run.config.train.parallel)
    return parallel.born_placed(run.experiment.init, place)(key)


def abstract_state(run: Run) -> TrainState:
    """Shapes, types and placement of the state, for restoring one."""
    shapes = jax.eval_shape(run.experiment.init, jax.random.key(run.config.seed))
    placed = parallel.replicated(run.mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), shapes)


def restore(run: Run, workdir: Path) -> tuple[TrainState, float]:
    """The newest good state of a run and its seconds of training; the folder is only read.

    Raises:
        CheckpointError: there is none.
    """
    with checkpoints.open_checkpoints(workdir / "checkpoints", read_only=True) as manager:
        restored = checkpoints.restore(manager, abstract_state(run))
    if restored is None:
        raise checkpoints.CheckpointError(f"{workdir} has no checkpoint yet; train it first")
    return restored.state, float(restored.metadata.get("seconds", 0.0))


def _start(
    run: Run, manager: ocp.CheckpointManager, say: Callable[[str], None]
) -> tuple[TrainState, float]:
    """Own checkpoints first, then `init_from`, then the beginning."""
    restored = checkpoints.restore(manager, abstract_state(run))
    if restored is not None:
        say(f"resuming from step {restored.step} of {run.experiment.num_steps}")
        return _at_home(run, restored.state), float(restored.metadata.get("seconds", 0.0))
    state = initial_state(run)
    if run.config.init_from:
        folder = start_of(run.config)
        parts = _parts(abstract_state(run), run.config.init_parts)
        try:
            other = checkpoints.restore_subtrees(folder / "checkpoints", parts)
        except checkpoints.CheckpointError as error:
            raise checkpoints.CheckpointError(f"init_from: {error}") from error
        state = _with_parts(state, _at_home(run, other.state))
        if state.averaged_params is not None:
            # Copies, as in init_state; the average of one step is the weights themselves.
            weights = {name: state.params[name] for name in state.averaged_params}
            state = state.replace(averaged_params=jax.tree.map(jnp.copy, weights))
        taken = ", ".join(run.config.init_parts) or "weights"
        say(f"starting from the {taken} of {folder}, step {other.step}")
    return state, 0.0


def _parts(state: TrainState, names: Sequence[str]) -> dict[str, Any]:
    """The named parts of the parameters and of their batch statistics, by path in the state.

    Raises:
        ConfigError: there is no such part.
    """
    weights = _weights(state)
    if not names:
        return weights
    known = [f"encoder/{part}" for part in state.params["encoder"]]
    known += [part for part in state.params if part != "encoder"]
    found: dict[str, Any] = {}
    for name in names:
        paths = [f"{kind}/{name}" for kind in weights]
        parts = {path: part for path in paths if (part := _part(weights, path)) is not None}
        if paths[0] not in parts:
            raise ConfigError(f"init_parts has {name!r}; this model has {', '.join(known)}")
        found |= parts
    return found


def _weights(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def _part(tree: Any, path: str) -> Any | None:
    for name in path.split("/"):
        if not isinstance(tree, Mapping) or name not in tree:
            return None
        tree = tree[name]
    return tree


def _with_parts(state: TrainState, parts: Mapping[str, Any]) -> TrainState:
    weights = _weights(state)
    for path, part in parts.items():
        weights = _put(weights, path.split("/"), part)
    return state.replace(**weights)


def _put(tree: Mapping[str, Any], path: list[str], part: Any) -> dict[str, Any]:
    """The tree with another part at this path."""
    name, *rest = path
    return {**tree, name: _put(tree[name], rest, part) if rest else part}


def _at_home(run: Run, state: Any) -> Any:
    return state if run.config.train.parallel == "shard_map" else parallel.own(state, run.mesh)


def _loop(
    run: Run,
    state: TrainState,
    chunks: feed.Feed,
    manager: ocp.CheckpointManager,
    recorder: Recorder | None,
    terminated: Callable[[], bool],
    seconds_before: float,
) -> Outcome:
    config, experiment = run.config, run.experiment
    num_steps, chunk_steps = experiment.num_steps, config.train.chunk_steps
    advance = mapped_chunk(run)
    validate_state = validator(experiment, run.splits, run.preprocessing)
    began = time.monotonic()

    def seconds() -> float:
        return seconds_before + time.monotonic() - began

    def epoch(step: int) -> float:
        return step / experiment.steps_per_epoch

    def score(state: TrainState) -> dict[str, float]:
        return validate_state(parallel.own(state, run.mesh)) if recorder is not None else {}

    def record(row: dict[str, float | int]) -> None:
        if recorder is not None:
            recorder.write(row)

    def check(step: int, state: TrainState) -> None:
        if not _all_finite((state.params, state.opt_states)):
            raise _not_finite(manager, step, "parameters", "the update")

    step = int(state.step)
    if step == 0:
        record({"step": 0, "epoch": 0.0, **score(state)})
    last_saved = time.monotonic()
    last_read: float | None = None
    pending: tuple[int, Any] | None = None

    def read(first: int, metrics: Any) -> dict[str, float]:
        """The means of a chunk's metrics; waits for the chunk to end."""
        nonlocal last_read
        values = {name: np.asarray(value) for name, value in metrics.items()}
        _check_finite(values, first, manager)
        row = {name: float(value.mean()) for name, value in values.items()}
        now = time.monotonic()
        if last_read is not None:  # the first chunk's time is mostly compilation
            row["images_per_second"] = chunk_steps * config.train.batch_size / (now - last_read)
        last_read = now
        return row

    while step < num_steps:
        first, step = step, step + chunk_steps
        state, metrics = advance(state, *next(chunks))
        # The device works on the next chunk while the host reads the last one's metrics.
        if pending is not None:
            record({"step": first, "epoch": epoch(first), **read(*pending)})
        pending = (first, metrics)
        every = config.evaluation.every_epochs
        due = math.floor(epoch(step) / every) > math.floor(epoch(first) / every)
        stop, last = terminated(), step >= num_steps
        save_due = parallel.agreed(time.monotonic() - last_saved > config.checkpoint.every_seconds)
        if due or stop or last or save_due:
            row = {"step": step, "epoch": epoch(step), **read(*pending)}
            pending = None
            check(step, state)
            if due or last:
                row |= score(state)
            # Before the checkpoint: a run that resumes from it does not come by this step again.
            record(row)
            if save_due or stop or last:
                checkpoints.save(
                    manager, step, parallel.whole(state, run.mesh), {"seconds": seconds()}
                )
                last_saved = time.monotonic()
            last_read = time.monotonic()
        if stop and not last:
            return Outcome(parallel.own(state, run.mesh), False, seconds())
    return Outcome(parallel.own(state, run.mesh), True, seconds())


def mapped_chunk(run: Run) -> parallel.Chunk:
    """The chunk of steps on the run's devices: (state, examples, rows) -> (state, metrics)."""
    normalize = _unit
    if run.splits.train.image.dtype == np.uint8 and run.config.data.preprocessing != "unit":
        normalize = functools.partial(preprocessing.normalize, run.preprocessing)
    return _mapped(run.experiment.step, normalize, run.mesh, run.config.train.parallel)


def _unit(image: jax.Array) -> jax.Array:
    return preprocessing.normalize(preprocessing.UNIT, image)


@functools.lru_cache(maxsize=8)
def _mapped(
    step: Step, normalize: Callable[[jax.Array], jax.Array], mesh: Mesh, mode: str
) -> parallel.Chunk:
    return parallel.map_chunk(chunk(step, normalize, parallel.collective(mesh)), mesh, mode)


def chunks_from(run: Run, step: int) -> feed.Feed:
    """What the chunks from this step to the run's end train on."""
    chunk_steps = run.config.train.chunk_steps
    starts = range(step, run.experiment.num_steps, chunk_steps)
    train, mode = run.splits.train, run.config.train.parallel

    def draw(first: int) -> Rows:
        return _rows(run, first, chunk_steps)

    if isinstance(train, Stored):
        return feed.streamed(train, starts, draw, run.mesh, mode)
    if train.image.dtype != np.uint8:
        # Once and for all, and not in the chunk, whose code would then be for these constants.
        train = train._replace(
            image=np.asarray(preprocessing.normalize(run.preprocessing, train.image))
        )
    return feed.in_memory(train, starts, draw, run.mesh, mode)


def _rows(run: Run, first: int, num_steps: int) -> Rows:
    seed, sizes = run.config.seed, run.config.train
    image = order.rows(
        seed, len(run.splits.train.image), sizes.batch_size, first, num_steps, "images"
    )
    if "classification" not in run.config.phases:
        return Rows(image, None)
    labelled = run.splits.labelled
    chosen = order.rows(
        seed, len(labelled), sizes.labelled_batch_size, first, num_steps, "labelled"
    )
    return Rows(image, labelled[chosen])


def _check_divisible(config: ConfigDict, num_devices: int) -> None:
    fields = ["batch_size"]
    if "classification" in config.phases:
        fields.append("labelled_batch_size")
    for field in fields:
        if config.train[field] % num_devices:
            raise ConfigError(
                f"train.{field} is {config.train[field]}; allowed: multiples of {num_devices}, "
                "the number of devices"
            )


def _check_streaming(config: ConfigDict) -> None:
    if config.data.streaming and config.train.parallel != "pmap" and jax.process_count() > 1:
        raise ConfigError(
            f"train.parallel is {config.train.parallel}; allowed with data.streaming on several "
            "processes: pmap, under which each reads the images of its own devices"
        )


def _check_unit_range(config: ConfigDict, images: np.ndarray) -> None:
    if images.dtype == np.uint8:
        return
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise ConfigError(
            f"decoder.output is {config.decoder.output}, for values in 0..1, but the training data "
            f"range over {low:g}..{high:g}; allowed: linear, with data.preprocessing standardize"
        )


def _check_finite(
    values: dict[str, np.ndarray], first: int, manager: ocp.CheckpointManager
) -> None:
    bad = [
        (int(np.flatnonzero(~np.isfinite(value))[0]), name)
        for name, value in values.items()
        if not np.isfinite(value).all()
    ]
    if bad:
        offset, name = min(bad)
        raise _not_finite(manager, first + offset + 1, name, f"the {_phase_of(name)} phase")


def _not_finite(manager: ocp.CheckpointManager, step: int, name: str, where: str) -> TrainingError:
    checkpoints.wait(manager)
    last_good = manager.latest_step()
    kept = (
        f"the last good checkpoint is step {last_good} in {manager.directory}"
        if last_good is not None
        else "no checkpoint was written yet"
    )
    return TrainingError(
        f"step {step}: {name} of {where} is not finite; {kept}; "
        "lower a learning rate, or find the operation with JAX_DEBUG_NANS=True"
    )


def _phase_of(metric: str) -> str:
    if "/" in metric:
        return "regularization"
    known = {"classification": "classification", "labelled_error_percent": "classification"}
    return known.get(metric, "reconstruction")


@jax.jit
def _finite(tree: Any) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in leaves]))


def _all_finite(tree: Any) -> bool:
    return bool(_finite(tree))


@contextlib.contextmanager
def termination(of_all: bool = True) -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM into a question, to be asked where stopping loses nothing.

    On several processes a SIGTERM to any of them is one to all, unless `of_all` is False; then all
    of them must ask equally often, and get the same answer.
    """
    if of_all and jax.process_count() > 1:
        # JAX has a handler of its own, which tells the others; this one would replace it.
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_questions))
        return
    received = False

    def note(signum: int, frame: Any) -> None:
        nonlocal received
        received = True

    try:
        before = signal.signal(signal.SIGTERM, note)
    except ValueError:  # signals belong to the main thread; a library caller may be in another
        yield lambda: False
        return
    try:
        yield lambda: received
    finally:
        signal.signal(signal.SIGTERM, before)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float) else str(value)
    return flat
