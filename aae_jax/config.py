"""The base ConfigDict of every experiment, and the checks that name each bad value.

A config file starts from `base()` and changes what its experiment needs. Nothing here imports JAX,
so that a bad value is named in a second.
"""

import difflib
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

PHASES = ("reconstruction", "regularization", "classification", "smoothness")
OPTIMIZER_NAMES = ("autoencoder", "discriminator", "generator", "classifier", "smoothness")
STREAMED = ("tfds", "folder")  # data sources whose training images can stay on disk
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
_TOO_LARGE = 2**31
# Variants of configs that set the adversary beside its rivals (Table 1), with their titles.
RIVALS = {
    "aae": "Adversarial autoencoder",
    "vae": "Variational autoencoder",
    "mmd": "Autoencoder matched by MMD",
}
# Fields that configs saved by earlier versions lack; what base() has is what those runs did.
ADDED = (
    "init_parts",
    "penalties.information",
    "encoder.channels",
    "decoder.channels",
    "data.streaming",
    "data.paper",
    "optimizers.smoothness",
    "train.smoothness_radius",
    "train.augmentation",
    "train.smoothness_augmentation",
    "train.compute_dtype",
    "train.smoothness_start",
    "evaluation.fitted_prior",
)


_Variant = TypeVar("_Variant")


class ConfigError(ValueError):
    """A value that cannot be used; one line with the field, the value and what is allowed."""


def base() -> ConfigDict:
    """A 2-D Gaussian prior on the digits that scikit-learn ships, with every field there is."""

    def optimizer(learning_rate: float, momentum: float) -> dict[str, Any]:
        return {
            "name": "sgd",  # one of OPTIMIZERS
            "learning_rate": learning_rate,
            "momentum": momentum,  # of SGD; b1 of Adam
            # Factor on the learning rate: constant(), step(factor, epochs), cosine(end, warmup).
            "schedule": "constant()",
        }

    def match(prior: str, divergence: str) -> dict[str, Any]:
        return {
            "prior": prior,  # a constructor of aae_jax.priors, with its arguments
            "divergence": divergence,  # of aae_jax.divergences; "" leaves the part unmatched
            "label_informed": False,  # the critic sees the label (section 2.3)
            "weight": 1.0,  # factor on the encoder's matching loss; alone, Adam undoes it
            "noise": 0.0,  # std of Gaussian noise on everything the critic sees
        }

    def layers(**more: Any) -> dict[str, Any]:
        return {"widths": (1000, 1000), "activation": "relu", "init": "normal(0.01)", **more}

    config = ConfigDict(
        {
            "experiment": "",  # E1 to E18, where it is one of the README's
            "title": "Adversarial autoencoder with a 2-D Gaussian prior",
            "seed": 0,  # of everything random: weights, order, noise, labelled subset
            # A finished run's workdir whose weights to start from, {seed} in it being the seed, and
            # which of them, such as encoder/trunk or decoder; () takes all.
            "init_from": "",
            "init_parts": (),
            "data": {
                "source": "digits",  # digits, tfds:NAME, idx:DIR, npz:FILE, folder:DIR
                "download": False,  # may TFDS download a set that is not prepared?
                "data_dir": "",  # TFDS folder; "" is TFDS's own default
                "streaming": False,  # read training images while training: tfds, folder
                "validation": 300,  # last training images held out, unless the source has some
                "labels": -1,  # labelled training images, class-balanced; -1 keeps all labels
                "preprocessing": "unit",  # unit, standardize, standardize_pixels
                "paper": "",  # the data set of the figures in `paper`, a word of its source
                "stand_in_for": "",  # the paper's data set, where this is another one
            },
            "model": {
                "style_dim": 2,
                "labels": 0,  # classes or clusters of the label head; 0 has no label
                # style, style_and_given_label, style_and_inferred_label, cluster_heads
                "layout": "style",
                "posterior": "deterministic",  # deterministic, gaussian, universal
                "noise_dim": 0,  # noise values fed to a universal approximator's encoder
            },
            # With channels, convolutions stand between the image and the layers of these widths:
            # they halve its sides, multiples of 4, to about 8. The decoder's mirror them.
            "encoder": layers(
                channels=0,  # of the first convolution, doubled at each further one; 0 has none
                batch_norm=False,
                head_batch_norm=False,
                input_noise=0.0,  # std on the input while training; the target stays clean
                input_dropout=0.0,  # share of input pixels dropped while training
                dropout=0.0,  # share of hidden units dropped while training
            ),
            "decoder": layers(
                channels=0,  # of the last hidden image, doubled at each one before; 0 has none
                batch_norm=False,
                output="sigmoid",  # sigmoid, linear (half squared error), bernoulli
            ),
            "discriminator": layers(spectral_norm=False),
            "cluster_heads": {
                "init_std": 1.0,  # of the learned W_C (section 7)
                "fixed": 0.0,  # W_C = fixed * I instead of a learned one
                "eta": 0.0,  # heads nearer than this cost (section 7)
            },
            "style": match("gaussian(2, std=5.0)", "gan()"),
            "label": match("categorical(10)", ""),
            "penalties": {
                "kl": 0.0,  # weight of KL(q(z|x) || p(z)): 1 makes the VAE
                "heads_apart": 0.0,  # weight of the cost on near cluster heads
                # Weight of H(y|x) + 2 KL(q(y) || label.prior), descended with smoothness.
                "information": 0.0,
            },
            "phases": ("reconstruction", "regularization"),  # in this order, of PHASES
            "optimizers": {
                "autoencoder": optimizer(0.01, 0.9),
                "discriminator": optimizer(0.1, 0.1),
                "generator": optimizer(0.1, 0.1),
                "classifier": optimizer(0.1, 0.9),
                "smoothness": optimizer(0.1, 0.9),
            },
            "train": {
                "epochs": 100.0,  # passes over the (unlabelled) training images
                "batch_size": 100,  # over all devices
                "labelled_batch_size": 100,
                "chunk_steps": 100,  # steps per call of the device
                # What training images go through, drawn anew each time: affine(degrees, translate,
                # scale, shear) of aae_jax.augmentation; "" leaves them as they are.
                "augmentation": "",
                "smoothness_radius": 1.5,  # Euclidean distance within which q(y|x) is smooth
                # Of aae_jax.augmentation: q(y|x) is smooth about the augmented image; "" has none.
                "smoothness_augmentation": "",
                "smoothness_start": 0.0,  # epoch it begins at; its schedule counts from there
                "averaging": 0.0,  # decay of the parameter average to evaluate; 0 keeps none
                "parallel": "pmap",  # pmap, shard_map
                # Of hidden layers and the decoder's output layer, trained and evaluated: float32,
                # bfloat16. Parameters, optimizers, statistics, codes, scores, losses are float32.
                "compute_dtype": "float32",
            },
            "checkpoint": {"every_seconds": 60.0, "keep": 3},
            "evaluation": {
                "every_epochs": 1.0,  # validation scores
                "samples": 1000,  # samples in distances and figures
                "fitted_prior": False,  # sample a Gaussian fitted to the codes, not style.prior
                # Samples of the Parzen estimator; 0 leaves it out. More than the paper's 10,000 are
                # scored at 10,000, 100,000 and so on as well.
                "parzen_samples": 0,
                "sample_quality": False,  # Frechet, kernel distance, precision and recall
            },
            # Published figures, by score name, to print beside scores on data whose source has the
            # word data.paper, or which stand in for these.
            "paper": {},
        }
    )
    return config.lock()


def chosen(variants: Mapping[str, _Variant], variant: str) -> _Variant:
    """What a config file has for one of its variants.

    Raises:
        ConfigError: it has no such variant; one line with all that it has.
    """
    if variant not in variants:
        raise ConfigError(f"variant {variant!r} is unknown; allowed: {', '.join(variants)}")
    return variants[variant]


def with_best(variants: Mapping[str, _Variant]) -> dict[str, _Variant]:
    """The variants, and each once more as NAME/best."""
    return {**variants, **{f"{name}/best": value for name, value in variants.items()}}


def use_widths(config: ConfigDict, *widths: int) -> None:
    """Hidden layers of these widths in all networks of the given config."""
    for network in ("encoder", "decoder", "discriminator"):
        config[network].widths = widths


def use_adam(
    config: ConfigDict,
    autoencoder: float = 3e-4,
    discriminator: float = 2e-3,
    generator: float = 2e-3,
) -> None:
    """Adam with rates that fall to zero, and initial weights to match, in the given config.

    For experiments whose optimizer the paper does not tell: from N(0, 0.01^2) its SGD takes most of
    a short run to leave the plateau where every image is decoded to the mean image. The adversary
    must move the encoder faster than the reconstruction error, summed over pixels, pulls it away:
    with a generator's rate below the autoencoder's, codes keep to a part of the prior and do not
    find their label's mode (seen on validation images).
    """
    rates = {"autoencoder": autoencoder, "discriminator": discriminator, "generator": generator}
    for name, rate in rates.items():
        fields = config.optimizers[name]
        fields.name, fields.learning_rate, fields.schedule = "adam", rate, "cosine()"
        # Against an opponent that moves, a memory of old gradients does harm.
        fields.momentum = 0.9 if name == "autoencoder" else 0.0
    for network in ("encoder", "decoder", "discriminator"):
        config[network].init = "he_normal()"


def use_vae(config: ConfigDict) -> None:
    """The variational autoencoder in the given config: the KL term in the adversary's place."""
    config.model.posterior = "gaussian"
    config.style.divergence = ""
    config.phases = ("reconstruction",)
    config.penalties.kl = 1.0


def use_information(config: ConfigDict) -> None:
    """Labels or clusters that say much of an image and are equally frequent, in the given config.

    Information (aae_jax.phases.information) takes the place of the label's adversary; smoothness,
    about images that are moved, turned and slanted a little, holds it to groups of like images from
    the first step. SGD does not leave the start.
    """
    config.phases = (*config.phases, "smoothness")
    use_adam(config, autoencoder=3e-4, discriminator=1e-3, generator=1e-3)
    for name, rate in (("smoothness", 2e-3), ("classifier", 1e-3)):
        fields = config.optimizers[name]
        fields.name, fields.learning_rate, fields.schedule = "adam", rate, "cosine()"
    config.label.divergence = ""
    config.penalties.information = 0.1
    config.encoder.batch_norm = config.encoder.head_batch_norm = True
    config.encoder.input_noise = config.encoder.input_dropout = 0.0
    config.train.smoothness_radius = 1.0
    config.train.smoothness_augmentation = "affine(degrees=10, translate=0.07, scale=0.1, shear=15)"
    config.train.epochs, config.train.batch_size, config.train.averaging = 40.0, 250, 0.999
    use_widths(config, 500, 500)


def mnist() -> ConfigDict:
    """What the paper's MNIST experiments share: data, batches, the label-free optimizers."""
    config = base()
    config.data.source, config.data.paper = "tfds:mnist", "mnist"
    config.data.validation = 10_000  # train[50000:]
    config.train.epochs = 20.0
    config.evaluation.samples = 5000
    config.evaluation.sample_quality = True
    return config


def svhn() -> ConfigDict:
    """What the paper's SVHN experiments share: data and the networks of appendix A.2.2."""
    config = base()
    config.data.source, config.data.paper = "tfds:svhn_cropped", "svhn_cropped"
    config.data.validation = 1000
    config.data.preprocessing = "standardize_pixels"
    config.model.style_dim = 20
    config.model.labels = 10
    config.style.prior = "gaussian(20, std=1.0)"
    use_widths(config, 3000, 3000)
    config.encoder.batch_norm = config.decoder.batch_norm = True
    config.encoder.input_dropout = 0.2
    config.decoder.output = "linear"
    config.train.epochs = 50.0
    config.evaluation.sample_quality = True
    return config


def validate(config: ConfigDict) -> None:
    """Checks everything that can be known before data are read.

    Raises:
        ConfigError: names the first bad field, its value and what is allowed, in one line.
    """
    _same_fields(config.to_dict(), base().to_dict(), "")
    for field, (allowed, holds) in _RULES.items():
        value = _get(config, field)
        if not holds(value):
            raise ConfigError(f"{field} is {value!r}; allowed: {allowed}")
    for problem in _contradictions(config):
        raise ConfigError(problem)


def check_field(field: str) -> None:
    """Checks that a dotted name, such as "train.epochs", is one of the base config.

    Raises:
        ConfigError: it is not; one line with the nearest name and all that are known.
    """
    known: Any = base().to_dict()
    prefix = ""
    for name in field.split("."):
        if prefix == "paper.":
            return
        if not isinstance(known, Mapping):
            raise ConfigError(f"{field} is not a field; {prefix[:-1]} holds a value, not fields")
        _check_known(name, known, prefix)
        known, prefix = known[name], f"{prefix}{name}."


def digest(config: ConfigDict) -> str:
    """A short fingerprint of the config, for result tables.

    Of what differs from base(), so that a field which is added later changes no fingerprint.
    """
    text = "\n".join(differences(base().to_dict(), config.to_dict()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Fields in which two configs differ, each as "field: old -> new"."""
    lines = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{name}.")
        elif _plain(a) != _plain(b):
            lines.append(f"{prefix}{name}: {_plain(a)!r} -> {_plain(b)!r}")
    return lines


def _plain(value: Any) -> Any:
    # JSON knows no tuples.
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _same_fields(config: Mapping[str, Any], known: Mapping[str, Any], prefix: str) -> None:
    for name, value in config.items():
        field = f"{prefix}{name}"
        _check_known(name, known, prefix)
        if field == "paper":
            _check_paper(value)
            continue
        if isinstance(known[name], Mapping):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{field} is {value!r}; it holds fields, not a value")
            _same_fields(value, known[name], f"{field}.")
        elif not _same_type(value, known[name]):
            raise ConfigError(
                f"{field} is {value!r}, a {type(value).__name__}; "
                f"allowed: {type(known[name]).__name__}"
            )
        elif isinstance(value, int) and not -_TOO_LARGE < value < _TOO_LARGE:
            # Neither floats nor the sizes of arrays hold every number that Python knows.
            raise ConfigError(f"{field} is {value!r}; allowed: whole numbers below 2**31")
    for name in known:
        if name not in config:
            raise ConfigError(f"{prefix}{name} is missing; start from aae_jax.config.base()")


def _check_paper(figures: Any) -> None:
    if not isinstance(figures, Mapping):
        raise ConfigError(f"paper is {figures!r}; it holds the paper's figures by score name")
    for name, value in figures.items():
        if not isinstance(value, str):
            raise ConfigError(f"paper[{name!r}] is {value!r}; allowed: text, as it is printed")


def _check_known(name: str, known: Mapping[str, Any], prefix: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {prefix}{close[0]}? " if close else ""
        raise ConfigError(f"{prefix}{name} is not a field; {hint}known: {', '.join(sorted(known))}")


def _same_type(value: Any, example: Any) -> bool:
    if isinstance(example, float):
        return isinstance(value, float | int) and not isinstance(value, bool)
    return type(value) is type(example)


def _get(config: ConfigDict, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config


def _one_of(*names: str) -> tuple[str, Callable[[Any], bool]]:
    return ", ".join(names), lambda value: value in names


def _number(
    low: float | int, high: float | int = math.inf, open_low: bool = False
) -> tuple[str, Callable[[Any], bool]]:
    text = f"more than {low:g}" if open_low else f"{low:g} or more"
    if high < math.inf:
        text = f"{low:g} (excluded) to {high:g}" if open_low else f"{low:g} to {high:g}"
    # Comparisons refuse NaN.
    return text, lambda v: (low < v if open_low else low <= v) and v <= high and v < math.inf


_WIDTHS = (
    "a tuple of positive numbers below 2**31",
    lambda v: all(isinstance(w, int) and 0 < w < _TOO_LARGE for w in v),
)
_ACTIVATIONS = _one_of("relu", "leaky_relu", "gelu", "tanh", "softplus")
_SHARE = ("0 to 1 (excluded)", lambda v: 0 <= v < 1)
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seed": _number(0, 2**31 - 1),
    "init_parts": (
        "a tuple of parts of the weights such as encoder/trunk, none of them within another",
        lambda v: (
            all(isinstance(part, str) and all(part.split("/")) for part in v)
            and sum(f"{a}/".startswith(f"{b}/") for a in v for b in v) == len(v)
        ),
    ),
    "data.source": ("a data source such as digits or idx:DIR", lambda v: bool(v.strip())),
    "data.validation": _number(0),
    "data.labels": ("-1 (all labels), or 0 or more", lambda v: v >= -1),
    "data.preprocessing": _one_of("unit", "standardize", "standardize_pixels"),
    "model.style_dim": _number(1),
    "model.labels": _number(0),
    "model.layout": _one_of(
        "style", "style_and_given_label", "style_and_inferred_label", "cluster_heads"
    ),
    "model.posterior": _one_of("deterministic", "gaussian", "universal"),
    "model.noise_dim": _number(0),
    **{f"{net}.widths": _WIDTHS for net in ("encoder", "decoder", "discriminator")},
    **{f"{net}.activation": _ACTIVATIONS for net in ("encoder", "decoder", "discriminator")},
    "encoder.channels": _number(0),
    "decoder.channels": _number(0),
    "encoder.input_noise": _number(0),
    "encoder.input_dropout": _SHARE,
    "encoder.dropout": _SHARE,
    "decoder.output": _one_of("sigmoid", "linear", "bernoulli"),
    "cluster_heads.init_std": _number(0),
    "cluster_heads.fixed": _number(0),
    "cluster_heads.eta": _number(0),
    **{f"{part}.{name}": _number(0) for part in ("style", "label") for name in ("weight", "noise")},
    "penalties.kl": _number(0),
    "penalties.heads_apart": _number(0),
    "penalties.information": _number(0),
    "train.smoothness_radius": _number(0, open_low=True),
    "train.smoothness_start": _number(0),
    "phases": (
        f"a choice of {', '.join(PHASES)}, each at most once, in any order",
        lambda v: len(v) > 0 and all(v.count(name) == 1 and name in PHASES for name in v),
    ),
    **{
        f"optimizers.{each}.{field}": rule
        for each in OPTIMIZER_NAMES
        for field, rule in {
            "name": _one_of(*OPTIMIZERS),
            "learning_rate": _number(0, open_low=True),
            "momentum": _SHARE,
        }.items()
    },
    "train.epochs": _number(0, open_low=True),
    "train.batch_size": _number(1),
    "train.labelled_batch_size": _number(1),
    "train.chunk_steps": _number(1),
    "train.averaging": _SHARE,
    "train.parallel": _one_of("pmap", "shard_map"),
    "train.compute_dtype": _one_of("float32", "bfloat16"),
    "checkpoint.every_seconds": _number(0, open_low=True),
    "checkpoint.keep": _number(2),
    "evaluation.every_epochs": _number(0, open_low=True),
    "evaluation.samples": _number(10),
    "evaluation.parzen_samples": _number(0),
}


def _contradictions(config: ConfigDict) -> list[str]:
    """Values that are fine alone and not together."""
    model, label, style = config.model, config.label, config.style
    bad = []
    if model.layout != "style" and not model.labels:
        bad.append(f"model.layout is {model.layout}; it needs model.labels of 1 or more")
    if (model.posterior == "universal") != (model.noise_dim > 0):
        bad.append(
            f"model.noise_dim is {model.noise_dim} and model.posterior {model.posterior}; "
            "allowed: noise values for the universal posterior, and for no other"
        )
    if config.decoder.output != "linear" and config.data.preprocessing != "unit":
        bad.append(
            f"decoder.output is {config.decoder.output} and data.preprocessing "
            f"{config.data.preprocessing}; allowed: pixels in 0..1 (unit), or a linear output"
        )
    if config.penalties.kl and model.posterior != "gaussian":
        bad.append(f"penalties.kl needs model.posterior gaussian, not {model.posterior}")
    if config.penalties.heads_apart and (
        model.layout != "cluster_heads" or config.cluster_heads.fixed
    ):
        bad.append("penalties.heads_apart needs model.layout cluster_heads with learned heads")
    if config.penalties.heads_apart and not config.cluster_heads.eta:
        bad.append("penalties.heads_apart needs cluster_heads.eta, the least distance of heads")
    if config.init_parts and not config.init_from:
        bad.append("init_parts needs init_from, the run that they are taken from")
    if config.data.streaming and config.data.source.split(":")[0] not in STREAMED:
        bad.append(
            f"data.streaming is True and data.source {config.data.source}; allowed: "
            + ", ".join(f"{kind}:" for kind in STREAMED)
        )
    if label.divergence and not has_label_head(config):
        bad.append("label.divergence needs an encoder with a label head: model.labels of 1 or more")
    if label.label_informed:
        bad.append("label.label_informed is True; allowed: False, only the style can be informed")
    if style.label_informed and not style.divergence:
        bad.append("style.label_informed needs style.divergence, a critic to inform")
    if "regularization" in config.phases and not (style.divergence or label.divergence):
        bad.append("phases has regularization, but neither style.divergence nor label.divergence")
    if "regularization" not in config.phases and (style.divergence or label.divergence):
        bad.append("style.divergence or label.divergence is set, but phases lacks regularization")
    if "classification" in config.phases and not has_label_head(config):
        bad.append("the phase classification needs a label head: model.labels of 1 or more")
    if "smoothness" in config.phases and not has_label_head(config):
        bad.append("the phase smoothness needs a label head: model.labels of 1 or more")
    if config.penalties.information and "smoothness" not in config.phases:
        bad.append("penalties.information needs the phase smoothness, with which it is descended")
    if config.train.smoothness_augmentation and "smoothness" not in config.phases:
        bad.append("train.smoothness_augmentation needs the phase smoothness, to which it belongs")
    if config.penalties.information and config.train.batch_size < 2:
        bad.append("penalties.information needs batches of 2 or more, see train.batch_size")
    if config.evaluation.fitted_prior and (style.divergence or config.penalties.kl):
        bad.append(
            "evaluation.fitted_prior is True; it is for codes that follow no prior: allowed with "
            "style.divergence '' and penalties.kl 0"
        )
    if "smoothness" in config.phases and config.train.smoothness_start >= config.train.epochs:
        bad.append(
            f"train.smoothness_start is {config.train.smoothness_start:g}; allowed: less than "
            f"train.epochs, which is {config.train.epochs:g}"
        )
    if "classification" in config.phases and config.data.labels == 0:
        bad.append("the phase classification needs labels: data.labels of 1 or more, or -1")
    return bad


def has_label_head(config: ConfigDict) -> bool:
    """Whether the encoder infers a label (a supervised autoencoder is given it)."""
    return config.model.labels > 0 and config.model.layout != "style_and_given_label"
