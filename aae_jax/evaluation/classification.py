"""Scores that set a label beside a guess: errors, confusion, probes of the code, prior modes.

A label of -1 is unknown and never counted. Every function takes NumPy or JAX arrays.
"""

import warnings
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Integer

UNKNOWN = -1


class StyleProbe(NamedTuple):
    """How well the label can be read from the style code alone (fractions of the test images).

    Attributes:
        linear_accuracy: accuracy of a logistic regression.
        mlp_accuracy: accuracy of a small multi-layer perceptron.
        chance: accuracy of always answering the commonest training label. A style that holds
            no label information scores chance with both probes.
    """

    linear_accuracy: float
    mlp_accuracy: float
    chance: float


def known_mask(labels: Integer[Array | np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which labels are known, that is not -1.

    Raises:
        ValueError: no label is known, or a label is below -1.
    """
    labels = np.asarray(labels)
    if np.any(labels < UNKNOWN):
        raise ValueError(f"labels must be 0 or more, or -1 for unknown; found {labels.min()}")
    known = labels != UNKNOWN
    if not known.any():
        raise ValueError(f"none of the {labels.size} labels is known (all are -1)")
    return known


def error_percent(
    logits_or_predictions: Float[Array | np.ndarray, "n classes"]
    | Integer[Array | np.ndarray, " n"],
    labels: Integer[Array | np.ndarray, " n"],
) -> float:
    """Classification error in percent of the images whose label is known (Table 2, Fig 11).

    Args:
        logits_or_predictions: class scores [n, classes], of which the largest is the guess, or
            the guesses [n] themselves. A guess of -1 ("no answer") is an error.
        labels: [n], -1 where unknown.

    Raises:
        ValueError: no label is known, or the scores hold NaN.
    """
    known = known_mask(labels)
    predictions = _predictions(np.asarray(logits_or_predictions))
    return 100.0 * float(np.mean(predictions[known] != np.asarray(labels)[known]))


def _predictions(logits_or_predictions: np.ndarray) -> np.ndarray:
    if logits_or_predictions.ndim == 1:
        return logits_or_predictions
    _refuse_nan(logits_or_predictions)
    return logits_or_predictions.argmax(axis=1)


def _refuse_nan(scores: np.ndarray) -> None:
    # argmax would answer with the place of the NaN: a diverged model would get a number.
    if np.isnan(scores).any():
        raise ValueError("the class scores hold NaN")


def confusion(
    predictions: Integer[Array | np.ndarray, " n"],
    labels: Integer[Array | np.ndarray, " n"],
    num_classes: int,
) -> Integer[np.ndarray, "{num_classes} {num_classes}"]:
    """Counts of images by true label (row) and predicted label (column).

    Raises:
        ValueError: no label is known; a known label or the prediction beside it is outside
            0 .. num_classes - 1.
    """
    from sklearn.metrics import confusion_matrix

    known = known_mask(labels)
    predicted, true = np.asarray(predictions)[known], np.asarray(labels)[known]
    for name, values in (("predictions", predicted), ("labels", true)):
        # scikit-learn would drop them without a word.
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(f"{name} must be in 0 .. {num_classes - 1}")
    return confusion_matrix(true, predicted, labels=np.arange(num_classes))


def style_probe(
    train_codes: Float[Array | np.ndarray, "train dim"],
    train_labels: Integer[Array | np.ndarray, " train"],
    test_codes: Float[Array | np.ndarray, "test dim"],
    test_labels: Integer[Array | np.ndarray, " test"],
    seed: int,
    max_train: int = 10_000,
) -> StyleProbe:
    """Label information left in the style code, read by a linear and a non-linear classifier.

    The supervised autoencoder (section 4) gives the decoder the label, so that the style need
    not hold it: accuracies at chance say that style and label are disentangled. Codes are
    standardised with the training codes' mean and standard deviation.

    Args:
        train_codes: codes that the probes learn from; at most max_train of them, drawn at random.
        train_labels: their labels, -1 where unknown (left out).
        test_codes: codes that the probes are scored on.
        test_labels: their labels, -1 where unknown (left out).
        seed: of the subsample and of the probes, 0 .. 2**32 - 1.
        max_train: the most training codes used; bounds the time.

    Raises:
        ValueError: no label is known on either side, fewer than two classes to learn, or codes
            that are not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    codes, labels = _keep_known(train_codes, train_labels)
    queries, answers = _keep_known(test_codes, test_labels)
    commonest = np.bincount(labels).argmax()
    if len(labels) > max_train:
        chosen = np.random.default_rng(seed).choice(len(labels), max_train, replace=False)
        codes, labels = codes[chosen], labels[chosen]
    if len(np.unique(labels)) < 2:
        raise ValueError("a probe needs training codes of at least two classes")
    linear = LogisticRegression(max_iter=1000)
    # A fixed, short training: the probe asks whether the label can be read, not how well.
    mlp = MLPClassifier(hidden_layer_sizes=(128,), max_iter=60, random_state=seed)
    return StyleProbe(
        linear_accuracy=_probe_accuracy(linear, codes, labels, queries, answers),
        mlp_accuracy=_probe_accuracy(mlp, codes, labels, queries, answers),
        chance=float(np.mean(answers == commonest)),
    )


def _probe_accuracy(classifier, codes, labels, queries, answers) -> float:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), classifier)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(codes, labels)
    return float(probe.score(queries, answers))


def nearest_neighbour_accuracy(
    train_codes: Float[Array | np.ndarray, "train dim"],
    train_labels: Integer[Array | np.ndarray, " train"],
    test_codes: Float[Array | np.ndarray, "test dim"],
    test_labels: Integer[Array | np.ndarray, " test"],
    k: int = 5,
) -> float:
    """Fraction of the test codes whose k nearest training codes vote for their label.

    Euclidean distance; codes of unknown label (-1) neither vote nor are scored; of labels with
    equal votes the smallest wins.

    Raises:
        ValueError: no label is known on either side, or k is not in 1 .. number of known
            training labels.
    """
    codes, labels = _keep_known(train_codes, train_labels)
    queries, answers = _keep_known(test_codes, test_labels)
    return float(np.mean(_vote(codes, labels, queries, k) == answers))


def modes_by_density(
    mode_log_prob: Float[Array | np.ndarray, "n modes"],
) -> Integer[np.ndarray, " n"]:
    """The mode of a mixture that each code belongs to: the largest log density, weight included.

    A code where every mode's density is zero (-inf) belongs to none: -1.

    Raises:
        ValueError: a log density is NaN.
    """
    log_prob = np.asarray(mode_log_prob)
    _refuse_nan(log_prob)
    return np.where(np.isneginf(log_prob).all(axis=1), UNKNOWN, log_prob.argmax(axis=1))


def modes_by_samples(
    codes: Float[Array | np.ndarray, "n dim"],
    mode_samples: Float[Array | np.ndarray, "modes samples dim"],
    k: int = 25,
) -> Integer[np.ndarray, " n"]:
    """The mode of any prior that each code belongs to: the vote of its k nearest prior samples.

    Args:
        codes: [n, dim].
        mode_samples: equally many samples of each mode (equal weights are assumed).
        k: how many samples vote; small beside the number of samples of one mode.

    Raises:
        ValueError: k is not in 1 .. modes * samples.
    """
    samples = np.asarray(mode_samples)
    num_modes, per_mode, dim = samples.shape
    modes = np.repeat(np.arange(num_modes), per_mode)
    return _vote(samples.reshape(-1, dim), modes, np.asarray(codes), k)


def mode_accuracy(
    codes: Float[Array | np.ndarray, "n dim"],
    labels: Integer[Array | np.ndarray, " n"],
    mode_samples: Float[Array | np.ndarray, "modes samples dim"],
    k: int = 25,
) -> float:
    """Fraction of the images whose code falls in their label's mode of the prior (Fig 4).

    Works for any prior that can be sampled mode by mode, the swiss roll included; the mode of a
    code is the vote of its k nearest prior samples, see `modes_by_samples`. A code far from
    every mode still belongs to the nearest: this score does not see it.

    Raises:
        ValueError: no label is known, a label has no mode, or k is out of range.
    """
    _refuse_labels_without_mode(labels, np.shape(mode_samples)[0])
    return conditional_agreement(modes_by_samples(codes, mode_samples, k), labels)


def mode_accuracy_by_density(
    mode_log_prob: Float[Array | np.ndarray, "n modes"],
    labels: Integer[Array | np.ndarray, " n"],
) -> float:
    """As `mode_accuracy`, for mixtures whose modes have a density: [n, modes] log densities.

    Raises:
        ValueError: no label is known, a label has no mode, or a log density is NaN.
    """
    _refuse_labels_without_mode(labels, np.shape(mode_log_prob)[1])
    return conditional_agreement(modes_by_density(mode_log_prob), labels)


def _refuse_labels_without_mode(labels, num_modes: int) -> None:
    largest = np.asarray(labels)[known_mask(labels)].max()
    if largest >= num_modes:
        raise ValueError(f"label {largest} has no mode: the prior has {num_modes}")


def conditional_agreement(
    predicted: Integer[Array | np.ndarray, " n"],
    requested: Integer[Array | np.ndarray, " n"],
) -> float:
    """Fraction of decoded images that a classifier recognises as the label they were asked for.

    Args:
        predicted: the classifier's labels of the decoded images.
        requested: the labels given to the decoder, or the modes of the prior samples; -1 where
            none was asked (left out).

    Raises:
        ValueError: no label was asked for.
    """
    known = known_mask(requested)
    return float(np.mean(np.asarray(predicted)[known] == np.asarray(requested)[known]))


def _keep_known(codes, labels) -> tuple[np.ndarray, np.ndarray]:
    known = known_mask(labels)
    return np.asarray(codes)[known], np.asarray(labels)[known]


def _vote(codes: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    from sklearn.neighbors import KNeighborsClassifier

    if not 1 <= k <= len(codes):
        raise ValueError(f"k must be in 1 .. {len(codes)}, the number of neighbours; it is {k}")
    search = KNeighborsClassifier(n_neighbors=k, algorithm=search_algorithm(codes.shape[1]))
    return search.fit(codes, labels).predict(queries)


def search_algorithm(dim: int) -> str:
    """scikit-learn's name of the quickest exact neighbour search for points of dim numbers."""
    # "auto" takes a tree up to 15 dimensions: 17 s against 2 s for 10,000 queries of 50,000.
    return "auto" if dim <= 8 else "brute"
