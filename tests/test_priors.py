"""Priors against independent constructions in NumPy and SciPy; laws of their combinators."""

import doctest
import functools
import math
import re
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import logsumexp

from aae_jax import priors

COVARIANCES = np.array([[[0.5, 0.3], [0.3, 0.4]], [[0.2, -0.1], [-0.1, 0.9]], 0.3 * np.eye(2)])
MEANS = np.array([[1.0, -2.0], [-1.0, 0.5], [2.0, 2.0]])
WEIGHTS = np.array([0.6, 0.3, 0.1])
SKEW = np.array([[1.5, 0.4], [-0.7, 0.8]])
POINTS = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, -5.0], [6.0, 7.0]])

# Every prior with a density over the plane, combinators included.
PLANE = {
    "gaussian": priors.gaussian(2, std=0.7),
    "uniform": priors.uniform(2, low=-1, high=2),
    "laplace": priors.laplace(2, scale=0.5),
    "gaussian_mixture": priors.gaussian_mixture(MEANS, COVARIANCES, WEIGHTS),
    "petals": priors.petals(),
    "few wide petals": priors.petals(3, distance=1.0, std_across=0.3, scale=2),
    "grid": priors.grid(side=3, std=0.2),
    "mixture": priors.mixture(
        [priors.uniform(2), priors.affine(priors.gaussian(2, 0.4), 1.0, [3.0, -2.0])], [3, 1]
    ),
    "product": priors.product(priors.laplace(1, 0.4), priors.uniform(1, -2, 1)),
    "affine by a number": priors.affine(priors.laplace(2, 0.5), -2, (1.0, -1.0)),
    "affine by a vector": priors.affine(priors.laplace(2, 0.6), (1.5, -0.7), 1.5),
    "affine by a matrix": priors.affine(priors.laplace(2, 0.4), SKEW, (1.0, -1.0)),
    "rotate": priors.rotate(priors.gaussian_mixture(MEANS, COVARIANCES, WEIGHTS), 0.8),
}

MODAL = {
    "gaussian": PLANE["gaussian"],
    "gaussian_mixture": PLANE["gaussian_mixture"],
    "petals": PLANE["petals"],
    "swiss_roll": priors.swiss_roll(scale=0.5, noise=1.0),
    "categorical": priors.categorical(4),
    "empirical": priors.empirical(POINTS),
    "mixture": priors.mixture([priors.gaussian(2), priors.swiss_roll(), priors.laplace(2)]),
    "product": priors.product(priors.categorical(3), priors.laplace(2), priors.petals(2)),
    "affine": priors.affine(priors.petals(modes=4), SKEW, 0.5),
}

FIVE_PETALS = priors.petals(modes=5, distance=2.0, std_along=0.5, std_across=0.1, scale=3.0)
ROLL = priors.swiss_roll(modes=10, scale=2.0)

few_examples = hypothesis.settings(deadline=None, max_examples=5, derandomize=True)
angles = st.floats(-7, 7, width=32)
shifts = st.tuples(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32))


@st.composite
def matrices(draw):
    """Invertible 2 x 2 matrices that float32 inverts well: a rotation times a triangle."""
    angle, skew = draw(angles), draw(st.floats(-1, 1))
    triangle = np.array([[draw(st.floats(0.5, 2)), skew], [0.0, -draw(st.floats(0.5, 2))]])
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ triangle


def split(seed, count):
    return jax.random.split(jax.random.key(seed), count)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """These tests compile far more than they compute."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def sampler(prior):
    return jax.jit(functools.partial(priors.sample_batch, prior))


@functools.cache
def mode_sampler(prior):
    return jax.jit(functools.partial(priors.sample_modes, prior))


def draw(prior, seed=0):
    return np.asarray(sampler(prior)(split(seed, 4000)))


def draw_modes(prior, modes, seed=0):
    return np.asarray(mode_sampler(prior)(split(seed, 4000), modes))


def draw_mode(prior, mode):
    return draw_modes(prior, np.full(4000, mode, np.int32))


def log_density(prior, points):
    return np.asarray(jax.vmap(prior.log_prob)(jnp.asarray(points, jnp.float32)))


def assert_same_distribution(samples, oracle):
    """Kolmogorov-Smirnov on each coordinate and, in two dimensions, on slanted projections."""
    assert samples.shape[1:] == oracle.shape[1:]
    directions = [np.eye(samples.shape[1])]
    if samples.shape[1] == 2:
        slants = np.array([0.2, 0.5, 1.0, 2.0, 2.6])
        directions.append(np.stack([np.cos(slants), np.sin(slants)], axis=1))
    for direction in np.concatenate(directions):
        test = scipy.stats.ks_2samp(samples @ direction, oracle @ direction)
        assert test.pvalue > 1e-3, (direction, test)


def plane(complex_numbers):
    return np.stack([complex_numbers.real, complex_numbers.imag], axis=-1)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# Samples


def test_gaussian_samples_and_moments(rng):
    samples = draw(priors.gaussian(3, std=5.0))
    assert_same_distribution(samples, 5 * rng.standard_normal((4000, 3)))
    np.testing.assert_allclose(samples.mean(axis=0), 0, atol=0.3)
    np.testing.assert_allclose(np.cov(samples.T), 25 * np.eye(3), atol=2)


def test_uniform_samples_fill_the_box(rng):
    samples = draw(PLANE["uniform"])
    assert_same_distribution(samples, rng.uniform(-1, 2, (4000, 2)))
    assert samples.min() >= -1 and samples.max() <= 2
    assert abs(np.corrcoef(samples.T)[0, 1]) < 0.05


def test_laplace_samples_and_moments(rng):
    samples = draw(PLANE["laplace"])
    assert_same_distribution(samples, rng.laplace(scale=0.5, size=(4000, 2)))
    np.testing.assert_allclose(np.cov(samples.T), 0.5 * np.eye(2), atol=0.06)


def test_gaussian_mixture_samples_follow_weights_means_and_covariances(rng):
    samples = draw(PLANE["gaussian_mixture"])
    modes = rng.choice(3, size=4000, p=WEIGHTS)
    everywhere = np.stack(
        [rng.multivariate_normal(m, c, 4000) for m, c in zip(MEANS, COVARIANCES, strict=True)]
    )
    assert_same_distribution(samples, everywhere[modes, np.arange(4000)])


def test_weights_are_divided_by_their_sum_and_may_be_zero():
    prior = priors.gaussian_mixture([[-5.0], [0.0], [5.0]], np.full((3, 1, 1), 0.01), [6, 0, 2])
    places = np.round(draw(prior)[:, 0] / 5).astype(int)
    assert not np.any(places == 0)
    assert np.mean(places == -1) == pytest.approx(0.75, abs=0.03)


def test_petals_point_at_the_centre(rng):
    samples = draw(PLANE["petals"])
    turns = np.exp(2j * np.pi * rng.integers(10, size=4000) / 10)
    along, across = 1.4 + 0.5 * rng.standard_normal(4000), 0.1 * rng.standard_normal(4000)
    assert_same_distribution(samples, plane((along + 1j * across) * turns))


@pytest.mark.parametrize("mode", [0, 1, 3])
def test_a_petal_lies_at_its_angle_long_axis_inwards(mode):
    samples = draw_mode(FIVE_PETALS, mode) @ np.array([1, 1j]) * np.exp(-2j * np.pi * mode / 5)
    assert samples.mean() == pytest.approx(6.0, abs=0.15)
    assert samples.real.std() == pytest.approx(1.5, rel=0.06)
    assert samples.imag.std() == pytest.approx(0.3, rel=0.06)
    assert abs(np.corrcoef(samples.real, samples.imag)[0, 1]) < 0.08


def test_grid_is_centred_and_row_major(rng):
    prior = priors.grid(side=4, spacing=3.0, std=0.2)
    cells = rng.integers(4, size=(4000, 2))
    oracle = (cells - 1.5) * 3.0 + 0.2 * rng.standard_normal((4000, 2))
    assert_same_distribution(draw(prior), oracle)
    assert prior.num_modes == 16
    # Mode 4 * i + j: i along the first axis.
    np.testing.assert_allclose(draw_mode(prior, 4 * 0 + 3).mean(axis=0), [-4.5, 4.5], atol=0.03)


@pytest.mark.parametrize(
    ("prior", "turns", "scale", "noise"),
    [
        (ROLL, 2.0, 2.0, 0.0),
        (priors.swiss_roll(turns=3.0), 3.0, 1.0, 0.0),
        (MODAL["swiss_roll"], 2.0, 0.5, 1.0),
    ],
)
def test_swiss_roll_samples(rng, prior, turns, scale, noise):
    root = np.sqrt(rng.uniform(size=4000))
    blur = noise * (rng.standard_normal(4000) + 1j * rng.standard_normal(4000))
    oracle = scale * (3 * root * np.exp(2j * np.pi * turns * root) + blur)
    assert_same_distribution(draw(prior), plane(oracle))


@pytest.mark.parametrize("mode", [0, 4, 9])
def test_a_mode_of_the_roll_is_its_tenth(mode):
    samples = draw_mode(ROLL, mode)
    places = (np.hypot(*samples.T) / (3 * 2.0)) ** 2  # r = 3 sqrt(u)
    tenth = scipy.stats.uniform(mode / 10, 0.1)
    assert places.min() >= mode / 10 - 1e-5 and places.max() <= (mode + 1) / 10 + 1e-5
    assert scipy.stats.kstest(places, tenth.cdf).pvalue > 1e-3
    # The angle of the paper's roll, 4 pi sqrt(u).
    directions = samples @ np.array([1, 1j]) / np.hypot(*samples.T)
    np.testing.assert_allclose(directions, np.exp(4j * np.pi * np.sqrt(places)), atol=1e-3)


def test_swiss_roll_curve_is_the_middle_line_of_the_roll():
    u = np.linspace(0, 1, 4001, dtype=np.float32)
    radius, angle = 3 * 2.0 * np.sqrt(u), 4 * np.pi * np.sqrt(u)
    curve = np.asarray(priors.swiss_roll_curve(u, scale=2.0))
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    np.testing.assert_allclose(curve, expected, atol=1e-5)
    gaps = np.hypot(*np.moveaxis(draw(ROLL)[:200, None] - curve, -1, 0)).min(axis=1)
    assert gaps.max() < 0.1


def test_categorical_samples_are_one_hot_and_equally_likely():
    samples = draw(MODAL["categorical"])
    assert set(np.unique(samples)) == {0.0, 1.0}
    np.testing.assert_array_equal(samples.sum(axis=1), 1)
    assert scipy.stats.chisquare(samples.sum(axis=0)).pvalue > 1e-3


def test_categorical_samples_are_as_frequent_as_their_weights():
    prior = priors.categorical(4, weights=[1, 0, 3, 4])
    samples = draw(prior)
    shares = np.array([1, 0, 3, 4]) / 8
    np.testing.assert_allclose(samples.mean(axis=0), shares, atol=0.02)
    np.testing.assert_array_equal(np.unique(samples), [0, 1])
    log_probs = jax.vmap(prior.log_prob)(jnp.eye(4))
    np.testing.assert_allclose(np.exp(log_probs), shares, rtol=1e-6)


def test_mode_k_of_a_categorical_is_the_kth_one_hot(rng):
    modes = rng.integers(4, size=4000)
    np.testing.assert_array_equal(draw_modes(MODAL["categorical"], modes), np.eye(4)[modes])


def test_empirical_samples_are_rows_equally_likely():
    samples = draw(MODAL["empirical"])
    is_row = np.all(samples[:, None] == POINTS[None], axis=-1)
    assert np.all(is_row.sum(axis=1) == 1)
    assert scipy.stats.chisquare(is_row.sum(axis=0)).pvalue > 1e-3


def test_mixture_samples(rng):
    prior = priors.mixture([priors.uniform(2), priors.laplace(2, 2.0), priors.gaussian(2)], WEIGHTS)
    parts = np.stack(
        [
            rng.uniform(-1, 1, (4000, 2)),
            rng.laplace(scale=2, size=(4000, 2)),
            rng.standard_normal((4000, 2)),
        ]
    )
    choice = rng.choice(3, size=4000, p=WEIGHTS)
    assert_same_distribution(draw(prior), parts[choice, np.arange(4000)])
    assert_same_distribution(draw_mode(prior, 1), parts[1])


def test_product_samples_are_independent(rng):
    samples = draw(priors.product(priors.gaussian(1), priors.gaussian(1), priors.laplace(1)))
    oracle = np.concatenate([rng.standard_normal((4000, 2)), rng.laplace(size=(4000, 1))], axis=1)
    assert_same_distribution(samples, oracle)
    np.testing.assert_allclose(np.corrcoef(samples.T), np.eye(3), atol=0.06)


def test_product_modes_are_row_major():
    prior = priors.product(priors.categorical(2), priors.gaussian(1), priors.categorical(3))
    assert (prior.dim, prior.num_modes) == (6, 6)
    modes = np.arange(4000) % 6
    samples = draw_modes(prior, modes)
    np.testing.assert_array_equal(samples[:, :2], np.eye(2)[modes // 3])
    np.testing.assert_array_equal(samples[:, 3:], np.eye(3)[modes % 3])


def test_product_counts_a_prior_without_modes_as_one():
    prior = priors.product(priors.gaussian(2)._replace(sample_mode=None), priors.categorical(3))
    assert prior.num_modes == 3
    np.testing.assert_array_equal(prior.sample_mode(jax.random.key(0), 2)[2:], [0, 0, 1])


def test_affine_samples(rng):
    samples = draw(PLANE["affine by a matrix"])
    assert_same_distribution(samples, rng.laplace(scale=0.4, size=(4000, 2)) @ SKEW.T + [1, -1])


def test_every_mode_of_an_unconditional_prior_is_the_whole_of_it():
    prior = priors.unconditional(priors.petals(4), modes=3)
    key = jax.random.key(5)
    assert (prior.dim, prior.num_modes) == (2, 3)
    for mode in range(3):
        assert np.array_equal(prior.sample_mode(key, mode), prior.sample(key))
    assert np.array_equal(prior.sample(key), priors.petals(4).sample(key))
    assert prior.log_prob(jnp.ones(2)) == priors.petals(4).log_prob(jnp.ones(2))


def test_rotate_turns_from_the_first_axis_to_the_second():
    prior = priors.rotate(priors.empirical([[1.0, 0.0]]), np.pi / 2)
    np.testing.assert_allclose(prior.sample(jax.random.key(0)), [0.0, 1.0], atol=1e-6)


# Densities


@pytest.mark.parametrize("name", PLANE)
def test_log_prob_is_the_density_of_the_samples(name):
    """It integrates to one, and its mean, covariance and entropy are those of the samples."""
    prior = PLANE[name]
    step = 0.05
    ticks = np.arange(-9, 9, step) + step / 2  # midpoints: cells end where the boxes do
    points = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 2)
    samples = draw(prior).astype(np.float64)
    everywhere = jnp.asarray(np.concatenate([points, samples]), jnp.float32)
    log_probs = np.float64(jax.jit(jax.vmap(prior.log_prob))(everywhere))
    log_probs, sample_log_probs = np.split(log_probs, [len(points)])
    masses = np.exp(log_probs) * step**2
    assert masses.sum() == pytest.approx(1, abs=2e-3)

    mean = masses @ points
    covariance = (masses[:, None] * (points - mean)).T @ (points - mean)
    largest = np.linalg.eigvalsh(covariance)[-1]
    np.testing.assert_allclose(samples.mean(axis=0), mean, atol=0.06 * np.sqrt(largest))
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.12 * largest)
    entropy = -np.sum(masses * np.where(masses > 0, log_probs, 0))
    tolerance = 4 * sample_log_probs.std() / np.sqrt(4000) + 2e-3
    assert -sample_log_probs.mean() == pytest.approx(entropy, abs=tolerance)


def test_log_prob_agrees_with_scipy(rng):
    points = rng.normal(scale=1.5, size=(20, 2))
    normal, laplace = scipy.stats.norm, scipy.stats.laplace
    expected = {
        priors.gaussian(2, 0.7): normal.logpdf(points, scale=0.7).sum(axis=1),
        priors.uniform(2, -1, 2): scipy.stats.uniform.logpdf(points, -1, 3).sum(axis=1),
        priors.laplace(2, 0.5): laplace.logpdf(points, scale=0.5).sum(axis=1),
        priors.gaussian_mixture(MEANS, COVARIANCES, WEIGHTS): mixture_logpdf(points),
        priors.affine(priors.gaussian(2), SKEW, [0.5, -1.0]): (
            scipy.stats.multivariate_normal([0.5, -1.0], SKEW @ SKEW.T).logpdf(points)
        ),
    }
    for prior, values in expected.items():
        np.testing.assert_allclose(log_density(prior, points), values, rtol=2e-5, atol=2e-5)


def mixture_logpdf(points):
    parts = [
        scipy.stats.multivariate_normal(mean, covariance).logpdf(points)
        for mean, covariance in zip(MEANS, COVARIANCES, strict=True)
    ]
    return logsumexp(np.stack(parts, axis=1), axis=1, b=WEIGHTS)


def test_log_prob_stays_finite_far_from_every_mode():
    far = log_density(PLANE["gaussian_mixture"], np.full((20, 2), -80.0))
    assert np.isfinite(far).all() and far.max() < -1e3


def test_log_prob_is_exact_in_double_precision(rng):
    points = rng.normal(size=(20, 2))
    with jax.enable_x64(True):
        prior = priors.rotate(priors.gaussian_mixture(MEANS, COVARIANCES, WEIGHTS), 0.3)
        values = jax.vmap(prior.log_prob)(jnp.asarray(points))
    turned_back = plane(points @ np.array([1, 1j]) * np.exp(-0.3j))
    np.testing.assert_allclose(values, mixture_logpdf(turned_back), rtol=1e-12)


def test_categorical_log_prob_is_a_log_probability():
    prior = priors.categorical(4)
    np.testing.assert_allclose(log_density(prior, np.eye(4)), -math.log(4), rtol=1e-6)
    elsewhere = [[0.25] * 4, [1, 1, 0, 0], [0, 0, 0, 0], [2, -1, 0, 0], [0.5, 0.5, 0, 0]]
    assert np.all(log_density(prior, elsewhere) == -np.inf)


@pytest.mark.parametrize(
    "prior",
    [
        priors.swiss_roll(),
        priors.empirical(POINTS),
        priors.mixture([priors.gaussian(2), priors.swiss_roll()]),
        priors.product(priors.empirical(POINTS), priors.gaussian(1)),
        priors.rotate(priors.swiss_roll(), 1.0),
    ],
)
def test_no_density_is_claimed_where_there_is_none(prior):
    assert prior.log_prob is None


# Laws of the combinators


@few_examples
@hypothesis.given(angle=angles)
def test_turning_back_is_the_identity(angle):
    prior = priors.gaussian_mixture(MEANS, COVARIANCES, WEIGHTS)
    there_and_back = priors.rotate(priors.rotate(prior, angle), -angle)
    assert_same_prior(there_and_back, prior)


@few_examples
@hypothesis.given(first=matrices(), second=matrices(), shift=shifts, other_shift=shifts)
def test_affine_maps_compose(first, second, shift, other_shift):
    prior = priors.laplace(2)
    composed = priors.affine(priors.affine(prior, first, shift), second, other_shift)
    assert_same_prior(composed, priors.affine(prior, second @ first, second @ shift + other_shift))


@few_examples
@hypothesis.given(factor=st.floats(0.5, 2) | st.floats(-2, -0.5), shift=st.floats(-3, 3))
def test_a_number_and_a_vector_are_short_for_a_matrix(factor, shift):
    prior = priors.petals(modes=3, std_across=0.3)
    by_matrix = priors.affine(prior, factor * np.eye(2), [shift, shift])
    assert_same_prior(priors.affine(prior, factor, shift), by_matrix)
    assert_same_prior(priors.affine(prior, (factor, factor), shift), by_matrix)


@few_examples
@hypothesis.given(weight=st.floats(0.1, 10))
def test_a_mixture_of_one_is_that_prior(weight):
    prior = PLANE["few wide petals"]
    alone = priors.mixture([prior], [weight])
    points = np.random.default_rng(2).normal(size=(20, 2))
    np.testing.assert_allclose(log_density(alone, points), log_density(prior, points), rtol=1e-5)
    key = jax.random.key(3)
    np.testing.assert_array_equal(alone.sample_mode(key, 0), prior.sample(key))


@few_examples
@hypothesis.given(
    point=st.tuples(*[st.floats(-3, 3, width=32)] * 2),
    weights=st.lists(st.floats(0, 5), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.1),
)
def test_mixture_log_prob_is_the_logsumexp_of_its_parts(point, weights):
    parts = [priors.gaussian(2), priors.laplace(2, 2.0), priors.uniform(2, -3, 3)]
    code = jnp.asarray(point, jnp.float32)
    inside = logsumexp([float(part.log_prob(code)) for part in parts], b=weights)
    expected = inside - math.log(sum(weights))
    assert float(priors.mixture(parts, weights).log_prob(code)) == pytest.approx(expected, abs=1e-4)


@few_examples
@hypothesis.given(point=st.tuples(*[st.floats(-3, 3, width=32)] * 4))
def test_product_log_prob_is_the_sum_of_its_parts(point):
    code = jnp.asarray(point, jnp.float32)
    parts = [priors.laplace(1, 2.0), priors.petals(3), priors.gaussian(1, 0.5)]
    pieces = [code[:1], code[1:3], code[3:]]
    expected = sum(float(part.log_prob(p)) for part, p in zip(parts, pieces, strict=True))
    value = float(priors.product(*parts).log_prob(code))
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-4)


def assert_same_prior(prior, other):
    assert (prior.dim, prior.num_modes) == (other.dim, other.num_modes)
    keys = split(5, 20)
    samples = np.asarray(priors.sample_batch(other, keys))
    np.testing.assert_allclose(priors.sample_batch(prior, keys), samples, atol=2e-5)
    last = jnp.full(20, other.num_modes - 1)
    np.testing.assert_allclose(
        priors.sample_modes(prior, keys, last), priors.sample_modes(other, keys, last), atol=2e-5
    )
    values = jax.vmap(other.log_prob)(samples)
    np.testing.assert_allclose(jax.vmap(prior.log_prob)(samples), values, atol=2e-4)


# Keys, modes and tracing


@pytest.mark.parametrize("name", MODAL)
def test_a_traced_mode_gives_what_a_plain_one_gives_and_is_clipped(name):
    prior = MODAL[name]
    count, key = prior.num_modes, jax.random.key(1)
    modes = jnp.arange(-1, count + 1)
    traced, plain = jax.jit(
        lambda k, m: (
            jax.vmap(prior.sample_mode, in_axes=(None, 0))(k, m),
            prior.sample_mode(k, count - 1),
        )
    )(key, modes)
    assert traced.shape == (count + 2, prior.dim)
    np.testing.assert_allclose(traced[count], plain, atol=1e-5)
    np.testing.assert_array_equal(traced[0], traced[1])
    np.testing.assert_array_equal(traced[-1], traced[-2])


@pytest.mark.parametrize("name", MODAL)
def test_the_same_key_gives_the_same_sample_and_another_key_another(name):
    prior = MODAL[name]
    np.testing.assert_array_equal(draw(prior, seed=1), draw(prior, seed=1))
    assert np.any(draw(prior, seed=1) != draw(prior, seed=2))


@pytest.mark.parametrize("name", ["gaussian_mixture", "swiss_roll", "mixture", "product"])
def test_no_key_is_used_twice(name):
    prior = MODAL[name]
    draw_both = jax.jit(lambda key, other: (prior.sample(key), prior.sample_mode(other, 0)))
    with jax.debug_key_reuse(True):
        draw_both(jax.random.key(0), jax.random.key(1))


def test_each_draw_of_a_batch_depends_on_its_own_key_only(rng):
    keys, order = split(4, 4000), rng.permutation(4000)
    sample = sampler(PLANE["petals"])
    np.testing.assert_array_equal(sample(keys)[order], sample(keys[order]))


def test_an_unknown_mode_draws_from_the_whole_prior(rng):
    prior = MODAL["categorical"]
    modes = rng.permutation(np.repeat([-1, 2], 2000))
    samples = draw_modes(prior, modes)
    np.testing.assert_array_equal(samples[modes == 2], np.eye(4)[[2] * 2000])
    assert scipy.stats.chisquare(samples[modes == -1].sum(axis=0)).pvalue > 1e-3


def test_sample_modes_needs_modes():
    prior = priors.gaussian(2)._replace(sample_mode=None)
    with pytest.raises(ValueError, match=r"^sample_modes: the prior must have modes"):
        priors.sample_modes(prior, split(0, 2), jnp.array([0, 0]))


# Quantiles


def test_quantiles_are_those_of_each_coordinate():
    prior = priors.product(priors.gaussian(1, std=5.0), priors.uniform(1, 0, 2))
    levels = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    found = priors.quantiles(prior, jax.random.key(0), levels, num_samples=4000)
    assert found.shape == (5, 2)
    np.testing.assert_allclose(found[1:4, 0], scipy.stats.norm.ppf(levels[1:4], 0, 5), atol=0.4)
    np.testing.assert_allclose(found[:, 1], 2 * levels, atol=0.06)
    # The ends are those of the samples: 2.5 to 6 standard deviations out for 4000 normals.
    assert np.all((np.abs(found[[0, 4], 0]) > 12.5) & (np.abs(found[[0, 4], 0]) < 30))


# Bad arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.gaussian(0), r"gaussian: dim must be a whole number of at least 1, got 0"),
        (lambda: priors.gaussian(True), r"gaussian: dim must be a whole number of at least 1"),
        (lambda: priors.gaussian(2, std=0.0), r"gaussian: std must be a positive number, got 0.0"),
        (lambda: priors.gaussian(2, std=-1), r"gaussian: std must be a positive number, got -1"),
        (lambda: priors.gaussian(2, std=math.nan), r"gaussian: std must be a finite number"),
        (lambda: priors.uniform(-1), r"uniform: dim must be a whole number"),
        (lambda: priors.uniform(2, 1, 1), r"uniform: low must be below high, got low 1 and high 1"),
        (lambda: priors.uniform(2, 0, math.inf), r"uniform: high must be a finite number, got inf"),
        (lambda: priors.laplace(0), r"laplace: dim must be a whole number"),
        (lambda: priors.laplace(1, scale=0), r"laplace: scale must be a positive number, got 0"),
        (
            lambda: priors.gaussian_mixture([], []),
            r"gaussian_mixture: means must have the shape \[modes, dim\].*, got the shape \(0,\)",
        ),
        (
            lambda: priors.gaussian_mixture([[0.0], [0.0, 1.0]], []),
            r"gaussian_mixture: means must be an array of numbers with rows of equal length",
        ),
        (
            lambda: priors.gaussian_mixture(MEANS, COVARIANCES[:2]),
            r"gaussian_mixture: covariances must have the shape \(3, 2, 2\), .* \(2, 2, 2\)",
        ),
        (
            lambda: priors.gaussian_mixture([[0.0, 0.0]], [[[1.0, 1.0], [1.0, 1.0]]]),
            r"gaussian_mixture: covariances must be symmetric and positive definite",
        ),
        (
            lambda: priors.gaussian_mixture([[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]]),
            r"gaussian_mixture: covariances must be symmetric and positive definite",
        ),
        (
            lambda: priors.gaussian_mixture(MEANS, COVARIANCES, [1, 1]),
            r"gaussian_mixture: weights must have the shape \(3,\), got the shape \(2,\)",
        ),
        (
            lambda: priors.gaussian_mixture(MEANS, COVARIANCES, [1, -1, 1]),
            r"gaussian_mixture: weights must be zero or positive .* got \[1.0, -1.0, 1.0\]",
        ),
        (lambda: priors.petals(modes=0), r"petals: modes must be a whole number of at least 1"),
        (lambda: priors.petals(distance=-1.0), r"petals: distance must be zero or a positive"),
        (lambda: priors.petals(std_along=0.0), r"petals: std_along must be a positive number"),
        (lambda: priors.petals(std_across=0.0), r"petals: std_across must be a positive number"),
        (lambda: priors.petals(scale=0.0), r"petals: scale must be a positive number"),
        (lambda: priors.grid(side=0), r"grid: side must be a whole number of at least 1"),
        (lambda: priors.grid(spacing=0.0), r"grid: spacing must be a positive number"),
        (lambda: priors.grid(std=-0.1), r"grid: std must be a positive number"),
        (lambda: priors.swiss_roll(modes=0), r"swiss_roll: modes must be a whole number"),
        (lambda: priors.swiss_roll(turns=0), r"swiss_roll: turns must be a positive number"),
        (lambda: priors.swiss_roll(scale=-1), r"swiss_roll: scale must be a positive number"),
        (lambda: priors.swiss_roll(noise=-1), r"swiss_roll: noise must be zero or a positive"),
        (
            lambda: priors.swiss_roll_curve(jnp.ones(2), scale=0),
            r"swiss_roll_curve: scale must be a positive number",
        ),
        (lambda: priors.categorical(0), r"categorical: num_categories must be a whole number"),
        (lambda: priors.categorical(2, [1]), r"categorical: weights must have the shape \(2,\)"),
        (
            lambda: priors.empirical(np.zeros((0, 2))),
            r"empirical: points must have the shape \[n, dim\] .* got the shape \(0, 2\)",
        ),
        (lambda: priors.empirical([1.0, 2.0]), r"empirical: points must have .* shape \(2,\)"),
        (lambda: priors.empirical([[np.nan]]), r"empirical: points must hold finite numbers only"),
        (lambda: priors.mixture([]), r"mixture: priors must hold at least one prior, got none"),
        (
            lambda: priors.mixture([priors.gaussian(2), priors.gaussian(3)]),
            r"mixture: priors must all have the same dim, got \[2, 3\]",
        ),
        (
            lambda: priors.mixture([priors.gaussian(2)] * 2, [0, 0]),
            r"mixture: weights must be zero or positive with a positive sum, got \[0.0, 0.0\]",
        ),
        (lambda: priors.product(), r"product: priors must hold at least one prior, got none"),
        (
            lambda: priors.affine(priors.gaussian(2), np.ones((2, 2))),
            r"affine: scale must be an invertible matrix, got a singular one",
        ),
        (
            lambda: priors.affine(priors.gaussian(2), [1.0, 0.0]),
            r"affine: scale must not hold a factor of zero, got \[1.0, 0.0\]",
        ),
        (lambda: priors.affine(priors.gaussian(2), 0), r"affine: scale must not .* zero, got 0.0"),
        (
            lambda: priors.affine(priors.gaussian(2), [1.0, 1.0, 1.0]),
            r"affine: scale must be a number or have the shape \(2,\) or \(2, 2\), .* \(3,\)",
        ),
        (
            lambda: priors.affine(priors.gaussian(2), 1.0, [1.0]),
            r"affine: shift must be a number or have the shape \(2,\), got the shape \(1,\)",
        ),
        (
            lambda: priors.unconditional(priors.gaussian(2), modes=0),
            r"unconditional: modes must be a whole number of at least 1, got 0",
        ),
        (
            lambda: priors.rotate(priors.gaussian(3), 1.0),
            r"rotate: the prior must be 2-D, got one of dim 3",
        ),
        (lambda: priors.rotate(priors.gaussian(2), math.inf), r"rotate: angle must be a finite"),
        (
            lambda: priors.quantiles(priors.gaussian(2), jax.random.key(0), [0.5, 1.5]),
            r"quantiles: probabilities must be a non-empty list of numbers in \[0, 1\]",
        ),
        (
            lambda: priors.quantiles(priors.gaussian(2), jax.random.key(0), [0.5], num_samples=0),
            r"quantiles: num_samples must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_bad_arguments_are_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        make()
    assert "\n" not in str(raised.value)


# Examples


@pytest.mark.parametrize(
    "name",
    [
        "gaussian",
        "uniform",
        "laplace",
        "gaussian_mixture",
        "petals",
        "grid",
        "swiss_roll",
        "swiss_roll_curve",
        "categorical",
        "empirical",
        "mixture",
        "product",
        "affine",
        "rotate",
        "sample_batch",
        "sample_modes",
        "quantiles",
    ],
)
def test_the_example_of_the_docstring_runs(name):
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(priors, name), name)
    example.globs = dict(vars(priors))
    result = doctest.DocTestRunner().run(example)
    assert result.attempted > 0 and result.failed == 0


def test_fitted_gaussian_is_the_normal_density_of_the_points(rng):
    points = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3)) + [1.0, -2.0, 3.0]
    density = scipy.stats.multivariate_normal(points.mean(axis=0), np.cov(points, rowvar=False))
    prior = priors.fitted_gaussian(points.astype(np.float32))
    expected = density.logpdf(points[:7])
    np.testing.assert_allclose(
        jax.vmap(prior.log_prob)(jnp.asarray(points[:7], jnp.float32)), expected, rtol=1e-4
    )
    assert prior.dim == 3
    samples = priors.sample_batch(prior, jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(samples.mean(axis=0), points.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(
        np.cov(samples, rowvar=False), np.cov(points, rowvar=False), atol=0.25
    )


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]], "subspace"),
        ([[0.0, 1.0], [np.nan, 2.0], [2.0, 0.0]], "finite"),
    ],
)
def test_codes_that_no_gaussian_fits_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        priors.fitted_gaussian(np.array(points))


def test_the_prior_that_the_readme_adds_is_one():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(def ring.*?)```", readme, re.DOTALL)
    scope = dict(vars(priors))
    exec(code, scope)
    codes = priors.sample_batch(scope["ring"](radius=2.0), jax.random.split(jax.random.key(0), 500))
    assert codes.shape == (500, 2)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1).mean(), 2.0, atol=0.05)
