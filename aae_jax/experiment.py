"""ConfigDict -> Experiment: the only place where a config becomes functions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from aae_jax import divergences, networks, priors, spec
from aae_jax.augmentation import AUGMENTATIONS, Augmentation
from aae_jax.config import ConfigError, has_label_head
from aae_jax.model import LIKELIHOODS, Model, autoencoder, encoder_heads
from aae_jax.phases import (
    Match,
    Penalty,
    Phase,
    classification,
    critic_features,
    from_step,
    heads_apart,
    information,
    kl,
    reconstruction,
    regularization,
    running_statistics,
    smoothness,
)
from aae_jax.priors import Prior
from aae_jax.randomness import named
from aae_jax.state import ALONE, Collective, TrainState, Update, init_state
from aae_jax.step import Step, augmented, train_step

Schedule = Callable[[Array], Array | float]
Built = TypeVar("Built")


class Experiment(NamedTuple):
    """What a config describes, as pure functions.

    Attributes:
        model: the networks.
        style_prior: p(z) of the style.
        label_prior: p(y), where the encoder infers a label.
        matches: parts of the code that follow a prior.
        init: key -> TrainState.
        step: (state, batch) -> (state, metrics).
        num_steps, steps_per_epoch: length of the run.
        phases: their names, in order.
        equilibria: metric name -> value at which codes and prior cannot be told apart.
    """

    model: Model
    style_prior: Prior
    label_prior: Prior | None
    matches: tuple[Match, ...]
    init: Callable[[Key[Array, ""]], TrainState]
    step: Step
    num_steps: int
    steps_per_epoch: float
    phases: tuple[str, ...]
    equilibria: dict[str, float]

    @property
    def knows_classes(self) -> bool:
        """Whether the label head stands for the data's classes, not for clusters."""
        return "classification" in self.phases


def build(
    config: ConfigDict,
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    num_examples: int,
    collective: Collective = ALONE,
) -> Experiment:
    """Builds the experiment that a (validated) config describes.

    Args:
        config: see `aae_jax.config.base`.
        image_shape: shape of one image.
        num_classes: classes of the data.
        num_examples: training images, which make an epoch.
        collective: how devices act together in the step.

    Raises:
        ConfigError: parts that do not fit each other or the data; one line.
        SpecError: a prior, divergence, initializer or schedule that cannot be built; one line.
    """
    _check_image_shape(config, image_shape)
    style_prior = _built(config.style.prior, PRIORS, "style.prior", Prior)
    _check_style(config, style_prior, num_classes)
    label_prior = _label_prior(config, num_classes)
    matches = _matches(config, style_prior, label_prior)
    model = _model(config, matches, image_shape, collective)
    times = _times(config, num_examples)
    updates = _updates(config, times, collective)
    smoothed = _model(_with_clean_input(config), (), image_shape, collective)
    of_code = _penalties(config, style_prior)
    of_labels = _label_penalties(config, label_prior, collective)
    about = _augmentation(config, "smoothness_augmentation", image_shape)
    phases = _phases(
        config, model, smoothed, matches, of_code, of_labels, about, updates, times, collective
    )
    averaged = _autoencoder_subtrees(config) if config.train.averaging else ()
    step = train_step(phases, config.train.averaging)
    augmentation = _augmentation(config, "augmentation", image_shape)

    def init(key: Key[Array, ""]) -> TrainState:
        params, batch_stats = model.init(named(key, "init"))
        return init_state(key, params, batch_stats, tuple(updates.values()), averaged)

    return Experiment(
        model=model,
        style_prior=style_prior,
        label_prior=label_prior,
        matches=matches,
        init=init,
        step=step if augmentation is None else augmented(step, augmentation),
        num_steps=times.num_steps,
        steps_per_epoch=times.steps_per_epoch,
        phases=tuple(config.phases),
        equilibria=_equilibria(matches),
    )


PRIORS: dict[str, Callable[..., Prior]] = {
    "gaussian": priors.gaussian,
    "uniform": priors.uniform,
    "laplace": priors.laplace,
    "petals": priors.petals,
    "grid": priors.grid,
    "gaussian_mixture": priors.gaussian_mixture,
    "swiss_roll": priors.swiss_roll,
    "categorical": priors.categorical,
    "empirical": priors.empirical,
    "mixture": lambda *components, weights=None: priors.mixture(components, weights),
    "product": priors.product,
    "unconditional": priors.unconditional,
    "affine": priors.affine,
    "rotate": priors.rotate,
}


def _built(
    text: str, known: Mapping[str, Callable[..., object]], what: str, kind: type[Built]
) -> Built:
    value = spec.build(text, known, what)
    if not isinstance(value, kind):
        raise ConfigError(f"{what} is {text!r}, which is no {kind.__name__.lower()}")
    return value


def _check_image_shape(config: ConfigDict, image_shape: tuple[int, ...]) -> None:
    for net in ("encoder", "decoder"):
        if not config[net].channels:
            continue
        try:
            networks.halvings(image_shape)
        except ValueError as error:
            raise ConfigError(
                f"{net}.channels is {config[net].channels}, but {error}; "
                "allowed: 0 (fully connected), or images of another size"
            ) from error


def _check_style(config: ConfigDict, prior: Prior, num_classes: int) -> None:
    if prior.dim != config.model.style_dim:
        raise ConfigError(
            f"style.prior {config.style.prior!r} has {prior.dim} dimensions, "
            f"model.style_dim is {config.model.style_dim}; they must agree"
        )
    if config.style.label_informed and (prior.sample_mode is None or prior.num_modes < num_classes):
        raise ConfigError(
            f"style.prior {config.style.prior!r} has {prior.num_modes} modes; "
            f"style.label_informed needs one for each of the data's {num_classes} classes"
        )
    if config.penalties.kl and prior.log_prob is None:
        raise ConfigError(
            f"penalties.kl needs a prior with a density; {config.style.prior!r} has none"
        )


def _label_prior(config: ConfigDict, num_classes: int) -> Prior | None:
    labels = config.model.labels
    given = config.model.layout == "style_and_given_label"
    if ("classification" in config.phases or given) and labels != num_classes:
        raise ConfigError(f"model.labels is {labels}, but the data have {num_classes} classes")
    if not has_label_head(config):
        return None
    if not (config.label.divergence or config.penalties.information):
        return priors.categorical(labels)
    prior = _built(config.label.prior, PRIORS, "label.prior", Prior)
    if prior.dim != labels:
        raise ConfigError(
            f"label.prior {config.label.prior!r} has {prior.dim} categories, "
            f"model.labels is {labels}; they must agree"
        )
    return prior


def _matches(
    config: ConfigDict, style_prior: Prior, label_prior: Prior | None
) -> tuple[Match, ...]:
    matches = []
    for part, prior in (("style", style_prior), ("label", label_prior)):
        fields = config[part]
        if not fields.divergence or prior is None:
            continue
        divergence = _built(
            fields.divergence,
            divergences.DIVERGENCES,
            f"{part}.divergence",
            divergences.Divergence,
        )
        if divergence.of_distributions and part != "label":
            raise ConfigError(
                f"{part}.divergence is {fields.divergence!r}, which compares labels; allowed: for "
                "the label"
            )
        if fields.label_informed and divergence.critic_loss is None:
            raise ConfigError(
                f"style.label_informed needs a critic; {fields.divergence!r} has none"
            )
        if config.train.batch_size < 2 and divergence.whole_batch:
            raise ConfigError(f"{part}.divergence {fields.divergence!r} needs batches of 2 or more")
        matches.append(
            Match(part, prior, divergence, fields.label_informed, fields.weight, fields.noise)
        )
    return tuple(matches)


def _model(
    config: ConfigDict,
    matches: tuple[Match, ...],
    image_shape: tuple[int, ...],
    collective: Collective,
) -> Model:
    style_dim, labels = config.model.style_dim, config.model.labels

    heads = encoder_heads(
        config.model.posterior, style_dim, labels if has_label_head(config) else 0
    )
    encoder = networks.Encoder(
        _trunk(config, image_shape, collective.axis_name),
        heads,
        _initializer(config, "encoder"),
        config.encoder.head_batch_norm,
        collective.axis_name,
    )
    discriminators = {
        match.part: (
            networks.Discriminator(
                tuple(config.discriminator.widths),
                config.discriminator.activation,
                _initializer(config, "discriminator"),
                config.discriminator.spectral_norm,
                _dtype(config),
            ),
            critic_features(match),
        )
        for match in matches
        if match.divergence.critic_loss is not None
    }
    return autoencoder(
        encoder,
        _decoder(config, image_shape, collective.axis_name),
        discriminators,
        image_shape=image_shape,
        style_dim=style_dim,
        num_labels=labels,
        likelihood=LIKELIHOODS[config.decoder.output],
        posterior=config.model.posterior,
        layout=config.model.layout,
        noise_dim=config.model.noise_dim,
        input_noise=config.encoder.input_noise,
        input_dropout=config.encoder.input_dropout,
        cluster_heads=None if config.cluster_heads.fixed else _cluster_heads(config),
        fixed_cluster_heads=_fixed_heads(config),
    )


def _initializer(config: ConfigDict, net: str) -> networks.Initializer:
    return spec.build(config[net].init, networks.INITIALIZERS, f"{net}.init")  # type: ignore[return-value]


def _hidden(config: ConfigDict, net: str, dropout: float, axis_name: str | None) -> networks.MLP:
    return networks.MLP(
        tuple(config[net].widths),
        config[net].activation,
        _initializer(config, net),
        config[net].batch_norm,
        dropout,
        axis_name,
        _dtype(config),
    )


def _dtype(config: ConfigDict) -> np.dtype:
    return jnp.dtype(config.train.compute_dtype)


def _trunk(config: ConfigDict, image_shape: tuple[int, ...], axis_name: str | None) -> nn.Module:
    hidden = _hidden(config, "encoder", config.encoder.dropout, axis_name)
    if not config.encoder.channels:
        return hidden
    return networks.ConvolutionalTrunk(hidden, image_shape, config.encoder.channels)


def _decoder(config: ConfigDict, image_shape: tuple[int, ...], axis_name: str | None) -> nn.Module:
    hidden = _hidden(config, "decoder", 0.0, axis_name)
    if not config.decoder.channels:
        return networks.Decoder(hidden, image_shape, _initializer(config, "decoder"))
    return networks.ConvolutionalDecoder(hidden, image_shape, config.decoder.channels)


def _cluster_heads(config: ConfigDict) -> Callable[[Key[Array, ""]], Array] | None:
    if config.model.layout != "cluster_heads":
        return None
    shape = (config.model.labels, config.model.style_dim)
    std = config.cluster_heads.init_std
    return lambda key: std * jax.random.normal(key, shape)


def _fixed_heads(config: ConfigDict) -> Float[Array, "labels style"] | None:
    fixed = config.cluster_heads.fixed
    if config.model.layout != "cluster_heads" or not fixed:
        return None
    labels, style_dim = config.model.labels, config.model.style_dim
    if labels != style_dim:
        raise ConfigError(
            f"cluster_heads.fixed needs as many style dimensions as labels (W_C = {fixed:g} I); "
            f"model.style_dim is {style_dim}, model.labels {labels}"
        )
    return fixed * jnp.eye(labels)


def _round_up(steps: float, multiple: int) -> int:
    # A last chunk of another length would be compiled anew for a handful of steps. The small
    # margin keeps a product such as 1.1 * 500 from adding a chunk by rounding.
    return max(1, -int(-(steps - 1e-6) // multiple)) * multiple


def _autoencoder_subtrees(config: ConfigDict) -> tuple[str, ...]:
    learned = config.model.layout == "cluster_heads" and not config.cluster_heads.fixed
    return ("encoder", "decoder", "cluster_heads") if learned else ("encoder", "decoder")


class _Times(NamedTuple):
    """What epochs are in steps; smoothness rests for the first `smooth_from` of them."""

    steps_per_epoch: float
    num_steps: int
    smooth_from: int


def _times(config: ConfigDict, num_examples: int) -> _Times:
    steps_per_epoch = num_examples / config.train.batch_size
    return _Times(
        steps_per_epoch,
        _round_up(config.train.epochs * steps_per_epoch, config.train.chunk_steps),
        round(config.train.smoothness_start * steps_per_epoch),
    )


def _updates(config: ConfigDict, times: _Times, collective: Collective) -> dict[str, Update]:
    """The optimizers of the phases in use, by name."""
    moved: dict[str, dict[str, tuple[str, ...]]] = {
        "reconstruction": {"autoencoder": _autoencoder_subtrees(config)},
        "regularization": {"discriminator": ("discriminator",), "generator": ("encoder",)},
        "classification": {"classifier": ("encoder",)},
        "smoothness": {"smoothness": ("encoder",)},
    }
    # An optimizer counts its own steps.
    late = times._replace(num_steps=max(1, times.num_steps - times.smooth_from))
    return {
        name: Update(
            name,
            subtrees,
            _optimizer(config.optimizers[name], name, late if name == "smoothness" else times),
            collective.average,
        )
        for phase in config.phases
        for name, subtrees in moved[phase].items()
    }


def _optimizer(fields: ConfigDict, name: str, times: _Times) -> optax.GradientTransformation:
    schedules = _schedules(times.steps_per_epoch, times.num_steps)
    factor: Any = spec.build(fields.schedule, schedules, f"optimizers.{name}.schedule")
    rate, momentum = fields.learning_rate, fields.momentum

    def learning_rate(step: Array) -> Array | float:
        return rate * factor(step)

    match fields.name:
        case "sgd":
            return optax.sgd(learning_rate, momentum or None)
        case "adam" if not momentum:
            # Adam, without the first moment that it would keep and move for nothing.
            return optax.rmsprop(
                learning_rate, decay=0.999, eps_in_sqrt=False, bias_correction=True
            )
        case "adam":
            return optax.adam(learning_rate, b1=momentum)
        case "adamw":
            return optax.adamw(learning_rate, b1=momentum)
        case "rmsprop":
            return optax.rmsprop(learning_rate, momentum=momentum or None)
    raise ConfigError(f"optimizers.{name}.name is {fields.name!r}")


def _schedules(steps_per_epoch: float, num_steps: int) -> dict[str, Callable[..., Schedule]]:
    """Factors on a learning rate, as functions of the step; their times are in epochs."""

    def constant() -> Schedule:
        return optax.constant_schedule(1.0)

    def step(
        factor: float | int = 0.1, epochs: float | int | tuple[float | int, ...] = (50, 1000)
    ) -> Schedule:
        times = epochs if isinstance(epochs, tuple) else (epochs,)
        return optax.piecewise_constant_schedule(
            1.0, {round(epoch * steps_per_epoch): factor for epoch in times}
        )

    def cosine(end: float | int = 0.0, warmup: float | int = 0.0) -> Schedule:
        if end < 0 or warmup < 0:
            raise ValueError(f"end is {end} and warmup {warmup}; both must be 0 or more")
        if not warmup:
            return optax.cosine_decay_schedule(1.0, num_steps, end)
        return optax.warmup_cosine_decay_schedule(
            0.0, 1.0, round(warmup * steps_per_epoch), num_steps, end
        )

    return {"constant": constant, "step": step, "cosine": cosine}


def _penalties(config: ConfigDict, style_prior: Prior) -> dict[str, Penalty]:
    """Descended with the reconstruction error."""
    penalties: dict[str, Penalty] = {}
    if config.penalties.kl:
        penalties["kl"] = kl(style_prior, config.penalties.kl)
    if config.penalties.heads_apart:
        penalties["heads_apart"] = heads_apart(
            config.cluster_heads.eta, config.penalties.heads_apart
        )
    return penalties


def _label_penalties(
    config: ConfigDict, prior: Prior | None, collective: Collective
) -> dict[str, Penalty]:
    """Descended with smoothness."""
    weight = config.penalties.information
    if not weight or prior is None:
        return {}
    try:
        return {"information": information(prior, weight, collective=collective)}
    except ValueError as error:
        raise ConfigError(f"label.prior is {config.label.prior!r}; {error}") from error


def _phases(
    config: ConfigDict,
    model: Model,
    smoothed: Model,
    matches: tuple[Match, ...],
    of_code: dict[str, Penalty],
    of_labels: dict[str, Penalty],
    about: Augmentation | None,
    updates: dict[str, Update],
    times: _Times,
    collective: Collective,
) -> tuple[Phase, ...]:
    radius = config.train.smoothness_radius
    known: dict[str, Callable[[], Phase]] = {
        "reconstruction": lambda: reconstruction(model, updates["autoencoder"], of_code),
        "regularization": lambda: regularization(
            model, matches, updates["discriminator"], updates["generator"], collective
        ),
        "classification": lambda: classification(model, updates["classifier"]),
        "smoothness": lambda: from_step(
            smoothness(smoothed, updates["smoothness"], radius, of_labels, about),
            times.smooth_from,
        ),
    }
    phases = tuple(known[name]() for name in config.phases)
    normed = config.encoder.batch_norm or config.encoder.head_batch_norm
    if normed and "reconstruction" not in config.phases:
        return (*phases, running_statistics(model))
    return phases


def _augmentation(
    config: ConfigDict, field: str, image_shape: tuple[int, ...]
) -> Augmentation | None:
    text = config.train[field]
    if not text:
        return None
    if len(image_shape) != 3:
        raise ConfigError(
            f"train.{field} is {text!r}, but the data are rows of the shape {image_shape}; "
            "allowed: '' (none), or images"
        )
    return spec.build(text, AUGMENTATIONS, f"train.{field}")  # type: ignore[return-value]


def _with_clean_input(config: ConfigDict) -> ConfigDict:
    """For smoothness about the images themselves: noise of 0.3 on 784 pixels has a length of 8."""
    clean = ConfigDict(config.to_dict())
    clean.encoder.input_noise = clean.encoder.input_dropout = 0.0
    return clean


def _equilibria(matches: tuple[Match, ...]) -> dict[str, float]:
    values = {}
    for match in matches:
        if match.divergence.equilibrium is not None:
            critic, matching = match.divergence.equilibrium
            values[f"{match.part}/discriminator"] = critic
            values[f"{match.part}/generator"] = matching
    return values
