"""The autoencoder as pure functions: encode (three posteriors), decode (four code layouts).

The paper's notation: an image x, a code made of a style z and, where the experiment has one, a
label y; encoder q(z, y|x), decoder p(x|z, y).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from aae_jax.networks import dropout, gaussian_noise, one_hot
from aae_jax.randomness import all_named, named

Params = dict[str, Any]
Images = Float[Array, "batch ..."]
Scores = Float[Array, "batch"]

Posterior = Literal["deterministic", "gaussian", "universal"]
Layout = Literal["style", "style_and_given_label", "style_and_inferred_label", "cluster_heads"]
POSTERIORS: tuple[str, ...] = ("deterministic", "gaussian", "universal")
LAYOUTS: tuple[str, ...] = (
    "style",
    "style_and_given_label",
    "style_and_inferred_label",
    "cluster_heads",
)


class Code(NamedTuple):
    """A batch of codes.

    Attributes:
        style: [batch, style_dim], a sample of q(z|x).
        label_logits: [batch, labels], unnormalised log q(y|x), or None without a label head.
        style_log_prob: [batch], log q(z|x) of that sample in nats; only the Gaussian posterior
            has it.
    """

    style: Float[Array, "batch style"]
    label_logits: Float[Array, "batch labels"] | None = None
    style_log_prob: Float[Array, "batch"] | None = None


class Likelihood(NamedTuple):
    """p(x|code) given the decoder's output.

    Attributes:
        mean: output -> image.
        loss: (output, image) -> [batch], the negative log-likelihood in nats up to a constant.
    """

    mean: Callable[[Images], Images]
    loss: Callable[[Images, Images], Scores]


def _per_example(values: Images) -> Scores:
    return values.reshape(values.shape[0], -1).sum(axis=1)


def _half_squared_error(mean: Callable[[Images], Images]) -> Likelihood:
    # Half the *summed* squared error: with the paper's rates a mean over pixels is 392 times too
    # small and the decoder never trains.
    return Likelihood(mean, lambda output, image: 0.5 * _per_example((mean(output) - image) ** 2))


LIKELIHOODS: dict[str, Likelihood] = {
    "sigmoid": _half_squared_error(jax.nn.sigmoid),
    "linear": _half_squared_error(lambda output: output),
    "bernoulli": Likelihood(
        jax.nn.sigmoid,
        lambda output, image: _per_example(optax.sigmoid_binary_cross_entropy(output, image)),
    ),
}


class Model(NamedTuple):
    """An adversarial autoencoder's networks as pure functions.

    Attributes:
        init: key -> (params, batch_stats).
        encode: (params, batch_stats, image, keys, train) -> (Code, batch_stats).
        decode: (params, batch_stats, style, label, keys, train) -> (output, batch_stats); `label`
            is [batch, labels] (a distribution or one-hot) or None. `likelihood.mean` of the output
            is the image.
        label: (code, given label [batch]) -> what the decoder is given: the one-hot, the inferred
            distribution, or None.
        critic: (params, batch_stats, part) -> the discriminator of that part as a closure from
            [batch, features] to scores.
        refresh: (params, batch_stats) -> batch_stats after one power iteration of spectrally
            normalised discriminators; the same batch_stats without them.
        heads: params -> the cluster heads W_C, for the layout "cluster_heads".
        likelihood: p(x|code).
        layout: which code the decoder sees.
        style_dim, num_labels: sizes of the code's parts; num_labels is 0 without a label.
    """

    init: Callable[..., tuple[Params, Params]]
    encode: Callable[..., tuple[Code, Params]]
    decode: Callable[..., tuple[Images, Params]]
    label: Callable[..., Float[Array, "batch labels"] | None]
    critic: Callable[..., Callable[[Float[Array, "batch features"]], Scores]]
    refresh: Callable[[Params, Params], Params]
    heads: Callable[[Params], Float[Array, "labels style"]]
    likelihood: Likelihood
    layout: str
    style_dim: int
    num_labels: int


def encoder_heads(posterior: str, style_dim: int, num_labels: int) -> dict[str, int]:
    """Widths of the encoder's linear heads by name."""
    heads = {"style": style_dim}
    if posterior == "gaussian":
        heads["style_log_variance"] = style_dim
    if num_labels:
        heads["label"] = num_labels
    return heads


def autoencoder(
    encoder: nn.Module,
    decoder: nn.Module,
    discriminators: Mapping[str, tuple[nn.Module, int]],
    *,
    image_shape: tuple[int, ...],
    style_dim: int,
    num_labels: int,
    likelihood: Likelihood,
    posterior: Posterior = "deterministic",
    layout: Layout = "style",
    noise_dim: int = 0,
    input_noise: float = 0.0,
    input_dropout: float = 0.0,
    cluster_heads: Callable[[Key[Array, ""]], Float[Array, "labels style"]] | None = None,
    fixed_cluster_heads: Float[Array, "labels style"] | None = None,
) -> Model:
    """Composes networks into a `Model`.

    Args:
        encoder: module (image, keys, train) -> outputs by head name (see `encoder_heads`).
        decoder: module (code, keys, train) -> output.
        discriminators: for each matched part, the module and the width of its input.
        image_shape: shape of one image.
        style_dim, num_labels: sizes of the code's parts.
        likelihood: how the decoder's output is compared with an image.
        posterior: q(z|x): deterministic, Gaussian, or a universal approximator f(x, eta) with
            eta ~ N(0, I) of size `noise_dim` fed to the encoder beside the image (paper section 2).
        layout: what the decoder sees (paper sections 3, 4, 5, 7).
        input_noise: std of the Gaussian noise on the encoder's input while training.
        input_dropout: share of input pixels dropped while training.
        cluster_heads: initial W_C from a key, learned with the autoencoder (section 7).
        fixed_cluster_heads: W_C held fixed instead (Fig 11 d).
    """
    modules = {"encoder": encoder, "decoder": decoder}

    def apply(name: str, params: Params, batch_stats: Params, *args: Any) -> tuple[Any, Params]:
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        train = args[-1]
        # Without batch norm there is nothing to move: an empty collection stays as it is.
        if not train or not batch_stats[name]:
            return modules[name].apply(variables, *args), batch_stats
        output, moved = modules[name].apply(variables, *args, mutable=["batch_stats"])
        return output, {**batch_stats, name: moved["batch_stats"]}

    def encoder_input(image: Images, keys: Key[Array, "batch"], train: bool) -> Images:
        if train:
            image = gaussian_noise(image, all_named(keys, "input_noise"), input_noise)
            image = dropout(image, all_named(keys, "input_dropout"), input_dropout)
        if posterior != "universal":
            return image
        eta = jax.vmap(lambda key: jax.random.normal(key, (noise_dim,)))(all_named(keys, "eta"))
        return jnp.concatenate([image.reshape(image.shape[0], -1), eta], axis=1)

    def encode(
        params: Params,
        batch_stats: Params,
        image: Images,
        keys: Key[Array, "batch"],
        train: bool,
    ) -> tuple[Code, Params]:
        outputs, batch_stats = apply(
            "encoder", params, batch_stats, encoder_input(image, keys, train), keys, train
        )
        style, log_prob = outputs["style"], None
        if posterior == "gaussian":
            style, log_prob = _sample_gaussian(style, outputs["style_log_variance"], keys)
        return Code(style, outputs.get("label"), log_prob), batch_stats

    def decode(
        params: Params,
        batch_stats: Params,
        style: Float[Array, "batch style"],
        label: Float[Array, "batch labels"] | None,
        keys: Key[Array, "batch"],
        train: bool,
    ) -> tuple[Images, Params]:
        # The encoder is given the same examples' keys: its dropout must not be the decoder's.
        keys = all_named(keys, "decoder")
        return apply("decoder", params, batch_stats, joined(params, style, label), keys, train)

    def joined(params: Params, style: Array, label: Array | None) -> Array:
        if layout == "style":
            return style
        assert label is not None, f"the layout {layout} needs a label"
        if layout == "cluster_heads":
            return label @ heads(params) + style
        return jnp.concatenate([style, label], axis=1)

    def heads(params: Params) -> Array:
        return params["cluster_heads"] if fixed_cluster_heads is None else fixed_cluster_heads

    def label(code: Code, given: Int[Array, "batch"]) -> Float[Array, "batch labels"] | None:
        if layout == "style":
            return None
        if layout == "style_and_given_label":
            return one_hot(given, num_labels)
        assert code.label_logits is not None
        return jax.nn.softmax(code.label_logits)

    def critic(
        params: Params, batch_stats: Params, part: str
    ) -> Callable[[Float[Array, "batch features"]], Scores]:
        def scores(codes: Float[Array, "batch features"]) -> Scores:
            # Looked up in here: a part matched without a discriminator (MMD) has no parameters.
            variables = {
                "params": params["discriminator"][part],
                "batch_stats": batch_stats["discriminator"][part],
            }
            module: Any = discriminators[part][0]
            return module.apply(variables, codes)

        return scores

    def refresh(params: Params, batch_stats: Params) -> Params:
        moved = {}
        for part, stats in batch_stats["discriminator"].items():
            if not stats:
                return batch_stats
            module, features = discriminators[part]
            variables = {"params": params["discriminator"][part], "batch_stats": stats}
            _, update = module.apply(
                variables, jnp.zeros((1, features)), True, mutable=["batch_stats"]
            )
            moved[part] = update["batch_stats"]
        return {**batch_stats, "discriminator": moved}

    def init(key: Key[Array, ""]) -> tuple[Params, Params]:
        image = jnp.zeros((1, *image_shape))
        keys = named(key, "shape_only")[None]
        code_dim = style_dim if layout in ("style", "cluster_heads") else style_dim + num_labels
        variables = {
            "encoder": encoder.init(
                named(key, "encoder"), encoder_input(image, keys, False), keys, False
            ),
            "decoder": decoder.init(named(key, "decoder"), jnp.zeros((1, code_dim)), keys, False),
        }
        scorers = {
            part: module.init(named(key, f"{part}_discriminator"), jnp.zeros((1, features)), True)
            for part, (module, features) in discriminators.items()
        }
        params = {name: v["params"] for name, v in variables.items()}
        batch_stats = {name: v.get("batch_stats", {}) for name, v in variables.items()}
        params["discriminator"] = {part: v["params"] for part, v in scorers.items()}
        batch_stats["discriminator"] = {
            part: v.get("batch_stats", {}) for part, v in scorers.items()
        }
        if cluster_heads is not None:
            params["cluster_heads"] = cluster_heads(named(key, "cluster_heads"))
        return params, batch_stats

    return Model(
        init,
        encode,
        decode,
        label,
        critic,
        refresh,
        heads,
        likelihood,
        layout,
        style_dim,
        num_labels,
    )


def _sample_gaussian(
    mean: Float[Array, "batch style"],
    log_variance: Float[Array, "batch style"],
    keys: Key[Array, "batch"],
) -> tuple[Float[Array, "batch style"], Float[Array, "batch"]]:
    """A re-parametrised sample of N(mean, exp(log_variance)) and its log density in nats."""
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(
        all_named(keys, "posterior")
    )
    style = mean + jnp.exp(0.5 * log_variance) * noise
    log_prob = -0.5 * (noise**2 + log_variance + jnp.log(2 * jnp.pi)).sum(axis=1)
    return style, log_prob


def reconstruct(
    model: Model,
    params: Params,
    batch_stats: Params,
    image: Images,
    given_label: Int[Array, "batch"],
    keys: Key[Array, "batch"],
    train: bool,
) -> tuple[Images, Code, Params]:
    """Encodes and decodes: (decoder output, code, batch_stats)."""
    code, batch_stats = model.encode(params, batch_stats, image, keys, train)
    label = model.label(code, given_label)
    output, batch_stats = model.decode(params, batch_stats, code.style, label, keys, train)
    return output, code, batch_stats
