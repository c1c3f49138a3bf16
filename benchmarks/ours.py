"""This project: its configs, its chunk, and the loop's way of calling it."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aae_jax import train
from aae_jax.config import mnist, use_adam
from benchmarks.workload import Round, Workload, examples
from configs import mnist_gaussian, mnist_semisupervised

LABELS = 100


def config_of(workload: Workload, source: str, compute_dtype: str = "float32") -> ConfigDict:
    """The config of a workload on `source`: the published one at the workload's sizes."""
    config = _EXPERIMENTS[workload.experiment]()
    width = workload.design.width
    config.encoder.widths = config.decoder.widths = (width, width)
    config.discriminator.widths = (
        (width, width // 2) if workload.experiment == "joint" else (width, width)
    )
    config.seed = workload.seed
    config.data.source, config.data.validation = source, 0
    config.train.batch_size = config.train.labelled_batch_size = workload.batch_size
    config.train.chunk_steps = workload.chunk_steps
    config.train.compute_dtype = compute_dtype
    config.train.epochs = 1000.0  # rates that fall to zero shall not do so in a contest
    return config


def prepared(workload: Workload, compute_dtype: str = "float32") -> train.Run:
    """The workload as a run of this project."""
    if workload.data_file:
        return train.prepare(config_of(workload, f"npz:{workload.data_file}", compute_dtype))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npz"
        write_examples(workload, file)
        return train.prepare(config_of(workload, f"npz:{file}", compute_dtype))


def write_examples(workload: Workload, file: Path) -> None:
    """The workload's data as an .npz file; its last hundred training images are the test images."""
    image, label = examples(workload)
    np.savez(file, x_train=image, y_train=label, x_test=image[-100:], y_test=label[-100:])


def contender(workload: Workload, compute_dtype: str = "float32") -> Callable[[], Round]:
    """A round of chunks, each dispatched before the metrics of the one before are read."""
    run = prepared(workload, compute_dtype)
    advance, chunks = train.mapped_chunk(run), train.chunks_from(run, 0)
    state = train.initial_state(run)

    def one_round() -> Round:
        nonlocal state
        pending: Any = None
        for _ in range(workload.steps // workload.chunk_steps):
            state, metrics = advance(state, *next(chunks))
            if pending is not None:
                _read(pending)
            pending = metrics
        return Round(workload.steps * workload.batch_size, _read(pending))

    return one_round


def _read(metrics: dict[str, jax.Array]) -> dict[str, float]:
    values = {name: np.asarray(value) for name, value in metrics.items()}
    return {name: float(value[-1]) for name, value in values.items()}


def _gaussian() -> ConfigDict:
    config = mnist_gaussian.get_config()
    config.model.style_dim = 8
    config.style.prior = "gaussian(8, std=5.0)"
    config.train.averaging = 0.0  # No other contender averages its weights.
    return config


def _semi_supervised() -> ConfigDict:
    return mnist_semisupervised.get_config(str(LABELS))


def _joint() -> ConfigDict:
    """The sizes of PyTorch-GAN's AAE, trained in the paper's two phases.

    Not the same work: theirs is one joint step with batch normalisation of one layer in two; this
    has a pass more, and normalises every hidden layer of encoder and decoder.
    """
    config = mnist()
    use_adam(config, 2e-4, 2e-4, 2e-4)
    for name in ("autoencoder", "discriminator", "generator"):
        config.optimizers[name].momentum = 0.5
    for network in ("encoder", "decoder", "discriminator"):
        config[network].activation = "leaky_relu"
    config.encoder.batch_norm = config.decoder.batch_norm = True
    config.model.posterior = "gaussian"
    config.model.style_dim = 10
    config.style.prior = "gaussian(10, std=1.0)"
    return config


_EXPERIMENTS = {"E1": _gaussian, "E11": _semi_supervised, "joint": _joint}
