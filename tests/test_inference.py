import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aae_jax
from aae_jax import checkpoints
from aae_jax.config import base
from aae_jax.data import DataError, description, preprocessing
from aae_jax.data.splits import Splits
from aae_jax.experiment import build
from aae_jax.inference import BLOCK, InferenceError, load
from aae_jax.randomness import named
from aae_jax.readings import Readings
from aae_jax.recording import read_metrics
from aae_jax.train import prepare, train
from aae_jax.workdir import DESCRIPTION, PREPROCESSING, WorkdirError, claim, locked

pytestmark = pytest.mark.usefixtures("quick_compilation")

CLASSES = 3
STYLE = {}
GIVEN = {"model.labels": CLASSES, "model.layout": "style_and_given_label"}
CLUSTERS = {
    "model.labels": CLASSES,
    "model.layout": "style_and_inferred_label",
    "encoder.widths": (24,),
}
THREE_PHASES = {"phases": ("reconstruction", "regularization", "classification")}
CLASSIFIED = {**CLUSTERS, **THREE_PHASES}
HEADS = {"model.labels": CLASSES, "model.layout": "cluster_heads"}
CLASSIFIED_HEADS = {**HEADS, **THREE_PHASES}
STANDARDIZED = {"data.preprocessing": "standardize_pixels", "decoder.output": "linear"}
BERNOULLI = {"decoder.output": "bernoulli"}
GAUSSIAN = {"model.posterior": "gaussian"}
UNIVERSAL = {
    "model.posterior": "universal",
    "model.noise_dim": 2,
    "encoder.widths": (24,),
}
AVERAGED = {"train.averaging": 0.9}
NO_CRITIC = {"phases": ("reconstruction",), "style.divergence": ""}
CLASSIFIER = {"phases": ("classification",), "style.divergence": "", "model.labels": CLASSES}

EVERY = {
    "style": STYLE,
    "given": GIVEN,
    "clusters": CLUSTERS,
    "classified": CLASSIFIED,
    "heads": HEADS,
    "classified heads": CLASSIFIED_HEADS,
    "standardized": STANDARDIZED,
    "bernoulli": BERNOULLI,
    "gaussian": GAUSSIAN,
    "universal": UNIVERSAL,
    "averaged": AVERAGED,
    "averaged heads": {**HEADS, **AVERAGED},
    "batch norm": {"encoder.batch_norm": True, "decoder.batch_norm": True},
}


@pytest.fixture(scope="module")
def saved(random_weights, narrow_config, small_images, tmp_path_factory):
    """Folders of runs with random weights, whose data are nowhere: (**fields) -> Readings."""

    def save(shape=(4, 4, 1), dtype=np.uint8, steps=(7,), **fields):
        config = narrow_config(**{"data.source": "npz:/gone.npz", **fields})
        parts = [small_images(n, n, shape, dtype) for n in (30, 20, 160)]
        splits = Splits(*parts, np.arange(30), CLASSES)
        experiment = build(config, image_shape=shape, num_classes=CLASSES, num_examples=30)
        state = jax.eval_shape(experiment.init, jax.random.key(0))
        weights, stats = random_weights(experiment.model.init, 0.8)
        stats = jax.tree.map(lambda x: x + 0.5, stats)
        state = state.replace(
            step=jnp.int32(7), params=weights, batch_stats=stats, opt_states={}, key=jnp.zeros(2)
        )
        if state.averaged_params is not None:
            halved = jax.tree.map(lambda leaf: 0.5 * leaf, weights)
            state = state.replace(averaged_params={n: halved[n] for n in state.averaged_params})
        folder = tmp_path_factory.mktemp("run")
        claim(folder, config)
        constants = preprocessing.fit(config.data.preprocessing, parts[0].image)
        preprocessing.save(constants, folder / PREPROCESSING)
        description.save(description.describe(splits), folder / DESCRIPTION)
        with checkpoints.open_checkpoints(folder / "checkpoints") as manager:
            for step in steps:
                scaled = jax.tree.map(lambda leaf, s=step: leaf * s / steps[-1], state.params)
                checkpoints.save(manager, step, state.replace(params=scaled))
            checkpoints.close(manager)
        key, labels = jax.random.key(4), parts[0].label
        readings = Readings(experiment, state, splits, labels, constants, key, 40)
        return folder, readings

    made = {}

    def remembered(**fields):
        name = repr(sorted(fields.items()))
        if name not in made:
            made[name] = save(**fields)
        return made[name]

    remembered.anew = save
    return remembered


@pytest.fixture(scope="module")
def loaded(saved):
    """(**fields) -> (Trained, Readings) of the same weights."""
    made = {}

    def load_once(**fields):
        folder, readings = saved(**fields)
        if folder not in made:
            made[folder] = load(folder)
        return made[folder], readings

    return load_once


@pytest.fixture(scope="module")
def digits(narrow_config, tmp_path_factory):
    """A short run on the digits, on four devices: (folder, run, last state)."""
    config = narrow_config(
        **{
            "model.labels": 10,
            "model.layout": "style_and_inferred_label",
            **THREE_PHASES,
            "train.averaging": 0.9,
            "train.epochs": 3.0,
            "train.chunk_steps": 12,
            "encoder.init": "he_normal()",
            "decoder.init": "he_normal()",
            "encoder.widths": (32,),
            "decoder.widths": (32,),
            "optimizers.classifier.name": "adam",
            "optimizers.classifier.learning_rate": 0.01,
            "optimizers.classifier.momentum": 0.9,
        }
    )
    folder = tmp_path_factory.mktemp("runs") / "runs" / "digits"
    run = prepare(config)
    with locked(folder):
        claim(folder, config)
        outcome = train(run, folder, say=lambda line: None)
    return folder, run, outcome.state


def softmax(logits):
    shares = np.exp(logits.astype(np.float64))
    return shares / shares.sum(axis=1, keepdims=True)


def refusal(action, *args, error=InferenceError, **kwargs):
    with pytest.raises(error) as caught:
        action(*args, **kwargs)
    line = str(caught.value)
    assert "\n" not in line
    return line


def close(found, expected, atol=2e-5):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=atol)


# What a model says is what the report says of it


@pytest.mark.parametrize("fields", EVERY.values(), ids=EVERY)
def test_a_loaded_model_agrees_with_the_readings_of_its_run(loaded, fields):
    model, readings = loaded(**fields)
    image, label = readings.splits.test
    codes, key = readings.test, named(readings.key, "test")
    given = label if fields is GIVEN else None
    style, inferred = model.encode(image, key)
    close(style, codes["style"])
    if "label_logits" in codes:
        close(inferred, softmax(codes["label_logits"]))
    else:
        assert inferred is None
    shown = np.clip(codes["reconstruction"], 0, 1)
    close(model.reconstruct(image, given, key), shown)
    close(model.anomaly_score(image, given, key), codes["error"], atol=1e-3)
    seen = given if inferred is None else inferred
    close(model.decode(style, seen), shown)


def dense(x, layer):
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


@pytest.mark.parametrize("fields", [STANDARDIZED, {**STANDARDIZED, **AVERAGED}])
def test_a_model_is_what_its_weights_and_constants_say(loaded, fields):
    """By hand: the readings share their code with the library."""
    model, readings = loaded(**fields)
    nets = readings.state.averaged_params or readings.state.params
    pixels = readings.splits.train.image.reshape(30, 16) / 255
    mean, std = pixels.mean(axis=0), pixels.std(axis=0)
    image = readings.splits.test.image
    x = (image.reshape(-1, 16) / 255 - mean) / std
    style = dense(
        np.maximum(dense(x, nets["encoder"]["trunk"]["dense_0"]), 0), nets["encoder"]["style"]
    )
    hidden = np.maximum(dense(style, nets["decoder"]["hidden"]["dense_0"]), 0)
    output = dense(hidden, nets["decoder"]["output"])
    close(model.encode(image).style, style, atol=1e-4)
    decoded = np.clip(output * std + mean, 0, 1)
    close(model.reconstruct(image).reshape(-1, 16), decoded, atol=1e-4)
    assert fields is not STANDARDIZED or 0.05 < (decoded == output * std + mean).mean() < 0.95
    close(model.anomaly_score(image), 0.5 * ((output - x) ** 2).sum(axis=1), atol=1e-3)


@pytest.mark.parametrize("fields", [STYLE, GIVEN, CLUSTERS, HEADS, STANDARDIZED])
def test_decoded_codes_are_those_of_the_readings(loaded, fields):
    model, readings = loaded(**fields)
    style = np.random.default_rng(0).normal(scale=5, size=(300, 2)).astype(np.float32)
    label = np.arange(300) % CLASSES if readings.decoder_takes_label else None
    close(model.decode(style, label), readings.decode(style, label))
    if label is not None:
        close(model.decode(style, 1), readings.decode(style, np.ones(300, int)))
        close(model.decode(jnp.asarray(style), jnp.asarray(label)), model.decode(style, label))
        one_hot = np.eye(CLASSES)[label]
        np.testing.assert_array_equal(model.decode(style, one_hot), model.decode(style, label))


def test_a_given_label_takes_the_place_of_the_inferred_one(loaded):
    model, readings = loaded(**CLUSTERS)
    image = readings.splits.test.image
    style = model.encode(image).style
    close(model.reconstruct(image, 2), readings.decode(style, np.full(len(image), 2)))
    assert np.abs(model.reconstruct(image, 2) - model.reconstruct(image)).max() > 1e-3


@pytest.mark.parametrize("fields", [CLASSIFIED, CLASSIFIED_HEADS, CLASSIFIER])
def test_classes_are_probabilities(loaded, fields):
    model, readings = loaded(**fields)
    image = readings.splits.test.image
    probabilities = model.classify(image)
    assert probabilities.shape == (len(image), CLASSES)
    close(probabilities, softmax(readings.test["label_logits"]))


@pytest.mark.parametrize("fields", [CLUSTERS, HEADS])
def test_a_cluster_is_the_likeliest_one(loaded, fields):
    model, readings = loaded(**fields)
    found = model.cluster(readings.splits.test.image)
    assert len(set(found)) > 1
    np.testing.assert_array_equal(found, readings.test["label_logits"].argmax(axis=1))


def test_float_data_keep_their_units_and_are_not_clipped(loaded):
    model, readings = loaded(shape=(5,), dtype=np.float32, **STANDARDIZED)
    image = readings.splits.test.image
    assert image.max() > 10 and image.min() < -4
    close(model.reconstruct(image), readings.test["reconstruction"], atol=1e-4)
    assert model.reconstruct(image).max() > 1
    close(model.encode(image.astype(np.float64)).style, readings.test["style"])
    line = refusal(model.encode, np.zeros((2, 5), np.uint8))
    assert "uint8 [2, 5]" in line and "float [n, 5] in the data's units" in line


@pytest.mark.parametrize("fields", [STYLE, STANDARDIZED])
def test_images_come_in_any_type_of_the_data_units(loaded, fields):
    model, readings = loaded(**fields)
    image = readings.splits.test.image
    expected = model.encode(image).style
    scaled = image / 255
    for same in (jnp.asarray(image), scaled, scaled.astype(np.float32), jnp.asarray(scaled)):
        close(model.encode(same).style, expected)
    close(model.encode(scaled.astype(np.float16)).style, expected, atol=0.02)
    close(model.encode(jnp.asarray(scaled, jnp.bfloat16)).style, expected, atol=0.1)


# Any number of examples


@pytest.mark.parametrize("fields", [STYLE, GAUSSIAN, CLUSTERS])
def test_an_example_gives_the_same_bits_alone_and_among_others(loaded, small_images, fields):
    model, _ = loaded(**fields)
    image = small_images(1001, 1001).image
    calls = {
        "style": lambda x: model.encode(x).style,
        "reconstruct": model.reconstruct,
        "anomaly_score": model.anomaly_score,
        "sample": lambda x: model.sample(jax.random.key(1), len(x)),
    }
    if fields is CLUSTERS:
        calls["cluster"] = model.cluster
    for name, call in calls.items():
        whole = call(image)
        assert len(whole) == 1001 and isinstance(whole, np.ndarray), name
        assert len(np.unique(whole.reshape(1001, -1), axis=0)) > (1 if name == "cluster" else 600)
        for n in (0, 1, 7, BLOCK, BLOCK + 1, 1000):
            part = call(image[:n])
            assert part.dtype == whole.dtype
            np.testing.assert_array_equal(part, whole[:n], err_msg=f"{name} of {n}")


def test_nothing_is_compiled_anew_for_another_number(saved, small_images):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        model, image = load(saved(**CLASSIFIED)[0]), small_images(700, 700).image

        def use(n):
            model.encode(image[:n])
            model.reconstruct(image[:n])
            model.classify(image[:n])
            model.anomaly_score(image[:n])
            model.sample(jax.random.key(0), n)
            model.sample(jax.random.key(0), n, mode=1)
            model.interpolate(image[0], image[1], max(n, 2))

        use(3)
        assert compiled, "compilations are not heard of"
        compiled.clear()
        for n in (0, 1, 100, BLOCK, 555, 700):
            use(n)
        assert not compiled
    finally:
        jax.monitoring.clear_event_listeners()


def test_many_threads_get_what_one_gets(saved):
    folder, readings = saved(**CLASSIFIED)
    model, image = load(folder), readings.splits.test.image

    def use(i):
        n = 1 + 5 * i % len(image)
        key = jax.random.key(i)
        return (
            model.encode(image[:n]).style,
            model.classify(image[-n:]),
            model.sample(key, n),
            model.anomaly_score(image[:n]),
            model.reconstruct(image[-n:]),
            model.decode(model.encode(image[:n]).style, i % CLASSES),
            model.interpolate(image[0], image[-1], 1 + n),
        )

    with ThreadPoolExecutor(32) as pool:  # nothing is compiled yet
        together = list(pool.map(use, range(64)))
    for found, expected in zip(together, map(use, range(64)), strict=True):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


# Randomness


@pytest.mark.parametrize("fields", [GAUSSIAN, UNIVERSAL])
def test_a_random_posterior_follows_from_the_key(loaded, small_images, fields):
    model, _ = loaded(**fields)
    same = np.repeat(small_images(1, 1).image, 300, axis=0)
    style = model.encode(same).style
    np.testing.assert_array_equal(style, model.encode(same, jax.random.key(0)).style)
    # Of a universal approximator some noise ends in units that are off.
    other = model.encode(same, jax.random.key(1)).style
    assert (style != other).mean() > 0.8
    assert len(np.unique(style[:, 0])) > 100, "examples share their noise"
    raw = jax.random.PRNGKey(5)
    np.testing.assert_array_equal(
        model.encode(same, raw).style, model.encode(same, jax.random.key(5)).style
    )
    for call in (model.reconstruct, model.anomaly_score):
        assert np.abs(call(same) - call(same, key=jax.random.key(1))).max() > 0


# Samples


def test_samples_are_decoded_from_the_prior(loaded):
    narrow = {"style.prior": "affine(gaussian(2, std=0.00001), 1.0, shift=(2.0, -3.0))"}
    for fields in (STYLE, STANDARDIZED):
        model, _ = loaded(**fields, **narrow)
        middle = model.decode(np.float32([[2, -3]]))
        close(model.sample(jax.random.key(0), 3), np.repeat(middle, 3, axis=0), atol=1e-3)
        assert model.prior.dim == 2


def test_samples_of_a_mode_are_of_that_mode(loaded):
    model, _ = loaded(**{"style.prior": "grid(side=3, spacing=4.0, std=0.0001)"})
    assert model.prior.num_modes == 9
    for mode in (0, 4, 8):
        middle = np.asarray(model.prior.sample_mode(jax.random.key(9), mode))[None]
        found = model.sample(jax.random.key(mode), 4, mode=mode)
        close(found, np.repeat(model.decode(middle), 4, axis=0), atol=2e-3)
    every = model.sample(jax.random.key(0), 200).reshape(200, -1).round(2)
    assert len(np.unique(every, axis=0)) >= 9


@pytest.mark.parametrize("fields", [GIVEN, CLUSTERS, HEADS])
def test_the_mode_of_a_model_with_labels_is_the_label(loaded, fields):
    narrow = {"style.prior": "affine(gaussian(2, std=0.00001), 1.0, shift=(2.0, -3.0))"}
    model, _ = loaded(**fields, **narrow)
    decoded = model.decode(np.tile(np.float32([2, -3]), (CLASSES, 1)), np.arange(CLASSES))
    for label in range(CLASSES):
        found = model.sample(jax.random.key(0), 3, mode=label)
        close(found, np.repeat(decoded[label][None], 3, axis=0), atol=1e-3)
    drawn = model.sample(jax.random.key(0), 300)
    nearest = np.abs(drawn[:, None] - decoded[None]).reshape(300, CLASSES, -1).max(axis=2)
    assert nearest.min(axis=1).max() < 1e-3
    assert np.bincount(nearest.argmin(axis=1), minlength=CLASSES).min() > 60


def test_a_sample_draws_its_style_and_its_label_apart(loaded):
    corners = {
        "model.style_dim": CLASSES,
        "style.prior": f"categorical({CLASSES})",
        "decoder.widths": (24,),
    }
    model, _ = loaded(**GIVEN, **corners)
    drawn = model.sample(jax.random.key(0), 300).reshape(300, -1)
    assert len(np.unique(drawn.round(5), axis=0)) == CLASSES**2


def test_samples_follow_from_the_key_and_differ(loaded):
    model, _ = loaded(**GIVEN)
    one, same, other = (model.sample(jax.random.key(seed), 50) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01
    assert one.shape == (50, 4, 4, 1) and one.min() >= 0 and one.max() <= 1


# Interpolations


@pytest.mark.parametrize("fields", [STYLE, CLUSTERS, HEADS, GAUSSIAN, STANDARDIZED])
def test_an_interpolation_is_a_straight_line_of_codes(loaded, fields):
    model, readings = loaded(**fields)
    a, b = readings.splits.test.image[:2]
    line = model.interpolate(a, b, 5)
    assert line.shape == (5, 4, 4, 1)
    np.testing.assert_array_equal(line[0], model.reconstruct(a[None])[0])
    np.testing.assert_array_equal(line[4], model.reconstruct(b[None])[0])
    first, last = model.encode(a[None]), model.encode(b[None])
    quarter = [None if x is None else 0.75 * x + 0.25 * y for x, y in zip(first, last, strict=True)]
    close(line[1], model.decode(*quarter)[0])
    close(model.interpolate(a / 255, jnp.asarray(b), 5), line)


def test_an_interpolation_keeps_a_given_label(loaded):
    model, readings = loaded(**GIVEN)
    a, b = readings.splits.test.image[:2]
    np.testing.assert_array_equal(
        model.interpolate(a, b, 2, label=2), model.reconstruct(np.stack([a, b]), 2)
    )
    assert "label: missing" in refusal(model.interpolate, a, b, 2)


# Arguments that cannot be used


IMAGE = np.zeros((3, 4, 4, 1), np.uint8)
NAN = np.zeros((3, 4, 4, 1), np.float32)
NAN[1, 2, 2, 0] = np.nan
BAD_IMAGES = {
    "single": (IMAGE[0], "uint8 [4, 4, 1]", "image[None]"),
    "no channel": (IMAGE[..., 0], "uint8 [3, 4, 4]", "uint8 or float [n, 4, 4, 1] in 0..1"),
    "other size": (np.zeros((3, 4, 5, 1), np.uint8), "[3, 4, 5, 1]", "[n, 4, 4, 1]"),
    "flat": (np.zeros((3, 16), np.uint8), "[3, 16]", "[n, 4, 4, 1]"),
    "number": (np.float32(3), "float32", "[n, 4, 4, 1]"),
    "whole numbers": (IMAGE.astype(np.int64), "int64", "uint8 or float"),
    "booleans": (IMAGE.astype(bool), "bool", "uint8 or float"),
    "objects": (IMAGE.astype(object), "object", "uint8 or float"),
    "complex": (IMAGE.astype(complex), "complex128", "uint8 or float"),
    "list": (IMAGE.tolist(), "a list", "NumPy or JAX array"),
    "none": (None, "a NoneType", "NumPy or JAX array"),
    "text": ("digits.png", "a str", "NumPy or JAX array"),
    "masked": (np.ma.masked_array(IMAGE, IMAGE == 0), "a MaskedArray", "NumPy or JAX array"),
    "NaN": (NAN, "number 1 holds NaN", "[n, 4, 4, 1]"),
    "infinite": (jnp.asarray(np.where(np.isnan(NAN), np.inf, 0)), "number 1", "in 0..1"),
    "too large": (np.where(np.isnan(NAN), 1e300, 0), "number 1", "in 0..1"),
    "0..255": (IMAGE + np.float32(255), "values range over 255..255", "in 0..1"),
    "negative": (IMAGE - np.float32(0.5), "-0.5..-0.5", "in 0..1"),
}


@pytest.mark.parametrize(("images", "given", "expected"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_images_that_cannot_be_used_are_named(loaded, images, given, expected):
    model, _ = loaded(**CLASSIFIED)
    for call in (model.encode, model.reconstruct, model.classify, model.anomaly_score):
        line = refusal(call, images)
        assert line.startswith("images: ") and given in line and expected in line
    if getattr(images, "shape", None) != (4, 4, 1):
        assert refusal(model.interpolate, IMAGE[0], images, 3).startswith("b: ")


def test_an_interpolation_is_between_single_images(loaded):
    model, _ = loaded(**STYLE)
    line = refusal(model.interpolate, IMAGE, IMAGE[0], 3)
    assert line.startswith("a: uint8 [3, 4, 4, 1]; expected uint8 or float [4, 4, 1]")
    for steps in (1, 0, -3, 2.0, "3", True, None):
        line = refusal(model.interpolate, IMAGE[0], IMAGE[0], steps)
        assert line == f"steps is {steps!r}; allowed: a whole number, 2 or more"


STYLES = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("style", "given"),
    [
        (STYLES[0], "float32 [2]"),
        (np.zeros((3, 3)), "float64 [3, 3]"),
        (STYLES.astype(int), "int64 [3, 2]"),
        (STYLES + np.nan, "number 0 holds NaN"),
        ([[0.0, 0.0]], "a list"),
    ],
)
def test_styles_that_cannot_be_used_are_named(loaded, style, given):
    line = refusal(loaded(**STYLE)[0].decode, style)
    assert line.startswith("style: ") and given in line and "float [n, 2]" in line


@pytest.mark.parametrize(
    ("label", "given"),
    [
        (None, "missing; this run's decoder sees one of 3"),
        (3, "label is 3; allowed: a whole number, 0 to 2"),
        (-1, "label is -1"),
        (1.0, "label is 1.0"),
        (True, "label is True"),
        ("1", "label is '1'"),
        ([0, 1, 2], "label is [0, 1, 2]"),
        (np.array([0, 1]), "int64 [2]; expected whole numbers [3] from 0 to 2"),
        (np.array([0, 1, 3]), "values range over 0..3"),
        (np.array([-1, 1, 2]), "values range over -1..2"),
        (np.array([True, False, True]), "bool [3]"),
        (np.array([0.0, 1.0, 2.0]), "float64 [3]; expected whole numbers or distributions [3, 3]"),
        (np.full((3, 3), 0.5), "rows are no distributions"),
        (np.array([[2, -1, 0.0]] * 3), "rows are no distributions"),
        (np.full((3, 3), np.nan), "number 0 holds NaN"),
    ],
)
@pytest.mark.parametrize("fields", [GIVEN, CLUSTERS, HEADS])
def test_labels_that_cannot_be_used_are_named(loaded, fields, label, given):
    model, _ = loaded(**fields)
    line = refusal(model.decode, STYLES, label)
    assert line.startswith("label") and given in line
    if fields is GIVEN:
        assert "classes" in line or "NaN" in line
        refusal(model.reconstruct, IMAGE, label)
        refusal(model.anomaly_score, IMAGE, label)


def test_a_label_that_is_not_used_is_refused(loaded):
    model, _ = loaded(**STYLE)
    assert "sees the style alone" in refusal(model.decode, STYLES, 1)
    assert "sees the style alone" in refusal(model.reconstruct, IMAGE, 1)
    for fields in (STYLE, CLUSTERS):
        assert "give none" in refusal(loaded(**fields)[0].anomaly_score, IMAGE, 1)


def test_samples_that_cannot_be_drawn_are_named(loaded):
    key = jax.random.key(0)
    model, _ = loaded(**{"style.prior": "petals(modes=5)"})
    for n in (-1, 2.5, "3", True, 10**30):
        line = refusal(model.sample, key, n)
        assert line == f"n is {n!r}; allowed: a whole number, 0 to {2**31 - 1}"
    for mode in (5, -1, 1.0):
        line = refusal(model.sample, key, 3, mode)
        assert line == f"mode is {mode!r}; allowed: a whole number, 0 to 4 (modes)"
    assert "0 to 2 (classes)" in refusal(loaded(**GIVEN)[0].sample, key, 3, mode=3)
    assert "0 to 2 (clusters)" in refusal(loaded(**HEADS)[0].sample, key, 3, mode=3)
    line = refusal(loaded(**{"style.prior": "laplace(2)"})[0].sample, key, 3, mode=1)
    assert line == "mode is 1; allowed: a whole number, 0 to 0 (modes)"


def test_keys_that_cannot_be_used_are_named(loaded):
    model, _ = loaded(**GAUSSIAN)
    for key in (None, 3, jax.random.split(jax.random.key(0)), jnp.zeros(2), np.zeros(2, np.uint32)):
        assert refusal(model.sample, key, 3).startswith("key: ")
        if key is not None:
            line = refusal(model.encode, IMAGE, key)
            assert "expected one key, jax.random.key(seed)" in line


def test_pure_functions_are_there_for_tracing_and_others_say_so(loaded):
    model, readings = loaded(**STYLE)
    image = readings.splits.test.image[:5] / 255
    assert "`coder`" in refusal(jax.jit(model.encode), image)
    keys = jax.random.split(jax.random.key(0), 5)
    code = jax.jit(model.coder.encode)(model.weights, keys, image)
    close(code.style, model.encode(image).style)

    def total(style):
        return model.coder.decode(model.weights, keys, style, None).sum()

    slope = jax.grad(total)(code.style)
    moved = code.style.at[2, 1].add(0.01)
    assert abs(float(total(moved) - total(code.style)) - 0.01 * float(slope[2, 1])) < 1e-3


# Functions that a run does not have


@pytest.mark.parametrize(
    ("fields", "lacks"),
    [
        (STYLE, {"classify": "infers no label", "cluster": "infers no label"}),
        (GIVEN, {"classify": "infers no label", "cluster": "infers no label"}),
        (CLUSTERS, {"classify": "was shown no labels"}),
        (HEADS, {"classify": "was shown no labels"}),
        (CLASSIFIED, {"cluster": "knows classes, not clusters"}),
        (NO_CRITIC, {"sample": "pulled its codes to no prior", "classify": "", "cluster": ""}),
        (
            {**NO_CRITIC, **GAUSSIAN, "penalties.kl": 1.0},
            {"classify": "infers no label", "cluster": "infers no label"},
        ),
        (
            CLASSIFIER,
            dict.fromkeys(
                ("encode", "decode", "reconstruct", "sample", "interpolate", "anomaly_score"),
                "was trained without reconstruction",
            )
            | {"cluster": "knows classes"},
        ),
    ],
)
def test_a_function_that_a_run_does_not_have_says_what_it_has(loaded, fields, lacks):
    model, _ = loaded(**fields)
    arguments = {
        "encode": (IMAGE,),
        "decode": (STYLES, 0 if "model.labels" in fields else None),
        "reconstruct": (IMAGE, 0 if fields is GIVEN else None),
        "sample": (jax.random.key(0), 2),
        "interpolate": (IMAGE[0], IMAGE[0], 2, 0 if fields is GIVEN else None),
        "classify": (IMAGE,),
        "cluster": (IMAGE,),
        "anomaly_score": (IMAGE, 0 if fields is GIVEN else None),
    }
    for name, args in arguments.items():
        if name not in lacks:
            getattr(model, name)(*args)
            continue
        line = refusal(getattr(model, name), *args)
        assert line.startswith(f"{name}: ") and base().title in line and lacks[name] in line
        able = line.split("it can ")[1].split(", ")
        assert set(able) == arguments.keys() - lacks.keys()


# The folder


def write_metrics(folder, rows):
    names = sorted({name for row in rows for name in row})
    lines = [",".join(names), *(",".join(str(row.get(n, "")) for n in names) for row in rows)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def row(step, **scores):
    return {"step": step, **{f"valid/{name}": value for name, value in scores.items()}}


def test_the_newest_checkpoint_is_loaded_or_the_best(saved):
    folder, _ = saved.anew(steps=(2, 4, 8))
    assert load(folder).step == 8
    line = refusal(load, folder, "best", error=checkpoints.CheckpointError)
    assert str(folder) in line and "2, 4, 8" in line and "metrics.csv" in line
    write_metrics(folder, [row(0, reconstruction=1), row(3, reconstruction=1), row(8)])
    refusal(load, folder, "best", error=checkpoints.CheckpointError)
    # Step 1 is the best of all and not kept; step 4 of those kept.
    scores = {1: 1.0, 2: 9.0, 4: 5.0, 8: 7.0}
    write_metrics(folder, [row(step, reconstruction=score) for step, score in scores.items()])
    best = load(folder, checkpoint="best")
    assert best.step == 4 and load(folder).step == 8
    kernels = [m.weights[0]["decoder"]["output"]["kernel"] for m in (best, load(folder))]
    close(kernels[0], kernels[1] / 2)
    # A run with a label head is judged by its label; NaN is no score.
    errors = {2: 10.0, 4: 20.0, 8: float("nan")}
    write_metrics(
        folder, [row(s, reconstruction=scores[s], error_percent=e) for s, e in errors.items()]
    )
    assert load(folder, "best").step == 2
    assert refusal(load, folder, "oldest") == "checkpoint is 'oldest'; allowed: newest, best"


@pytest.mark.parametrize(("checkpoint", "next_best"), [("newest", 4), ("best", 8)])
def test_a_damaged_checkpoint_is_passed_over_and_left_there(saved, checkpoint, next_best, caplog):
    folder, _ = saved.anew(steps=(2, 4, 8))
    scores = {2: 9.0, 4: 5.0, 8: 7.0}
    write_metrics(folder, [row(step, reconstruction=score) for step, score in scores.items()])
    damaged = folder / "checkpoints" / str(load(folder, checkpoint).step)
    largest = max(damaged.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    largest.write_bytes(largest.read_bytes()[:50])
    before = sorted(folder.rglob("*"))
    assert load(folder, checkpoint).step == next_best
    assert sorted(folder.rglob("*")) == before, "loading only reads"


def test_folders_that_cannot_be_loaded_say_why(saved, narrow_config, tmp_path):
    assert "holds no run" in refusal(load, tmp_path / "absent", error=WorkdirError)
    assert "holds no run" in refusal(load, tmp_path, error=WorkdirError)
    claim(tmp_path, narrow_config())
    for name in (PREPROCESSING, DESCRIPTION):
        line = refusal(load, tmp_path, error=WorkdirError)
        assert name in line and "give the run's command again" in line
        (tmp_path / name).write_bytes((saved()[0] / name).read_bytes())
    line = refusal(load, str(tmp_path), error=checkpoints.CheckpointError)
    assert str(tmp_path) in line
    (tmp_path / DESCRIPTION).write_text("{}")
    assert DESCRIPTION in refusal(load, tmp_path, error=DataError)
    folder, _ = saved.anew()
    other = description.Description((9, 9, 1), "uint8", CLASSES, 30)
    description.save(other, folder / DESCRIPTION)
    line = refusal(load, folder, error=checkpoints.CheckpointError)
    assert "of another model" in line
    folder, _ = saved.anew(**STANDARDIZED)
    constants = preprocessing.Preprocessing(np.zeros(7, np.float32), np.ones(7, np.float32))
    preprocessing.save(constants, folder / PREPROCESSING)
    line = refusal(load, folder, error=DataError)
    assert PREPROCESSING in line and "[7]" in line


# A run that was trained


def test_a_trained_run_is_loaded_as_it_was_evaluated(digits):
    folder, run, state = digits
    model = aae_jax.load(folder)
    key = jax.random.key(1)
    readings = Readings(
        run.experiment, state, run.splits, run.train_labels, run.preprocessing, key, 20
    )
    image = run.splits.valid.image
    close(model.reconstruct(image), readings.valid["reconstruction"], atol=1e-4)
    close(model.classify(image), softmax(readings.valid["label_logits"]), atol=1e-4)
    row = read_metrics(folder)[-1]
    assert model.step == row["step"] == int(state.step)
    assert model.config == run.config and model.data.image_shape == (8, 8, 1)
    close(model.anomaly_score(image).mean(), row["valid/reconstruction"], atol=1e-3)
    wrong = model.classify(image).argmax(axis=1) != run.splits.valid.label
    assert abs(100 * wrong.mean() - row["valid/error_percent"]) < 0.5
    assert 100 * wrong.mean() < 70, "the run learned nothing"
    assert load(folder, "best").step == model.step


ALONE = """
import sys
import numpy as np
import aae_jax
assert "jax" not in sys.modules, "importing aae_jax imports JAX"
model = aae_jax.load(sys.argv[1])
image = np.load(sys.argv[2])
np.save(sys.argv[3], model.classify(image))
model.sample(__import__("jax").random.key(0), 3)
import jax
heavy = {"tensorflow", "tensorflow_datasets", "clu", "tensorboard", "matplotlib", "sklearn"}
print(jax.device_count(), sorted(heavy & set(sys.modules)))
"""


def test_a_run_of_four_devices_is_loaded_on_one_without_tensorflow(digits, tmp_path):
    folder, run, _ = digits
    assert run.mesh.size == 4
    image = run.splits.test.image
    np.save(tmp_path / "image.npy", image)
    out = tmp_path / "out.npy"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder), str(tmp_path / "image.npy"), str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path.cwd())},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 []\n"
    assert done.stderr == "", "loading a model is not worth a line"
    close(np.load(out), load(folder).classify(image), atol=1e-4)


def test_the_readme_example_runs(digits, monkeypatch):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (example,) = (
        code
        for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        if "load(" in code and "aae_jax.load" in code
    )
    monkeypatch.chdir(digits[0].parent.parent)
    names = {}
    exec(example, names)
    assert names["images"].shape == (16, 8, 8, 1)
    assert names["again"].shape == (16, 8, 8, 1)


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    assert not hasattr(aae_jax, "lode")
    assert aae_jax.load is load and aae_jax.InferenceError is InferenceError
