"""What the explorer shows of a trained model, as arrays."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import gaussian_filter

from aae_jax.arguments import InferenceError
from aae_jax.data.sources import Arrays
from aae_jax.inference import Trained
from aae_jax.priors import sample_batch
from aae_jax.randomness import named

# Percentiles that the sliders run over: a Gaussian has no ends.
LEVELS = np.linspace(0.5, 99.5, 199)
# Points of the scatter; more only hide each other.
MOST_CODES = 2000
MOST_PICTURES = 40
_SAMPLES = 200_000
_SHOWN_SAMPLES = 1500
_BINS = 120
# Share of the prior that its outline encloses.
_INSIDE = 0.95


class Outline(NamedTuple):
    """The prior's density on a grid of the plane, and the height that encloses 95 % of it."""

    x: Float[np.ndarray, "bins"]
    y: Float[np.ndarray, "bins"]
    density: Float[np.ndarray, "bins bins"]
    level: float


class Scene(NamedTuple):
    """What the explorer shows.

    Attributes:
        title: of the run's config.
        name: of the run's folder.
        codes: styles of test images.
        labels: their true labels, -1 where unknown.
        shown_labels: what the decoder is given beside each style, a distribution over the classes
            or clusters; None where it sees the style alone.
        label_name: "Label" or "Cluster", what such a distribution is over.
        pictured: numbers of the test images to click on.
        pictures: these images, from 0 to 1.
        low, high: what 0 and 1 of a picture are in the data's units.
        samples: of the prior, or of the codes where the run pulled them to none.
        percentiles: of each dimension of these samples, at `LEVELS`.
        outline: of the prior, where the style is a plane.
        follows_prior: whether the samples are the prior's.
    """

    title: str
    name: str
    codes: Float[np.ndarray, "n style"]
    labels: Int[np.ndarray, "n"]
    shown_labels: Float[np.ndarray, "n labels"] | None
    label_name: str
    pictured: Int[np.ndarray, "m"]
    pictures: Float[np.ndarray, "m h w c"]
    low: float
    high: float
    samples: Float[np.ndarray, "samples style"]
    percentiles: Float[np.ndarray, "levels style"]
    outline: Outline | None
    follows_prior: bool


def scene(model: Trained, test: Arrays, name: str) -> Scene:
    """The scene of a trained model.

    Args:
        model: the model.
        test: its test images and their labels.
        name: what the run is called.

    Raises:
        InferenceError: its examples are no images, its style has one dimension, or it has no
            decoder; one line.
    """
    _check_shape(model.data.image_shape, model.config.model.style_dim)
    images, labels = test.image[:MOST_CODES], test.label[:MOST_CODES]
    codes, inferred = model.encode(images)
    follows = bool(model.config.style.divergence) or model.config.penalties.kl > 0
    samples = _samples(model) if follows else codes
    pictured = pick(labels, MOST_PICTURES)
    low, high = (0.0, 1.0) if images.dtype == np.uint8 else (images.min(), images.max())
    scale = 255 if images.dtype == np.uint8 else 1
    knows_classes = model.config.model.layout == "style_and_given_label" or (
        "classification" in model.config.phases
    )
    return Scene(
        title=model.config.title,
        name=name,
        codes=codes,
        labels=labels,
        shown_labels=_shown_labels(model, labels, inferred),
        label_name="Label" if knows_classes else "Cluster",
        pictured=pictured,
        pictures=as_shown(images[pictured] / scale, low, high),
        low=float(low),
        high=float(high),
        samples=samples[:_SHOWN_SAMPLES],
        percentiles=np.percentile(samples, LEVELS, axis=0).astype(np.float32),
        outline=outline_of(samples) if follows and samples.shape[1] == 2 else None,
        follows_prior=follows,
    )


def as_shown(
    images: Float[np.ndarray, "*shape"], low: float, high: float
) -> Float[np.ndarray, "*shape"]:
    """Images in the data's units as brightness from 0 (low) to 1 (high)."""
    return np.clip((images - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)


def pick(labels: Int[np.ndarray, "n"], most: int) -> Int[np.ndarray, "m"]:
    """Numbers of up to `most` examples, as many of each label as of another, in their order."""
    order = np.argsort(labels, kind="stable")
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    turn = np.arange(len(labels)) - np.repeat(first, counts)
    chosen = np.argsort(turn, kind="stable")[:most]
    return order[np.sort(chosen)]


def outline_of(samples: Float[np.ndarray, "n 2"]) -> Outline:
    """The outline of what the samples are drawn from, by a smoothed histogram."""
    low, high = samples.min(axis=0), samples.max(axis=0)
    margin = 0.1 * (high - low)
    ends = np.stack([low - margin, high + margin], axis=1).tolist()
    counts, x, y = np.histogram2d(samples[:, 0], samples[:, 1], bins=_BINS, range=ends)
    density = gaussian_filter(counts.T, 2.0)
    order = np.argsort(-density, axis=None)
    held = np.cumsum(counts.T.ravel()[order])
    level = density.ravel()[order][np.searchsorted(held, _INSIDE * held[-1])]
    return Outline((x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2, density, float(level))


def _check_shape(image_shape: tuple[int, ...], style_dim: int) -> None:
    if len(image_shape) != 3 or image_shape[2] not in (1, 3):
        raise InferenceError(
            f"the explorer shows images [h, w, 1] or [h, w, 3]; this run's examples are "
            f"{list(image_shape)}"
        )
    if style_dim < 2:
        raise InferenceError(
            "the explorer shows a plane; this run's style has one dimension (model.style_dim)"
        )


def _samples(model: Trained) -> Float[np.ndarray, "n style"]:
    keys = jax.random.split(named(jax.random.key(0), "explorer"), _SAMPLES)
    return np.asarray(jax.jit(lambda keys: sample_batch(model.prior, keys))(keys))


def _shown_labels(
    model: Trained, labels: Int[np.ndarray, "n"], inferred: Float[np.ndarray, "n labels"] | None
) -> Float[np.ndarray, "n labels"] | None:
    if model.config.model.layout == "style":
        return None
    if inferred is not None:
        return inferred
    # An unknown label is decoded as the first one, and can be changed on the page.
    count = model.config.model.labels
    return np.eye(count, dtype=np.float32)[np.clip(labels, 0, count - 1)]
