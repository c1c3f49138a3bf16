"""Networks against NumPy in float64: weights at the start, noise, dropout, the two norms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from aae_jax.networks import (
    ACTIVATIONS,
    INITIALIZERS,
    MLP,
    BatchNorm,
    Convolution,
    ConvolutionalDecoder,
    ConvolutionalTrunk,
    Decoder,
    Discriminator,
    Encoder,
    convolve,
    convolve_patches,
    dropout,
    gaussian_noise,
    halvings,
    normal,
    one_hot,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH, FEATURES = 8, 20
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, BATCH)
OTHER_KEYS = jax.random.split(jax.random.key(1), BATCH)


def normals(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = normals(1, BATCH, FEATURES)
WIDE = normals(3, BATCH, 4, 20, 1)


@pytest.fixture(scope="module")
def filled(random_weights):
    """Random variables for a network: (network, *arrays, std, **flags) -> variables."""

    def fill(network, *arrays, std=0.3, **flags):
        return random_weights(lambda key: network.init(key, *arrays, **flags), std)

    return fill


def apply(network, variables, *arrays, mutable=False, **flags):
    """One compiled call."""
    return jax.jit(functools.partial(network.apply, mutable=mutable, **flags))(variables, *arrays)


def in_numpy(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def affine(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def named_leaves(tree) -> dict[str, np.ndarray]:
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


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (Encoder(MLP((300,)), {"style": 60, "label": 70}), (jnp.zeros((1, 200)), KEYS[:1], False)),
        (Decoder(MLP((300,)), (10, 20)), (jnp.zeros((1, 200)), KEYS[:1], False)),
        (Discriminator((300, 300)), (jnp.zeros((1, 200)),)),
    ],
    ids=["encoder", "decoder", "discriminator"],
)
def test_weights_start_from_the_papers_gaussian_and_biases_at_zero(network, inputs):
    for name, values in named_leaves(network.init(KEY, *inputs)["params"]).items():
        if "bias" in name:
            assert not values.any(), name
            continue
        # Five standard errors of a mean and of a standard deviation of n draws.
        error = 5 * 0.01 / np.sqrt(values.size)
        assert abs(values.mean()) < error, name
        assert abs(values.std() - 0.01) < error, name
        assert scipy.stats.kstest(values.ravel(), "norm", (0, 0.01)).pvalue > 1e-3, name


@pytest.mark.parametrize(
    ("initializer", "variance"),
    [
        (INITIALIZERS["normal"](), 1e-4),
        (INITIALIZERS["normal"](0.5), 0.25),
        (normal(0.02), 4e-4),
        (normal(1), 1.0),
        (INITIALIZERS["he_normal"](), 2 / 200),
        (INITIALIZERS["glorot_uniform"](), 2 / (200 + 300)),
        (INITIALIZERS["lecun_normal"](), 1 / 200),
        (INITIALIZERS["orthogonal"](), 1 / 300),
    ],
)
def test_initializers_have_their_textbook_variance(initializer, variance):
    weights = np.asarray(initializer(KEY, (200, 300)), np.float64)
    assert abs((weights**2).mean() / variance - 1) < 0.03


def test_a_network_starts_from_the_initializer_it_is_given():
    init = jax.nn.initializers.constant(0.25)
    networks = [
        (Encoder(MLP((4,), kernel_init=init), {"style": 2}, init), (X, KEYS, False)),
        (Decoder(MLP((4,), kernel_init=init), (2, 2), init), (X, KEYS, False)),
        (Discriminator((4,), kernel_init=init), (X,)),
        (ConvolutionalTrunk(MLP((4,), kernel_init=init), (4, 5 * 4, 1), 2), (WIDE, KEYS, False)),
        (ConvolutionalDecoder(MLP((4,), kernel_init=init), (4, 4, 1), 2), (X, KEYS, False)),
    ]
    for network, inputs in networks:
        leaves = named_leaves(network.init(KEY, *inputs)["params"])
        for name, leaf in leaves.items():
            assert (leaf == (0.25 if "kernel" in name else 0.0)).all(), name


# Layers


def test_layers_have_the_widths_asked_for(filled):
    def kernels(network, *arrays, **flags):
        leaves = named_leaves(filled(network, *arrays, **flags)["params"]).items()
        return sorted(leaf.shape for name, leaf in leaves if "kernel" in name)

    encoder, image = Encoder(MLP((32, 16)), {"style": 3, "label": 7}), jnp.zeros((8, 8, 8, 2))
    assert kernels(encoder, image, KEYS, train=False) == [(16, 3), (16, 7), (32, 16), (128, 32)]
    decoder = Decoder(MLP((16, 32)), (4, 4, 3))
    assert kernels(decoder, X, KEYS, train=False) == [(16, 32), (20, 16), (32, 48)]
    assert kernels(Discriminator((32, 16)), X) == [(16, 1), (20, 32), (32, 16)]


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_an_mlp_is_its_formula_on_flattened_examples(filled, activation):
    assert ACTIVATIONS.keys() == NUMPY_ACTIVATIONS.keys()
    image = X.reshape(BATCH, 5, 2, 2)
    mlp = MLP((16, 8), activation)
    variables = filled(mlp, image, KEYS, train=False)
    act, layers = NUMPY_ACTIVATIONS[activation], in_numpy(variables["params"])
    expected = act(affine(layers["dense_1"], act(affine(layers["dense_0"], in_numpy(X)))))
    np.testing.assert_allclose(
        apply(mlp, variables, image, KEYS, train=True), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("network", "trunk", "outputs", "arrays", "flags"),
    [
        (
            Encoder(MLP((16,)), {"style": 2, "label": 3}),
            ("trunk", "dense_0"),
            {"style": (BATCH, 2), "label": (BATCH, 3)},
            (X, KEYS),
            {"train": True},
        ),
        (
            Decoder(MLP((16,)), (3, 2, 1)),
            ("hidden", "dense_0"),
            {"output": (BATCH, 3, 2, 1)},
            (X, KEYS),
            {"train": True},
        ),
        (Discriminator((16,)), ("dense_0",), {"score": (BATCH,)}, (X,), {}),
    ],
    ids=["encoder", "decoder", "discriminator"],
)
def test_each_network_ends_in_linear_layers(filled, network, trunk, outputs, arrays, flags):
    variables = filled(network, *arrays, **flags)
    layers = in_numpy(variables["params"])
    hidden = np.maximum(affine(functools.reduce(dict.get, trunk, layers), in_numpy(X)), 0)
    result = apply(network, variables, *arrays, **flags)
    for name, shape in outputs.items():
        expected = affine(layers[name], hidden).reshape(shape)
        assert (expected < 0).any() and (expected > 0).any()  # so that a rectifier would show
        found = result[name] if isinstance(result, dict) else result
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# Convolutions

# Image shape -> how often it is halved, and the sides that are left.
SHAPES = {
    (28, 28, 1): (2, 7, 7),
    (32, 32, 3): (2, 8, 8),
    (48, 48, 1): (3, 6, 6),
    (64, 64, 3): (3, 8, 8),
    (36, 20, 1): (2, 9, 5),
    (4, 4, 1): (2, 1, 1),
    (128, 64, 2): (4, 8, 4),
    (64, 4, 1): (2, 16, 1),
}


def convolved_by_hand(layer, image, stride):
    """Each output is a sum over a window of the image with zeros around it, in float64."""
    size, border = len(layer["kernel"]), (len(layer["kernel"]) - stride) // 2
    padded = np.pad(image, ((0, 0), (border, border), (border, border), (0, 0)))
    height, width = image.shape[1] // stride, image.shape[2] // stride
    output = np.zeros((len(image), height, width, layer["kernel"].shape[-1]))
    for row in range(height):
        for column in range(width):
            top, left = row * stride, column * stride
            window = padded[:, top : top + size, left : left + size]
            output[:, row, column] = np.einsum("bijc,ijco->bo", window, layer["kernel"])
    return output + layer["bias"]


def convolutional(shape, channels=2, widths=(6,), **options):
    """A trunk and a decoder for images of a shape, with images and codes for them."""
    trunk = ConvolutionalTrunk(MLP(widths, **options), shape, channels)
    decoder = ConvolutionalDecoder(MLP(widths, **options), shape, channels)
    return [(trunk, normals(4, BATCH, *shape)), (decoder, X)]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_is_halved_twice_and_on_down_to_eight(shape):
    number, height, width = SHAPES[shape]
    assert halvings(shape) == number
    assert (height * 2**number, width * 2**number) == shape[:2]


@pytest.mark.parametrize(
    "shape", [(30, 28, 1), (28, 30, 1), (27, 27, 3), (2, 2, 1), (0, 4, 1), (784,), (28, 28), ()]
)
def test_other_sides_and_rows_are_refused_in_one_line(shape):
    with pytest.raises(ValueError, match=r"multiples of 4, not \[") as caught:
        halvings(shape)
    assert str(list(shape)) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (4, 2), (1, 1)])
def test_a_convolution_is_its_formula_however_it_is_computed(filled, size, stride):
    # No test machine has the other devices, so their operation is also called by itself.
    image, convolution = normals(5, BATCH, 8, 6, 3), Convolution(5, size, stride)
    variables = filled(convolution, image)
    layer = in_numpy(variables["params"])
    expected = convolved_by_hand(layer, in_numpy(image), stride)
    np.testing.assert_allclose(apply(convolution, variables, image), expected, atol=1e-5)
    kernel = variables["params"]["kernel"]
    for operation in (convolve, convolve_patches):
        found = operation(image, kernel, stride) + variables["params"]["bias"]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_convolutional_networks_have_the_shapes_asked_for(shape):
    number, height, width = SHAPES[shape]
    (trunk, image), (decoder, code) = convolutional(shape)

    def init(network, x):
        return jax.eval_shape(lambda: network.init_with_output(KEY, x, KEYS, True))

    heads, _ = init(Encoder(trunk, {"style": 3, "label": 7}), image)
    output, decoding = init(decoder, code)
    shapes = [(x.shape, x.dtype) for x in (heads["style"], heads["label"], output)]
    assert shapes == [((BATCH, *rest), jnp.float32) for rest in ((3,), (7,), shape)]

    def kernels(layers):
        return {name: layer["kernel"].shape for name, layer in layers.items() if name != "hidden"}

    _, encoding = init(trunk, image)
    layers, widths = encoding["params"], [2 * 2**i for i in range(number)]
    inputs, features = [shape[2], *widths], height * width * widths[-1]
    assert kernels(layers) == {
        f"convolution_{i}": (4, 4, inputs[i], width) for i, width in enumerate(widths)
    }
    assert layers["hidden"]["dense_0"]["kernel"].shape == (features, 6)
    assert kernels(decoding["params"]) == {
        "grid": (6, features),
        **{f"convolution_{i}": (3, 3, width, width // 2) for i, width in enumerate(widths[:0:-1])},
        "output": (3, 3, 2, shape[2]),
    }


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_convolutional_networks_are_their_formulas(filled, activation):
    act = NUMPY_ACTIVATIONS[activation]
    (trunk, image), (decoder, code) = convolutional((8, 12, 3), activation=activation)
    variables = filled(trunk, image, KEYS, train=False)
    layers = in_numpy(variables["params"])
    hidden = act(convolved_by_hand(layers["convolution_0"], in_numpy(image), 2))
    hidden = act(convolved_by_hand(layers["convolution_1"], hidden, 2)).reshape(BATCH, -1)
    expected = act(affine(layers["hidden"]["dense_0"], hidden))
    found = apply(trunk, variables, image, KEYS, train=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    variables = filled(decoder, code, KEYS, train=False)
    layers = in_numpy(variables["params"])
    hidden = act(affine(layers["hidden"]["dense_0"], in_numpy(code)))
    hidden = act(affine(layers["grid"], hidden)).reshape(BATCH, 2, 3, 4)
    hidden = act(convolved_by_hand(layers["convolution_0"], enlarged(hidden), 1))
    expected = convolved_by_hand(layers["output"], enlarged(hidden), 1)
    found = apply(decoder, variables, code, KEYS, train=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def enlarged(image):
    """Every pixel as a square of four, index by index."""
    rows, columns = np.arange(2 * image.shape[1]) // 2, np.arange(2 * image.shape[2]) // 2
    return image[:, rows][:, :, columns]


def test_a_decoder_draws_no_checkerboard(filled):
    # An even grid comes out even, away from the zeros around it: every pixel has the same weights.
    (_, (decoder, code)) = convolutional((32, 32, 2), channels=4, activation="tanh")
    variables = filled(decoder, code, KEYS, train=False)
    even = jnp.tile(normals(6, 8), 8 * 8)
    grid = {"kernel": jnp.zeros((6, 8 * 8 * 8)), "bias": even}
    variables = {"params": {**variables["params"], "grid": grid}}
    image = np.asarray(apply(decoder, variables, code, KEYS, train=False))
    inside = image[:, 4:-4, 4:-4]
    assert np.abs(inside).max() > 0.1
    assert np.ptp(inside, axis=(1, 2)).max() < 1e-5


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (36, 20, 1)])
def test_without_batch_norm_an_example_does_not_depend_on_its_company(filled, shape):
    for network, x in convolutional(shape):
        variables = filled(network, x, KEYS, train=False)
        whole = apply(network, variables, x[:5], KEYS[:5], train=True)
        alone = apply(network, variables, x[3:4], KEYS[3:4], train=True)
        np.testing.assert_allclose(alone, whole[3:4], rtol=1e-4, atol=1e-5)
        assert np.abs(whole[3] - whole[2]).max() > 1e-2


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("shape", [(48, 48, 1), (36, 20, 3)])
def test_every_weight_of_a_convolutional_network_learns(filled, shape, batch_norm):
    for network, x in convolutional(shape, activation="softplus", batch_norm=batch_norm):
        variables = filled(network, x, KEYS, train=False)

        def loss(params, network=network, x=x, variables=variables):
            held = {**variables, "params": params}
            output, _ = network.apply(held, x, KEYS, True, mutable=["batch_stats"])
            return (output * normals(7, *output.shape)).sum()

        gradient = named_leaves(jax.jit(jax.grad(loss))(variables["params"]))
        for name, slope in gradient.items():
            # Batch norm takes away what a bias before it adds.
            if batch_norm and "bias" in name and "norm" not in name and "output" not in name:
                continue
            assert (slope != 0).all(), name


def test_values_after_a_flattened_image_join_its_features(filled):
    (trunk, image), _ = convolutional((8, 8, 1), activation="tanh")
    flat, eta = image.reshape(BATCH, -1), normals(8, BATCH, 3)
    with_eta = jnp.concatenate([flat, eta], axis=1)
    variables = filled(trunk, with_eta, KEYS, train=False)
    plain = jax.tree.map(lambda leaf: leaf, variables)
    kernel = variables["params"]["hidden"]["dense_0"]["kernel"]
    features = 2 * 2 * 4
    assert kernel.shape == (features + 3, 6)
    plain["params"]["hidden"]["dense_0"]["kernel"] = kernel[:features]
    without = apply(trunk, plain, image, KEYS, train=False)
    np.testing.assert_array_equal(without, apply(trunk, plain, flat, KEYS, train=False))
    found = np.arctanh(in_numpy(apply(trunk, variables, with_eta, KEYS, train=False)))
    expected = np.arctanh(in_numpy(without)) + in_numpy(eta) @ in_numpy(kernel)[features:]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


# Noise and dropout


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
    many = jax.random.split(KEY, (2500, 4))
    x = 1.0 + jnp.arange(24.0).reshape(4, 6)
    dropped = np.asarray(jax.jit(jax.vmap(lambda keys: dropout(x, keys, rate)))(many))
    kept = dropped != 0
    scaled = np.broadcast_to(x / (1 - rate), dropped.shape)
    np.testing.assert_allclose(dropped[kept], scaled[kept], rtol=1e-6)
    # Every place has the rate, and no two places are dropped together.
    error = 5 / np.sqrt(2500)
    assert np.abs(kept.mean(axis=0) - (1 - rate)).max() < error * np.sqrt(rate * (1 - rate))
    correlation = np.corrcoef(kept.reshape(2500, -1).T)
    assert np.abs(correlation - np.eye(24)).max() < error


def test_gaussian_noise_has_its_standard_deviation():
    many = jax.random.split(KEY, (2500, 4))
    x = jnp.asarray(normals(2, 4, 6))
    noisy = jax.jit(jax.vmap(lambda keys: gaussian_noise(x, keys, 0.3)))(many)
    noise = np.asarray(noisy - x, np.float64)
    assert scipy.stats.kstest(noise.ravel(), "norm", (0, 0.3)).pvalue > 1e-3
    correlation = np.corrcoef(noise.reshape(2500, -1).T)
    assert np.abs(correlation - np.eye(24)).max() < 5 / np.sqrt(2500)


def test_no_dropout_and_no_noise_leave_values_as_they_are():
    np.testing.assert_array_equal(dropout(X, KEYS, 0.0), X)
    np.testing.assert_array_equal(gaussian_noise(X, KEYS, 0.0), X)


@pytest.mark.parametrize("draw", [dropout, gaussian_noise])
def test_noise_of_an_example_does_not_depend_on_the_split_of_its_batch(draw):
    halves = [draw(X[half], KEYS[half], 0.4) for half in (slice(0, 4), slice(4, 8))]
    np.testing.assert_array_equal(np.concatenate(halves), draw(X, KEYS, 0.4))


def test_hidden_dropout_acts_in_training_only(filled):
    mlp = MLP((500,), "softplus", dropout=0.4)
    variables = filled(mlp, X, KEYS, train=False)
    still = np.asarray(apply(mlp, variables, X, KEYS, train=False))
    assert (still > 0).all()
    np.testing.assert_array_equal(still, apply(mlp, variables, X, OTHER_KEYS, train=False))
    training = np.asarray(apply(mlp, variables, X, KEYS, train=True))
    assert abs((training == 0).mean() - 0.4) < 5 * np.sqrt(0.24 / 4000)
    np.testing.assert_allclose(training[training != 0], still[training != 0] / 0.6, rtol=1e-5)


def test_two_layers_drop_different_units(filled):
    # Layers of zero weights give softplus(0) whatever they see, so that a zero is a dropped unit.
    one, two = (MLP((500,) * depth, "softplus", dropout=0.5) for depth in (1, 2))
    variables = filled(two, X, KEYS, train=False, std=0.0)
    first = np.asarray(apply(one, variables, X, KEYS, train=True)) == 0
    second = np.asarray(apply(two, variables, X, KEYS, train=True)) == 0
    assert abs((first == second).mean() - 0.5) < 0.05


def test_dropout_of_convolutions_is_keyed_by_example_and_acts_in_training_only(filled):
    for network, x in convolutional((8, 8, 1), 8, widths=(), activation="softplus", dropout=0.4):
        variables = filled(network, x, KEYS, train=False)
        still, training = (
            jax.jit(functools.partial(network.apply, variables, train=train))
            for train in (False, True)
        )
        np.testing.assert_array_equal(still(x, KEYS), still(x, OTHER_KEYS))
        whole = np.asarray(training(x, KEYS))
        halves = [training(x[half], KEYS[half]) for half in (slice(0, 4), slice(4, 8))]
        np.testing.assert_allclose(np.concatenate(halves), whole, rtol=1e-4, atol=1e-5)
        other = np.asarray(training(x, OTHER_KEYS))
        assert all(np.abs(other[i] - whole[i]).max() > 1e-2 for i in range(BATCH))


def test_convolutions_drop_their_share_and_other_units_than_dense_layers(filled):
    # Zero weights give softplus(0) everywhere, so that a zero is a dropped unit. Both networks end
    # in their layer number 1, of 4 * 256 units.
    ends = []
    for widths in ((), (5, 1024)):
        (trunk, image), _ = convolutional(
            (8, 8, 1), 128, widths=widths, activation="softplus", dropout=0.4
        )
        variables = filled(trunk, image, KEYS, train=False, std=0.0)
        ends.append(np.asarray(apply(trunk, variables, image, KEYS, train=True)) == 0)
    assert ends[0].shape == ends[1].shape == (BATCH, 1024)
    for dropped in ends:
        assert abs(dropped.mean() - 0.4) < 5 * np.sqrt(0.24 / dropped.size)
    agreeing = (ends[0] == ends[1]).mean()
    assert abs(agreeing - (0.4**2 + 0.6**2)) < 0.03


# Batch norm

NORMED_ENCODER = Encoder(
    MLP((16,), batch_norm=True), {"style": 2, "label": 3}, head_batch_norm=True
)
SHIFTED = 3.0 + 2.0 * normals(2, 40, FEATURES)
SHIFTED_KEYS = jax.random.split(KEY, 40)


def normed_by_hand(variables, x):
    """Values before the first norm and the heads' outputs, from the batch's own statistics."""
    layers = in_numpy(variables["params"])

    def norm(layer, x):
        centred = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
        return centred * layer["norm"]["scale"] + layer["norm"]["bias"]

    trunk = layers["trunk"]
    raw = affine(trunk["dense_0"], in_numpy(x))
    hidden = np.maximum(norm(trunk["norm_0"], raw), 0)
    heads = ("style", "label")
    return raw, {h: norm(layers[f"{h}_norm"], affine(layers[h], hidden)) for h in heads}


def test_batch_norm_takes_the_batchs_statistics_in_training(filled):
    variables = filled(NORMED_ENCODER, SHIFTED, SHIFTED_KEYS, train=False)
    outputs, moved = apply(
        NORMED_ENCODER, variables, SHIFTED, SHIFTED_KEYS, train=True, mutable=["batch_stats"]
    )
    raw, expected = normed_by_hand(variables, SHIFTED)
    for name in ("style", "label"):
        np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-4, atol=1e-4)
    running = moved["batch_stats"]["trunk"]["norm_0"]["norm"]
    np.testing.assert_allclose(running["mean"], 0.05 * raw.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(running["var"], 0.95 + 0.05 * raw.var(axis=0), rtol=1e-4)


def test_batch_norm_takes_running_statistics_out_of_training(filled):
    variables = filled(NORMED_ENCODER, SHIFTED, SHIFTED_KEYS, train=False)
    move = jax.jit(
        lambda v: NORMED_ENCODER.apply(v, SHIFTED, SHIFTED_KEYS, True, mutable=["batch_stats"])[1]
    )
    for _ in range(300):  # 0.95 ** 300 = 2e-7: the running statistics become the batch's
        variables = {**variables, **move(variables)}
    _, expected = normed_by_hand(variables, SHIFTED)
    # The company that an example keeps no longer matters.
    outputs = apply(NORMED_ENCODER, variables, SHIFTED[:8], KEYS, train=False)
    for name in ("style", "label"):
        np.testing.assert_allclose(outputs[name], expected[name][:8], rtol=1e-3, atol=1e-3)


def test_batch_norm_of_images_is_per_channel(filled):
    for network, x in convolutional((8, 12, 1), batch_norm=True):
        variables = filled(network, x, KEYS, train=False)
        _, moved = apply(network, variables, x, KEYS, train=True, mutable=["batch_stats"])
        layers, first = in_numpy(variables["params"]), moved["batch_stats"]["norm_0"]["norm"]
        if isinstance(network, ConvolutionalTrunk):
            raw = convolved_by_hand(layers["convolution_0"], in_numpy(x), 2)
        else:
            dense = affine(layers["hidden"]["dense_0"], in_numpy(x))
            centred = (dense - dense.mean(axis=0)) / np.sqrt(dense.var(axis=0) + 1e-5)
            norm = layers["hidden"]["norm_0"]["norm"]
            hidden = np.maximum(centred * norm["scale"] + norm["bias"], 0)
            raw = affine(layers["grid"], hidden).reshape(BATCH, 2, 3, 4)
        over = (0, 1, 2)
        np.testing.assert_allclose(first["mean"], 0.05 * raw.mean(axis=over), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(first["var"], 0.95 + 0.05 * raw.var(axis=over), rtol=1e-4)


def test_a_convolutional_decoders_output_is_not_normalised(filled):
    (_, (decoder, code)) = convolutional((8, 8, 1), batch_norm=True)
    variables = filled(decoder, code, KEYS, train=False)
    assert set(variables["batch_stats"]) == {"hidden", "norm_0", "norm_1"}


def test_without_batch_norm_there_are_no_statistics(filled):
    assert "batch_stats" not in filled(MLP((8,)), X, KEYS, train=False)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_a_discriminator_scores_each_code_by_itself(filled, spectral_norm):
    # Batch norm would mix the codes of a batch: in a discriminator it makes the scores useless.
    discriminator = Discriminator((16, 16), spectral_norm=spectral_norm)
    variables = filled(discriminator, X)
    names = {name.split("'")[-2] for name in named_leaves(variables["params"])}
    assert names == {"kernel", "bias"}
    score = jax.jit(functools.partial(discriminator.apply, variables))
    other_company = jnp.concatenate([X[:4], 100.0 + X[4:]])
    np.testing.assert_allclose(score(X)[:4], score(other_company)[:4], rtol=1e-5, atol=1e-6)


# What is computed in bfloat16

ROUNDING = 2.0**-8  # of one number


def in_bfloat16(network):
    """The same network with bfloat16 layers."""
    for name in ("trunk", "hidden"):
        if hasattr(network, name):
            return network.clone(**{name: in_bfloat16(getattr(network, name))})
    return network.clone(dtype=jnp.bfloat16)


def trained(network, variables, *inputs):
    """Outputs while training, and the statistics that were moved."""
    call = functools.partial(network.apply, mutable=["batch_stats"])
    return jax.jit(lambda variables: call(variables, *inputs))(variables)


ROUNDED = {
    "encoder": (NORMED_ENCODER, (X, KEYS, True)),
    "decoder": (Decoder(MLP((16, 16), batch_norm=True), (3, 2, 1)), (X, KEYS, True)),
    "convolutional encoder": (
        Encoder(convolutional((8, 8, 1), batch_norm=True)[0][0], {"style": 2}),
        (normals(4, BATCH, 8, 8, 1), KEYS, True),
    ),
    "convolutional decoder": (convolutional((8, 8, 1), batch_norm=True)[1][0], (X, KEYS, True)),
    "discriminator": (Discriminator((16, 16)), (X, True)),
    "spectral norm": (Discriminator((16, 16), spectral_norm=True), (X, True)),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_bfloat16_layers_give_the_network_in_float32_up_to_rounding(filled, name):
    network, inputs = ROUNDED[name]
    rounded = in_bfloat16(network)
    variables = filled(rounded, *inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    expected, found = trained(network, variables, *inputs), trained(rounded, variables, *inputs)
    for right, leaf in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, right, rtol=0, atol=8 * ROUNDING * np.abs(right).max())
    for right, leaf in zip(*map(jax.tree.leaves, (expected[0], found[0])), strict=True):
        assert (leaf != right).any()


def test_codes_and_scores_are_finer_than_bfloat16(filled):
    encoder = Encoder(MLP((16,)), {"style": 2, "label": 3})
    for network, inputs in ((encoder, (X, KEYS, False)), ROUNDED["discriminator"]):
        rounded = in_bfloat16(network)
        # Not compiled: XLA leaves out a rounding that is followed by a cast to float32.
        outputs, _ = rounded.apply(filled(rounded, *inputs), *inputs, mutable=["batch_stats"])
        for output in jax.tree.leaves(outputs):
            coarse = output.astype(jnp.bfloat16).astype(jnp.float32)
            assert (coarse != output).mean() > 0.5


def test_statistics_of_bfloat16_layers_are_float32():
    # In bfloat16 neighbours of 300 are 2 apart, and squares of 300 are 512 apart.
    x = jnp.asarray(300 + 5 * normals(6, 400, 3), jnp.bfloat16)
    norm = BatchNorm(dtype=jnp.bfloat16)
    y, moved = trained(norm, norm.init(KEY, x, True), x, True)
    exact = np.asarray(x, np.float64)
    running = moved["batch_stats"]["norm"]
    np.testing.assert_allclose(running["mean"], 0.05 * exact.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(running["var"], 0.95 + 0.05 * exact.var(axis=0), rtol=1e-2)
    centred = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    np.testing.assert_allclose(np.asarray(y, np.float64), centred, atol=0.03)
    assert y.dtype == jnp.bfloat16


def test_the_gradient_of_a_convolutions_bias_counts_all_pixels(filled):
    # Of the sum of the output it is their number, to which bfloat16 cannot count by ones.
    convolution, image = Convolution(2, 3, dtype=jnp.bfloat16), jnp.ones((20, 40, 40, 1))

    def total(variables):
        return convolution.apply(variables, image).astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(total))(filled(convolution, image))["params"]["bias"]
    np.testing.assert_allclose(gradient, 20 * 40 * 40)


# Spectral norm


@pytest.mark.parametrize("std", [0.01, 2.0])
def test_spectral_norm_divides_each_matrix_by_its_largest_singular_value(filled, std):
    # Small weights are to grow and large ones to shrink: no constant factor would do both.
    discriminator = Discriminator((32, 24), "leaky_relu", spectral_norm=True)
    variables = filled(discriminator, X, std=std)
    refresh = jax.jit(lambda v: discriminator.apply(v, X, True, mutable=["batch_stats"])[1])
    for _ in range(200):
        variables = {**variables, **refresh(variables)}

    def normed(layer):
        largest = np.linalg.svd(layer["kernel"], compute_uv=False)[0]
        return {"kernel": layer["kernel"] / largest, "bias": layer["bias"]}

    params = variables["params"]
    layers = {name: normed(layer) for name, layer in in_numpy(params).items()}
    hidden = in_numpy(X)
    for name in ("dense_0", "dense_1"):
        hidden = NUMPY_ACTIVATIONS["leaky_relu"](affine(layers[name], hidden))
    expected = affine(layers["score"], hidden)[:, 0]
    scores = apply(discriminator, variables, X)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_scoring_does_not_move_the_power_iteration(filled):
    discriminator = Discriminator((16,), spectral_norm=True)
    variables = filled(discriminator, X)
    _, moved = apply(discriminator, variables, X, mutable=["batch_stats"])
    before, after = (named_leaves(tree["batch_stats"]) for tree in (variables, moved))
    assert before.keys() == after.keys() and before
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


# One-hot


@settings(deadline=None, max_examples=10, derandomize=True)
@given(labels=st.lists(st.integers(-1, 6), min_size=8, max_size=8))
def test_one_hot_rows_and_a_row_of_zeros_for_what_is_no_class(labels):
    expected = np.array([[float(label == k) for k in range(5)] for label in labels])
    np.testing.assert_array_equal(one_hot(jnp.array(labels), 5), expected)
