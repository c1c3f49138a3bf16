"""A loss that is not finite ends a run at once, and what was good before stays."""

import re

import numpy as np


def test_stops_and_leaves_the_good_checkpoints(system, tmp_path) -> None:
    run = tmp_path / "run"
    # Sane for 10 epochs, absurd from then on: the update after step 120 is the first to be bad.
    explode = "--config.optimizers.autoencoder.schedule=step(factor=1e30, epochs=10)"
    last_sane = 10 * system.steps_per_epoch
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
    # The absurd update of step 121 is seen by what follows it, in the same step or the next.
    assert last_sane < int(step) <= last_sane + 2
    assert folder == str(run / "checkpoints")
    assert int(good) == system.steps_saved(run)[-1] <= last_sane
    assert not (run / "report.html").exists()
    for saved in system.steps_saved(run):
        for name, (kind, content) in system.state(run, saved).items():
            if kind.startswith("float32"):
                assert np.isfinite(np.frombuffer(content, np.float32)).all(), (saved, name)
