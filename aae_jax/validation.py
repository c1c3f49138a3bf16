"""Scores of a state on validation images, often enough to draw curves of."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from aae_jax.coding import coder, in_blocks, weights_of
from aae_jax.data import preprocessing as pre
from aae_jax.data.splits import Splits
from aae_jax.evaluation.classification import error_percent, mode_accuracy
from aae_jax.evaluation.clustering import (
    cluster_assignments,
    majority_vote_error,
    paper_cluster_error,
)
from aae_jax.evaluation.latent_space import moment_distance
from aae_jax.experiment import Experiment
from aae_jax.priors import Prior, sample_batch
from aae_jax.state import TrainState

BLOCK = 1000


def encoded(
    experiment: Experiment, preprocessing: pre.Preprocessing
) -> Callable[..., dict[str, np.ndarray]]:
    """A function (state, images, labels, key) -> codes and reconstructions as NumPy arrays.

    Its result is that of `aae_jax.coding.Coder.reconstruct`, for any number of images.
    """

    block = jax.jit(coder(experiment.model, preprocessing).reconstruct)

    def run(
        state: TrainState, images: np.ndarray, labels: np.ndarray, key: Key[Array, ""]
    ) -> dict[str, np.ndarray]:
        size = min(BLOCK, len(images))
        return in_blocks(block, size, weights_of(state), key, images, labels)

    return run


def validator(
    experiment: Experiment, splits: Splits, preprocessing: pre.Preprocessing
) -> Callable[[TrainState], dict[str, float]]:
    """A function state -> scores on the validation images; without such images it gives none.

    Scores: "valid/reconstruction" (nats per image), "valid/code_mean_distance" (prior's standard
    deviations) and "valid/code_covariance_distance" (fraction of the prior's), and
    "valid/error_percent" of the label head, by the paper's rule (appendix A.3) for clusters, which
    have the steadier "valid/majority_error_percent" beside it, and "valid/codes_in_own_mode"
    (fraction) where the adversary sees labels.
    """
    if not len(splits.valid.image):
        return lambda state: {}
    run = encoded(experiment, preprocessing)
    images, labels = splits.valid
    code_key, prior_key, modes_key = jax.random.split(jax.random.key(0), 3)
    prior_samples = np.asarray(
        sample_batch(experiment.style_prior, jax.random.split(prior_key, 10_000))
    )

    def score(state: TrainState) -> dict[str, float]:
        codes = run(state, images, labels, code_key)
        scores = {}
        if "reconstruction" in experiment.phases:
            moments = moment_distance(codes["style"], prior_samples)
            scores = {
                "valid/reconstruction": float(codes["error"].mean()),
                "valid/code_mean_distance": moments.mean,
                "valid/code_covariance_distance": moments.covariance,
            }
        if labels_are_modes(experiment) and (labels >= 0).any():
            scores["valid/codes_in_own_mode"] = mode_accuracy(
                codes["style"], labels, mode_samples(experiment.style_prior, modes_key)
            )
        logits = codes.get("label_logits")
        if logits is not None and (labels >= 0).any():
            scores |= _label_errors(logits, labels, experiment.knows_classes)
        return scores

    return score


def _label_errors(logits: np.ndarray, labels: np.ndarray, of_classes: bool) -> dict[str, float]:
    if of_classes:
        return {"valid/error_percent": error_percent(logits, labels)}
    clusters = cluster_assignments(logits)
    return {
        "valid/error_percent": paper_cluster_error(logits, labels, logits, labels),
        "valid/majority_error_percent": majority_vote_error(
            clusters, labels, clusters, labels, logits.shape[1]
        ),
    }


def labels_are_modes(experiment: Experiment) -> bool:
    """Whether labels say which mode of the prior a code belongs to.

    Where the decoder is given the label, all modes of the style are the same.
    """
    informed = any(match.label_informed for match in experiment.matches)
    return informed and experiment.model.layout == "style"


def mode_samples(
    prior: Prior, key: Key[Array, ""], num_samples: int = 1000
) -> Float[np.ndarray, "modes samples dim"]:
    """Samples of each mode of a prior that has modes."""
    assert prior.sample_mode is not None, "the prior has no modes"
    keys = jax.random.split(key, (prior.num_modes, num_samples))
    of_mode = jax.vmap(prior.sample_mode, (0, None))
    return np.asarray(jax.vmap(of_mode)(keys, np.arange(prior.num_modes)))
