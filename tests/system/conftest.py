"""Whole runs: the real command line, in processes of its own, on the smallest of networks.

The uninterrupted run that most tests compare with is trained once (`reference`), and so is the one
that is told to stop and then damaged or continued (`stopped`).
"""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

REPOSITORY = Path(__file__).parents[2]
# How often test_killed.py kills its run; runs are long enough for that.
KILLS = int(os.environ.get("AAE_JAX_KILLS", "3"))
STEPS_PER_EPOCH, CHUNK_STEPS = 12, 10
EPOCHS = 10 * (KILLS + 1)
NUM_STEPS = EPOCHS * STEPS_PER_EPOCH
PATIENCE_SECONDS = 300
SMALL = (
    "--config=configs/digits.py",
    f"--config.train.epochs={EPOCHS}",
    f"--config.train.chunk_steps={CHUNK_STEPS}",
    "--config.checkpoint.every_seconds=0.01",
    "--config.encoder.widths=(32, 32)",
    "--config.decoder.widths=(32, 32)",
    "--config.discriminator.widths=(32, 32)",
    "--config.evaluation.every_epochs=5",
    "--config.evaluation.samples=100",
    "--config.evaluation.sample_quality=False",
    "--config.evaluation.parzen_samples=0",
)


class Ended(NamedTuple):
    """How a process ended: exit status (negative: a signal) and all that it printed."""

    status: int
    out: str
    err: str


class Process:
    """A process that can be watched while it runs."""

    def __init__(self, arguments: list[str], logs: Path, environment: dict[str, str]):
        logs.mkdir(parents=True, exist_ok=True)
        self._files = logs / "out.txt", logs / "err.txt"
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.popen = subprocess.Popen(
                arguments, stdout=out, stderr=err, cwd=REPOSITORY, env=environment
            )

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    def running(self) -> bool:
        return self.popen.poll() is None

    def until(self, condition: Callable[[], bool]) -> bool:
        """Waits for the condition; False when the process ended first."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.running():
            if condition():
                return True
            assert time.monotonic() < deadline, f"waited in vain; so far: {self.out}"
            time.sleep(0.002)
        return False

    def wait(self) -> Ended:
        status = self.popen.wait(PATIENCE_SECONDS)
        return Ended(status, self.out, self._files[1].read_text())


def _environment() -> dict[str, str]:
    """One CPU device, and nothing that this computer's user has set for himself."""
    own = ("XLA_", "JAX_", "TF_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return kept | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


class System:
    """What the tests of whole runs do: start the command line, read what a run left."""

    num_steps, chunk_steps, kills, small = NUM_STEPS, CHUNK_STEPS, KILLS, SMALL
    steps_per_epoch = STEPS_PER_EPOCH

    def __init__(self, folder: Path):
        self._folder, self._started = folder, []

    def start(
        self,
        *flags: str,
        workdir: Path | str,
        compile_anew: bool = False,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> Process:
        """Starts `python -m aae_jax.main`, with some variables more in its environment."""
        arguments = ["-m", "aae_jax.main", *flags, f"--workdir={workdir}"]
        return self._start(arguments, compile_anew, variables)

    def train(self, workdir: Path | str, *flags: str, **options: Any) -> Process:
        """Starts the small experiment, with some flags more."""
        return self.start(*SMALL, *flags, workdir=workdir, **options)

    def script(self, text: str, *arguments: Path | str, **options: Any) -> Process:
        """Starts a script of the test's own."""
        return self._start(["-c", text, *map(str, arguments)], **options)

    def _start(
        self,
        arguments: list[str],
        compile_anew: bool = False,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> Process:
        # Compiled code that processes share saves half of their time.
        environment = _environment() | {"XDG_CACHE_HOME": str(self._folder)} | dict(variables)
        if compile_anew:
            environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        logs = self._folder / str(len(self._started))
        self._started.append(Process([sys.executable, *arguments], logs, environment))
        return self._started[-1]

    def end_all(self) -> None:
        for process in self._started:
            if process.running():
                process.popen.kill()
                process.popen.wait()

    @staticmethod
    def steps_saved(workdir: Path) -> list[int]:
        folder = workdir / "checkpoints"
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        return sorted(int(name) for name in names if name.isdigit())

    @staticmethod
    def state(workdir: Path, step: int | None = None) -> dict[str, tuple[str, bytes]]:
        """Every leaf of a checkpoint (the newest) by its path: type with shape, and bytes.

        Read with Orbax alone, so that a fault of the code under test cannot hide in here.
        """
        step = System.steps_saved(workdir)[-1] if step is None else step
        folder = workdir / "checkpoints" / str(step) / "state"
        reader = ocp.PyTreeCheckpointer()
        saved = dict(reader.metadata(folder).item_metadata.tree)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        tree = reader.restore(folder, restore_args=as_numpy)
        leaves = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not isinstance(leaf, np.ndarray):
                leaf = np.asarray(jax.random.key_data(leaf))
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            leaves[name] = (f"{leaf.dtype}{leaf.shape}", leaf.tobytes())
        return leaves

    @staticmethod
    def metrics(workdir: Path) -> list[dict[str, str]]:
        """The rows of metrics.csv as text, without the one number that two runs cannot share."""
        with open(workdir / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row.pop("images_per_second", None)
        return rows

    @staticmethod
    def last_step(workdir: Path) -> int:
        """The last step in metrics.csv, while it is being written; -1 without one."""
        try:
            lines = (workdir / "metrics.csv").read_text().split("\n")[1:-1]
        except FileNotFoundError:
            return -1
        return int(lines[-1].split(",")[0]) if lines else -1

    @staticmethod
    def contents(folder: Path) -> dict[str, bytes]:
        """Every file below a folder."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    @staticmethod
    def copy(workdir: Path, to: Path) -> Path:
        return Path(shutil.copytree(workdir, to))

    def explain(self, ended: Ended, status: int = 1) -> str:
        """The one line that a process had to say before it ended with the status."""
        assert ended.status == status, ended
        assert "Traceback" not in ended.out + ended.err, ended
        lines = ended.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("aae_jax: "), ended
        return lines[0]


class Run(NamedTuple):
    """A workdir and how its process ended."""

    workdir: Path
    ended: Ended


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    system = System(tmp_path_factory.mktemp("system"))
    yield system
    system.end_all()


@pytest.fixture(scope="session")
def reference_process(
    system: System, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Process]:
    """The uninterrupted run, perhaps still on its way: who does not need it yet may go on."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    return workdir, system.train(workdir)


@pytest.fixture(scope="session")
def reference(reference_process: tuple[Path, Process]) -> Run:
    """The small experiment from beginning to end in one go. To be read, not written."""
    workdir, process = reference_process
    ended = process.wait()
    assert ended.status == 0, ended
    return Run(workdir, ended)


class Stopped(NamedTuple):
    """A run that was told to stop, and a second one that tried to use its folder meanwhile."""

    workdir: Path
    ended: Ended
    second: Ended


@pytest.fixture(scope="session")
def stopped(
    system: System,
    reference_process: tuple[Path, Process],  # two processors, two processes
    tmp_path_factory: pytest.TempPathFactory,
) -> Stopped:
    """SIGTERM after two thirds of the small experiment. To be read, not written."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    process = system.train(workdir)
    assert process.until(lambda: system.last_step(workdir) >= 0), process.wait()
    # While a process is stopped it holds its folder, and the test need not hurry.
    process.popen.send_signal(signal.SIGSTOP)
    second = system.train(workdir).wait()
    process.popen.send_signal(signal.SIGCONT)
    two_thirds = 2 * system.num_steps // 3
    assert process.until(lambda: system.last_step(workdir) >= two_thirds), process.wait()
    process.popen.send_signal(signal.SIGTERM)
    return Stopped(workdir, process.wait(), second)
