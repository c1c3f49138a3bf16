import json
import os
import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest

from aae_jax.config import ADDED, base, validate
from aae_jax.workdir import WorkdirError, claim, locked, read_config, write_text


def refusal(action, *args):
    with pytest.raises(WorkdirError) as caught:
        action(*args)
    return str(caught.value)


def changed(**fields):
    config = base()
    for name, value in fields.items():
        setattr(config, name, value)
    return config


# The lock

HOLD = """
import sys
from pathlib import Path
from aae_jax.workdir import WorkdirError, locked
try:
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except WorkdirError as error:
    print(error)
"""


def holder(folder):
    """Another process that locks the folder until its input ends; and what it says."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().strip()


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path):
    folder = tmp_path / "runs" / "deep"
    process, said = holder(folder)
    try:
        assert said == "held" and folder.is_dir()
        line = refusal(locked(folder).__enter__)
        assert str(folder) in line and "another process" in line and "\n" not in line
        with locked(tmp_path / "runs" / "other"):
            pass
    finally:
        process.communicate("")
    with locked(folder):
        assert holder(folder)[1].startswith("another process is using workdir")


def test_a_killed_process_holds_nothing(tmp_path):
    process, said = holder(tmp_path)
    assert said == "held"
    process.kill()
    process.wait()
    assert (tmp_path / ".lock").exists(), "a file that stays does not lock"
    with locked(tmp_path):
        pass


def test_a_folder_is_free_again_after_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        pass


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        line = refusal(locked(place).__enter__)
        assert str(place) in line and "--workdir" in line and "\n" not in line
    assert (tmp_path / "file").read_text() == "x"


# Whose folder it is


def test_a_new_folder_gets_the_whole_config(tmp_path):
    with locked(tmp_path):
        claim(tmp_path, changed(seed=3))
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 3
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json"]


def test_a_config_survives_its_folder_tuples_and_all(tmp_path):
    config = base()
    config.encoder.widths = (7, 5, 3)
    config.phases = ("regularization", "reconstruction")
    config.title = 'ünïcode ± "quoted" \\ and\nlines'
    config.optimizers.generator.learning_rate = 1.1e-17
    config.train.epochs = 1e6 + 1 / 3
    config.paper = {"classification error": "1.90 ± 0.10"}
    claim(tmp_path, config)
    saved = read_config(tmp_path)
    assert saved.to_dict() == config.to_dict() and saved.is_locked
    assert isinstance(saved.encoder.widths, tuple) and isinstance(saved.phases, tuple)
    validate(saved)
    claim(tmp_path, config)
    with pytest.raises(AttributeError):
        saved.train.epoch = 3


def test_the_same_command_finds_its_folder_again_and_leaves_it_alone(tmp_path):
    claim(tmp_path, changed(seed=3))
    (tmp_path / "metrics.csv").write_text("step\n")
    before = (tmp_path / "config.json").stat()
    claim(tmp_path, changed(seed=3))
    after = (tmp_path / "config.json").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_another_config_is_refused_and_each_difference_shown(tmp_path):
    claim(tmp_path, base())
    other = changed(seed=7)
    other.encoder.widths = (3,)
    other.optimizers.generator.learning_rate = 0.5
    text = refusal(claim, tmp_path, other)
    first, *lines = text.splitlines()
    assert str(tmp_path) in first and "another config" in first and "--workdir" in first
    assert [line.strip() for line in lines] == [
        "encoder.widths: [1000, 1000] -> [3]",
        "optimizers.generator.learning_rate: 0.1 -> 0.5",
        "seed: 0 -> 7",
    ]
    assert read_config(tmp_path) == base(), "the folder's own config stays"


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    for name in ("thesis.tex", "a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    with locked(tmp_path):
        line = refusal(claim, tmp_path, base())
    assert str(tmp_path) in line and "a.txt" in line and "--workdir" in line and "\n" not in line
    assert not (tmp_path / "config.json").exists()
    assert (tmp_path / "thesis.tex").read_text() == "thesis.tex"


def test_a_hidden_file_of_somebody_else_counts_too(tmp_path):
    (tmp_path / ".git").mkdir()
    assert ".git" in refusal(claim, tmp_path, base())


def test_a_draft_of_a_killed_process_does_not_spoil_a_folder(tmp_path):
    (tmp_path / ".config.json.0a1b2c3d").write_text('{"see')
    with locked(tmp_path):
        claim(tmp_path, base())
    assert read_config(tmp_path) == base()


def test_drafts_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    claim(tmp_path, base())
    (tmp_path / "figures").mkdir()
    for draft in (".scores.json.0a1b2c3d", "figures/.codes.png.ffffffff"):
        (tmp_path / draft).write_text("{")
    for other in (".hidden", ".notes.2026", "figures/codes.png"):
        (tmp_path / other).write_text("mine")
    claim(tmp_path, base())
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"config.json", ".hidden", ".notes.2026", "figures/codes.png"}


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    some = {"data.streaming", "train.augmentation", "train.smoothness_augmentation"}
    assert {*some, "train.compute_dtype"} <= set(ADDED)
    saved = json.loads(base().to_json())
    for field in ADDED:
        *groups, name = field.split(".")
        del reduce(getitem, groups, saved)[name]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert read_config(tmp_path) == base()
    claim(tmp_path, base())
    other = base()
    other.encoder.channels = 8
    assert "encoder.channels: 0 -> 8" in refusal(claim, tmp_path, other)
    # What no version was without is not made up.
    del saved["seed"], saved["decoder"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert not {"seed", "decoder"} & set(read_config(tmp_path))


# Damaged and missing configs


def test_a_folder_without_a_run_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        line = refusal(read_config, folder)
        assert str(folder) in line and "holds no run" in line and "\n" not in line


@pytest.mark.parametrize("text", ["", "{", '{"seed": ', "[1, 2]", "3", "null", '"text"', "\x00"])
def test_a_damaged_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    for action in (read_config, lambda folder: claim(folder, base())):
        line = refusal(action, tmp_path)
        assert str(tmp_path / "config.json") in line and "\n" not in line


def test_a_config_that_is_no_text_is_named(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(read_config, tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert "cannot be read" in refusal(read_config, tmp_path)


# Writing


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_text(path, "old")

    def full(*args):
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            line = refusal(write_text, path, "new")
        assert str(path) in line and "No space left on device" in line and "\n" not in line
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["scores.json"], "no draft is left behind"
    write_text(path, "ne\u00fc ±\n")
    assert path.read_bytes() == "ne\u00fc ±\n".encode()


def test_a_reader_never_sees_a_part(tmp_path, monkeypatch):
    path, seen = tmp_path / "scores.json", []
    write_text(path, "old" * 1000)
    replace = os.replace

    def look(source, target):
        seen.append((path.read_text(), Path(source).read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    write_text(path, "new" * 1000)
    assert seen == [("old" * 1000, "new" * 1000)]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    line = refusal(write_text, tmp_path / "file" / "scores.json", "text")
    assert "scores.json" in line and "\n" not in line
