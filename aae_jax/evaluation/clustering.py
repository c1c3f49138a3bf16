"""Scores of unsupervised clusterings (section 6, Table 3, appendix A.3).

Two kinds: errors, in percent, of clusters that were *named* by labelled validation images, and
agreement between clusters and test labels, as fractions, which needs no names. A label of -1 is
unknown: such an image neither names a cluster nor is scored. Arrays may be NumPy's or JAX's.
"""

from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float, Integer

from aae_jax.evaluation.classification import UNKNOWN, error_percent, known_mask


class ClusteringScores(NamedTuple):
    """All scores of one clustering.

    Attributes:
        paper_error_percent: see `paper_cluster_error`; the number of Table 3.
        majority_error_percent: see `majority_vote_error`.
        hungarian_accuracy: fraction, see `hungarian_accuracy`.
        nmi: normalised mutual information, 0 .. 1.
        ari: adjusted Rand index, at most 1, 0 for a random clustering.
        clusters_in_use: number of clusters with a fair share of the test images.
    """

    paper_error_percent: float
    majority_error_percent: float
    hungarian_accuracy: float
    nmi: float
    ari: float
    clusters_in_use: int


def cluster_assignments(
    logits: Float[Array | np.ndarray, "n clusters"],
) -> Integer[np.ndarray, " n"]:
    """The likeliest cluster of each image.

    Raises:
        ValueError: the logits hold NaN.
    """
    return _as_float64(logits).argmax(axis=1)


def name_by_most_confident(
    valid_logits: Float[Array | np.ndarray, "n clusters"],
    valid_labels: Integer[Array | np.ndarray, " n"],
) -> Integer[np.ndarray, " clusters"]:
    """Each cluster's label: that of the validation image with the largest q(y=i|x) (A.3).

    Args:
        valid_logits: logits, or log-probabilities, of the clusters for each validation image.
        valid_labels: [n]; images of unknown label (-1) cannot name a cluster.

    Raises:
        ValueError: no label is known, or the logits hold NaN.
    """
    known = known_mask(valid_labels)
    log_odds = _log_odds(_as_float64(valid_logits)[known])
    return np.asarray(valid_labels)[known][log_odds.argmax(axis=0)]


def _log_odds(logits: np.ndarray) -> np.ndarray:
    # Grows with q(y=i|x), so it has the same argmax over images, but never saturates: hundreds of
    # confident images share the probability 1.0, and the first of them would name the cluster.
    columns = range(logits.shape[1])
    others = [np.logaddexp.reduce(np.delete(logits, i, axis=1), axis=1) for i in columns]
    return logits - np.stack(others, axis=1)


def name_by_majority(
    valid_assignments: Integer[Array | np.ndarray, " n"],
    valid_labels: Integer[Array | np.ndarray, " n"],
    num_clusters: int,
) -> Integer[np.ndarray, " {num_clusters}"]:
    """Each cluster's label: the commonest among its labelled validation images.

    Of equally common labels the smallest; -1, no name, for a cluster without such an image.

    Raises:
        ValueError: no label is known, or an assignment is outside 0 .. num_clusters - 1.
    """
    known = known_mask(valid_labels)
    assignments, labels = np.asarray(valid_assignments)[known], np.asarray(valid_labels)[known]
    _refuse_outside(assignments, num_clusters)
    votes = np.zeros((num_clusters, labels.max() + 1), np.int64)
    np.add.at(votes, (assignments, labels), 1)
    return np.where(votes.any(axis=1), votes.argmax(axis=1), UNKNOWN)


def paper_cluster_error(
    valid_logits: Float[Array | np.ndarray, "valid clusters"],
    valid_labels: Integer[Array | np.ndarray, " valid"],
    test_logits: Float[Array | np.ndarray, "test clusters"],
    test_labels: Integer[Array | np.ndarray, " test"],
) -> float:
    """Test error in percent by the paper's rule (Table 3, appendix A.3).

    One validation image, the one with the largest q(y=i|x), names the whole cluster i; each test
    image gets the name of its likeliest cluster.

    Args:
        valid_logits: logits, or log-probabilities, of the clusters for each validation image.
        valid_labels: their labels, -1 where unknown.
        test_logits: the same for each test image.
        test_labels: their labels, -1 where unknown.

    Raises:
        ValueError: no label is known on either side, or the logits hold NaN.
    """
    names = name_by_most_confident(valid_logits, valid_labels)
    return error_percent(names[cluster_assignments(test_logits)], test_labels)


def majority_vote_error(
    valid_assignments: Integer[Array | np.ndarray, " valid"],
    valid_labels: Integer[Array | np.ndarray, " valid"],
    test_assignments: Integer[Array | np.ndarray, " test"],
    test_labels: Integer[Array | np.ndarray, " test"],
    num_clusters: int,
) -> float:
    """Test error in percent when each cluster is named by its labelled validation images' majority.

    A cluster that holds no labelled validation image has no name: its test images are errors.

    Raises:
        ValueError: no label is known on either side, or an assignment is outside
            0 .. num_clusters - 1.
    """
    names = name_by_majority(valid_assignments, valid_labels, num_clusters)
    assignments = np.asarray(test_assignments)
    _refuse_outside(assignments, num_clusters)
    return error_percent(names[assignments], test_labels)


def hungarian_accuracy(
    assignments: Integer[Array | np.ndarray, " n"],
    labels: Integer[Array | np.ndarray, " n"],
) -> float:
    """Fraction of images that agree with the best one-to-one matching of clusters and classes.

    Every class is matched to at most one cluster and the other way round. With more clusters
    than classes the images of the clusters left over are all wrong, so the score is far below
    one minus the paper's error then: 16 or 30 clusters for 10 digits reach about 10/16 or 10/30.

    Raises:
        ValueError: no label is known.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    labels, assignments = _keep_known(labels, assignments)
    counts = contingency_matrix(labels, assignments)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return float(matched / len(labels))


def nmi(
    assignments: Integer[Array | np.ndarray, " n"],
    labels: Integer[Array | np.ndarray, " n"],
) -> float:
    """Mutual information of clusters and labels over the mean of their entropies, 0 .. 1.

    Raises:
        ValueError: no label is known.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*_keep_known(labels, assignments)))


def ari(
    assignments: Integer[Array | np.ndarray, " n"],
    labels: Integer[Array | np.ndarray, " n"],
) -> float:
    """Adjusted Rand index: share of image pairs that agree, corrected for chance; at most 1.

    Raises:
        ValueError: no label is known.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*_keep_known(labels, assignments)))


def clusters_in_use(
    assignments: Integer[Array | np.ndarray, " n"], num_clusters: int, min_share: float = 0.005
) -> int:
    """How many clusters hold at least min_share (a fraction) of the images, and at least one.

    Raises:
        ValueError: there are no images, or an assignment is outside 0 .. num_clusters - 1.
    """
    assignments = np.asarray(assignments)
    if not assignments.size:
        raise ValueError("there are no assignments to count")
    _refuse_outside(assignments, num_clusters)
    counts = np.bincount(assignments, minlength=num_clusters)
    return int(np.sum((counts > 0) & (counts >= min_share * assignments.size)))


def clustering_scores(
    valid_logits: Float[Array | np.ndarray, "valid clusters"],
    valid_labels: Integer[Array | np.ndarray, " valid"],
    test_logits: Float[Array | np.ndarray, "test clusters"],
    test_labels: Integer[Array | np.ndarray, " test"],
    min_share: float = 0.005,
) -> ClusteringScores:
    """All scores of a clustering: arguments as `paper_cluster_error`, `clusters_in_use`.

    Raises:
        ValueError: no label is known on either side, or the logits hold NaN.
    """
    valid, test = cluster_assignments(valid_logits), cluster_assignments(test_logits)
    num_clusters = np.shape(test_logits)[1]
    return ClusteringScores(
        paper_error_percent=paper_cluster_error(
            valid_logits, valid_labels, test_logits, test_labels
        ),
        majority_error_percent=majority_vote_error(
            valid, valid_labels, test, test_labels, num_clusters
        ),
        hungarian_accuracy=hungarian_accuracy(test, test_labels),
        nmi=nmi(test, test_labels),
        ari=ari(test, test_labels),
        clusters_in_use=clusters_in_use(test, num_clusters, min_share),
    )


def _as_float64(logits) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    if np.isnan(logits).any():
        raise ValueError("the cluster logits hold NaN")
    return logits


def _refuse_outside(assignments: np.ndarray, num_clusters: int) -> None:
    if np.any((assignments < 0) | (assignments >= num_clusters)):
        raise ValueError(f"assignments must be in 0 .. {num_clusters - 1}")


def _keep_known(labels, assignments) -> tuple[np.ndarray, np.ndarray]:
    known = known_mask(labels)
    return np.asarray(labels)[known], np.asarray(assignments)[known]
