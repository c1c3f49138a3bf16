"""Runs made by hand: a folder with scores is finished, and its figures are bytes."""

import numpy as np
import pytest

from aae_jax import gallery, program
from aae_jax.figures import CodePanel
from aae_jax.workdir import run_name

ROLL = "mnist_label_informed.py:swiss_roll"


def finish(folder, **drawn):
    (folder / "figures").mkdir(parents=True)
    (folder / "scores.json").write_text("[]")
    for name, content in drawn.items():
        (folder / "figures" / f"{name}.png").write_bytes(content)
    return folder


def test_figures_of_finished_runs_are_written_and_the_others_named(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    finish(runs / run_name(ROLL) / "seed-10", codes=b"ten", walk=b"ten")
    finish(runs / run_name(ROLL) / "seed-2", codes=b"codes", walk=b"walk")
    finish(runs / run_name(ROLL) / "seed-1-of-mine", codes=b"mine", walk=b"mine")
    unfinished = runs / run_name("mnist_supervised.py") / "figures"
    unfinished.mkdir(parents=True)
    (unfinished / "styles_and_labels.png").write_bytes(b"half")
    finish(runs / run_name("mnist_likelihood.py:aae"), samples=b"samples")
    out.mkdir()
    (out / "mine.png").write_bytes(b"mine")

    assert gallery.gather(runs, out) == 0
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    assert found == {
        "fig4c_swiss_roll_codes.png": b"codes",
        "fig4d_swiss_roll_images.png": b"walk",
        "fig5a_mnist_samples.png": b"samples",
        "mine.png": b"mine",
    }
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(gallery.PLATES)
    (missing,) = [line for line in lines if line.startswith("fig7a_mnist_styles")]
    assert missing.endswith("python -m aae_jax.main --config configs/mnist_supervised.py")


def test_the_four_panels_need_all_four_runs(tmp_path, monkeypatch, capsys):
    asked = []

    def panels(folders):
        asked.append([folder.name for folder in folders])
        rng = np.random.default_rng(0)
        return [
            CodePanel("panel", rng.normal(size=(9, 2)), np.arange(9), rng.normal(size=(9, 2)))
            for _ in folders
        ]

    monkeypatch.setattr(program, "code_panels", panels)
    runs, out = tmp_path / "runs", tmp_path / "out"
    for config in gallery.CODES[:3]:
        finish(runs / run_name(config), manifold=b"")
    assert gallery.gather(runs, out) == 0
    assert not asked and f"configs/{gallery.CODES[3]}" in capsys.readouterr().out
    finish(runs / run_name(gallery.CODES[3]))
    assert gallery.gather(runs, out) == 0
    assert asked == [[run_name(config) for config in gallery.CODES]]
    assert (out / "fig2_codes.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("there", [False, True])
def test_what_cannot_be_read_is_one_line(tmp_path, capsys, there):
    runs = tmp_path / "runs"
    if there:  # finished, but its figure is gone
        finish(runs / run_name(ROLL))
    assert gallery.gather(runs, tmp_path / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert ("codes.png" if there else "no folder of runs") in line
