import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp, softmax
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from aae_jax import assessment
from aae_jax.assessment import Drawing, Options, assess, code_panel
from aae_jax.data import preprocessing
from aae_jax.data.sources import Arrays
from aae_jax.data.splits import Splits
from aae_jax.evaluation.samples import Classifier
from aae_jax.experiment import build
from aae_jax.randomness import named
from aae_jax.readings import Readings
from aae_jax.report import Score

pytestmark = pytest.mark.usefixtures("quick_compilation")

CLASSES = 3
PLAIN = Options(0, False)
LABEL = {"model.labels": CLASSES, "label.prior": "categorical(3)", "label.divergence": "gan()"}
ALL_PHASES = {"phases": ("reconstruction", "regularization", "classification")}
HEADS = {"model.layout": "cluster_heads", **LABEL, **ALL_PHASES}
UNREGULARISED = {"phases": ("reconstruction",), "style.divergence": ""}
LINEAR = {"data.preprocessing": "standardize_pixels", "decoder.output": "linear"}
CLUSTERS = {
    "model.layout": "style_and_inferred_label",
    "model.labels": 5,
    "label.prior": "categorical(5)",
    "label.divergence": "gan()",
}


def arrays(n, seed, shape):
    """Images of three classes that differ in brightness, and their labels."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, n).astype(np.int32)
    level = 60 + 60 * label.reshape(n, *[1] * len(shape))
    image = (level + rng.normal(scale=25, size=(n, *shape))).clip(0, 255)
    return Arrays(image.astype(np.uint8 if len(shape) == 3 else np.float32), label)


@pytest.fixture(scope="module")
def readings_of(random_weights, narrow_config):
    """Readings of an untrained experiment with narrow networks: (labels hidden, config fields)."""

    def read(*, shape=(8, 8, 1), unknown=(), num_valid=40, samples=40, **fields):
        config = narrow_config(**fields)
        parts = {"train": arrays(60, 0, shape), "valid": arrays(num_valid, 1, shape)}
        parts["test"] = arrays(80, 2, shape)
        every_label = parts["train"].label
        for part in unknown:
            parts[part] = Arrays(parts[part].image, np.full(len(parts[part].label), -1, np.int32))
        splits = Splits(**parts, labelled=np.arange(60), num_classes=CLASSES)
        experiment = build(config, image_shape=shape, num_classes=CLASSES, num_examples=60)
        state = jax.eval_shape(experiment.init, jax.random.key(0))
        params, batch_stats = random_weights(experiment.model.init)
        state = state.replace(params=params, batch_stats=batch_stats)
        constants = preprocessing.fit(config.data.preprocessing, parts["train"].image)
        key = jax.random.key(4)
        return Readings(experiment, state, splits, every_label, constants, key, samples)

    return read


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of every figure, by its function; no figure is drawn, no classifier trained."""
    calls = {}

    def spy(name):
        def draw(*args, **kwargs):
            calls[name] = args, kwargs
            return Figure()

        return draw

    for name in assessment.figures.__all__:
        if name != "CodePanel":
            monkeypatch.setattr(assessment.figures, name, spy(name))
    monkeypatch.setattr(
        assessment.latent_space, "classifier_two_sample_accuracy", lambda *args, **kwargs: 0.5
    )
    return calls


def nearest_mean(images, labels):
    """The judge's stand-in: class means instead of a trained network."""
    flat = np.asarray(images).reshape(len(images), -1)
    means = np.stack([flat[np.asarray(labels) == k].mean(axis=0) for k in range(CLASSES)])

    def logits(images):
        rows = np.asarray(images).reshape(len(images), 1, -1)
        return jax.numpy.asarray(-((rows - means) ** 2).sum(axis=2), "float32")

    def features(images):
        return jax.numpy.asarray(np.asarray(images).reshape(len(images), -1)[:, ::7], "float32")

    return Classifier(features, logits)


@pytest.fixture
def judge(monkeypatch):
    """What the judge was trained on."""
    seen = []

    def train(images, labels, num_classes, key):
        seen.append((np.asarray(images), np.asarray(labels), num_classes))
        return nearest_mean(images, labels)

    monkeypatch.setattr(assessment.samples, "train_classifier", train)
    return seen


def assessed(readings, options=PLAIN):
    """Scores by name and drawings by name, both in their order."""
    items = list(assess(readings, options))
    scores = [item for item in items if isinstance(item, Score)]
    drawings = [item for item in items if isinstance(item, Drawing)]
    assert len(scores) + len(drawings) == len(items)
    assert len({score.name for score in scores}) == len(scores)
    assert all(isinstance(each.figure, Figure) and each.caption for each in drawings)
    assert all(np.isfinite(score.value) for score in scores)
    for score in scores:
        assert score.split == ("valid" if "validation images" in score.name else "test")
        assert score.paper is None
    return {s.name: s for s in scores}, {each.name: each for each in drawings}


CODES = [
    "codes to prior: sliced Wasserstein (prior std)",
    "codes to prior: MMD squared",
    "codes told from prior samples (0.5 is best)",
    "prior without a code nearby (0.05 is best)",
]
CLUSTERING = [
    "clustering error, clusters named by their most certain validation image",
    "clustering error, majority vote",
    "clustering accuracy (Hungarian)",
    "normalised mutual information",
    "adjusted Rand index",
    "clusters in use",
]
ERROR, RECONSTRUCTION, MODE = (
    "classification error",
    "reconstruction error",
    "codes in their label's mode",
)
# An experiment of the paper -> (config fields, its scores, its drawings).
EXPERIMENTS = {
    "E1": (
        {},
        [*CODES, RECONSTRUCTION],
        ["prior_and_codes", "codes", "reconstructions", "manifold", "samples"],
    ),
    "E2": (
        {"style.prior": "petals(modes=10)"},
        [*CODES, RECONSTRUCTION],
        ["prior_and_codes", "codes", "reconstructions", "modes", "samples"],
    ),
    "E3": (
        {**UNREGULARISED, "model.posterior": "gaussian", "penalties.kl": 1.0},
        [*CODES, RECONSTRUCTION],
        ["prior_and_codes", "codes", "reconstructions", "manifold", "samples"],
    ),
    "E4": (
        {"style.prior": "petals(modes=3)", "style.label_informed": True},
        [*CODES, MODE, RECONSTRUCTION],
        ["prior_and_codes", "codes", "reconstructions", "modes", "samples"],
    ),
    "E5": (
        {"style.prior": "swiss_roll(modes=3)", "style.label_informed": True},
        [*CODES, MODE, RECONSTRUCTION],
        ["prior_and_codes", "codes", "reconstructions", "walk", "samples"],
    ),
    "E6": (
        {"style.prior": "gaussian(4)", "model.style_dim": 4},
        [*CODES, RECONSTRUCTION],
        ["prior_and_codes", "reconstructions", "samples"],
    ),
    "E9": (
        {"model.layout": "style_and_given_label", "model.labels": CLASSES},
        [*CODES, RECONSTRUCTION],
        ["prior_and_codes", "codes", "reconstructions", "styles_and_labels", "samples"],
    ),
    "E11": (
        {"model.layout": "style_and_inferred_label", **LABEL, **ALL_PHASES},
        [ERROR, *CODES, RECONSTRUCTION],
        ["prior_and_codes", "codes", "reconstructions", "styles_and_labels", "samples"],
    ),
    "E13": (
        CLUSTERS,
        [*CLUSTERING, *CODES, RECONSTRUCTION],
        ["clusters", "prior_and_codes", "codes", "reconstructions", "styles_and_labels", "samples"],
    ),
    "E15": (
        HEADS,
        [ERROR, *CODES, RECONSTRUCTION],
        ["prior_and_codes", "heads", "reconstructions", "styles_and_labels", "samples"],
    ),
    "E17": (
        {
            **HEADS,
            "cluster_heads.fixed": 10.0,
            "model.style_dim": 3,
            "style.prior": "gaussian(3)",
        },
        [ERROR, *CODES, RECONSTRUCTION],
        ["prior_and_codes", "circle", "reconstructions", "styles_and_labels", "samples"],
    ),
    "E18, classifier": (
        {"phases": ("classification",), "style.divergence": "", "model.labels": CLASSES},
        [ERROR],
        [],
    ),
    "E18, autoencoder": (
        UNREGULARISED,
        [*CODES, RECONSTRUCTION],
        ["prior_and_codes", "codes", "reconstructions", "manifold", "samples"],
    ),
    "rows of a table": (
        {"shape": (7,), **LINEAR},
        [*CODES, RECONSTRUCTION],
        ["prior_and_codes", "codes"],
    ),
    "clusters of rows": (
        {"shape": (7,), **LINEAR, **CLUSTERS},
        [*CLUSTERING, *CODES, RECONSTRUCTION],
        ["prior_and_codes", "codes"],
    ),
}


@pytest.mark.parametrize("experiment", list(EXPERIMENTS))
def test_an_experiment_has_its_scores_and_drawings(readings_of, experiment):
    fields, scores, drawings = EXPERIMENTS[experiment]
    found = assessed(readings_of(**fields))
    assert list(found[0]) == scores
    assert list(found[1]) == drawings


def test_without_known_labels_nothing_is_scored_by_them(readings_of, drawn):
    unknown = ("train", "valid", "test")
    scores, _ = assessed(readings_of(**CLUSTERS, unknown=unknown))
    assert list(scores) == [*CODES, RECONSTRUCTION]


# Values, computed anew


def test_the_reconstruction_error_is_half_the_squared_error_of_a_test_image(readings_of, drawn):
    readings = readings_of()
    score = assessed(readings)[0][RECONSTRUCTION]
    image = readings.splits.test.image / 255
    error = 0.5 * ((readings.test["reconstruction"] - image) ** 2).reshape(80, -1).sum(axis=1)
    assert score.value == pytest.approx(error.mean(), rel=1e-4)
    assert (score.unit, score.better) == ("nats", "lower")


def test_the_error_is_that_of_the_test_images(readings_of, drawn):
    readings = readings_of(**EXPERIMENTS["E18, classifier"][0])
    score = assessed(readings)[0][ERROR]
    guesses = readings.test["label_logits"].argmax(axis=1)
    assert score.value == pytest.approx(100 * np.mean(guesses != readings.splits.test.label))
    assert 0 < score.value < 100
    assert (score.unit, score.better) == ("%", "lower")


def test_codes_are_counted_in_the_mode_of_their_label(readings_of, drawn):
    readings = readings_of(**EXPERIMENTS["E5"][0])
    score = assessed(readings)[0][MODE]
    rng = np.random.default_rng(0)
    modes = np.repeat(np.arange(3), 4000)
    root = np.sqrt((modes + rng.uniform(size=len(modes))) / 3)
    roll = 3 * root[:, None] * np.stack([np.cos(4 * np.pi * root), np.sin(4 * np.pi * root)], 1)
    distance = ((readings.test["style"][:, None] - roll) ** 2).sum(axis=2)
    near = modes[np.argsort(distance, axis=1)[:, :101]]
    mode = [np.bincount(row, minlength=3).argmax() for row in near]
    share = np.mean(mode == readings.splits.test.label)
    assert score.value == pytest.approx(share, abs=0.04)
    assert (score.unit, score.better) == ("fraction", "higher")


def test_clusters_are_scored_by_every_rule(readings_of, drawn):
    readings = readings_of(**CLUSTERS)
    scores, _ = assessed(readings)
    logits, labels = readings.test["label_logits"].astype(np.float64), readings.splits.test.label
    valid = softmax(readings.valid["label_logits"].astype(np.float64), axis=1)
    valid_labels = readings.splits.valid.label
    cluster = logits.argmax(axis=1)
    names = valid_labels[valid.argmax(axis=0)]
    values = {name: score.value for name, score in scores.items()}
    assert values[CLUSTERING[0]] == pytest.approx(100 * np.mean(names[cluster] != labels))
    members = [valid_labels[valid.argmax(axis=1) == k] for k in range(5)]
    votes = np.array([np.bincount(m).argmax() if len(m) else -1 for m in members])
    assert values[CLUSTERING[1]] == pytest.approx(100 * np.mean(votes[cluster] != labels))
    counts = np.zeros((5, CLASSES))
    np.add.at(counts, (cluster, labels), 1)
    matched = counts[linear_sum_assignment(-counts)].sum() / len(labels)
    assert values[CLUSTERING[2]] == pytest.approx(matched)
    assert values[CLUSTERING[3]] == pytest.approx(normalized_mutual_info_score(labels, cluster))
    assert values[CLUSTERING[4]] == pytest.approx(adjusted_rand_score(labels, cluster))
    assert values[CLUSTERING[5]] == len(np.unique(cluster))
    # Fig 9: heads of style 0, the first ten members of each cluster, how many there are, names.
    heads, shown, sizes, written, filled = drawn["cluster_heads"][0]
    np.testing.assert_allclose(
        heads, readings.decode(np.zeros((5, 2), np.float32), np.arange(5)), atol=1e-6
    )
    np.testing.assert_array_equal(sizes, np.bincount(cluster, minlength=5))
    np.testing.assert_array_equal(written, np.where(sizes > 0, names, -1))
    np.testing.assert_array_equal(filled.sum(axis=1), np.minimum(sizes, 10))
    for k in range(5):
        images = readings.splits.test.image[cluster == k][:10] / 255
        np.testing.assert_allclose(shown[k][filled[k]], images, atol=1e-6)


def test_the_parzen_score_takes_sigma_from_validation_images(readings_of, drawn):
    readings = readings_of(num_valid=30)
    # Images so unlike the others that another sigma suits them.
    noise = np.random.default_rng(0).choice(np.uint8([0, 255]), (30, 8, 8, 1))
    readings.splits = readings.splits._replace(valid=Arrays(noise, readings.splits.valid.label))
    score = assessed(readings, Options(25, False))[0]["Parzen log-likelihood"]
    samples = readings.generate(named(readings.key, "parzen"), 25).image.reshape(25, -1)

    def log_likelihoods(images, sigma):
        rows = images.reshape(len(images), 1, -1) / 255
        squared = ((rows - samples) ** 2).sum(axis=2)
        constant = np.log(25) + 32 * np.log(2 * np.pi * sigma**2)
        return logsumexp(-squared / (2 * sigma**2), axis=1) - constant

    grid = np.logspace(-1, 0, 10)

    def best(images):
        return grid[np.argmax([log_likelihoods(images, sigma).mean() for sigma in grid])]

    sigma = best(noise)
    assert sigma != best(readings.splits.test.image)
    values = log_likelihoods(readings.splits.test.image, sigma)
    assert score.value == pytest.approx(values.mean(), rel=1e-4)
    error = values.std(ddof=1) / np.sqrt(80)
    assert score.note.startswith(f"± {error:.1f}; 25 samples; sigma {sigma:.3f}")
    assert ("edge" in score.note) == (sigma in (grid[0], grid[-1]))


def test_more_samples_are_a_curve_that_begins_with_the_score_of_few(readings_of, monkeypatch):
    monkeypatch.setattr(assessment, "_PARZEN_BLOCK", 20)
    readings = readings_of(num_valid=30)
    few = assessed(readings, Options(20, False))[0]
    many = assessed(readings, Options(430, False))[0]
    name = "Parzen log-likelihood"
    assert [each for each in many if each.startswith(name) and "validation" not in each] == [
        name,
        f"{name}, 200 samples",
        f"{name}, 430 samples",
    ]
    assert many[name] == few[name]
    # Other samples in each block: the same ones again would leave every score where it was.
    for of in (name, f"{name} of validation images"):
        assert many[f"{of}, 200 samples"].value != pytest.approx(few[of].value, abs=1e-3)


def test_a_judge_trained_on_known_training_images_rates_samples(readings_of, judge, drawn):
    readings = readings_of(**EXPERIMENTS["E9"][0], samples=300)
    scores, _ = assessed(readings, Options(0, True))
    ((images, labels, num_classes),) = judge
    np.testing.assert_allclose(images, readings.splits.train.image / 255, atol=1e-6)
    np.testing.assert_array_equal(labels, readings.train_labels)
    assert num_classes == CLASSES
    classify = nearest_mean(images, labels)
    guesses = np.asarray(classify.logits(readings.splits.test.image / 255)).argmax(axis=1)
    wrong = 100 * np.mean(guesses != readings.splits.test.label)
    assert scores["the judging classifier's own error"].value == pytest.approx(wrong)
    assert scores["the judging classifier's own error"].better == ""
    generated = readings.generated
    decoded = np.asarray(classify.logits(generated.image)).argmax(axis=1)
    recognised = np.mean(decoded == generated.label)
    assert scores["decoded images recognised as asked"].value == pytest.approx(recognised)
    probes = [name for name in scores if name.startswith("label read from the style")]
    answers, commonest = readings.splits.test.label, np.bincount(readings.train_labels).argmax()
    chance = f"({np.mean(answers == commonest):.2f} is best)"
    assert len(probes) == 2 and all(chance in name for name in probes)
    real = np.asarray(classify.features(readings.splits.test.image / 255), np.float64)
    fake = np.asarray(classify.features(generated.image), np.float64)
    means = ((real.mean(axis=0) - fake.mean(axis=0)) ** 2).sum()
    assert scores["samples: Frechet distance"].value >= means
    assert {"samples: kernel distance", "samples: precision", "samples: recall"} <= set(scores)


def test_hidden_labels_train_the_judge_too(readings_of, judge, drawn):
    assessed(readings_of(unknown=("train",)), Options(0, True))
    assert (judge[0][1] >= 0).all() and len(judge[0][1]) == 60


def test_fracture_is_scored_where_the_code_is_all_style(readings_of, judge, drawn):
    readings = readings_of(**UNREGULARISED)
    scores, _ = assessed(readings, Options(0, True))
    kept = scores["neighbours that stay neighbours"]
    rows = readings.splits.test.image.reshape(80, -1) / 255

    def neighbours(points):
        distance = ((points[:, None] - points) ** 2).sum(axis=2)
        np.fill_diagonal(distance, np.inf)
        return np.argsort(distance, axis=1)[:, :10]

    both = zip(neighbours(rows), neighbours(readings.test["style"]), strict=True)
    assert kept.value == pytest.approx(np.mean([np.isin(a, b).mean() for a, b in both]), abs=2e-3)
    assert 0 <= scores["paths within a class that keep it"].value <= 1


@pytest.mark.parametrize("fields", [{}, EXPERIMENTS["E9"][0], EXPERIMENTS["E5"][0]])
def test_data_without_test_labels_are_judged_as_far_as_they_can_be(
    readings_of, judge, fields, drawn
):
    scores, _ = assessed(readings_of(**fields, unknown=("test",)), Options(0, True))
    assert {*CODES, RECONSTRUCTION, "samples: Frechet distance"} <= set(scores)
    assert MODE not in scores and "the judging classifier's own error" not in scores


@pytest.mark.parametrize("gone", [{"unknown": ("valid",)}, {"num_valid": 0}])
def test_clusters_that_no_validation_image_names_are_scored_without_names(readings_of, gone, drawn):
    scores, _ = assessed(readings_of(**CLUSTERS, **gone))
    assert set(scores) == {*CLUSTERING[2:], *CODES, RECONSTRUCTION}


# Drawings: what is handed to them


def test_the_manifold_has_low_codes_at_the_left_and_bottom(readings_of, drawn):
    readings = readings_of()
    assessed(readings)
    images = drawn["image_grid"][0][0]
    assert images.shape == (15, 15, 8, 8, 1)
    # The prior's median, and its percentiles of 1/30 and 29/30, of a standard deviation of 5.
    ends = 5 * 1.8339
    corners = {
        (0, 0): (-ends, ends),
        (0, 14): (ends, ends),
        (14, 0): (-ends, -ends),
        (7, 7): (0, 0),
    }
    for (row, column), code in corners.items():
        expected = readings.decode(np.float32([code]))[0]
        np.testing.assert_allclose(images[row, column], expected, atol=0.03)
    assert np.abs(images[0, 0] - images[14, 14]).max() > 0.1


def test_rows_hold_a_style_and_columns_a_label(readings_of, drawn):
    readings = readings_of(**EXPERIMENTS["E9"][0])
    assessed(readings)
    images, columns = drawn["image_grid"][0][0], drawn["image_grid"][1]["col_labels"]
    assert images.shape == (10, CLASSES, 8, 8, 1) and columns == ["0", "1", "2"]
    expected = readings.decode(readings.prior_samples[[4]], np.array([2]))[0]
    np.testing.assert_allclose(images[4, 2], expected, atol=1e-6)


def test_the_walk_follows_the_roll_outwards(readings_of, drawn):
    readings = readings_of(**EXPERIMENTS["E5"][0])
    assessed(readings)
    images = drawn["roll_walk"][0][0]
    assert images.shape == (10, 10, 8, 8, 1)
    for number in (0, 37, 99):
        root = np.sqrt(0.005 + 0.99 * number / 99)
        code = 3 * root * np.array([np.cos(4 * np.pi * root), np.sin(4 * np.pi * root)])
        expected = readings.decode(code[None].astype(np.float32))[0]
        np.testing.assert_allclose(images[number // 10, number % 10], expected, atol=1e-4)


def test_modes_are_walked_through_along_their_axes(readings_of, drawn):
    readings = readings_of(**{"style.prior": "petals(modes=3, distance=2, std_along=1)"})
    assessed(readings)
    images = drawn["mode_axes"][0][0]
    assert images.shape == (3, 2, 9, 8, 8, 1)
    middle = readings.decode(np.float32([[2, 0]]))[0]
    # Mode 0 lies on the first axis, at a distance of 2.
    np.testing.assert_allclose(images[0, 0, 4], middle, atol=0.03)
    np.testing.assert_allclose(images[0, 1, 4], middle, atol=0.03)
    ends = readings.decode(np.float32([[0, 0], [4, 0]]))
    found = images[0, 0, [0, 8]]
    assert min(np.abs(found - ends).max(), np.abs(found[::-1] - ends).max()) < 0.05


def test_samples_lie_over_their_nearest_training_images(readings_of, drawn):
    readings = readings_of()
    assessed(readings)
    shown, nearest, distances = drawn["samples_with_nearest"][0]
    np.testing.assert_array_equal(shown, readings.generated.image[:20])
    train = readings.splits.train.image / 255
    apart = np.sqrt(((shown[:, None] - train) ** 2).reshape(20, 60, -1).sum(axis=2))
    np.testing.assert_allclose(distances, apart.min(axis=1), rtol=1e-4)
    np.testing.assert_allclose(nearest, train[apart.argmin(axis=1)], atol=1e-6)


def test_heads_are_drawn_among_what_the_decoder_sees(readings_of, drawn):
    readings = readings_of(**HEADS)
    assessed(readings)
    codes, labels, heads = drawn["heads_scatter"][0]
    np.testing.assert_array_equal(heads, readings.state.params["cluster_heads"])
    shares = softmax(readings.test["label_logits"].astype(np.float64), axis=1)
    np.testing.assert_allclose(codes, shares @ heads + readings.test["style"], atol=1e-5)
    np.testing.assert_array_equal(labels, readings.splits.test.label)


def test_the_circle_has_each_head_in_its_place(readings_of, drawn):
    readings = readings_of(**EXPERIMENTS["E17"][0])
    assessed(readings)
    plane, labels = drawn["circle_map"][0]
    shares = softmax(readings.test["label_logits"].astype(np.float64), axis=1)
    codes = 10 * shares + readings.test["style"]
    angles = 2 * np.pi * np.arange(3) / 3
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(plane, codes @ circle / 10, atol=1e-5)
    np.testing.assert_array_equal(labels, readings.splits.test.label)


def test_codes_are_drawn_over_the_prior_with_their_labels(readings_of, drawn):
    readings = readings_of()
    assessed(readings)
    codes, labels, samples = drawn["code_scatter"][0]
    np.testing.assert_array_equal(codes, readings.test["style"])
    np.testing.assert_array_equal(labels, readings.splits.test.label)
    np.testing.assert_array_equal(samples, readings.prior_samples)
    panel = code_panel(readings, "A run")
    np.testing.assert_array_equal(panel.codes, codes)
    assert panel.title == "A run"


@pytest.mark.parametrize(
    ("experiment", "kind"), [("E9", "label"), ("E11", "label"), ("E13", "cluster")]
)
def test_columns_of_styles_are_called_what_they_are(readings_of, experiment, kind):
    fields = EXPERIMENTS[experiment][0]
    drawing = assessed(readings_of(**fields))[1]["styles_and_labels"]
    texts = [text.get_text() for text in drawing.figure.findobj(Text)]
    assert f"Style by row, {kind} by column" in texts
    assert drawing.caption.endswith(f"each column a {kind}.")
