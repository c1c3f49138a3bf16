import jax
import numpy as np
import pytest

from aae_jax.data import preprocessing
from aae_jax.data.sources import Arrays
from aae_jax.data.splits import Splits
from aae_jax.experiment import build
from aae_jax.readings import Readings

pytestmark = pytest.mark.usefixtures("quick_compilation")

CLASSES = 3
GIVEN = {"model.labels": CLASSES, "model.layout": "style_and_given_label"}
INFERRED = {"model.labels": CLASSES, "model.layout": "style_and_inferred_label"}
HEADS = {"model.labels": CLASSES, "model.layout": "cluster_heads"}


@pytest.fixture(scope="module")
def readings_of(random_weights, narrow_config, small_images):
    """Readings of an untrained experiment: (data's shape and type, samples, config fields)."""

    def read(shape=(4, 4, 1), dtype=np.uint8, num_samples=40, sizes=(30, 20, 25), **fields):
        config = narrow_config(**fields)
        train, valid, test = (small_images(n, n, shape, dtype) for n in sizes)
        hidden = Arrays(train.image, np.full_like(train.label, -1))
        splits = Splits(hidden, valid, test, np.zeros(0, np.int64), CLASSES)
        experiment = build(
            config, image_shape=shape, num_classes=CLASSES, num_examples=len(train[0])
        )
        state = jax.eval_shape(experiment.init, jax.random.key(0))
        params, batch_stats = random_weights(experiment.model.init)
        state = state.replace(params=params, batch_stats=batch_stats)
        if state.averaged_params is not None:
            halved = jax.tree.map(lambda leaf: 0.5 * leaf, params)
            state = state.replace(averaged_params={n: halved[n] for n in state.averaged_params})
        constants = preprocessing.fit(config.data.preprocessing, train.image)
        key = jax.random.key(4)
        return Readings(experiment, state, splits, train.label, constants, key, num_samples)

    return read


def dense(x, layer):
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def decoder_by_hand(params, code):
    hidden = np.maximum(dense(code, params["decoder"]["hidden"]["dense_0"]), 0)
    return dense(hidden, params["decoder"]["output"])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(logits):
    shares = np.exp(logits.astype(np.float64))
    return shares / shares.sum(axis=1, keepdims=True)


def styles(n, dim=2):
    return np.random.default_rng(n).normal(scale=2, size=(n, dim)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 999, 1000, 2001])
def test_any_number_of_codes_is_decoded(readings_of, n):
    readings = readings_of()
    style = styles(n)
    images = readings.decode(style)
    assert images.shape == (n, 4, 4, 1) and isinstance(images, np.ndarray)
    expected = sigmoid(decoder_by_hand(readings.state.params, style))
    np.testing.assert_allclose(images.reshape(n, 16), expected, atol=1e-5)


@pytest.mark.parametrize("fields", [GIVEN, INFERRED, HEADS], ids=lambda f: f["model.layout"])
def test_a_label_is_decoded_beside_its_style(readings_of, fields):
    readings = readings_of(**fields)
    assert readings.decoder_takes_label
    n = 1010
    style, label = styles(n), np.arange(n) % CLASSES
    params = readings.state.params
    if fields is HEADS:
        code = np.asarray(params["cluster_heads"])[label] + style
        np.testing.assert_array_equal(readings.cluster_heads, params["cluster_heads"])
    else:
        code = np.concatenate([style, np.eye(CLASSES)[label]], axis=1)
    images = readings.decode(style, label).reshape(n, 16)
    np.testing.assert_allclose(images, sigmoid(decoder_by_hand(params, code)), atol=1e-5)


def test_heads_may_be_fixed(readings_of):
    fields = {"model.labels": 2, "model.layout": "cluster_heads", "cluster_heads.fixed": 10.0}
    np.testing.assert_array_equal(readings_of(**fields).cluster_heads, [[10, 0], [0, 10]])


@pytest.mark.parametrize(
    "fields", [{}, GIVEN, INFERRED, HEADS], ids=["style", "given", "inferred", "heads"]
)
def test_decoded_codes_of_images_are_their_reconstructions(readings_of, fields):
    readings = readings_of(**fields)
    for name, codes in (("valid", readings.valid), ("test", readings.test)):
        label = getattr(readings.splits, name).label
        assert len(codes["style"]) == len(label)
        params, style = readings.state.params, codes["style"]
        if fields in ({}, GIVEN):
            found = readings.decode(style, None if not fields else label)
        elif fields is INFERRED:
            code = np.concatenate([style, softmax(codes["label_logits"])], axis=1)
            found = sigmoid(decoder_by_hand(params, code))
        else:
            code = style + softmax(codes["label_logits"]) @ readings.cluster_heads
            found = sigmoid(decoder_by_hand(params, code))
        np.testing.assert_allclose(
            found.reshape(len(label), 16),
            codes["reconstruction"].reshape(len(label), 16),
            atol=1e-5,
        )


def test_training_images_are_read_with_every_label_hidden_ones_too(readings_of):
    readings = readings_of(**GIVEN)
    assert (readings.splits.train.label == -1).all()
    codes = readings.train
    assert len(codes["style"]) == 30
    found = readings.decode(codes["style"], readings.train_labels)
    np.testing.assert_allclose(found, codes["reconstruction"], atol=1e-5)


def test_of_many_training_images_the_first_ten_thousand_are_read(readings_of):
    readings = readings_of(shape=(1, 1, 1), sizes=(10_100, 20, 25))
    assert len(readings.train["style"]) == 10_000
    few = readings_of(shape=(1, 1, 1), sizes=(10_100, 20, 25))
    few.splits = few.splits._replace(
        test=Arrays(readings.splits.train.image[:25], few.splits.test[1])
    )
    np.testing.assert_allclose(readings.train["style"][:25], few.test["style"], atol=1e-5)


def test_arrays_are_computed_once(readings_of, monkeypatch):
    readings, calls = readings_of(), []
    encode = readings._encode
    monkeypatch.setattr(readings, "_encode", lambda *args: calls.append(args) or encode(*args))
    assert readings.test is readings.test and readings.valid is readings.valid
    assert readings.generated is readings.generated
    assert readings.prior_samples is readings.prior_samples
    assert len(calls) == 2
    assert not np.array_equal(jax.random.key_data(calls[0][3]), jax.random.key_data(calls[1][3])), (
        "one key for two sets of images"
    )


def test_what_is_read_follows_from_the_key(readings_of):
    fields = {"model.posterior": "gaussian"}
    one, two = readings_of(**fields), readings_of(**fields)
    np.testing.assert_array_equal(one.test["style"], two.test["style"])
    np.testing.assert_array_equal(one.prior_samples, two.prior_samples)
    np.testing.assert_array_equal(one.generated.image, two.generated.image)


# The prior


def test_prior_samples_are_twice_as_many_and_follow_the_prior(readings_of):
    readings = readings_of(num_samples=2000)
    samples = readings.prior_samples
    assert samples.shape == (4000, 2)
    np.testing.assert_allclose(samples.std(axis=0), 5, rtol=0.05)
    np.testing.assert_allclose(samples.mean(axis=0), 0, atol=0.3)


@pytest.mark.parametrize(
    "fields", [{}, GIVEN, INFERRED, HEADS], ids=["style", "given", "inferred", "heads"]
)
def test_generated_images_are_decoded_from_the_prior_with_any_label(readings_of, fields):
    # So narrow a prior that every sample is its middle.
    narrow = {"style.prior": "affine(gaussian(2, std=0.00001), 1.0, shift=(2.0, -3.0))"}
    readings = readings_of(**fields, **narrow, num_samples=1203)
    images, label = readings.generated
    assert images.shape == (1203, 4, 4, 1) and label.shape == (1203,)
    middle = np.tile(np.float32([2, -3]), (1203, 1))
    if fields:
        counts = np.bincount(label, minlength=CLASSES)
        assert len(counts) == CLASSES and counts.min() > 300, "labels are drawn uniformly"
        np.testing.assert_allclose(images, readings.decode(middle, label), atol=1e-3)
    else:
        assert (label == -1).all()
        np.testing.assert_allclose(images, readings.decode(middle), atol=1e-3)


def test_generated_images_differ_with_the_key_and_in_number(readings_of):
    readings = readings_of()
    one, two = (readings.generate(jax.random.key(seed), 7).image for seed in (0, 1))
    assert one.shape == (7, 4, 4, 1)
    assert not np.array_equal(one, two)
    assert len(np.unique(one[:, 0, 0, 0])) == 7


# Units


def test_images_of_bytes_are_shown_and_decoded_between_0_and_1(readings_of):
    fields = {"data.preprocessing": "standardize", "decoder.output": "linear"}
    readings = readings_of(**fields)
    shown = readings.shown(readings.splits.test.image)
    np.testing.assert_allclose(shown, readings.splits.test.image / 255, rtol=1e-6)
    assert shown.dtype == np.float32
    train = readings.splits.train.image / 255
    style = 5 * styles(300)
    raw = decoder_by_hand(readings.state.params, style) * train.std() + train.mean()
    assert raw.min() < 0 and raw.max() > 1, "or there is nothing to clip"
    decoded = readings.decode(style)
    np.testing.assert_allclose(decoded.reshape(300, 16), raw.clip(0, 1), atol=1e-4)
    np.testing.assert_array_equal(readings.shown(decoded), decoded)


def test_images_of_floats_are_decoded_in_their_units_and_shown_over_their_range(readings_of):
    fields = {"data.preprocessing": "standardize_pixels", "decoder.output": "linear"}
    readings = readings_of(dtype=np.float32, **fields)
    stored = readings.splits.train.image
    low, high = stored.min(), stored.max()
    assert low < -4 and high > 15
    shown = readings.shown(stored)
    np.testing.assert_allclose(shown, (stored - low) / (high - low), atol=1e-5)
    assert shown.min() == 0 and shown.max() == 1
    beyond = readings.shown(np.float32([[low - 7, high + 7]]))
    np.testing.assert_array_equal(beyond, [[0, 1]])
    style = 5 * styles(300)
    raw = decoder_by_hand(readings.state.params, style).reshape(300, 4, 4, 1)
    raw = raw * stored.std(axis=0) + stored.mean(axis=0)
    np.testing.assert_allclose(readings.decode(style), raw, rtol=1e-3, atol=1e-3)


def test_images_without_contrast_are_shown(readings_of):
    readings = readings_of(
        dtype=np.float32, **{"data.preprocessing": "standardize", "decoder.output": "linear"}
    )
    flat = Arrays(np.full((3, 4, 4, 1), 2.0, np.float32), np.zeros(3, np.int32))
    readings.splits = readings.splits._replace(train=flat)
    assert np.isfinite(readings.shown(flat.image)).all()


def test_rows_of_a_table_are_no_images(readings_of):
    fields = {"data.preprocessing": "standardize_pixels", "decoder.output": "linear"}
    readings = readings_of(shape=(5,), dtype=np.float32, **fields)
    assert not readings.has_images and readings_of().has_images
    assert readings.decode(styles(3)).shape == (3, 5)
    assert readings.test["reconstruction"].shape == (25, 5)


def test_averaged_parameters_are_read_where_they_are_kept(readings_of):
    readings = readings_of(**HEADS, **{"train.averaging": 0.9})
    params = readings.state.params
    np.testing.assert_allclose(
        readings.cluster_heads, 0.5 * np.asarray(params["cluster_heads"]), rtol=1e-6
    )
    half = jax.tree.map(lambda leaf: 0.5 * leaf, params)
    style, label = styles(9), np.arange(9) % CLASSES
    expected = decoder_by_hand(half, style + np.asarray(half["cluster_heads"])[label])
    np.testing.assert_allclose(
        readings.decode(style, label).reshape(9, 16), sigmoid(expected), atol=1e-5
    )


def test_fitted_prior_has_the_moments_of_training_codes_and_leaves_the_rest(readings_of):
    readings = readings_of(num_samples=20_000, sizes=(400, 20, 25))
    codes = readings.train["style"]
    fitted = readings.with_fitted_prior()
    samples, spread = fitted.prior_samples, codes.std(axis=0)
    np.testing.assert_array_less(np.abs(samples.mean(axis=0) - codes.mean(axis=0)), 0.05 * spread)
    np.testing.assert_allclose(
        np.corrcoef(samples, rowvar=False), np.corrcoef(codes, rowvar=False), atol=0.03
    )
    np.testing.assert_allclose(samples.std(axis=0), spread, rtol=0.03)
    assert readings.experiment.style_prior is not fitted.experiment.style_prior
    assert not np.allclose(readings.prior_samples.std(axis=0), spread, rtol=0.2)
    np.testing.assert_array_equal(fitted.test["style"], readings.test["style"])
    # What is drawn comes from the fitted prior too.
    assert not np.array_equal(fitted.generated.image, readings.generated.image)
