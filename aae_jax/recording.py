"""A running experiment's numbers: TensorBoard events, metrics.csv and the console."""

import contextlib
import csv
import io
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from aae_jax.workdir import WorkdirError, write_text

Row = dict[str, float | int]
METRICS = "metrics.csv"


class Recorder:
    """Writes rows of numbers to every place where a person looks for them."""

    def __init__(self, workdir: Path, resume_step: int, console: "Console"):
        """Continues the folder's records; rows after `resume_step` are about to come again."""
        # A run without a checkpoint starts again, and step 0 comes again as well.
        kept = resume_step if resume_step else -1
        rows = [row for row in read_metrics(workdir) if row["step"] <= kept]
        self._table = _Table(workdir / METRICS, rows)
        self._console = console
        # TensorFlow takes seconds to import: a thread of its own does that while the first chunk
        # compiles, and afterwards writes events without holding the loop up.
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._events = self._pool.submit(_event_writer, workdir)
        self._pending: list[Future[None]] = []

    def write(self, row: Row) -> None:
        """Adds one row; its names may differ from those of other rows.

        Raises:
            WorkdirError: a file cannot be written.
        """
        self._table.append(row)
        scalars = {name: value for name, value in row.items() if name != "step"}
        self._send(lambda writer: writer.write_scalars(int(row["step"]), scalars))
        self._console.show(row)

    def describe(self, fields: Mapping[str, Any]) -> None:
        """Records hyperparameters beside the events."""
        self._send(lambda writer: writer.write_hparams(dict(fields)))

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
            WorkdirError: a file could not be written.
        """
        self._console.close()
        self._send(lambda writer: writer.close())
        self._pool.shutdown()
        self._check()

    def _send(self, action: Callable[[Any], None]) -> None:
        self._check()
        self._pending.append(self._pool.submit(lambda: action(self._events.result())))

    def _check(self) -> None:
        finished = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in finished:
            error = future.exception()
            if error is not None:
                raise WorkdirError(f"cannot write TensorBoard events: {error}") from error


class _Table:
    """metrics.csv: appended to, and rewritten whole only when a new name turns up."""

    def __init__(self, path: Path, rows: list[Row]):
        self._path, self._rows, self._names = path, rows, ["step", "epoch"]
        self._rewrite()

    def append(self, row: Row) -> None:
        self._rows.append(row)
        if not row.keys() <= set(self._names):
            self._rewrite()
            return
        try:
            with open(self._path, "a", newline="") as file:
                self._writer(file).writerow(row)
        except OSError as error:
            raise WorkdirError(f"cannot write {self._path}: {error.strerror}") from error

    def _rewrite(self) -> None:
        names = sorted({name for row in self._rows for name in row} - {"step", "epoch"})
        self._names = ["step", "epoch", *names]
        text = io.StringIO()
        self._writer(text).writeheader()
        # A step that was read back is a float; beside the others it is a whole number again.
        self._writer(text).writerows({**row, "step": int(row["step"])} for row in self._rows)
        write_text(self._path, text.getvalue())

    def _writer(self, file: Any) -> csv.DictWriter:
        return csv.DictWriter(file, self._names, lineterminator="\n")


def _event_writer(workdir: Path) -> Any:
    from clu import metric_writers

    return metric_writers.SummaryWriter(str(workdir / "events"))


def read_metrics(workdir: Path) -> list[Row]:
    """The rows of a run's metrics.csv, each with the numbers it has; none without the file.

    Raises:
        WorkdirError: the file is damaged.
    """
    path = workdir / METRICS
    if not path.exists():
        return []
    try:
        text = path.read_text()
        # A killed process may leave a last line cut short.
        whole = text[: text.rfind("\n") + 1]
        rows: list[Row] = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(io.StringIO(whole))
        ]
        if not all("step" in row for row in rows):
            raise ValueError("a row has no step")
        return rows
    except (OSError, ValueError, TypeError) as error:
        raise WorkdirError(f"{path} cannot be read: {error}; remove it to go on") from error


class Console:
    """Progress for a person: one line that changes on a terminal, plain lines elsewhere."""

    def __init__(self, num_steps: int, stream: TextIO | None = None, every_seconds: float = 5.0):
        """Shows progress towards `num_steps`."""
        self._num_steps = num_steps
        self._stream = stream or sys.stdout
        self._every = 0.2 if self._stream.isatty() else every_seconds
        self._last = -math.inf
        self._start: tuple[float, float | int] | None = None
        self._shown: Row = {}
        self._width = 0

    def show(self, row: Row) -> None:
        """Takes a row; prints it if the last line is old enough."""
        now = time.monotonic()
        if self._start is None:
            self._start = (now, row["step"])
        self._shown |= row
        if now - self._last >= self._every or row["step"] >= self._num_steps:
            self._print(self._line(self._shown, now))
            self._last = now

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        self._end_line()
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the changing line."""
        self._end_line()

    def _line(self, row: Row, now: float) -> str:
        parts = [f"step {row['step']:.0f}/{self._num_steps}", f"epoch {row.get('epoch', 0):.1f}"]
        for name in sorted(row):
            if name in _IN_LINE or name.endswith(("/discriminator", "/generator")):
                parts.append(f"{_IN_LINE.get(name, name)} {row[name]:.4g}")
        if "images_per_second" in row:
            parts.append(f"{row['images_per_second']:,.0f} images/s")
        parts.append(self._time_left(row["step"], now))
        return "  ".join(part for part in parts if part)

    def _time_left(self, step: float | int, now: float) -> str:
        assert self._start is not None
        began, first = self._start
        if step <= first:
            return ""
        seconds = round((now - began) / (step - first) * (self._num_steps - step))
        return f"{seconds // 60}:{seconds % 60:02d} left"

    def _print(self, line: str) -> None:
        if self._stream.isatty():
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
            self._stream.flush()
        else:
            print(line, file=self._stream, flush=True)

    def _end_line(self) -> None:
        if self._width:
            print(file=self._stream, flush=True)
        self._width = 0


_IN_LINE = {
    "reconstruction": "reconstruction",
    "classification": "classification",
    "valid/error_percent": "valid error %",
}


@contextlib.contextmanager
def recording(workdir: Path, resume_step: int, console: Console) -> Iterator[Recorder]:
    """A recorder that is closed whatever happens, without hiding what did."""
    recorder = Recorder(workdir, resume_step, console)
    try:
        yield recorder
    except BaseException:
        with contextlib.suppress(WorkdirError):
            recorder.close()
        raise
    recorder.close()
