"""Several processes of one run, over loopback, as on the hosts of a pod."""

import signal
import socket
import time

import pytest

TWO = 2
# As in the paper's appendix: another start is chaotic, and shows rounding instead of faults.
PAPERS = (
    *(f"--config.{net}.init=normal(0.01)" for net in ("encoder", "decoder", "discriminator")),
    *(
        f"--config.optimizers.{name}.{field}={value}"
        for name, rate, momentum in (
            ("autoencoder", 0.01, 0.9),
            ("discriminator", 0.1, 0.1),
            ("generator", 0.1, 0.1),
        )
        for field, value in (("name", "sgd"), ("learning_rate", rate), ("momentum", momentum))
    ),
)
SHORT = "--config.train.epochs=9"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_both(system, workdir, *flags):
    """One process each for the numbers 0 and 1."""
    port = free_port()
    return [
        system.train(
            workdir,
            *PAPERS,
            *flags,
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={TWO}",
            f"--process_id={number}",
        )
        for number in range(TWO)
    ]


def numbers(rows):
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


@pytest.fixture(scope="module")
def alone(system, tmp_path_factory):
    """The same run as a single process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ended = system.train(workdir, *PAPERS, SHORT).wait()
    assert ended.status == 0, ended
    return workdir


def test_two_processes_have_the_curve_of_one(system, alone, tmp_path):
    """Only process 0 writes and speaks."""
    workdir = tmp_path / "run"
    ended = [process.wait() for process in start_both(system, workdir, SHORT)]
    assert [each.status for each in ended] == [0, 0], ended
    assert "step" not in ended[1].out
    assert (workdir / "report.html").exists()
    rows, expected = numbers(system.metrics(workdir)), numbers(system.metrics(alone))
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, other in zip(rows, expected, strict=True):
        # One example of a batch on the other side of the boundary is 1 % of an accuracy.
        smooth = {name for name in row if "accuracy" not in name}
        # Rounding is all that differs, but it grows with the steps: the run is short.
        assert {name: row[name] for name in smooth} == pytest.approx(
            {name: other[name] for name in smooth}, rel=1e-4, abs=1e-5
        )


def test_processes_stop_together_and_go_on_in_any_number(system, tmp_path):
    """SIGTERM to one is one to both; a killed one stops the other; a single one goes on alone."""
    workdir = tmp_path / "run"
    # Far from done whenever it is told to stop.
    endless = ("--config.train.parallel=shard_map", "--config.train.epochs=100000")

    def recorded(step):
        return lambda: system.last_step(workdir) >= step

    both = start_both(system, workdir, *endless)
    assert both[0].until(recorded(50)), [process.wait() for process in both]
    both[1].popen.send_signal(signal.SIGTERM)
    ended = [process.wait() for process in both]
    assert [each.status for each in ended] == [0, 0], ended
    step = system.steps_saved(workdir)[-1]
    assert step >= 50
    assert f"stopped by SIGTERM at step {step}" in ended[0].out
    assert "stopped" not in ended[1].out

    both = start_both(system, workdir, *endless)
    assert both[0].until(recorded(step + 50)), [process.wait() for process in both]
    both[1].popen.kill()
    killed = time.monotonic()
    survivor = both[0].wait()
    assert time.monotonic() - killed < 60
    assert f"resuming from step {step}" in survivor.out
    # Outside of a collective it is JAX that misses the heartbeat, says so and aborts.
    told = {1: "another one is gone; start all of them again", -signal.SIGABRT: "another task died"}
    assert told[survivor.status] in " ".join(survivor.err.split()), survivor.err
    assert "Traceback" not in survivor.err

    step = system.steps_saved(workdir)[-1]
    single = system.train(workdir, *PAPERS, *endless)
    assert single.until(recorded(step + 50)), single.wait()
    single.popen.send_signal(signal.SIGTERM)
    ended = single.wait()
    assert ended.status == 0, ended
    assert f"resuming from step {step}" in ended.out


JOIN = """
import os, jax
from aae_jax import parallel
parallel.start(parallel.Processes(), os.environ)
said = parallel.agreed(jax.process_index() == 0)
print(jax.process_index(), jax.process_count(), jax.device_count(), said)
"""


def test_processes_find_each_other_by_variables_alone(system):
    """As in pods: Kubernetes' variables are there too, and JAX does not ask its interface."""
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    both = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(TWO)}
    started = [
        system.script(JOIN, variables={**pod, **both, "JAX_PROCESS_ID": str(number)})
        for number in range(TWO)
    ]
    # A single one waits for nobody, whether it is told so or nothing at all.
    alone = [system.script(JOIN, variables=pod | more) for more in ({}, {"JAX_NUM_PROCESSES": "1"})]
    for number, process in enumerate(started):
        ended = process.wait()
        assert ended.status == 0, ended
        assert f"{number} 2 2 True" in ended.out and "kubernetes" not in ended.err.lower(), ended
    for process in alone:
        ended = process.wait()
        assert ended.status == 0 and "0 1 1 True" in ended.out, ended


def test_variables_that_say_half_are_named(system, tmp_path):
    ended = system.train(tmp_path / "run", variables={"JAX_NUM_PROCESSES": "2"}).wait()
    assert "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID not set" in system.explain(ended)


def test_an_incomplete_description_of_the_processes_is_named(system, tmp_path):
    ended = system.train(tmp_path / "run", "--coordinator=127.0.0.1:1", "--num_processes=2").wait()
    assert "--process_id must be at least 0" in system.explain(ended)
