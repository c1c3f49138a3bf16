"""The command line from beginning to end, and what it does with a folder that has a run."""

import csv
import json
import math
import re

import numpy as np
import pytest

from aae_jax.data import sources

OURS = (
    r"Adversarial autoencoder on .*",
    r"E1 on digits: .*",
    r"parameters: .*",
    r"workdir: .*",
    r"step \d+/\d+  epoch .*",
    r"reading the test images, drawing the report",
    r"score +split .*",
    r"[- ]+",
    r".+  test  .*",
    r"\d+ s in all; open .*report\.html",
)


def test_prints_its_own_lines_only(reference) -> None:
    assert reference.ended.err == ""
    lines = reference.ended.out.splitlines()
    strange = [line for line in lines if not any(re.fullmatch(each, line) for each in OURS)]
    assert strange == []
    assert f"workdir: {reference.workdir}" in lines


def test_leaves_everything_that_a_person_looks_for(system, reference) -> None:
    folder, out = reference.workdir, reference.ended.out
    scores = json.loads((folder / "scores.json").read_text())
    assert len(scores) >= 5
    page = (folder / "report.html").read_text()
    table = out[out.index("\nscore ") :]
    for score in scores:
        assert math.isfinite(score["value"])
        assert score["name"] in table
        assert score["name"] in page.replace("&#x27;", "'")
    figures = sorted((folder / "figures").iterdir())
    assert {"curves.png", "reconstructions.png", "samples.png"} <= {path.name for path in figures}
    for path in figures:
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert page.count("data:image/png;base64,") == len(figures)
    command = (folder / "command.txt").read_text().strip()
    assert command.startswith("python -m aae_jax.main --config=configs/digits.py ")
    assert command.replace("'", "&#x27;") in page
    assert "1 x cpu" in page  # what the bits of these tests rest on
    assert json.loads((folder / "config.json").read_text())["encoder"]["widths"] == [32, 32]
    assert "encoder/trunk/dense_0/kernel" in (folder / "parameters.txt").read_text()
    # keep=3, of a run that saves every few steps
    assert len(system.steps_saved(folder)) == 3
    assert system.steps_saved(folder)[-1] == system.num_steps


def test_the_reported_error_is_the_model_s(system, reference) -> None:
    """The score of the report, computed again in NumPy from the last checkpoint."""
    state = system.state(reference.workdir)

    def array(name: str) -> np.ndarray:
        kind, content = state[f"params/{name}"]
        shape = [int(number) for number in re.findall(r"(\d+)[,)]", kind)]
        return np.frombuffer(content, np.float32).reshape(shape).astype(float)

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ array(f"{name}/kernel") + array(f"{name}/bias")

    def hidden(x: np.ndarray, name: str) -> np.ndarray:
        return np.maximum(dense(np.maximum(dense(x, f"{name}/dense_0"), 0), f"{name}/dense_1"), 0)

    pixels = sources.load("digits").test.image.reshape(297, 64) / 255
    code = dense(hidden(pixels, "encoder/trunk"), "encoder/style")
    output = 1 / (1 + np.exp(-dense(hidden(code, "decoder/hidden"), "decoder/output")))
    error = 0.5 * np.square(output - pixels).sum(axis=1).mean()
    scores = json.loads((reference.workdir / "scores.json").read_text())
    reported = {score["name"]: score["value"] for score in scores}["reconstruction error"]
    assert reported == pytest.approx(error, rel=1e-4)


def test_metrics_and_events_agree(system, reference) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open(reference.workdir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert steps == list(range(0, system.num_steps + 1, system.chunk_steps))
    events = EventAccumulator(str(reference.workdir / "events"), size_guidance={"tensors": 0})
    events.Reload()
    names = set(rows[0]) - {"step"}
    assert names <= set(events.Tags()["tensors"])
    for name in names:
        written = {row["step"]: float(row[name]) for row in rows if row[name]}
        seen = {
            str(event.step): float(np.frombuffer(event.tensor_proto.tensor_content, "<f4")[0])
            if event.tensor_proto.tensor_content
            else event.tensor_proto.float_val[0]
            for event in events.Tensors(name)
        }
        assert seen.keys() == written.keys(), name
        assert all(seen[step] == np.float32(written[step]) for step in seen), name
    validated = [int(row["step"]) for row in rows if row["valid/reconstruction"]]
    assert validated == list(range(0, system.num_steps + 1, 5 * system.steps_per_epoch))
    losses = [float(row["reconstruction"]) for row in rows[1:]]
    assert losses[-1] < 0.5 * losses[0]  # it did learn


def test_a_finished_run_again(system, reference, tmp_path) -> None:
    """Trained again, scored again, drawn again: nothing new is trained, nothing else comes out."""
    again, scored, drawn = (
        system.copy(reference.workdir, tmp_path / name) for name in ("again", "scored", "drawn")
    )
    for folder in (again, scored, drawn):
        for path in [
            folder / "scores.json",
            folder / "report.html",
            *(folder / "figures").iterdir(),
        ]:
            path.unlink()
    processes = [
        system.train(again),
        system.start("--mode=eval", workdir=scored),
        system.start("--mode=figures", workdir=drawn),
    ]
    ended = [process.wait() for process in processes]
    for each in ended:
        assert each.status == 0 and each.err == "", each
        assert "\nstep " not in each.out
    whole = system.contents(reference.workdir)
    for folder in (again, scored, drawn):
        after = system.contents(folder)
        for name, content in whole.items():
            if name.startswith(("checkpoints/", "events/")) or name == "metrics.csv":
                assert after[name] == content, (folder.name, name)
        assert {n for n in after if n.startswith(("checkpoints/", "events/"))} <= whole.keys()
        assert len(after["report.html"]) > 0.9 * len(whole["report.html"])
    for folder in (again, scored):
        assert (folder / "scores.json").read_bytes() == whole["scores.json"], folder.name
    for folder in (again, drawn):
        figures = {n: c for n, c in system.contents(folder).items() if n.startswith("figures/")}
        assert figures == {n: c for n, c in whole.items() if n.startswith("figures/")}, folder.name
    table = reference.ended.out[reference.ended.out.index("\nscore ") :].splitlines()[1:-1]
    for each in ended[:2]:
        assert "\n".join(table) in each.out
    assert str(drawn / "figures") in ended[2].out


def test_another_config_is_refused(system, reference, tmp_path) -> None:
    run = system.copy(reference.workdir, tmp_path / "run")
    before = system.contents(run)
    other = ["--config.seed=3", "--config.encoder.activation=tanh"]
    ended = system.train(run, *other).wait()
    assert ended.status == 1 and "Traceback" not in ended.err
    first, *differences = ended.err.splitlines()
    assert first.startswith("aae_jax: ") and str(run) in first and "another config" in first
    assert [line.strip() for line in differences] == [
        "encoder.activation: 'relu' -> 'tanh'",
        "seed: 0 -> 3",
    ]
    assert system.contents(run) == before
