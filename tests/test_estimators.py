"""Estimators: what they learn, what they keep, and what scikit-learn expects of them."""

import pickle
import tempfile
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import aae_jax
from aae_jax import AAEClassifier, AAEClusterer, AAETransformer, train
from aae_jax.workdir import WorkdirError

pytestmark = pytest.mark.usefixtures("quick_compilation")

N, CLASSES = 90, 3
NARROW = {"widths": (16,), "style_dim": 2, "steps": 1000, "batch_size": 32, "random_state": 1}
ESTIMATORS = (AAEClassifier, AAEClusterer, AAETransformer)


def narrow(kind, **changes):
    return kind(**{**NARROW, **changes})


clusterer = partial(narrow, AAEClusterer, n_clusters=CLASSES, random_state=0)


def table(seed=0):
    """Rows [N, 4] in three groups, the first rows of which are of all classes, and their groups."""
    rng = np.random.default_rng(seed)
    label = np.arange(N) % CLASSES
    centres = np.array([[4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0]])
    return centres[label] + rng.normal(scale=0.5, size=(N, 4)), label


def partly(label, known=9):
    return np.where(np.arange(N) < known, label, -1)


@pytest.fixture(scope="module")
def classifier():
    X, label = table()
    return narrow(AAEClassifier).fit(X, partly(label))


@pytest.fixture(scope="module")
def images():
    """Grey images [N, 6, 6], bright in the place that their class names, and classes."""
    rng = np.random.default_rng(0)
    label = np.arange(N) % CLASSES
    image = rng.integers(0, 60, (N, 6, 6)).astype(np.uint8)
    for row, place in enumerate(label):
        image[row, :, 2 * place : 2 * place + 2] += 180
    return image, label


@pytest.fixture(scope="module")
def transformer(images):
    return narrow(AAETransformer).fit(images[0])


# Learning


def test_the_classifier_learns_from_few_labels(classifier):
    X, label = table(seed=1)
    proba = classifier.predict_proba(X)
    assert proba.shape == (N, CLASSES)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    assert classifier.score(X, label) > 0.95
    np.testing.assert_array_equal(classifier.predict(X), proba.argmax(axis=1))


def test_a_label_may_be_anything_and_minus_one_is_none(classifier):
    X, label = table()
    names = np.array(["b", "a", "c"], dtype=object)[label]
    y = np.where(partly(label) < 0, -1, names)
    named = narrow(AAEClassifier).fit(X, y)
    assert named.classes_.tolist() == ["a", "b", "c"]
    assert (named.predict(X) == names).mean() > 0.85


def test_rows_without_a_label_are_not_scored(classifier):
    X, label = table(seed=1)
    wrong = np.where(np.arange(N) < 30, (label + 1) % CLASSES, label)
    assert classifier.score(X, np.where(wrong == label, label, -1)) > 0.95
    weight = (np.arange(N) < 30).astype(float)
    assert classifier.score(X, wrong, sample_weight=weight) < 0.05


def test_features_are_standardized(classifier):
    X, label = table()
    scale = np.array([1, 1024, 1, 1 / 64])  # powers of two: no bit is rounded
    scaled = clone(classifier).fit(X * scale, partly(label))
    new = table(seed=1)[0]
    np.testing.assert_array_equal(scaled.predict_proba(new * scale), classifier.predict_proba(new))
    constants = classifier.model_.preprocessing
    np.testing.assert_allclose(constants.shift, X.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(constants.scale, X.std(axis=0), rtol=1e-5)


def test_the_clusterer_finds_groups():
    X, label = table()
    found = clusterer().fit(X)
    assert adjusted_rand_score(found.labels_, label) > 0.9
    np.testing.assert_array_equal(found.predict(X), found.labels_)


def test_the_transformer_leads_to_codes_and_back(transformer, images):
    image, _ = images
    codes = transformer.transform(image)
    assert codes.shape == (N, 2) and codes.dtype == np.float32
    # The prior has a standard deviation of 1.
    assert 0.4 < codes.std() < 2
    again = transformer.inverse_transform(codes)
    assert again.shape == image.shape and again.min() >= 0 and again.max() <= 1
    plain = np.square(image / 255 - image.mean(axis=0) / 255).mean()
    assert np.square(again - image / 255).mean() < 0.5 * plain
    assert transformer.get_feature_names_out().tolist() == ["aaetransformer0", "aaetransformer1"]


def test_a_prior_is_chosen_by_its_name(images):
    found = narrow(AAETransformer, prior="uniform(2, low=-3.0, high=3.0)", steps=1).fit(images[0])
    assert found.model_.prior.log_prob(jnp.zeros(2)) == pytest.approx(-np.log(36), abs=1e-4)


# What is kept


def test_the_same_seed_gives_the_same_bits_and_compiles_nothing_again(classifier):
    X, label = table()
    compiled = train._mapped.cache_info().misses
    again, other = clone(classifier), clone(classifier).set_params(random_state=2)
    proba = classifier.predict_proba(X)
    np.testing.assert_array_equal(again.fit(X, partly(label)).predict_proba(X), proba)
    assert not np.array_equal(other.fit(X, partly(label)).predict_proba(X), proba)
    assert train._mapped.cache_info().misses == compiled


def test_a_fitted_estimator_pickles_and_needs_no_folder(tmp_path, monkeypatch, classifier):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    X, label = table()
    found = clone(classifier).fit(X, partly(label))
    assert not list(tmp_path.iterdir())
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.predict_proba(X), found.predict_proba(X))
    assert again.model_.config == found.model_.config


def test_an_estimator_that_is_not_fitted_says_so():
    for kind, name in (
        (AAEClassifier, "predict"),
        (AAEClassifier, "predict_proba"),
        (AAEClassifier, "score"),
        (AAEClusterer, "predict"),
        (AAETransformer, "transform"),
        (AAETransformer, "inverse_transform"),
    ):
        given = (X, LABEL) if name == "score" else (X,)
        with pytest.raises(NotFittedError):
            getattr(kind(), name)(*given)


def test_a_workdir_keeps_the_run(tmp_path, capsys, classifier):
    X, label = table()
    kept = clone(classifier).set_params(workdir=tmp_path / "run").fit(X, partly(label))
    np.testing.assert_array_equal(kept.predict_proba(X), classifier.predict_proba(X))
    assert "step 1000/1000" in capsys.readouterr().out
    model = aae_jax.load(tmp_path / "run")
    np.testing.assert_array_equal(model.classify(X.astype(np.float32)), classifier.predict_proba(X))
    metrics = (tmp_path / "run" / "metrics.csv").read_bytes()
    again = clone(kept).fit(X, partly(label))
    np.testing.assert_array_equal(again.predict_proba(X), kept.predict_proba(X))
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == metrics, "not trained anew"
    with pytest.raises(WorkdirError, match=r"data\.source"):
        clone(kept).fit(X + 1, partly(label))
    with pytest.raises(WorkdirError, match=r"data\.source"):
        clone(kept).fit(X, partly(label, known=12))


def test_any_field_of_the_config_can_be_set():
    found = AAEClassifier(config={"train.averaging": 0.9, "encoder.widths": [8, 8]})
    config = found._config(np.zeros((5, 2), np.float32), np.array([0, 1, -1, 0, 1], np.int32))
    assert config.train.averaging == 0.9 and config.encoder.widths == (8, 8)
    assert config.train.batch_size == 5 and config.train.labelled_batch_size == 4


# Among scikit-learn's tools


def test_a_table_goes_through_a_pipeline_and_cross_validation():
    X, label = table()
    pipeline = make_pipeline(StandardScaler(), narrow(AAEClassifier))
    assert cross_val_score(pipeline, X, partly(label, known=45), cv=3).mean() > 0.9


def test_images_are_cross_validated(images):
    assert cross_val_score(narrow(AAEClassifier), *images, cv=2).mean() > 0.9


# Faults


def changed(array, row, value):
    array = np.array(array, float)
    array[row] = value
    return array


X, LABEL = table()


@pytest.mark.parametrize(
    ("X", "y", "parameters", "message"),
    [
        (X, np.full(N, -1), {}, r"y: 0 of 90 rows have a label .* two classes or more"),
        (X, np.where(LABEL == 0, 0, -1), {}, r"y: 30 of 90 rows .* of 1 class; give labels of two"),
        (X, LABEL + 0.5, {}, "Unknown label type: continuous"),
        (X, None, {}, "requires y"),
        (X[:1], LABEL[:1], {}, "1 sample"),
        (changed(X, 3, np.nan), LABEL, {}, "contains NaN"),
        (X, LABEL[:5], {}, "inconsistent numbers of samples"),
        (X, LABEL, {"steps": 0}, "steps is 0; allowed: a whole number, 1 or more"),
        (X, LABEL, {"batch_size": 2.5}, "batch_size is 2.5; allowed: a whole number"),
        (X, LABEL, {"widths": (0,)}, r"encoder.widths is \(0,\); allowed"),
        (X, LABEL, {"widths": 64}, "widths is 64; allowed: one number for each hidden layer"),
        (X, np.array(["-1", "a", "b"])[LABEL], {}, "y: .* unknown is the number -1"),
        (np.zeros((9, 2, 2, 2, 1)), LABEL[:9], {}, r"X: \[9, 2, 2, 2, 1\]; allowed: rows"),
        (X, LABEL, {"prior": "gaussian(3)"}, "has 3 dimensions, model.style_dim is 2"),
        (X, LABEL, {"config": {"train.epoch": 1.0}}, "did you mean train.epochs"),
        (X, LABEL, {"random_state": "x"}, "cannot be used to seed"),
    ],
)
def test_what_cannot_be_used_is_named(X, y, parameters, message):
    with pytest.raises(ValueError, match=message):
        narrow(AAEClassifier, **parameters).fit(X, y)


def test_rows_of_another_shape_are_refused(classifier, transformer, images):
    with pytest.raises(ValueError, match="expecting 4 features"):
        classifier.predict(X[:, :3])
    with pytest.raises(ValueError, match=r"expected uint8 or float \[n, 6, 6, 1\]"):
        transformer.transform(images[0][:, :, :5])
    with pytest.raises(ValueError, match=r"style: .* expected float \[n, 2\]"):
        transformer.inverse_transform(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="n_clusters is 0; allowed: a whole number, 1 or more"):
        clusterer(n_clusters=0).fit(X)


def test_arrays_are_no_source_for_the_command_line():
    with pytest.raises(aae_jax.data.DataError, match=r"were given to `fit`.*npz:FILE"):
        aae_jax.data.load("arrays:0123")


# scikit-learn's own checks, one by one


# By check: why it fails.
_MARK = "-1 marks a row without a label, as in sklearn.semi_supervised; it cannot name a class"
EXPECTED_FAILURES = {AAEClassifier: {"check_classifiers_classes": _MARK}}


def checked_instances():
    return [narrow(AAEClassifier), clusterer(), narrow(AAETransformer)]


def expected_failures(estimator):
    return EXPECTED_FAILURES.get(type(estimator), {})


@pytest.mark.checks
@parametrize_with_checks(checked_instances(), expected_failed_checks=expected_failures)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
