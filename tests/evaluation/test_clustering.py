import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aae_jax.evaluation import clustering as c

few = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 10_000)


def random_case(seed, n=60, num_clusters=5, num_classes=3, unknown=True):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, num_clusters)) * 2
    labels = rng.integers(-1 if unknown else 0, num_classes, n)
    labels[0] = 0
    return logits, labels


def paper_error_by_loops(valid_logits, valid_labels, test_logits, test_labels):
    """Appendix A.3 in plain words and probabilities."""

    def probabilities(row):
        total = math.fsum(math.exp(v) for v in row)
        return [math.exp(v) / total for v in row]

    valid, test = ([probabilities(r) for r in ls] for ls in (valid_logits, test_logits))
    names = []
    for i in range(len(valid[0])):
        best = max((p[i], -j) for j, p in enumerate(valid) if valid_labels[j] >= 0)
        names.append(valid_labels[-best[1]])
    scored = [(names[int(np.argmax(p))], y) for p, y in zip(test, test_labels, strict=True)]
    return 100 * np.mean([name != y for name, y in scored if y >= 0])


class TestPaperRule:
    def test_one_confident_image_names_the_whole_cluster(self):
        # Cluster 0 holds two images of class 5 and, most confidently, one of class 7.
        valid = np.log([[0.8, 0.2], [0.8, 0.2], [0.99, 0.01], [0.1, 0.9]])
        labels = np.array([5, 5, 7, 2])
        test = np.log([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.3, 0.7]])
        np.testing.assert_array_equal(c.name_by_most_confident(valid, labels), [7, 2])
        assert c.paper_cluster_error(valid, labels, test, np.array([5, 7, 2, 2])) == 25.0

    def test_an_unlabelled_image_names_nothing(self):
        valid = np.log([[0.99, 0.01], [0.6, 0.4], [0.1, 0.9]])
        names = c.name_by_most_confident(valid, np.array([-1, 3, 4]))
        np.testing.assert_array_equal(names, [3, 4])

    def test_an_empty_cluster_is_named_too(self):
        valid = np.log([[0.9, 0.1], [0.6, 0.4]])
        np.testing.assert_array_equal(c.name_by_most_confident(valid, np.array([0, 1])), [0, 1])

    @few
    @given(seeds, seeds)
    def test_agrees_with_loops_over_probabilities(self, seed, other):
        valid, test = random_case(seed), random_case(other)
        assert c.paper_cluster_error(*valid, *test) == pytest.approx(
            paper_error_by_loops(*valid, *test)
        )

    @few
    @given(seeds, st.integers(0, 1000))
    def test_only_differences_of_logits_count(self, seed, shift_seed):
        # So logits and log-probabilities give the same names; raw logits per column would not.
        logits, labels = random_case(seed)
        shift = np.random.default_rng(shift_seed).normal(size=(len(logits), 1)) * 20
        np.testing.assert_array_equal(
            c.name_by_most_confident(logits, labels),
            c.name_by_most_confident(logits + shift, labels),
        )

    def test_saturated_probabilities_do_not_tie(self):
        logits = jnp.array([[60.0, 0.0], [0.0, 60.0], [90.0, 0.0], [0.0, 90.0]])
        names = c.name_by_most_confident(logits, jnp.array([0, 1, 2, 3]))
        np.testing.assert_array_equal(names, [2, 3])

    def test_impossible_clusters_and_a_single_one(self):
        valid = np.array([[0.0, -np.inf], [-1.0, -2.0]])
        np.testing.assert_array_equal(c.name_by_most_confident(valid, np.array([4, 6])), [4, 6])
        one = np.zeros((3, 1))
        assert c.paper_cluster_error(one, np.array([-1, 2, 2]), one, np.array([2, 2, -1])) == 0.0

    def test_nan_is_refused(self):
        with pytest.raises(ValueError, match="NaN"):
            c.name_by_most_confident(np.array([[np.nan, 0.0]]), np.array([0]))

    def test_needs_labels(self):
        logits = np.zeros((2, 2))
        for valid, test in (([-1, -1], [0, 0]), ([0, 0], [-1, -1])):
            with pytest.raises(ValueError, match="is known"):
                c.paper_cluster_error(logits, np.array(valid), logits, np.array(test))


class TestMajority:
    def test_known_answer(self):
        names = c.name_by_majority(
            np.array([0, 0, 0, 1, 1, 3]), np.array([5, 5, 7, -1, 2, -1]), num_clusters=4
        )
        np.testing.assert_array_equal(names, [5, 2, -1, -1])

    def test_ties_go_to_the_smallest_label(self):
        names = c.name_by_majority(np.array([0, 0]), np.array([4, 1]), 1)
        np.testing.assert_array_equal(names, [1])

    def test_images_of_a_nameless_cluster_are_errors(self):
        valid, labels = np.array([0, 0]), np.array([1, 1])
        test, answers = np.array([0, 0, 1, 1]), np.array([1, 0, 0, -1])
        error = c.majority_vote_error(valid, labels, test, answers, num_clusters=2)
        assert error == pytest.approx(200 / 3)

    @few
    @given(seeds)
    def test_no_naming_of_the_validation_images_beats_it_there(self, seed):
        logits, labels = random_case(seed)
        assigned = c.cluster_assignments(logits)
        majority = c.majority_vote_error(assigned, labels, assigned, labels, 5)
        known = labels >= 0
        best = min(
            100 * np.mean(np.array(names)[assigned[known]] != labels[known])
            for names in itertools.product(range(3), repeat=5)
        )
        assert majority == pytest.approx(best)
        assert majority <= c.paper_cluster_error(logits, labels, logits, labels) + 1e-9

    @pytest.mark.parametrize("bad", [-1, 2])
    def test_assignments_out_of_range(self, bad):
        good, labels = np.array([0, 1]), np.array([0, 1])
        for valid, test in (([0, bad], good), (good, [0, bad])):
            with pytest.raises(ValueError, match=r"0 .. 1"):
                c.majority_vote_error(np.array(valid), labels, np.array(test), labels, 2)


def hungarian_by_permutations(assigned, labels, num_clusters, num_classes):
    wide = max(num_clusters, num_classes)
    return max(
        np.mean(np.array(classes)[assigned] == labels)
        for classes in itertools.permutations(range(wide))
    )


class TestAgreement:
    @few
    @given(seeds, st.sampled_from([(5, 3), (3, 5), (4, 4), (1, 3), (4, 1)]))
    def test_hungarian_agrees_with_all_matchings(self, seed, shape):
        rng = np.random.default_rng(seed)
        assigned, labels = rng.integers(0, shape[0], 30), rng.integers(0, shape[1], 30)
        expected = hungarian_by_permutations(assigned, labels, *shape)
        assert c.hungarian_accuracy(assigned, labels) == pytest.approx(expected)

    def test_pure_clusters_more_than_classes(self):
        assigned = np.repeat(np.arange(4), [30, 20, 40, 10])
        labels = np.repeat(np.array([0, 0, 1, 1]), [30, 20, 40, 10])
        assert c.hungarian_accuracy(assigned, labels) == pytest.approx(0.7)

    @few
    @given(seeds)
    def test_nmi_and_ari_agree_with_their_definitions(self, seed):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 3, 40)
        assigned = np.where(rng.random(40) < 0.6, labels, rng.integers(0, 5, 40))
        counts = np.zeros((3, 5))
        np.add.at(counts, (labels, assigned), 1)
        joint = counts / 40

        def entropy(p):
            return -np.sum(p[p > 0] * np.log(p[p > 0]))

        rows, columns = entropy(joint.sum(1)), entropy(joint.sum(0))
        mutual = rows + columns - entropy(joint.ravel())
        assert c.nmi(assigned, labels) == pytest.approx(2 * mutual / (rows + columns))

        def pairs(values):
            return np.sum(values * (values - 1) / 2)

        same_both, same_label = pairs(counts), pairs(counts.sum(1))
        same_cluster, total = pairs(counts.sum(0)), 40 * 39 / 2
        chance = same_label * same_cluster / total
        expected = (same_both - chance) / ((same_label + same_cluster) / 2 - chance)
        assert c.ari(assigned, labels) == pytest.approx(expected)

    @few
    @given(seeds, st.permutations(range(5)), st.permutations(range(3)))
    def test_names_of_clusters_and_classes_do_not_matter(self, seed, clusters, classes):
        logits, labels = random_case(seed)
        assigned = c.cluster_assignments(logits)
        renamed = np.array(clusters)[assigned]
        relabelled = np.where(labels < 0, -1, np.array(classes)[labels])
        for score in (c.hungarian_accuracy, c.nmi, c.ari):
            assert score(renamed, relabelled) == pytest.approx(score(assigned, labels))

    @few
    @given(seeds)
    def test_images_of_unknown_label_do_not_count(self, seed):
        logits, labels = random_case(seed)
        assigned, known = c.cluster_assignments(logits), labels >= 0
        for score in (c.hungarian_accuracy, c.nmi, c.ari):
            assert score(assigned, labels) == score(assigned[known], labels[known])
            with pytest.raises(ValueError, match="is known"):
                score(assigned, np.full(60, -1))

    def test_perfect_and_senseless_clusterings(self):
        labels = np.repeat(np.arange(4), 50)
        senseless = np.tile(np.arange(4), 50)
        for score in (c.hungarian_accuracy, c.nmi, c.ari):
            assert score(3 - labels, labels) == pytest.approx(1.0)
        assert c.hungarian_accuracy(senseless, labels) < 0.3
        assert c.nmi(senseless, labels) == pytest.approx(0.0, abs=0.01)
        assert c.ari(senseless, labels) == pytest.approx(0.0, abs=0.02)


class TestClustersInUse:
    def test_known_answer(self):
        assigned = np.repeat([0, 2, 3], [500, 498, 2])
        assert c.clusters_in_use(assigned, 8) == 2
        assert c.clusters_in_use(assigned, 8, min_share=0.002) == 3
        assert c.clusters_in_use(assigned, 8, min_share=0.0) == 3
        assert c.clusters_in_use(assigned, 8, min_share=0.499) == 1

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"0 .. 1"):
            c.clusters_in_use(np.array([2]), 2)
        with pytest.raises(ValueError, match="no assignments"):
            c.clusters_in_use(np.array([], int), 2)


class TestAllScores:
    def test_are_the_single_ones(self):
        valid, test = random_case(1), random_case(2, n=80)
        scores = c.clustering_scores(jnp.array(valid[0]), valid[1], jnp.array(test[0]), test[1])
        v, t = valid[0].argmax(1), test[0].argmax(1)
        assert scores.paper_error_percent == c.paper_cluster_error(*valid, *test)
        majority = c.majority_vote_error(v, valid[1], t, test[1], 5)
        assert scores.majority_error_percent == majority
        assert scores.hungarian_accuracy == c.hungarian_accuracy(t, test[1])
        assert (scores.nmi, scores.ari) == (c.nmi(t, test[1]), c.ari(t, test[1]))
        assert scores.clusters_in_use == 5

    @few
    @given(seeds, st.permutations(range(5)))
    def test_bounds_and_order_of_clusters(self, seed, order):
        valid, test = random_case(seed), random_case(seed + 1)
        scores = c.clustering_scores(*valid, *test)
        assert 0 <= scores.paper_error_percent <= 100
        assert 0 <= scores.majority_error_percent <= 100
        assert 0 <= scores.hungarian_accuracy <= 1
        assert -1e-9 <= scores.nmi <= 1 + 1e-9
        assert -1 <= scores.ari <= 1
        moved = c.clustering_scores(valid[0][:, order], valid[1], test[0][:, order], test[1])
        np.testing.assert_allclose(moved, scores, atol=1e-9)
