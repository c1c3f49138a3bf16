import math
from fractions import Fraction
from functools import partial, reduce
from operator import getitem

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aae_jax import recording, train
from aae_jax.augmentation import affine
from aae_jax.config import ConfigError, base, validate
from aae_jax.data import load
from aae_jax.experiment import build
from aae_jax.phases import Batch
from aae_jax.randomness import all_named
from aae_jax.spec import SpecError
from aae_jax.validation import encoded

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE, PIXELS, CLASSES = (4, 4, 1), 16, 3
ONLY_RECONSTRUCTION = {"phases": ("reconstruction",), "style.divergence": ""}
ONLY_CLASSIFICATION = {
    "phases": ("classification",),
    "style.divergence": "",
    "model.labels": CLASSES,
}
ALL_PHASES = {
    "phases": ("reconstruction", "regularization", "classification"),
    "model.labels": CLASSES,
    "model.layout": "style_and_inferred_label",
    "label.prior": "categorical(3)",
    "label.divergence": "gan()",
}


def tiny(**fields):
    """A valid config with one small layer a network, at any fields by their dotted names."""
    config = base()
    small = {f"{net}.widths": (6,) for net in ("encoder", "decoder", "discriminator")}
    small |= {f"{net}.init": "normal(0.5)" for net in ("encoder", "decoder", "discriminator")}
    small |= {"train.batch_size": 10, "train.chunk_steps": 1, "train.epochs": 3.0}
    for field, value in {**small, **fields}.items():
        *parents, last = field.split(".")
        reduce(getitem, parents, config)[last] = value
    return config


def made(config, num_examples=42, num_classes=CLASSES, shape=SHAPE):
    validate(config)
    return build(config, image_shape=shape, num_classes=num_classes, num_examples=num_examples)


def batch(size=10, seed=0, labelled=True):
    rng = np.random.default_rng(seed)
    image = jnp.asarray(rng.uniform(size=(size, *SHAPE)), jnp.float32)
    label = jnp.asarray(rng.integers(0, CLASSES, size), jnp.int32)
    plain = Batch(image, label, jax.random.split(jax.random.key(seed), size))
    return plain._replace(labelled=batch(size, seed + 1, False)) if labelled else plain


def shapes(experiment):
    return jax.eval_shape(experiment.init, jax.random.key(0))


def start(experiment, seed=0):
    """A state before the first step with random weights and biases; nothing is compiled."""
    rng = np.random.default_rng(seed)

    def random(leaf):
        return jnp.asarray(rng.normal(scale=0.5, size=leaf.shape), leaf.dtype)

    def zeros(leaf):
        return jnp.asarray(np.zeros(leaf.shape, leaf.dtype))

    abstract = shapes(experiment)
    return abstract.replace(
        step=jnp.asarray(np.int32(0)),
        params=jax.tree.map(random, abstract.params),
        batch_stats=jax.tree.map(random, abstract.batch_stats),
        opt_states=jax.tree.map(zeros, abstract.opt_states),
        key=jax.random.key(seed),
    )


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def identity_weights(experiment):
    """Parameters that pass values on as they are: unit matrices, no biases."""
    return jax.tree.map(
        lambda leaf: jnp.eye(*leaf.shape) if len(leaf.shape) == 2 else jnp.zeros(leaf.shape),
        shapes(experiment).params,
    )


# Length of a run


@settings(deadline=None, max_examples=25)
@given(
    epochs=st.floats(0.001, 300),
    num_examples=st.integers(1, 3000),
    batch_size=st.integers(1, 200),
    chunk=st.integers(1, 100),
)
def test_the_number_of_steps_is_the_fewest_whole_chunks_that_hold_the_epochs(
    epochs, num_examples, batch_size, chunk
):
    fields = {"train.epochs": epochs, "train.batch_size": batch_size, "train.chunk_steps": chunk}
    experiment = made(tiny(**fields), num_examples)
    steps = Fraction(epochs) * num_examples / batch_size
    assert experiment.num_steps % chunk == 0 and experiment.num_steps >= chunk
    assert experiment.num_steps > steps - Fraction(1, 1000)
    assert experiment.num_steps - chunk < max(steps, 1)
    assert experiment.steps_per_epoch == pytest.approx(num_examples / batch_size)


@pytest.mark.parametrize(
    ("epochs", "chunk", "num_steps"),
    # 42 images in batches of 10: 4.2 steps an epoch.
    [(1.0, 1, 5), (5.0, 1, 21), (1.1, 1, 5), (1.0, 4, 8), (0.01, 7, 7), (10.0, 42, 42), (3, 5, 15)],
)
def test_examples_of_the_number_of_steps(epochs, chunk, num_steps):
    assert made(tiny(**{"train.epochs": epochs, "train.chunk_steps": chunk})).num_steps == num_steps


def test_a_product_that_is_whole_but_for_rounding_adds_no_chunk():
    assert 0.07 * 100 > 7
    config = tiny(**{"train.epochs": 0.07, "train.chunk_steps": 7})
    assert made(config, 1000).num_steps == 7


# Optimizers, against formulas written out in float64


def sgd(momentum):
    def step(memory, gradient, params):
        memory = gradient + momentum * memory
        return memory, memory

    return 0.0, step


def adam(b1, decay=0.0):
    def step(memory, gradient, params):
        t, m, v = memory
        t, m, v = t + 1, b1 * m + (1 - b1) * gradient, 0.999 * v + 0.001 * gradient**2
        direction = m / (1 - b1**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return (t, m, v), direction + decay * params

    return (0, 0.0, 0.0), step


def rmsprop(momentum):
    def step(memory, gradient, params):
        v, trace = memory
        v = 0.9 * v + 0.1 * gradient**2
        trace = gradient / np.sqrt(v + 1e-8) + momentum * trace
        return (v, trace), trace

    return (0.0, 0.0), step


def half_squared_error(params, image):
    """The paper's cost of a deterministic autoencoder of one hidden layer (appendix A.2.1)."""

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    encoder, decoder = params["encoder"], params["decoder"]
    x = image.reshape(len(image), -1)
    hidden = jnp.maximum(dense(x, encoder["trunk"]["dense_0"]), 0)
    hidden = jnp.maximum(dense(dense(hidden, encoder["style"]), decoder["hidden"]["dense_0"]), 0)
    output = 1 / (1 + jnp.exp(-dense(hidden, decoder["output"])))
    return 0.5 * ((output - x) ** 2).sum() / len(x)


def cosine_from(first, end):
    return lambda k: end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (k - first) / (13 - first)))


# 4.2 steps an epoch, 13 steps in all; times are in epochs.
SCHEDULES = {
    "constant()": lambda k: 1.0,
    "step(0.1, epochs=(1, 2))": lambda k: 0.1 ** ((k >= 4) + (k >= 8)),
    "step(factor=0.5, epochs=1.5)": lambda k: 0.5 ** (k >= 6),
    "cosine()": cosine_from(0, 0.0),
    "cosine(end=0.2)": cosine_from(0, 0.2),
    "cosine(warmup=0.5)": lambda k: k / 2 if k < 2 else cosine_from(2, 0.0)(k),
    "cosine(0.25, warmup=1)": lambda k: k / 4 if k < 4 else cosine_from(4, 0.25)(k),
}


slope_at = jax.jit(jax.grad(half_squared_error))


@pytest.mark.parametrize(
    ("name", "momentum", "rate", "schedule", "oracle"),
    [
        ("sgd", 0.0, 0.1, "step(0.1, epochs=(1, 2))", sgd(0.0)),
        ("sgd", 0.9, 0.1, "constant()", sgd(0.9)),
        ("adam", 0.9, 0.05, "cosine(warmup=0.5)", adam(0.9)),
        ("adam", 0.0, 0.05, "cosine(end=0.2)", adam(0.0)),
        ("adamw", 0.5, 0.05, "step(factor=0.5, epochs=1.5)", adam(0.5, decay=1e-4)),
        ("rmsprop", 0.0, 0.01, "cosine()", rmsprop(0.0)),
    ],
)
def test_an_optimizer_takes_the_steps_of_its_formula(name, momentum, rate, schedule, oracle):
    fields = {"name": name, "learning_rate": rate, "momentum": momentum, "schedule": schedule}
    fields = {f"optimizers.autoencoder.{field}": value for field, value in fields.items()}
    experiment = made(tiny(**ONLY_RECONSTRUCTION, **fields))
    assert experiment.num_steps == 13
    state = start(experiment)
    assert set(state.opt_states) == {"autoencoder"}
    step = jax.jit(experiment.step)
    memory, advance = oracle
    for number in range(13):
        examples = batch(seed=number)
        before = flat(state.params)
        slope = flat(slope_at(state.params, examples.image))
        memory, direction = advance(memory, slope, before)
        state, _ = step(state, examples)
        found, expected = (
            flat(state.params),
            before - rate * SCHEDULES[schedule](number) * direction,
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * rate)
    assert int(state.step) == 13


# Each optimizer with a phase of its own, and a part of the parameters that it alone moves there.
ALONE = {
    "autoencoder": ONLY_RECONSTRUCTION,
    "discriminator": {"phases": ("regularization",)},
    # Without a critic, whose own steps would change what the generator sees.
    "generator": {"phases": ("regularization",), "style.divergence": "mmd()"},
    "classifier": ONLY_CLASSIFICATION,
    "smoothness": {**ONLY_CLASSIFICATION, "phases": ("smoothness",)},
}
MOVED = {
    "autoencoder": "decoder",
    "discriminator": "discriminator",
    "generator": "encoder",
    "classifier": "encoder",
    "smoothness": "encoder",
}


def moves(optimizer, steps, **fields):
    """What each step from one and the same parameters adds to the optimizer's own."""
    others = {f"optimizers.{each}.learning_rate": 77.0 for each in ALONE if each != optimizer}
    own = {f"optimizers.{optimizer}.{field}": value for field, value in fields.items()}
    experiment = made(tiny(**ALONE[optimizer], **others, **own))
    beginning = state = start(experiment)
    step, examples, found = jax.jit(experiment.step), batch(), []
    for _ in range(steps):
        moved, _ = step(state, examples)
        part = MOVED[optimizer]
        found.append(flat(moved.params[part]) - flat(beginning.params[part]))
        # The same slope again, but a later step of the optimizer.
        state = beginning.replace(opt_states=moved.opt_states)
    return np.asarray(found)


@pytest.mark.parametrize(
    ("optimizer", "schedule", "rate", "momentum"),
    [
        ("autoencoder", "cosine(warmup=0.5)", 0.5, 0.9),
        ("discriminator", "step(0.1, epochs=(1, 2))", 0.25, 0.5),
        ("generator", "cosine(0.25, warmup=1)", 2.0, 0.25),
        ("classifier", "cosine(end=0.2)", 0.5, 0.0),
    ],
)
def test_each_optimizer_follows_its_own_schedule_and_momentum(optimizer, schedule, rate, momentum):
    found = moves(optimizer, 13, learning_rate=rate, momentum=momentum, schedule=schedule)
    factor = np.array([SCHEDULES[schedule](k) for k in range(13)])
    # The slope is the same at every step: momentum sums it up, the schedule scales the sum.
    expected = factor * np.cumsum(momentum ** np.arange(13))
    peak = np.abs(found).max(axis=1).argmax()
    assert np.abs(found[peak]).max() > 1e-4
    ratios = found @ found[peak] / (found[peak] @ found[peak])
    np.testing.assert_allclose(ratios, expected / expected[peak], atol=1e-3)


@pytest.mark.parametrize("optimizer", ["discriminator", "generator", "classifier", "smoothness"])
def test_each_optimizer_has_its_own_name_and_rate(optimizer):
    """Adam's first step is the rate in every coordinate with a slope, whatever its size."""
    (move,) = moves(optimizer, 1, name="adam", learning_rate=0.01, momentum=0.5)
    steps = np.abs(move[np.abs(move) > 1e-9])
    assert len(steps) > 5
    assert np.median(steps) == pytest.approx(0.01, rel=1e-3)
    assert steps.max() < 0.0101


@pytest.mark.parametrize("phase", ["autoencoder", "generator", "classifier", "smoothness"])
def test_a_network_is_scored_by_the_statistics_that_it_was_trained_with(phase):
    """By those of labelled images where labels are all that is learned from."""
    still = {f"optimizers.{each}.learning_rate": 1e-12 for each in ALONE}
    experiment = made(tiny(**ALONE[phase], **still, **{"encoder.batch_norm": True}))
    state, step = start(experiment), jax.jit(experiment.step)
    examples = batch(labelled=experiment.phases == ("classification",))
    for _ in range(200):
        state, _ = step(state, examples)
    seen = examples.labelled or examples
    trained, scored = (
        experiment.model.encode(state.params, state.batch_stats, seen.image, seen.keys, train)[0]
        for train in (True, False)
    )
    np.testing.assert_allclose(scored.style, trained.style, atol=1e-3)
    assert np.ptp(trained.style, axis=0).min() > 0.01


def test_smoothness_looks_at_images_without_their_noise():
    def after_a_step(**fields):
        experiment = made(tiny(**ALONE["smoothness"], **fields))
        state, metrics = jax.jit(experiment.step)(start(experiment), batch())
        return flat(state.params), metrics["smoothness"]

    clean = after_a_step()
    noisy = after_a_step(**{"encoder.input_noise": 3.0, "encoder.input_dropout": 0.5})
    assert clean[1] > 0
    jax.tree.map(np.testing.assert_array_equal, noisy, clean)


def test_information_has_the_weight_and_the_prior_of_the_config():
    def information(weight, prior):
        fields = {"penalties.information": weight, "label.prior": prior}
        experiment = made(tiny(**ALONE["smoothness"], **fields))
        return jax.jit(experiment.step)(start(experiment), batch())[1].get("information")

    even, uneven = "categorical(3)", "categorical(3, weights=(1, 2, 50))"
    assert information(0.0, even) is None
    light, heavy = (information(weight, even) for weight in (0.1, 0.3))
    np.testing.assert_allclose(heavy, 3 * light, rtol=1e-5)
    assert information(0.1, uneven) > light + 0.01


def test_smoothness_begins_at_its_epoch_and_its_schedule_with_it():
    """3 steps an epoch: smoothness rests for 6 of them, and its cosine ends with the run."""
    fields = {
        **ALONE["smoothness"],
        "train.smoothness_start": 2.0,
        "train.epochs": 4.0,
        "optimizers.smoothness.schedule": "cosine()",
        "optimizers.smoothness.momentum": 0.0,
    }
    experiment = made(tiny(**fields), num_examples=30)
    assert experiment.steps_per_epoch == 3 and experiment.num_steps == 12
    beginning = state = start(experiment)
    step, examples, found = jax.jit(experiment.step), batch(), []
    for number in range(12):
        moved, metrics = step(state.replace(step=jnp.int32(number)), examples)
        assert (metrics["smoothness"] > 0) == (number >= 6)
        found.append(np.linalg.norm(flat(moved.params["encoder"]) - flat(state.params["encoder"])))
        state = beginning.replace(opt_states=moved.opt_states)
    expected = [0.0] * 6 + [0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    np.testing.assert_allclose(np.array(found) / found[6], expected, atol=1e-3)


# What is in an experiment


@pytest.fixture(scope="module")
def complete():
    return made(
        tiny(
            **ALL_PHASES,
            **{
                "style.prior": "petals(modes=3)",
                "style.divergence": "least_squares()",
                "style.label_informed": True,
                "style.weight": 0.5,
                "label.weight": 2.0,
                "label.noise": 0.3,
                "train.averaging": 0.9,
            },
        )
    )


def test_matches_are_those_of_the_config(complete):
    style, label = complete.matches
    assert (style.part, label.part) == ("style", "label")
    assert (style.weight, label.weight, style.noise, label.noise) == (0.5, 2.0, 0.0, 0.3)
    assert (style.label_informed, label.label_informed) == (True, False)
    assert (style.prior.dim, style.prior.num_modes, label.prior.num_modes) == (2, 3, 3)
    assert complete.style_prior is style.prior and complete.label_prior is label.prior
    assert complete.equilibria == {
        "style/discriminator": 0.25,
        "style/generator": 0.125,
        "label/discriminator": pytest.approx(2 * math.log(2)),
        "label/generator": pytest.approx(math.log(2)),
    }


def test_a_state_has_every_network_and_optimizer_that_the_phases_need(complete):
    state = shapes(complete)
    assert set(state.opt_states) == {"autoencoder", "discriminator", "generator", "classifier"}
    assert set(state.averaged_params) == {"encoder", "decoder"}
    critics = state.params["discriminator"]
    # The style's critic sees the style, and three modes or "unknown".
    assert critics["style"]["dense_0"]["kernel"].shape == (2 + 4, 6)
    assert critics["label"]["dense_0"]["kernel"].shape == (3, 6)
    assert complete.knows_classes


def test_phases_run_in_the_order_of_the_config():
    phases = ("regularization", "reconstruction")
    experiment = made(tiny(phases=phases))
    assert experiment.phases == phases
    state, examples = start(experiment), batch()
    metric = jax.jit(lambda *args: experiment.step(*args)[1]["reconstruction"])(state, examples)
    # The phase that comes second sees an encoder that the first has moved.
    assert float(metric) != pytest.approx(
        float(half_squared_error(state.params, examples.image)), rel=1e-3
    )


@pytest.mark.parametrize(
    ("layout", "code", "head"),
    [
        ("style", 2, True),
        ("style_and_given_label", 5, False),
        ("style_and_inferred_label", 5, True),
        ("cluster_heads", 2, True),
    ],
)
def test_the_layout_decides_what_decoder_and_encoder_hold(layout, code, head):
    experiment = made(tiny(**{"model.layout": layout, "model.labels": CLASSES}))
    params = shapes(experiment).params
    assert params["decoder"]["hidden"]["dense_0"]["kernel"].shape == (code, 6)
    assert ("label" in params["encoder"]) == head
    assert ("cluster_heads" in params) == (layout == "cluster_heads")
    assert experiment.model.layout == layout
    assert not experiment.knows_classes
    assert (experiment.label_prior is not None) == head


def test_heads_are_learned_with_the_autoencoder_or_fixed():
    fields = {"model.layout": "cluster_heads", "model.labels": 2, **ONLY_RECONSTRUCTION}
    learned = made(tiny(**fields, **{"cluster_heads.init_std": 100.0, "train.averaging": 0.5}))
    heads = jax.jit(lambda key: learned.init(key).params["cluster_heads"])(jax.random.key(0))
    assert 10 < float(jnp.abs(heads).mean()) < 300
    state = shapes(learned)
    assert set(state.averaged_params) == {"encoder", "decoder", "cluster_heads"}
    # The optimizer's momentum is kept for what it moves.
    assert "cluster_heads" in state.opt_states["autoencoder"][0].trace
    fixed = made(tiny(**fields, **{"cluster_heads.fixed": 10.0}))
    assert "cluster_heads" not in shapes(fixed).params
    assert "cluster_heads" not in shapes(fixed).opt_states["autoencoder"][0].trace
    np.testing.assert_array_equal(fixed.model.heads({}), [[10, 0], [0, 10]])


def test_networks_have_their_own_widths_and_initial_weights():
    fields = {
        "encoder.widths": (50, 40),
        "decoder.widths": (30,),
        "discriminator.widths": (200,),
        "encoder.init": "normal(2.0)",
        "decoder.init": "normal(0.1)",
        "discriminator.init": "glorot_uniform()",
    }
    params = jax.jit(made(tiny(**fields)).init)(jax.random.key(3)).params
    encoder, decoder = params["encoder"], params["decoder"]
    kernels = [encoder["trunk"]["dense_0"], encoder["trunk"]["dense_1"], encoder["style"]]
    assert [k["kernel"].shape for k in kernels] == [(16, 50), (50, 40), (40, 2)]
    assert all(1.6 < float(k["kernel"].std()) < 2.4 for k in kernels)
    assert decoder["hidden"]["dense_0"]["kernel"].shape == (2, 30)
    assert 0.09 < float(decoder["output"]["kernel"].std()) < 0.11
    first = params["discriminator"]["style"]["dense_0"]["kernel"]
    bound = math.sqrt(6 / (2 + 200))
    assert 0.95 * bound < float(jnp.abs(first).max()) <= bound
    biases = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 1]
    assert len(biases) == 7 and not any(leaf.any() for leaf in biases)


# Convolutional networks


@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_channels_make_their_own_network_convolutional(network):
    fields = {f"{network}.channels": 3, f"{network}.batch_norm": True}
    state = shapes(made(tiny(**fields), shape=(8, 12, 1)))
    kernels = {
        "encoder": {"convolution_0": (4, 4, 1, 3), "convolution_1": (4, 4, 3, 6)},
        "decoder": {"convolution_0": (3, 3, 6, 3), "output": (3, 3, 3, 1)},
    }
    layers = {**state.params["encoder"]["trunk"], **state.params["decoder"]}
    found = {name: layers[name]["kernel"].shape for name in layers if "convolution" in name}
    wanted = {name: shape for name, shape in kernels[network].items() if "convolution" in name}
    assert found == wanted
    output = state.params["decoder"]["output"]["kernel"].shape
    assert output == ((3, 3, 3, 1) if network == "decoder" else (6, 8 * 12))
    for name in ("encoder", "decoder"):
        held = jax.tree.leaves(state.batch_stats[name])
        assert len(held) == (6 if name == network else 0), "two images and one dense layer"


def test_convolutions_have_the_options_of_their_network():
    fields = {"encoder.channels": 50, "encoder.init": "normal(2.0)", "encoder.activation": "tanh"}
    fields |= {"encoder.dropout": 0.5, "encoder.widths": (), "model.style_dim": 100}
    fields |= {
        "style.prior": "gaussian(100)",
        "decoder.channels": 50,
        "decoder.init": "normal(0.1)",
    }
    experiment = made(tiny(**fields))
    params = jax.jit(experiment.init)(jax.random.key(3)).params
    trunk, decoder = params["encoder"]["trunk"], params["decoder"]
    assert 1.6 < float(trunk["convolution_0"]["kernel"].std()) < 2.4
    assert 0.09 < float(decoder["convolution_0"]["kernel"].std()) < 0.11
    assert 0.09 < float(decoder["grid"]["kernel"].std()) < 0.11
    # A head that passes the 100 features of a 1 x 1 image on: tanh is within -1..1.
    params["encoder"]["style"]["kernel"] = jnp.eye(100)
    stats, images = shapes(experiment).batch_stats, batch(50).image
    encode = jax.jit(experiment.model.encode, static_argnums=4)
    keys = jax.random.split(jax.random.key(0), 50)
    testing = np.asarray(encode(params, stats, images, keys, False)[0].style)
    training = np.asarray(encode(params, stats, images, keys, True)[0].style)
    assert (np.abs(testing) <= 1).all() and (testing < -0.5).any() and (testing != 0).all()
    assert (training == 0).mean() == pytest.approx(0.5, abs=0.05)


def test_a_universal_approximator_may_be_convolutional():
    fields = {"model.posterior": "universal", "model.noise_dim": 5, "encoder.channels": 2}
    experiment = made(tiny(**fields), shape=(8, 8, 1))
    state = start(experiment)
    kernel = state.params["encoder"]["trunk"]["hidden"]["dense_0"]["kernel"]
    assert kernel.shape == (2 * 2 * 4 + 5, 6)
    image = jnp.ones((10, 8, 8, 1))
    encode = jax.jit(partial(experiment.model.encode, train=False))
    keys = jax.random.split(jax.random.key(0), 10)
    code, _ = encode(state.params, state.batch_stats, image, keys)
    assert len(np.unique(np.asarray(code.style)[:, 0])) == 10, "each key another eta"


@pytest.mark.parametrize("network", ["encoder", "decoder"])
@pytest.mark.parametrize("shape", [(30, 28, 1), (28, 30, 3), (20,)])
def test_data_that_do_not_fit_convolutions_are_named_in_one_line(network, shape):
    with pytest.raises(ConfigError) as caught:
        made(tiny(**{f"{network}.channels": 8}), shape=shape)
    line = str(caught.value)
    assert line.startswith(f"{network}.channels is 8, but ") and "\n" not in line
    assert all(word in line for word in (str(list(shape)), "multiples of 4", "allowed: 0"))
    made(tiny(), shape=shape)


def test_a_convolutional_autoencoder_learns_the_digits():
    fields = {"encoder.channels": 8, "decoder.channels": 8, **ONLY_RECONSTRUCTION}
    for net in ("encoder", "decoder"):
        fields |= {f"{net}.init": "he_normal()", f"{net}.widths": (64,)}
    fields |= {"optimizers.autoencoder.name": "adam", "optimizers.autoencoder.learning_rate": 0.01}
    experiment = made(
        tiny(**fields, **{"model.style_dim": 8, "style.prior": "gaussian(8)"}), shape=(8, 8, 1)
    )
    image = jnp.asarray(load("digits").train.image[:640] / 255, jnp.float32).reshape(
        10, 64, 8, 8, 1
    )
    state, step = jax.jit(experiment.init)(jax.random.key(0)), jax.jit(experiment.step)
    losses = []
    for number in range(60):
        keys = jax.random.split(jax.random.key(number), 64)
        examples = Batch(image[number % 10], jnp.zeros(64, jnp.int32), keys)
        state, metrics = step(state, examples)
        losses.append(float(metrics["reconstruction"]))
    print(losses)
    mean_image = 0.5 * float(((image - image.mean(axis=(0, 1))) ** 2).sum(axis=(2, 3, 4)).mean())
    assert np.mean(losses[-10:]) < 0.8 * mean_image < np.mean(losses[:3])


# Precision

WIDE = {f"{net}.widths": (24, 40) for net in ("encoder", "decoder", "discriminator")}


def programs(equations):
    """All equations of a program, those of the programs within included."""
    for equation in equations:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from programs(inner.eqns)


def products(experiment, shape):
    """Of the step's products and convolutions, each one's operands: ({types}, {sides})."""
    state = shapes(experiment)
    images = jnp.zeros((10, *shape))
    plain = Batch(images, jnp.zeros(10, jnp.int32), jax.random.split(jax.random.key(0), 10))
    program = jax.make_jaxpr(experiment.step)(state, plain._replace(labelled=plain))
    return [
        (
            {str(value.aval.dtype) for value in (*equation.invars, *equation.outvars)},
            {side for value in equation.invars for side in value.aval.shape},
        )
        for equation in programs(program.jaxpr.eqns)
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
    ]


@pytest.mark.parametrize("channels", [0, 4])
def test_all_products_are_in_bfloat16_but_those_of_codes_and_scores(channels):
    convolutions = {"encoder.channels": channels, "decoder.channels": channels}
    fields = {**ALL_PHASES, **WIDE, **convolutions, "encoder.batch_norm": True}
    rounded, exact = (
        products(made(tiny(**fields, **{"train.compute_dtype": dtype}), shape=(8, 8, 1)), (8, 8, 1))
        for dtype in ("bfloat16", "float32")
    )
    # Code and score are made from the last hidden layer, of 40 units: no 24 and no pixels there.
    heads = [sides for _, sides in exact if sides <= {1, 2, 3, 10, 20, 40}]
    assert all(types == {"float32"} for types, _ in exact)
    assert [sides for types, sides in rounded if types == {"float32"}] == heads
    others = [types for types, _ in rounded if types != {"float32"}]
    assert all(types == {"bfloat16"} for types in others)
    assert len(others) == len(exact) - len(heads) > len(heads) > 0


def test_a_float32_step_knows_no_other_precision():
    experiment = made(tiny(**ALL_PHASES))
    program = str(jax.make_jaxpr(experiment.step)(shapes(experiment), batch()))
    assert "f32" in program and "bf16" not in program and "f16" not in program


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_state_and_metrics_are_float32_whatever_layers_are_computed_in(optimizer):
    fields = {**ALL_PHASES, "encoder.batch_norm": True, "discriminator.spectral_norm": True}
    fields |= {"train.averaging": 0.9, "optimizers.autoencoder.name": optimizer}
    results = []
    for dtype in ("float32", "bfloat16"):
        experiment = made(tiny(**fields, **{"train.compute_dtype": dtype}))
        state = shapes(experiment)
        after, metrics = jax.eval_shape(experiment.step, state, batch())
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), state
        )
        results.append(jax.tree.map(lambda leaf: leaf.dtype, (after, metrics)))
    assert results[0] == results[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} == {np.dtype(np.float32)}


def learned(dtype, fields):
    """Validation scores of a run on the digits: nats per image and, with labels, percent wrong."""
    config = tiny(**fields, **{"train.compute_dtype": dtype, "train.batch_size": 100})
    for net in ("encoder", "decoder", "discriminator"):
        config[net].widths, config[net].init = (64,), "he_normal()"
    for name, optimizer in config.optimizers.items():
        optimizer.name, optimizer.learning_rate = "adam", 2e-3
        optimizer.momentum = 0.9 if name in ("autoencoder", "classifier") else 0.0
        optimizer.schedule = "cosine()"
    config.train.epochs, config.train.chunk_steps = 20.0, 12
    run = train.prepare(config, jax.devices()[:1])
    advance, chunks = train.mapped_chunk(run), train.chunks_from(run, 0)
    state = train.initial_state(run)
    for _ in range(run.experiment.num_steps // 12):
        state, _ = advance(state, *next(chunks))
    valid = run.splits.valid
    found = encoded(run.experiment, run.preprocessing)(
        state, valid.image, valid.label, jax.random.key(0)
    )
    wrong = None
    if "label_logits" in found:
        wrong = 100 * (found["label_logits"].argmax(axis=1) != valid.label).mean()
    return found["error"].mean(), wrong


@pytest.mark.parametrize("labels", [0, 100])
def test_digits_are_learned_as_well_in_bfloat16(labels):
    fields = {}
    if labels:
        fields = {**ALL_PHASES, "data.labels": labels, "model.labels": 10}
        fields |= {"label.prior": "categorical(10)", "train.labelled_batch_size": 100}
    (exact, few), (rounded, as_few) = learned("float32", fields), learned("bfloat16", fields)
    assert rounded == pytest.approx(exact, rel=0.05)
    if labels:
        assert few < 25 and abs(as_few - few) <= 3


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "tanh": np.tanh,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("turn", [0, 3])
def test_each_network_has_its_own_activation(turn):
    names = [sorted(ACTIVATIONS)[(turn + i) % 5] for i in range(3)]
    nets = ("encoder", "decoder", "discriminator")
    fields = {f"{net}.activation": name for net, name in zip(nets, names, strict=True)}
    fields |= {f"{net}.widths": (16,) for net in nets}
    fields |= {"model.style_dim": 16, "style.prior": "gaussian(16)", "decoder.output": "linear"}
    experiment = made(tiny(**fields))
    model, params = experiment.model, identity_weights(experiment)
    x = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 5)
    stats = jax.tree.map(lambda leaf: leaf, shapes(experiment).batch_stats)
    code, _ = model.encode(params, stats, jnp.asarray(x.reshape(5, *SHAPE)), keys, False)
    image, _ = model.decode(params, stats, jnp.asarray(x), None, keys, False)
    params["discriminator"]["style"]["score"]["kernel"] = jnp.ones((16, 1))
    scores = model.critic(params, stats, "style")(jnp.asarray(x))
    expected = [ACTIVATIONS[name](x.astype(np.float64)) for name in names]
    np.testing.assert_allclose(code.style, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(image.reshape(5, 16), expected[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores, expected[2].sum(axis=1), rtol=1e-5, atol=1e-5)


def encoder_inputs(image, **fields):
    """What the encoder of unit weights makes of images: its input, or its hidden layer."""
    fields = {"model.style_dim": 16, "style.prior": "gaussian(16)", **fields}
    experiment = made(tiny(**{"encoder.widths": (), **fields}))
    params, keys = identity_weights(experiment), jax.random.split(jax.random.key(0), len(image))
    return [
        np.asarray(
            experiment.model.encode(
                params, shapes(experiment).batch_stats, jnp.asarray(image), keys, train
            )[0].style
        )
        for train in (True, False)
    ]


@pytest.mark.parametrize(
    ("field", "widths"),
    [("encoder.input_noise", ()), ("encoder.input_dropout", ()), ("encoder.dropout", (16,))],
)
def test_noise_and_dropout_belong_to_training_only(field, widths):
    image = np.random.default_rng(1).uniform(0.5, 1, size=(300, *SHAPE)).astype(np.float32)
    flat = image.reshape(300, 16)
    training, testing = encoder_inputs(image, **{field: 0.3, "encoder.widths": widths})
    np.testing.assert_allclose(testing, flat, rtol=1e-6)
    if field == "encoder.input_noise":
        assert (training - flat).std() == pytest.approx(0.3, rel=0.05)
        assert abs((training - flat).mean()) < 0.02
    else:
        assert (training == 0).mean() == pytest.approx(0.3, abs=0.03)
        kept = training != 0
        np.testing.assert_allclose(training[kept], flat[kept] / 0.7, rtol=1e-5)
    without, _ = encoder_inputs(image[:3], **{"encoder.widths": widths})
    np.testing.assert_allclose(without, flat[:3], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "places"),
    [
        ({}, set()),
        ({"encoder.batch_norm": True}, {"encoder/trunk"}),
        ({"encoder.head_batch_norm": True}, {"encoder/style_norm"}),
        ({"decoder.batch_norm": True}, {"decoder/hidden"}),
        ({"discriminator.spectral_norm": True}, {"discriminator/style"}),
    ],
)
def test_normalisations_are_where_the_config_has_them(fields, places):
    stats = shapes(made(tiny(**fields))).batch_stats
    found = {
        f"{net}/{part}" for net, parts in stats.items() for part, held in parts.items() if held
    }
    assert found == places


def test_posterior_output_and_penalty_are_those_of_the_config():
    gaussian = made(
        tiny(
            **ONLY_RECONSTRUCTION,
            **{"model.posterior": "gaussian", "penalties.kl": 3.0, "decoder.output": "bernoulli"},
        )
    )
    state = shapes(gaussian)
    assert "style_log_variance" in state.params["encoder"]
    encode = partial(gaussian.model.encode, train=False)
    code, _ = jax.eval_shape(encode, state.params, state.batch_stats, batch().image, batch().keys)
    assert code.style_log_prob is not None
    output = np.array([[-1.0, 2.0]])
    image = np.array([[0.0, 1.0]])
    loss = gaussian.model.likelihood.loss(jnp.asarray(output), jnp.asarray(image))
    p = 1 / (1 + np.exp(-output[0]))
    np.testing.assert_allclose(loss, [-np.log(1 - p[0]) - np.log(p[1])], rtol=1e-5)
    universal = made(tiny(**{"model.posterior": "universal", "model.noise_dim": 5}))
    kernel = shapes(universal).params["encoder"]["trunk"]["dense_0"]["kernel"]
    assert kernel.shape == (PIXELS + 5, 6)


def test_the_weight_of_a_penalty_counts():
    fields = {**ONLY_RECONSTRUCTION, "model.posterior": "gaussian"}
    metrics = []
    for weight in (1.0, 3.0):
        experiment = made(tiny(**fields, **{"penalties.kl": weight}))
        kl = jax.jit(lambda *args, step=experiment.step: step(*args)[1]["kl"])
        metrics.append(kl(start(experiment), batch()))
    assert float(metrics[1]) == pytest.approx(3 * float(metrics[0]), rel=1e-5)


# Augmentation


AUGMENTED = ("train.augmentation", "train.smoothness_augmentation")
SMOOTHED = {**ONLY_CLASSIFICATION, "phases": ("classification", "smoothness")}


def a_step(examples=None, **fields):
    experiment = made(tiny(**fields))
    return jax.jit(experiment.step)(start(experiment), examples or batch())


@pytest.mark.parametrize(
    ("fields", "metric"),
    [(ONLY_RECONSTRUCTION, "reconstruction"), (ONLY_CLASSIFICATION, "classification")],
    ids=["reconstruction", "classification"],
)
def test_augmented_images_are_seen_and_reconstructed(fields, metric):
    """A step on images that were augmented before it is the same."""
    augmentation = jax.jit(affine(30, translate=0.2, shear=10))

    def augmented(part):
        image = augmentation(all_named(part.keys, "augmentation"), part.image)
        return part._replace(image=image)

    before = augmented(batch())._replace(labelled=augmented(batch().labelled))
    text = "affine(30, translate=0.2, shear=10)"
    state, metrics = a_step(**fields, **{"train.augmentation": text})
    expected, expected_metrics = a_step(before, **fields)
    np.testing.assert_allclose(metrics[metric], expected_metrics[metric], rtol=1e-5)
    np.testing.assert_allclose(flat(state.params), flat(expected.params), atol=1e-6)
    plain, plain_metrics = a_step(**fields)
    assert abs(plain_metrics[metric] - metrics[metric]) > 1e-3
    assert np.abs(flat(plain.params) - flat(state.params)).max() > 1e-4


def test_augmentations_by_nothing_leave_a_step_as_it_is():
    state, metrics = a_step(**SMOOTHED, **dict.fromkeys(AUGMENTED, "affine()"))
    expected, expected_metrics = a_step(**SMOOTHED)
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(flat(state.params), flat(expected.params), atol=1e-5)


def test_smoothness_alone_looks_at_its_augmented_images():
    """On steps so short that nothing changes on them, what changes labels is the augmentation."""
    fields = {
        **ONLY_CLASSIFICATION,
        "phases": ("reconstruction", "smoothness"),
        "train.smoothness_radius": 1e-3,
    }
    text = "affine(degrees=40)"
    _, plain = a_step(**fields)
    _, about = a_step(**fields, **{"train.smoothness_augmentation": text})
    _, seen = a_step(**fields, **{"train.augmentation": text})
    assert about["smoothness"] > 1e-3
    assert max(plain["smoothness"], seen["smoothness"]) < 1e-5
    np.testing.assert_allclose(about["reconstruction"], plain["reconstruction"], rtol=1e-6)
    assert abs(seen["reconstruction"] - plain["reconstruction"]) > 1e-3


@pytest.mark.parametrize("field", AUGMENTED)
def test_rows_of_a_table_cannot_be_augmented(field):
    made(tiny(**SMOOTHED), shape=(PIXELS,))
    with pytest.raises(ConfigError) as caught:
        made(tiny(**SMOOTHED, **{field: "affine(10)"}), shape=(PIXELS,))
    line = str(caught.value)
    assert line.startswith(f"{field} is 'affine(10)'") and "(16,)" in line and "\n" not in line


@pytest.mark.parametrize("field", AUGMENTED)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("afine(10)", "did you mean affine?"),
        ("gaussian(2)", "allowed: affine"),
        ("10", "names no function; allowed: affine"),
        ("affine(angle=10)", "affine(degrees=0.0, translate=0.0, scale=0.0, shear=0.0)"),
        ("affine(scale=1)", "scale below 1"),
        ("affine('a')", "affine in"),
    ],
)
def test_a_text_that_is_no_augmentation_is_refused(field, text, words):
    with pytest.raises(SpecError) as caught:
        made(tiny(**SMOOTHED, **{field: text}))
    line = str(caught.value)
    assert line.startswith(f"{field}: ") and words in line and text in line and "\n" not in line


# What cannot be built

REFUSED = {
    "a prior of another size": (
        {"style.prior": "gaussian(3)"},
        ["style.prior", "gaussian(3)", "3 dimensions", "model.style_dim is 2"],
    ),
    "an unknown prior": (
        {"style.prior": "gausian(2)"},
        ["style.prior", "gausian", "did you mean gaussian?", "petals", "swiss_roll"],
    ),
    "a prior's impossible argument": (
        {"style.prior": "gaussian(2, std=-1.0)"},
        ["style.prior", "std", "-1.0", "positive"],
    ),
    "a prior's unknown argument": (
        {"style.prior": "gaussian(2, sd=1.0)"},
        ["style.prior", "sd", "gaussian(dim, std=1.0)"],
    ),
    "no prior but a number": ({"style.prior": "3"}, ["style.prior", "3", "allowed"]),
    "half a prior": ({"style.prior": "gaussian(2"}, ["style.prior", "gaussian(2"]),
    "an unknown divergence": (
        {"style.divergence": "gann()"},
        ["style.divergence", "did you mean gan?", "wasserstein"],
    ),
    "a divergence's impossible argument": (
        {"style.divergence": "wasserstein(-1.0)"},
        ["style.divergence", "gradient_penalty", "-1.0"],
    ),
    "unknown initial weights": (
        {"decoder.init": "xavier()"},
        ["decoder.init", "xavier", "glorot_uniform", "normal"],
    ),
    "an unknown schedule": (
        {"optimizers.generator.schedule": "linear()"},
        ["optimizers.generator.schedule", "linear", "constant", "cosine", "step"],
    ),
    "a schedule's unknown argument": (
        {"optimizers.discriminator.schedule": "step(epoch=3)"},
        ["optimizers.discriminator.schedule", "epoch", "step(factor=0.1, epochs=(50, 1000))"],
    ),
    "a negative factor": (
        {"optimizers.autoencoder.schedule": "step(-0.1)"},
        ["optimizers.autoencoder.schedule", "step(-0.1)"],
    ),
    "a negative end": (
        {"optimizers.autoencoder.schedule": "cosine(end=-0.5)"},
        ["optimizers.autoencoder.schedule", "-0.5", "0 or more"],
    ),
    "a warmup that is longer than the run": (
        {"optimizers.autoencoder.schedule": "cosine(warmup=100)"},
        ["optimizers.autoencoder.schedule", "cosine(warmup=100)"],
    ),
    "times that are none": (
        {"optimizers.autoencoder.schedule": "step(0.1, epochs=('a',))"},
        ["optimizers.autoencoder.schedule", "step"],
    ),
    "fewer modes than classes": (
        {"style.prior": "petals(modes=2)", "style.label_informed": True},
        ["style.prior", "2 modes", "style.label_informed", "3 classes"],
    ),
    "an informed divergence without a critic": (
        {"style.prior": "petals(modes=3)", "style.label_informed": True, "style.divergence": "mmd"},
        ["style.label_informed", "critic", "mmd"],
    ),
    "a VAE whose prior has no density": (
        {
            **ONLY_RECONSTRUCTION,
            "model.posterior": "gaussian",
            "penalties.kl": 1.0,
            "style.prior": "swiss_roll()",
        },
        ["penalties.kl", "density", "swiss_roll()"],
    ),
    "classes that are not the data's": (
        {**ONLY_CLASSIFICATION, "model.labels": 4},
        ["model.labels is 4", "3 classes"],
    ),
    "given labels that are not the data's": (
        {"model.layout": "style_and_given_label", "model.labels": 2},
        ["model.labels is 2", "3 classes"],
    ),
    "a label prior of another size": (
        {**ALL_PHASES, "label.prior": "categorical(4)"},
        ["label.prior", "4", "model.labels is 3"],
    ),
    "information on labels of which one is never drawn": (
        {
            **ALL_PHASES,
            "phases": ("reconstruction", "smoothness"),
            **{"style.divergence": "", "label.divergence": "", "penalties.information": 0.1},
            "label.prior": "categorical(3, weights=(1, 0, 1))",
        },
        ["label.prior is 'categorical(3, weights=(1, 0, 1))'", "every label a probability"],
    ),
    "a style that is compared as if it were labels": (
        {"style.divergence": "mutual_information()"},
        ["style.divergence", "mutual_information", "for the label"],
    ),
    "whole-batch statistics of one example": (
        {"style.divergence": "mmd()", "train.batch_size": 1},
        ["style.divergence", "mmd()", "2 or more"],
    ),
    "fixed heads that are no square": (
        {"model.layout": "cluster_heads", "model.labels": 3, "cluster_heads.fixed": 10.0},
        ["cluster_heads.fixed", "model.style_dim is 2", "model.labels 3"],
    ),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_what_cannot_be_built_is_named_in_one_line(what):
    fields, words = REFUSED[what]
    with pytest.raises((ConfigError, SpecError)) as caught:
        made(tiny(**fields))
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


def test_clusters_need_not_be_as_many_as_classes():
    clusters = {"model.labels": 7, "label.prior": "categorical(7)", "label.divergence": "gan()"}
    experiment = made(tiny(**clusters, **{"model.layout": "style_and_inferred_label"}))
    assert experiment.model.num_labels == 7 and not experiment.knows_classes


# Data


def test_hidden_labels_and_held_out_images_never_reach_training(monkeypatch, tmp_path):
    fields = {
        **ALL_PHASES,
        "model.labels": 10,
        "label.prior": "categorical(10)",
        "style.prior": "petals(modes=10)",
        "style.label_informed": True,
        "data.labels": 100,
        "data.validation": 200,
        "train.batch_size": 100,
        "train.epochs": 2.0,
        "train.chunk_steps": 13,
        "evaluation.every_epochs": 50.0,
    }
    run = train.prepare(tiny(**fields), jax.devices()[:1])
    seen = []

    def fake_chunk(chunk, mesh, mode):
        def advance(state, examples, rows):
            seen.append((examples, rows))
            return state.replace(step=state.step + len(rows.image)), {"loss": np.ones(13)}

        return advance

    monkeypatch.setattr(train.parallel, "map_chunk", fake_chunk)
    monkeypatch.setattr(train, "validator", lambda *_: lambda state: {})
    monkeypatch.setattr(recording, "_event_writer", lambda workdir: Silent())
    train.train(run, tmp_path, say=lambda line: None)
    assert len(seen) == 2, "1300 images in batches of 100, two epochs, chunks of 13"
    (examples, rows), (_, later) = seen
    label, labelled = np.asarray(examples.label), run.splits.labelled
    assert (run.train_labels >= 0).all() and len(run.train_labels) == 1300
    assert np.array_equal(np.flatnonzero(label >= 0), labelled)
    assert np.array_equal(label[labelled], run.train_labels[labelled])
    assert np.bincount(label[labelled]).tolist() == [10] * 10
    assert np.isin(rows.labelled, labelled).all() and set(rows.labelled.flat) == set(labelled)
    assert sorted(rows.image.flat) == sorted(later.image.flat) == list(range(1300))
    trained = {image.tobytes() for image in np.asarray(examples.image)}
    held_out = [*run.splits.valid.image, *run.splits.test.image]
    assert len(held_out) == 200 + 297
    twice = sum(image.tobytes() in trained for image in held_out)
    assert twice <= 2, "scikit-learn's digits hold an image or two twice"


class Silent:
    def write_scalars(self, step, scalars): ...
    def write_hparams(self, fields): ...
    def close(self): ...
