import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist
from scipy.stats import wasserstein_distance

from aae_jax.evaluation.latent_space import (
    _quantile_steps,
    classifier_two_sample_accuracy,
    mmd,
    moment_distance,
    prior_distances,
    rms_std,
    sliced_wasserstein,
)

KEY = jax.random.key(0)


def normal(seed, n, d, std=1.0, shift=0.0):
    values = np.random.default_rng(seed).normal(size=(n, d)) * std + shift
    return values.astype(np.float32)


def wasserstein_2(x, y):
    """The definition in one dimension: both samples repeated to a common size, then sorted."""
    size = np.lcm(len(x), len(y))
    difference = np.repeat(np.sort(x), size // len(x)) - np.repeat(np.sort(y), size // len(y))
    return np.sqrt(np.mean(difference**2))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (6, 6), (6, 4), (5, 7), (1, 9)])
def test_in_one_dimension_sliced_wasserstein_is_exact_for_any_sizes(n, m):
    x, y = normal(0, n, 1), normal(1, m, 1, std=2, shift=1)
    expected = wasserstein_2(x[:, 0].astype(np.float64), y[:, 0].astype(np.float64))
    assert sliced_wasserstein(x, y, KEY, 3) == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 12), m=st.integers(1, 12))
def test_quantile_steps_give_scipys_first_wasserstein_distance(n, m):
    x, y = np.sort(normal(n, n, 1)[:, 0]), np.sort(normal(m + 50, m, 1)[:, 0])
    rows_x, rows_y, masses = _quantile_steps(n, m)
    assert masses.sum() == pytest.approx(1) and (masses > 0).all()
    ours = np.abs(x[rows_x] - y[rows_y]) @ masses
    assert ours == pytest.approx(wasserstein_distance(x, y), rel=1e-5)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_dimension():
    x = normal(0, 500, 8)
    shift = np.linspace(-1, 2, 8).astype(np.float32)
    expected = np.linalg.norm(shift) / np.sqrt(8)
    assert sliced_wasserstein(x + shift, x, KEY, 4000) == pytest.approx(expected, rel=0.03)


def test_sliced_wasserstein_of_normals_is_the_difference_of_their_widths():
    x, y = normal(0, 20_000, 3, std=3), normal(1, 15_000, 3)
    assert sliced_wasserstein(x, y, KEY) == pytest.approx(2, abs=0.05)


def test_sliced_wasserstein_of_a_sample_with_itself_is_zero_and_has_the_unit_of_the_codes():
    x, y = normal(0, 50, 4), normal(1, 70, 4)
    assert sliced_wasserstein(x, x[::-1], KEY) == 0
    assert sliced_wasserstein(5 * x, 5 * y, KEY) == pytest.approx(
        5 * sliced_wasserstein(x, y, KEY), rel=1e-5
    )


def mmd_oracle(x, y):
    """The unbiased estimate by its definition, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    median = np.median(pdist(y, "sqeuclidean"))

    def kernel(a, b):
        squared = cdist(a, b, "sqeuclidean")
        widths = [scale * median for scale in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
        return np.mean([c / (c + squared) for c in widths], axis=0)

    def within(a):
        return kernel(a, a)[~np.eye(len(a), dtype=bool)].mean()

    return within(x) + within(y) - 2 * kernel(x, y).mean()


@pytest.mark.parametrize("shift", [0.0, 0.5, 100.0])
def test_mmd_is_the_definition(shift):
    # More rows than a block of distances, and the sizes differ.
    x, y = normal(0, 300, 3, shift=shift), normal(1, 290, 3, std=2, shift=shift)
    assert mmd(x, y) == pytest.approx(mmd_oracle(x, y), abs=2e-6)


def test_mmd_is_zero_on_average_between_equal_distributions():
    values = [mmd(normal(i, 40, 2), normal(i + 500, 50, 2)) for i in range(60)]
    standard_error = np.std(values) / np.sqrt(60)
    assert min(values) < 0  # a biased estimate never is
    assert abs(np.mean(values)) < 3 * standard_error


def test_mmd_is_free_of_scale_and_rises_with_distance():
    x, y = normal(0, 100, 3), normal(1, 100, 3)
    assert mmd(8 * x, 8 * y) == pytest.approx(mmd(x, y), abs=1e-6)
    rising = [mmd(x + shift, y) for shift in (0, 0.5, 1, 3, 100)]
    assert rising == sorted(rising)
    assert 0.5 < rising[-1] < 2


def test_the_bandwidth_is_taken_evenly_through_the_prior_samples():
    # Sorted by mode: the first thousand rows alone would give a bandwidth of 1e-6.
    y = np.concatenate([normal(0, 1500, 2, std=1e-3), normal(1, 1500, 2, std=1e-3, shift=5)])
    shuffled = np.random.default_rng(0).permutation(y)
    x = normal(2, 100, 2)
    assert mmd(x, y) == pytest.approx(mmd(x, shuffled), rel=0.05)


def test_mmd_needs_two_rows_and_a_prior_with_spread():
    with pytest.raises(ValueError, match="two rows"):
        mmd(normal(0, 1, 2), normal(1, 5, 2))
    with pytest.raises(ValueError, match="median squared distance"):
        mmd(normal(0, 5, 2), np.ones((5, 2), np.float32))


def test_the_classifier_finds_nothing_between_equal_distributions():
    # 1000 held-out rows: a standard error of 0.016.
    assert classifier_two_sample_accuracy(normal(0, 1000, 4), normal(1, 1000, 4), 0) == (
        pytest.approx(0.5, abs=0.06)
    )


def test_the_classifier_tells_disjoint_distributions_apart():
    x, y = normal(0, 300, 4, shift=10), normal(1, 300, 4)
    assert classifier_two_sample_accuracy(x, y, 0) > 0.99


def test_the_classifier_balances_the_two_samples():
    # Unbalanced, saying "codes" every time would already score 0.9.
    accuracy = classifier_two_sample_accuracy(normal(0, 4500, 2), normal(1, 500, 2), 0)
    assert accuracy == pytest.approx(0.5, abs=0.09)


def test_the_classifier_sees_what_moments_do_not():
    # A shell of the prior's mean and covariance (the network's part), and a swiss roll thinner
    # than the prior's (the trees').
    z = normal(0, 3000, 8)
    shell = z / np.linalg.norm(z, axis=1, keepdims=True) * np.sqrt(8)
    assert classifier_two_sample_accuracy(shell, normal(1, 3000, 8), 0) > 0.75
    u = np.random.default_rng(0).uniform(size=6000)
    radius, angle = 3 * np.sqrt(u), 4 * np.pi * np.sqrt(u)
    roll = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    thin, thick = roll[:3000] + normal(2, 3000, 2, 0.03), roll[3000:] + normal(3, 3000, 2, 0.15)
    assert classifier_two_sample_accuracy(thin, thick, 0) > 0.6


def test_the_classifier_is_deterministic_given_its_seed_and_needs_twenty_rows():
    x, y = normal(0, 100, 2), normal(1, 100, 2, shift=0.5)
    assert classifier_two_sample_accuracy(x, y, 3) == classifier_two_sample_accuracy(x, y, 3)
    with pytest.raises(ValueError, match="20 rows of each, got 10"):
        classifier_two_sample_accuracy(x, y, 0, max_rows=10)


def test_moment_distances_of_known_moments():
    y = normal(0, 200_000, 3, std=5)
    x = normal(1, 200_000, 3, std=5) * np.sqrt(2).astype(np.float32) + np.float32([5, 0, 0])
    distance = moment_distance(x, y)
    assert distance.mean == pytest.approx(1, abs=0.02)  # one standard deviation
    assert distance.covariance == pytest.approx(1, abs=0.02)  # 2C - C


def test_a_collapsed_posterior_has_a_covariance_distance_of_one():
    distance = moment_distance(np.zeros((10, 4), np.float32), normal(0, 1000, 4))
    assert distance.covariance == pytest.approx(1)


def test_moment_distance_in_one_dimension_and_of_bad_arrays():
    x = normal(0, 30, 1)
    assert moment_distance(x, x) == (0, 0)
    with pytest.raises(ValueError, match="two rows"):
        moment_distance(x[:1], x)
    with pytest.raises(ValueError, match="standard deviation of 0"):
        moment_distance(x, np.ones_like(x))


def test_rms_std_averages_variances():
    z = normal(0, 100_000, 2) * np.float32([1, 7])
    assert rms_std(z) == pytest.approx(5, rel=0.02)  # sqrt((1 + 49) / 2)


def test_prior_distances_do_not_feel_the_scale_of_the_prior():
    x, y = normal(0, 400, 3), normal(1, 400, 3, shift=1)
    one, five = prior_distances(x, y, KEY), prior_distances(5 * x, 5 * y, KEY)
    np.testing.assert_allclose(one, five, rtol=1e-3, atol=0.02)
    assert all(isinstance(value, float) for value in one)


def test_prior_distances_gather_the_others():
    x, y = normal(0, 400, 3, std=2), normal(1, 500, 3, std=5)
    gathered = prior_distances(jnp.asarray(x), y, KEY)
    scaled = sliced_wasserstein(x, y, jax.random.key(1)) / rms_std(y)  # other directions
    assert gathered.sliced_wasserstein == pytest.approx(scaled, rel=0.05)
    assert gathered.mmd == mmd(x, y)
    assert (gathered.mean_distance, gathered.covariance_distance) == moment_distance(x, y)
    assert 0.7 < gathered.classifier_accuracy < 0.95
    assert prior_distances(x, y, KEY) == gathered
