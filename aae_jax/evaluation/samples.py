"""How far a model's samples are from real images, in a classifier's features or in pixels.

The feature space is that of a small classifier trained here, on the same data (`train_classifier`):
its Frechet and kernel distances rank models of one data set under one classifier, and are not
comparable with those of published Inception features. Its predictions also judge whether a decoded
image carries the label it was asked for (paper, Fig 6 and 7).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32, Integer, Key, PyTree, Shaped

from aae_jax.evaluation.pairwise import centred, map_rows


class KernelDistance(NamedTuple):
    """Kernel distance, dimensionless: 0 at best, below zero by chance."""

    mean: float
    standard_error: float  # NaN if the sets make a single block


class PrecisionRecall(NamedTuple):
    """Fractions: of samples that look real, and of real images that the samples cover."""

    precision: float
    recall: float


class NearestImages(NamedTuple):
    """For every sample, the training image nearest to it."""

    indices: Int32[np.ndarray, " n"]
    distances: Float32[np.ndarray, " n"]  # Euclidean, over all pixels


class SampleDistances(NamedTuple):
    """Distances of samples to real images in a feature space."""

    frechet: float  # squared feature units, 0 at best
    kernel: float  # dimensionless, 0 at best, below zero by chance
    kernel_standard_error: float
    precision: float  # fraction, 1 at best
    recall: float  # fraction, 1 at best


class Classifier(NamedTuple):
    """A trained classifier, as jitted functions of any number of images."""

    features: Callable[[Float[Array | np.ndarray, "n ..."]], Float[Array, "n features"]]
    logits: Callable[[Float[Array | np.ndarray, "n ..."]], Float[Array, "n classes"]]


def frechet_distance(
    features_a: Float[Array | np.ndarray, "n f"], features_b: Float[Array | np.ndarray, "m f"]
) -> float:
    """Frechet distance of the Gaussians with the two sets' moments, in squared feature units.

    ||mean_a - mean_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2), in float64. It falls as the sets grow
    (the bias is of order f / n): compare equal numbers only. Reference: Heusel et al. 2017
    (https://arxiv.org/abs/1706.08500).

    Raises:
        ValueError: if either set has fewer than two rows, or a value is not finite.
    """
    if min(len(features_a), len(features_b)) < 2:
        raise ValueError("a covariance needs two rows of each")
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features must be finite")
    covariance_a, covariance_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    # tr (C_a C_b)^1/2 = tr (C_a^1/2 C_b C_a^1/2)^1/2, and this one is symmetric: real eigenvalues
    # also when a covariance is singular, where a general matrix root is unstable.
    values, vectors = np.linalg.eigh(covariance_a)
    root_a = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    shared = np.linalg.eigvalsh(root_a @ covariance_b @ root_a)
    cross = np.sqrt(np.maximum(shared, 0)).sum()
    means = np.square(a.mean(0) - b.mean(0)).sum()
    distance = means + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross
    return float(max(distance, 0.0))


def kernel_distance(
    features_a: Float[Array | np.ndarray, "n f"],
    features_b: Float[Array | np.ndarray, "m f"],
    key: Key[Array, ""],
    block_size: int = 1000,
) -> KernelDistance:
    """Kernel (inception) distance: unbiased squared MMD with the kernel (a.b / f + 1)^3.

    The mean over blocks of about `block_size` rows of each set, shuffled, none used twice; hence
    the standard error. In float64. Unlike the Frechet distance it has no bias, so sets of different
    sizes compare. Reference: Binkowski et al. 2018 (https://arxiv.org/abs/1801.01401).

    Args:
        features_a: [n, f].
        features_b: [m, f].
        key: shuffles the rows.
        block_size: rows of each set in a block, at least; fewer where a set is smaller.

    Raises:
        ValueError: if either set has fewer than two rows, or `block_size` is below two.
    """
    smaller = min(len(features_a), len(features_b))
    if min(smaller, block_size) < 2:
        raise ValueError("an unbiased MMD needs two rows of each")
    num_blocks = max(1, smaller // block_size)
    rng = _generator(key)
    blocks_a = _shuffled_blocks(features_a, rng, smaller, num_blocks)
    blocks_b = _shuffled_blocks(features_b, rng, smaller, num_blocks)
    estimates = np.array([_polynomial_mmd(*pair) for pair in zip(blocks_a, blocks_b, strict=True)])
    spread = estimates.std(ddof=1) if num_blocks > 1 else np.nan
    return KernelDistance(float(estimates.mean()), float(spread / np.sqrt(num_blocks)))


def _generator(key: Key[Array, ""]) -> np.random.Generator:
    """NumPy's generator seeded by a key: a shuffle on the host needs no compilation."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _shuffled_blocks(
    features: Float[Array | np.ndarray, "n f"],
    rng: np.random.Generator,
    num_rows: int,
    num_blocks: int,
) -> list[Float[np.ndarray, "_ f"]]:
    """Blocks of almost equal size that share out `num_rows` of the rows, drawn at random."""
    rows = rng.permutation(len(features))[:num_rows]
    return np.array_split(np.asarray(features, np.float64)[rows], num_blocks)


def _polynomial_mmd(a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"]) -> float:
    """Unbiased squared MMD with the kernel (a.b / f + 1)^3."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        base = x @ y.T / x.shape[1] + 1
        return base * base * base

    def mean_within(x: np.ndarray) -> float:
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return float(mean_within(a) + mean_within(b) - 2 * kernel(a, b).mean())


def precision_recall(
    real: Float[Array | np.ndarray, "n f"],
    generated: Float[Array | np.ndarray, "m f"],
    k: int = 3,
) -> PrecisionRecall:
    """Improved precision and recall, fractions.

    A set's manifold is the union of balls around its points, each reaching to the k-th nearest
    other point. Precision: the generated points in the real manifold; recall: the real points in
    the generated one. Compare equal numbers only. Reference: Kynkaanniemi et al. 2019
    (https://arxiv.org/abs/1904.06991).

    Args:
        real: features of real images, [n, f].
        generated: features of samples, [m, f].
        k: the neighbour whose distance is the radius.

    Raises:
        ValueError: unless both sets have more than k rows, and k >= 1.
    """
    if k < 1 or min(len(real), len(generated)) <= k:
        raise ValueError(f"k = {k} neighbours need k >= 1 and more than k rows of each")
    real, generated = centred(real, generated)
    precision = _in_manifold(generated, real, k=k).mean()
    return PrecisionRecall(float(precision), float(_in_manifold(real, generated, k=k).mean()))


@partial(jax.jit, static_argnames="k")
def _in_manifold(
    points: Float[Array, "n f"], manifold: Float[Array, "m f"], *, k: int
) -> Bool[Array, " n"]:
    """Whether each point lies within the k-th neighbour's distance of a point of the manifold."""

    def without_nearest(_: Array, squared: Array) -> Array:
        return squared.at[jnp.argmin(squared)].set(jnp.inf)

    def squared_radius(squared: Array, number: Array) -> Array:
        # The k-th smallest by k minima in turn: `lax.top_k` takes ten times as long on a CPU.
        others = squared.at[number].set(jnp.inf)
        return lax.fori_loop(0, k - 1, without_nearest, others).min()

    radii = map_rows(squared_radius, manifold, manifold)
    point_norms, norms = jnp.sum(points * points, -1), jnp.sum(manifold * manifold, -1)

    def is_inside(squared: Array, number: Array) -> Array:
        # Lest by rounding a point fall out of a ball of radius zero around its own copy.
        rounding = 1e-6 * (point_norms[number] + norms)
        return jnp.any(squared <= radii + rounding)

    return map_rows(is_inside, points, manifold)


def nearest_training_images(
    samples: Float[Array | np.ndarray, "n d"], train: Float[Array | np.ndarray, "m d"]
) -> NearestImages:
    """For every sample the nearest training image by Euclidean distance (paper, Fig 5).

    Args:
        samples: flattened images, [n, d].
        train: flattened training images, [m, d].

    Raises:
        ValueError: if there is no training image.
    """
    if len(train) == 0:
        raise ValueError("there is no training image")
    indices = np.asarray(_nearest_rows(*centred(samples, train)))
    # The chosen pair's distance anew, without the cancellation: a copied image is at exactly 0.
    differences = np.asarray(samples, np.float64) - np.asarray(train)[indices]
    return NearestImages(indices, np.linalg.norm(differences, axis=1).astype(np.float32))


@jax.jit
def _nearest_rows(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Int32[Array, " n"]:
    return map_rows(lambda squared, _: jnp.argmin(squared), x, y)


def sample_distances(
    real_features: Float[Array | np.ndarray, "n f"],
    generated_features: Float[Array | np.ndarray, "m f"],
    key: Key[Array, ""],
) -> SampleDistances:
    """All the distances of samples to real images in one feature space.

    Give it as many samples as real images that the classifier was not trained on; see
    `frechet_distance`, `kernel_distance` and `precision_recall`.

    Args:
        real_features: `Classifier.features` of held-out images, [n, f].
        generated_features: those of samples, [m, f].
        key: draws the kernel distance's blocks.

    Raises:
        ValueError: for fewer than four rows of either.
    """
    kernel = kernel_distance(real_features, generated_features, key)
    manifolds = precision_recall(real_features, generated_features)
    return SampleDistances(
        frechet=frechet_distance(real_features, generated_features),
        kernel=kernel.mean,
        kernel_standard_error=kernel.standard_error,
        precision=manifolds.precision,
        recall=manifolds.recall,
    )


class _StridedConvolution(nn.Module):
    """A 3x3 convolution of stride 2, as one product of patches with weights.

    XLA's CPU convolutions lose their threads inside a loop: in the scanned training below they
    take ten times as long as this.
    """

    channels: int

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 channels"]:
        height, width = -(-images.shape[1] // 2), -(-images.shape[2] // 2)
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = [
            padded[:, row : row + 2 * height : 2, column : column + 2 * width : 2]
            for row in range(3)
            for column in range(3)
        ]
        return nn.Dense(self.channels)(jnp.concatenate(patches, -1))


class _FeatureNetwork(nn.Module):
    """Features and logits of images (by convolutions) or of rows (by one hidden layer)."""

    num_classes: int
    num_features: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "n ..."]
    ) -> tuple[Float[Array, "n features"], Float[Array, "n classes"]]:
        hidden = images
        if images.ndim == 4:
            channels = 16
            while min(hidden.shape[1:3]) > 7:
                hidden = nn.relu(_StridedConvolution(channels)(hidden))
                channels *= 2
        else:
            hidden = nn.relu(nn.Dense(2 * self.num_features)(hidden))
        flat = hidden.reshape(len(hidden), -1)
        features = nn.relu(nn.Dense(self.num_features)(flat))
        return features, nn.Dense(self.num_classes)(features)


class _Normalisation(NamedTuple):
    """Mean and scale of the training images, per channel or per column of rows."""

    mean: Array
    scale: Array


def train_classifier(
    images: Float[Array | np.ndarray, "n ..."],
    labels: Integer[Array | np.ndarray, " n"],
    num_classes: int,
    key: Key[Array, ""],
    *,
    num_features: int = 128,
    num_steps: int = 2000,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
) -> Classifier:
    """A small classifier of real training images: features to measure samples in, and a judge.

    A convolutional network for images [n, h, w, c], a perceptron for rows [n, features]; its
    features are the `num_features` rectified units before the logits, in units of their root mean
    square over training images, so that distances in them are of order one. Adam with a cosine
    schedule, each pass over the images in a new order. Deterministic given the key. With the
    default steps: 98.9 % on MNIST's test images, 98 % on a random third of the 8x8 digits.

    Args:
        images: training images, floats in [0, 1]: [n, h, w, c], or rows [n, features].
        labels: [n]; images of unknown label (-1) are left out.
        num_classes: how many classes.
        key: draws the weights and the order of the images.
        num_features: width of the feature layer.
        num_steps: gradient steps, whatever the number of images.
        batch_size: images a step; fewer where there are not as many.
        learning_rate: Adam's, at the start.

    Returns:
        The classifier's two functions, each of images [any n, ...] shaped like these.

    Raises:
        ValueError: if the images are neither [n, h, w, c] nor [n, features], or not floats; if no
            label is known, or one is not below `num_classes`.
    """
    images, labels = _labelled(images, labels, num_classes)
    normalisation = _normalisation(images)
    init_key, order_key = jax.random.split(key)
    network = _FeatureNetwork(num_classes, num_features)
    params = _initial_params(network, init_key, images[:1])
    order = _batches(order_key, len(images), num_steps, min(batch_size, len(images)))
    params = _fit(network, params, normalisation, images, labels, order, learning_rate)
    some_features = _apply(network, params, normalisation, images[:10_000])[0]
    unit = jnp.sqrt(jnp.mean(jnp.square(some_features)))
    return Classifier(
        features=lambda images: _apply(network, params, normalisation, images)[0] / unit,
        logits=lambda images: _apply(network, params, normalisation, images)[1],
    )


def _labelled(
    images: Shaped[Array | np.ndarray, "n ..."],
    labels: Integer[Array | np.ndarray, " n"],
    num_classes: int,
) -> tuple[Float32[Array, "known ..."], Int32[Array, " known"]]:
    """The images whose label is known, checked."""
    if images.ndim not in (2, 4):
        raise ValueError(f"images must be [n, h, w, c] or [n, features], got {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats in [0, 1], got {images.dtype}")
    labels = np.asarray(labels)
    known = labels >= 0
    if not known.any():
        raise ValueError("no image has a known label")
    if labels.max() >= num_classes:
        raise ValueError(f"label {labels.max()} is not below num_classes = {num_classes}")
    return jnp.asarray(images[known], jnp.float32), jnp.asarray(labels[known], jnp.int32)


def _normalisation(images: Float32[Array, "n ..."]) -> _Normalisation:
    over = tuple(range(images.ndim - 1))
    # A column that hardly ever varies, like a border pixel, must not be blown up where it does.
    return _Normalisation(images.mean(over), jnp.maximum(images.std(over), 0.05))


def _batches(
    key: Key[Array, ""], num_images: int, num_steps: int, batch_size: int
) -> Integer[np.ndarray, "steps batch"]:
    """The rows of each step: shuffled passes over the images, end to end."""
    rng, drawn = _generator(key), num_steps * batch_size
    passes = [rng.permutation(num_images) for _ in range(-(-drawn // num_images))]
    return np.concatenate(passes)[:drawn].reshape(num_steps, batch_size)


@partial(jax.jit, static_argnames="network")
def _initial_params(
    network: _FeatureNetwork, key: Key[Array, ""], image: Float32[Array, "1 ..."]
) -> PyTree:
    return network.init(key, image)


@partial(jax.jit, static_argnames="network")
def _fit(
    network: _FeatureNetwork,
    params: PyTree,
    normalisation: _Normalisation,
    images: Float32[Array, "n ..."],
    labels: Int32[Array, " n"],
    order: Integer[Array, "steps batch"],
    learning_rate: float | Array,
) -> PyTree:
    """The parameters after one Adam step per row of `order`."""
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, len(order)))

    def loss(params: PyTree, rows: Array) -> Array:
        _, logits = _outputs(network, params, normalisation, images[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def step(state: tuple[PyTree, PyTree], rows: Array) -> tuple[tuple[PyTree, PyTree], None]:
        params, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(params, rows), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = lax.scan(step, (params, optimizer.init(params)), order)
    return params


@partial(jax.jit, static_argnames="network")
def _apply(
    network: _FeatureNetwork,
    params: PyTree,
    normalisation: _Normalisation,
    images: Float[Array | np.ndarray, "n ..."],
) -> tuple[Float[Array, "n features"], Float[Array, "n classes"]]:
    """Features and logits, in blocks that bound the memory."""

    def one(image: Array) -> tuple[Array, Array]:
        features, logits = _outputs(network, params, normalisation, image[None])
        return features[0], logits[0]

    return lax.map(one, jnp.asarray(images, jnp.float32), batch_size=512)


def _outputs(
    network: _FeatureNetwork, params: PyTree, normalisation: _Normalisation, images: Array
) -> tuple[Array, Array]:
    normalised = (images - normalisation.mean) / normalisation.scale
    return cast(tuple[Array, Array], network.apply(params, normalised))
