"""How far the aggregated posterior q(z) is from the prior p(z), both given as samples.

The match that the adversary is after (paper, section 2) is never scored there; these distances do.
A prior of std 5 and one of std 1 compare in the scale-free ones: every function says its unit.
"""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from scipy.spatial.distance import pdist

from aae_jax.evaluation.pairwise import centred, map_rows

# Multiples of the median squared distance, so that both fine structure and bulk count.
_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_MEDIAN_SAMPLES = 1000
# Of which a classifier that tells codes from prior samples can still learn and be tested.
FEWEST_CODES = 20


class MomentDistance(NamedTuple):
    """Distances of the first two moments, relative to the prior's."""

    mean: float  # Euclidean, in units of the prior's rms std: a shift by one std is 1
    covariance: float  # Frobenius, as a fraction of the norm of the prior's: a collapsed q(z) is 1


class PriorDistances(NamedTuple):
    """Scale-free distances of codes to their prior; all but `classifier_accuracy` are 0 at best."""

    sliced_wasserstein: float  # W2, in units of the prior's rms std
    mmd: float  # unbiased squared MMD, dimensionless, below zero by chance
    classifier_accuracy: float  # held-out, a fraction; 0.5 at best
    mean_distance: float  # in units of the prior's rms std
    covariance_distance: float  # a fraction of the norm of the prior's covariance


def rms_std(z: Float[Array | np.ndarray, "n d"]) -> float:
    """The root mean square, over dimensions, of the standard deviations: a sample's scale.

    Raises:
        ValueError: if it is zero or not finite: nothing can be measured against such a prior.
    """
    scale = float(np.sqrt(np.asarray(z, np.float64).var(0).mean()))
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"the prior's samples have a standard deviation of {scale}")
    return scale


def sliced_wasserstein(
    x: Float[Array | np.ndarray, "n d"],
    y: Float[Array | np.ndarray, "m d"],
    key: Key[Array, ""],
    num_projections: int = 256,
) -> float:
    """Sliced 2-Wasserstein distance, in the units of the codes.

    The root mean square, over random directions, of the 2-Wasserstein distance of the projections;
    each of those is exact for n != m too, as the integral of the squared difference of the two
    quantile functions. Two samples of one distribution are of order n^-1/2 apart, not 0. A pure
    shift delta gives |delta| / sqrt(d). Reference: Bonneel et al. 2015, Kolouri et al. 2018
    (https://arxiv.org/abs/1804.01947).

    Args:
        x: codes, [n, d].
        y: prior samples, [m, d].
        key: draws the directions.
        num_projections: how many; the error falls as its inverse root.
    """
    x, y = centred(x, y)
    directions = jax.random.normal(key, (x.shape[1], num_projections))
    directions /= jnp.linalg.norm(directions, axis=0)
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    # NumPy sorts several times faster than XLA does on a CPU.
    x_sorted = np.sort(np.asarray(product(x, directions)).T, axis=1)
    y_sorted = np.sort(np.asarray(product(y, directions)).T, axis=1)
    rows_x, rows_y, masses = _quantile_steps(len(x), len(y))
    squares = (x_sorted[:, rows_x] - y_sorted[:, rows_y]) ** 2
    return float(np.sqrt((squares @ masses).mean()))


def _quantile_steps(
    n: int, m: int
) -> tuple[Int[np.ndarray, " s"], Int[np.ndarray, " s"], Float[np.ndarray, " s"]]:
    """The steps on which both empirical quantile functions are constant: ranks and masses.

    In whole numbers of 1 / (n m), so that common steps coincide exactly.
    """
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    masses = np.diff(ends, prepend=0) / (n * m)
    return (ends - 1) // m, (ends - 1) // n, masses


def mmd(x: Float[Array | np.ndarray, "n d"], y: Float[Array | np.ndarray, "m d"]) -> float:
    """Unbiased squared maximum mean discrepancy of codes and prior samples, dimensionless.

    The kernel is the mean of the inverse multiquadratics c / (c + ||a - b||^2), c from a tenth of
    to ten times the median squared distance of the prior samples, so the value is free of the
    prior's scale. Between -1 / n or so and 2; the mean over equal distributions is 0.
    Reference: Gretton et al. 2012 (JMLR 13, lemma 6); the kernel is that of Wasserstein
    autoencoders (https://arxiv.org/abs/1711.01558).

    Args:
        x: codes, [n, d].
        y: prior samples, [m, d]; they set the bandwidth.

    Raises:
        ValueError: if either has fewer than two rows, or half the prior's samples coincide.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("an unbiased MMD needs two rows of each")
    bandwidth = _median_squared_distance(np.asarray(y, np.float64))
    y, x = centred(y, x)
    within_x = np.asarray(_kernel_sums(x, x, bandwidth, without_self=True), np.float64)
    within_y = np.asarray(_kernel_sums(y, y, bandwidth, without_self=True), np.float64)
    across = np.asarray(_kernel_sums(x, y, bandwidth, without_self=False), np.float64)
    n, m = len(x), len(y)
    return float(
        within_x.sum() / (n * (n - 1)) + within_y.sum() / (m * (m - 1)) - 2 * across.sum() / (n * m)
    )


def _median_squared_distance(y: np.ndarray) -> float:
    """The median over pairs of at most a thousand rows, taken evenly through the sample."""
    rows = np.linspace(0, len(y) - 1, min(len(y), _MEDIAN_SAMPLES)).astype(int)
    median = float(np.median(pdist(y[rows], "sqeuclidean")))
    if not (np.isfinite(median) and median > 0):
        raise ValueError(f"the prior samples' median squared distance is {median}")
    return median


@partial(jax.jit, static_argnames="without_self")
def _kernel_sums(
    x: Float[Array, "n d"], y: Float[Array, "m d"], bandwidth: Array, *, without_self: bool
) -> Float[Array, " n"]:
    """sum_j k(x_i, y_j) for each i; without j = i where `y` is `x`."""

    def row_sum(squared: Array, number: Array) -> Array:
        widths = [scale * bandwidth for scale in _SCALES]
        kernel = sum((c / (c + squared) for c in widths), jnp.zeros_like(squared)) / len(widths)
        if without_self:
            kernel = jnp.where(jnp.arange(len(squared)) == number, 0, kernel)
        return kernel.sum()

    return map_rows(row_sum, x, y)


def classifier_two_sample_accuracy(
    x: Float[Array | np.ndarray, "n d"],
    y: Float[Array | np.ndarray, "m d"],
    seed: int,
    max_rows: int = 10_000,
) -> float:
    """How well a classifier tells codes from prior samples: held-out accuracy, a fraction.

    0.5 when nothing tells them apart, 1 when nothing is shared. The classifier is gradient-boosted
    trees and a small network, their probabilities averaged: trees see thin structure, the network
    smooth dependence. It learns from half of an equal number of rows of each and is scored on the
    other half, so its standard error is about 0.5 / sqrt(rows of one). Deterministic given `seed`.
    Reference: Lopez-Paz and Oquab 2017 (https://arxiv.org/abs/1610.06545).

    Args:
        x: codes, [n, d].
        y: prior samples, [m, d].
        seed: of the choice of rows, the split and the classifiers.
        max_rows: at most so many of each are used.

    Raises:
        ValueError: if either has fewer than 20 rows.
    """
    rows = min(len(x), len(y), max_rows)
    if rows < FEWEST_CODES:
        raise ValueError(f"a two-sample classifier needs {FEWEST_CODES} rows of each, got {rows}")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import train_test_split
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(seed)
    samples = np.concatenate(
        [np.asarray(z, np.float64)[rng.choice(len(z), rows, replace=False)] for z in (x, y)]
    )
    is_prior = np.repeat([0, 1], rows)
    fit_on, judged, fit_is_prior, judged_is_prior = train_test_split(
        samples, is_prior, test_size=0.5, stratify=is_prior, random_state=seed
    )
    classifier = _two_sample_classifier(seed)
    # Small work: on a busy machine more threads only wait for one another (20 s instead of 1).
    with threadpool_limits(1), warnings.catch_warnings():
        # A budget of passes, spent or not, is meant.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(classifier.fit(fit_on, fit_is_prior).score(judged, judged_is_prior))


def _two_sample_classifier(seed: int):
    from sklearn.ensemble import HistGradientBoostingClassifier, VotingClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    trees = HistGradientBoostingClassifier(early_stopping=True, random_state=seed)
    network = MLPClassifier(
        (64, 64),
        learning_rate_init=3e-3,
        max_iter=50,
        early_stopping=True,
        n_iter_no_change=5,
        random_state=seed,
    )
    scaled_network = make_pipeline(StandardScaler(), network)
    return VotingClassifier([("trees", trees), ("network", scaled_network)], voting="soft")


def moment_distance(
    x: Float[Array | np.ndarray, "n d"], y: Float[Array | np.ndarray, "m d"]
) -> MomentDistance:
    """Distances of mean and covariance of codes `x` to those of prior samples `y`, scale-free.

    ||mean_x - mean_y|| over the prior's rms std, and ||C_x - C_y||_F over ||C_y||_F.

    Raises:
        ValueError: if either has fewer than two rows, or the prior's samples are all the same.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("a covariance needs two rows of each")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    covariance_x, covariance_y = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    return MomentDistance(
        mean=float(np.linalg.norm(x.mean(0) - y.mean(0)) / rms_std(y)),
        covariance=float(
            np.linalg.norm(covariance_x - covariance_y) / np.linalg.norm(covariance_y)
        ),
    )


def prior_distances(
    codes: Float[Array | np.ndarray, "n d"],
    prior_samples: Float[Array | np.ndarray, "m d"],
    key: Key[Array, ""],
) -> PriorDistances:
    """All the distances of this module, none of which feels the prior's scale.

    Args:
        codes: samples of the aggregated posterior: the encoder's codes of held-out images, [n, d].
        prior_samples: [m, d]; ten thousand of each serve well.
        key: draws the projections and the classifier's seed.

    Raises:
        ValueError: for fewer than 20 rows of either, or a prior without spread.
    """
    projections_key, classifier_key = jax.random.split(key)
    seed = int(jax.random.randint(classifier_key, (), 0, 2**31 - 1))
    scale = rms_std(prior_samples)
    moments = moment_distance(codes, prior_samples)
    return PriorDistances(
        sliced_wasserstein=sliced_wasserstein(codes, prior_samples, projections_key) / scale,
        mmd=mmd(codes, prior_samples),
        classifier_accuracy=classifier_two_sample_accuracy(codes, prior_samples, seed),
        mean_distance=moments.mean,
        covariance_distance=moments.covariance,
    )
