"""A run that is killed at any moment, however often, ends with the bits of one that is not.

Three kills by default; AAE_JAX_KILLS=20 makes it twenty, on a longer run that compiles anew after
each of them.
"""

import time

import numpy as np
import pytest

from aae_jax import config, workdir

MOMENTS = ("starting", "before a checkpoint", "training", "saving")


def test_killed_at_random_moments(system, reference, tmp_path) -> None:
    random = np.random.default_rng(2024)
    run = tmp_path / "run"
    for number in range(system.kills):
        # The first kills are of every kind there is, once the run is on its way.
        kinds = ("before a checkpoint", "saving", "training", "starting")
        moment = kinds[number] if number < len(kinds) else random.choice(MOMENTS[2:])
        low, high = (np.array([number, number + 0.8]) / (system.kills + 1)) * system.num_steps
        _kill(system, run, str(moment), int(random.uniform(low, high)), random)
    ended = system.train(run, compile_anew=system.kills > 3).wait()
    assert ended.status == 0, ended
    assert ended.err == ""
    assert "resuming from step" in ended.out

    whole = reference.workdir
    assert system.steps_saved(run)[-1] == system.steps_saved(whole)[-1] == system.num_steps
    state, expected = system.state(run), system.state(whole)
    assert "key" in expected and any("opt_states" in name for name in expected)
    assert state.keys() == expected.keys()
    assert [name for name in expected if state[name] != expected[name]] == []
    # What people look at is the same as well: nothing twice, nothing missing.
    steps = [int(row["step"]) for row in system.metrics(run)]
    assert steps == list(range(0, system.num_steps + 1, system.chunk_steps))
    assert system.metrics(run) == system.metrics(whole)
    assert (run / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()
    leftovers = [path.name for path in (run / "checkpoints").iterdir() if "tmp" in path.name]
    assert leftovers == []


def _kill(system, run, moment, target, random) -> None:
    """Starts the run and kills it at the moment, after the target step where that matters."""
    process = system.train(run, compile_anew=system.kills > 3)
    began = time.monotonic()
    if moment == "starting":
        pause = random.uniform(0, 8)
        alive = process.until(lambda: time.monotonic() - began > pause)
    else:
        alive = process.until(lambda: "\nstep " in process.out)
        if moment != "before a checkpoint":
            alive = alive and process.until(lambda: system.last_step(run) >= target)
            time.sleep(random.uniform(0, 0.1))
        if moment == "saving":
            folder = run / "checkpoints"
            alive = alive and process.until(
                lambda: any("tmp" in path.name for path in folder.iterdir())
            )
            time.sleep(random.uniform(0, 0.02))
    process.popen.kill()
    ended = process.wait()
    assert alive and ended.status == -9, f"not killed while {moment}: {ended}"
    assert ended.err == ""
    folder = run / "checkpoints"
    unfinished = folder.exists() and any("tmp" in path.name for path in folder.iterdir())
    print(
        f"killed {moment} at step {system.last_step(run)}; checkpoints {system.steps_saved(run)}"
        f"{' and an unfinished one' if unfinished else ''}"
    )


CLAIM_AND_DIE = """
import os, pathlib, signal, sys
from aae_jax import config, workdir
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
with workdir.locked(pathlib.Path(sys.argv[1])):
    setattr(os, sys.argv[2], die)
    workdir.claim(pathlib.Path(sys.argv[1]), config.base())
"""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_killed_while_the_config_is_written(system, tmp_path, call) -> None:
    assert system.script(CLAIM_AND_DIE, tmp_path, call).wait().status == -9
    assert not (tmp_path / "config.json").exists()
    with workdir.locked(tmp_path):
        workdir.claim(tmp_path, config.base())
    assert workdir.read_config(tmp_path).to_dict() == config.base().to_dict()
