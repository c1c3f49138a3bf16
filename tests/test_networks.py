"""Networks against NumPy in float64: weights at the start, noise, dropout, the two norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from aae_jax.networks import (
    ACTIVATIONS,
    INITIALIZERS,
    MLP,
    Decoder,
    Discriminator,
    Encoder,
    dropout,
    gaussian_noise,
    normal,
    one_hot,
)

few_examples = settings(deadline=None, max_examples=10, derandomize=True)
KEY = jax.random.key(0)


def keys_of(batch: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), batch)


def normals(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def in_numpy(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def affine(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def leaves_by_name(tree) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


NUMPY_ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(x, 0),
}


# Weights at the start


def test_weights_start_from_the_papers_gaussian_and_biases_at_zero():
    image, code = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 50))
    networks = {
        "encoder": (Encoder(MLP((300, 200)), {"style": 60, "label": 70}), image, keys_of(1), False),
        "decoder": (Decoder(MLP((300,)), (8, 8, 1)), code, keys_of(1), False),
        "discriminator": (Discriminator((300, 200)), code),
    }
    for name, (network, *inputs) in networks.items():
        for leaf, values in leaves_by_name(network.init(KEY, *inputs)["params"]).items():
            if "bias" in leaf:
                assert not values.any(), (name, leaf)
                continue
            # Five standard errors of a mean and of a standard deviation of n draws.
            error = 5 * 0.01 / np.sqrt(values.size)
            assert abs(values.mean()) < error, (name, leaf)
            assert abs(values.std() - 0.01) < error, (name, leaf)
            assert scipy.stats.kstest(values.ravel(), "norm", (0, 0.01)).pvalue > 1e-3, (name, leaf)


def test_the_weights_standard_deviation_can_be_set():
    kernel = MLP((400,), kernel_init=normal(0.5)).init(KEY, jnp.zeros((1, 100)), keys_of(1), False)[
        "params"
    ]["dense_0"]["kernel"]
    assert abs(np.std(kernel) - 0.5) < 0.01


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("normal", 1e-4),
        ("he_normal", 2 / 200),
        ("glorot_uniform", 2 / (200 + 300)),
        ("lecun_normal", 1 / 200),
        ("orthogonal", 1 / 300),
    ],
)
def test_initializers_by_name_have_their_textbook_variance(name, variance):
    weights = np.asarray(INITIALIZERS[name]()(KEY, (200, 300)), np.float64)
    assert abs((weights**2).mean() / variance - 1) < 0.03


# Layers


def test_layers_have_the_widths_asked_for():
    keys = keys_of(5)
    encoder = Encoder(MLP((32, 16)), {"style": 3, "label": 7})
    image = jnp.zeros((5, 8, 8, 2))
    variables = encoder.init(KEY, image, keys, False)
    shapes = {name: v.shape for name, v in leaves_by_name(variables["params"]).items()}
    kernels = sorted(shape for name, shape in shapes.items() if "kernel" in name)
    assert kernels == sorted([(128, 32), (32, 16), (16, 3), (16, 7)])
    outputs = encoder.apply(variables, image, keys, False)
    assert {name: o.shape for name, o in outputs.items()} == {"style": (5, 3), "label": (5, 7)}

    decoder = Decoder(MLP((16, 32)), (4, 4, 3))
    code = jnp.zeros((5, 10))
    variables = decoder.init(KEY, code, keys, False)
    assert decoder.apply(variables, code, keys, False).shape == (5, 4, 4, 3)

    discriminator = Discriminator((32, 16))
    assert discriminator.apply(discriminator.init(KEY, code), code).shape == (5,)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_an_mlp_is_its_formula(activation):
    assert ACTIVATIONS.keys() == NUMPY_ACTIVATIONS.keys()
    x = normals(1, 6, 4, 5)
    mlp = MLP((16, 8), activation, INITIALIZERS["he_normal"]())
    variables = mlp.init(KEY, x, keys_of(6), False)
    act = NUMPY_ACTIVATIONS[activation]
    layers = in_numpy(variables["params"])
    hidden = act(affine(layers["dense_0"], in_numpy(x).reshape(6, 20)))
    expected = act(affine(layers["dense_1"], hidden))
    np.testing.assert_allclose(
        mlp.apply(variables, x, keys_of(6), True), expected, rtol=1e-5, atol=1e-6
    )


def test_encoder_decoder_and_discriminator_end_in_linear_layers():
    he = INITIALIZERS["he_normal"]()
    x, keys = normals(1, 6, 20), keys_of(6)
    for network, hidden, outputs, inputs in (
        (
            Encoder(MLP((16,), kernel_init=he), {"style": 2, "label": 3}, he),
            ("trunk", "dense_0"),
            ("style", "label"),
            (x, keys, True),
        ),
        (
            Decoder(MLP((16,), kernel_init=he), (3, 2, 1), he),
            ("hidden", "dense_0"),
            ("output",),
            (x, keys, True),
        ),
        (Discriminator((16,), kernel_init=he), ("dense_0",), ("score",), (x,)),
    ):
        variables = network.init(KEY, *inputs)
        layers = in_numpy(variables["params"])
        layer = layers
        for name in hidden:
            layer = layer[name]
        features = np.maximum(affine(layer, in_numpy(x)), 0)
        result = network.apply(variables, *inputs)
        results = result if isinstance(result, dict) else {outputs[0]: result}
        for name in outputs:
            expected = affine(layers[name], features).reshape(results[name].shape)
            assert (expected < 0).any() and (expected > 0).any()
            np.testing.assert_allclose(results[name], expected, rtol=1e-5, atol=1e-6)


# Noise and dropout


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
    x = 1.0 + jnp.arange(20.0).reshape(4, 5)
    dropped = np.asarray(
        jax.vmap(lambda keys: dropout(x, keys, rate))(jax.random.split(KEY, (2500, 4)))
    )
    kept = dropped != 0
    np.testing.assert_allclose(
        dropped[kept], np.broadcast_to(x / (1 - rate), dropped.shape)[kept], rtol=1e-6
    )
    # Every place on its own, within five standard errors.
    error = 5 * np.sqrt(rate * (1 - rate) / 2500)
    assert np.abs(kept.mean(axis=0) - (1 - rate)).max() < error


def test_dropout_is_independent_between_examples_and_between_values():
    kept = np.asarray(dropout(jnp.ones((4000, 6)), keys_of(4000), 0.3)) != 0
    correlation = np.corrcoef(kept.T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)
    assert abs(np.corrcoef(kept[1:, 0], kept[:-1, 0])[0, 1]) < 5 / np.sqrt(4000)


def test_gaussian_noise_has_its_standard_deviation():
    x = normals(1, 3000, 4)
    noise = np.asarray(gaussian_noise(x, keys_of(3000), 0.3) - x, np.float64)
    assert scipy.stats.kstest(noise.ravel(), "norm", (0, 0.3)).pvalue > 1e-3
    assert np.abs(np.corrcoef(noise.T) - np.eye(4)).max() < 5 / np.sqrt(3000)


def test_no_dropout_and_no_noise_leave_values_as_they_are():
    x = normals(1, 3, 4)
    np.testing.assert_array_equal(dropout(x, keys_of(3), 0.0), x)
    np.testing.assert_array_equal(gaussian_noise(x, keys_of(3), 0.0), x)


@pytest.mark.parametrize("draw", [dropout, gaussian_noise])
def test_noise_of_an_example_does_not_depend_on_the_split_of_its_batch(draw):
    x, keys = normals(1, 8, 5), keys_of(8)
    halves = [draw(x[half], keys[half], 0.4) for half in (slice(0, 4), slice(4, 8))]
    np.testing.assert_array_equal(np.concatenate(halves), draw(x, keys, 0.4))


def test_hidden_dropout_acts_in_training_only():
    mlp = MLP((500,), "softplus", dropout=0.4)
    x = jnp.ones((4, 3))
    variables = mlp.init(KEY, x, keys_of(4), False)
    still = np.asarray(mlp.apply(variables, x, keys_of(4), False))
    np.testing.assert_array_equal(still, mlp.apply(variables, x, keys_of(4, seed=1), False))
    assert (still > 0).all()
    training = np.asarray(mlp.apply(variables, x, keys_of(4), True))
    assert abs((training == 0).mean() - 0.4) < 5 * np.sqrt(0.24 / 2000)
    np.testing.assert_allclose(training[training != 0], still[training != 0] / 0.6, rtol=1e-6)


def test_layers_of_one_network_drop_different_units():
    # Softplus of zero weights is one constant, so that a zero is a dropped unit.
    mlp = MLP((400, 400), "softplus", jax.nn.initializers.zeros, dropout=0.5)
    x = jnp.ones((3, 2))
    _, seen = mlp.apply(
        mlp.init(KEY, x, keys_of(3), False),
        x,
        keys_of(3),
        True,
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    second = np.asarray(seen["intermediates"]["__call__"][0]) == 0
    first = (
        np.asarray(
            MLP((400,), "softplus", jax.nn.initializers.zeros, dropout=0.5).apply(
                {"params": {"dense_0": {"kernel": jnp.zeros((2, 400)), "bias": jnp.zeros(400)}}},
                x,
                keys_of(3),
                True,
            )
        )
        == 0
    )
    assert abs((first == second).mean() - 0.5) < 0.1


# Batch norm


def batch_normed(variables, x):
    """An encoder of one normalised hidden layer and normalised heads, by hand."""
    layers = in_numpy(variables["params"])

    def norm(x):
        return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)

    raw = affine(layers["trunk"]["dense_0"], in_numpy(x))
    hidden = np.maximum(norm(raw), 0)
    return raw, {name: norm(affine(layers[name], hidden)) for name in ("style", "label")}


def normed_encoder():
    he = INITIALIZERS["he_normal"]()
    return Encoder(MLP((16,), kernel_init=he, batch_norm=True), {"style": 2, "label": 3}, he, True)


def test_batch_norm_takes_the_batchs_statistics_in_training():
    x = 3.0 + 2.0 * normals(1, 40, 20)
    encoder = normed_encoder()
    variables = encoder.init(KEY, x, keys_of(40), False)
    outputs, moved = encoder.apply(variables, x, keys_of(40), True, mutable=["batch_stats"])
    raw, expected = batch_normed(variables, x)
    for name in ("style", "label"):
        np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-4, atol=1e-4)
    running = moved["batch_stats"]["trunk"]["norm_0"]["norm"]
    np.testing.assert_allclose(running["mean"], 0.05 * raw.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(running["var"], 0.95 + 0.05 * raw.var(axis=0), rtol=1e-4)


def test_batch_norm_takes_running_statistics_out_of_training():
    x = 3.0 + 2.0 * normals(1, 40, 20)
    encoder = normed_encoder()
    variables = encoder.init(KEY, x, keys_of(40), False)
    for _ in range(300):  # 0.95 ** 300 = 2e-7: the running statistics reach the batch's
        _, moved = APPLY_TRAINING(encoder, variables, x, keys_of(40))
        variables = {**variables, **moved}
    _, expected = batch_normed(variables, x)
    outputs = encoder.apply(variables, x, keys_of(40), False)
    for name in ("style", "label"):
        np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-3, atol=1e-3)
    # And the company that an example keeps no longer matters.
    alone = encoder.apply(variables, x[:1], keys_of(1), False)
    np.testing.assert_allclose(alone["style"], outputs["style"][:1], rtol=1e-5, atol=1e-5)


APPLY_TRAINING = jax.jit(
    lambda encoder, variables, x, keys: encoder.apply(
        variables, x, keys, True, mutable=["batch_stats"]
    ),
    static_argnums=0,
)


def test_without_batch_norm_there_are_no_statistics():
    mlp = MLP((8,))
    assert "batch_stats" not in mlp.init(KEY, jnp.zeros((1, 3)), keys_of(1), False)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_a_discriminator_scores_each_code_by_itself(spectral_norm):
    # Batch norm in a discriminator on codes makes it useless.
    discriminator = Discriminator(
        (16, 16), kernel_init=INITIALIZERS["he_normal"](), spectral_norm=spectral_norm
    )
    codes = normals(1, 12, 3)
    variables = discriminator.init(KEY, codes, True)
    scores = discriminator.apply(variables, codes)
    alone = discriminator.apply(variables, codes[:1])
    np.testing.assert_allclose(scores[:1], alone, rtol=1e-5, atol=1e-6)
    company = discriminator.apply(variables, jnp.concatenate([codes[:6], 100.0 * codes[6:]]))
    np.testing.assert_allclose(scores[:6], company[:6], rtol=1e-5, atol=1e-6)
    names = {name.split("'")[-2] for name in leaves_by_name(variables["params"])}
    assert names == {"kernel", "bias"}


# Spectral norm


def test_spectral_norm_divides_each_matrix_by_its_largest_singular_value():
    # A small start: the norm has to enlarge these weights, and no constant factor would do.
    discriminator = Discriminator((32, 24), "leaky_relu", normal(0.01), spectral_norm=True)
    x = normals(1, 50, 5)
    variables = discriminator.init(KEY, x, True)
    refresh = jax.jit(lambda v: discriminator.apply(v, x, True, mutable=["batch_stats"])[1])
    for _ in range(200):
        variables = {**variables, **refresh(variables)}

    def normed(layer):
        kernel = layer["kernel"] / np.linalg.svd(layer["kernel"], compute_uv=False)[0]
        return {**layer, "kernel": kernel}

    layers = {name: normed(layer) for name, layer in in_numpy(variables["params"]).items()}
    hidden = in_numpy(x)
    for name in ("dense_0", "dense_1"):
        hidden = NUMPY_ACTIVATIONS["leaky_relu"](affine(layers[name], hidden))
    expected = affine(layers["score"], hidden)[:, 0]
    np.testing.assert_allclose(discriminator.apply(variables, x), expected, rtol=1e-3, atol=1e-4)


def test_scoring_does_not_move_the_power_iteration():
    discriminator = Discriminator((8,), spectral_norm=True)
    x = normals(1, 5, 3)
    variables = discriminator.init(KEY, x, True)
    _, moved = discriminator.apply(variables, x, mutable=["batch_stats"])
    for name, leaf in leaves_by_name(variables["batch_stats"]).items():
        np.testing.assert_array_equal(leaf, leaves_by_name(moved["batch_stats"])[name])


# One-hot


@few_examples
@given(labels=st.lists(st.integers(-1, 6), min_size=1, max_size=8))
def test_one_hot_rows_and_a_row_of_zeros_for_what_is_no_class(labels):
    expected = np.array([[float(label == k) for k in range(5)] for label in labels])
    np.testing.assert_array_equal(one_hot(jnp.array(labels), 5), expected)
