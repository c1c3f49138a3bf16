import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from scipy.stats import norm

from aae_jax.evaluation.likelihood import (
    PAPER_SIGMAS,
    parzen_curve,
    parzen_log_likelihood,
    parzen_score,
    select_sigma,
)


def oracle(test, samples, sigma):
    """The definition, in float64."""
    test, samples = np.asarray(test, np.float64), np.asarray(samples, np.float64)
    n, d = samples.shape
    exponents = -cdist(test, samples, "sqeuclidean") / (2 * sigma**2)
    return logsumexp(exponents, axis=1) - np.log(n) - d / 2 * np.log(2 * np.pi * sigma**2)


def rows(seed, n, d, scale=1.0, shift=0.0):
    values = np.random.default_rng(seed).normal(size=(n, d)) * scale + shift
    return values.astype(np.float32)


@settings(deadline=None, max_examples=12)
@given(
    m=st.sampled_from([1, 5, 12]),
    n=st.sampled_from([1, 7, 20]),
    sigma=st.sampled_from([0.05, 0.3, 4.0]),
    test_block=st.sampled_from([1, 5, 100]),
    sample_block=st.sampled_from([3, 7, 100]),
)
def test_log_likelihood_is_the_definition(m, n, sigma, test_block, sample_block):
    test, samples = rows(0, m, 3), rows(1, n, 3)
    ours = parzen_log_likelihood(
        test, samples, sigma, test_block=test_block, sample_block=sample_block
    )
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, oracle(test, samples, sigma), rtol=1e-4, atol=1e-4)


def test_image_sized_rows_keep_a_hundredth_of_a_nat():
    # Pixels near the mean image and some thousand nats: where float32 would lose digits.
    rng = np.random.default_rng(0)
    mean = rng.uniform(size=784)
    images = np.clip(mean + 0.2 * rng.normal(size=(330, 784)), 0, 1).astype(np.float32)
    test, samples = images[:30], images[30:]
    for sigma in (0.1, 0.2, 1.0):
        ours = parzen_log_likelihood(test, samples, sigma, sample_block=128)
        np.testing.assert_allclose(ours, oracle(test, samples, sigma), rtol=0, atol=0.01)


def test_far_from_every_sample_there_is_no_underflow():
    test, samples = rows(0, 4, 2, shift=100), rows(1, 10, 2)
    ours = parzen_log_likelihood(test, samples, 0.1)
    np.testing.assert_allclose(ours, oracle(test, samples, 0.1), rtol=1e-5)
    assert np.isfinite(ours).all()


def test_data_far_from_the_origin_lose_nothing():
    test, samples = rows(0, 20, 5, shift=1000), rows(1, 50, 5, shift=1000)
    ours = parzen_log_likelihood(test, samples, 0.5)
    np.testing.assert_allclose(ours, oracle(test, samples, 0.5), atol=0.02)


def test_many_normal_samples_give_the_normal_widened_by_the_kernel():
    test, samples = rows(0, 50, 1), rows(1, 200_000, 1)
    ours = parzen_log_likelihood(test, samples, 0.2, sample_block=20_000)
    np.testing.assert_allclose(ours, norm(0, np.sqrt(1 + 0.2**2)).logpdf(test[:, 0]), atol=0.05)


def test_jax_and_float64_arrays_are_taken():
    test, samples = rows(0, 5, 2), rows(1, 9, 2)
    expected = parzen_log_likelihood(test, samples, 0.5)
    for kind in (jnp.asarray, lambda x: x.astype(np.float64)):
        np.testing.assert_array_equal(
            parzen_log_likelihood(kind(test), kind(samples), 0.5), expected
        )


def test_the_grid_is_scored_as_each_sigma_alone():
    valid, samples = rows(0, 15, 3), rows(1, 33, 3)
    sigmas = (0.8, 0.02, 0.3)  # in no order
    choice = select_sigma(valid, samples, sigmas, sample_block=10)
    expected = [oracle(valid, samples, sigma).mean() for sigma in sigmas]
    np.testing.assert_allclose(choice.mean_log_likelihood, expected, rtol=1e-4)
    assert choice.sigma == sigmas[int(np.argmax(expected))]


def test_the_paper_grid_is_the_default():
    np.testing.assert_allclose(PAPER_SIGMAS, np.logspace(-1, 0, 10))
    valid, samples = rows(0, 15, 2), rows(1, 33, 2)
    assert len(select_sigma(valid, samples).mean_log_likelihood) == 10


@pytest.mark.parametrize(
    ("sigmas", "at_edge"),
    [((0.1, 0.5, 5.0), False), ((1.0, 2.0), True), ((0.01, 0.02), True), ((0.5,), False)],
)
def test_an_edge_is_seen_at_either_end(sigmas, at_edge):
    choice = select_sigma(rows(0, 100, 2), rows(1, 100, 2), np.asarray(sigmas))
    assert choice.at_edge is at_edge


def test_score_takes_sigma_from_validation_and_the_mean_from_test():
    test, valid, samples = rows(0, 40, 2, shift=3), rows(1, 50, 2), rows(2, 60, 2)
    sigmas = (0.05, 0.5, 1.0, 2.0, 50.0)
    score = parzen_score(test, valid, samples, sigmas)
    # The two disagree on sigma, so that taking it from the wrong set would show.
    on_valid = max(sigmas, key=lambda sigma: oracle(valid, samples, sigma).mean())
    on_test = max(sigmas, key=lambda sigma: oracle(test, samples, sigma).mean())
    assert score.sigma == on_valid != on_test
    values = oracle(test, samples, on_valid)
    assert score.mean == pytest.approx(values.mean(), rel=1e-5)
    assert score.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(40), rel=1e-4)
    assert (score.at_edge, score.num_samples) == (False, 60)
    assert score.valid_mean == pytest.approx(oracle(valid, samples, on_valid).mean(), rel=1e-5)


def test_score_warns_at_the_edge_only():
    test, valid, samples = rows(0, 9, 2), rows(1, 9, 2), rows(2, 60, 2)
    with pytest.warns(UserWarning, match="edge of the grid"):
        assert parzen_score(test, valid, samples, (5.0, 10.0)).at_edge
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parzen_score(test, valid, samples, (0.01, 0.5, 10.0))


def test_score_of_one_image_has_no_standard_error():
    assert np.isnan(parzen_score(rows(0, 1, 2), rows(1, 9, 2), rows(2, 9, 2), (0.5,))[1])


@settings(deadline=None, max_examples=10)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 10]), min_size=3, max_size=6).filter(sum),
    data=st.data(),
)
def test_a_curve_is_the_score_of_the_samples_so_far(sizes, data):
    total = sum(sizes)
    counts = sorted(data.draw(st.sets(st.integers(1, total), max_size=4)))
    test, valid, samples = rows(0, 6, 2), rows(2, 5, 2), rows(1, total, 2)
    blocks = np.split(samples, np.cumsum(sizes)[:-1])
    sigmas = (0.02, 0.4, 1.5, 50.0)
    curve = parzen_curve(test, valid, iter(blocks), counts, sigmas, sample_block=4)
    assert [score.num_samples for score in curve] == (counts or [total])
    for score in curve:
        seen = samples[: score.num_samples]
        best = max(sigmas, key=lambda sigma: oracle(valid, seen, sigma).mean())
        values = oracle(test, seen, best)
        assert score.sigma == best
        assert score.mean == pytest.approx(values.mean(), rel=1e-4)
        assert score.valid_mean == pytest.approx(oracle(valid, seen, best).mean(), rel=1e-4)
        assert score.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(6), rel=1e-3)


def test_more_samples_suit_a_narrower_kernel():
    test, valid, samples = rows(0, 50, 2), rows(1, 50, 2), rows(2, 3000, 2)
    few, many = parzen_curve(test, valid, [samples], [10, 3000], np.geomspace(0.1, 3, 20))
    assert many.sigma < few.sigma
    assert many.mean > few.mean


def test_a_curve_stops_reading_at_the_last_count():
    def blocks():
        yield rows(0, 10, 2)
        raise AssertionError("read on")

    curve = parzen_curve(rows(1, 5, 2), rows(2, 5, 2), blocks(), [4, 10], (0.5,))
    assert [score.num_samples for score in curve] == [4, 10]


def test_samples_that_end_early_are_read_at_their_end_with_a_warning():
    blocks = [rows(0, 10, 2), rows(1, 5, 2)]
    test, valid = rows(2, 5, 2), rows(3, 5, 2)
    with pytest.warns(UserWarning, match="15 samples, before count 100"):
        curve = parzen_curve(test, valid, blocks, [10, 100], (0.5,))
    assert [score.num_samples for score in curve] == [10, 15]
    expected = oracle(test, np.concatenate(blocks), 0.5).mean()
    assert curve[-1].mean == pytest.approx(expected, rel=1e-5)


def test_a_curve_needs_no_more_precision_with_many_blocks():
    test, samples = rows(0, 10, 1), rows(1, 100_000, 1)
    (score,) = parzen_curve(test, test, np.split(samples, 1000), sigmas=(0.3,))
    assert score.mean == pytest.approx(oracle(test, samples, 0.3).mean(), abs=1e-4)


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan, np.inf])
def test_sigma_must_be_positive_and_finite(sigma):
    with pytest.raises(ValueError, match="sigma must be positive"):
        parzen_log_likelihood(rows(0, 2, 2), rows(1, 2, 2), sigma)
    with pytest.raises(ValueError, match="sigma must be positive"):
        parzen_curve(rows(0, 2, 2), rows(2, 2, 2), [rows(1, 2, 2)], sigmas=(sigma,))


def test_bad_arrays_are_named():
    with pytest.raises(ValueError, match="at least one"):
        parzen_log_likelihood(rows(0, 2, 2), rows(1, 0, 2), 0.5)
    with pytest.raises(ValueError, match="stream of samples is empty"):
        parzen_curve(rows(0, 2, 2), rows(2, 2, 2), [])
    with pytest.raises(ValueError, match="at least one"):
        parzen_curve(rows(0, 2, 2), rows(2, 0, 2), [rows(1, 2, 2)])
    for counts in ([0, 5], [5, 5], [7, 5]):
        with pytest.raises(ValueError, match="counts must be positive"):
            parzen_curve(rows(0, 2, 2), rows(2, 2, 2), [rows(1, 2, 2)], counts)
    with pytest.raises(ValueError, match="not finite"):
        select_sigma(rows(0, 2, 2), np.full((3, 2), np.nan, np.float32))


def test_a_nan_sample_is_never_hidden():
    samples = rows(1, 9, 2)
    samples[4] = np.nan
    assert np.isnan(parzen_log_likelihood(rows(0, 3, 2), samples, 0.5, sample_block=2)).all()
