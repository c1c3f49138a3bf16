"""SIGTERM, with which schedulers end jobs, costs nothing; and a folder belongs to one process."""

import signal


def test_saves_and_says_so(system, stopped) -> None:
    ended = stopped.ended
    assert ended.status == 0
    assert ended.err == ""
    step = system.steps_saved(stopped.workdir)[-1]
    assert 2 * system.num_steps // 3 <= step < system.num_steps
    assert ended.out.splitlines()[-1] == (
        f"stopped by SIGTERM at step {step}; the checkpoint is saved, "
        "the same command goes on from there"
    )
    # The step it stopped at is the step it saved and the last that it recorded.
    assert system.last_step(stopped.workdir) == step
    assert not (stopped.workdir / "report.html").exists()
    assert not (stopped.workdir / "scores.json").exists()


def test_the_same_command_goes_on(system, stopped, reference, tmp_path) -> None:
    run = system.copy(stopped.workdir, tmp_path / "run")
    step = system.steps_saved(run)[-1]
    ended = system.train(run).wait()
    assert ended.status == 0, ended
    assert ended.err == ""
    assert f"resuming from step {step} of {system.num_steps}" in ended.out.splitlines()
    assert system.state(run) == system.state(reference.workdir)
    steps = [int(row["step"]) for row in system.metrics(run)]
    assert steps == list(range(0, system.num_steps + 1, system.chunk_steps))
    assert system.metrics(run) == system.metrics(reference.workdir)
    assert (run / "scores.json").read_text() == (reference.workdir / "scores.json").read_text()
    assert (run / "report.html").stat().st_size > 10_000


def test_a_second_process_is_refused(system, stopped) -> None:
    line = system.explain(stopped.second)
    assert "another process is using" in line and str(stopped.workdir) in line


def test_while_the_report_is_drawn(system, reference, tmp_path) -> None:
    """A finished run without its report; the same command draws it."""
    run = system.copy(reference.workdir, tmp_path / "run")
    (run / "report.html").unlink()
    process = system.train(run)
    assert process.until(lambda: "reading the test images" in process.out), process.wait()
    process.popen.send_signal(signal.SIGTERM)
    ended = process.wait()
    assert (ended.status, ended.err) == (0, ""), ended
    assert ended.out.splitlines()[-1] == (
        "stopped by SIGTERM; the model is saved, the same command draws the report"
    )
    assert not (run / "report.html").exists()
    assert system.train(run).wait().status == 0
    assert (run / "report.html").stat().st_size > 10_000
