"""Log-likelihood of test images under a Parzen window on a model's samples.

The protocol of the paper's Table 1 (appendix A.1) and of Goodfellow et al. 2014
(https://arxiv.org/abs/1406.2661): an isotropic Gaussian of width sigma on each sample, sigma chosen
on held-out validation images. All values are in nats per image. The estimate is known to be weak in
high dimension (Theis et al. 2016, https://arxiv.org/abs/1511.01844): it is here to compare with
published tables.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from aae_jax.evaluation.pairwise import centred, squared_distances

PAPER_SIGMAS: tuple[float, ...] = tuple(np.logspace(-1, 0, 10).tolist())


class SigmaChoice(NamedTuple):
    """The kernel's width that serves the validation images best."""

    sigma: float
    mean_log_likelihood: np.ndarray  # nats, one per width of the grid
    at_edge: bool  # the best width is the grid's smallest or largest: widen the grid


class ParzenScore(NamedTuple):
    """A row of the paper's Table 1, in nats."""

    mean: float
    standard_error: float  # over the test images; the samples' own chance is not in it
    sigma: float
    at_edge: bool
    num_samples: int
    valid_mean: float  # of the validation images, for choosing between models


class _Window(NamedTuple):
    """sum_i exp(-||x - s_i||^2 / 2 sigma^2) over the samples met so far, without underflow.

    The nearest sample's term is the largest for every sigma, so one shift serves them all.
    """

    nearest: Array  # [m] smallest squared distance
    weight: Array  # [m, sigmas] the sum, divided by its largest term


def _empty_window(num_images: int, num_sigmas: int) -> _Window:
    return _Window(jnp.full(num_images, jnp.inf), jnp.zeros((num_images, num_sigmas)))


@partial(jax.jit, static_argnames=("test_block", "sample_block"))
def _absorb(
    window: _Window,
    test: Float[Array | np.ndarray, "m d"],
    samples: Float[Array | np.ndarray, "n d"],
    sigmas: Float[Array | np.ndarray, " k"],
    start: int | Int[Array, ""],
    stop: int | Int[Array, ""],
    *,
    test_block: int,
    sample_block: int,
) -> _Window:
    """The window with samples[start:stop] added; the bounds are traced, to compile once."""
    test, samples = centred(test, samples)
    num_blocks = -(-len(samples) // sample_block)
    padding = num_blocks * sample_block - len(samples)
    blocks = jnp.pad(samples, ((0, padding), (0, 0))).reshape(num_blocks, sample_block, -1)
    numbers = jnp.arange(num_blocks * sample_block).reshape(num_blocks, sample_block)
    precision = 0.5 / jnp.square(sigmas)

    def add_block(seen: _Window, block: tuple[Array, Array], image: Array) -> _Window:
        number, sample = block
        squared = squared_distances(image[None], sample)[0]
        squared = jnp.where((start <= number) & (number < stop), squared, jnp.inf)
        nearest = jnp.minimum(seen.nearest, squared.min())
        # Before the first sample the nearest is at infinity, and inf - inf would be NaN.
        shift = jnp.where(jnp.isinf(nearest), 0, nearest)
        decay = jnp.exp(-(seen.nearest - shift) * precision)
        terms = jnp.exp(-(squared - shift) * precision[:, None])
        return _Window(nearest, seen.weight * decay + terms.sum(-1))

    def add_all(row: tuple[_Window, Array]) -> _Window:
        seen, image = row
        return lax.scan(lambda w, b: (add_block(w, b, image), None), seen, (numbers, blocks))[0]

    return lax.map(add_all, (window, test), batch_size=test_block)


def _log_likelihood(
    window: _Window, sigmas: np.ndarray, num_samples: int, dim: int
) -> Float32[np.ndarray, "m k"]:
    """The window's log-density in nats, once `num_samples` samples are in it."""
    # In float64: the terms are hundreds of nats and cancel.
    nearest = np.asarray(window.nearest, np.float64)[:, None]
    sums = np.log(np.asarray(window.weight, np.float64)) - nearest / (2 * sigmas**2)
    normaliser = math.log(num_samples) + dim / 2 * np.log(2 * np.pi * sigmas**2)
    return (sums - normaliser).astype(np.float32)


def _log_likelihoods(
    test: Float[Array | np.ndarray, "m d"],
    samples: Float[Array | np.ndarray, "n d"],
    sigmas: np.ndarray,
    test_block: int,
    sample_block: int,
) -> Float32[np.ndarray, "m k"]:
    _check(test, samples.shape, sigmas)
    window = _absorb(
        _empty_window(len(test), len(sigmas)),
        test,
        samples,
        sigmas.astype(np.float32),
        0,
        len(samples),
        test_block=test_block,
        sample_block=min(sample_block, len(samples)),
    )
    return _log_likelihood(window, sigmas, len(samples), test.shape[1])


def _check(
    test: Float[Array | np.ndarray, "m d"], sample_shape: tuple[int, ...], sigmas: np.ndarray
) -> None:
    if len(test) == 0 or sample_shape[0] == 0:
        raise ValueError("a Parzen window needs at least one image and one sample")
    if sample_shape[1:] != test.shape[1:]:
        raise ValueError(f"images are rows of {test.shape[1:]}, samples of {sample_shape[1:]}")
    if sigmas.ndim != 1 or len(sigmas) == 0 or not np.all(np.isfinite(sigmas) & (sigmas > 0)):
        raise ValueError(f"sigma must be positive and finite, got {sigmas.tolist()}")


def _mean_and_standard_error(values: np.ndarray) -> tuple[float, float]:
    values = values.astype(np.float64)
    spread = values.std(ddof=1) if len(values) > 1 else math.nan
    return float(values.mean()), float(spread / math.sqrt(len(values)))


def parzen_log_likelihood(
    test: Float[Array | np.ndarray, "m d"],
    samples: Float[Array | np.ndarray, "n d"],
    sigma: float,
    *,
    test_block: int = 1000,
    sample_block: int = 1000,
) -> Float32[np.ndarray, " m"]:
    """log p(x) of each test row under Gaussians of width sigma on the samples.

    log p(x) = logsumexp_i(-||x - s_i||^2 / 2 sigma^2) - log n - d/2 log(2 pi sigma^2).

    Args:
        test: rows to score, [m, d].
        samples: a model's samples, [n, d].
        sigma: the kernel's standard deviation, in the data's units.
        test_block: test rows worked on at once.
        sample_block: samples worked on at once; neither need divide its array's length.

    Returns:
        Nats, float32 [m]. The rounding is about 1e-6 (r / sigma)^2 nats, r the distance of images
        and samples from the mean image: 1e-3 for MNIST at sigma 0.2.

    Raises:
        ValueError: if an array is empty, the row lengths differ, or sigma is not positive.
    """
    sigmas = np.asarray([sigma], np.float64)
    return _log_likelihoods(test, samples, sigmas, test_block, sample_block)[:, 0]


def select_sigma(
    valid: Float[Array | np.ndarray, "m d"],
    samples: Float[Array | np.ndarray, "n d"],
    sigmas: Sequence[float] | Float[np.ndarray, " k"] = PAPER_SIGMAS,
    *,
    test_block: int = 1000,
    sample_block: int = 1000,
) -> SigmaChoice:
    """The sigma of the grid with the largest mean log-likelihood of held-out images.

    Distances are computed once for the whole grid. A grid of one width leaves no choice, and is
    never said to be at its edge.

    Args:
        valid: validation rows, neither trained on nor tested on, [m, d].
        samples: the model's samples, [n, d].
        sigmas: the grid, in any order; by default the paper's, `logspace(-1, 0, 10)`.
        test_block: validation rows worked on at once.
        sample_block: samples worked on at once.

    Raises:
        ValueError: as `parzen_log_likelihood`, and if a log-likelihood is not finite.
    """
    grid = np.asarray(sigmas, np.float64)
    return _choice(_log_likelihoods(valid, samples, grid, test_block, sample_block), grid)


def _choice(values: Float32[np.ndarray, "m k"], grid: np.ndarray) -> SigmaChoice:
    means = values.mean(0, dtype=np.float64)
    if not np.all(np.isfinite(means)):
        raise ValueError("the validation images' log-likelihoods are not finite")
    sigma = float(grid[means.argmax()])
    return SigmaChoice(sigma, means, len(grid) > 1 and sigma in (grid.min(), grid.max()))


def parzen_score(
    test: Float[Array | np.ndarray, "m d"],
    valid: Float[Array | np.ndarray, "v d"],
    samples: Float[Array | np.ndarray, "n d"],
    sigmas: Sequence[float] | Float[np.ndarray, " k"] = PAPER_SIGMAS,
    *,
    test_block: int = 1000,
    sample_block: int = 1000,
) -> ParzenScore:
    """The score of the paper's Table 1: `parzen_curve` with all its samples at once.

    Raises:
        ValueError: as `parzen_curve`.
    """
    (score,) = parzen_curve(
        test, valid, [samples], sigmas=sigmas, test_block=test_block, sample_block=sample_block
    )
    return score


def parzen_curve(
    test: Float[Array | np.ndarray, "m d"],
    valid: Float[Array | np.ndarray, "v d"],
    sample_blocks: Iterable[Float[Array | np.ndarray, "_ d"]],
    counts: Sequence[int] | Int[np.ndarray, " c"] = (),
    sigmas: Sequence[float] | Float[np.ndarray, " k"] = PAPER_SIGMAS,
    *,
    test_block: int = 1000,
    sample_block: int = 1000,
) -> tuple[ParzenScore, ...]:
    """The score as samples arrive block by block, none of them kept.

    For the paper's ten million samples. At each count sigma is chosen anew on `valid`, as more
    samples suit a narrower kernel. Warns where the best sigma lies at the grid's edge, where the
    score is a lower bound of what a wider grid would give. Blocks of one size compile once.

    Args:
        test: rows to score, [m, d].
        valid: validation rows, neither trained on nor tested on, [v, d].
        sample_blocks: arrays [any, d], all with the same d; read up to the last count.
        counts: increasing numbers of samples at which to read the score; they need not fall
            between blocks. By default all there are.
        sigmas: the grid, in any order; by default the paper's, `logspace(-1, 0, 10)`.
        test_block: images worked on at once.
        sample_block: samples worked on at once.

    Returns:
        One score per count, in nats per image, each with the standard error over the test images
        (NaN for a single image). Should the samples end early, warns, and the last score is of the
        samples there were.

    Raises:
        ValueError: if an array is empty, row lengths differ, a sigma is not positive, counts do
            not increase from at least 1, or a log-likelihood of the validation images is not
            finite.
    """
    stops = np.asarray(counts, np.int64)
    if np.any(np.diff(stops, prepend=0) <= 0):
        raise ValueError(f"counts must be positive and increase, got {stops.tolist()}")
    grid = np.asarray(sigmas, np.float64)
    for images in (test, valid):
        _check(images, images.shape, grid)
    images = jnp.concatenate([jnp.asarray(each, jnp.float32) for each in (valid, test)])
    window, num_samples = _empty_window(len(images), len(grid)), 0
    scores: list[ParzenScore] = []

    def read() -> ParzenScore:
        values = _log_likelihood(window, grid, num_samples, images.shape[1])
        return _score(values[: len(valid)], values[len(valid) :], grid, num_samples)

    for block, start, stop in _pieces(sample_blocks, stops.tolist()):
        _check(images, block.shape, grid)
        window = _absorb(
            window,
            images,
            block,
            grid.astype(np.float32),
            start,
            stop,
            test_block=test_block,
            sample_block=min(sample_block, len(block)),
        )
        num_samples += stop - start
        if num_samples in stops:
            scores.append(read())
    if num_samples == 0:
        raise ValueError("the stream of samples is empty")
    if len(scores) < len(stops):
        warnings.warn(
            f"the stream ended after {num_samples} samples, before count {stops[len(scores)]}",
            stacklevel=2,
        )
    if not scores or scores[-1].num_samples != num_samples:
        scores.append(read())
    return tuple(scores)


def _score(
    valid: Float32[np.ndarray, "v k"],
    test: Float32[np.ndarray, "m k"],
    grid: np.ndarray,
    num_samples: int,
) -> ParzenScore:
    """Sigma from the validation images' log-likelihoods, and the test images' at that sigma."""
    choice = _choice(valid, grid)
    if choice.at_edge:
        warnings.warn(
            f"the best Parzen sigma, {choice.sigma:.4g}, is at the edge of the grid tried; "
            "widen the grid",
            stacklevel=4,
        )
    best = int(choice.mean_log_likelihood.argmax())
    mean, standard_error = _mean_and_standard_error(test[:, best])
    valid_mean = float(choice.mean_log_likelihood[best])
    return ParzenScore(mean, standard_error, choice.sigma, choice.at_edge, num_samples, valid_mean)


def _pieces(
    sample_blocks: Iterable[Float[Array | np.ndarray, "_ d"]], stops: list[int]
) -> Iterator[tuple[Float[Array | np.ndarray, "_ d"], int, int]]:
    """Each block with the bounds of its rows to take next, cut where a checkpoint falls."""
    taken, remaining = 0, list(stops)
    for block in sample_blocks:
        start = 0
        while start < len(block):
            stop = min(len(block), start + remaining[0] - taken) if remaining else len(block)
            yield block, start, stop
            taken, start = taken + stop - start, stop
            if remaining and taken == remaining[0]:
                remaining.pop(0)
                if not remaining:
                    return
