"""E1 on digits with every divergence: it trains, and four devices descend the gradient of one."""

import jax
import numpy as np
import pytest

from aae_jax import train
from aae_jax.config import base

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS = 40
CRITICS = ("gan()", "least_squares()", "hinge()", "wasserstein()")
CASES = [*((each, normed) for each in CRITICS for normed in (False, True)), ("mmd()", False)]


def config_of(divergence, spectral_norm):
    config = base()
    with config.unlocked():
        config.style.prior, config.style.divergence = "gaussian(2)", divergence
        config.discriminator.spectral_norm = spectral_norm
        for network in (config.encoder, config.decoder, config.discriminator):
            network.widths, network.init = (32, 32), "he_normal()"
        config.train.chunk_steps = 1
        # The paper's 0.1 is for a discriminator with a sigmoid: squares grow without bound.
        for name in ("discriminator", "generator"):
            config.optimizers[name].learning_rate = 0.01
    return config


def trained(config, devices):
    """Gradients of the first step, which SGD's momentum is, and the metrics of all steps."""
    run = train.prepare(config, jax.devices()[:devices])
    advance, chunks = train.mapped_chunk(run), train.chunks_from(run, 0)
    state, curve, gradients = train.initial_state(run), [], None
    for _ in range(STEPS):
        state, metrics = advance(state, *next(chunks))
        curve.append({name: float(value[0]) for name, value in metrics.items()})
        if gradients is None:
            gradients = {name: jax.device_get(s[0].trace) for name, s in state.opt_states.items()}
    return gradients, curve


@pytest.mark.parametrize(("divergence", "spectral_norm"), CASES)
def test_it_trains_and_four_devices_descend_the_gradient_of_one(divergence, spectral_norm):
    config = config_of(divergence, spectral_norm)
    (one, curve), (four, of_four) = trained(config, 1), trained(config, 4)
    moved = {name: gradient for name, gradient in one.items() if jax.tree.leaves(gradient)}
    critic = set() if divergence == "mmd()" else {"discriminator"}
    assert set(moved) == {"autoencoder", "generator"} | critic
    for name, gradient in moved.items():
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
        assert largest > 0, name
        for leaf, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(four[name]), strict=True):
            np.testing.assert_allclose(other, leaf, rtol=0, atol=1e-5 * largest, err_msg=name)
    for steps in (curve, of_four):
        assert all(np.isfinite(list(metrics.values())).all() for metrics in steps)
        first, last = (
            np.mean([metrics["reconstruction"] for metrics in part])
            for part in (steps[:5], steps[-5:])
        )
        assert last < 0.9 * first
