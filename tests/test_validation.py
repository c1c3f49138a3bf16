import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aae_jax.data import preprocessing
from aae_jax.data.sources import Arrays
from aae_jax.data.splits import Splits
from aae_jax.experiment import build
from aae_jax.validation import encoded, validator

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE, CLASSES = (4, 4, 1), 3
INFERRED = {"model.labels": CLASSES, "model.layout": "style_and_inferred_label"}
CLASSIFYING = INFERRED | {"phases": ("reconstruction", "regularization", "classification")}


@pytest.fixture(scope="module")
def made(random_weights, narrow_config):
    """An experiment with narrow networks, and a state of it with random weights: (**fields)."""

    def make(**fields):
        config = narrow_config(**fields)
        experiment = build(config, image_shape=SHAPE, num_classes=CLASSES, num_examples=100)
        state = jax.eval_shape(experiment.init, jax.random.key(0))
        params, batch_stats = random_weights(experiment.model.init)
        return experiment, state.replace(params=params, batch_stats=batch_stats)

    return make


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *SHAPE)).astype(np.uint8)


def labels(n, seed=1):
    return np.random.default_rng(seed).integers(0, CLASSES, n).astype(np.int32)


def splits(valid, valid_labels):
    few = Arrays(images(5), labels(5))
    return Splits(few, Arrays(valid, valid_labels), few, np.arange(5), CLASSES)


UNIT = preprocessing.fit("unit", images(1))


def dense(x, layer):
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def encoded_by_hand(params, x):
    """Style and label logits in float64 of an encoder with one hidden layer of ReLU."""
    encoder = params["encoder"]
    hidden = np.maximum(dense(x.reshape(len(x), -1), encoder["trunk"]["dense_0"]), 0)
    return dense(hidden, encoder["style"]), (
        dense(hidden, encoder["label"]) if "label" in encoder else None
    )


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def by_hand(params, x, label=None):
    """Style, label logits and decoder output; the decoder sees the given or inferred label."""
    style, logits = encoded_by_hand(params, x)
    code = style
    if label is not None:
        code = np.concatenate([style, np.eye(CLASSES)[label]], axis=1)
    elif logits is not None:
        code = np.concatenate([style, softmax(logits)], axis=1)
    hidden = np.maximum(dense(code, params["decoder"]["hidden"]["dense_0"]), 0)
    return style, logits, dense(hidden, params["decoder"]["output"])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("n", [1, 1000, 1001, 2300])
def test_any_number_of_images_is_encoded_and_decoded(made, n):
    experiment, state = made(**INFERRED)
    stored = images(n)
    codes = encoded(experiment, UNIT)(state, stored, labels(n), jax.random.key(0))
    style, logits, output = by_hand(state.params, stored / 255)
    assert set(codes) == {"style", "label_logits", "reconstruction", "error"}
    assert all(isinstance(array, np.ndarray) and len(array) == n for array in codes.values())
    np.testing.assert_allclose(codes["style"], style, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(codes["label_logits"], logits, rtol=1e-4, atol=1e-5)
    mean = sigmoid(output)
    np.testing.assert_allclose(codes["reconstruction"].reshape(n, -1), mean, atol=1e-5)
    error = 0.5 * ((mean - stored.reshape(n, -1) / 255) ** 2).sum(axis=1)
    np.testing.assert_allclose(codes["error"], error, rtol=1e-4)


def test_the_given_label_is_decoded_and_no_logits_are_inferred(made):
    fields = {"model.labels": CLASSES, "model.layout": "style_and_given_label"}
    experiment, state = made(**fields)
    stored, given = images(7), labels(7)
    codes = encoded(experiment, UNIT)(state, stored, given, jax.random.key(0))
    _, _, output = by_hand(state.params, stored / 255, given)
    assert "label_logits" not in codes
    np.testing.assert_allclose(codes["reconstruction"].reshape(7, -1), sigmoid(output), atol=1e-5)


def test_reconstructions_come_in_the_units_of_the_data(made):
    fields = {"data.preprocessing": "standardize_pixels", "decoder.output": "linear"}
    experiment, state = made(**fields)
    stored = images(50)
    constants = preprocessing.fit("standardize_pixels", stored)
    codes = encoded(experiment, constants)(state, stored, labels(50), jax.random.key(0))
    pixels = stored.reshape(50, -1) / 255
    mean, std = pixels.mean(axis=0), pixels.std(axis=0)
    style, _, output = by_hand(state.params, (pixels - mean) / std)
    np.testing.assert_allclose(codes["style"], style, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        codes["reconstruction"].reshape(50, -1), output * std + mean, rtol=1e-4, atol=1e-4
    )
    # The error is the one that training descends, of standardised pixels.
    error = 0.5 * ((output - (pixels - mean) / std) ** 2).sum(axis=1)
    np.testing.assert_allclose(codes["error"], error, rtol=1e-4)


def test_nothing_is_noisy_or_dropped_in_evaluation(made):
    noisy = {"encoder.input_noise": 0.5, "encoder.input_dropout": 0.5, "encoder.dropout": 0.5}
    experiment, state = made(**noisy)
    stored = images(20)
    codes = encoded(experiment, UNIT)(state, stored, labels(20), jax.random.key(0))
    np.testing.assert_allclose(
        codes["style"], by_hand(state.params, stored / 255)[0], rtol=1e-4, atol=1e-5
    )


def test_batch_norm_uses_running_statistics(made):
    experiment, state = made(**{"encoder.head_batch_norm": True})
    running = {"style_norm": {"norm": {"mean": jnp.full(2, 3.0), "var": jnp.full(2, 4.0)}}}
    state = state.replace(batch_stats={**state.batch_stats, "encoder": running})
    stored = images(20)
    codes = encoded(experiment, UNIT)(state, stored, labels(20), jax.random.key(0))
    norm = state.params["encoder"]["style_norm"]["norm"]
    raw = by_hand(state.params, stored / 255)[0]
    expected = (raw - 3) / np.sqrt(4 + 1e-5) * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
    np.testing.assert_allclose(codes["style"], expected, rtol=1e-4, atol=1e-5)


def test_the_averaged_parameters_are_the_ones_evaluated(made):
    experiment, state = made(**{"train.averaging": 0.9})
    averaged = {
        name: jax.tree.map(lambda leaf: 0.5 * leaf, state.params[name])
        for name in ("encoder", "decoder")
    }
    stored = images(9)
    codes = encoded(experiment, UNIT)(
        state.replace(averaged_params=averaged), stored, labels(9), jax.random.key(0)
    )
    style, _, output = by_hand(averaged, stored / 255)
    np.testing.assert_allclose(codes["style"], style, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(codes["reconstruction"].reshape(9, -1), sigmoid(output), atol=1e-5)


def test_a_random_posterior_follows_from_the_key(made):
    fields = {"model.posterior": "gaussian"}
    experiment, state = made(**fields)
    run, stored = encoded(experiment, UNIT), np.repeat(images(1), 1500, axis=0)
    first, again = (run(state, stored, labels(1500), jax.random.key(0))["style"] for _ in range(2))
    other = run(state, stored, labels(1500), jax.random.key(1))["style"]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    # One image, so that all that differs is the noise: none is used twice, across blocks too.
    assert len(np.unique(first[:, 0])) > 1490
    mean = by_hand(state.params, stored[:1] / 255)[0][0]
    hidden = np.maximum(
        dense(stored[:1].reshape(1, -1) / 255, state.params["encoder"]["trunk"]["dense_0"]), 0
    )
    std = np.exp(0.5 * dense(hidden, state.params["encoder"]["style_log_variance"])[0])
    np.testing.assert_allclose(first.mean(axis=0), mean, atol=5 * std.max() / np.sqrt(1500))
    np.testing.assert_allclose(first.std(axis=0), std, rtol=0.1)


# Scores


def test_without_validation_images_there_are_no_scores(made):
    experiment, state = made()
    assert validator(experiment, splits(images(0), labels(0)), UNIT)(state) == {}


def test_scores_of_an_autoencoder_are_those_computed_directly(made):
    experiment, state = made()
    stored = images(300)
    score = validator(experiment, splits(stored, labels(300)), UNIT)
    scores = score(state)
    assert scores == score(state), "the same state has the same scores"
    style, _, output = by_hand(state.params, stored / 255)
    error = 0.5 * ((sigmoid(output) - stored.reshape(300, -1) / 255) ** 2).sum(axis=1)
    assert set(scores) == {
        "valid/reconstruction",
        "valid/code_mean_distance",
        "valid/code_covariance_distance",
    }
    assert scores["valid/reconstruction"] == pytest.approx(error.mean(), rel=1e-4)
    # The prior is N(0, 5^2 I) in two dimensions.
    distance = np.linalg.norm(style.mean(axis=0)) / 5
    assert scores["valid/code_mean_distance"] == pytest.approx(distance, abs=0.03)
    covariance = np.linalg.norm(np.cov(style.T) - 25 * np.eye(2)) / np.linalg.norm(25 * np.eye(2))
    assert scores["valid/code_covariance_distance"] == pytest.approx(covariance, abs=0.03)


def test_codes_that_follow_the_prior_are_at_no_distance(made):
    """An encoder that passes uniform pixels on, and a uniform prior."""
    fields = {
        "encoder.widths": (),
        "model.style_dim": 16,
        "style.prior": "uniform(16, low=0.0, high=1.0)",
    }
    experiment, state = made(**fields)
    style = {"kernel": jnp.eye(16), "bias": jnp.zeros(16)}
    state = state.replace(params={**state.params, "encoder": {"style": style}})
    scores = validator(experiment, splits(images(3000), labels(3000)), UNIT)(state)
    assert scores["valid/code_mean_distance"] < 0.15
    assert scores["valid/code_covariance_distance"] < 0.15


def test_codes_in_their_labels_mode_are_counted_among_known_labels(made):
    """Three modes far apart, and an encoder that puts every image into the second."""
    fields = {
        "style.prior": "mixture(affine(gaussian(2), 1.0, (-9.0, 0.0)), "
        "affine(gaussian(2), 1.0, (0.0, 9.0)), affine(gaussian(2), 1.0, (9.0, 0.0)))",
        "style.label_informed": True,
    }
    experiment, state = made(**fields)
    encoder = jax.tree.map(jnp.zeros_like, state.params["encoder"])
    encoder["style"]["bias"] = jnp.array([0.0, 9.0])
    state = state.replace(params={**state.params, "encoder": encoder})
    known = labels(200)
    known[50:] = -1
    scores = validator(experiment, splits(images(200), known), UNIT)(state)
    assert scores["valid/codes_in_own_mode"] == pytest.approx(np.mean(known[:50] == 1))


def test_the_error_of_a_classifier_counts_known_labels_only(made):
    experiment, state = made(**CLASSIFYING)
    stored, known = images(200), labels(200)
    known[50:] = -1
    scores = validator(experiment, splits(stored, known), UNIT)(state)
    guesses = encoded_by_hand(state.params, stored / 255)[1].argmax(axis=1)
    wrong = 100 * np.mean(guesses[:50] != known[:50])
    assert scores["valid/error_percent"] == pytest.approx(wrong)
    assert 0 < wrong < 100
    assert "valid/reconstruction" in scores
    unknown = validator(experiment, splits(stored, np.full(200, -1, np.int32)), UNIT)(state)
    assert not {"valid/error_percent", "valid/majority_error_percent"} & unknown.keys()
    assert "valid/majority_error_percent" not in scores


def test_a_classifier_alone_has_its_error_alone(made):
    fields = {"model.labels": CLASSES, "phases": ("classification",), "style.divergence": ""}
    experiment, state = made(**fields)
    stored, known = images(100), labels(100)
    scores = validator(experiment, splits(stored, known), UNIT)(state)
    guesses = encoded_by_hand(state.params, stored / 255)[1].argmax(axis=1)
    assert scores == {"valid/error_percent": pytest.approx(100 * np.mean(guesses != known))}


def test_clusters_are_named_by_their_most_certain_image(made):
    fields = {
        **INFERRED,
        "model.labels": 5,
        "label.prior": "categorical(5)",
        "label.divergence": "gan()",
    }
    experiment, state = made(**fields)
    stored, known = images(150), labels(150)
    known[::3] = -1
    scores = validator(experiment, splits(stored, known), UNIT)(state)
    shares = softmax(encoded_by_hand(state.params, stored / 255)[1])
    seen = np.flatnonzero(known >= 0)
    names = [known[seen[shares[seen, cluster].argmax()]] for cluster in range(5)]
    guesses = np.array(names)[shares.argmax(axis=1)]
    wrong = 100 * np.mean(guesses[seen] != known[seen])
    assert scores["valid/error_percent"] == pytest.approx(wrong)
    assert 0 < wrong < 100
    chosen = shares.argmax(axis=1)[seen]
    right = sum(np.bincount(known[seen][chosen == cluster]).max(initial=0) for cluster in range(5))
    by_majority = 100 * (1 - right / len(seen))
    assert scores["valid/majority_error_percent"] == pytest.approx(by_majority)
    assert by_majority < wrong
