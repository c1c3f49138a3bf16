"""The command line as a person uses it; a process of its own only where that is the point."""

import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import logging as absl_logging

from aae_jax import program, workdir
from aae_jax.config import base

ROOT = Path(__file__).parents[1]


def run(*arguments, folder=ROOT):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "aae_jax.main", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=120,
    )


def one_line(outcome) -> str:
    """The only line of a refusal."""
    assert outcome.returncode not in (0, None) and outcome.stdout == "", outcome
    assert len(outcome.stderr.splitlines()) == 1, outcome.stderr
    assert outcome.stderr.startswith("aae_jax: ") and outcome.stderr.endswith("\n")
    assert "Traceback" not in outcome.stderr and 'File "' not in outcome.stderr
    return outcome.stderr.removeprefix("aae_jax: ")


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help_is_quick_and_names_every_flag(flag):
    seconds = []
    for _ in range(3):  # the disk, or other programs, may slow one of them down
        began = time.monotonic()
        outcome = run(flag)
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 2
    assert outcome.returncode == 0 and outcome.stderr == ""
    for flag in ("--config FILE[:VARIANT]", "--config.FIELD=VALUE", "--workdir", "--mode", "--out"):
        assert flag in outcome.stdout
    for mode in ("train", "eval", "figures", "export", "compare"):
        assert mode in outcome.stdout
    files = re.findall(r"--config (configs/\w+\.py)", outcome.stdout)
    assert files and all((ROOT / file).is_file() for file in files)


DIGITS = "--config=configs/digits.py"
# Arguments -> words of the one line that they end in.
REFUSED = {
    "no flags": ([], ["--config is missing", "configs/digits.py", "--help"]),
    "a word that is no flag": (["train", DIGITS], ["train", "no flag", "--help"]),
    "an unknown flag": ([DIGITS, "--bogus=1"], ["bogus"]),
    "a flag with a slip": (["--mod", "eval"], ["mod", "mode"]),
    "an unknown mode": (["--mode", "draw"], ["--mode", "draw", "train", "eval", "figures"]),
    "an unknown field": (
        [DIGITS, "--config.train.epoch=3"],
        ["train.epoch is not a field", "train.epochs", "batch_size", "chunk_steps"],
    ),
    "an unknown group": ([DIGITS, "--config.trian.epochs", "3"], ["trian", "did you mean train"]),
    "a field of a value": ([DIGITS, "--config.seed.x=3"], ["seed.x", "seed holds a value"]),
    "an unknown switch": ([DIGITS, "--noconfig.data.downlod"], ["data.downlod", "data.download"]),
    "a word for a number": ([DIGITS, "--config.seed=three"], ["config.seed", "three", "int"]),
    "a fraction for a whole": (
        [DIGITS, "--config.train.batch_size=1.5"],
        ["config.train.batch_size", "1.5", "int"],
    ),
    "a word for a fraction": (
        [DIGITS, "--config.train.epochs", "many"],
        ["config.train.epochs", "many", "float"],
    ),
    "a word for a switch": (
        [DIGITS, "--config.data.download=maybe"],
        ["config.data.download", "maybe", "oolean"],
    ),
    "a value for a group": ([DIGITS, "--config.train=3"], ["config.train", "3"]),
    "fields before the file": (["--config.seed=1", DIGITS], ["--config.seed=1", "before"]),
    "fields without a file": (["--config.seed=1"], ["config.seed"]),
    "a missing file": (["--config", "configs/nope.py"], ["no file 'configs/nope.py'", "configs/"]),
    "a missing file and a field": (
        ["--config=configs/nope.py", "--config.seed=1"],
        ["no file 'configs/nope.py'"],
    ),
    "a folder": (["--config", "configs"], ["no file 'configs'"]),
    "no file name": (["--config"], ["--config"]),
    "an unknown variant": (
        ["--config", "configs/mnist_vae.py:petals"],
        ["variant 'petals'", "gaussian", "mixture"],
    ),
    "a variant of a file without any": (
        ["--config", "configs/digits.py:large"],
        ["configs/digits.py:large", "get_config()"],
    ),
    "a review without a folder": (["--mode", "eval"], ["--mode eval", "--workdir"]),
    "figures without a folder": (["--mode=figures"], ["--mode figures", "--workdir"]),
    "a comparison without folders": (["--mode=compare"], ["--mode compare", "--workdir"]),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_a_slip_ends_in_one_line_that_says_what_and_what_is_allowed(what):
    arguments, words = REFUSED[what]
    line = one_line(run(*arguments))
    assert all(word in line for word in words), line


# Config files that fail -> words of the line.
BROKEN = {
    "raise ValueError('no such\\nthing')": ["ValueError: no such thing"],
    "return undefined_name": ["NameError", "undefined_name"],
    "return {'a': 1}": ["dict"],
    "pass": ["None"],
    "open('/nowhere/at/all')": ["/nowhere/at/all"],
    "from aae_jax.config import ConfigError; raise ConfigError('x is 3; allowed: 4')": [
        "x is 3; allowed: 4"
    ],
}


@pytest.mark.parametrize("body", list(BROKEN))
def test_a_config_file_that_fails_ends_in_one_line(tmp_path, body):
    (tmp_path / "broken.py").write_text(f"def get_config():\n    {body}\n")
    line = one_line(run("--config", "broken.py", folder=tmp_path))
    assert all(word in line for word in BROKEN[body]), line
    if "ConfigError" not in body:
        assert "broken.py" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [("def get_config(:\n", ["SyntaxError", "line 1"]), ("import nowhere9\n", ["nowhere9"])],
)
def test_a_config_file_that_is_no_program_ends_in_one_line(tmp_path, text, words):
    (tmp_path / "broken.py").write_text(text)
    line = one_line(run("--config=broken.py", folder=tmp_path))
    assert all(word in line for word in ["broken.py", *words]), line


def test_an_impossible_value_ends_in_one_line_and_leaves_nothing(tmp_path):
    arguments = [f"--config={ROOT}/configs/digits.py", "--config.train.batch_size=0"]
    line = one_line(run(*arguments, folder=tmp_path))
    assert line == "train.batch_size is 0; allowed: 1 or more\n"
    assert os.listdir(tmp_path) == []


# Prints what the command line asks of the program, in the program's place.
ASKED = """
import sys, types
program = types.ModuleType("aae_jax.program")
program.train = lambda config, folder, command, processes: print(
    config.seed, config.phases, config.data.download, folder, command, sep="; ")
program.review = lambda folder, mode: print(folder, mode)
program.compare = lambda folders, out: print(*folders, out)
program.export = lambda folder, out: print(folder, out)
sys.modules["aae_jax.program"] = program
explorer = types.ModuleType("aae_jax.explorer")
explorer.show = lambda folder, port: print(folder, port)
sys.modules["aae_jax.explorer"] = explorer
gallery = types.ModuleType("aae_jax.gallery")
gallery.gather = lambda runs, out: print(runs, out)
sys.modules["aae_jax.gallery"] = gallery
from absl import app
from aae_jax import main
app.run(main.main, flags_parser=main.parse)
"""


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (
            ["--config", "configs/digits.py", "--config.seed=7", "--workdir=a/b"],
            "7; ('reconstruction', 'regularization'); False; a/b; python -m aae_jax.main "
            "--config configs/digits.py --config.seed=7 --workdir=a/b",
        ),
        (
            ["--config=configs/mnist_vae.py:mixture", "--config.data.download"],
            "0; ('reconstruction',); True; runs/mnist_vae-mixture; python -m aae_jax.main "
            "--config=configs/mnist_vae.py:mixture --config.data.download",
        ),
        (
            ["--config=configs/digits.py", "--config.phases=('reconstruction',)"],
            "0; ('reconstruction',); False; runs/digits; python -m aae_jax.main "
            "--config=configs/digits.py '--config.phases=('\"'\"'reconstruction'\"'\"',)'",
        ),
        (["--mode=eval", "--workdir=runs/x"], "runs/x eval"),
        (["--mode", "figures", "--workdir", "runs/x"], "runs/x figures"),
        (["--mode=compare", "--workdir=a,b/c"], "a b/c runs/comparison"),
        (["--mode=compare", "--workdir=a", "--out=d"], "a d"),
        (["--mode=export", "--workdir=a/b"], "a/b runs/exported/b"),
        (["--mode=export", "--workdir=a/b", "--out=d"], "a/b d"),
        (["--mode=explore", "--workdir=runs/x", "--port=7000"], "runs/x 7000"),
        (["--mode=page", "--workdir=runs/x"], "runs/x None"),
        (["--mode=gallery"], "runs results/figures"),
        (["--mode=gallery", "--workdir=a", "--results=b"], "a b/figures"),
        (["--mode=gallery", "--workdir=a", "--out=c"], "a c"),
    ],
)
def test_flags_reach_the_program(arguments, asked):
    outcome = subprocess.run(
        [sys.executable, "-c", ASKED, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert (outcome.returncode, outcome.stdout.strip()) == (0, asked), outcome.stderr


# What follows once the flags are understood, in this process


@pytest.fixture
def quiet(monkeypatch):
    """Leaves the logging of the other tests as it is."""
    monkeypatch.setattr(program.checkpoints, "quiet_orbax", lambda: None)
    levels = absl_logging.get_verbosity(), logging.getLogger("jax").level
    yield
    absl_logging.set_verbosity(levels[0])
    logging.getLogger("jax").setLevel(levels[1])


def refused(capsys, status) -> str:
    printed = capsys.readouterr()
    assert status == 1 and printed.out == ""
    assert printed.err.startswith("aae_jax: ") and len(printed.err.splitlines()) == 1
    return printed.err


def digits(**fields):
    config = base()
    for name, value in fields.items():
        group, field = name.split("__")
        config[group][field] = value
    return config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        # The tests have four devices.
        ({"train__batch_size": 30}, ["train.batch_size is 30", "multiples of 4", "devices"]),
        ({"model__style_dim": 3}, ["style.prior", "2 dimensions", "model.style_dim is 3"]),
        ({"style__prior": "petls()"}, ["style.prior", "petls", "did you mean petals?"]),
        ({"style__divergence": "gan(2)"}, ["style.divergence", "gan(2)"]),
        ({"encoder__init": "normal(-)"}, ["encoder.init", "normal(-)"]),
        ({"data__source": "mnist"}, ["mnist", "digits", "tfds:NAME", "npz:FILE"]),
        ({"data__source": "npz:/nowhere/x.npz"}, ["/nowhere/x.npz", "no such file"]),
        ({"data__validation": 5000}, ["5000", "digits"]),
        ({"data__labels": 7000}, ["7000", "digits"]),
        (
            {"data__validation": 0, "evaluation__parzen_samples": 10},
            ["evaluation.parzen_samples is 10", "sigma", "allowed: 0", "data.validation"],
        ),
        ({"train__chunk_steps": -1}, ["train.chunk_steps is -1", "1 or more"]),
    ],
)
def test_what_training_cannot_use_is_named_before_a_folder_is_made(
    capsys, tmp_path, quiet, fields, words
):
    status = program.train(digits(**fields), tmp_path / "run", "command")
    line = refused(capsys, status)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_data_of_another_kind_are_named(capsys, tmp_path, quiet):
    x = np.linspace(-3, 3, 40 * 5, dtype=np.float32).reshape(40, 5)
    np.savez(tmp_path / "few.npz", x_train=x, x_test=x[:19])
    few = digits(data__source=f"npz:{tmp_path}/few.npz", data__validation=5)
    few.decoder.output, few.data.preprocessing = "linear", "standardize"
    line = refused(capsys, program.train(few, tmp_path / "run", "command"))
    assert all(word in line for word in ("few.npz", "19 test images", "20 or more")), line
    np.savez(tmp_path / "rows.npz", x_train=x, x_test=x)
    source = {"data__source": f"npz:{tmp_path}/rows.npz", "data__validation": 5}
    line = refused(capsys, program.train(digits(**source), tmp_path / "run", "command"))
    assert all(word in line for word in ("decoder.output is sigmoid", "-3..", "linear")), line
    classifying = digits(**source, decoder__output="linear", model__labels=3)
    classifying.phases = ("reconstruction", "regularization", "classification")
    line = refused(capsys, program.train(classifying, tmp_path / "run", "command"))
    assert "classification" in line and "labels" in line
    given = digits(**source, decoder__output="linear", model__labels=1)
    given.model.layout = "style_and_given_label"
    line = refused(capsys, program.train(given, tmp_path / "run", "command"))
    assert "style_and_given_label" in line and "label" in line


@pytest.mark.parametrize("mode", ["eval", "figures"])
def test_a_review_of_no_run_is_refused(capsys, tmp_path, quiet, mode):
    for folder in (tmp_path, tmp_path / "nowhere"):
        line = refused(capsys, program.review(folder, mode))
        assert str(folder) in line and "holds no run" in line
    assert os.listdir(tmp_path) == []


def test_a_review_of_a_run_that_has_not_begun_is_refused(capsys, tmp_path, quiet):
    workdir.claim(tmp_path, base())
    line = refused(capsys, program.review(tmp_path, "eval"))
    assert str(tmp_path) in line and "no checkpoint" in line


def test_folders_of_others_and_of_other_runs_are_refused(capsys, tmp_path, quiet):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    line = refused(capsys, program.train(base(), tmp_path / "mine", "command"))
    assert "thesis.tex" in line and "--workdir" in line
    assert sorted(os.listdir(tmp_path / "mine")) == [".lock", "thesis.tex"]
    workdir.claim(_folder(tmp_path / "run"), base())
    other = base()
    other.seed = 5
    status = program.train(other, tmp_path / "run", "command")
    printed = capsys.readouterr().err
    assert status == 1 and "another config" in printed.splitlines()[0]
    assert printed.splitlines()[1:] == ["  seed: 0 -> 5"]


def test_a_folder_in_use_is_refused(capsys, tmp_path, quiet):
    with workdir.locked(tmp_path):
        line = refused(capsys, program.train(base(), tmp_path, "command"))
    assert "another process is using" in line


def test_a_comparison_with_a_run_that_has_no_scores_is_refused(capsys, tmp_path, quiet):
    workdir.claim(tmp_path, base())
    line = refused(capsys, program.compare([tmp_path], tmp_path / "out"))
    assert str(tmp_path) in line and "scores.json" in line


def test_interruption_by_hand_says_how_to_go_on(capsys, tmp_path, quiet, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "prepare", interrupted)
    assert program.train(base(), tmp_path / "run", "command") == 130
    assert "same command" in capsys.readouterr().out


def _folder(path):
    path.mkdir()
    return path
