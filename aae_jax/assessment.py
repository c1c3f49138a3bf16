"""A finished run's scores and figures: which of them an experiment has, and from which arrays.

Test images are read here and nowhere before. What is measured lives in `aae_jax.evaluation`, what
is drawn in `aae_jax.figures`; this module only says what applies to whom.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aae_jax import figures
from aae_jax.evaluation import (
    classification,
    clustering,
    latent_space,
    likelihood,
    manifold,
    samples,
)
from aae_jax.priors import quantiles
from aae_jax.randomness import named
from aae_jax.readings import Readings
from aae_jax.report import Score
from aae_jax.validation import labels_are_modes, mode_samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MANIFOLD_IMAGES = 3000
_JUDGE_IMAGES = 20_000
# The paper's number of samples; of more, so many are in memory.
_PARZEN_BLOCK = 10_000


class Drawing(NamedTuple):
    """A figure with a file name and one line on what to see."""

    name: str
    caption: str
    figure: "Figure"


class Options(NamedTuple):
    """What to measure beyond the cheap.

    Attributes:
        parzen_samples: samples of the Parzen estimator; 0 leaves it out.
        sample_quality: whether to train a classifier on the data to judge samples with.
    """

    parzen_samples: int
    sample_quality: bool


Item = Score | Drawing


def assess(readings: Readings, options: Options) -> Iterator[Item]:
    """Scores and drawings of a run, in the order in which a reader wants them."""
    experiment = readings.experiment
    if "reconstruction" in experiment.phases:
        yield from _label_head(readings)
        yield from _codes(readings)
        yield from _autoencoder(readings)
        if options.sample_quality and readings.splits.num_classes > 1:
            yield from _judged(readings)
        if options.parzen_samples:
            yield from _parzen(readings, options.parzen_samples)
    else:
        yield from _label_head(readings)


def code_panel(readings: Readings, title: str) -> figures.CodePanel:
    """Codes of the test images for a picture of several runs (Fig 2 a-d); the style must be 2-D."""
    labels = readings.splits.test.label
    return figures.CodePanel(title, readings.test["style"], labels, readings.prior_samples)


def _label_head(readings: Readings) -> Iterator[Item]:
    logits = readings.test.get("label_logits")
    labels = readings.splits.test.label
    if logits is None or not _known(labels):
        return
    if readings.experiment.knows_classes:
        error = classification.error_percent(logits, labels)
        yield Score("classification error", error, "%", "lower", None)
        return
    assigned = clustering.cluster_assignments(logits)
    if _known(readings.splits.valid.label):
        yield from _named_clusters(readings, logits)
    accuracy = clustering.hungarian_accuracy(assigned, labels)
    yield Score("clustering accuracy (Hungarian)", accuracy, "fraction", "higher", None)
    yield Score(
        "normalised mutual information", clustering.nmi(assigned, labels), "", "higher", None
    )
    yield Score("adjusted Rand index", clustering.ari(assigned, labels), "", "higher", None)
    in_use = clustering.clusters_in_use(assigned, logits.shape[1])
    yield Score("clusters in use", in_use, "", "", None)
    if readings.has_images and readings.decoder_takes_label:
        yield _clusters(readings, logits)


def _known(labels: np.ndarray) -> bool:
    return bool((labels >= 0).any())


def _named_clusters(readings: Readings, logits: np.ndarray) -> Iterator[Score]:
    """Errors of clusters that labelled validation images give their names."""
    valid_logits, valid_labels = readings.valid["label_logits"], readings.splits.valid.label
    labels = readings.splits.test.label
    error = clustering.paper_cluster_error(valid_logits, valid_labels, logits, labels)
    name = "clustering error, clusters named by their most certain validation image"
    yield Score(name, error, "%", "lower", None)
    error = clustering.majority_vote_error(
        clustering.cluster_assignments(valid_logits),
        valid_labels,
        clustering.cluster_assignments(logits),
        labels,
        logits.shape[1],
    )
    yield Score("clustering error, majority vote", error, "%", "lower", None)


def _clusters(readings: Readings, logits: np.ndarray) -> Drawing:
    num_clusters, shown = logits.shape[1], 10
    names = None
    if _known(readings.splits.valid.label):
        names = clustering.name_by_most_confident(
            readings.valid["label_logits"], readings.splits.valid.label
        )
    assigned = clustering.cluster_assignments(logits)
    images = readings.shown(readings.splits.test.image)
    members = np.zeros((num_clusters, shown, *images.shape[1:]), np.float32)
    valid = np.zeros((num_clusters, shown), bool)
    for cluster in range(num_clusters):
        chosen = np.flatnonzero(assigned == cluster)[:shown]
        members[cluster, : len(chosen)] = images[chosen]
        valid[cluster, : len(chosen)] = True
    style = np.zeros((num_clusters, readings.experiment.model.style_dim), np.float32)
    heads = readings.shown(readings.decode(style, np.arange(num_clusters)))
    counts = np.bincount(assigned, minlength=num_clusters)
    if names is not None:
        names = np.where(counts > 0, names, -1)
    figure = figures.cluster_heads(heads, members, counts, names, valid)
    return Drawing("clusters", "Each cluster's head (style 0), then test images in it.", figure)


def _codes(readings: Readings) -> Iterator[Item]:
    """The aggregated posterior of the style, and the code plane."""
    style, labels = readings.test["style"], readings.splits.test.label
    prior = readings.experiment.style_prior
    distances = latent_space.prior_distances(
        style, readings.prior_samples, named(readings.key, "distances")
    )
    yield Score(
        "codes to prior: sliced Wasserstein (prior std)",
        distances.sliced_wasserstein,
        "",
        "lower",
        None,
    )
    yield Score("codes to prior: MMD squared", distances.mmd, "", "lower", None)
    yield Score(
        "codes told from prior samples (0.5 is best)",
        distances.classifier_accuracy,
        "fraction",
        "lower",
        None,
    )
    holes = manifold.hole_fraction(style, readings.prior_samples, seed=0)
    yield Score(
        f"prior without a code nearby ({holes.expected:.2f} is best)",
        holes.fraction,
        "fraction",
        "lower",
        None,
    )
    yield Drawing(
        "prior_and_codes",
        "The prior, and the codes of test images that should fill it.",
        figures.prior_and_codes(readings.prior_samples[: len(style)], style),
    )
    if labels_are_modes(readings.experiment) and _known(labels):
        yield _mode_accuracy(readings)
    if readings.experiment.model.layout == "cluster_heads":
        yield from _heads(readings)
    elif prior.dim == 2:
        yield Drawing(
            "codes",
            "Codes of test images by label, over samples of the prior.",
            figures.code_scatter(style, labels, readings.prior_samples),
        )


def _mode_accuracy(readings: Readings) -> Score:
    in_modes = mode_samples(readings.experiment.style_prior, named(readings.key, "modes"))
    share = classification.mode_accuracy(
        readings.test["style"], readings.splits.test.label, in_modes
    )
    return Score("codes in their label's mode", share, "fraction", "higher", None)


def _heads(readings: Readings) -> Iterator[Item]:
    """Figure 11: what the decoder sees, W_C^T y + z, with the heads."""
    test, heads = readings.test, readings.cluster_heads
    probabilities = np.asarray(jax.nn.softmax(test["label_logits"]))
    codes = (probabilities @ heads + test["style"]).astype(np.float32)
    labels = readings.splits.test.label
    if heads.shape[1] == 2:
        figure = figures.heads_scatter(codes, labels, heads)
        yield Drawing("heads", "Two-dimensional codes of test images and the heads.", figure)
    elif heads.shape[0] == heads.shape[1]:
        angles = 2 * np.pi * np.arange(len(heads)) / len(heads)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        # Linear, and takes each head to its place on a circle of radius 1.
        plane = (codes @ np.linalg.solve(heads, circle)).astype(np.float32)
        figure = figures.circle_map(plane, labels)
        yield Drawing("circle", "Codes mapped linearly, each head onto a circle.", figure)


def _autoencoder(readings: Readings) -> Iterator[Item]:
    test = readings.test
    yield Score("reconstruction error", float(test["error"].mean()), "nats", "lower", None)
    if not readings.has_images:
        return
    originals = readings.shown(readings.splits.test.image[:20])
    yield Drawing(
        "reconstructions",
        "Test images above their reconstructions.",
        figures.reconstructions(originals, readings.shown(test["reconstruction"][:20])),
    )
    yield from _walks(readings)
    generated = readings.generated.image[:20]
    train = readings.train_images
    nearest = samples.nearest_training_images(
        _flat(readings.shown(generated)), _flat(readings.shown(train))
    )
    among = "" if len(train) == len(readings.splits.train.image) else f" among {len(train):,}"
    yield Drawing(
        "samples",
        f"Samples of the prior, decoded, above the training image nearest to each{among}.",
        figures.samples_with_nearest(
            readings.shown(generated), readings.shown(train[nearest.indices]), nearest.distances
        ),
    )


def _walks(readings: Readings) -> Iterator[Drawing]:
    """Decoded images over the code space."""
    prior, layout = readings.experiment.style_prior, readings.experiment.model.layout
    if layout != "style":
        yield _styles_and_labels(readings)
    elif prior.path is not None:
        codes = np.asarray(jax.vmap(prior.path)(jnp.linspace(0.005, 0.995, 100)))
        images = _grid(readings.shown(readings.decode(codes)), 10, 10)
        yield Drawing("walk", "Images along the roll, tenth by tenth.", figures.roll_walk(images))
    elif prior.num_modes > 1 and prior.dim == 2:
        codes = _axes_of_modes(readings)
        images = readings.shown(readings.decode(codes.reshape(-1, 2)))
        images = images.reshape(*codes.shape[:3], *images.shape[1:])
        yield Drawing("modes", "Images along both axes of each mode.", figures.mode_axes(images))
    elif prior.dim == 2:
        side = 15
        levels = (np.arange(side) + 0.5) / side
        across, down = np.asarray(quantiles(prior, named(readings.key, "percentiles"), levels)).T
        codes = np.stack(np.meshgrid(across, down[::-1]), axis=-1).reshape(-1, 2)
        images = _grid(readings.shown(readings.decode(codes.astype(np.float32))), side, side)
        yield Drawing(
            "manifold",
            "Images over the prior's percentiles, as in Fig 2 e.",
            figures.image_grid(images, "Images along the prior's percentiles"),
        )


def _axes_of_modes(readings: Readings) -> np.ndarray:
    """[modes, 2 axes, steps, 2]: -2 to 2 standard deviations along each mode's principal axes."""
    prior = readings.experiment.style_prior
    assert prior.sample_mode is not None
    walks = []
    for mode in range(prior.num_modes):
        keys = jax.random.split(named(readings.key, f"mode {mode}"), 2000)
        drawn = np.asarray(jax.vmap(prior.sample_mode, (0, None))(keys, mode))
        variances, axes = np.linalg.eigh(np.cov(drawn.T))
        steps = np.linspace(-2, 2, 9)[:, None]
        long_first = [steps * np.sqrt(variances[i]) * axes[:, i] for i in (1, 0)]
        walks.append(drawn.mean(axis=0) + np.stack(long_first))
    return np.stack(walks).astype(np.float32)


def _styles_and_labels(readings: Readings) -> Drawing:
    rows, labels = 10, readings.experiment.model.num_labels
    kind = "label" if _labels_are_classes(readings) else "cluster"
    styles = np.repeat(readings.prior_samples[:rows], labels, axis=0)
    images = readings.decode(styles, np.tile(np.arange(labels), rows))
    return Drawing(
        "styles_and_labels",
        f"Each row holds a style of the prior fixed, each column a {kind}.",
        figures.image_grid(
            _grid(readings.shown(images), rows, labels),
            f"Style by row, {kind} by column",
            col_labels=[str(label) for label in range(labels)],
        ),
    )


def _labels_are_classes(readings: Readings) -> bool:
    """Whether the decoder's label is the data's class, learned or given, and not a cluster."""
    experiment = readings.experiment
    return experiment.knows_classes or experiment.model.layout == "style_and_given_label"


def _judged(readings: Readings) -> Iterator[Item]:
    """What a classifier trained on real images makes of decoded ones."""
    splits, key = readings.splits, named(readings.key, "judge")
    known = np.flatnonzero(readings.train_labels >= 0)[:_JUDGE_IMAGES]
    if not len(known):
        return
    real = splits.train.image[known]
    judge = samples.train_classifier(
        readings.shown(real), readings.train_labels[known], splits.num_classes, key
    )

    def classify(images: np.ndarray) -> np.ndarray:
        return np.asarray(judge.logits(images)).argmax(axis=1)

    test_images = readings.shown(splits.test.image)
    if _known(splits.test.label):
        judge_error = classification.error_percent(classify(test_images), splits.test.label)
        yield Score("the judging classifier's own error", judge_error, "%", "", None)
    generated = readings.generated
    distances = samples.sample_distances(
        np.asarray(judge.features(test_images)),
        np.asarray(judge.features(readings.shown(generated.image))),
        named(readings.key, "sample distances"),
    )
    yield Score("samples: Frechet distance", distances.frechet, "", "lower", None)
    yield Score("samples: kernel distance", distances.kernel, "", "lower", None)
    yield Score("samples: precision", distances.precision, "fraction", "higher", None)
    yield Score("samples: recall", distances.recall, "fraction", "higher", None)
    if readings.experiment.model.num_labels == splits.num_classes and _labels_are_classes(readings):
        recognised = classification.conditional_agreement(
            classify(readings.shown(generated.image)), generated.label
        )
        yield Score("decoded images recognised as asked", recognised, "fraction", "higher", None)
        if _known(splits.test.label):
            yield from _style_probe(readings)
    if readings.experiment.model.layout == "style":
        yield from _fracture(readings, classify)


def _style_probe(readings: Readings) -> Iterator[Score]:
    probe = classification.style_probe(
        readings.train["style"],
        readings.train_labels[: len(readings.train["style"])],
        readings.test["style"],
        readings.splits.test.label,
        seed=0,
    )
    for kind, accuracy in (("linear", probe.linear_accuracy), ("MLP", probe.mlp_accuracy)):
        name = f"label read from the style, {kind} ({probe.chance:.2f} is best)"
        yield Score(name, accuracy, "fraction", "lower", None)


def _fracture(readings: Readings, classify: Callable[[np.ndarray], np.ndarray]) -> Iterator[Score]:
    """E18: is the manifold in code space of one piece?"""
    test = readings.splits.test
    style = readings.test["style"][:_MANIFOLD_IMAGES]
    kept = manifold.neighbour_preservation(
        _flat(readings.shown(test.image[:_MANIFOLD_IMAGES])), style
    )
    yield Score("neighbours that stay neighbours", kept, "fraction", "higher", None)
    if not _known(test.label):
        return
    paths = manifold.path_consistency(
        readings.test["style"],
        test.label,
        lambda codes: readings.shown(readings.decode(np.asarray(codes))),
        lambda images: classify(np.asarray(images)),
        seed=0,
    )
    yield Score("paths within a class that keep it", paths.paths, "fraction", "higher", None)


def _parzen(readings: Readings, num_samples: int) -> Iterator[Item]:
    """Table 1: the log-likelihood of test images under a Parzen window on samples.

    With the paper's number of samples, and with ten times as many each time up to `num_samples`.
    """
    fewer = [_PARZEN_BLOCK * 10**n for n in range(8) if _PARZEN_BLOCK * 10**n < num_samples]
    scores = likelihood.parzen_curve(
        _flat(_in_units(readings, readings.splits.test.image)),
        _flat(_in_units(readings, readings.splits.valid.image)),
        map(_flat, _samples(readings, num_samples)),
        [*fewer, num_samples],
    )
    name = "Parzen log-likelihood"
    for number, score in enumerate(scores):
        more = f", {score.num_samples:,} samples" if number else ""
        edge = ", at the edge of the grid" if score.at_edge else ""
        sigma = f"sigma {score.sigma:.3f}{edge}"
        yield Score(
            f"{name}{more}",
            score.mean,
            "nats",
            "higher",
            None,
            note=f"± {score.standard_error:.1f}; {score.num_samples:,} samples; {sigma}",
        )
        yield Score(
            f"{name} of validation images{more}",
            score.valid_mean,
            "nats",
            "higher",
            None,
            note="that of the best sigma, which they choose",
            split="valid",
        )


def _samples(readings: Readings, num_samples: int) -> Iterator[np.ndarray]:
    """Generated images in blocks, the last perhaps with more than are asked for."""
    key = named(readings.key, "parzen")
    size = min(num_samples, _PARZEN_BLOCK)
    yield readings.generate(key, size).image
    for number in range(1, -(-num_samples // size)):
        yield readings.generate(jax.random.fold_in(key, number), size).image


def _in_units(readings: Readings, images: np.ndarray) -> np.ndarray:
    return readings.shown(images) if images.dtype == np.uint8 else images


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def _grid(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return images.reshape(rows, columns, *images.shape[1:])
