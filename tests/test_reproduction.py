"""Rows of results: which seeds run, what their lines hold, and what RESULTS.md says of them."""

import csv
import errno
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from aae_jax import config, program, reproduction
from aae_jax.workdir import CONFIG, WorkdirError

ROOT = Path(__file__).parents[1]


def recipe_in(tmp_path, **changes):
    fields = config.base()
    with fields.unlocked():
        fields.update(changes)
    return reproduction.Recipe(
        fields.lock(), tmp_path / "runs", tmp_path / "results" / "digits.csv", "the command"
    )


def error_of(seed):
    return 2.0 + 0.25 * seed


@pytest.fixture
def runs(monkeypatch):
    """Runs in the place of `program.run`, at once: which (seed, folder) they were asked for."""
    asked = []

    def run(fields, folder, command):
        asked.append((fields.seed, folder))
        if fields.seed in stopped:
            return False
        folder.mkdir(parents=True)
        (folder / CONFIG).write_text(fields.to_json())
        (folder / program.COMMAND).write_text(command + "\n")
        (folder / program.FACTS).write_text(json.dumps({"seconds": 60, "epochs": 20.0}))
        (folder / program.SCORES).write_text(
            json.dumps([{"name": "classification error", "value": error_of(fields.seed)}])
        )
        (folder / "metrics.csv").write_text(
            "step,epoch,valid/error_percent,classification\n1,0.5,9.5,0.1\n2,1.0,3.5,0.2\n3,1.5,,0.3\n"
        )
        return True

    stopped = set()
    monkeypatch.setattr(program, "run", run)
    monkeypatch.setattr(program.checkpoints, "quiet_orbax", lambda: None)
    return asked, stopped


def lines(table):
    with table.open() as file:
        return list(csv.DictReader(file))


def test_each_seed_gives_a_line(tmp_path, runs, capsys):
    recipe = recipe_in(tmp_path)
    assert reproduction.reproduce(recipe, [1, 0]) == 0
    assert runs[0] == [(1, tmp_path / "runs/seed-1"), (0, tmp_path / "runs/seed-0")]
    first, second = lines(recipe.table)
    assert (first["seed"], second["seed"]) == ("0", "1")
    assert first["recipe_digest"] == second["recipe_digest"]
    assert float(second["classification error"]) == error_of(1)
    assert first["command"] == "the command" and first["seconds"] == "60"
    assert first["valid/error_percent"] == "3.5", "the last validation"
    assert "classification" not in first, "a training metric is no score"
    assert "classification error  2.12 ± 0.12 (2 seeds)" in capsys.readouterr().out


def test_a_seed_with_a_line_is_not_run_again(tmp_path, runs, capsys):
    recipe = recipe_in(tmp_path)
    reproduction.reproduce(recipe, [0])
    assert reproduction.reproduce(recipe, [0, 1]) == 0
    assert [seed for seed, _ in runs[0]] == [0, 1]
    assert "seed 0 is in" in capsys.readouterr().out


def test_a_stopped_run_gives_no_line_and_ends_the_call(tmp_path, runs):
    asked, stopped = runs
    recipe = recipe_in(tmp_path)
    stopped.add(1)
    assert reproduction.reproduce(recipe, [0, 1, 2]) == 0
    assert [seed for seed, _ in asked] == [0, 1]
    assert [line["seed"] for line in lines(recipe.table)] == ["0"]
    stopped.clear()
    reproduction.reproduce(recipe, [0, 1, 2])
    assert [line["seed"] for line in lines(recipe.table)] == ["0", "1", "2"]


def test_lines_of_another_recipe_are_refused_before_a_run(tmp_path, runs, capsys):
    reproduction.reproduce(recipe_in(tmp_path), [0])
    other = recipe_in(tmp_path, init_from="another")
    assert reproduction.reproduce(other, [1]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "holds runs of another config" in message
    assert len(runs[0]) == 1 and len(lines(other.table)) == 1


def test_where_the_data_lie_and_what_a_run_is_called_are_no_part_of_the_recipe(tmp_path):
    def of(source, **fields):
        changed = config.base().unlock()
        changed.data.source = source
        changed.update(fields)
        return reproduction.recipe_digest(changed)

    here = of("idx:data/mnist")
    assert here == of("idx:/elsewhere/mnist", title="another", experiment="E1", seed=3)
    assert here == of("idx:mnist", data={"download": True, "data_dir": "there", "paper": "x"})
    assert here == of("idx:mnist", evaluation={"parzen_samples": 1_000_000})
    assert here == of("idx:mnist", evaluation={"sample_quality": True})
    assert here == of("idx:mnist", evaluation={"every_epochs": 5.0})
    others = {of("idx:data/fashion"), of("tfds:mnist"), of("idx:mnist", data={"labels": 7})}
    assert len({here, *others}) == 4


@pytest.mark.parametrize(
    ("labels", "of_source", "told"),
    [
        (100, {"labels": 100}, True),
        (100, {"labels": 1000}, True),
        (100, {"labels": -1}, True),
        (100, {"labels": 0}, False),
        (100, {"labels": 100, "source": "idx:other"}, False),
        (-1, {"labels": 100}, False),
    ],
)
def test_a_run_of_few_labels_does_not_start_from_one_that_was_told_others(
    tmp_path, runs, capsys, labels, of_source, told
):
    for seed in (0, 1):
        source = config.base().unlock()
        source.data.update(of_source)
        source.seed = seed
        (tmp_path / f"source-{seed}").mkdir()
        (tmp_path / f"source-{seed}" / CONFIG).write_text(source.to_json())

    def start_from(name):
        start = {"init_from": str(tmp_path / name), "data": {"labels": labels}}
        return recipe_in(tmp_path / name, **start)

    assert reproduction.reproduce(start_from("source-0"), [0, 1]) == told
    message = capsys.readouterr().err
    assert [seed for seed, _ in runs[0]] == ([] if told else [0, 1]), "before the first run"
    if told:
        assert message.count("\n") == 1 and "{seed}" in message
        assert f"{'all' if of_source['labels'] < 0 else of_source['labels']} labels" in message
    same_run = of_source["labels"] == labels
    assert reproduction.reproduce(start_from("source-{seed}"), [0, 1]) == (told and not same_run)


def test_the_seed_is_all_that_a_run_changes():
    fields = config.base()
    changed = reproduction.of_seed(fields, 7)
    assert config.differences(fields.to_dict(), changed.to_dict()) == ["seed: 0 -> 7"]
    assert fields.seed == 0 and changed.is_locked


def test_lines_written_at_once_are_all_kept(tmp_path):
    table = tmp_path / "results" / "digits.csv"
    threads = [
        threading.Thread(target=reproduction.add_row, args=(table, {"seed": seed, "error": seed}))
        for seed in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line["seed"] for line in lines(table)] == [str(seed) for seed in range(20)]
    assert [path.name for path in table.parent.iterdir()] == [table.name], "nothing is left behind"


def test_a_line_that_cannot_be_written_leaves_the_one_that_it_was_to_replace(tmp_path, monkeypatch):
    table = tmp_path / "trial.csv"
    reproduction.add_row(table, {"seed": 0, "error": 1.5})

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reproduction, "write_whole", full)
    with pytest.raises(WorkdirError, match=r"cannot write .*trial\.csv: No space left"):
        reproduction.add_row(table, {"seed": 0, "error": 2.5}, replace=True)
    assert lines(table)[0]["error"] == "1.5"


def test_a_score_that_only_some_lines_have(tmp_path):
    table = tmp_path / "digits.csv"
    reproduction.add_row(table, {"seed": 0, "error": 1.5})
    reproduction.add_row(table, {"seed": 1, "error": 2.5, "new": 1})
    assert lines(table)[0]["new"] == ""
    assert reproduction.mean(reproduction.rows_of(table), "error") == "2.00 ± 0.50 (2 seeds)"
    with pytest.raises(WorkdirError, match="no number under 'new'"):
        reproduction.mean(reproduction.rows_of(table), "new")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"error\n1.5\n"])
def test_a_table_that_cannot_be_read_is_named_and_left(tmp_path, content):
    table = tmp_path / "digits.csv"
    table.write_bytes(content)
    with pytest.raises(WorkdirError, match=r"digits\.csv cannot be read"):
        reproduction.add_row(table, {"seed": 0})
    assert table.read_bytes() == content


@pytest.mark.parametrize("values", [[1.9, 2.0, 2.1], [1.0, 4.0], [340.2, 341.7, 338.0, 342.9]])
def test_mean_and_standard_error(values):
    found = reproduction.mean([{"error": str(value)} for value in values], "error")
    standard_error = np.std(values, ddof=1) / np.sqrt(len(values))
    centre, spread = (float(text) for text in found.split(" (")[0].split(" ± "))
    assert centre == pytest.approx(np.mean(values), abs=0.0051)
    assert spread == pytest.approx(standard_error, abs=0.0051)
    assert found.endswith(f"({len(values)} seeds)")


def test_one_seed_has_no_error_and_none_is_not_run():
    assert reproduction.mean([{"error": "1.9"}], "error") == "1.90 (1 seed)"
    assert reproduction.mean([], "error") == "not run"


def test_marks_are_filled_in_from_their_tables(tmp_path):
    for seed in (0, 1):
        reproduction.add_row(tmp_path / "a-100.csv", {"seed": seed, "codes: MMD": 3.0 + seed})
    text = (
        "| E1 | 2.0 | <!-- a-100: codes: MMD --> 99 (1 seed) | x |\n"
        "| E2 | <!-- b: error --> | y |\n"
        "| <!-- a-100: codes: MMD --> 99 <!-- and --> and <!-- a-100: codes: MMD --> 1 % | 2 |\n"
        "no table: <!-- a-100: codes: MMD -->\n<!-- a remark --> stays"
    )
    filled = reproduction.fill_in(text, tmp_path)
    assert filled.splitlines()[0] == (
        "| E1 | 2.0 | <!-- a-100: codes: MMD --> 3.50 ± 0.50 (2 seeds) | x |"
    )
    assert filled.splitlines()[1] == "| E2 | <!-- b: error --> not run | y |"
    assert filled.splitlines()[2] == (
        "| <!-- a-100: codes: MMD --> 3.50 ± 0.50 (2 seeds) <!-- and --> and "
        "<!-- a-100: codes: MMD --> 3.50 ± 0.50 (2 seeds) | 2 |"
    )
    assert filled.endswith("<!-- a remark --> stays")
    assert reproduction.fill_in(filled, tmp_path) == filled


@pytest.mark.parametrize("name", ["RESULTS.md", "README.md"])
def test_documents_are_filled_in_as_runs_end(tmp_path, runs, name):
    document = tmp_path / name
    document.write_text("| <!-- digits: classification error --> | x |\n")
    reproduction.reproduce(recipe_in(tmp_path), [0])
    assert "2.00 (1 seed)" in document.read_text()
    document.write_text("| <!-- digits: classification error --> 0.1 | x |\n")
    assert reproduction.fill_in_documents(tmp_path / "results") == 0
    assert "2.00 (1 seed)" in document.read_text()


def test_rows_in_a_folder_of_ones_own_leave_the_file_alone(tmp_path, runs):
    document = tmp_path / "RESULTS.md"
    document.write_text("| <!-- others: error --> 0.1 | x |\n")
    recipe = recipe_in(tmp_path)
    assert reproduction.reproduce(recipe._replace(table=tmp_path / "mine" / "digits.csv"), [0]) == 0
    assert lines(tmp_path / "mine" / "digits.csv")
    assert document.read_text() == "| <!-- others: error --> 0.1 | x |\n"


@pytest.mark.parametrize("document", ["RESULTS.md", "README.md"])
def test_every_marked_number_comes_from_a_line(document):
    text = (ROOT / document).read_text()
    assert text.count("<!-- mnist_") > 20
    assert reproduction.fill_in(text, ROOT / "results") == text, (
        "run python -m aae_jax.main --mode results"
    )


def test_a_trial_is_recorded_without_test_scores(tmp_path, runs):
    recipe = recipe_in(tmp_path)
    reproduction.reproduce(recipe, [3])
    run = tmp_path / "runs" / "seed-3"
    for name in (program.SCORES, program.FACTS):
        (run / name).unlink()
    for _ in range(2):
        assert reproduction.record([run], tmp_path / "results") == 0
    (line,) = lines(tmp_path / "results" / "trials" / "seed-3.csv")
    assert line["valid/error_percent"] == "3.5" and line["epochs"] == "1.5"
    assert line["seed"] == "3" and line["command"] == "the command"
    assert "classification error" not in line


@pytest.mark.parametrize("flag", ["--workdir a/b", "--workdir=a/b", "-workdir 'a b'"])
def test_where_a_run_lay_is_not_part_of_its_command(tmp_path, flag):
    command = f"python -m aae_jax.main {flag} --config x.py:100 --config.style.prior='gaussian(2)'"
    (tmp_path / program.COMMAND).write_text(f"{command} --results=out --seeds 0\n")
    assert reproduction.command_of(tmp_path) == (
        "python -m aae_jax.main --config x.py:100 '--config.style.prior=gaussian(2)' --seeds 0"
    )


def test_a_run_without_validation_cannot_be_recorded(tmp_path, runs, capsys):
    reproduction.reproduce(recipe_in(tmp_path), [0])
    run = tmp_path / "runs" / "seed-0"
    (run / "metrics.csv").write_text("step,epoch,classification\n1,0.5,0.1\n")
    assert reproduction.record([run], tmp_path / "results") == 1
    assert "has no validation scores" in capsys.readouterr().err
