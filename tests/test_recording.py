import csv
import io
import math
import re
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aae_jax import recording
from aae_jax.recording import Console, Recorder, read_metrics
from aae_jax.workdir import WorkdirError


class Events:
    """Stands for the event writer, whose libraries take seconds to import."""

    def __init__(self):
        self.scalars, self.fields, self.closed = [], None, False

    def write_scalars(self, step, scalars):
        self.scalars.append((step, scalars))

    def write_hparams(self, fields):
        self.fields = fields

    def close(self):
        self.closed = True


@pytest.fixture
def events(monkeypatch):
    held = Events()
    monkeypatch.setattr(recording, "_event_writer", lambda workdir: held)
    return held


class Stream(io.StringIO):
    """A console, or a file that output is sent to."""

    name, mode = "stream", "w"

    def __init__(self, terminal=False):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so."""
    now = [100.0]
    monkeypatch.setattr(recording.time, "monotonic", lambda: now[0])
    return now


def record(workdir, rows, resume_step=0, close=True):
    recorder = Recorder(workdir, resume_step, Console(1000, Stream()))
    for row in rows:
        recorder.write(row)
    if close:
        recorder.close()
    return recorder


def table(workdir):
    """metrics.csv as any other program reads it."""
    with open(workdir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


# metrics.csv


def test_rows_are_appended_with_a_header_of_their_names(tmp_path, events):
    rows = [
        {"step": 0, "epoch": 0.0, "loss": 2.5},
        {"step": 100, "epoch": 1.5, "loss": 1 / 3},
        {"step": 200, "epoch": 3.0, "loss": -1e-17},
    ]
    record(tmp_path, rows)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,epoch,loss\n0,0.0,2.5\n100,1.5,0.3333333333333333\n200,3.0,-1e-17\n"
    )
    assert read_metrics(tmp_path) == rows, "numbers come back exactly"


def test_a_row_is_on_disk_before_the_next(tmp_path, events):
    recorder = record(tmp_path, [{"step": 0, "epoch": 0.0, "loss": 1.0}], close=False)
    assert len(table(tmp_path)) == 1
    size = (tmp_path / "metrics.csv").stat()
    recorder.write({"step": 1, "epoch": 0.1, "loss": 0.5})
    assert len(table(tmp_path)) == 2
    # Appended, not written anew: the file stays the same one.
    assert (tmp_path / "metrics.csv").stat().st_ino == size.st_ino
    recorder.close()


def test_a_new_name_gets_a_column_and_older_rows_an_empty_cell(tmp_path, events):
    rows = [
        {"step": 0, "epoch": 0.0, "b": 1.0},
        {"step": 1, "epoch": 0.1, "a": 2.0, "b": 3.0},
        {"step": 2, "epoch": 0.2, "b": 4.0},
    ]
    record(tmp_path, rows)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,epoch,a,b",
        "0,0.0,,1.0",
        "1,0.1,2.0,3.0",
        "2,0.2,,4.0",
    ]
    assert read_metrics(tmp_path) == rows


def test_going_on_drops_the_rows_that_come_again(tmp_path, events):
    record(tmp_path, [{"step": k, "epoch": k / 10, "loss": float(k)} for k in range(0, 50, 10)])
    record(tmp_path, [{"step": 30, "epoch": 3.0, "loss": -3.0}], resume_step=20)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,epoch,loss",
        "0,0.0,0.0",
        "10,1.0,10.0",
        "20,2.0,20.0",
        "30,3.0,-3.0",
    ]


def test_a_run_that_starts_again_has_no_row_twice(tmp_path, events):
    record(tmp_path, [{"step": 0, "epoch": 0.0, "loss": 1.0}, {"step": 9, "epoch": 1.0}])
    record(tmp_path, [{"step": 0, "epoch": 0.0, "loss": 2.0}], resume_step=0)
    assert read_metrics(tmp_path) == [{"step": 0, "epoch": 0.0, "loss": 2.0}]


@pytest.mark.parametrize("kept", [0, 1, 3, 8])
def test_a_last_line_cut_short_is_dropped(tmp_path, events, kept):
    record(tmp_path, [{"step": k, "epoch": k / 10, "loss": float(k)} for k in range(3)])
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "3,0.3,3.25\n"[:kept])
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2]
    record(tmp_path, [{"step": 3, "epoch": 0.3, "loss": 9.0}], resume_step=2)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and rows[-1]["loss"] == 9.0


def test_numbers_that_are_not_finite_are_kept(tmp_path, events):
    record(tmp_path, [{"step": 1, "epoch": 0.1, "loss": math.nan, "other": math.inf}])
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["loss"]) and row["other"] == math.inf


def test_without_a_file_there_are_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.csv").write_text("")
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [b"step,epoch\n1,two\n", b"step,epoch\n1,2,3\n", b"\xff\xfe\x00\n\x01\n", b"epoch\n1\n"],
)
def test_a_damaged_file_is_named_and_how_to_go_on(tmp_path, events, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(WorkdirError) as caught:
        record(tmp_path, [], resume_step=5)
    line = str(caught.value)
    assert str(tmp_path / "metrics.csv") in line and "remove it" in line and "\n" not in line


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a", "style/generator", "with,comma", 'with "quotes"']),
            st.floats(allow_nan=False),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 6),
)
def test_any_rows_come_back_however_the_run_was_interrupted(tmp_path_factory, extra, resume):
    folder = tmp_path_factory.mktemp("run")
    rows = [{"step": k + 1, "epoch": k / 7, **more} for k, more in enumerate(extra)]
    original = recording._event_writer
    recording._event_writer = lambda workdir: Events()
    try:
        record(folder, rows)
        assert read_metrics(folder) == rows
        record(folder, rows[resume:], resume_step=resume)
        assert read_metrics(folder) == rows if resume else rows[resume:]
    finally:
        recording._event_writer = original


def test_a_full_disk_is_named(tmp_path, events, monkeypatch):
    recorder = record(tmp_path, [{"step": 0, "epoch": 0.0, "loss": 1.0}], close=False)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(WorkdirError, match=r"cannot write .*metrics\.csv"):
        recorder.write({"step": 1, "epoch": 0.1, "loss": 1.0})
    recorder.close()


# Events


def test_events_get_every_row_and_the_fields(tmp_path, events):
    recorder = record(tmp_path, [{"step": 3, "epoch": 0.5, "loss": 1.0}], close=False)
    recorder.describe({"seed": 3})
    recorder.close()
    assert events.scalars == [(3, {"epoch": 0.5, "loss": 1.0})]
    assert (events.fields, events.closed) == ({"seed": 3}, True)


def test_rows_do_not_wait_for_the_event_writer(tmp_path, monkeypatch):
    """Its import takes seconds, in which training is to go on."""
    ready, held = threading.Event(), Events()
    monkeypatch.setattr(recording, "_event_writer", lambda workdir: ready.wait(30) and held)
    rows = [{"step": k, "epoch": 0.0} for k in range(3)]
    recorder = record(tmp_path, rows, close=False)
    assert held.scalars == [] and len(read_metrics(tmp_path)) == 3
    ready.set()
    recorder.close()
    assert [step for step, _ in held.scalars] == [0, 1, 2] and held.closed


def test_events_that_cannot_be_written_end_the_run_in_one_line(tmp_path, events, monkeypatch):
    def fail(step, scalars):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(events, "write_scalars", fail)
    recorder = record(tmp_path, [{"step": 0, "epoch": 0.0}], close=False)
    with pytest.raises(WorkdirError, match="No space left on device") as caught:
        recorder.close()
    assert "\n" not in str(caught.value)


def test_a_recorder_is_closed_whatever_happens_and_hides_nothing(tmp_path, events, monkeypatch):
    with pytest.raises(ZeroDivisionError), recording.recording(tmp_path, 0, Console(5, Stream())):
        raise ZeroDivisionError
    assert events.closed
    monkeypatch.setattr(events, "close", lambda: 1 / 0)
    with pytest.raises(KeyError), recording.recording(tmp_path, 0, Console(5, Stream())):
        raise KeyError
    with pytest.raises(WorkdirError), recording.recording(tmp_path, 0, Console(5, Stream())):
        pass


def test_tensorboard_finds_the_numbers(tmp_path):
    """The one test with the real writer."""
    record(tmp_path, [{"step": 2, "epoch": 0.5, "style/generator": 0.75}])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    found = EventAccumulator(str(tmp_path / "events"))
    found.Reload()
    values = {
        tag: [(event.step, float(make_ndarray(event.tensor_proto))) for event in found.Tensors(tag)]
        for tag in found.Tags()["tensors"]
    }
    assert values == {"epoch": [(2, 0.5)], "style/generator": [(2, 0.75)]}


# The console


def test_lines_that_are_no_terminals_are_whole_and_not_too_many(clock):
    stream = Stream()
    console = Console(1000, stream, every_seconds=5.0)
    for step in range(0, 1001, 100):
        console.show({"step": step, "epoch": step / 100, "reconstruction": 1.0})
        clock[0] += 2.0
    console.close()
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert [line.split()[1] for line in lines] == [
        f"{step}/1000" for step in (0, 300, 600, 900, 1000)
    ]
    # 2 s for each of the steps that are left.
    assert lines[1].endswith("0:14 left") and lines[-1].endswith("0:00 left")
    assert "left" not in lines[0], "nothing is known of the time before the first step"


def test_a_terminal_has_one_line_that_changes(clock):
    stream = Stream(terminal=True)
    console = Console(1000, stream)
    shown = [(5, 1234567.0), (10, 1.0), (15, 0.5)]
    for step, loss in shown:
        console.show({"step": step, "epoch": 0.1, "reconstruction": loss})
        clock[0] += 1.0
    text = stream.getvalue()
    assert "\n" not in text
    first, *lines = text.split("\r")
    assert first == "" and [line.split()[1] for line in lines] == ["5/1000", "10/1000", "15/1000"]
    # A shorter line covers all of a longer one before it.
    assert len(lines[1]) >= len(lines[0].rstrip())
    console.say("a remark")
    console.show({"step": 20, "epoch": 0.2})
    clock[0] += 1.0
    console.close()
    console.close()
    assert stream.getvalue()[len(text) :].startswith("\na remark\n\rstep 20/1000")
    assert stream.getvalue().endswith("\n") and not stream.getvalue().endswith("\n\n")


def test_a_terminal_is_not_flooded(clock):
    stream = Stream(terminal=True)
    console = Console(1000, stream)
    for step in range(100):
        console.show({"step": step, "epoch": 0.0})
        clock[0] += 0.01
    assert 3 <= stream.getvalue().count("\r") <= 7


def test_the_last_step_is_always_shown(clock):
    stream = Stream()
    console = Console(10, stream)
    for step in range(11):
        console.show({"step": step, "epoch": 0.0})
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["0/10", "10/10"]


def test_a_line_has_the_numbers_that_a_person_watches(clock):
    stream = Stream()
    console = Console(100, stream)
    console.show({"step": 0, "epoch": 0.0, "valid/error_percent": 12.3456, "valid/other": 9.0})
    clock[0] += 60
    row = {"step": 50, "epoch": 2.5, "reconstruction": 30.123456, "classification": 0.5}
    row |= {"style/discriminator": 1.386, "style/generator": 0.693, "style/code_accuracy": 0.5}
    console.show({**row, "images_per_second": 12345.6})
    line = stream.getvalue().splitlines()[-1]
    assert line.startswith("step 50/100  epoch 2.5")
    for part in (
        "reconstruction 30.12",
        "classification 0.5",
        "style/discriminator 1.386",
        "style/generator 0.693",
        "12,346 images/s",
        "1:00 left",
        "valid error % 12.35",  # the last one known
    ):
        assert part in line
    assert "accuracy" not in line and "other" not in line


def test_a_run_that_goes_on_counts_its_time_from_there(clock):
    stream = Stream()
    console = Console(1000, stream)
    console.show({"step": 900, "epoch": 9.0})
    clock[0] += 30
    console.show({"step": 950, "epoch": 9.5})
    assert stream.getvalue().splitlines()[-1].endswith("0:30 left")
    assert re.search(r"\d:\d\d left", stream.getvalue())
