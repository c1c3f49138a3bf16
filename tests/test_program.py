"""What the command line does around training."""

import os
import signal

from aae_jax import program
from aae_jax.config import base


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
