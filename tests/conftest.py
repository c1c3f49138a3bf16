"""Every test may use four (forced CPU) devices; no test may use the network."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from aae_jax import checkpoints, workdir
from aae_jax.config import base, validate
from aae_jax.data import description, load, preprocessing
from aae_jax.data.sources import Arrays
from aae_jax.data.splits import Splits
from aae_jax.experiment import build
from aae_jax.model import LIKELIHOODS, Model, autoencoder, encoder_heads
from aae_jax.networks import (
    MLP,
    ConvolutionalDecoder,
    ConvolutionalTrunk,
    Decoder,
    Discriminator,
    Encoder,
)
from aae_jax.phases import (
    Match,
    Penalty,
    Phase,
    classification,
    critic_features,
    reconstruction,
    regularization,
    smoothness,
)
from aae_jax.state import ALONE, Collective, TrainState, Update, init_state
from benchmarks import tfds_sets

if jax.__version_info__[:2] <= (0, 10):  # an unknown flag of a later XLA would end the process
    # On a busy machine a device may wait for others longer than the 40 s after which XLA aborts.
    wait = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {wait}"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)

IMAGE_SHAPE = (8, 8, 1)
STYLE_DIM = 3
# Rate and momentum of the paper (appendix A.2.1).
PAPER_RATES = {
    "autoencoder": (0.01, 0.9),
    "discriminator": (0.1, 0.1),
    "generator": (0.1, 0.1),
    "classifier": (0.1, 0.9),
    "smoothness": (0.1, 0.9),
}


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """For modules whose tests compile much and compute little: halves their time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def write_tfds() -> Callable[..., str]:
    """Writes TFDS sets: (folder, name, {split: (images, labels or None)}) -> their spec."""
    return tfds_sets.write


@pytest.fixture(scope="session")
def stored_digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Some of scikit-learn's digits as a TFDS set: (spec, data_dir)."""
    source, folder = load("digits"), tmp_path_factory.mktemp("stored")
    parts = {"train": (source.train, 500), "test": (source.test, 100)}
    splits = {name: (part.image[:n], part.label[:n]) for name, (part, n) in parts.items()}
    return tfds_sets.write(folder, "aae_digits", splits), str(folder)


class Small(NamedTuple):
    """An experiment on 8x8 images with narrow networks, composed by hand, without a config."""

    model: Model
    updates: dict[str, Update]
    reconstruction: Phase
    regularization: Phase
    classification: Phase
    smoothness: Callable[..., Phase]  # (radius, penalties, augmentation)
    init: Callable[[jax.Array], TrainState]
    state: Callable[..., TrainState]  # (std, seed): weights from NumPy, as in `random_weights`


class ArrayReader:
    """Stored images (see `aae_jax.data.stored`) in memory, and a list of what was read."""

    def __init__(self, images: np.ndarray):
        self.images, self.shape = images, images.shape[1:]
        self.read_rows: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: np.ndarray) -> np.ndarray:
        self.read_rows.append(rows)
        return self.images[rows]


class EndlessReader:
    """Stored images that are made when read."""

    shape = (32, 32, 3)

    def __init__(self, n: int):
        self._n = n

    def __len__(self) -> int:
        return self._n

    def read(self, rows: np.ndarray) -> np.ndarray:
        return np.full((len(rows), *self.shape), rows[:, None, None, None] % 251, np.uint8)


@pytest.fixture(scope="session")
def array_reader() -> type[ArrayReader]:
    """images -> a reader of them."""
    return ArrayReader


@pytest.fixture(scope="session")
def endless_reader() -> type[EndlessReader]:
    """n -> a reader of so many images."""
    return EndlessReader


@pytest.fixture(scope="session")
def narrow_config() -> Callable[..., ConfigDict]:
    """The base config with narrow networks and dotted fields changed: (**fields) -> config."""

    def narrow(**fields: Any) -> ConfigDict:
        config = base()
        for net in ("encoder", "decoder", "discriminator"):
            config[net].widths = (6,)
        for field, value in fields.items():
            *parents, last = field.split(".")
            reduce(getitem, parents, config)[last] = value
        validate(config)
        return config

    return narrow


@pytest.fixture(scope="session")
def small_images() -> Callable[..., Arrays]:
    """Random images and labels: (n, seed, shape, dtype, classes) -> Arrays."""

    def draw(
        n: int,
        seed: int,
        shape: tuple[int, ...] = (4, 4, 1),
        dtype: Any = np.uint8,
        classes: int = 3,
    ) -> Arrays:
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (n, *shape)).astype(np.uint8)
        if dtype != np.uint8:
            image = (image / 10 - 5).astype(dtype)
        return Arrays(image, rng.integers(0, classes, n).astype(np.int32))

    return draw


@pytest.fixture(scope="session")
def random_weights() -> Callable[..., Any]:
    """Fills what `init(key)` would return with NumPy's numbers: (init, std) -> variables.

    Biases are random too, and nothing is compiled.
    """
    return _random_weights


@pytest.fixture(scope="session")
def save_run(random_weights: Callable[..., Any]) -> Callable[..., Path]:
    """Makes the folder of a run with random weights at step 7: (folder, config, images) -> it."""

    def save(folder: Path, config: ConfigDict, images: Arrays) -> Path:
        splits = Splits(images, images, images, np.arange(len(images.label)), 3)
        described = description.describe(splits)
        shape, n = described.image_shape, described.num_examples
        experiment = build(config, image_shape=shape, num_classes=3, num_examples=n)
        weights, stats = random_weights(experiment.model.init, 0.8)
        state = jax.eval_shape(experiment.init, jax.random.key(0)).replace(
            step=jnp.int32(7),
            params=weights,
            batch_stats=jax.tree.map(lambda leaf: leaf + 0.5, stats),
            opt_states={},
            key=jnp.zeros(2),
        )
        if state.averaged_params is not None:
            averaged = {name: weights[name] for name in state.averaged_params}
            state = state.replace(averaged_params=jax.tree.map(lambda leaf: leaf / 2, averaged))
        folder.mkdir(parents=True)
        workdir.claim(folder, config)
        constants = preprocessing.fit(config.data.preprocessing, images.image)
        preprocessing.save(constants, folder / workdir.PREPROCESSING)
        description.save(described, folder / workdir.DESCRIPTION)
        with checkpoints.open_checkpoints(folder / "checkpoints") as manager:
            checkpoints.save(manager, 7, state)
            checkpoints.close(manager)
        return folder

    return save


def _random_weights(init: Callable[[jax.Array], Any], std: float = 0.3) -> Any:
    rng = np.random.default_rng(7)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = rng.normal(scale=std, size=leaf.shape)
        start = {"mean": 0.0, "var": 1.0, "scale": 1 + values}.get(path[-1].key, values)
        return jnp.asarray(np.broadcast_to(start, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(init, jax.random.key(0)))


@pytest.fixture(scope="session")
def small_experiment() -> Callable[..., Small]:
    """Builds small experiments: (matches, **changes) -> Small."""
    return _small_experiment


def _small_experiment(
    matches: Sequence[Match] = (),
    *,
    labels: int = 0,
    layout: str = "style",
    posterior: str = "deterministic",
    batch_norm: bool = False,
    channels: int = 0,
    spectral_norm: bool = False,
    kernel_init: Any = None,
    dtype: Any = jnp.float32,
    penalties: Mapping[str, Penalty] | None = None,
    averaged: Sequence[str] = (),
    rates: Mapping[str, tuple[float, float]] | None = None,
    collective: Collective = ALONE,
    **changes: Any,
) -> Small:
    init = kernel_init or nn.initializers.he_normal()
    axis = collective.axis_name
    inferred = 0 if layout == "style_and_given_label" else labels
    trunk: nn.Module = MLP((16,), "relu", init, batch_norm, axis_name=axis, dtype=dtype)
    decoder: nn.Module = Decoder(MLP((16,), "relu", init, dtype=dtype), IMAGE_SHAPE, init)
    if channels:
        layers = MLP((16,), "relu", init, batch_norm, 0.2, axis, dtype)
        trunk = ConvolutionalTrunk(layers, IMAGE_SHAPE, channels)
        decoder = ConvolutionalDecoder(layers, IMAGE_SHAPE, channels)
    encoder = Encoder(
        trunk,
        encoder_heads(posterior, STYLE_DIM, inferred),
        init,
        batch_norm,
        axis,
    )
    discriminators = {
        match.part: (
            Discriminator((16,), "relu", init, spectral_norm, dtype),
            critic_features(match),
        )
        for match in matches
        if match.divergence.critic_loss is not None
    }
    likelihood = changes.pop("likelihood", LIKELIHOODS["sigmoid"])
    model = autoencoder(
        encoder,
        decoder,
        discriminators,
        image_shape=IMAGE_SHAPE,
        style_dim=STYLE_DIM,
        num_labels=labels,
        likelihood=likelihood,
        posterior=posterior,
        layout=layout,
        **changes,
    )
    autoencoder_subtrees = ("encoder", "decoder")
    if "cluster_heads" in changes:
        autoencoder_subtrees += ("cluster_heads",)
    subtrees = {
        "autoencoder": autoencoder_subtrees,
        "discriminator": ("discriminator",),
        "generator": ("encoder",),
        "classifier": ("encoder",),
        "smoothness": ("encoder",),
    }
    updates = {
        name: Update(name, subtrees[name], optax.sgd(rate, momentum), collective.average)
        for name, (rate, momentum) in {**PAPER_RATES, **(rates or {})}.items()
    }

    def start(key: jax.Array, weights: tuple[Any, Any]) -> TrainState:
        return init_state(key, *weights, tuple(updates.values()), tuple(averaged))

    return Small(
        model,
        updates,
        reconstruction(model, updates["autoencoder"], penalties or {}),
        regularization(
            model, tuple(matches), updates["discriminator"], updates["generator"], collective
        ),
        classification(model, updates["classifier"]),
        lambda radius, penalties={}, augmentation=None: smoothness(
            model, updates["smoothness"], radius, penalties, augmentation
        ),
        lambda key: start(key, model.init(key)),
        lambda std=0.3, seed=0: start(jax.random.key(seed), _random_weights(model.init, std)),
    )
