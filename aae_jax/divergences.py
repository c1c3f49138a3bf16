"""How codes are pulled onto their prior: one function for each divergence.

A `Divergence` is handed a critic, a closure from codes to scores, and knows nothing of networks,
labels or devices. High scores mean "from the prior": prior = 1, code = 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Codes = Float[Array, "batch dim"]
Scores = Float[Array, "batch"]
Scalar = Float[Array, ""]
Critic = Callable[[Codes], Scores]
Keys = Key[Array, "batch"]
CriticLoss = Callable[[Critic, Codes, Codes, Keys], tuple[Scalar, tuple[Scores, Scores]]]


class Divergence(NamedTuple):
    """A way to measure, and by descent to remove, the difference of codes and prior samples.

    Attributes:
        matching_loss: (critic, prior_codes, codes, keys) -> scalar that the encoder descends.
        critic_loss: (critic, prior_codes, codes, keys) -> (scalar that the discriminator descends,
            (prior_scores, code_scores)); None without a discriminator.
        equilibrium: (critic_loss, matching_loss) once codes and prior samples cannot be told
            apart, where these are known.
        boundary: score at which the discriminator is undecided, where there is one.
        whole_batch: the loss is no mean over examples, so it needs all devices' codes at once.
        of_distributions: codes must be distributions over labels.
    """

    matching_loss: Callable[[Critic, Codes, Codes, Keys], Scalar]
    critic_loss: CriticLoss | None = None
    equilibrium: tuple[float, float] | None = None
    boundary: float | None = None
    whole_batch: bool = False
    of_distributions: bool = False


def gan() -> Divergence:
    """The paper's: logistic discriminator, non-saturating generator (section 2).

    Its equilibrium is 2 ln 2 for the discriminator and ln 2 for the generator, in nats.

    >>> round(gan().equilibrium[1], 4)
    0.6931
    """
    log_2 = 0.6931471805599453
    return _from_scores(
        critic=lambda prior, code: jax.nn.softplus(-prior).mean() + jax.nn.softplus(code).mean(),
        matching=lambda code: jax.nn.softplus(-code).mean(),
        equilibrium=(2 * log_2, log_2),
        boundary=0.0,
    )


def least_squares() -> Divergence:
    """Least-squares GAN with targets 1 and 0 (Mao et al., 2017, arXiv:1611.04076).

    >>> least_squares().equilibrium
    (0.25, 0.125)
    """
    return _from_scores(
        critic=lambda prior, code: 0.5 * (((prior - 1) ** 2).mean() + (code**2).mean()),
        matching=lambda code: 0.5 * ((code - 1) ** 2).mean(),
        equilibrium=(0.25, 0.125),
        boundary=0.5,
    )


def hinge() -> Divergence:
    """Hinge loss (Lim and Ye, 2017, arXiv:1705.02894).

    >>> hinge().equilibrium
    (2.0, 0.0)
    """
    return _from_scores(
        critic=lambda prior, code: jax.nn.relu(1 - prior).mean() + jax.nn.relu(1 + code).mean(),
        matching=lambda code: -code.mean(),
        equilibrium=(2.0, 0.0),
        boundary=0.0,
    )


def wasserstein(gradient_penalty: int | float = 10.0) -> Divergence:
    """Wasserstein distance with gradient penalty (Gulrajani et al., 2017, arXiv:1704.00028).

    Args:
        gradient_penalty: weight of the squared distance of the critic's gradient norm from 1,
            at points drawn between each prior sample and a code; 0 leaves the critic unbounded
            unless its layers are spectrally normalised.

    Raises:
        ValueError: the weight is negative.

    >>> wasserstein(10.0).equilibrium is None
    True
    """
    if gradient_penalty < 0:
        raise ValueError(f"gradient_penalty is {gradient_penalty}; it must be 0 or more")

    def critic_loss(
        critic: Critic, prior_codes: Codes, codes: Codes, keys: Keys
    ) -> tuple[Scalar, tuple[Scores, Scores]]:
        prior_scores, code_scores = _score_both(critic, prior_codes, codes)
        loss = code_scores.mean() - prior_scores.mean()
        if gradient_penalty:
            mix = jax.vmap(jax.random.uniform)(keys)[:, None]
            between = mix * prior_codes + (1 - mix) * codes
            # Each score depends on its own row only, so this is one gradient for each example.
            gradients = jax.grad(lambda points: critic(points).sum())(between)
            norms = jnp.sqrt((gradients**2).sum(axis=1) + 1e-12)
            loss = loss + gradient_penalty * ((norms - 1) ** 2).mean()
        return loss, (prior_scores, code_scores)

    return Divergence(lambda critic, prior, codes, keys: -critic(codes).mean(), critic_loss)


def mmd(scale: int | float = 1.0, weight: int | float = 1.0) -> Divergence:
    """Squared maximum mean discrepancy, unbiased, with a mixture of inverse multiquadratics.

    Needs no discriminator: generative moment matching on codes (Li et al., 2015,
    arXiv:1502.02761), with the kernel of Wasserstein autoencoders (Tolstikhin et al., 2018,
    arXiv:1711.01558): sum over s of C / (C + ||a - b||^2), C = 2 dim scale^2 s.

    Args:
        scale: standard deviation of the prior, which sets the kernels' widths.
        weight: factor on the loss, which the encoder's learning rate also multiplies.

    Raises:
        ValueError: scale or weight is not positive.

    >>> mmd().critic_loss is None
    True
    """
    if scale <= 0 or weight <= 0:
        raise ValueError(f"scale is {scale} and weight {weight}; both must be positive")

    def kernel(a: Codes, b: Float[Array, "other dim"]) -> Float[Array, "batch other"]:
        squared = ((a[:, None] - b[None]) ** 2).sum(axis=-1)
        widths = 2 * a.shape[1] * scale**2 * jnp.array([0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0])
        return (widths / (widths + squared[..., None])).sum(axis=-1)

    def matching_loss(critic: Critic, prior_codes: Codes, codes: Codes, keys: Keys) -> Scalar:
        n = codes.shape[0]
        apart = 1.0 - jnp.eye(n)
        within = ((kernel(prior_codes, prior_codes) + kernel(codes, codes)) * apart).sum()
        across = kernel(prior_codes, codes).mean()
        return weight * (within / (n * (n - 1)) - 2 * across)

    return Divergence(matching_loss, whole_batch=True)


def mutual_information(conditional: int | float = 1.0) -> Divergence:
    """Minus the mutual information of image and label, in nats, for codes that are distributions.

    conditional * H(y|x) - H(y): least where every image has one label for certain and all labels
    are as frequent, which is the categorical prior (regularised information maximisation, Krause et
    al., 2010; Hu et al., 2017, arXiv:1702.08720). Unlike a discriminator it has no valley between
    two labels that keeps an image from changing sides. Prior samples are not looked at.

    Args:
        conditional: weight of H(y|x).

    Raises:
        ValueError: the weight is negative.

    >>> mutual_information().critic_loss is None
    True
    """
    if conditional < 0:
        raise ValueError(f"conditional is {conditional}; it must be 0 or more")

    def matching_loss(critic: Critic, prior_codes: Codes, codes: Codes, keys: Keys) -> Scalar:
        return conditional * entropy(codes).mean() - entropy(codes.mean(axis=0))

    return Divergence(matching_loss, whole_batch=True, of_distributions=True)


def balance(weight: int | float = 1.0) -> Divergence:
    """KL(mean label of the batch || uniform) in nats, for codes that are distributions.

    0 where all labels are as frequent, whatever is said of each image; log(labels) - H(y), so half
    of the mutual information. Beside a discriminator, which judges images one by one and so hardly
    sees that a label is a third too frequent, it keeps whole groups of images from a wrong label.

    Args:
        weight: factor on the loss, which the encoder's learning rate also multiplies.

    Raises:
        ValueError: the weight is not positive.

    >>> balance().critic_loss is None
    True
    """
    if weight <= 0:
        raise ValueError(f"weight is {weight}; it must be positive")

    def matching_loss(critic: Critic, prior_codes: Codes, codes: Codes, keys: Keys) -> Scalar:
        return weight * (jnp.log(codes.shape[1]) - entropy(codes.mean(axis=0)))

    return Divergence(matching_loss, whole_batch=True, of_distributions=True)


def total(*parts: Divergence) -> Divergence:
    """The sum of divergences, of which one at most has a discriminator.

    Raises:
        ValueError: there are no parts, or several of them have a discriminator.

    >>> total(gan(), balance()).whole_batch
    True
    """
    critics = [part for part in parts if part.critic_loss is not None]
    if not parts or len(critics) > 1:
        raise ValueError(
            f"{len(parts)} parts, {len(critics)} of them with a discriminator; allowed: one or "
            "more parts, at most one of them with a discriminator"
        )

    def matching_loss(critic: Critic, prior_codes: Codes, codes: Codes, keys: Keys) -> Scalar:
        losses = [part.matching_loss(critic, prior_codes, codes, keys) for part in parts]
        return jnp.stack(losses).sum()

    return Divergence(
        matching_loss,
        critics[0].critic_loss if critics else None,
        boundary=critics[0].boundary if critics else None,
        whole_batch=any(part.whole_batch for part in parts),
        of_distributions=any(part.of_distributions for part in parts),
    )


# By name, for configs.
DIVERGENCES: dict[str, Callable[..., Divergence]] = {
    "gan": gan,
    "least_squares": least_squares,
    "hinge": hinge,
    "wasserstein": wasserstein,
    "mmd": mmd,
    "mutual_information": mutual_information,
    "balance": balance,
    "total": total,
}


def _from_scores(
    critic: Callable[[Scores, Scores], Scalar],
    matching: Callable[[Scores], Scalar],
    equilibrium: tuple[float, float],
    boundary: float,
) -> Divergence:
    """A divergence that sees nothing but scores."""

    def critic_loss(
        score: Critic, prior_codes: Codes, codes: Codes, keys: Keys
    ) -> tuple[Scalar, tuple[Scores, Scores]]:
        scores = _score_both(score, prior_codes, codes)
        return critic(*scores), scores

    return Divergence(
        lambda score, prior, codes, keys: matching(score(codes)), critic_loss, equilibrium, boundary
    )


def entropy(distribution: Float[Array, "... labels"]) -> Float[Array, "..."]:
    """In nats."""
    return -(distribution * jnp.log(distribution + 1e-12)).sum(axis=-1)


def _score_both(critic: Critic, prior_codes: Codes, codes: Codes) -> tuple[Scores, Scores]:
    # One product over both batches: on a CPU as fast as two, on a GPU half as many kernels.
    scores = critic(jnp.concatenate([prior_codes, codes]))
    return scores[: prior_codes.shape[0]], scores[prior_codes.shape[0] :]
