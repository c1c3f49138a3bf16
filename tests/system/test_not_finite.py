"""A loss that is not finite ends a run at once, and what was good before stays."""

import re

import numpy as np


def test_stops_and_leaves_the_good_checkpoints(system, tmp_path) -> None:
    run = tmp_path / "run"
    # Sane for 20 epochs, absurd from then on: the update after step 240 is the first to be bad.
    explode = "--config.optimizers.autoencoder.schedule=step(factor=1e30, epochs=20)"
    last_sane = 20 * system.steps_per_epoch
    ended = system.train(run, explode).wait()
    line = system.explain(ended)
    match = re.fullmatch(
        r"aae_jax: step (\d+): (\S+) of the (\w+) phase is not finite; the last good checkpoint is "
        r"step (\d+) in (\S+); .+",
        line,
    )
    assert match, line
    step, metric, phase, good, folder = match.groups()
    assert (phase == "regularization") == metric.startswith("style/")
    # The absurd update of step 241 is seen by what follows it, in the same step or the next.
    assert last_sane < int(step) <= last_sane + 2
    assert folder == str(run / "checkpoints")
    assert int(good) == system.steps_saved(run)[-1] <= last_sane
    assert int(good) > last_sane - 20 * system.chunk_steps  # it was saving all the time
    assert not (run / "report.html").exists()
    for saved in system.steps_saved(run):
        for name, (kind, content) in system.state(run, saved).items():
            if kind.startswith("float32"):
                assert np.isfinite(np.frombuffer(content, np.float32)).all(), (saved, name)

    # Again: from the good checkpoint to the same end, and the checkpoint is as it was.
    before = system.contents(run / "checkpoints" / good)
    again = system.train(run, explode).wait()
    assert f"resuming from step {good} of {system.num_steps}" in again.out.splitlines()
    match = re.match(rf"aae_jax: step {step}: {metric} of the {phase} phase", system.explain(again))
    assert match, again
    assert system.contents(run / "checkpoints" / good) == before
