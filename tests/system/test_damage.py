"""Damaged checkpoints are noticed, said and passed over; disks and folders that cannot be used."""

import contextlib
import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aae_jax import config, train, workdir
from aae_jax.inference import load

# Several folders in one process, as most of a process's time goes into starting it.
GO_ON = """
import sys
from pathlib import Path
from aae_jax import program, workdir
from aae_jax.train import prepare, train
program.checkpoints.quiet_orbax()
for name in sys.argv[1:]:
    folder = Path(name)
    run = prepare(workdir.read_config(folder))
    with workdir.locked(folder):
        print("===", folder.name, flush=True)
        print("===", folder.name, file=sys.stderr, flush=True)
        print("finished", train(run, folder).finished, flush=True)
"""


def _files(checkpoint: Path) -> list[Path]:
    return [path for path in checkpoint.rglob("*") if path.is_file()]


def _largest(checkpoint: Path) -> Path:
    return max(_files(checkpoint), key=lambda path: path.stat().st_size)


def truncated(checkpoint: Path) -> None:
    file = _largest(checkpoint)
    os.truncate(file, file.stat().st_size // 2)


def half_written(checkpoint: Path) -> None:
    """As a power failure leaves it: names on disk, contents not."""
    for file in _files(checkpoint):
        os.truncate(file, 0)


def flipped(checkpoint: Path) -> None:
    file = _largest(checkpoint)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], None], int]] = {
    "truncated": (truncated, 1),
    "half_written": (half_written, 1),
    "flipped": (flipped, 2),
}


def test_the_checkpoint_before_is_used(system, stopped, reference, tmp_path) -> None:
    steps = system.steps_saved(stopped.workdir)
    assert len(steps) == 3
    for name, (damage, number) in DAMAGES.items():
        run = system.copy(stopped.workdir, tmp_path / name)
        for step in steps[-number:]:
            damage(run / "checkpoints" / str(step))
    ended = system.script(GO_ON, *(tmp_path / name for name in DAMAGES)).wait()
    assert ended.status == 0, ended
    out, err = (_by_folder(text) for text in (ended.out, ended.err))
    for name, (_, number) in DAMAGES.items():
        run, used = tmp_path / name, steps[-1 - number]
        warnings = err[name].splitlines()
        assert len(warnings) == number, f"{name}: {err[name]}"
        for step, warning in zip(reversed(steps[-number:]), warnings, strict=True):
            assert f"checkpoint of step {step} " in warning and "damaged" in warning
        assert out[name].splitlines()[0] == f"resuming from step {used} of {system.num_steps}"
        assert out[name].splitlines()[-1] == "finished True"
        assert system.state(run) == system.state(reference.workdir), name
        assert system.metrics(run) == system.metrics(reference.workdir), name


def _by_folder(text: str) -> dict[str, str]:
    parts = text.split("=== ")[1:]
    return {name: rest for name, _, rest in (part.partition("\n") for part in parts)}


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """A file system in memory at the folder; False where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        allowed = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    try:
        yield allowed
    finally:
        if allowed:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def without_tensorflows_lines(ended):
    """What TensorFlow's event files log goes past every setting for quiet."""
    own = re.compile(r"WARNING: All log messages before absl|[IWEF]\d{4} .*(events|writer)|\t")
    kept = [line for line in ended.err.splitlines() if not own.match(line)]
    return ended._replace(err="\n".join(kept))


def test_a_full_disk(system, tmp_path) -> None:
    with mounted(tmp_path / "disk", "size=1m") as small_disk:
        run = tmp_path / "disk" / "run"
        process = system.train(run, "--config.checkpoint.keep=1000")
        if not small_disk:  # the nearest thing that needs no rights: no file may grow any more
            assert process.until(lambda: len(system.steps_saved(run)) >= 3), process.wait()
            resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        # Whoever is first to find the disk full: TensorFlow says it in lines of its own.
        line = system.explain(without_tensorflows_lines(process.wait()))
        reason = "No space left on device" if small_disk else "File too large"
        assert reason in line and str(run) in line
        # What was saved before is whole.
        step = system.steps_saved(run)[-1]
        settled = train.prepare(workdir.read_config(run))
        state, _ = train.restore(settled, run)
        assert int(state.step) == step > 0


def test_a_read_only_folder_is_named_and_can_be_loaded(
    system, save_run, narrow_config, small_images, tmp_path
) -> None:
    with mounted(tmp_path / "disk", "size=4m") as own_disk:
        if not own_disk:
            pytest.skip("this user may not mount a file system")
        run = save_run(tmp_path / "disk" / "run", narrow_config(), small_images(20, 0))
        before = system.contents(run)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        with (
            pytest.raises(workdir.WorkdirError, match=r"cannot write to .*Read-only.*--workdir"),
            workdir.locked(run),
        ):
            pass
        assert load(run).step == 7
        assert system.contents(run) == before


def test_folders_that_cannot_be_used(system, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    # Root may write anywhere except where there is nothing to write to.
    folders = [tmp_path / "file" / "run", Path("/proc/run")]
    processes = [system.train(folder) for folder in folders]
    for folder, process in zip(folders, processes, strict=True):
        line = system.explain(process.wait())
        assert f"cannot write to workdir {folder}" in line and "--workdir" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_other_files_is_refused(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "workdir").write_text("a file")
    with (
        workdir.locked(tmp_path),
        pytest.raises(workdir.WorkdirError, match=r"not empty \(thesis.tex, workdir\)"),
    ):
        workdir.claim(tmp_path, config.base())
    with (
        pytest.raises(workdir.WorkdirError, match="cannot write"),
        workdir.locked(tmp_path / "workdir"),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "thesis.tex", "workdir"]
