"""A trained model as a library: `load(workdir)` -> encode, decode, reconstruct, sample, classify.

    import aae_jax, jax
    digits = aae_jax.load("runs/digits")
    images = digits.sample(jax.random.key(0), 16)

The run's data are not needed, nor the devices that it was trained on. Functions take and return
arrays of any number of examples, none included; they may be called from several threads. Each is
compiled once, when first called, for blocks of `BLOCK` examples: an example gives the same bits
alone and among others. Whatever is wrong with an argument is an `InferenceError` of one line.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from aae_jax import checkpoints
from aae_jax.arguments import (
    InferenceError,
    check_whole,
    checked_key,
    checked_style,
    distributions,
    units_of,
    whole_labels,
)
from aae_jax.coding import Coder, Weights, coder, in_blocks, weights_of
from aae_jax.config import validate
from aae_jax.data import DataError, description, preprocessing
from aae_jax.data.description import Description
from aae_jax.data.preprocessing import Preprocessing
from aae_jax.experiment import Experiment, build
from aae_jax.networks import one_hot
from aae_jax.priors import Prior, categorical, sample_batch, sample_modes
from aae_jax.randomness import all_named
from aae_jax.recording import METRICS, read_metrics
from aae_jax.state import TrainState
from aae_jax.workdir import DESCRIPTION, PREPROCESSING, WorkdirError, read_config

CHECKPOINTS = ("newest", "best")
# One image costs as much as a block; larger ones are hardly faster per image on a CPU.
BLOCK = 128
# Validation scores to choose the best checkpoint by: the first that the run has.
_SCORES = ("valid/error_percent", "valid/reconstruction")


class Codes(NamedTuple):
    """Codes of images.

    Attributes:
        style: [n, style_dim].
        label: [n, labels], the distribution q(y|x) over classes or clusters, or None where the
            encoder infers no label.
    """

    style: Float[np.ndarray, "n style"]
    label: Float[np.ndarray, "n labels"] | None


class Trained(NamedTuple):
    """A trained model.

    Images are [n, *image_shape]: uint8, or floats in the data's units, which are [0, 1] for data
    that came as uint8. What is returned is NumPy's float32 in the same units. A label is a whole
    number for all, whole numbers [n], or distributions [n, labels]. A `key` matters only where the
    posterior is random (Gaussian, universal), and is `jax.random.key(0)` unless given: the same
    image at the same place then gets the same code.

    A function that the run does not have is there, and raises an `InferenceError` that says why.

    Attributes:
        encode: (images, key=None) -> Codes.
        decode: (style [n, style_dim], label=None) -> images; the label is needed where the decoder
            sees one, and is refused where it does not.
        reconstruct: (images, label=None, key=None) -> images. A label takes the place of the
            inferred one; a supervised run needs it.
        sample: (key, n, mode=None) -> images decoded from the prior. The mode is the label or
            cluster where the decoder sees one (drawn from its prior by default), else a mode of
            the style's prior. The first images of a key are the same for any n.
        interpolate: (a, b, steps, label=None, key=None) -> [steps, ...] images decoded along the
            straight line between the codes of two images, [*image_shape] each, ends included.
        classify: (images, key=None) -> [n, classes], q(y|x); where the run was shown labels.
        cluster: (images, key=None) -> [n], the likeliest cluster of each image; where it was not.
        anomaly_score: (images, label=None, key=None) -> [n], the reconstruction error in nats per
            image: the negative log-likelihood up to a constant, which is half the squared error
            summed over the pixels as the networks see them (normalized), or the cross-entropy of a
            Bernoulli decoder. It does not say how likely the code itself is under the prior.
        prior: p(z) of the style.
        preprocessing: the run's constants.
        config: the run's.
        data: shape and type of the run's images.
        step: of the checkpoint.
        coder, weights: the pure functions underneath, for `jax.grad`, `jax.vmap` and the like:
            `coder.encode(weights, keys, images)`. They check nothing.
    """

    encode: Callable[..., Codes]
    decode: Callable[..., np.ndarray]
    reconstruct: Callable[..., np.ndarray]
    sample: Callable[..., np.ndarray]
    interpolate: Callable[..., np.ndarray]
    classify: Callable[..., np.ndarray]
    cluster: Callable[..., np.ndarray]
    anomaly_score: Callable[..., np.ndarray]
    prior: Prior
    preprocessing: Preprocessing
    config: ConfigDict
    data: Description
    step: int
    coder: Coder
    weights: Weights

    def __reduce__(self) -> tuple[Any, ...]:
        """Functions do not pickle; what they are made of does."""
        values = (self.config, self.data, self.preprocessing, jax.device_get(self.weights))
        return trained, (*values, self.step)


def load(workdir: str | os.PathLike[str], checkpoint: str = "newest") -> Trained:
    """Loads a run; its folder is only read, also while it is training.

    Args:
        workdir: the run's folder.
        checkpoint: "newest", the newest one that is not damaged; or "best", among those that are
            kept, the one with the lowest validation error in percent, or reconstruction error
            where the run has no label head. Only a checkpoint of a step whose score was recorded
            counts: the last one of a finished run always does, most of those before do not.

    Raises:
        InferenceError: there is no such choice of a checkpoint.
        WorkdirError: the folder holds no run, or one of an earlier version.
        DataError: what it keeps of its data is damaged.
        CheckpointError: there is no checkpoint to use, or none with a score.
        ConfigError, SpecError: the config is none of this version.
    """
    if checkpoint not in CHECKPOINTS:
        raise InferenceError(f"checkpoint is {checkpoint!r}; allowed: {', '.join(CHECKPOINTS)}")
    folder = Path(workdir)
    config = read_config(folder)
    validate(config)
    for name in (PREPROCESSING, DESCRIPTION):
        if not (folder / name).exists():
            raise WorkdirError(
                f"{folder} has no {name}, which training writes when it starts; give the run's "
                "command again (a finished run is not trained anew)"
            )
    constants = preprocessing.load(folder / PREPROCESSING)
    data = description.load(folder / DESCRIPTION)
    if constants.shift.shape not in ((), data.image_shape):
        raise DataError(
            f"{folder / PREPROCESSING}: constants {list(constants.shift.shape)} do not fit images "
            f"{list(data.image_shape)} ({DESCRIPTION})"
        )
    state = _restore(_experiment(config, data), folder, checkpoint)
    return trained(config, data, constants, weights_of(state), state.step)


def _experiment(config: ConfigDict, data: Description) -> Experiment:
    return build(
        config,
        image_shape=data.image_shape,
        num_classes=data.num_classes,
        num_examples=data.num_examples,
    )


def shown(data: Description, image: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """Decoded images as they are returned: within [0, 1] where the data came as uint8."""
    return jnp.clip(image, 0, 1) if data.image_type == "uint8" else image


def _restore(experiment: Experiment, folder: Path, checkpoint: str) -> TrainState:
    """A state without optimizers."""
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    subtrees = {"params": shapes.params, "batch_stats": shapes.batch_stats}
    if shapes.averaged_params is not None:
        subtrees["averaged_params"] = shapes.averaged_params
    order = _best_first(folder) if checkpoint == "best" else checkpoints.newest_first
    restored = checkpoints.restore_subtrees(folder / "checkpoints", subtrees, order)
    empty = TrainState(restored.step, {}, {}, {}, None, None)
    return empty.replace(**restored.state)


def _best_first(folder: Path) -> Callable[[list[int]], list[int]]:
    rows = read_metrics(folder)
    name = next((name for name in _SCORES if any(name in row for row in rows)), _SCORES[-1])
    scores = {int(row["step"]): row[name] for row in rows if name in row}

    def order(steps: list[int]) -> list[int]:
        scored = [step for step in steps if math.isfinite(scores.get(step, math.nan))]
        if steps and not scored:
            raise checkpoints.CheckpointError(
                f"{folder}: {METRICS} has no validation score of a checkpoint that is kept "
                f"(steps {', '.join(map(str, sorted(steps)))}); take the newest"
            )
        return sorted(scored, key=lambda step: (scores[step], -step))

    return order


def trained(
    config: ConfigDict, data: Description, constants: Preprocessing, weights: Weights, step: int
) -> Trained:
    """A trained model of its values, as training or `load` has them; see `Trained`.

    Args:
        config: the run's, validated.
        data: shape and type of its images.
        constants: its preprocessing.
        weights: to evaluate; see `aae_jax.coding.weights_of`.
        step: that they are of.
    """
    experiment = _experiment(config, data)
    model, prior, label_prior = experiment.model, experiment.style_prior, experiment.label_prior
    parts = coder(model, constants)
    takes_label, infers_label = model.layout != "style", label_prior is not None
    given_label = takes_label and not infers_label
    labels = "classes" if experiment.knows_classes or given_label else "clusters"
    units = units_of(data, config.decoder.output)

    @jax.jit
    def encode_batch(weights: Weights, keys: Key[Array, "batch"], image: Array) -> PyTree:
        code = parts.encode(weights, keys, image)
        logits = code.label_logits
        return Codes(code.style, None if logits is None else jax.nn.softmax(logits))  # type: ignore[arg-type]

    @jax.jit
    def decode_batch(
        weights: Weights, keys: Key[Array, "batch"], style: Array, label: Array | None
    ) -> Array:
        return shown(data, parts.decode(weights, keys, style, label))

    @jax.jit
    def sample_and_decode(
        weights: Weights, keys: Key[Array, "batch"], mode: Int[Array, "batch"]
    ) -> Array:
        style_keys, label_keys = all_named(keys, "style"), all_named(keys, "label")
        if not takes_label:
            if prior.sample_mode is None:
                style = sample_batch(prior, style_keys)
            else:
                style = sample_modes(prior, style_keys, mode)
            return shown(data, parts.decode(weights, keys, style, None))
        drawn = sample_batch(label_prior or categorical(model.num_labels), label_keys)
        label = jnp.where((mode < 0)[:, None], drawn, one_hot(mode, model.num_labels))
        style = sample_batch(prior, style_keys)
        return shown(data, parts.decode(weights, keys, style, label))

    @jax.jit
    def error_of_batch(
        weights: Weights, keys: Key[Array, "batch"], image: Array, label: Array
    ) -> Array:
        return parts.reconstruct(weights, keys, image, label)["error"]

    def run(function: Callable[..., PyTree], key: Any, *arrays: PyTree) -> Any:
        return in_blocks(function, BLOCK, weights, checked_key(key), *arrays)

    def missing_label() -> InferenceError:
        return InferenceError(
            f"label: missing; this run's decoder sees one of {model.num_labels} {labels}"
        )

    def decoded(codes: Codes, label: Any) -> np.ndarray:
        """Decodes checked styles with this label, or else with their own."""
        n = len(codes.style)
        if not takes_label:
            if label is not None:
                raise InferenceError("label: this run's decoder sees the style alone; give none")
            chosen = None
        elif label is not None:
            chosen = distributions(label, n, model.num_labels, labels)
        elif codes.label is not None:
            chosen = codes.label
        else:
            raise missing_label()
        return run(decode_batch, None, codes.style, chosen)

    def encode(images: Any, key: Any = None) -> Codes:
        """(images, key=None) -> Codes; see `Trained`."""
        return run(encode_batch, key, units.checked(images, "images"))

    def decode(style: Any, label: Any = None) -> np.ndarray:
        """(style [n, style_dim], label=None) -> images; see `Trained`."""
        return decoded(Codes(checked_style(style, model.style_dim), None), label)

    def reconstruct(images: Any, label: Any = None, key: Any = None) -> np.ndarray:
        """(images, label=None, key=None) -> images; see `Trained`."""
        return decoded(encode(images, key), label)

    def sample(key: Any, n: Any, mode: Any = None) -> np.ndarray:
        """(key, n, mode=None) -> n images; see `Trained`."""
        if key is None:
            raise InferenceError("key: missing; give jax.random.key(seed)")
        check_whole(n, "n", 0, 2**31 - 1)
        if mode is not None and not takes_label and prior.sample_mode is None:
            raise InferenceError(f"mode: the prior {config.style.prior} has no modes; give none")
        if mode is not None:
            what, count = (labels, model.num_labels) if takes_label else ("modes", prior.num_modes)
            check_whole(mode, "mode", 0, count - 1, f" ({what})")
        return run(sample_and_decode, key, np.full(n, -1 if mode is None else mode, np.int32))

    def interpolate(a: Any, b: Any, steps: Any, label: Any = None, key: Any = None) -> np.ndarray:
        """(a, b, steps, label=None, key=None) -> [steps, ...] images; see `Trained`."""
        check_whole(steps, "steps", 2)
        ends = [encode(units.one(image, name), key) for image, name in ((a, "a"), (b, "b"))]
        u = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
        return decoded(jax.tree.map(lambda first, last: (1 - u) * first + u * last, *ends), label)

    def classify(images: Any, key: Any = None) -> np.ndarray:
        """(images, key=None) -> [n, classes]; see `Trained`."""
        return encode(images, key).label  # type: ignore[return-value]

    def cluster(images: Any, key: Any = None) -> np.ndarray:
        """(images, key=None) -> [n]; see `Trained`."""
        return np.argmax(classify(images, key), axis=1)

    def anomaly_score(images: Any, label: Any = None, key: Any = None) -> np.ndarray:
        """(images, label=None, key=None) -> [n] in nats; see `Trained`."""
        images = units.checked(images, "images")
        if given_label and label is None:
            raise missing_label()
        if not given_label and label is not None:
            raise InferenceError("label: this run scores an image without a given one; give none")
        given = np.full(len(images), -1)
        if given_label:
            given = whole_labels(label, len(images), model.num_labels, labels)
        return run(error_of_batch, key, images, given)

    reconstructs = "reconstruction" in experiment.phases
    follows = any(match.part == "style" for match in experiment.matches) or config.penalties.kl > 0
    no_autoencoder = "" if reconstructs else "was trained without reconstruction"
    no_prior = "" if follows else "pulled its codes to no prior"
    no_head = "" if infers_label else "infers no label"
    of_clusters = "" if experiment.knows_classes else "was shown no labels"
    of_classes = "knows classes, not clusters" if experiment.knows_classes else ""
    functions = {
        encode: no_autoencoder,
        decode: no_autoencoder,
        reconstruct: no_autoencoder,
        sample: no_autoencoder or no_prior,
        interpolate: no_autoencoder,
        classify: no_head or of_clusters,
        cluster: no_head or of_classes,
        anomaly_score: no_autoencoder,
    }
    able = ", ".join(function.__name__ for function, lack in functions.items() if not lack)
    callables: dict[str, Any] = {
        function.__name__: _refused(f"{function.__name__}: {config.title!r} {lack}; it can {able}")
        if lack
        else function
        for function, lack in functions.items()
    }
    return Trained(
        **callables,
        prior=prior,
        preprocessing=constants,
        config=config,
        data=data,
        step=step,
        coder=parts,
        weights=weights,
    )


def _refused(why: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise InferenceError(why)

    return refuse
