"""Contenders side by side: each in its own process, taking turns.

A machine's clock rate and its other tenants change within seconds; contenders measured one after
the other would be compared with the weather. Between turns everyone waits, for threads of the last
one to fall asleep.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.worker import CONTENDERS
from benchmarks.workload import Round, Workload

REPOSITORY = Path(__file__).parents[1]
INSTALL = "pip install -e '.[benchmarks]'"
_REST_SECONDS = 0.3
_PATIENCE_SECONDS = 10


class Outcome(NamedTuple):
    """What a contest on one workload gave.

    Attributes:
        workload: which.
        rounds: of each contender that took part, in order of time.
        versions: of its package.
        absent: why another did not take part.
    """

    workload: Workload
    rounds: dict[str, list[Round]]
    versions: dict[str, str]
    absent: dict[str, str]


class WorkerError(Exception):
    """A contender ended too early; the message is one line."""


class NotInstalled(WorkerError):
    """A contender's package is missing."""


class Worker:
    """The other end of `benchmarks.worker`."""

    def __init__(self, process: subprocess.Popen[str], errors: Path):
        """Waits for nothing."""
        self._process, self._errors = process, errors

    def ready(self) -> dict[str, Any]:
        """Waits until the contender is warm; what it says of itself.

        Raises:
            WorkerError: it cannot take part.
        """
        reply = self._reply()
        if "missing" in reply:
            raise NotInstalled(f"not installed: {INSTALL}")
        return reply

    def round(self) -> Round:
        """Lets the contender do a round.

        Raises:
            WorkerError: it died.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # of one that died: its reply will be missing
            print("round", file=self._process.stdin, flush=True)
        return Round(**self._reply())

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._errors.read_text().split("\n")
            last = next((text.strip() for text in reversed(said) if text.strip()), "nothing said")
            raise WorkerError(f"failed with status {self._process.wait()}: {last}")
        return json.loads(line)


@contextmanager
def worker(name: str, workload: Workload, interpreter: str = sys.executable) -> Iterator[Worker]:
    """A contender in a process of its own, warming up, and ended afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors.txt"
        with (
            errors.open("w") as stderr,
            subprocess.Popen(
                [interpreter, "-m", "benchmarks.worker", name, json.dumps(workload._asdict())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=REPOSITORY,
                env=environment(workload.threads),
            ) as process,
        ):
            try:
                yield Worker(process, errors)
            finally:
                _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Lets it go by itself, so that it removes its temporary files."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def environment(threads: int) -> dict[str, str]:
    """This process's variables, with one number of threads for every library."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return {**os.environ, **quiet, **dict.fromkeys(names, str(threads))}


def contest(
    workload: Workload,
    names: Sequence[str],
    rounds: int,
    interpreters: Mapping[str, str],
    say: Callable[[str], None] = print,
) -> Outcome:
    """Warms all contenders up, then lets them take turns.

    Args:
        workload: what all of them train.
        names: contenders, of `CONTENDERS`; those of other experiments are passed over.
        rounds: turns of each.
        interpreters: Python of a package, where it is not this one.
        say: hears how it goes.
    """
    outcome = Outcome(workload, {}, {}, {})
    with ExitStack() as stack:
        workers = {}
        for name in names:
            who = CONTENDERS[name]
            if workload.experiment in who.experiments:
                python = interpreters.get(who.package, sys.executable)
                workers[name] = stack.enter_context(worker(name, workload, python))
        for name in list(workers):
            title = f"{workload.title}: {CONTENDERS[name].title}"
            try:
                ready = workers[name].ready()
            except WorkerError as error:
                outcome.absent[name] = str(error)
                del workers[name]
                say(f"{title}: {error}")
                continue
            outcome.versions[name] = ready["version"]
            say(f"{title} is warm after {ready['warm_up_seconds']:.0f} s, beside the others")
        for turn in range(rounds):
            # Another one begins each time: who follows whom may matter.
            order = list(workers)[turn % max(1, len(workers)) :]
            for name in [*order, *[name for name in workers if name not in order]]:
                time.sleep(_REST_SECONDS)
                try:
                    done = workers[name].round()
                except WorkerError as error:
                    outcome.absent[name] = str(error)
                    outcome.rounds.pop(name, None)
                    del workers[name]
                    say(f"{workload.title}: {CONTENDERS[name].title}: {error}")
                    continue
                outcome.rounds.setdefault(name, []).append(done)
    return outcome
