import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aae_jax.evaluation import classification as c

few = settings(deadline=None, max_examples=30)


def blobs(seed, n=300, dim=3, spread=0.1, num_classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, n)
    centres = 3.0 * np.eye(num_classes, dim)
    return (centres[labels] + spread * rng.normal(size=(n, dim))).astype(np.float32), labels


class TestErrorPercent:
    def test_known_answer(self):
        assert c.error_percent(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0])) == 25.0

    def test_logits_and_their_argmax_agree(self):
        logits = jnp.array([[0.1, 0.9], [2.0, -1.0], [0.0, 1.0]])
        labels = jnp.array([1, 1, 1])
        expected = 100.0 / 3
        assert c.error_percent(logits, labels) == pytest.approx(expected)
        assert c.error_percent(logits.argmax(1), labels) == pytest.approx(expected)

    def test_unknown_labels_do_not_count(self):
        assert c.error_percent(np.array([0, 1, 1]), np.array([0, -1, 0])) == 50.0

    def test_no_answer_is_an_error(self):
        assert c.error_percent(np.array([-1, 0]), np.array([0, 0])) == 50.0

    @pytest.mark.parametrize("labels", [np.array([-1, -1]), np.array([], int)])
    def test_nothing_known(self, labels):
        with pytest.raises(ValueError, match="is known"):
            c.error_percent(np.zeros(len(labels), int), labels)

    def test_labels_below_minus_one(self):
        with pytest.raises(ValueError, match="found -2"):
            c.error_percent(np.array([0, 0]), np.array([-2, 0]))

    def test_a_diverged_model_gets_no_number(self):
        logits = np.array([[np.nan, 0.0], [1.0, 0.0]])
        with pytest.raises(ValueError, match="NaN"):
            c.error_percent(logits, np.array([0, 0]))

    @few
    @given(st.data())
    def test_counts(self, data):
        pairs = data.draw(
            st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1).filter(
                lambda ps: any(label >= 0 for _, label in ps)
            )
        )
        guesses, labels = (np.array(column) for column in zip(*pairs, strict=True))
        wrong = sum(1 for g, label in pairs if label >= 0 and g != label)
        known = sum(1 for _, label in pairs if label >= 0)
        assert c.error_percent(guesses, labels) == pytest.approx(100 * wrong / known)


class TestConfusion:
    def test_rows_are_true_labels(self):
        table = c.confusion(np.array([1, 1, 0, 2]), np.array([0, 0, 0, -1]), 3)
        np.testing.assert_array_equal(table, [[1, 2, 0], [0, 0, 0], [0, 0, 0]])

    @few
    @given(st.integers(0, 10_000))
    def test_agrees_with_a_loop_and_with_the_error(self, seed):
        rng = np.random.default_rng(seed)
        guesses, labels = rng.integers(0, 5, 40), rng.integers(-1, 5, 40)
        expected = np.zeros((5, 5), int)
        for guess, label in zip(guesses, labels, strict=True):
            if label >= 0:
                expected[label, guess] += 1
        table = c.confusion(guesses, labels, 5)
        np.testing.assert_array_equal(table, expected)
        error = 100 * (1 - np.trace(table) / table.sum())
        assert c.error_percent(guesses, labels) == pytest.approx(error)

    @pytest.mark.parametrize(
        ("guesses", "labels", "name"),
        [
            ([3, 0], [0, 0], "predictions"),
            ([-1, 0], [0, 0], "predictions"),
            ([0, 0], [3, 0], "lab"),
        ],
    )
    def test_values_out_of_range_are_not_dropped(self, guesses, labels, name):
        with pytest.raises(ValueError, match=name):
            c.confusion(np.array(guesses), np.array(labels), 3)


class TestStyleProbe:
    def test_codes_without_label_information_score_chance(self):
        rng = np.random.default_rng(0)
        codes = rng.normal(size=(4000, 5)).astype(np.float32)
        labels = rng.choice(3, 4000, p=[0.6, 0.2, 0.2])
        probe = c.style_probe(codes[:2000], labels[:2000], codes[2000:], labels[2000:], seed=0)
        assert probe.chance == pytest.approx(np.mean(labels[2000:] == 0))
        assert abs(probe.linear_accuracy - probe.chance) < 0.03
        assert probe.mlp_accuracy < probe.chance + 0.03

    def test_only_the_mlp_reads_a_ring(self):
        rng = np.random.default_rng(1)
        labels = np.tile([0, 1], 1000)
        angle = rng.uniform(0, 2 * np.pi, 2000)
        codes = (labels + 1)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        probe = c.style_probe(codes[:1500], labels[:1500], codes[1500:], labels[1500:], seed=3)
        assert probe.mlp_accuracy > 0.95
        assert probe.linear_accuracy < 0.65
        assert probe.chance == 0.5

    def test_scale_of_the_code_does_not_matter(self):
        codes, labels = blobs(2)
        scaled = codes * np.array([1e4, 1e-4, 1.0], np.float32) + np.float32(50)
        probe = c.style_probe(scaled, labels, scaled, labels, seed=0)
        assert min(probe.linear_accuracy, probe.mlp_accuracy) > 0.98

    def test_unknown_labels_are_left_out(self):
        codes, labels = blobs(3)
        labels = np.where(np.arange(300) < 100, labels, -1)
        junk = np.where((labels == -1)[:, None], np.float32(1e6), codes)
        whole = c.style_probe(junk, labels, junk, labels, seed=0)
        assert whole == c.style_probe(codes[:100], labels[:100], codes[:100], labels[:100], seed=0)

    def test_same_seed_same_scores_and_training_is_bounded(self):
        rng = np.random.default_rng(4)
        codes, labels = rng.normal(size=(600, 3)), rng.integers(0, 2, 600)
        codes[:, 0] += labels

        def score(seed, max_train):
            return c.style_probe(codes, labels, codes, labels, seed, max_train)

        assert len({score(5, 20) for _ in range(2)}) == 1
        assert len({score(5, 600) for _ in range(3)}) == 1
        # The logistic regression has no randomness of its own.
        assert len({score(seed, 20).linear_accuracy for seed in range(4)}) > 1
        assert len({score(seed, 600).linear_accuracy for seed in range(4)}) == 1

    def test_one_class_cannot_be_probed(self):
        with pytest.raises(ValueError, match="two classes"):
            c.style_probe(np.zeros((4, 2)), np.zeros(4, int), np.zeros((4, 2)), np.zeros(4, int), 0)


class TestNearestNeighbour:
    def test_known_answer(self):
        train, labels = np.array([[0.0], [0.1], [0.2], [5.0]]), np.array([1, 1, 0, 0])
        test = np.array([[0.05], [4.0], [5.5]])
        answers = np.array([1, 0, -1])
        assert c.nearest_neighbour_accuracy(train, labels, test, answers, k=3) == 0.5 * (1 + 1)
        # Far out, one neighbour of class 0 and two of class 1 once the 0.2 has no label.
        labels = np.array([1, 1, -1, 0])
        assert c.nearest_neighbour_accuracy(train, labels, test, answers, k=3) == 0.5

    @pytest.mark.parametrize("dim", [3, 12])
    def test_agrees_with_distances_by_hand(self, dim):
        (train, labels), (test, answers) = (
            blobs(seed, n, dim, spread=2.0) for seed, n in ((5, 120), (6, 50))
        )
        distance = np.linalg.norm(test[:, None].astype(float) - train[None].astype(float), axis=2)
        nearest = labels[np.argsort(distance, axis=1)[:, :5]]
        votes = np.stack([(nearest == k).sum(1) for k in range(4)], axis=1).argmax(1)
        result = c.nearest_neighbour_accuracy(jnp.array(train), labels, test, answers)
        assert result == pytest.approx(np.mean(votes == answers))

    @pytest.mark.parametrize("k", [0, 4])
    def test_k_out_of_range(self, k):
        codes, labels = np.zeros((4, 2)), np.array([0, 1, 1, -1])
        with pytest.raises(ValueError, match=r"1 .. 3"):
            c.nearest_neighbour_accuracy(codes, labels, codes, labels, k=k)


class TestModes:
    centres = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])

    def log_prob(self, codes):
        return -0.5 * ((codes[:, None] - self.centres[None]) ** 2).sum(-1)

    def samples(self, seed, m=200):
        noise = np.random.default_rng(seed).normal(size=(3, m, 2))
        return self.centres[:, None] + noise

    def test_density_and_samples_agree_on_a_mixture(self):
        codes = self.samples(0, 100).reshape(-1, 2)
        by_density = c.modes_by_density(self.log_prob(codes))
        by_samples = c.modes_by_samples(codes, self.samples(1, 1000))
        assert np.mean(by_density == by_samples) > 0.97

    def test_accuracy_of_the_prior_itself_is_that_of_the_bayes_rule(self):
        codes, labels = self.samples(2, 1000).reshape(-1, 2), np.repeat(np.arange(3), 1000)
        by_density = c.mode_accuracy_by_density(self.log_prob(codes), labels)
        assert by_density == pytest.approx(0.96, abs=0.015)
        assert c.mode_accuracy(codes, labels, self.samples(3)) == pytest.approx(
            by_density, abs=0.01
        )

    def test_unknown_labels_do_not_count(self):
        labels = np.array([1, -1, 0])
        codes = self.centres[[1, 0, 2]]
        assert c.mode_accuracy(codes, labels, self.samples(4)) == 0.5
        assert c.mode_accuracy_by_density(self.log_prob(codes), labels) == 0.5

    def test_a_code_where_no_mode_has_density(self):
        log_prob = np.array([[-np.inf, -np.inf], [-np.inf, 0.0]])
        np.testing.assert_array_equal(c.modes_by_density(log_prob), [-1, 1])
        assert c.mode_accuracy_by_density(log_prob, np.array([0, 1])) == 0.5

    def test_a_curved_prior(self):
        # Interleaved arcs: the nearest centre is wrong, the nearest samples are right.
        rng = np.random.default_rng(5)
        angle = rng.uniform(0, np.pi, (2, 400))
        upper = np.stack([np.cos(angle[0]), np.sin(angle[0])], axis=1)
        lower = np.stack([1 - np.cos(angle[1]), 0.5 - np.sin(angle[1])], axis=1)
        arcs = np.stack([upper, lower])
        codes, labels = arcs[:, :100].reshape(-1, 2), np.repeat([0, 1], 100)
        assert c.mode_accuracy(codes, labels, arcs[:, 100:], k=15) == 1.0

    @few
    @given(st.permutations(range(3)), st.integers(0, 1000))
    def test_relabelling_modes_and_labels_together_changes_nothing(self, order, seed):
        rng = np.random.default_rng(seed)
        codes, labels = rng.normal(size=(50, 2)) * 3, rng.integers(-1, 3, 50)
        labels[0] = 0
        order = np.array(order)
        new_labels = np.where(labels < 0, -1, order[labels])
        inverse = np.argsort(order)
        old = c.mode_accuracy_by_density(self.log_prob(codes), labels)
        new = c.mode_accuracy_by_density(self.log_prob(codes)[:, inverse], new_labels)
        assert old == new
        samples = self.samples(seed, 40)
        # An odd k with three modes can tie; one neighbour cannot.
        assert c.mode_accuracy(codes, labels, samples, k=1) == c.mode_accuracy(
            codes, new_labels, samples[inverse], k=1
        )

    def test_a_label_without_a_mode(self):
        with pytest.raises(ValueError, match="label 3 has no mode"):
            c.mode_accuracy(self.centres, np.array([0, 1, 3]), self.samples(0))
        with pytest.raises(ValueError, match="label 3 has no mode"):
            c.mode_accuracy_by_density(np.zeros((1, 3)), np.array([3]))

    def test_too_many_voters(self):
        with pytest.raises(ValueError, match=r"1 .. 6"):
            c.modes_by_samples(self.centres, self.samples(0, 2), k=7)

    def test_nan_density(self):
        with pytest.raises(ValueError, match="NaN"):
            c.modes_by_density(np.array([[np.nan, 0.0]]))


@few
@given(hnp.arrays(np.int32, 12, elements=st.integers(0, 4)), st.integers(0, 1000))
def test_conditional_agreement_complements_the_error(predicted, seed):
    requested = np.random.default_rng(seed).integers(-1, 5, 12)
    requested[0] = 2
    agreement = c.conditional_agreement(predicted, requested)
    assert agreement == pytest.approx(1 - c.error_percent(predicted, requested) / 100)
    assert 0.0 <= agreement <= 1.0


def test_conditional_agreement_needs_a_request():
    with pytest.raises(ValueError, match="is known"):
        c.conditional_agreement(np.array([0]), np.array([-1]))
