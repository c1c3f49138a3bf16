"""What a trained model says, as arrays: codes of images, decoded codes, generated images.

`Readings` is what assessments are made from; each array is computed once, when first asked for.
"""

from copy import copy
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from aae_jax.coding import coder, in_blocks, weights_of
from aae_jax.data import preprocessing as pre
from aae_jax.data.sources import Arrays
from aae_jax.data.splits import Splits
from aae_jax.experiment import Experiment
from aae_jax.networks import one_hot
from aae_jax.priors import fitted_gaussian, sample_batch
from aae_jax.randomness import named
from aae_jax.state import TrainState, evaluated_params
from aae_jax.validation import BLOCK, encoded

Codes = dict[str, np.ndarray]

# As many as are encoded to learn from, and read for comparisons where they are not in memory.
_TRAIN_IMAGES = 10_000


class Generated(NamedTuple):
    """Images decoded from samples of the prior.

    Attributes:
        image: [n, ...], in the data's units, clipped to their range.
        label: [n], the label or cluster decoded; -1 without one.
    """

    image: Float[np.ndarray, "n ..."]
    label: Int[np.ndarray, "n"]


class Readings:
    """A state of an experiment, asked about its data; everything follows from the key."""

    def __init__(
        self,
        experiment: Experiment,
        state: TrainState,
        splits: Splits,
        train_labels: Int[np.ndarray, "train"],
        preprocessing: pre.Preprocessing,
        key: Key[Array, ""],
        num_samples: int,
    ):
        """Computes nothing yet.

        Args:
            experiment, state: the trained model.
            splits: the run's data.
            train_labels: every training label, also those hidden from training.
            preprocessing: the run's constants.
            key: of everything random.
            num_samples: prior samples and generated images that scores rest on.
        """
        self.experiment, self.state, self.splits = experiment, state, splits
        self.train_labels, self.key, self.num_samples = train_labels, key, num_samples
        self._preprocessing = preprocessing
        self._encode = encoded(experiment, preprocessing)
        self._decode = self._decoder()

    def with_fitted_prior(self) -> "Readings":
        """The same, with the Gaussian of the training codes' mean and covariance as the prior.

        What an autoencoder that follows no prior can be sampled by (ex-post density estimation,
        Ghosh et al., 2020, arXiv:1903.12436).
        """
        fitted = copy(self)
        fitted.experiment = self.experiment._replace(
            style_prior=fitted_gaussian(self.train["style"])
        )
        return fitted

    @property
    def has_images(self) -> bool:
        """Whether the data are images, not rows of a table."""
        return self.splits.train.image.ndim == 4

    @property
    def decoder_takes_label(self) -> bool:
        """Whether what is decoded has a label or cluster beside the style."""
        return self.experiment.model.layout != "style"

    @cached_property
    def test(self) -> Codes:
        """Codes and reconstructions of all test images (see `aae_jax.validation.encoded`)."""
        return self._encoded(self.splits.test, "test")

    @cached_property
    def valid(self) -> Codes:
        """The same of all validation images."""
        return self._encoded(self.splits.valid, "valid")

    @cached_property
    def train(self) -> Codes:
        """The same of the first 10,000 training images; labels there are all that is known."""
        images = np.asarray(self.splits.train.image[:_TRAIN_IMAGES])
        return self._encoded(Arrays(images, self.train_labels[:_TRAIN_IMAGES]), "train")

    @cached_property
    def train_images(self) -> UInt8[np.ndarray, "n ..."] | Float[np.ndarray, "n ..."]:
        """Training images to compare with: all in memory, or the first 10,000 of stored ones."""
        images = self.splits.train.image
        return images if isinstance(images, np.ndarray) else np.asarray(images[:_TRAIN_IMAGES])

    @cached_property
    def prior_samples(self) -> Float[np.ndarray, "n style"]:
        """Samples of the style's prior."""
        keys = jax.random.split(named(self.key, "prior"), 2 * self.num_samples)
        return np.asarray(sample_batch(self.experiment.style_prior, keys))

    @cached_property
    def generated(self) -> Generated:
        """`num_samples` images decoded from the prior."""
        return self.generate(named(self.key, "generated"), self.num_samples)

    @property
    def cluster_heads(self) -> Float[np.ndarray, "labels style"]:
        """W_C of the dimensionality-reducing layout, learned or fixed."""
        model, params = self.experiment.model, evaluated_params(self.state)
        return np.asarray(model.heads(params))

    def generate(self, key: Key[Array, ""], n: int) -> Generated:
        """Decodes n samples of the prior, labels drawn uniformly where the decoder takes one."""
        style_key, label_key = jax.random.split(key)
        style = sample_batch(self.experiment.style_prior, jax.random.split(style_key, n))
        label = np.full(n, -1)
        if self.decoder_takes_label:
            num_labels = self.experiment.model.num_labels
            label = np.asarray(jax.random.randint(label_key, (n,), 0, num_labels))
        return Generated(self.decode(np.asarray(style), label), label)

    def decode(
        self, style: Float[np.ndarray, "n style"], label: Int[np.ndarray, "n"] | None = None
    ) -> Float[np.ndarray, "n ..."]:
        """Images of styles, each with its label where the decoder takes one.

        Returns:
            [n, ...] in the data's units, clipped to [0, 1] for images that came as uint8.
        """
        label = np.full(len(style), -1) if label is None else label
        size = min(BLOCK, len(style))
        return in_blocks(self._decode, size, weights_of(self.state), self.key, style, label)

    def shown(self, images: np.ndarray) -> Float[np.ndarray, "n ..."]:
        """Images in the data's units (or as stored) as floats in [0, 1], for a person."""
        if images.dtype == np.uint8:
            return (images / 255).astype(np.float32)
        low, high = self._range
        return np.clip((images - low) / (high - low), 0, 1).astype(np.float32)

    @cached_property
    def _range(self) -> tuple[float, float]:
        stored = self.splits.train.image
        if not isinstance(stored, np.ndarray) or stored.dtype == np.uint8:
            return 0.0, 1.0
        low, high = float(stored.min()), float(stored.max())
        return low, max(high, low + 1e-6)

    def _encoded(self, arrays: Arrays, name: str) -> Codes:
        return self._encode(self.state, arrays.image, arrays.label, named(self.key, name))

    def _decoder(self):  # type: ignore[no-untyped-def]
        model, clip = self.experiment.model, self.splits.train.image.dtype == np.uint8
        decode_batch = coder(model, self._preprocessing).decode

        @jax.jit
        def decode(weights, keys, style, label):  # type: ignore[no-untyped-def]
            given = one_hot(label, model.num_labels) if self.decoder_takes_label else None
            image = decode_batch(weights, keys, style, given)
            return jnp.clip(image, 0, 1) if clip else image

        return decode
