import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from aae_jax.evaluation import manifold as m

few = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 10_000)


def normals(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


class TestNeighbourPreservation:
    @few
    @given(seeds, st.integers(1, 29), st.sampled_from([2, 12]))
    def test_agrees_with_sorted_distances(self, seed, k, dim):
        images, codes = normals(seed, 30, 14), normals(seed + 1, 30, dim)
        codes += images[:, :dim]
        near = []
        for points in (images, codes):
            distance = cdist(points, points)
            np.fill_diagonal(distance, np.inf)
            near.append(np.argsort(distance, axis=1)[:, :k])
        kept = sum(len(set(a) & set(b)) for a, b in zip(*near, strict=True))
        assert m.neighbour_preservation(images, codes, k) == pytest.approx(kept / (30 * k))

    def test_similar_shapes_keep_every_neighbour(self):
        images = normals(0, 100, 3)
        rotation, _ = np.linalg.qr(normals(1, 3, 3))
        assert m.neighbour_preservation(jnp.array(images), 7.0 * images @ rotation + 2.0) == 1.0

    def test_unrelated_codes_score_chance(self):
        score = m.neighbour_preservation(normals(0, 500, 5), normals(1, 500, 2))
        assert score == pytest.approx(10 / 499, abs=0.006)

    def test_tearing_the_manifold_lowers_the_score(self):
        position = np.sort(np.random.default_rng(2).uniform(0, 1, 200))[:, None]
        images = np.hstack([np.cos(3 * position), np.sin(3 * position)])
        pieces = np.random.default_rng(3).permutation(20)
        torn = position + 5.0 * pieces[np.minimum((20 * position).astype(int), 19)]
        assert m.neighbour_preservation(images, position) > 0.95
        assert m.neighbour_preservation(images, torn) < 0.9

    @pytest.mark.parametrize("k", [0, 5])
    def test_neighbours_out_of_range(self, k):
        with pytest.raises(ValueError, match=r"1 .. 4"):
            m.neighbour_preservation(normals(0, 5, 2), normals(0, 5, 2), k)

    def test_codes_that_are_not_finite(self):
        with pytest.raises(ValueError, match="NaN"):
            m.neighbour_preservation(normals(0, 5, 2), np.full((5, 2), np.nan), 2)


def identity(x):
    return x


class TestPathConsistency:
    def test_a_class_in_two_pieces_around_another(self):
        # Points of the path at -1, -0.5, 0, 0.5, 1; the class ends at 0.6.
        result = m.path_consistency(
            np.array([[-1.0], [1.0], [0.0]]),
            np.array([0, 0, 1]),
            decode=identity,
            classify=lambda x: (np.abs(x[:, 0]) < 0.6).astype(int),
            seed=0,
            num_paths=20,
            num_points=5,
        )
        assert result.paths == 0.0
        assert result.points == pytest.approx(2 / 5)

    def test_convex_classes_are_whole(self):
        codes = normals(0, 200, 2).astype(np.float32)
        labels = (codes[:, 0] > 0).astype(np.int32)
        decode = jax.jit(lambda z: jnp.stack([z, 2 * z], axis=-1))
        result = m.path_consistency(
            codes, labels, decode, lambda images: (images[:, 0, 1] > 0).astype(jnp.int32), seed=1
        )
        assert result == m.PathConsistency(1.0, 1.0)

    def test_share_of_broken_paths(self):
        # One class in two far pieces: half of all pairs lie across the gap, but for the pairs of
        # a code with itself, which are not drawn: 100 / 199.
        codes = np.repeat([[-1.0], [1.0]], 100, axis=0)
        result = m.path_consistency(
            codes,
            np.zeros(200, int),
            decode=identity,
            classify=lambda x: np.where(np.abs(x[:, 0]) > 0.5, 0, 1),
            seed=2,
            num_paths=4000,
        )
        assert 1 - result.paths == pytest.approx(100 / 199, abs=0.03)
        # Of the 11 points -1, -0.8 .. 1 five lie in the gap.
        assert 1 - result.points == pytest.approx((1 - result.paths) * 5 / 11)

    def test_two_codes_of_a_class_are_never_one_code_twice(self):
        seen = []

        def classify(x):
            seen.append(x)
            return np.zeros(len(x), int)

        codes = np.array([[0.0], [1.0], [5.0], [6.0]])
        labels = np.array([0, 0, 1, -1])
        m.path_consistency(codes, labels, identity, classify, 0, 30, 3, batch_size=90)
        (points,) = seen
        ends = points.reshape(30, 3)[:, [0, 2]]
        assert {tuple(pair) for pair in ends} == {(0.0, 1.0), (1.0, 0.0)}

    def test_classes_are_drawn_equally_often(self):
        codes = np.repeat([[0.0], [10.0]], [990, 10], axis=0)
        labels = np.repeat([0, 1], [990, 10])
        result = m.path_consistency(
            codes, labels, identity, lambda x: np.zeros(len(x), int), 0, num_paths=1000
        )
        assert result.paths == pytest.approx(0.5, abs=0.06)

    @few
    @given(st.integers(1, 300))
    def test_batches_have_one_shape_and_do_not_matter(self, batch_size):
        codes, labels = normals(3, 40, 2).astype(np.float32), np.arange(40) % 4
        shapes = set()

        def decode(z):
            shapes.add((z.shape, z.dtype))
            return z

        def classify(x):
            return np.where(x[:, 0] > 0, 1, 2)

        def score(size):
            return m.path_consistency(codes, labels, decode, classify, 5, 20, 7, batch_size=size)

        expected = score(140)
        shapes.clear()
        assert score(batch_size) == expected
        assert shapes == {((batch_size, 2), np.dtype(np.float32))}

    @few
    @given(seeds)
    def test_a_kept_path_keeps_its_points(self, seed):
        codes, labels = normals(seed, 50, 2), np.arange(50) % 3
        result = m.path_consistency(
            codes, labels, identity, lambda x: (x[:, 0] > 0).astype(int), seed, num_paths=30
        )
        assert 0.0 <= result.paths <= result.points <= 1.0

    @pytest.mark.parametrize("labels", [[0, 1, 2], [0, -1, -1], [-1, -1, -1]])
    def test_no_pair(self, labels):
        with pytest.raises(ValueError, match="known"):
            m.path_consistency(normals(0, 3, 2), np.array(labels), identity, identity, 0)

    @pytest.mark.parametrize("bad", [{"num_paths": 0}, {"num_points": 2}, {"batch_size": 0}])
    def test_sizes(self, bad):
        with pytest.raises(ValueError, match="points or more"):
            m.path_consistency(normals(0, 3, 2), np.zeros(3, int), identity, identity, 0, **bad)

    def test_class_scores_are_not_labels(self):
        with pytest.raises(ValueError, match="one label an image"):
            m.path_consistency(normals(0, 3, 2), np.zeros(3, int), identity, identity, 0)


class TestHoles:
    @few
    @given(seeds, st.floats(0.05, 0.99), st.sampled_from([2, 12]))
    def test_agrees_with_all_distances(self, seed, quantile, dim):
        codes, samples = normals(seed, 25, dim) + 1, normals(seed + 1, 60, dim)
        holes = m.hole_fraction(codes, jnp.array(samples), seed=0, quantile=quantile)
        samples = np.array(jnp.array(samples), np.float64)
        ideal, queries = samples[:25], samples[25:]
        distance = np.quantile(cdist(queries, ideal).min(1), quantile)
        assert holes.distance == pytest.approx(distance, rel=1e-5)
        expected = np.mean(cdist(queries, codes).min(1) > distance)
        assert holes.fraction == pytest.approx(expected, abs=1e-9)
        assert holes.expected == pytest.approx(1 - quantile)

    def test_codes_that_follow_the_prior(self):
        holes = m.hole_fraction(normals(0, 2000, 2), normals(1, 4000, 2), seed=0)
        assert holes.fraction == pytest.approx(holes.expected, abs=0.02)

    def test_more_codes_than_prior_samples_change_nothing(self):
        # Denser codes would lie nearer to every query: as many codes as ideal ones are used.
        holes = m.hole_fraction(normals(0, 50_000, 2), normals(1, 4000, 2), seed=0)
        assert holes.fraction == pytest.approx(holes.expected, abs=0.02)

    def test_a_missing_half_is_a_hole(self):
        codes = normals(0, 4000, 2)
        codes = codes[codes[:, 0] > 0]
        holes = m.hole_fraction(codes, normals(1, 4000, 2), seed=0)
        assert 0.35 < holes.fraction < 0.55

    def test_a_collapsed_code(self):
        collapsed = m.hole_fraction(1e-3 * normals(0, 1000, 2), normals(1, 2000, 2), seed=0)
        assert collapsed.fraction > 0.9

    def test_the_subsample_of_the_codes_is_random(self):
        # Sorted codes: taking the first would leave most of the prior empty.
        codes = normals(0, 10_000, 2)
        codes = codes[np.argsort(codes[:, 0])]
        holes = m.hole_fraction(codes, normals(1, 2000, 2), seed=4)
        assert holes.fraction == pytest.approx(0.05, abs=0.03)
        assert holes == m.hole_fraction(codes, normals(1, 2000, 2), seed=4)

    def test_bad_input(self):
        for quantile in (0.0, 1.0):
            with pytest.raises(ValueError, match="quantile"):
                m.hole_fraction(normals(0, 5, 2), normals(0, 5, 2), 0, quantile)
        for codes, samples in ((0, 5), (5, 1)):
            with pytest.raises(ValueError, match="at least"):
                m.hole_fraction(normals(0, codes, 2), normals(0, samples, 2), 0)
