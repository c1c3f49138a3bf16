"""Contenders taking turns, with scripts in the place of real ones; and one real process."""

import contextlib
import io
import json
import os
import sys

import pytest

from benchmarks import contest, worker
from benchmarks.contest import NotInstalled, WorkerError
from benchmarks.workload import Round, Workload

SMALL = Workload("E1", 2, num_images=4, steps=2, chunk_steps=2, width=2)


class Scripted:
    """A worker that notes its turns, and fails on one of them."""

    def __init__(self, name, turns, missing, fails_on):
        self.name, self.turns, self.missing, self.fails_on = name, turns, missing, fails_on

    def ready(self):
        if self.missing:
            raise NotInstalled(f"not installed: {contest.INSTALL}")
        return {"version": f"{self.name} 1", "warm_up_seconds": 0.0}

    def round(self):
        self.turns.append(self.name)
        if self.turns.count(self.name) == self.fails_on:
            raise WorkerError("failed with status 1: out of memory")
        return Round(4, {}, 1.0)


@pytest.fixture
def scripted(monkeypatch):
    """Puts scripts in the place of processes; the list of turns is the result."""
    turns = []

    def use(missing=(), fails_on=None):
        @contextlib.contextmanager
        def fake(name, workload, interpreter):
            yield Scripted(name, turns, name in missing, (fails_on or {}).get(name))

        monkeypatch.setattr(contest, "worker", fake)
        monkeypatch.setattr(contest, "_REST_SECONDS", 0.0)
        return turns

    return use


def run(names, rounds):
    return contest.contest(SMALL, names, rounds, {}, say=lambda text: None)


def test_contenders_take_turns_and_each_goes_first(scripted):
    turns = scripted()
    outcome = run(["aae_jax", "torch", "limit"], 3)
    assert turns == [
        *("aae_jax", "torch", "limit"),
        *("torch", "limit", "aae_jax"),
        *("limit", "aae_jax", "torch"),
    ]
    assert {name: len(rounds) for name, rounds in outcome.rounds.items()} == {
        "aae_jax": 3,
        "torch": 3,
        "limit": 3,
    }


def test_who_is_not_installed_or_dies_is_named_and_left_out(scripted):
    scripted(missing=("pythae",), fails_on={"torch": 2})
    outcome = run(["aae_jax", "torch", "pythae"], 3)
    assert list(outcome.rounds) == ["aae_jax"]
    assert outcome.absent == {
        "pythae": "not installed: pip install -e '.[benchmarks]'",
        "torch": "failed with status 1: out of memory",
    }


def test_contenders_of_other_experiments_are_passed_over(scripted):
    turns = scripted()
    run(["torch_gan", "aae_jax"], 1)
    assert turns == ["aae_jax"]


def test_every_contender_gets_the_same_threads():
    variables = contest.environment(3)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    assert {variables[name] for name in names} == {"3"}
    assert variables["PATH"] == os.environ["PATH"]


def test_a_missing_package_is_said_by_the_worker(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    replies = io.StringIO()
    worker.main("torch", SMALL, io.StringIO(), replies)
    assert json.loads(replies.getvalue()) == {"missing": "torch"}


def test_a_contender_that_cannot_start_gives_its_last_words():
    broken = SMALL._replace(data_file="nowhere.npz")
    # "jax" is there, so the worker starts; what it is to train is not.
    with (
        pytest.raises(WorkerError, match=r"failed with status 1: .*nowhere\.npz: no such file"),
        contest.worker("aae_jax", broken) as started,
    ):
        started.ready()


def test_a_round_that_tells_no_time_is_timed():
    assert 0 < worker.timed(lambda: Round(1, {})).seconds < 1
    assert worker.timed(lambda: Round(1, {}, 5.0)).seconds == 5.0
