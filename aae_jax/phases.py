"""The phases of a step: the paper's three (sections 2 and 5), and smoothness.

A phase is a function (state, batch) -> (state, metrics). It moves exactly the parameters of its
updates. Written for one device's share of the batch; what crosses devices is injected.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from aae_jax.augmentation import Augmentation
from aae_jax.divergences import Critic, Divergence, entropy
from aae_jax.model import Code, Model, Params, reconstruct
from aae_jax.networks import gaussian_noise, one_hot
from aae_jax.priors import Prior, sample_batch, sample_modes
from aae_jax.randomness import all_named
from aae_jax.state import ALONE, Collective, TrainState, Update, descend, move

Metrics = dict[str, Float[Array, ""]]


class Batch(NamedTuple):
    """One step's examples.

    Attributes:
        image: [batch, ...], preprocessed.
        label: [batch], -1 where unknown.
        keys: [batch], all the randomness of the step, one key for each example.
        labelled: an independent batch of labelled examples for the classification phase, or None.
    """

    image: Float[Array, "batch ..."]
    label: Int[Array, "batch"]
    keys: Key[Array, "batch"]
    labelled: "Batch | None" = None


Phase = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Penalty = Callable[[Params, Code], Float[Array, ""]]


class Match(NamedTuple):
    """A part of the code that is to follow a prior.

    Attributes:
        part: "style" or "label".
        prior: samples to match.
        divergence: how.
        label_informed: the critic also sees the label, one-hot with one more class for "unknown",
            and a labelled example is matched with its label's mode of the prior (section 2.3).
        weight: factor on the encoder's matching loss.
        noise: std of the Gaussian noise on everything that the critic sees.
    """

    part: str
    prior: Prior
    divergence: Divergence
    label_informed: bool = False
    weight: float = 1.0
    noise: float = 0.0


def critic_features(match: Match) -> int:
    """Width of the critic's input."""
    return match.prior.dim + (match.prior.num_modes + 1 if match.label_informed else 0)


def kl(prior: Prior, weight: float = 1.0) -> Penalty:
    """KL(q(z|x) || p(z)) by one sample, in nats: turns the autoencoder into a VAE.

    Raises:
        ValueError: the prior has no density.
    """
    if prior.log_prob is None:
        raise ValueError("the KL penalty needs a prior with a density (log_prob)")
    log_prob = prior.log_prob

    def penalty(params: Params, code: Code) -> Float[Array, ""]:
        if code.style_log_prob is None:
            raise ValueError("the KL penalty needs the Gaussian posterior")
        return weight * (code.style_log_prob - jax.vmap(log_prob)(code.style)).mean()

    return penalty


def heads_apart(eta: float, weight: float = 1.0) -> Penalty:
    """Linear cost on every pair of cluster heads nearer than `eta` (section 7)."""

    def penalty(params: Params, code: Code) -> Float[Array, ""]:
        heads = params["cluster_heads"]
        first, second = jnp.triu_indices(heads.shape[0], k=1)
        # The floor keeps the gradient of coinciding heads finite.
        distance = jnp.sqrt(((heads[first] - heads[second]) ** 2).sum(axis=1) + 1e-12)
        return weight * jax.nn.relu(eta - distance).sum()

    return penalty


def information(
    prior: Prior, weight: float = 0.1, balance: float = 2.0, collective: Collective = ALONE
) -> Penalty:
    """weight * (H(y|x) + balance * KL(q(y) || p(y))), in nats, q(y) that of the whole batch.

    Every image is to have one label for certain, every label its share of the images. Beside
    smoothness it is information maximising self-augmented training (Hu et al., 2017,
    arXiv:1702.08720), not of the paper.

    Raises:
        ValueError: the prior has no log probability of labels, or one that is never drawn.
    """
    if prior.log_prob is None:
        raise ValueError("information needs a prior with probabilities of labels (log_prob)")
    log_prior = np.asarray(jax.vmap(prior.log_prob)(jnp.eye(prior.dim)))
    if not np.isfinite(log_prior).all():
        raise ValueError("information needs a prior that gives every label a probability")

    def penalty(params: Params, code: Code) -> Float[Array, ""]:
        assert code.label_logits is not None, "information needs a label head"
        labels = collective.gather(jax.nn.softmax(code.label_logits))
        share = labels.mean(axis=0)
        from_prior = -entropy(share) - share @ log_prior
        return weight * (entropy(labels).mean() + balance * from_prior)

    return penalty


def reconstruction(
    model: Model, update: Update, penalties: Mapping[str, Penalty] = MappingProxyType({})
) -> Phase:
    """Encoder and decoder descend the reconstruction error, in nats per image, plus penalties.

    The input is noisy where the model says so; the target is always the clean image.
    """

    def phase(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = all_named(batch.keys, "reconstruction")

        def loss(params: Params) -> tuple[Float[Array, ""], Any]:
            output, code, batch_stats = reconstruct(
                model, params, state.batch_stats, batch.image, batch.label, keys, train=True
            )
            error = model.likelihood.loss(output, batch.image).mean()
            costs = {name: penalty(params, code) for name, penalty in penalties.items()}
            total = jnp.stack([error, *costs.values()]).sum()
            return total, ({"reconstruction": error, **costs}, batch_stats)

        state, _, (metrics, batch_stats) = descend(update, state, loss)
        return state.replace(batch_stats=batch_stats), metrics

    return phase


def regularization(
    model: Model,
    matches: tuple[Match, ...],
    discriminator: Update,
    generator: Update,
    collective: Collective = ALONE,
) -> Phase:
    """Discriminators learn prior samples from codes, then the encoder descends the matching loss.

    The codes are computed once: the generator's gradient is pulled back through the same pass.
    Running batch statistics stay as they are: once a step is enough, see `running_statistics`.
    """

    def phase(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = all_named(batch.keys, "regularization")

        def encode(encoder: Any) -> tuple[Array, ...]:
            code, _ = model.encode(
                {**state.params, "encoder": encoder}, state.batch_stats, batch.image, keys, True
            )
            return tuple(_seen(match, _part(match, code), keys, "code") for match in matches)

        codes, pull_back = jax.vjp(encode, state.params["encoder"])
        prior_codes = tuple(
            _seen(match, _prior_codes(match, batch.label, keys), keys, "prior") for match in matches
        )

        def critic_of(match: Match, state: TrainState, label: Array) -> Critic:
            critic = model.critic(state.params, state.batch_stats, match.part)
            return _informed(match, critic, label)

        def critic_losses(params: Params) -> tuple[Float[Array, ""], Metrics]:
            losses: list[Array] = []
            metrics: Metrics = {}
            for match, prior, code in zip(matches, prior_codes, codes, strict=True):
                if match.divergence.critic_loss is not None:
                    critic = critic_of(match, state.replace(params=params), batch.label)
                    loss, scores = match.divergence.critic_loss(
                        critic, prior, code, _divergence_keys(match, keys)
                    )
                    losses.append(loss)
                    metrics |= _critic_metrics(match, loss, *scores)
            return jnp.stack(losses).sum(), metrics

        def matching_losses(codes: tuple[Array, ...]) -> tuple[Float[Array, ""], Metrics]:
            losses = {}
            for match, prior, code in zip(matches, prior_codes, codes, strict=True):
                seen: tuple[Array, ...] = (prior, code, _divergence_keys(match, keys), batch.label)
                if match.divergence.whole_batch:
                    seen = tuple(map(collective.gather, seen))
                *compared, label = seen
                loss = match.divergence.matching_loss(critic_of(match, state, label), *compared)
                losses[f"{match.part}/generator"] = loss
            weights = jnp.array([match.weight for match in matches])
            return weights @ jnp.stack(list(losses.values())), losses

        metrics: Metrics = {}
        if any(match.divergence.critic_loss for match in matches):
            state = state.replace(batch_stats=model.refresh(state.params, state.batch_stats))
            state, _, metrics = descend(discriminator, state, critic_losses)
        gradient, losses = jax.grad(matching_losses, has_aux=True)(codes)
        (encoder_gradient,) = pull_back(gradient)
        return move(generator, state, {"encoder": encoder_gradient}), {**metrics, **losses}

    return phase


def classification(model: Model, update: Update) -> Phase:
    """The encoder's label head descends the cross-entropy of a labelled batch (section 5)."""

    def phase(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        labelled = batch.labelled
        if labelled is None:
            raise ValueError("the classification phase needs a labelled batch")
        keys = all_named(labelled.keys, "classification")

        def loss(params: Params) -> tuple[Float[Array, ""], Metrics]:
            code, _ = model.encode(params, state.batch_stats, labelled.image, keys, True)
            assert code.label_logits is not None, "classification needs a label head"
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels(
                code.label_logits, labelled.label
            ).mean()
            wrong = code.label_logits.argmax(axis=1) != labelled.label
            metrics = {
                "classification": cross_entropy,
                "labelled_error_percent": 100.0 * wrong.mean(),
            }
            return cross_entropy, metrics

        state, _, metrics = descend(update, state, loss)
        return state, metrics

    return phase


def smoothness(
    model: Model,
    update: Update,
    radius: float,
    penalties: Mapping[str, Penalty] = MappingProxyType({}),
    augmentation: Augmentation | None = None,
) -> Phase:
    """The encoder's label head learns to say the same of an image and of its neighbours.

    Virtual adversarial training (Miyato et al., 2017, arXiv:1704.03976), not of the paper: descends
    KL(q(y|x) || q(y|x + r)) in nats, where r, of Euclidean length `radius`, is nearly the step that
    changes q(y|x) most: one power iteration from a random direction. It asks for no labels. The
    first distribution is a constant target. Penalties, of the code of x, are descended with it.
    With an augmentation the neighbour is the augmented image, moved by r.
    """
    # Long enough for float32 to see a difference of second order.
    probe = 0.1

    def phase(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = all_named(batch.keys, "smoothness")

        def encode(params: Params, image: Array) -> Code:
            # The same keys, so that an image and its neighbour lose the same units to dropout.
            return model.encode(params, state.batch_stats, image, keys, True)[0]

        def log_labels(params: Params, image: Array) -> Float[Array, "batch labels"]:
            code = encode(params, image)
            assert code.label_logits is not None, "smoothness needs a label head"
            return jax.nn.log_softmax(code.label_logits)

        target = log_labels(state.params, batch.image)
        neighbour = batch.image
        if augmentation is not None:
            neighbour = augmentation(all_named(keys, "augmentation"), batch.image)

        def change(params: Params, step: Array) -> Float[Array, "batch"]:
            moved = log_labels(params, neighbour + step)
            return (jnp.exp(target) * (target - moved)).sum(axis=1)

        start = jax.vmap(lambda key: jax.random.normal(key, batch.image.shape[1:]))(keys)
        worst = jax.grad(lambda step: change(state.params, step).sum())(_of_length(probe, start))
        step = _of_length(radius, worst)

        def loss(params: Params) -> tuple[Float[Array, ""], Metrics]:
            metrics = {"smoothness": change(params, step).mean()}
            if penalties:
                code = encode(params, batch.image)
                metrics |= {name: penalty(params, code) for name, penalty in penalties.items()}
            return jnp.stack(list(metrics.values())).sum(), metrics

        state, _, metrics = descend(update, state, loss)
        return state, metrics

    return phase


def running_statistics(model: Model) -> Phase:
    """Running batch statistics move; for steps without reconstruction, which moves them itself.

    By labelled images where there are some: a step that only classifies knows no others.
    """

    def phase(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        seen = batch if batch.labelled is None else batch.labelled
        keys = all_named(seen.keys, "running_statistics")
        _, batch_stats = model.encode(state.params, state.batch_stats, seen.image, keys, True)
        return state.replace(batch_stats=batch_stats), {}

    return phase


def from_step(phase: Phase, first: int) -> Phase:
    """The phase from the step `first` on; before it nothing moves and its metrics are 0."""
    if not first:
        return phase

    def idle(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _, metrics = jax.eval_shape(phase, state, batch)
        return state, jax.tree.map(lambda metric: jnp.zeros(metric.shape, metric.dtype), metrics)

    def late(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return jax.lax.cond(state.step >= first, phase, idle, state, batch)

    return late


def _of_length(length: float, steps: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    axes = tuple(range(1, steps.ndim))
    # Divided twice, as squares of tiny gradients would be zero in float32.
    largest = jnp.abs(steps).max(axis=axes, keepdims=True)
    scaled = steps / (largest + 1e-30)
    return length * scaled / jnp.sqrt((scaled**2).sum(axis=axes, keepdims=True) + 1e-12)


def _part(match: Match, code: Code) -> Float[Array, "batch dim"]:
    if match.part == "style":
        return code.style
    assert code.label_logits is not None, "a label match needs a label head"
    # The one place where the adversary's label logits become probabilities.
    return jax.nn.softmax(code.label_logits)


def _prior_codes(
    match: Match, label: Int[Array, "batch"], keys: Key[Array, "batch"]
) -> Float[Array, "batch dim"]:
    keys = all_named(keys, f"{match.part}_prior")
    if match.label_informed:
        return sample_modes(match.prior, keys, label)
    return sample_batch(match.prior, keys)


def _seen(
    match: Match, codes: Float[Array, "batch dim"], keys: Key[Array, "batch"], origin: str
) -> Float[Array, "batch dim"]:
    return gaussian_noise(codes, all_named(keys, f"{match.part}_{origin}_noise"), match.noise)


def _divergence_keys(match: Match, keys: Key[Array, "batch"]) -> Key[Array, "batch"]:
    return all_named(keys, f"{match.part}_divergence")


def _informed(match: Match, critic: Critic, label: Int[Array, "batch"]) -> Critic:
    if not match.label_informed:
        return critic
    modes = match.prior.num_modes
    known = one_hot(jnp.where(label < 0, modes, label), modes + 1)

    def informed(codes: Float[Array, "codes dim"]) -> Float[Array, "codes"]:
        # Prior samples and codes of a batch may come stacked; both belong to the same labels.
        repeats = codes.shape[0] // label.shape[0]
        return critic(jnp.concatenate([codes, jnp.tile(known, (repeats, 1))], axis=1))

    return informed


def _critic_metrics(
    match: Match,
    loss: Float[Array, ""],
    prior_scores: Float[Array, "batch"],
    code_scores: Float[Array, "batch"],
) -> Metrics:
    metrics = {f"{match.part}/discriminator": loss}
    boundary = match.divergence.boundary
    if boundary is not None:
        metrics[f"{match.part}/prior_accuracy"] = (prior_scores > boundary).mean()
        metrics[f"{match.part}/code_accuracy"] = (code_scores < boundary).mean()
    return metrics
