"""How whole the manifold of codes is: neighbours kept, paths that stay in a class, holes.

The paper says in pictures (section 2.2, Fig 2) and words (section 5) that an unregularised
autoencoder fractures its manifold, that a VAE leaves holes in its code space and that an
adversarial autoencoder does neither. These scores put numbers on that. They need only codes and
the decoder, so they compare all three models. Arrays may be NumPy's or JAX's.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float, Integer

from aae_jax.evaluation.classification import known_mask, search_algorithm


class PathConsistency(NamedTuple):
    """How well straight paths between codes of one class stay in the class (fractions).

    Attributes:
        paths: share of the paths whose decoded images all keep the class.
        points: share of the decoded images, over all paths, that keep the class.
    """

    paths: float
    points: float


class Holes(NamedTuple):
    """How much of the prior's region holds no codes.

    Attributes:
        fraction: share of the prior's samples with no code within the distance.
        expected: that share, on average, for codes that follow the prior exactly.
        distance: the distance, in units of the code.
    """

    fraction: float
    expected: float
    distance: float


def neighbour_preservation(
    images: Float[Array | np.ndarray, "n pixels"],
    codes: Float[Array | np.ndarray, "n dim"],
    num_neighbours: int = 10,
) -> float:
    """Fraction of the nearest neighbours among images that are also neighbours among codes.

    Each image's num_neighbours nearest other images (Euclidean, in pixels) are compared with the
    as many nearest codes of its code. 1 for a code that keeps all neighbourhoods;
    num_neighbours / (n - 1) for codes that have nothing to do with the images.

    Raises:
        ValueError: num_neighbours is not in 1 .. n - 1, or a value is not finite.
    """
    num_images = np.shape(images)[0]
    if not 1 <= num_neighbours < num_images:
        raise ValueError(
            f"num_neighbours must be in 1 .. {num_images - 1} for {num_images} images; "
            f"it is {num_neighbours}"
        )
    near_images = _other_neighbours(np.asarray(images), num_neighbours)
    near_codes = _other_neighbours(np.asarray(codes), num_neighbours)
    kept = (near_images[:, :, None] == near_codes[:, None, :]).any(axis=2)
    return float(kept.mean())


def _other_neighbours(points: np.ndarray, num_neighbours: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    # Without an argument, kneighbors leaves each point itself out.
    search = NearestNeighbors(
        n_neighbors=num_neighbours, algorithm=search_algorithm(points.shape[1])
    )
    return search.fit(points).kneighbors(return_distance=False)


def path_consistency(
    codes: Float[Array | np.ndarray, "n dim"],
    labels: Integer[Array | np.ndarray, " n"],
    decode: Callable[[np.ndarray], Array | np.ndarray],
    classify: Callable[[Array | np.ndarray], Array | np.ndarray],
    seed: int,
    num_paths: int = 500,
    num_points: int = 11,
    batch_size: int = 1000,
) -> PathConsistency:
    """Shares of straight paths, and of points on them, that decode to the class of their ends.

    Each path joins two different codes of one class, drawn at random (every class with two codes
    or more equally often), by num_points evenly spaced points, both ends included.

    Args:
        codes: [n, dim], of real images.
        labels: [n], -1 where unknown (left out).
        decode: codes [batch_size, dim] -> images, batch first. Always called with batch_size
            codes, so that a jitted function compiles once.
        classify: those images -> their labels [batch_size], by a classifier trained on real images.
        seed: of the drawn pairs.
        num_paths: number of paths.
        num_points: points on a path, at least 3 so that one lies between the ends.
        batch_size: codes decoded at once.

    Raises:
        ValueError: no class has two codes of known label; num_paths or batch_size below 1 or
            num_points below 3; classify does not answer one label an image.
    """
    if num_paths < 1 or num_points < 3 or batch_size < 1:
        raise ValueError("a path needs 3 points or more; paths and batches at least 1")
    starts, ends, classes = _same_class_pairs(np.asarray(labels), num_paths, seed)
    codes, along = np.asarray(codes), np.linspace(0.0, 1.0, num_points)[None, :, None]
    points = (1.0 - along) * codes[starts, None, :] + along * codes[ends, None, :]
    # linspace is float64; models expect the codes' own precision.
    points = points.reshape(-1, codes.shape[1]).astype(codes.dtype)
    predicted = _classify_decoded(points, decode, classify, batch_size)
    kept = predicted.reshape(num_paths, num_points) == classes[:, None]
    return PathConsistency(paths=float(kept.all(axis=1).mean()), points=float(kept.mean()))


def _same_class_pairs(
    labels: np.ndarray, num_pairs: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    classes, counts = np.unique(labels[known_mask(labels)], return_counts=True)
    classes = classes[counts >= 2]
    if not classes.size:
        raise ValueError("no class has two codes of known label to draw a path between")
    rng = np.random.default_rng(seed)
    members = {label: np.flatnonzero(labels == label) for label in classes}
    drawn = rng.choice(classes, num_pairs)
    pairs = np.array([rng.choice(members[label], 2, replace=False) for label in drawn])
    return pairs[:, 0], pairs[:, 1], drawn


def _classify_decoded(points: np.ndarray, decode, classify, batch_size: int) -> np.ndarray:
    num_batches = -(-len(points) // batch_size)
    # The last batch is filled up with points from the front, whose answers are dropped.
    padded = np.resize(points, (num_batches * batch_size, points.shape[1]))
    predicted = []
    for batch in np.split(padded, num_batches):
        labels = np.asarray(classify(decode(batch)))
        if labels.shape != (batch_size,):
            raise ValueError(f"classify must answer one label an image; shape {labels.shape}")
        predicted.append(labels)
    return np.concatenate(predicted)[: len(points)]


def hole_fraction(
    codes: Float[Array | np.ndarray, "n dim"],
    prior_samples: Float[Array | np.ndarray, "samples dim"],
    seed: int,
    quantile: float = 0.95,
) -> Holes:
    """Share of the prior's samples with no code nearby: the holes of Fig 2.

    "Nearby" is measured by the prior itself: half of its samples are queries, the others stand
    for ideal codes, and the distance is the given quantile of the queries' distances to the
    nearest ideal code. Then as many real codes take the ideal ones' place. Codes that follow the
    prior score 1 - quantile on average; codes that miss a part of it score more. Codes *outside*
    the prior are not seen. The distance is one for the whole space, set by the prior's thin
    outskirts: holes in its dense middle that are smaller than that go unseen.

    Args:
        codes: [n, dim]; a random n' = min(n, samples // 2) of them are used.
        prior_samples: independent samples of the prior, best 2 n of them; n' are ideal codes.
        seed: of the subsample of the codes.
        quantile: in (0, 1).

    Raises:
        ValueError: fewer than two prior samples, no codes, or a quantile out of range.
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile must be between 0 and 1; it is {quantile}")
    codes, samples = np.asarray(codes), np.asarray(prior_samples)
    size = min(len(codes), len(samples) // 2)
    if size < 1:
        raise ValueError("hole_fraction needs a code and two prior samples at least")
    ideal, queries = samples[:size], samples[size:]
    real = codes[np.random.default_rng(seed).choice(len(codes), size, replace=False)]
    distance = float(np.quantile(_nearest_distance(queries, ideal), quantile))
    fraction = float(np.mean(_nearest_distance(queries, real) > distance))
    return Holes(fraction=fraction, expected=1.0 - quantile, distance=distance)


def _nearest_distance(queries: np.ndarray, points: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=1, algorithm=search_algorithm(points.shape[1]))
    return search.fit(points).kneighbors(queries)[0][:, 0]
