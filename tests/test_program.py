"""What the command line does around training."""

import os
import signal

import jax
import numpy as np
import pytest

import aae_jax
from aae_jax import program
from aae_jax.config import ConfigError, base
from aae_jax.report import Score
from aae_jax.train import TrainingError
from aae_jax.workdir import WorkdirError


def test_a_sigterm_before_training_is_said_and_loses_nothing(tmp_path, monkeypatch, capsys) -> None:
    prepare = program.prepare

    def prepare_and_be_stopped(config):
        os.kill(os.getpid(), signal.SIGTERM)
        return prepare(config)

    monkeypatch.setattr(program, "prepare", prepare_and_be_stopped)
    before = signal.getsignal(signal.SIGTERM)
    assert program.train(base(), tmp_path / "run", "command") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("stopped by SIGTERM before training")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_bad_config_leaves_no_folder_behind(tmp_path, capsys) -> None:
    config = base()
    config.train.batch_size = -1
    assert program.train(config, tmp_path / "run", "command") == 1
    assert "train.batch_size is -1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.28 TiB for an array"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nMore"),
    ],
)
def test_too_little_memory_is_said_in_one_line(capsys, error) -> None:
    def grow():
        raise error

    assert program.explained(grow) == 1
    line = capsys.readouterr().err
    assert str(error).split("\n")[0] in line and "train.batch_size" in line
    assert line.count("\n") == 1


def short():
    config = base()
    for network in ("encoder", "decoder", "discriminator"):
        config[network].widths = (8,)
    config.train.epochs = 1.0
    config.train.chunk_steps = 12
    return config


def test_fit_trains_reports_and_returns_the_model(tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    model = aae_jax.fit(short(), str(folder))
    assert model.step == 12, "1,200 images in batches of 100"
    assert model.config == short()
    assert (folder / "report.html").exists()
    assert (folder / "command.txt").read_text() == f"aae_jax.fit(config, {str(folder)!r})\n"
    assert "step 12/12" in capsys.readouterr().out

    metrics = (folder / "metrics.csv").read_bytes()
    again = aae_jax.fit(short(), folder)
    assert (folder / "metrics.csv").read_bytes() == metrics, "a finished run is not trained anew"
    key = jax.random.key(0)
    np.testing.assert_array_equal(again.sample(key, 3), model.sample(key, 3))

    other = short()
    other.seed = 1
    with pytest.raises(WorkdirError, match="seed"):
        aae_jax.fit(other, folder)


def test_fit_raises_what_the_command_line_prints(tmp_path, monkeypatch) -> None:
    config = short()
    config.train.batch_size = -1
    with pytest.raises(ConfigError, match=r"train\.batch_size is -1"):
        aae_jax.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()

    prepare = program.prepare

    def prepare_and_be_stopped(config):
        os.kill(os.getpid(), signal.SIGTERM)
        return prepare(config)

    monkeypatch.setattr(program, "prepare", prepare_and_be_stopped)
    with pytest.raises(TrainingError, match="stopped by SIGTERM"):
        aae_jax.fit(short(), tmp_path / "run")


@pytest.mark.parametrize(
    ("source", "stand_in_for", "printed"),
    [
        ("idx:/somewhere/MNIST/raw", "", "1.90"),
        ("tfds:mnist", "", "1.90"),
        ("npz:mine.npz", "", None),
        ("folder:notmnist", "", None),
        ("tfds:fashion_mnist", "", None),
        ("npz:mine.npz", "MNIST", "1.90"),
    ],
)
def test_the_papers_figures_stand_beside_scores_on_the_papers_data(source, stand_in_for, printed):
    config = base()
    with config.unlocked():
        config.data.update({"source": source, "stand_in_for": stand_in_for, "paper": "mnist"})
        config.paper = {"classification error": "1.90"}
    score = Score("classification error", 7.0, "%", "lower", None, note="of all")
    shown = program._beside_paper(score, config)
    assert shown.paper == printed
    assert shown.note == ("of all; npz stands in for MNIST" if stand_in_for else "of all")
