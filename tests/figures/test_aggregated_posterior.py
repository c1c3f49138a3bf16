import numpy as np
import pytest

from aae_jax.figures import prior_and_codes
from aae_jax.figures.aggregated_posterior import correlation_matrix


def normal(n, dim, seed=0, std=1.0):
    return np.random.default_rng(seed).normal(size=(n, dim)) * std


def notes(figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def mass(image) -> float:
    (left, right, bottom, top), density = image.get_extent(), np.asarray(image.get_array())
    return float(density.sum() * (right - left) * (top - bottom) / density.size)


def test_planes_share_limits_and_colours():
    figure = prior_and_codes(normal(3000, 2, 0, 5.0), normal(2000, 2, 1, 2.0))
    prior, codes = (axes.images[0] for axes in figure.axes[:2])
    assert prior.get_extent() == codes.get_extent()
    assert prior.get_clim() == codes.get_clim()
    assert prior.get_cmap().name == codes.get_cmap().name
    left, right, bottom, top = prior.get_extent()
    assert np.isclose(right - left, top - bottom)


def test_densities_are_densities_in_the_right_place():
    codes = normal(4000, 2, 1, 0.7) + np.array([3.0, -2.0])
    figure = prior_and_codes(normal(4000, 2, 0, 5.0), codes)
    prior, drawn = (axes.images[0] for axes in figure.axes[:2])
    assert mass(prior) == pytest.approx(1.0, abs=0.01)
    assert mass(drawn) == pytest.approx(1.0, abs=0.01)
    density = np.asarray(drawn.get_array())
    left, right, bottom, top = drawn.get_extent()
    columns = left + (np.arange(density.shape[1]) + 0.5) * (right - left) / density.shape[1]
    rows = bottom + (np.arange(density.shape[0]) + 0.5) * (top - bottom) / density.shape[0]
    weights = density / density.sum()
    assert drawn.origin == "lower"
    assert (weights.sum(axis=0) * columns).sum() == pytest.approx(3.0, abs=0.1)
    assert (weights.sum(axis=1) * rows).sum() == pytest.approx(-2.0, abs=0.1)


def test_collapsed_codes_do_not_wash_the_prior_out():
    figure = prior_and_codes(normal(2000, 2, 0, 5.0), normal(2000, 2, 1, 0.01))
    prior = figure.axes[0].images[0]
    assert np.asarray(prior.get_array()).max() >= 0.49 * prior.get_clim()[1]


def test_marginals_are_normalised_by_all_samples():
    codes = np.concatenate([normal(1000, 2, 1), np.full((1, 2), 500.0)])
    figure = prior_and_codes(normal(1000, 2, 0), codes)
    assert "1 code outside the frame" in notes(figure)
    marginals = [axes for axes in figure.axes if axes.get_title(loc="left").startswith("dim ")]
    assert len(marginals) == 2
    for axes in marginals:
        shares = [
            float((stairs.get_data().values * np.diff(stairs.get_data().edges)).sum())
            for stairs in axes.patches
        ]
        assert shares == pytest.approx([1.0, 1000 / 1001], abs=1e-9)
        assert axes.get_ylim()[1] > max(stairs.get_data().values.max() for stairs in axes.patches)


def test_titles_give_the_spreads():
    prior, codes = normal(500, 3, 0, 5.0), normal(500, 3, 1, 2.0)
    figure = prior_and_codes(prior, codes)
    expected = f"dim 2: sd {codes[:, 1].std():.2f}, prior {prior[:, 1].std():.2f}"
    assert figure.axes[1].get_title(loc="left") == expected


@pytest.mark.parametrize(("dim", "marginals"), [(3, 3), (5, 5), (8, 8), (15, 8)])
def test_higher_dimensions_show_marginals_and_correlations(dim, marginals):
    codes = normal(400, dim, 1)
    codes[:, 1] = codes[:, 0] + 0.5 * codes[:, 1]
    figure = prior_and_codes(normal(300, dim), codes)
    figure.canvas.draw()
    shown = [axes for axes in figure.axes if axes.get_title(loc="left").startswith("dim ")]
    assert len(shown) == marginals
    (matrix,) = [axes.images[0] for axes in figure.axes if axes.images]
    drawn = np.ma.filled(matrix.get_array(), np.nan)
    expected = np.corrcoef(codes.T)
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(drawn, expected, atol=1e-12)
    assert matrix.get_clim() == (-1.0, 1.0)
    assert ("first 8 of 15" in notes(figure)) == (dim == 15)


def test_one_dimension_is_one_histogram():
    figure = prior_and_codes(normal(300, 1), normal(300, 1, 1))
    figure.canvas.draw()
    assert len(figure.axes) == 1


def test_a_constant_dimension_has_no_correlations():
    points = normal(100, 3)
    points[:, 2] = 0.1
    matrix = correlation_matrix(points)
    assert np.isnan(matrix[2]).all()
    assert np.isnan(matrix[:, 2]).all()
    np.testing.assert_allclose(matrix[:2, :2], np.corrcoef(points[:, :2].T))
    prior_and_codes(normal(100, 3), points).canvas.draw()


def test_not_finite_codes_are_dropped_and_counted():
    codes = normal(100, 2)
    codes[:3, 0] = np.nan
    figure = prior_and_codes(normal(50, 2), codes)
    assert "97 codes" in notes(figure)
    assert "3 more codes not finite, dropped" in notes(figure)


def test_wrong_inputs():
    with pytest.raises(ValueError, match="finite"):
        prior_and_codes(normal(10, 2), np.zeros((0, 2)))
    with pytest.raises(ValueError, match="finite"):
        prior_and_codes(normal(10, 2), np.full((3, 2), np.nan))


def test_one_code_is_enough():
    prior_and_codes(normal(10, 2), np.zeros((1, 2))).canvas.draw()
    prior_and_codes(normal(10, 4), np.zeros((1, 4))).canvas.draw()
