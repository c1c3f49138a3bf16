"""Ratios, aims and those who are missing, as a person reads them."""

import csv
import io

from benchmarks import table
from benchmarks.contest import Outcome
from benchmarks.workload import Round, Workload


def rounds(*seconds):
    return [Round(1000, {"reconstruction": 12.345}, each) for each in seconds]


OUTCOME = Outcome(
    Workload("E1", 100),
    {
        "aae_jax": rounds(1.0, 0.5, 100.0),
        "torch": rounds(2.5, 2.0, 2.0),
        "torch_compile": rounds(1.25),
        "limit": rounds(0.8),
    },
    {"aae_jax": "jax 1"},
    {"pythae": "not installed: pip install -e '.[benchmarks]'"},
)


def cells(text):
    lines = [line for line in text.split("\n") if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows[2:]}


def test_ratios_are_of_medians_and_said_to_meet_their_aim_or_not():
    rows = cells(table.markdown(OUTCOME))
    assert rows["this project"] == ["1,000", "10 to 2,000", "", "", "80%"]
    assert rows["PyTorch, eager"] == [
        "500",
        "400 to 500",
        "2.00 times as fast",
        "2: met",
        "40%",
    ]
    assert rows["PyTorch, torch.compile"][2:] == ["1.25 times as fast", "1.6: missed", "64%"]
    assert rows["limit of the machine"][2:] == ["0.80 times as fast", "80% of it: met", ""]


def test_who_is_missing_is_named():
    text = table.markdown(OUTCOME)
    assert "pythae Adversarial_AE: not installed: pip install -e '.[benchmarks]'" in text
    assert "pythae Adversarial_AE" not in cells(text)


def test_without_this_project_or_the_limit_there_is_nothing_to_compare_with():
    alone = OUTCOME._replace(rounds={"torch": rounds(2.0)})
    assert cells(table.markdown(alone))["PyTorch, eager"] == ["500", "500 to 500", "", "2", ""]


def test_columns_line_up():
    lines = table.aligned([("", "one"), ("a name", "1"), ("b", "1,000,000")])
    assert len({len(line) for line in lines}) == 1
    assert lines[2].endswith("|         1 |")


def test_every_round_is_in_the_csv():
    rows = list(csv.DictReader(io.StringIO(table.csv_text([OUTCOME, OUTCOME]))))
    assert len(rows) == 2 * 8
    assert rows[1] == {
        "experiment": "E1",
        "batch_size": "100",
        "contender": "aae_jax",
        "round": "1",
        "images": "1000",
        "seconds": "0.500000",
        "images_per_second": "2000.0",
    }
