"""Priors p(z) that a code is pulled to: constructors, and combinators that make priors of priors.

A prior is a named tuple of pure functions over one example; a batch is `jax.vmap` over one key per
example (`sample_batch`, `sample_modes`). An adversarial autoencoder needs samples only (section 2
of Makhzani et al., 2015, arXiv:1511.05644), so `log_prob` is either exact or None.

Every `sample` and `sample_mode` can be traced by `jax.jit` and `jax.vmap`, its mode included. The
arguments of constructors are plain numbers, and are checked when the prior is made: a bad one
raises ValueError in one line.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key

# An int is a float to the type checker, but not to a check at run time.
Number = int | float
Numbers = Number | Sequence | np.ndarray | Array  # nested tuples and lists, as a config writes them
Mode = Integer[jax.typing.ArrayLike, ""]

# Accelerators multiply float32 matrices coarsely unless told otherwise: too coarse for a density.
_PRECISION = jax.lax.Precision.HIGHEST


class Prior(NamedTuple):
    """A distribution of codes.

    Attributes:
        dim: size of a code.
        sample: (key) -> [dim], a draw from the whole prior.
        sample_mode: (key, mode) -> [dim], a draw from one mode, or None. The mode is 0 to
            num_modes - 1; one outside is clipped into that range. (An unknown label, -1, is the
            caller's matter: see `sample_modes`.) A prior that is not divided is its own only mode.
        log_prob: ([dim]) -> scalar, the exact log density in nats, or None where there is none in
            closed form. Of a `categorical` it is the log probability.
        num_modes: how many modes `sample_mode` can be asked for.
        path: ([]) -> [dim], a walk through the prior for u from 0 to 1, mode after mode, where the
            prior is a curve; None where it is none.
    """

    dim: int
    sample: Callable[[Key[Array, ""]], Float[Array, "dim"]]
    sample_mode: Callable[[Key[Array, ""], Mode], Float[Array, "dim"]] | None
    log_prob: Callable[[Float[Array, "dim"]], Float[Array, ""]] | None
    num_modes: int
    path: Callable[[Float[Array, ""]], Float[Array, "dim"]] | None = None


def sample_batch(prior: Prior, keys: Key[Array, "batch"]) -> Float[Array, "batch dim"]:
    """One draw from the whole prior per key.

    >>> sample_batch(gaussian(8), jax.random.split(jax.random.key(0), 100)).shape
    (100, 8)
    """
    return jax.vmap(prior.sample)(keys)


def sample_modes(
    prior: Prior, keys: Key[Array, "batch"], modes: Integer[Array, "batch"]
) -> Float[Array, "batch dim"]:
    """One draw per key from the mode beside it; a mode of -1 (unknown) draws from the whole prior.

    This is what a label-informed discriminator is shown (figure 4 of the paper).

    >>> modes = jnp.array([0, 3, -1])
    >>> sample_modes(petals(), jax.random.split(jax.random.key(0), 3), modes).shape
    (3, 2)

    Raises:
        ValueError: the prior has no `sample_mode`.
    """
    sample_mode = prior.sample_mode
    if sample_mode is None:
        raise ValueError("sample_modes: the prior must have modes, but its sample_mode is None")

    def sample(key: Key[Array, ""], mode: Integer[Array, ""]) -> Float[Array, "dim"]:
        # One of the two draws is thrown away, so the key is still used once.
        return jnp.where(mode < 0, prior.sample(key), sample_mode(key, mode))

    return jax.vmap(sample)(keys, modes)


def quantiles(
    prior: Prior, key: Key[Array, ""], probabilities: Numbers, num_samples: int = 10_000
) -> Float[Array, "probabilities dim"]:
    """Quantiles of each coordinate of a prior by itself, estimated from samples.

    Figure 2e of the paper decodes the codes along the percentiles of the prior.

    >>> median = quantiles(gaussian(2), jax.random.key(0), [0.5])
    >>> bool(jnp.all(jnp.abs(median) < 0.1))
    True

    Args:
        prior: any prior.
        key: the key of all samples.
        probabilities: [probabilities], fractions from 0 to 1.
        num_samples: how many samples the estimate rests on.

    Returns:
        [probabilities, dim], row i holding the quantile of each coordinate at probabilities[i].

    Raises:
        ValueError: a probability outside [0, 1], none at all, or num_samples below 1.
    """
    _check_count("quantiles: num_samples", num_samples)
    levels = _finite_array("quantiles: probabilities", probabilities)
    if levels.ndim != 1 or levels.size == 0 or np.any((levels < 0) | (levels > 1)):
        raise ValueError("quantiles: probabilities must be a non-empty list of numbers in [0, 1]")
    samples = sample_batch(prior, jax.random.split(key, num_samples))
    return jnp.quantile(samples, jnp.asarray(levels), axis=0)


# Constructors


def gaussian(dim: int, std: Number = 1.0) -> Prior:
    """The isotropic Gaussian N(0, std^2 I), its own only mode.

    >>> gaussian(2, std=5.0).sample(jax.random.key(0)).shape
    (2,)

    Raises:
        ValueError: dim below 1, std not positive.
    """
    _check_count("gaussian: dim", dim)
    _check_positive("gaussian: std", std)
    log_normalizer = dim * (math.log(std) + 0.5 * math.log(2 * math.pi))

    def sample(key: Key[Array, ""]) -> Float[Array, "dim"]:
        return std * jax.random.normal(key, (dim,))

    def log_prob(code: Float[Array, "dim"]) -> Float[Array, ""]:
        return -0.5 * jnp.sum((code / std) ** 2) - log_normalizer

    return _undivided(dim, sample, log_prob)


def uniform(dim: int, low: Number = -1.0, high: Number = 1.0) -> Prior:
    """The uniform distribution on the box [low, high]^dim, its own only mode.

    >>> round(float(uniform(2, low=0, high=4).log_prob(jnp.ones(2))), 3) == round(-math.log(16), 3)
    True

    Raises:
        ValueError: dim below 1, low not below high.
    """
    _check_count("uniform: dim", dim)
    _check_number("uniform: low", low)
    _check_number("uniform: high", high)
    if low >= high:
        raise ValueError(f"uniform: low must be below high, got low {low} and high {high}")
    log_volume = dim * math.log(high - low)

    def sample(key: Key[Array, ""]) -> Float[Array, "dim"]:
        return jax.random.uniform(key, (dim,), minval=low, maxval=high)

    def log_prob(code: Float[Array, "dim"]) -> Float[Array, ""]:
        return jnp.where(jnp.all((code >= low) & (code <= high)), -log_volume, -jnp.inf)

    return _undivided(dim, sample, log_prob)


def laplace(dim: int, scale: Number = 1.0) -> Prior:
    """Independent Laplace coordinates of density exp(-|z| / scale) / (2 scale), its own only mode.

    >>> laplace(3, scale=0.5).sample(jax.random.key(0)).shape
    (3,)

    Raises:
        ValueError: dim below 1, scale not positive.
    """
    _check_count("laplace: dim", dim)
    _check_positive("laplace: scale", scale)
    log_normalizer = dim * math.log(2 * scale)

    def sample(key: Key[Array, ""]) -> Float[Array, "dim"]:
        return scale * jax.random.laplace(key, (dim,))

    def log_prob(code: Float[Array, "dim"]) -> Float[Array, ""]:
        return -jnp.sum(jnp.abs(code)) / scale - log_normalizer

    return _undivided(dim, sample, log_prob)


def gaussian_mixture(means: Numbers, covariances: Numbers, weights: Numbers | None = None) -> Prior:
    """A mixture of Gaussians in any dimension; mode k is its k-th Gaussian.

    >>> gaussian_mixture(means=[[-1.0], [1.0]], covariances=[[[0.1]], [[0.2]]]).num_modes
    2

    Args:
        means: [modes, dim].
        covariances: [modes, dim, dim], symmetric and positive definite.
        weights: [modes], not negative; divided by their sum. None makes all modes equally likely.

    Raises:
        ValueError: no mode, a wrong shape, a covariance that is none, a negative weight, or weights
            that are all zero.
    """
    centres = _finite_array("gaussian_mixture: means", means)
    if centres.ndim != 2 or 0 in centres.shape:
        raise ValueError(
            "gaussian_mixture: means must have the shape [modes, dim] with at least one mode and "
            f"one dimension, got the shape {centres.shape}"
        )
    modes, dim = centres.shape
    roots = _cholesky("gaussian_mixture: covariances", covariances, (modes, dim, dim))
    log_weights = _log_weights("gaussian_mixture: weights", weights, modes)
    whitenings = np.linalg.inv(roots)
    log_volumes = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    log_peaks = log_weights - log_volumes - 0.5 * dim * math.log(2 * math.pi)

    def sample(key: Key[Array, ""]) -> Float[Array, "dim"]:
        key_mode, key_noise = jax.random.split(key)
        return sample_mode(key_noise, jax.random.categorical(key_mode, jnp.asarray(log_weights)))

    def sample_mode(key: Key[Array, ""], mode: Mode) -> Float[Array, "dim"]:
        mode = _clip_mode(mode, modes)
        noise = jax.random.normal(key, (dim,))
        spread = jnp.matmul(jnp.asarray(roots)[mode], noise, precision=_PRECISION)
        return jnp.asarray(centres)[mode] + spread

    def log_prob(code: Float[Array, "dim"]) -> Float[Array, ""]:
        offsets = code - jnp.asarray(centres)
        noises = jnp.einsum("kij,kj->ki", jnp.asarray(whitenings), offsets, precision=_PRECISION)
        return jax.nn.logsumexp(jnp.asarray(log_peaks) - 0.5 * jnp.sum(noises**2, axis=1))

    return Prior(dim, sample, sample_mode, log_prob, modes)


def petals(
    modes: int = 10,
    distance: Number = 1.4,
    std_along: Number = 0.5,
    std_across: Number = 0.1,
    scale: Number = 1.0,
) -> Prior:
    """A flower of 2-D Gaussians, long axes pointing to the origin (figures 2b and 4a of the paper).

    Mode k lies at the angle 2 pi k / modes, counted from the first axis towards the second.

    >>> petals(modes=10, std_across=0.1).num_modes
    10

    Args:
        modes: how many petals.
        distance: from the origin to the centre of a petal.
        std_along: standard deviation of a petal along its long axis, towards the origin.
        std_across: standard deviation across it.
        scale: multiplies the whole picture, both standard deviations included.

    Raises:
        ValueError: modes below 1, a negative distance, a standard deviation or scale not positive.
    """
    _check_count("petals: modes", modes)
    _check_not_negative("petals: distance", distance)
    _check_positive("petals: std_along", std_along)
    _check_positive("petals: std_across", std_across)
    _check_positive("petals: scale", scale)
    angles = 2 * np.pi * np.arange(modes) / modes
    outwards = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    sideways = np.stack([-np.sin(angles), np.cos(angles)], axis=1)
    axes = scale * np.stack([std_along * outwards, std_across * sideways], axis=2)
    return gaussian_mixture(scale * distance * outwards, axes @ axes.transpose(0, 2, 1))


def grid(side: int = 5, spacing: Number = 2.0, std: Number = 0.1) -> Prior:
    """A square of side x side isotropic 2-D Gaussians, centred on the origin.

    Mode side * i + j is the i-th along the first axis and the j-th along the second.

    >>> grid(side=5, spacing=2.0, std=0.1).num_modes
    25

    Args:
        side: Gaussians along one side.
        spacing: between neighbouring centres.
        std: standard deviation of each Gaussian.

    Raises:
        ValueError: side below 1, spacing or std not positive.
    """
    _check_count("grid: side", side)
    _check_positive("grid: spacing", spacing)
    _check_positive("grid: std", std)
    ticks = spacing * (np.arange(side) - (side - 1) / 2)
    means = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 2)
    return gaussian_mixture(means, np.broadcast_to(std**2 * np.eye(2), (side**2, 2, 2)))


def swiss_roll(
    modes: int = 10, turns: Number = 2.0, scale: Number = 1.0, noise: Number = 0.0
) -> Prior:
    """The swiss roll in 2-D (figure 4c of the paper): a uniform draw of u along `swiss_roll_curve`.

    Mode k is the k-th of `modes` equal parts of u, counted from the centre, and so of equal
    probability: with ten modes the innermost tenth of the roll is digit 0.

    >>> swiss_roll(modes=10).sample_mode(jax.random.key(0), 3).shape
    (2,)

    Args:
        modes: how many parts the roll is cut into.
        turns: how often the roll winds around the origin.
        scale: multiplies the whole picture, noise included; the outer radius is 3 * scale.
        noise: standard deviation of an isotropic Gaussian added to the curve, before the scale.

    Raises:
        ValueError: modes below 1, turns or scale not positive, noise negative.
    """
    _check_count("swiss_roll: modes", modes)
    _check_positive("swiss_roll: turns", turns)
    _check_positive("swiss_roll: scale", scale)
    _check_not_negative("swiss_roll: noise", noise)

    def sample_between(
        key: Key[Array, ""], low: Float[Array, ""], high: Float[Array, ""]
    ) -> Float[Array, "dim"]:
        key_place, key_noise = jax.random.split(key)
        u = jax.random.uniform(key_place, minval=low, maxval=high)
        blur = scale * noise * jax.random.normal(key_noise, (2,))
        return swiss_roll_curve(u, scale=scale, turns=turns) + blur

    def sample(key: Key[Array, ""]) -> Float[Array, "dim"]:
        return sample_between(key, jnp.asarray(0.0), jnp.asarray(1.0))

    def sample_mode(key: Key[Array, ""], mode: Mode) -> Float[Array, "dim"]:
        mode = _clip_mode(mode, modes)
        return sample_between(key, mode / modes, (mode + 1) / modes)

    def path(u: Float[Array, ""]) -> Float[Array, "dim"]:
        return swiss_roll_curve(u, scale=scale, turns=turns)

    return Prior(2, sample, sample_mode, None, modes, path)


def swiss_roll_curve(
    u: Float[Array, "*n"] | Float[np.ndarray, "*n"], scale: Number = 1.0, turns: Number = 2.0
) -> Float[Array, "*n 2"]:
    """The middle line of `swiss_roll`: radius 3 sqrt(u), angle 2 pi turns sqrt(u), times the scale.

    Two turns are the angle 4 pi sqrt(u) of the paper's figure 4c. Walks along the roll are drawn on
    this line.

    >>> swiss_roll_curve(jnp.linspace(0.0, 1.0, 20)).shape
    (20, 2)

    Args:
        u: [n], places from 0 (the centre) to 1 (the outer end).
        scale: the roll's scale.
        turns: the roll's number of turns.

    Returns:
        [n, 2] points of the plane.

    Raises:
        ValueError: turns or scale not positive.
    """
    _check_positive("swiss_roll_curve: scale", scale)
    _check_positive("swiss_roll_curve: turns", turns)
    root = jnp.sqrt(u)
    angle = 2 * math.pi * turns * root
    return 3 * scale * root[..., None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def categorical(num_categories: int, weights: Numbers | None = None) -> Prior:
    """One-hot vectors; mode k is the k-th one (sections 5 and 6 of the paper).

    Its log_prob is a log probability and not a density: that of the one-hot vector, minus infinity
    elsewhere.

    >>> categorical(3).sample_mode(jax.random.key(0), 1).tolist()
    [0.0, 1.0, 0.0]

    Args:
        num_categories: at least 1.
        weights: [categories], not negative; divided by their sum. None makes all equally likely.

    Raises:
        ValueError: num_categories below 1, a negative weight, or weights that are all zero.
    """
    _check_count("categorical: num_categories", num_categories)
    log_weights = _log_weights("categorical: weights", weights, num_categories)

    def sample(key: Key[Array, ""]) -> Float[Array, "dim"]:
        if weights is None:
            drawn = jax.random.randint(key, (), 0, num_categories)
        else:
            drawn = jax.random.categorical(key, jnp.asarray(log_weights))
        return jax.nn.one_hot(drawn, num_categories)

    def sample_mode(key: Key[Array, ""], mode: Mode) -> Float[Array, "dim"]:
        return jax.nn.one_hot(_clip_mode(mode, num_categories), num_categories)

    def log_prob(code: Float[Array, "dim"]) -> Float[Array, ""]:
        is_one_hot = jnp.all((code == 0) | (code == 1)) & (jnp.sum(code) == 1)
        return jnp.where(is_one_hot, jnp.asarray(log_weights)[jnp.argmax(code)], -jnp.inf)

    return Prior(num_categories, sample, sample_mode, log_prob, num_categories)


def empirical(points: Numbers) -> Prior:
    """The rows of an array, all equally likely; its own only mode, without a density.

    The array becomes a constant of every program compiled with the prior.

    >>> empirical([[0.0, 0.0], [1.0, 1.0], [2.0, 4.0]]).dim
    2

    Args:
        points: [n, dim].

    Raises:
        ValueError: an empty array or another number of axes.
    """
    rows = _finite_array("empirical: points", points)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(
            "empirical: points must have the shape [n, dim] with at least one row and one column, "
            f"got the shape {rows.shape}"
        )

    def sample(key: Key[Array, ""]) -> Float[Array, "dim"]:
        return jnp.asarray(rows)[jax.random.randint(key, (), 0, len(rows))]

    return _undivided(rows.shape[1], sample, None)


# Combinators


def mixture(priors: Sequence[Prior], weights: Numbers | None = None) -> Prior:
    """A draw from one of several priors; mode i is the whole of prior i.

    Its log_prob is None where that of any prior is. It means something only when all are densities
    or all are probabilities.

    >>> mixture([gaussian(2, std=0.5), affine(laplace(2), 1.0, 3.0)], weights=[0.3, 0.7]).num_modes
    2

    Args:
        priors: at least one, all of the same dim.
        weights: [priors], not negative; divided by their sum. None makes all equally likely.

    Raises:
        ValueError: no prior, different dims, a negative weight, or weights that are all zero.
    """
    if not priors:
        raise ValueError("mixture: priors must hold at least one prior, got none")
    dims = [prior.dim for prior in priors]
    if len(set(dims)) > 1:
        raise ValueError(f"mixture: priors must all have the same dim, got {dims}")
    log_weights = _log_weights("mixture: weights", weights, len(priors))
    samples = [prior.sample for prior in priors]
    log_probs = [prior.log_prob for prior in priors if prior.log_prob is not None]

    def sample(key: Key[Array, ""]) -> Float[Array, "dim"]:
        key_mode, key_code = jax.random.split(key)
        return sample_mode(key_code, jax.random.categorical(key_mode, jnp.asarray(log_weights)))

    def sample_mode(key: Key[Array, ""], mode: Mode) -> Float[Array, "dim"]:
        return jax.lax.switch(_clip_mode(mode, len(samples)), samples, key)

    def log_prob(code: Float[Array, "dim"]) -> Float[Array, ""]:
        log_parts = jnp.stack([part(code) for part in log_probs])
        return jax.nn.logsumexp(jnp.asarray(log_weights) + log_parts)

    has_log_prob = len(log_probs) == len(priors)
    return Prior(dims[0], sample, sample_mode, log_prob if has_log_prob else None, len(priors))


def product(*priors: Prior) -> Prior:
    """Independent draws of several priors, concatenated.

    Its modes are the combinations of theirs, in row-major order (the last prior's mode moves
    fastest); a prior without modes counts as one. So `product(categorical(10), gaussian(5))` has
    ten modes. Its log_prob is None where that of any prior is.

    >>> product(categorical(10), gaussian(5)).dim
    15

    Raises:
        ValueError: no prior.
    """
    if not priors:
        raise ValueError("product: priors must hold at least one prior, got none")
    parts = [_with_modes(prior) for prior in priors]
    counts = [part.num_modes for part in parts]
    ends = np.cumsum([part.dim for part in parts])
    log_probs = [part.log_prob for part in parts if part.log_prob is not None]

    def sample(key: Key[Array, ""]) -> Float[Array, "dim"]:
        keys = jax.random.split(key, len(parts))
        return jnp.concatenate([part.sample(k) for part, k in zip(parts, keys, strict=True)])

    def sample_mode(key: Key[Array, ""], mode: Mode) -> Float[Array, "dim"]:
        keys = jax.random.split(key, len(parts))
        modes = jnp.unravel_index(_clip_mode(mode, math.prod(counts)), counts)
        draws = [
            part.sample_mode(k, m)  # type: ignore[misc]  # _with_modes gave every part one
            for part, k, m in zip(parts, keys, modes, strict=True)
        ]
        return jnp.concatenate(draws)

    def log_prob(code: Float[Array, "dim"]) -> Float[Array, ""]:
        pieces = jnp.split(code, ends[:-1])
        return jnp.stack([part(p) for part, p in zip(log_probs, pieces, strict=True)]).sum()

    has_log_prob = len(log_probs) == len(parts)
    return Prior(
        int(ends[-1]), sample, sample_mode, log_prob if has_log_prob else None, math.prod(counts)
    )


def unconditional(prior: Prior, modes: int) -> Prior:
    """The prior, with modes that are all the whole of it: p(z | mode) = p(z).

    A label-informed adversary pulls the code onto it for each label alike, so that the style cannot
    tell the label.

    >>> unconditional(gaussian(15), modes=10).num_modes
    10

    Raises:
        ValueError: modes below 1.
    """
    _check_count("unconditional: modes", modes)
    return prior._replace(sample_mode=lambda key, mode: prior.sample(key), num_modes=modes)


def fitted_gaussian(codes: Float[np.ndarray, "n dim"]) -> Prior:
    """The Gaussian with the mean and covariance of `codes`.

    >>> fitted_gaussian(np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]])).dim
    2

    Raises:
        ValueError: the codes are not finite, or lie in a subspace: their covariance is singular.
    """
    points = _finite_array("fitted_gaussian: codes", codes)
    covariance = np.atleast_2d(np.cov(points, rowvar=False))
    try:
        scale = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        raise ValueError("fitted_gaussian: the codes lie in a subspace of their space") from None
    return affine(gaussian(points.shape[1]), scale, points.mean(axis=0))


def affine(prior: Prior, scale: Numbers, shift: Numbers = 0.0) -> Prior:
    """The prior of scale z + shift, z drawn from `prior`, whose modes it keeps.

    The log_prob follows by change of variables, which holds for densities (not for `categorical`).

    >>> affine(gaussian(2), scale=[[2.0, 0.0], [1.0, 1.0]], shift=[0.0, 5.0]).dim
    2

    Args:
        prior: any prior.
        scale: a number, a vector [dim] (one factor per coordinate) or a matrix [dim, dim].
        shift: a number or a vector [dim].

    Raises:
        ValueError: a wrong shape, a factor of zero, or a singular matrix.
    """
    matrix = _scale_matrix("affine: scale", scale, prior.dim)
    offset = _finite_array("affine: shift", shift)
    if offset.shape not in ((), (prior.dim,)):
        raise ValueError(
            f"affine: shift must be a number or have the shape ({prior.dim},), got the shape "
            f"{offset.shape}"
        )
    inverse = np.linalg.inv(matrix)
    log_determinant = float(np.linalg.slogdet(matrix).logabsdet)
    inner_sample_mode, inner_log_prob = prior.sample_mode, prior.log_prob
    inner_path = prior.path

    def forward(code: Float[Array, "dim"]) -> Float[Array, "dim"]:
        return jnp.matmul(jnp.asarray(matrix), code, precision=_PRECISION) + jnp.asarray(offset)

    def sample(key: Key[Array, ""]) -> Float[Array, "dim"]:
        return forward(prior.sample(key))

    sample_mode = None
    if inner_sample_mode is not None:

        def sample_mode(key: Key[Array, ""], mode: Mode) -> Float[Array, "dim"]:
            return forward(inner_sample_mode(key, mode))

    log_prob = None
    if inner_log_prob is not None:

        def log_prob(code: Float[Array, "dim"]) -> Float[Array, ""]:
            centred = code - jnp.asarray(offset)
            inner_code = jnp.matmul(jnp.asarray(inverse), centred, precision=_PRECISION)
            return inner_log_prob(inner_code) - log_determinant

    path = None
    if inner_path is not None:

        def path(u: Float[Array, ""]) -> Float[Array, "dim"]:
            return forward(inner_path(u))

    return Prior(prior.dim, sample, sample_mode, log_prob, prior.num_modes, path)


def rotate(prior: Prior, angle: Number) -> Prior:
    """A 2-D prior turned about the origin by `angle` radians, from the first axis to the second.

    >>> rotate(petals(modes=4), math.pi / 4).num_modes
    4

    Raises:
        ValueError: a prior that is not 2-D, an angle that is not finite.
    """
    if prior.dim != 2:
        raise ValueError(f"rotate: the prior must be 2-D, got one of dim {prior.dim}")
    _check_number("rotate: angle", angle)
    cos, sin = math.cos(angle), math.sin(angle)
    return affine(prior, [[cos, -sin], [sin, cos]])


def _undivided(
    dim: int,
    sample: Callable[[Key[Array, ""]], Float[Array, "dim"]],
    log_prob: Callable[[Float[Array, "dim"]], Float[Array, ""]] | None,
) -> Prior:
    return Prior(dim, sample, lambda key, mode: sample(key), log_prob, 1)


def _with_modes(prior: Prior) -> Prior:
    if prior.sample_mode is not None:
        return prior
    return _undivided(prior.dim, prior.sample, prior.log_prob)


def _clip_mode(mode: Mode, num_modes: int) -> Integer[Array, ""]:
    # Indexing would count a negative mode from the end, and the roll has no place before its start.
    return jnp.clip(mode, 0, num_modes - 1)


# Checks of arguments; `name` says whose argument it is.


def _check_number(name: str, value: Number) -> None:
    if isinstance(value, bool) or not isinstance(value, Number) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def _check_positive(name: str, value: Number) -> None:
    _check_number(name, value)
    if value <= 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")


def _check_not_negative(name: str, value: Number) -> None:
    _check_number(name, value)
    if value < 0:
        raise ValueError(f"{name} must be zero or a positive number, got {value!r}")


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _finite_array(name: str, values: Numbers) -> np.ndarray:
    # float64, so that what is derived from it is exact to float32, the precision it is used in.
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers with rows of equal length") from error
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must hold finite numbers only, got one that is not")
    return array


def _log_weights(name: str, weights: Numbers | None, count: int) -> Float[np.ndarray, "modes"]:
    values = np.ones(count) if weights is None else _finite_array(name, weights)
    if values.shape != (count,):
        raise ValueError(f"{name} must have the shape ({count},), got the shape {values.shape}")
    if np.any(values < 0) or values.sum() <= 0:
        raise ValueError(
            f"{name} must be zero or positive with a positive sum, got {values.tolist()}"
        )
    with np.errstate(divide="ignore"):  # the logarithm of a weight of zero is meant
        return np.log(values / values.sum())


def _cholesky(name: str, covariances: Numbers, shape: tuple[int, int, int]) -> np.ndarray:
    matrices = _finite_array(name, covariances)
    if matrices.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got the shape {matrices.shape}")
    eigenvalues = np.linalg.eigvalsh(matrices)
    smallest_allowed = shape[-1] * np.finfo(np.float64).eps * eigenvalues[:, -1]
    is_symmetric = np.allclose(matrices, matrices.transpose(0, 2, 1))
    if not is_symmetric or np.any(eigenvalues[:, 0] <= smallest_allowed):
        raise ValueError(f"{name} must be symmetric and positive definite, and one is not")
    return np.linalg.cholesky(matrices)


def _scale_matrix(name: str, scale: Numbers, dim: int) -> Float[np.ndarray, "dim dim"]:
    factors = _finite_array(name, scale)
    if factors.shape not in ((), (dim,), (dim, dim)):
        raise ValueError(
            f"{name} must be a number or have the shape ({dim},) or ({dim}, {dim}), got the shape "
            f"{factors.shape}"
        )
    if factors.ndim < 2:
        if np.any(factors == 0):
            raise ValueError(f"{name} must not hold a factor of zero, got {factors.tolist()}")
        return np.diag(np.broadcast_to(factors, (dim,)))
    # Below float32's rounding a matrix is singular in the precision it is used in.
    if np.linalg.matrix_rank(factors, rtol=dim * np.finfo(np.float32).eps) < dim:
        raise ValueError(f"{name} must be an invertible matrix, got a singular one")
    return factors
