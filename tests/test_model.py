"""Posteriors as distributions; code layouts, likelihoods and composition against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from aae_jax import divergences, priors
from aae_jax.model import (
    LAYOUTS,
    LIKELIHOODS,
    POSTERIORS,
    Code,
    autoencoder,
    encoder_heads,
    reconstruct,
)
from aae_jax.networks import MLP, Decoder, Encoder
from aae_jax.phases import Match

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH, STYLE_DIM, LABELS = 8, 3, 4
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, BATCH)
OTHER_KEYS = jax.random.split(jax.random.key(1), BATCH)
IMAGE = jnp.asarray(np.random.default_rng(0).uniform(size=(BATCH, 8, 8, 1)), jnp.float32)
MANY = 4000
MANY_KEYS = jax.random.split(jax.random.key(2), MANY)
EMPTY_STATS = {"encoder": {}, "decoder": {}, "discriminator": {}}
MATCHES = (
    Match("style", priors.gaussian(STYLE_DIM), divergences.gan()),
    Match("label", priors.categorical(LABELS), divergences.gan()),
)


def with_head(params, head, kernel, bias=0.0):
    """The parameters with one of the encoder's heads replaced."""
    shape = params["encoder"][head]["kernel"].shape
    layer = {
        "kernel": jnp.broadcast_to(jnp.asarray(kernel, jnp.float32), shape),
        "bias": jnp.broadcast_to(jnp.asarray(bias, jnp.float32), shape[1:]),
    }
    return {**params, "encoder": {**params["encoder"], head: layer}}


def in_numpy(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def affine(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def encoded(params, image):
    """Heads of the encoder by hand."""
    encoder = in_numpy(params["encoder"])
    x = in_numpy(image).reshape(image.shape[0], -1)
    hidden = np.maximum(affine(encoder["trunk"]["dense_0"], x), 0)
    return {name: affine(encoder[name], hidden) for name in encoder if name != "trunk"}


def decoded(params, code):
    """The decoder's output by hand, for the code as the decoder sees it."""
    decoder = in_numpy(params["decoder"])
    hidden = np.maximum(affine(decoder["hidden"]["dense_0"], code), 0)
    return affine(decoder["output"], hidden).reshape(-1, 8, 8, 1)


def softmax(logits):
    return scipy.special.softmax(logits, axis=1)


def encode(model, params, image, keys, train=False, batch_stats=None):
    stats = batch_stats or EMPTY_STATS
    return jax.jit(functools.partial(model.encode, train=train))(params, stats, image, keys)


def many_codes(model, params, image, train=False):
    """Codes of one image, one for each of MANY keys."""
    repeated = jnp.broadcast_to(image, (MANY, *image.shape))
    return encode(model, params, repeated, MANY_KEYS, train)[0]


# Posteriors


def test_the_deterministic_code_is_the_encoders_output_whatever_the_keys(
    small_experiment, random_weights
):
    model = small_experiment(labels=LABELS, layout="style_and_inferred_label").model
    params, _ = random_weights(model.init)
    for train in (False, True):
        code, _ = encode(model, params, IMAGE, KEYS, train)
        again, _ = encode(model, params, IMAGE, OTHER_KEYS, train)
        np.testing.assert_array_equal(code.style, again.style)
        np.testing.assert_array_equal(code.label_logits, again.label_logits)
        assert code.style_log_prob is None
        expected = encoded(params, IMAGE)
        np.testing.assert_allclose(code.style, expected["style"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(code.label_logits, expected["label"], rtol=1e-5, atol=1e-5)


def test_codes_of_the_gaussian_posterior_have_its_mean_and_variance(
    small_experiment, random_weights
):
    model = small_experiment(posterior="gaussian").model
    params, _ = random_weights(model.init)
    code = many_codes(model, params, IMAGE[0])
    predicted = encoded(params, IMAGE[:1])
    mean = predicted["style"][0]
    std = np.exp(0.5 * predicted["style_log_variance"][0])
    assert std.max() / std.min() > 1.2  # so that a mixed-up dimension or a constant would show
    style = np.asarray(code.style, np.float64)
    standard = (style - mean) / std
    for dimension in range(STYLE_DIM):
        assert scipy.stats.kstest(standard[:, dimension], "norm").pvalue > 1e-3
    assert np.abs(standard.mean(axis=0)).max() < 4 / np.sqrt(MANY)
    assert np.abs(standard.std(axis=0) - 1).max() < 4 / np.sqrt(2 * MANY)
    assert np.abs(np.corrcoef(standard.T) - np.eye(STYLE_DIM)).max() < 4 / np.sqrt(MANY)
    log_density = scipy.stats.norm.logpdf(style, mean, std).sum(axis=1)
    np.testing.assert_allclose(code.style_log_prob, log_density, rtol=1e-4, atol=1e-4)


def test_the_gaussian_posterior_is_reparametrised(small_experiment, random_weights):
    # Without the gradient of the sample, nothing would pull the variance from codes.
    model = small_experiment(posterior="gaussian").model
    params, _ = random_weights(model.init)

    def first_style(params):
        return encode(model, params, IMAGE, KEYS)[0].style[:, 0].sum()

    gradient = jax.grad(first_style)(params)["encoder"]
    style = np.asarray(encode(model, params, IMAGE, KEYS)[0].style, np.float64)
    mean = encoded(params, IMAGE)["style"]
    np.testing.assert_allclose(gradient["style"]["bias"], [BATCH, 0, 0], atol=1e-5)
    # d(mean + exp(v / 2) noise) / dv is half the distance from the mean.
    expected = [0.5 * (style - mean)[:, 0].sum(), 0, 0]
    np.testing.assert_allclose(
        gradient["style_log_variance"]["bias"], expected, rtol=1e-4, atol=1e-5
    )


def universal(small_experiment, random_weights, noise_dim, std=1.0):
    model = small_experiment(posterior="universal", noise_dim=noise_dim).model
    return model, random_weights(model.init, std)[0]


@pytest.mark.parametrize("train", [False, True])
def test_codes_of_the_universal_approximator_vary_with_eta_only(
    small_experiment, random_weights, train
):
    model, params = universal(small_experiment, random_weights, noise_dim=5)
    code, _ = encode(model, params, IMAGE, KEYS, train)
    same, _ = encode(model, params, IMAGE, KEYS, train)
    other, _ = encode(model, params, IMAGE, OTHER_KEYS, train)
    np.testing.assert_array_equal(code.style, same.style)
    assert (np.abs(code.style - other.style) > 1e-3).all()
    assert code.style_log_prob is None


def test_the_universal_approximator_is_not_gaussian(small_experiment, random_weights):
    model, params = universal(small_experiment, random_weights, noise_dim=5)
    style = np.asarray(many_codes(model, params, IMAGE[0]).style)
    assert all(scipy.stats.normaltest(style[:, d]).pvalue < 1e-6 for d in range(STYLE_DIM))


def test_eta_is_standard_normal_noise_beside_the_image(small_experiment, random_weights):
    # An encoder that passes on pixel 3 and eta (the difference of its two rectified halves).
    model, params = universal(small_experiment, random_weights, noise_dim=2, std=0.0)
    trunk, head = np.zeros((66, 16)), np.zeros((16, 3))
    trunk[3, 0] = trunk[64, 1] = trunk[65, 2] = 1
    trunk[64, 3], trunk[65, 4] = -1, -1
    head[0, 0] = head[1, 1] = head[2, 2] = 1
    head[3, 1], head[4, 2] = -1, -1
    params = with_head(params, "style", head)
    params["encoder"]["trunk"]["dense_0"]["kernel"] = jnp.asarray(trunk, jnp.float32)
    style = np.asarray(many_codes(model, params, IMAGE[0]).style, np.float64)
    np.testing.assert_allclose(style[:, 0], float(IMAGE[0].ravel()[3]), rtol=1e-6)
    for eta in (style[:, 1], style[:, 2]):
        assert scipy.stats.kstest(eta, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(style[:, 1], style[:, 2])[0, 1]) < 4 / np.sqrt(MANY)


def test_heads_of_the_encoder_by_posterior():
    assert encoder_heads("deterministic", 3, 0) == {"style": 3}
    assert encoder_heads("universal", 3, 4) == {"style": 3, "label": 4}
    gaussian = {"style": 3, "style_log_variance": 3, "label": 4}
    assert encoder_heads("gaussian", 3, 4) == gaussian
    assert POSTERIORS == ("deterministic", "gaussian", "universal")


# Noise on the input


def pixel_passing(small_experiment, random_weights, **noise):
    """An encoder whose style is three of its input's (positive) pixels."""
    model = small_experiment(**noise).model
    params, _ = random_weights(model.init, std=0.0)
    trunk, head = np.zeros((64, 16)), np.zeros((16, 3))
    for place, pixel in enumerate((0, 17, 63)):
        trunk[pixel, place] = head[place, place] = 1
    params = with_head(params, "style", head)
    params["encoder"]["trunk"]["dense_0"]["kernel"] = jnp.asarray(trunk, jnp.float32)
    return model, params


def test_input_noise_has_its_standard_deviation_in_training_only(small_experiment, random_weights):
    model, params = pixel_passing(small_experiment, random_weights, input_noise=0.3)
    bright = jnp.full((8, 8, 1), 10.0)  # far from the rectifier's zero
    still = many_codes(model, params, bright).style
    np.testing.assert_allclose(still, 10.0, rtol=1e-6)
    noise = np.asarray(many_codes(model, params, bright, train=True).style, np.float64) - 10.0
    assert scipy.stats.kstest(noise.ravel(), "norm", (0, 0.3)).pvalue > 1e-3
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 4 / np.sqrt(MANY)


def test_input_dropout_drops_its_share_in_training_only(small_experiment, random_weights):
    model, params = pixel_passing(small_experiment, random_weights, input_dropout=0.2)
    bright = jnp.full((8, 8, 1), 10.0)
    np.testing.assert_allclose(many_codes(model, params, bright).style, 10.0, rtol=1e-6)
    dropped = np.asarray(many_codes(model, params, bright, train=True).style)
    zeros = dropped == 0
    np.testing.assert_allclose(dropped[~zeros], 10.0 / 0.8, rtol=1e-5)
    assert np.abs(zeros.mean(axis=0) - 0.2).max() < 4 * np.sqrt(0.16 / MANY)


# What the decoder sees


GIVEN = jnp.array([0, 3, 1, 2, -1, 3, 0, 1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_decoder_sees_the_code_in_its_layout(small_experiment, layout, random_weights):
    labels = 0 if layout == "style" else LABELS
    heads = {"cluster_heads": lambda key: jnp.zeros((LABELS, STYLE_DIM))}
    changes = heads if layout == "cluster_heads" else {}
    model = small_experiment(labels=labels, layout=layout, **changes).model
    params, _ = random_weights(model.init)
    code, _ = encode(model, params, IMAGE, KEYS)
    label = model.label(code, GIVEN)
    output, _, _ = reconstruct(model, params, EMPTY_STATS, IMAGE, GIVEN, KEYS, train=True)

    hand = encoded(params, IMAGE)
    one_hot = np.array([[float(y == k) for k in range(LABELS)] for y in np.asarray(GIVEN)])
    by_hand = {
        "style": lambda: hand["style"],
        "style_and_given_label": lambda: np.hstack([hand["style"], one_hot]),
        "style_and_inferred_label": lambda: np.hstack([hand["style"], softmax(hand["label"])]),
        "cluster_heads": lambda: (
            softmax(hand["label"]) @ in_numpy(params["cluster_heads"]) + hand["style"]
        ),
    }
    expected = decoded(params, by_hand[layout]())
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    again, _ = jax.jit(functools.partial(model.decode, train=False))(
        params, EMPTY_STATS, code.style, label, KEYS
    )
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-5)
    assert (label is None) == (layout == "style")
    assert ("label" in params["encoder"]) == (layout not in ("style", "style_and_given_label"))


def test_fixed_cluster_heads_are_no_parameters(small_experiment, random_weights):
    fixed = 10.0 * jnp.eye(LABELS, STYLE_DIM)
    model = small_experiment(labels=LABELS, layout="cluster_heads", fixed_cluster_heads=fixed).model
    params, _ = random_weights(model.init)
    assert "cluster_heads" not in params
    np.testing.assert_array_equal(model.heads(params), fixed)
    output, code, _ = reconstruct(model, params, EMPTY_STATS, IMAGE, GIVEN, KEYS, train=False)
    seen = softmax(in_numpy(code.label_logits)) @ in_numpy(fixed) + in_numpy(code.style)
    np.testing.assert_allclose(output, decoded(params, seen), rtol=1e-4, atol=1e-4)


def test_learned_cluster_heads_start_as_told(small_experiment):
    start = jnp.arange(12.0).reshape(LABELS, STYLE_DIM)
    model = small_experiment(
        labels=LABELS,
        layout="cluster_heads",
        cluster_heads=lambda key: start,
        kernel_init=jax.nn.initializers.zeros,
    ).model
    params, _ = model.init(KEY)
    np.testing.assert_array_equal(params["cluster_heads"], start)
    np.testing.assert_array_equal(model.heads(params), start)


def test_the_label_is_a_distribution_and_softmax_is_taken_once(small_experiment):
    model = small_experiment(labels=LABELS, layout="style_and_inferred_label").model
    logits = jnp.log(jnp.array([[0.7, 0.1, 0.1, 0.1], [0.01, 0.97, 0.01, 0.01]])) + 3.0
    label = model.label(Code(jnp.zeros((2, STYLE_DIM)), logits), jnp.array([-1, -1]))
    np.testing.assert_allclose(label, [[0.7, 0.1, 0.1, 0.1], [0.01, 0.97, 0.01, 0.01]], rtol=1e-5)


def test_a_layout_with_a_label_refuses_to_go_without(small_experiment, random_weights):
    model = small_experiment(labels=LABELS, layout="style_and_given_label").model
    params, _ = random_weights(model.init)
    with pytest.raises(AssertionError, match="style_and_given_label needs a label"):
        model.decode(params, EMPTY_STATS, jnp.zeros((BATCH, STYLE_DIM)), None, KEYS, False)


# Likelihoods


OUTPUT = np.random.default_rng(1).normal(scale=3.0, size=(5, 4, 4, 2))
TARGET = np.random.default_rng(2).uniform(size=(5, 4, 4, 2))


def test_likelihoods_are_sums_over_pixels_in_nats():
    mean = scipy.special.expit(OUTPUT)
    pixels = (1, 2, 3)
    expected = {
        "sigmoid": (mean, 0.5 * ((mean - TARGET) ** 2).sum(pixels)),
        "linear": (OUTPUT, 0.5 * ((OUTPUT - TARGET) ** 2).sum(pixels)),
        "bernoulli": (
            mean,
            -(TARGET * np.log(mean) + (1 - TARGET) * np.log(1 - mean)).sum(pixels),
        ),
    }
    assert expected.keys() == LIKELIHOODS.keys()
    output, target = jnp.asarray(OUTPUT, jnp.float32), jnp.asarray(TARGET, jnp.float32)
    for name, likelihood in LIKELIHOODS.items():
        by_hand, loss = expected[name]
        np.testing.assert_allclose(likelihood.mean(output), by_hand, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(likelihood.loss(output, target), loss, rtol=1e-5)


def test_the_bernoulli_likelihood_stands_extreme_outputs():
    output = jnp.array([[200.0, -200.0]])
    loss = LIKELIHOODS["bernoulli"].loss
    np.testing.assert_allclose(loss(output, jnp.array([[1.0, 0.0]])), [0.0], atol=1e-6)
    np.testing.assert_allclose(loss(output, jnp.array([[0.0, 1.0]])), [400.0], rtol=1e-6)


# The model's start, its statistics, its critics


def test_init_is_a_function_of_the_key_and_gives_every_network_its_own(small_experiment):
    model = small_experiment(MATCHES, labels=LABELS, layout="style_and_inferred_label").model
    init = jax.jit(model.init)
    params, batch_stats = init(KEY)
    again, _ = init(KEY)
    other, _ = init(jax.random.key(1))
    assert sorted(params) == ["decoder", "discriminator", "encoder"]
    assert sorted(params["discriminator"]) == ["label", "style"]
    assert batch_stats == {
        "encoder": {}, "decoder": {}, "discriminator": {"label": {}, "style": {}},
    }  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, params, again)
    kernels = [
        np.asarray(leaf).ravel()
        for tree in (params, other)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if path[-1].key == "kernel"
    ]
    # No two weight matrices share their numbers, whatever their shape or network.
    starts = np.array([kernel[:4] / np.abs(kernel[:4]).max() for kernel in kernels])
    assert len(np.unique(starts.round(4), axis=0)) == len(kernels)


def test_a_critic_scores_with_its_own_parts_parameters(small_experiment, random_weights):
    model = small_experiment(MATCHES, labels=LABELS, layout="style_and_inferred_label").model
    params, batch_stats = random_weights(model.init)
    codes = np.random.default_rng(3).normal(size=(6, LABELS))
    for part, width in (("style", STYLE_DIM), ("label", LABELS)):
        layers = in_numpy(params["discriminator"][part])
        hidden = np.maximum(affine(layers["dense_0"], codes[:, :width]), 0)
        scores = model.critic(params, batch_stats, part)(jnp.asarray(codes[:, :width], jnp.float32))
        np.testing.assert_allclose(scores, affine(layers["score"], hidden)[:, 0], rtol=1e-4)


def test_refresh_moves_the_power_iteration_of_every_discriminator(small_experiment, random_weights):
    model = small_experiment(
        MATCHES, labels=LABELS, layout="style_and_inferred_label", spectral_norm=True
    ).model
    params, batch_stats = random_weights(model.init)
    refresh = jax.jit(model.refresh)
    for _ in range(100):
        batch_stats = refresh(params, batch_stats)
    for part in ("style", "label"):
        kernel = in_numpy(params["discriminator"][part]["dense_0"]["kernel"])
        largest = np.linalg.svd(kernel, compute_uv=False)[0]
        stats = batch_stats["discriminator"][part]["dense_0_spectral"]
        np.testing.assert_allclose(stats["dense_0/kernel/sigma"], largest, rtol=1e-3)


def test_refresh_leaves_statistics_without_spectral_norm_as_they_are(
    small_experiment, random_weights
):
    model = small_experiment(MATCHES[:1], batch_norm=True).model
    params, batch_stats = random_weights(model.init)
    jax.tree.map(np.testing.assert_array_equal, model.refresh(params, batch_stats), batch_stats)


def test_running_statistics_move_in_training_only_and_those_of_the_encoder_only(
    small_experiment, random_weights
):
    model = small_experiment(MATCHES[:1], batch_norm=True).model
    params, batch_stats = random_weights(model.init)
    _, still = encode(model, params, IMAGE, KEYS, False, batch_stats)
    jax.tree.map(np.testing.assert_array_equal, still, batch_stats)
    _, moved = encode(model, params, IMAGE, KEYS, True, batch_stats)
    assert moved.keys() == batch_stats.keys()
    pairs = zip(
        jax.tree.leaves(moved["encoder"]), jax.tree.leaves(batch_stats["encoder"]), strict=True
    )
    assert all((np.asarray(new) != np.asarray(old)).all() for new, old in pairs)
    assert moved["decoder"] == {} and moved["discriminator"] == {"style": {}}


def test_encoder_and_decoder_do_not_drop_the_same_units(random_weights):
    # Both are given the example's key; equal masks would tie their units together.
    zeros = jax.nn.initializers.zeros
    hidden = MLP((400,), "softplus", zeros, dropout=0.5)
    model = autoencoder(
        Encoder(hidden, {"style": 400}, zeros),
        Decoder(hidden, (400,), zeros),
        {},
        image_shape=(5,),
        style_dim=400,
        num_labels=0,
        likelihood=LIKELIHOODS["linear"],
    )
    params, _ = random_weights(model.init, std=0.0)
    identity = {"kernel": jnp.eye(400), "bias": jnp.zeros(400)}
    params["encoder"]["style"] = params["decoder"]["output"] = identity
    output, code, _ = reconstruct(
        model, params, EMPTY_STATS, jnp.zeros((BATCH, 5)), GIVEN, KEYS, train=True
    )
    # A softplus of zero is never zero, unless dropped.
    same = (np.asarray(output) == 0) == (np.asarray(code.style) == 0)
    assert abs(same.mean() - 0.5) < 0.05
