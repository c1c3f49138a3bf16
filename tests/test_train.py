"""The loop, in process: what it computes, what it keeps, and how it ends."""

import contextlib
import csv
import os
import re
import signal
import threading
from functools import reduce
from operator import getitem

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from aae_jax import checkpoints, parallel, recording, train
from aae_jax.config import ConfigError, base
from aae_jax.data import DataError, order, sources
from aae_jax.phases import Batch
from aae_jax.randomness import example_keys, named

pytestmark = pytest.mark.usefixtures("quick_compilation", "compiled_once", "no_events")

CLASSES, TRAIN, VALID = 3, 50, 10
NETS = ("encoder", "decoder", "discriminator")
# Every phase, and everything that draws random numbers or keeps something from step to step.
EVERYTHING = {
    "phases": ("reconstruction", "regularization", "classification"),
    "model.labels": CLASSES,
    "model.layout": "style_and_inferred_label",
    "model.posterior": "gaussian",
    "label.prior": f"categorical({CLASSES})",
    "label.divergence": "gan()",
    "encoder.batch_norm": True,
    "encoder.input_noise": 0.1,
    "data.labels": 12,
    # Not the autoencoder's: Adam blows rounding up where batch normalisation leaves no gradient.
    "optimizers.discriminator.name": "adam",
    "optimizers.discriminator.learning_rate": 0.01,
    "optimizers.generator.schedule": "cosine(warmup=1)",
    "train.labelled_batch_size": 8,
    "train.averaging": 0.9,
}
SAVING_ALWAYS = {"checkpoint.every_seconds": 1e-6}


class NoEvents:
    """In the place of TensorBoard's writer, which takes seconds to import."""

    def write_scalars(self, step, scalars):
        pass

    def write_hparams(self, hparams):
        pass

    def close(self):
        pass


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Runs of one config share their compiled code: each would take ten seconds by itself."""
    changes = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def no_events(monkeypatch):
    monkeypatch.setattr(recording, "_event_writer", lambda workdir: NoEvents())


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    """Three kinds of blurred 4x4 images, with 50 for training after 10 for validation."""
    rng = np.random.default_rng(0)
    label = np.arange(TRAIN + VALID + 20) % CLASSES
    image = 60 * label[:, None, None] + rng.integers(0, 100, (len(label), 4, 4))
    cut = TRAIN + VALID
    file = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(
        file,
        x_train=image[:cut].astype(np.uint8),
        y_train=label[:cut],
        x_test=image[cut:].astype(np.uint8),
        y_test=label[cut:],
    )
    return file


@pytest.fixture(scope="module")
def config_of(data_file):
    """A valid config with one small layer a network, at any fields by their dotted names."""
    small = {f"{net}.widths": (6,) for net in NETS}
    small |= {f"{net}.init": "he_normal()" for net in NETS}
    small |= {
        "data.source": f"npz:{data_file}",
        "data.validation": VALID,
        "train.batch_size": 8,
        "train.chunk_steps": 3,
        "train.epochs": 3.75,  # 23.4 steps of 6.25 an epoch, so 24
        "checkpoint.every_seconds": 1e6,  # only at the end
    }

    def make(**fields):
        config = base()
        for field, value in {**small, **fields}.items():
            *parents, last = field.split(".")
            reduce(getitem, parents, config)[last] = value
        return config

    return make


def trained(config, workdir, num_devices=1):
    run = train.prepare(config, jax.devices()[:num_devices])
    workdir.mkdir(exist_ok=True)
    lines = []
    outcome = train.train(run, workdir, say=lines.append)
    return outcome, lines


def leaves(state):
    """Bytes of every leaf, by path."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found[name] = (str(leaf.dtype), np.asarray(leaf).tobytes())
    return found


def table(workdir):
    """metrics.csv without the one number that no two runs share."""
    with open(workdir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_curve(workdir, other):
    for here, there in zip(table(workdir), table(other), strict=True):
        assert here.keys() == there.keys()
        for name in there:
            if there[name]:
                assert float(here[name]) == pytest.approx(float(there[name]), rel=1e-4, abs=1e-5)


def by_hand(run, num_steps, stop=lambda metrics: False):
    """The run without the loop: (state, metrics of each step), a step at a time."""
    state = train.initial_state(run)
    advance = jax.jit(run.experiment.step)
    seed, sizes, metrics = run.config.seed, run.config.train, []

    def examples(step, chosen, size, stream):
        rows = chosen[order.example_order(seed, len(chosen), step * size, size, stream)]
        keys = example_keys(
            named(jax.random.key(seed), stream), jnp.int32(step), jnp.arange(len(rows))
        )
        image = run.splits.train.image[rows].astype(np.float32) / 255
        return Batch(jnp.asarray(image), jnp.asarray(run.splits.train.label[rows]), keys)

    for step in range(num_steps):
        batch = examples(step, np.arange(TRAIN), sizes.batch_size, "images")
        if "classification" in run.experiment.phases:
            size = sizes.labelled_batch_size
            labelled = examples(step, run.splits.labelled, size, "labelled")
            batch = batch._replace(labelled=labelled)
        state, values = advance(state, batch)
        metrics.append({name: float(value) for name, value in values.items()})
        if stop(metrics[-1]):
            break
    return state, metrics


@pytest.fixture(scope="module")
def whole(config_of, quick_compilation, compiled_once, tmp_path_factory):
    """Everything there is, trained in one go on one device: (outcome, workdir)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "_event_writer", lambda workdir: NoEvents())
        workdir = tmp_path_factory.mktemp("whole")
        outcome, _ = trained(config_of(**EVERYTHING), workdir)
    return outcome, workdir


# What is computed.


def test_the_loop_is_the_steps_one_after_another(config_of, whole):
    outcome, workdir = whole
    run = train.prepare(config_of(**EVERYTHING), jax.devices()[:1])
    state, metrics = by_hand(run, 24)
    assert outcome.finished and int(outcome.state.step) == 24
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    for name in ("params", "batch_stats", "averaged_params", "opt_states"):
        jax.tree.map(close, getattr(outcome.state, name), getattr(state, name))
    rows = table(workdir)
    assert [int(row["step"]) for row in rows] == list(range(0, 25, 3))
    assert [float(row["epoch"]) for row in rows] == [s / (TRAIN / 8) for s in range(0, 25, 3)]
    for row in rows[1:]:
        end = int(row["step"])
        for name in metrics[0]:
            close(float(row[name]), np.mean([each[name] for each in metrics[end - 3 : end]]))
    # Validation where an epoch (6.25 steps) has been completed, and at both ends.
    scored = [int(row["step"]) for row in rows if row["valid/reconstruction"]]
    assert scored == [0, 9, 15, 21, 24]


def test_a_seed_is_a_run(config_of, whole, tmp_path):
    again, _ = trained(config_of(**EVERYTHING), tmp_path / "again")
    assert leaves(again.state) == leaves(whole[0].state)
    assert table(tmp_path / "again") == table(whole[1])
    other, _ = trained(config_of(**EVERYTHING, seed=1), tmp_path / "other")
    ours, theirs = leaves(again.state.params), leaves(other.state.params)
    assert not any(ours[name] == theirs[name] for name in ours)


def test_four_devices_give_the_curve_of_one(config_of, whole, tmp_path):
    outcome, _ = trained(config_of(**EVERYTHING), tmp_path, 4)
    assert len(outcome.state.step.sharding.device_set) == 4
    assert_same_curve(tmp_path, whole[1])


# Stopping and going on.


def test_only_a_run_that_keeps_a_checkpoint_says_so_when_it_is_stopped(
    config_of, tmp_path, monkeypatch
):
    stopped = contextlib.nullcontext(lambda: True)
    monkeypatch.setattr(train, "termination", lambda: stopped)
    run, lines = train.prepare(config_of(), jax.devices()[:1]), []
    assert not train.train(run, tmp_path, say=lines.append, record=False).finished
    assert re.fullmatch(r"stopped by SIGTERM at step \d+", lines[-1])
    assert not train.train(run, tmp_path, say=lines.append).finished
    assert "the same command goes on from there" in lines[-1]


class Died(BaseException):
    """In the place of SIGKILL: nothing may catch it."""


@contextlib.contextmanager
def dying(owner, name, number, after):
    """The process dies at the number-th call of owner.name, before it or right after it."""
    real, count = getattr(owner, name), 0

    def call(*args, **kwargs):
        nonlocal count
        count += 1
        if count == number and not after:
            raise Died
        result = real(*args, **kwargs)
        if count == number:
            if name == "save":
                checkpoints.wait(args[0])
            raise Died
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield


DEATHS = {
    "before the first step": (recording.Recorder, "write", 1, True),
    "before the first checkpoint": (checkpoints, "save", 1, False),
    "right after a checkpoint": (checkpoints, "save", 2, True),
    "before a row": (recording.Recorder, "write", 2, False),
    "right after a row": (recording.Recorder, "write", 2, True),
    "right after the last checkpoint": (checkpoints, "save", 4, True),
}


def test_death_at_any_point_changes_nothing(config_of, whole, tmp_path):
    """One run dies at one point after the other, and ends with the bits of one that lived."""
    config = config_of(**EVERYTHING, **SAVING_ALWAYS)
    reached = []
    for death in DEATHS.values():
        with dying(*death), pytest.raises(Died):
            trained(config, tmp_path)
        reached.append(int(table(tmp_path)[-1]["step"]))
    assert reached[-1] == 24
    outcome, lines = trained(config, tmp_path)
    assert outcome.finished and lines == ["resuming from step 24 of 24"]
    assert leaves(outcome.state) == leaves(whole[0].state)
    assert table(tmp_path) == table(whole[1])


@pytest.fixture
def survivor():
    """SIGTERM must not end the tests if the loop does not take it."""
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    yield received
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def terminated_at(step):
    real = recording.Recorder.write

    def write(self, row):
        real(self, row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording.Recorder, "write", write)
        yield


def test_sigterm_saves_at_the_next_chunk(config_of, whole, survivor, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    config = config_of(**EVERYTHING)
    with terminated_at(9):
        stopped, lines = trained(config, tmp_path)
    assert not stopped.finished and survivor == []
    assert int(stopped.state.step) == 12
    assert len(lines) == 1 and "SIGTERM at step 12" in lines[0]
    assert signal.getsignal(signal.SIGTERM) is handler
    state, seconds = train.restore(train.prepare(config, jax.devices()[:1]), tmp_path)
    assert leaves(state) == leaves(stopped.state)
    assert seconds == pytest.approx(stopped.seconds, rel=0.5) and seconds > 0

    outcome, lines = trained(config, tmp_path)
    assert lines == ["resuming from step 12 of 24"]
    assert outcome.finished and outcome.seconds > stopped.seconds
    assert leaves(outcome.state) == leaves(whole[0].state)
    assert table(tmp_path) == table(whole[1])


def test_sigterm_in_the_last_chunk_lets_it_finish(config_of, survivor, tmp_path):
    with terminated_at(21):
        outcome, lines = trained(config_of(), tmp_path)
    assert outcome.finished and lines == [] and survivor == []


def test_goes_on_with_other_devices(config_of, whole, survivor, tmp_path):
    with terminated_at(9):
        trained(config_of(**EVERYTHING), tmp_path, 4)
    outcome, lines = trained(config_of(**EVERYTHING), tmp_path, 1)
    assert lines == ["resuming from step 12 of 24"]
    assert len(outcome.state.step.sharding.device_set) == 1
    assert_same_curve(tmp_path, whole[1])


def test_a_finished_run_is_left_alone(config_of, whole):
    outcome, workdir = whole
    before = contents(workdir)
    again, lines = trained(config_of(**EVERYTHING), workdir)
    assert again.finished and lines == ["resuming from step 24 of 24"]
    assert leaves(again.state) == leaves(outcome.state)
    assert again.seconds == pytest.approx(outcome.seconds, rel=0.5)
    assert contents(workdir) == before


def test_outside_of_the_main_thread(config_of, tmp_path):
    """Where Python allows no signal handlers."""
    ends = []
    thread = threading.Thread(target=lambda: ends.append(trained(config_of(), tmp_path)[0]))
    thread.start()
    thread.join()
    assert ends[0].finished


def test_restoring_what_is_not_there(config_of, tmp_path):
    run = train.prepare(config_of(), jax.devices()[:1])
    with pytest.raises(checkpoints.CheckpointError, match="no checkpoint") as caught:
        train.restore(run, tmp_path / "nothing")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Losses that are not finite.

# 1e30 times the learning rate after two epochs, 12 steps; the steps before are sound.
ABSURD = "step(factor=1e30, epochs=2)"
EXPLOSIONS = {
    "autoencoder": {"optimizers.autoencoder.schedule": ABSURD},
    "classifier": {
        "phases": ("classification",),
        "style.divergence": "",
        "model.labels": CLASSES,
        "optimizers.classifier.schedule": ABSURD,
    },
}


@pytest.mark.parametrize("optimizer", EXPLOSIONS)
def test_names_the_first_loss_that_is_not_finite(config_of, tmp_path, optimizer):
    config = config_of(**EXPLOSIONS[optimizer], **SAVING_ALWAYS, **{"train.labelled_batch_size": 8})
    run = train.prepare(config, jax.devices()[:1])
    bad = lambda metrics: not all(map(np.isfinite, metrics.values()))  # noqa: E731
    _, metrics = by_hand(run, 24, stop=bad)
    assert bad(metrics[-1]) and 12 < len(metrics) < 20
    names = {name for name, value in metrics[-1].items() if not np.isfinite(value)}
    with pytest.raises(train.TrainingError) as caught:
        trained(config, tmp_path)
    match = re.fullmatch(
        r"step (\d+): (\S+) of the (\w+) phase is not finite; the last good checkpoint is step "
        r"(\d+) in (\S+); [^\n]+",
        str(caught.value),
    )
    assert match, caught.value
    step, name, phase, good, folder = match.groups()
    assert int(step) == len(metrics) and name in names
    phases = {"reconstruction": "reconstruction", "classification": "classification"}
    phases |= {"labelled_error_percent": "classification"}
    assert phase == phases.get(name, "regularization")
    assert folder == str(tmp_path / "checkpoints")
    # Every step before was good, so the last whole chunk of them was saved (chunks of 3).
    assert int(good) == (len(metrics) - 1) // 3 * 3
    state, _ = train.restore(run, tmp_path)
    assert int(state.step) == int(good)
    for leaf in jax.tree.leaves((state.params, state.opt_states)):
        assert np.isfinite(leaf).all()
    # Again: the same end, and the good checkpoint is as it was.
    before = contents(tmp_path / "checkpoints" / good)
    with pytest.raises(train.TrainingError) as again:
        trained(config, tmp_path)
    assert str(again.value) == str(caught.value)
    assert contents(tmp_path / "checkpoints" / good) == before


def test_parameters_that_are_not_finite_are_not_saved(config_of, tmp_path):
    """The loss of a step is that before its update; the last update shows in no loss."""
    config = config_of(
        **{
            "phases": ("reconstruction",),
            "style.divergence": "",
            "optimizers.autoencoder.name": "sgd",
            "optimizers.autoencoder.learning_rate": 3e38,
            "decoder.output": "linear",
            "decoder.init": "normal(10.0)",
            "train.chunk_steps": 1,
            "train.epochs": 0.16,  # one step
        }
    )
    with pytest.raises(train.TrainingError, match=r"^step 1: .* no checkpoint was written yet"):
        trained(config, tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == []


# Streaming.


@pytest.fixture(scope="module")
def streamed(data_file, write_tfds, tmp_path_factory):
    """Fields for the data of `data_file` as a TFDS set: (in memory, streamed)."""
    folder = tmp_path_factory.mktemp("tfds")
    with np.load(data_file) as file:
        parts = {
            part: (file[f"x_{part}"][..., np.newaxis], file[f"y_{part}"])
            for part in ("train", "test")
        }
    fields = {"data.source": write_tfds(folder, "aae_small", parts), "data.data_dir": str(folder)}
    return fields, fields | {"data.streaming": True}


@pytest.mark.parametrize("mode", parallel.MODES)
def test_a_streamed_run_ends_with_the_bits_of_one_in_memory(config_of, streamed, tmp_path, mode):
    memory, stream = (
        trained(config_of(**EVERYTHING | fields | {"train.parallel": mode}), tmp_path / name)
        for name, fields in zip(("memory", "stream"), streamed, strict=True)
    )
    assert leaves(stream[0].state) == leaves(memory[0].state)
    assert table(tmp_path / "stream") == table(tmp_path / "memory")


def test_a_streamed_run_on_four_devices_has_the_curve_of_one(config_of, streamed, tmp_path):
    for name, devices in (("one", 1), ("four", 4)):
        trained(config_of(**EVERYTHING | streamed[1]), tmp_path / name, devices)
    assert_same_curve(tmp_path / "four", tmp_path / "one")


def test_a_streamed_run_goes_on_in_the_middle(config_of, streamed, tmp_path):
    config = config_of(**EVERYTHING | SAVING_ALWAYS | streamed[1])
    with dying(checkpoints, "save", 3, after=True), pytest.raises(Died):
        trained(config, tmp_path / "halves")
    outcome, lines = trained(config, tmp_path / "halves")
    assert lines == ["resuming from step 9 of 24"]
    whole, _ = trained(config_of(**EVERYTHING | streamed[1]), tmp_path / "whole")
    assert leaves(outcome.state) == leaves(whole.state)


def test_a_streamed_image_that_cannot_be_read_ends_the_run_in_one_line(
    config_of, streamed, tmp_path, monkeypatch
):
    run = train.prepare(config_of(**streamed[1]), jax.devices()[:1])

    def decode(self, record):
        raise OSError("image file is truncated")

    monkeypatch.setattr(sources.TfdsImages, "_decoded", decode)
    with pytest.raises(DataError) as caught:
        train.train(run, tmp_path, say=lambda line: None)
    line = str(caught.value)
    assert re.search(r"aae_small/1.0.0: split train, example \d+: ", line), line
    assert "prepare the data set again" in line and "\n" not in line


def test_streaming_that_is_refused(config_of, streamed, monkeypatch):
    config = config_of(**streamed[1], **{"train.parallel": "shard_map"})
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"train.parallel is shard_map; allowed .*: pmap") as got:
        train.prepare(config, jax.devices()[:1])
    assert "\n" not in str(got.value)


# Starting from another run.

# Weights move by less than their last bit.
AT_REST = {
    f"optimizers.{name}.{field}": value
    for name in ("autoencoder", "discriminator", "generator", "classifier")
    for field, value in {"name": "sgd", "learning_rate": 1e-30, "momentum": 0.0}.items()
}


def test_starts_from_the_weights_of_another_run(config_of, tmp_path):
    source, _ = trained(config_of(), tmp_path / "source")
    before = contents(tmp_path / "source")
    fields = {"init_from": str(tmp_path / "source"), "train.averaging": 0.5, "seed": 5}
    outcome, lines = trained(config_of(**AT_REST, **fields), tmp_path / "run")
    assert lines == [f"starting from the weights of {tmp_path / 'source'}, step 24"]
    assert int(outcome.state.step) == 24
    assert leaves(outcome.state.params) == leaves(source.state.params)
    for name, averaged in outcome.state.averaged_params.items():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            averaged,
            source.state.params[name],
        )
    # Scores at the start are those of the end there: validation asks the same of both.
    start, end = table(tmp_path / "run")[0], table(tmp_path / "source")[-1]
    scores = [name for name in end if name.startswith("valid/")]
    assert len(scores) == 3
    for name in scores:
        assert float(start[name]) == pytest.approx(float(end[name]), rel=1e-5)
    assert contents(tmp_path / "source") == before


def test_weights_that_do_not_fit_or_are_not_there(config_of, whole, tmp_path):
    other = {"init_from": str(whole[1]), "encoder.widths": (7,)}
    missing = {"init_from": str(tmp_path / "nowhere")}
    for change, words in ((other, "is of another model: "), (missing, "no checkpoint")):
        with pytest.raises(checkpoints.CheckpointError) as caught:
            trained(config_of(**EVERYTHING | change), tmp_path / "run")
        assert words in str(caught.value) and change["init_from"] in str(caught.value)
        assert str(caught.value).startswith("init_from: ")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


def test_some_parts_start_from_another_run(config_of, tmp_path):
    """A style of another size: the trunk and the label head are taken, the rest begins anew."""
    labels = EVERYTHING | {"encoder.head_batch_norm": True, "train.averaging": 0.0}
    source, _ = trained(config_of(**labels), tmp_path / "source-5")
    fields = {
        "init_from": str(tmp_path / "source-{seed}"),
        "init_parts": ("encoder/trunk", "encoder/label"),
        **{"model.style_dim": 3, "style.prior": "gaussian(3)", "seed": 5, "train.averaging": 0.5},
    }
    outcome, lines = trained(config_of(**labels | AT_REST | fields), tmp_path / "run")
    assert lines == [
        f"starting from the encoder/trunk, encoder/label of {tmp_path / 'source-5'}, step 24"
    ]
    there, here = source.state, outcome.state
    for part in ("trunk", "label"):
        assert leaves(here.params["encoder"][part]) == leaves(there.params["encoder"][part])
    assert here.params["encoder"]["style"]["kernel"].shape[1] == 3
    # With their running statistics: labels are those of the source.
    start, end = table(tmp_path / "run")[0], table(tmp_path / "source-5")[-1]
    assert start["valid/error_percent"] == end["valid/error_percent"]
    averaged = here.averaged_params["encoder"]["label"]
    taken = there.params["encoder"]["label"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), averaged, taken)


@pytest.mark.parametrize("part", ["encoder/leg", "legs", "encoder/trunk/dense_0/kernel/x"])
def test_parts_that_the_model_lacks(config_of, whole, tmp_path, part):
    fields = {"init_from": str(whole[1]), "init_parts": (part,)}
    with pytest.raises(ConfigError, match=f"init_parts has '{part}'; this model has encoder/label"):
        trained(config_of(**EVERYTHING | fields), tmp_path / "run")


# What cannot be trained is said before anything is.


@pytest.mark.parametrize(
    ("fields", "devices", "words"),
    [
        ({"train.batch_size": 10}, 4, r"train.batch_size is 10; allowed: multiples of 4"),
        (
            EVERYTHING | {"train.labelled_batch_size": 6},
            4,
            r"train.labelled_batch_size is 6; allowed: multiples of 4",
        ),
        (
            {"model.labels": 3, "model.layout": "style_and_given_label", "data.labels": 12},
            1,
            "needs every label",
        ),
        ({"train.batch_size": 0}, 1, "train.batch_size is 0"),
    ],
)
def test_what_is_refused(config_of, fields, devices, words):
    with pytest.raises(ConfigError, match=words) as caught:
        train.prepare(config_of(**fields), jax.devices()[:devices])
    assert "\n" not in str(caught.value)


def test_data_that_are_refused(config_of, tmp_path):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(60, 5)).astype(np.float32)
    np.savez(tmp_path / "table.npz", x_train=table, x_test=table)
    source = {"data.source": f"npz:{tmp_path / 'table.npz'}"}
    with pytest.raises(ConfigError, match=r"decoder.output is sigmoid, for values in 0..1"):
        train.prepare(config_of(**source))
    with pytest.raises(ConfigError, match="the phase classification needs labels"):
        train.prepare(
            config_of(**EVERYTHING | source | {"decoder.output": "linear", "data.labels": -1})
        )


def test_hidden_labels_stay_hidden(config_of):
    run = train.prepare(config_of(**EVERYTHING), jax.devices()[:1])
    assert (run.splits.train.label >= 0).sum() == 12 == len(run.splits.labelled)
    assert (run.train_labels >= 0).all() and len(run.train_labels) == TRAIN
    seen = run.splits.labelled
    assert (run.splits.train.label[seen] == run.train_labels[seen]).all()
