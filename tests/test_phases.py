"""Each phase moves exactly its own parameters, by exactly the gradient of the paper's formula.

The formulas are written out here once more, with plain matrix products over the parameters, and
differentiated by `jax.grad`. What a phase draws at random is recorded on its way to the divergence
or the penalty, so that the formulas need not know how keys are named.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from aae_jax import priors
from aae_jax.divergences import Divergence, gan, hinge, least_squares, mmd, wasserstein
from aae_jax.model import LIKELIHOODS, Code
from aae_jax.phases import Batch, Match, critic_features, from_step, heads_apart, information, kl
from aae_jax.randomness import all_named, example_keys
from aae_jax.state import TrainState

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH, STYLE_DIM, LABELS = 8, 3, 4
RATES = {
    "autoencoder": (0.02, 0.9),
    "discriminator": (0.4, 0.1),
    "generator": (0.3, 0.1),
    "classifier": (0.1, 0.9),
    "smoothness": (0.1, 0.0),
}


def batch_of(size, seed=0, labels=None):
    rng = np.random.default_rng(seed)
    return Batch(
        jnp.asarray(rng.uniform(size=(size, 8, 8, 1)), jnp.float32),
        jnp.asarray(rng.integers(LABELS, size=size) if labels is None else labels, jnp.int32),
        example_keys(jax.random.key(seed), jnp.int32(0), jnp.arange(size)),
    )


BATCH_OF_8 = batch_of(BATCH)
# For what is random: enough examples for statistics.
LARGE = 600
LARGE_BATCH = batch_of(LARGE)
# A labelled batch of another size than the unlabelled one.
SEMI_SUPERVISED = BATCH_OF_8._replace(labelled=batch_of(5, seed=1))


def style_and_label(style=None, label=None):
    return (
        Match("style", priors.gaussian(STYLE_DIM, std=5.0), style or gan()),
        Match("label", priors.categorical(LABELS), label or gan()),
    )


# The paper's networks and losses by hand


def affine(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def encoded(encoder, image):
    hidden = jnp.maximum(affine(encoder["trunk"]["dense_0"], image.reshape(len(image), -1)), 0)
    return {name: affine(encoder[name], hidden) for name in encoder if name != "trunk"}


def decoded(decoder, code):
    hidden = jnp.maximum(affine(decoder["hidden"]["dense_0"], code), 0)
    return affine(decoder["output"], hidden)


def scored(discriminator, codes):
    hidden = jnp.maximum(affine(discriminator["dense_0"], codes), 0)
    return affine(discriminator["score"], hidden)[:, 0]


def softmax(logits):
    shifted = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def logistic(x):
    return 1 / (1 + jnp.exp(-x))


def error_of(params, batch, code, output="sigmoid"):
    """Half the summed squared error, or the cross-entropy in nats, averaged over the batch."""
    target = batch.image.reshape(len(batch.image), -1)
    values = decoded(params["decoder"], code)
    if output == "linear":
        return 0.5 * ((values - target) ** 2).sum() / len(target)
    p = logistic(values)
    if output == "bernoulli":
        return -(target * jnp.log(p) + (1 - target) * jnp.log(1 - p)).sum() / len(target)
    return 0.5 * ((p - target) ** 2).sum() / len(target)


# (discriminator, generator), high scores for samples of the prior; means over the batch.
ADVERSARIAL = {
    "gan": (
        lambda prior, code: (
            -jnp.log(logistic(prior)).mean() - jnp.log(1 - logistic(code)).mean(),
            -jnp.log(logistic(code)).mean(),
        )
    ),
    "least_squares": (
        lambda prior, code: (
            ((prior - 1) ** 2).mean() / 2 + (code**2).mean() / 2,
            ((code - 1) ** 2).mean() / 2,
        )
    ),
    "hinge": (
        lambda prior, code: (
            jnp.maximum(1 - prior, 0).mean() + jnp.maximum(1 + code, 0).mean(),
            -code.mean(),
        )
    ),
    "wasserstein": lambda prior, code: (code.mean() - prior.mean(), -code.mean()),
}
DIVERGENCES = {
    "gan": gan,
    "least_squares": least_squares,
    "hinge": hinge,
    "wasserstein": functools.partial(wasserstein, 0.0),
    "mmd": functools.partial(mmd, scale=5.0, weight=2.0),
}


def sgd(params, gradient, name, trace=None):
    """One step of SGD with momentum by hand: (parameters, trace)."""
    rate, momentum = RATES[name]
    if trace is not None:
        gradient = jax.tree.map(lambda old, new: momentum * old + new, trace, gradient)
    return jax.tree.map(lambda p, t: p - rate * t, params, gradient), gradient


def assert_moved_alike(start, found, expected, name=""):
    """Equal changes, to float32's accuracy of the largest change of each leaf."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    leaves = zip(*map(jax.tree.leaves, (start, found, expected)), strict=True)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(start)]
    for path, (old, new, right) in zip(paths, leaves, strict=True):
        change = np.abs(np.asarray(right) - np.asarray(old)).max()
        # Wasserstein's loss does not see a constant added to all scores.
        assert change > 0 or "'score']['bias'" in path, (name, path)
        np.testing.assert_allclose(
            new, right, rtol=0, atol=1e-5 * change + 1e-7, err_msg=f"{name}{path}"
        )


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def assert_only_moved(before, after, parameters, optimizers):
    """Everything but the named parts of the state has the same bits as before."""
    for name in before.params:
        if name not in parameters:
            assert_same(before.params[name], after.params[name])
    for name in before.opt_states:
        if name not in optimizers:
            assert_same(before.opt_states[name], after.opt_states[name])
    assert_same(before.step, after.step)
    assert_same(jax.random.key_data(before.key), jax.random.key_data(after.key))
    assert_same(before.averaged_params, after.averaged_params)


class Seen(NamedTuple):
    """What a divergence was shown, as NumPy arrays."""

    prior: list
    codes: list
    matched: list
    keys: list


def recorded(divergence: Divergence) -> tuple[Divergence, Seen]:
    """The divergence, and what it will have been shown once an unjitted phase has run."""
    seen = Seen([], [], [], [])

    def critic_loss(critic, prior, codes, keys):
        jax.debug.callback(lambda x: seen.prior.append(np.asarray(x)), prior)
        jax.debug.callback(lambda x: seen.codes.append(np.asarray(x)), codes)
        jax.debug.callback(lambda x: seen.keys.append(np.asarray(x)), jax.random.key_data(keys))
        return divergence.critic_loss(critic, prior, codes, keys)

    def matching_loss(critic, prior, codes, keys):
        jax.debug.callback(lambda x: seen.matched.append(np.asarray(x)), codes)
        if divergence.critic_loss is None:
            jax.debug.callback(lambda x: seen.prior.append(np.asarray(x)), prior)
        return divergence.matching_loss(critic, prior, codes, keys)

    has_critic = divergence.critic_loss is not None
    return divergence._replace(
        matching_loss=matching_loss, critic_loss=critic_loss if has_critic else None
    ), seen


def recording(matches):
    """Matches whose divergences record: (matches, what each part's was shown)."""
    pairs = [(match, *recorded(match.divergence)) for match in matches]
    shown = {match.part: seen for match, _, seen in pairs}
    return tuple(match._replace(divergence=divergence) for match, divergence, _ in pairs), shown


def run(phase, state, batch):
    after, metrics = jax.jit(phase)(state, batch)
    jax.effects_barrier()
    return after, metrics


# Reconstruction


DECODER_INPUTS = {
    "style": lambda params, heads, label: heads["style"],
    "style_and_given_label": lambda params, heads, label: jnp.concatenate(
        [heads["style"], jnp.eye(LABELS)[label]], axis=1
    ),
    "style_and_inferred_label": lambda params, heads, label: jnp.concatenate(
        [heads["style"], softmax(heads["label"])], axis=1
    ),
    "cluster_heads": lambda params, heads, label: (
        softmax(heads["label"]) @ params["cluster_heads"] + heads["style"]
    ),
}


@pytest.mark.parametrize(
    ("layout", "output"),
    list(zip(DECODER_INPUTS, ("sigmoid", "linear", "sigmoid", "bernoulli"), strict=True)),
)
def test_reconstruction_is_two_steps_down_the_papers_error(small_experiment, layout, output):
    changes = {"labels": 0 if layout == "style" else LABELS, "layout": layout, "rates": RATES}
    changes["likelihood"] = LIKELIHOODS[output]
    parts = ["encoder", "decoder"]
    names = {"reconstruction"}
    if layout == "cluster_heads":
        changes["cluster_heads"] = lambda key: jnp.zeros((LABELS, STYLE_DIM))
        changes["penalties"] = {"heads_apart": heads_apart(eta=1.0, weight=3.0)}
        parts.append("cluster_heads")
        names.add("heads_apart")
    small = small_experiment(style_and_label()[:1], averaged=("encoder",), **changes)
    phase = jax.jit(small.reconstruction)
    state = small.state()
    params, trace = {name: state.params[name] for name in parts}, None

    def loss(params):
        heads = encoded(params["encoder"], BATCH_OF_8.image)
        code = DECODER_INPUTS[layout](params, heads, BATCH_OF_8.label)
        error = error_of(params, BATCH_OF_8, code, output)
        return error + 3 * heads_cost(params["cluster_heads"]) if len(names) > 1 else error

    def heads_cost(heads):
        pairs = [(i, j) for i in range(LABELS) for j in range(i)]
        apart = [jnp.sqrt(((heads[i] - heads[j]) ** 2).sum()) for i, j in pairs]
        return sum(jnp.maximum(1.0 - distance, 0.0) for distance in apart)

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    params = jax.device_get(params)
    for _ in range(2):  # the second shows the momentum
        before, start = state, params
        value, gradient = jax.device_get(value_and_grad(params))
        params, trace = sgd(params, gradient, "autoencoder", trace)
        state, metrics = phase(state, BATCH_OF_8)
        assert metrics.keys() == names
        np.testing.assert_allclose(sum(metrics.values()), value, rtol=1e-5)
        assert_moved_alike(start, {name: state.params[name] for name in parts}, params)
        assert_only_moved(before, state, parts, ["autoencoder"])


def test_a_noisy_input_has_a_clean_target_and_the_error_is_summed_over_pixels(small_experiment):
    # A decoder that is all bias does not see the noise; the error then is that of clean images.
    small = small_experiment(input_noise=30.0, input_dropout=0.5)
    state = small.state()
    decoder = dict(state.params["decoder"])
    decoder["output"] = {**decoder["output"], "kernel": 0 * decoder["output"]["kernel"]}
    state = state.replace(params={**state.params, "decoder": decoder})
    _, metrics = run(small.reconstruction, state, BATCH_OF_8)
    bias = scipy.special.expit(np.asarray(decoder["output"]["bias"], np.float64))
    clean = np.asarray(BATCH_OF_8.image, np.float64).reshape(BATCH, -1)
    np.testing.assert_allclose(
        metrics["reconstruction"], 0.5 * ((bias - clean) ** 2).sum(axis=1).mean(), rtol=1e-5
    )


def pixel_passing(state):
    """The state with an encoder whose style is three of its input's (positive) pixels."""
    trunk, head = np.zeros((64, 16)), np.zeros((16, STYLE_DIM))
    for place, pixel in enumerate((0, 17, 63)):
        trunk[pixel, place] = head[place, place] = 1
    encoder = jax.tree.map(jnp.zeros_like, state.params["encoder"])
    encoder["trunk"]["dense_0"]["kernel"] = jnp.asarray(trunk, jnp.float32)
    encoder["style"]["kernel"] = jnp.asarray(head, jnp.float32)
    return state.replace(params={**state.params, "encoder": encoder})


def test_every_phase_has_noise_of_its_own_on_its_input(small_experiment):
    # The codes are 10 + noise. The encoder sees noise in both phases, and never the same.
    matches, shown = recording(style_and_label()[:1])
    codes = []

    def penalty(params, code):
        jax.debug.callback(lambda x: codes.append(np.asarray(x)), code.style)
        return jnp.float32(0.0)

    small = small_experiment(matches, input_noise=0.5, penalties={"recorded": penalty})
    batch = LARGE_BATCH._replace(image=jnp.full((LARGE, 8, 8, 1), 10.0))
    state = pixel_passing(small.state())
    run(small.reconstruction, state, batch)
    run(small.regularization, state, batch)
    noises = [np.asarray(c, np.float64).ravel() - 10 for c in (codes[0], shown["style"].codes[0])]
    for noise in noises:
        assert scipy.stats.kstest(noise, "norm", (0, 0.5)).pvalue > 1e-3
    assert abs(np.corrcoef(noises)[0, 1]) < 4 / np.sqrt(3 * LARGE)


# Regularization


def mmd_by_hand(critic, prior, codes):
    """Without a critic: the unbiased squared discrepancy, pair by pair; weight 2, scale 5."""

    def kernel(a, b):
        widths = 2 * STYLE_DIM * 25.0 * jnp.array([0.1, 0.2, 0.5, 1, 2, 5, 10])
        return (widths / (widths + ((a - b) ** 2).sum())).sum()

    pairs = [(i, j) for i in range(len(codes)) for j in range(len(codes))]
    left, right = np.array([pair for pair in pairs if pair[0] != pair[1]]).T
    every, other = np.array(pairs).T
    of = jax.vmap(kernel)
    within = of(prior[left], prior[right]).mean() + of(codes[left], codes[right]).mean()
    return 0.0, 2.0 * (within - 2 * of(prior[every], codes[other]).mean())


def of_scores(formula):
    return lambda critic, prior, codes: formula(scored(critic, prior), scored(critic, codes))


LOSSES = {name: of_scores(formula) for name, formula in ADVERSARIAL.items()} | {"mmd": mmd_by_hand}


def regularized_by_hand(state, batch, priors_seen, losses, weights):
    """One regularization from rest: (discriminators after, encoder after, metrics)."""
    start, critics = state.params["encoder"], state.params["discriminator"]

    def both(encoder, critics):
        heads = encoded(encoder, batch.image)
        codes = {"style": heads["style"]}
        if "label" in heads:
            codes["label"] = softmax(heads["label"])
        return {
            part: losses[part](critics.get(part), prior, codes[part])
            for part, prior in priors_seen.items()
        }

    def critic_loss(critics):
        return sum(critic for critic, _ in both(start, critics).values())

    moved, _ = sgd(critics, jax.grad(critic_loss)(critics), "discriminator")

    def matching_loss(encoder):
        return sum(weights[part] * each for part, (_, each) in both(encoder, moved).items())

    encoder, _ = sgd(start, jax.grad(matching_loss)(start), "generator")
    metrics = {f"{part}/generator": each for part, (_, each) in both(start, moved).items()}
    before = both(start, critics)
    return moved, encoder, metrics | {f"{part}/discriminator": before[part][0] for part in critics}


@pytest.mark.parametrize(
    ("style", "label"), [("gan", "least_squares"), ("hinge", "wasserstein"), ("mmd", "gan")]
)
def test_regularization_is_the_critics_step_and_then_the_encoders_against_it(
    small_experiment, style, label
):
    matches, shown = recording(style_and_label(DIVERGENCES[style](), DIVERGENCES[label]()))
    matches = (matches[0]._replace(weight=2.5), matches[1])
    small = small_experiment(matches, labels=LABELS, layout="style_and_inferred_label", rates=RATES)
    state = small.state()
    critics = {"label"} if style == "mmd" else {"style", "label"}
    assert state.params["discriminator"].keys() == critics
    after, metrics = run(small.regularization, state, BATCH_OF_8)
    discriminators, encoder, values = jax.jit(
        lambda state, batch, seen: regularized_by_hand(
            state,
            batch,
            seen,
            {"style": LOSSES[style], "label": LOSSES[label]},
            {"style": 2.5, "label": 1.0},
        )
    )(state, BATCH_OF_8, {part: seen.prior[0] for part, seen in shown.items()})
    assert_moved_alike(
        state.params["discriminator"], after.params["discriminator"], discriminators, "critic "
    )
    # Every layer of the encoder moves: the adversarial gradient is not cut off.
    assert_moved_alike(state.params["encoder"], after.params["encoder"], encoder, "encoder ")
    assert_only_moved(state, after, ["discriminator", "encoder"], ["discriminator", "generator"])
    for name, value in values.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6)


def test_without_any_critic_only_the_encoder_moves(small_experiment):
    small = small_experiment((Match("style", priors.gaussian(STYLE_DIM), mmd()),))
    state = small.state()
    assert state.params["discriminator"] == {}
    after, metrics = run(small.regularization, state, BATCH_OF_8)
    assert metrics.keys() == {"style/generator"}
    assert_only_moved(state, after, ["encoder"], ["generator"])


def test_codes_go_to_their_prior_and_scores_tell_the_two_apart(small_experiment):
    # The prior lies beside all codes. Were the two swapped, codes would flee from it.
    prior = priors.affine(priors.gaussian(STYLE_DIM, 0.1), 1.0, 4.0)
    small = small_experiment((Match("style", prior, gan()),))
    phase, state = jax.jit(small.regularization), small.state()
    distances = []
    for step in range(60):
        codes = encoded(state.params["encoder"], BATCH_OF_8.image)["style"]
        distances.append(float(np.abs(codes - 4.0).mean()))
        if step == 5:
            critic = small.model.critic(state.params, state.batch_stats, "style")
            assert critic(jnp.full((BATCH, STYLE_DIM), 4.0)).min() > critic(codes).max()
        keys = example_keys(jax.random.key(0), jnp.int32(step), jnp.arange(BATCH))
        state, _ = phase(state, BATCH_OF_8._replace(keys=keys))
    assert min(distances) < 0.5 * distances[0]


# Two large runs: what the adversary is shown, and its noises.


class LargeRun(NamedTuple):
    state: TrainState
    metrics: dict
    heads: dict
    style: Seen
    label: Seen


def large_run(small_experiment, matches, std, **changes):
    matches, shown = recording(matches)
    small = small_experiment(matches, labels=LABELS, layout="style_and_inferred_label", **changes)
    state = small.state(std=std)
    _, metrics = run(small.regularization, state, LARGE_BATCH)
    heads = encoded(state.params["encoder"], LARGE_BATCH.image)
    return LargeRun(state, metrics, heads, shown["style"], shown["label"])


@pytest.fixture(scope="module")
def adversary(small_experiment):
    return large_run(small_experiment, style_and_label(least_squares(), gan()), std=0.7)


@pytest.fixture(scope="module")
def noises(small_experiment):
    """With zero weights a Gaussian style is its noise, and every label has a probability of 1/4."""
    matches = (
        Match("style", priors.gaussian(STYLE_DIM), wasserstein()),
        Match("label", priors.categorical(LABELS), wasserstein(), noise=0.2),
    )
    return large_run(small_experiment, matches, std=0.0, posterior="gaussian")


def test_the_adversary_sees_styles_and_probabilities(adversary):
    np.testing.assert_allclose(adversary.style.codes[0], adversary.heads["style"], rtol=1e-4)
    # One softmax: a second one would squeeze every probability towards a quarter.
    logits = np.asarray(adversary.heads["label"], np.float64)
    expected = scipy.special.softmax(logits, axis=1)
    np.testing.assert_allclose(adversary.label.codes[0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(adversary.label.codes[0].sum(axis=1), 1.0, rtol=1e-5)


def test_the_adversary_sees_fresh_samples_of_each_prior(adversary):
    style, label = adversary.style.prior[0], adversary.label.prior[0]
    # The prior's own standard deviation, 5, in every dimension.
    for dimension in range(STYLE_DIM):
        assert scipy.stats.kstest(style[:, dimension], "norm", (0, 5)).pvalue > 1e-3
    assert sorted(np.unique(label)) == [0, 1] and (label.sum(axis=1) == 1).all()
    assert scipy.stats.chisquare(label.sum(axis=0)).pvalue > 1e-3
    assert len(np.unique(style, axis=0)) == LARGE
    correlation = np.corrcoef(style.T, label[:, 1:].T)[:STYLE_DIM, STYLE_DIM:]
    assert np.abs(correlation).max() < 5 / np.sqrt(LARGE)


def test_accuracies_are_shares_of_examples_on_the_right_side(adversary):
    for part, seen, boundary in (("style", adversary.style, 0.5), ("label", adversary.label, 0.0)):
        critic = adversary.state.params["discriminator"][part]
        prior, code = scored(critic, seen.prior[0]), scored(critic, seen.codes[0])
        shares = (prior > boundary).mean(), (code < boundary).mean()
        found = [adversary.metrics[f"{part}/{of}_accuracy"] for of in ("prior", "code")]
        np.testing.assert_allclose(found, shares, atol=1.5 / LARGE)
        assert any(0 < share < 1 for share in shares)


def test_regularizations_metrics(adversary):
    names = ("discriminator", "generator", "prior_accuracy", "code_accuracy")
    expected = {f"{part}/{name}" for part in ("style", "label") for name in names}
    assert adversary.metrics.keys() == expected


def test_both_losses_see_the_codes_of_one_pass(noises):
    for seen in (noises.style, noises.label):
        np.testing.assert_array_equal(seen.codes[0], seen.matched[0])


def test_the_posteriors_noise_is_not_the_priors(noises):
    prior, codes = noises.style.prior[0], noises.style.codes[0]
    assert scipy.stats.kstest(codes.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(prior.T, codes.T)[:STYLE_DIM, STYLE_DIM:]
    assert np.abs(correlation).max() < 5 / np.sqrt(LARGE)


def test_noise_on_what_the_critic_sees_differs_between_prior_samples_and_codes(noises):
    of_prior = noises.label.prior[0] - np.round(noises.label.prior[0])
    of_codes = noises.label.codes[0] - 0.25
    for noise in (of_prior, of_codes):
        assert scipy.stats.kstest(np.asarray(noise.ravel()), "norm", (0, 0.2)).pvalue > 1e-3
    correlation = np.corrcoef(of_prior.ravel(), of_codes.ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(4 * LARGE)


def test_no_key_serves_two_divergences(noises):
    assert (noises.style.keys[0] != noises.label.keys[0]).any(axis=1).all()


# Label-informed regularization

# Three far corners: a sample says which mode it is from.
CORNERS = np.array([[50.0, 0.0, 0.0], [0.0, 50.0, 0.0], [0.0, 0.0, 50.0]])
CORNER_PRIOR = priors.gaussian_mixture(CORNERS, [np.eye(3)] * 3)
INFORMED = Match("style", CORNER_PRIOR, gan(), label_informed=True)


def test_a_label_comes_with_its_mode_and_an_unknown_one_with_the_whole_prior(small_experiment):
    # The label's match is not informed: there, a label does not choose the mode.
    matches, shown = recording((INFORMED, Match("label", priors.categorical(LABELS), gan())))
    small = small_experiment(matches, labels=LABELS, layout="style_and_inferred_label")
    labels = np.resize([0, 1, 2, -1, -1, -1], LARGE)
    batch = LARGE_BATCH._replace(label=jnp.asarray(labels, jnp.int32))
    run(small.regularization, small.state(), batch)
    distances = np.linalg.norm(shown["style"].prior[0][:, None] - CORNERS, axis=-1)
    assert (distances.min(axis=1) < 6).all()
    modes, known = distances.argmin(axis=1), labels >= 0
    np.testing.assert_array_equal(modes[known], labels[known])
    assert scipy.stats.chisquare(np.bincount(modes[~known], minlength=3)).pvalue > 1e-3
    uninformed = shown["label"].prior[0].argmax(axis=1)
    for label in (0, 1, 2):
        counts = np.bincount(uninformed[labels == label], minlength=LABELS)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_an_informed_critic_sees_the_one_hot_label_and_a_class_for_unknown(small_experiment):
    matches, shown = recording((INFORMED,))
    assert critic_features(INFORMED) == 3 + 4
    assert critic_features(INFORMED._replace(label_informed=False)) == 3
    small = small_experiment(matches, rates=RATES)
    state = small.state(std=0.1)
    assert state.params["discriminator"]["style"]["dense_0"]["kernel"].shape == (7, 16)
    labels = np.array([0, 1, 2, -1, 2, 1, -1, 0])
    batch = BATCH_OF_8._replace(label=jnp.asarray(labels, jnp.int32))
    after, metrics = run(small.regularization, state, batch)
    # By hand, the label's row of the first matrix joins the bias of each example.
    rows = np.eye(4)[np.where(labels < 0, 3, labels)]

    def informed(critic, prior, codes):
        def score(codes):
            first = critic["dense_0"]
            hidden = codes @ first["kernel"][:3] + rows @ first["kernel"][3:] + first["bias"]
            return affine(critic["score"], jnp.maximum(hidden, 0))[:, 0]

        return ADVERSARIAL["gan"](score(prior), score(codes))

    seen = {"style": shown["style"].prior[0]}
    critic, encoder, values = jax.jit(
        lambda state, batch, seen: regularized_by_hand(
            state, batch, seen, {"style": informed}, {"style": 1.0}
        )
    )(state, batch, seen)
    assert_moved_alike(
        state.params["discriminator"], after.params["discriminator"], critic, "critic "
    )
    assert_moved_alike(state.params["encoder"], after.params["encoder"], encoder, "encoder ")
    for name, value in values.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)


# Classification


def test_classification_moves_the_encoder_by_the_cross_entropy_of_the_labelled_batch(
    small_experiment,
):
    small = small_experiment(
        style_and_label(), labels=LABELS, layout="style_and_inferred_label", rates=RATES
    )
    phase, state = jax.jit(small.classification), small.state(std=0.5)
    image, label = SEMI_SUPERVISED.labelled.image, SEMI_SUPERVISED.labelled.label
    params, trace = state.params["encoder"], None

    def loss(encoder):
        chosen = softmax(encoded(encoder, image)["label"])[jnp.arange(5), label]
        return -jnp.log(chosen).mean()

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    params = jax.device_get(params)
    for _ in range(2):
        before, start = state, params
        logits = np.asarray(encoded(params, image)["label"])
        value, gradient = jax.device_get(value_and_grad(params))
        params, trace = sgd(params, gradient, "classifier", trace)
        state, metrics = phase(state, SEMI_SUPERVISED)
        assert metrics.keys() == {"classification", "labelled_error_percent"}
        np.testing.assert_allclose(metrics["classification"], value, rtol=1e-5)
        wrong = 100 * (logits.argmax(axis=1) != np.asarray(label)).mean()
        np.testing.assert_allclose(metrics["labelled_error_percent"], wrong, rtol=1e-5)
        # The style head is no part of it: its momentum stays at rest.
        np.testing.assert_array_equal(
            state.params["encoder"]["style"]["kernel"], start["style"]["kernel"]
        )
        parts = ("trunk", "label")
        assert_moved_alike(
            *({part: tree[part] for part in parts} for tree in
              (start, state.params["encoder"], params))
        )  # fmt: skip
        assert_only_moved(before, state, ["encoder"], ["classifier"])


def test_classification_needs_a_labelled_batch(small_experiment):
    small = small_experiment(labels=LABELS, layout="style_and_inferred_label")
    with pytest.raises(ValueError, match="the classification phase needs a labelled batch"):
        small.classification(small.state(), BATCH_OF_8)


# Smoothness


def of_two_labels(small_experiment, **changes):
    return small_experiment(labels=2, layout="style_and_inferred_label", rates=RATES, **changes)


def odds_slope(encoder, image):
    """Gradient by pixels of log q(y=1|x) - log q(y=0|x), one row an example."""
    odds = lambda x: encoded(encoder, x[None])["label"][0] @ jnp.array([-1.0, 1.0])  # noqa: E731
    return jax.vmap(jax.grad(odds))(image)


def divergence_at(encoder, target, image):
    """KL of the target from q(y|image), in nats, of each example."""
    return (target * jnp.log(target / softmax(encoded(encoder, image)["label"]))).sum(axis=1)


def test_smoothness_is_the_change_of_labels_on_the_way_that_changes_them_most(small_experiment):
    """Of two labels that way is known: along the slope of their log odds, this way or that."""
    small = of_two_labels(small_experiment)
    state, radius = small.state(std=0.5), 0.05
    encoder, image = state.params["encoder"], LARGE_BATCH.image
    slope = odds_slope(encoder, image)
    length = jnp.sqrt((slope**2).sum(axis=(1, 2, 3)))
    chance = softmax(encoded(encoder, image)["label"])
    _, metrics = run(small.smoothness(radius), state, LARGE_BATCH)
    assert metrics.keys() == {"smoothness"}
    expected = 0.5 * radius**2 * (length**2 * chance.prod(axis=1)).mean()
    np.testing.assert_allclose(metrics["smoothness"], expected, rtol=0.03)


def test_smoothness_moves_the_label_head_against_its_change(small_experiment):
    small = of_two_labels(small_experiment)
    state, radius, batch = small.state(std=0.5), 0.05, batch_of(1)
    encoder = state.params["encoder"]
    slope = odds_slope(encoder, batch.image)
    step = radius * slope / jnp.sqrt((slope**2).sum())
    target = softmax(encoded(encoder, batch.image)["label"])
    after, _ = run(small.smoothness(radius), state, batch)
    assert_only_moved(state, after, ["encoder"], ["smoothness"])
    assert_same(after.params["encoder"]["style"], encoder["style"])

    def moves(encoder_after):
        parts = [{part: tree[part] for part in ("trunk", "label")} for tree in
                 (encoder_after, encoder)]  # fmt: skip
        new, old = map(jax.tree.leaves, parts)
        return np.concatenate([np.ravel(b) - np.ravel(a) for a, b in zip(old, new, strict=True)])

    found, apart = moves(after.params["encoder"]), []
    for side in (-1, 1):  # which one was taken is left to chance
        gradient = jax.grad(lambda e: divergence_at(e, target, batch.image + side * step).sum())  # noqa: B023
        right = moves(sgd(encoder, gradient(encoder), "smoothness")[0])
        apart.append(np.linalg.norm(found - right) / np.linalg.norm(right))
    # The slope bends a little on the way.
    assert min(apart) < 0.3 and max(apart) > 1


def test_information_is_of_the_label_and_its_image(small_experiment):
    small = small_experiment(labels=LABELS, layout="style_and_inferred_label", rates=RATES)
    state, image = small.state(std=0.5), LARGE_BATCH.image
    labels = np.asarray(softmax(encoded(state.params["encoder"], image)["label"]))
    of_images = scipy.stats.entropy(labels, axis=1).mean()
    even, uneven = np.ones(LABELS), 1.0 + np.arange(LABELS)
    for shares, weight, balance in ((even, 0.1, 2.0), (uneven, 3.0, 0.5)):
        prior = priors.categorical(LABELS, shares)
        penalties = {"information": information(prior, weight, balance)}
        after, metrics = run(small.smoothness(0.5, penalties), state, LARGE_BATCH)
        assert metrics.keys() == {"smoothness", "information"}
        from_prior = scipy.stats.entropy(labels.mean(axis=0), shares)
        expected = weight * (of_images + balance * from_prior)
        np.testing.assert_allclose(metrics["information"], expected, rtol=1e-5)
        assert_only_moved(state, after, ["encoder"], ["smoothness"])


def test_information_needs_the_probability_of_every_label():
    for prior, words in (
        (priors.swiss_roll(), "probabilities of labels"),
        (priors.categorical(3, [1.0, 0.0, 1.0]), "gives every label a probability"),
    ):
        with pytest.raises(ValueError, match=words):
            information(prior)


def assert_label_head_moves(found, before, right, atol, least):
    """From the weights before to the right ones, by more than `least` somewhere."""
    for part in ("trunk", "label"):
        moved, wanted = (
            jax.tree.map(jnp.subtract, to[part], before[part]) for to in (found, right)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), moved, wanted)
        assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(wanted)) > least


def test_information_is_descended_with_smoothness(small_experiment):
    """Steps so short that nothing changes on them leave information alone to move the labels."""
    small = small_experiment(labels=LABELS, layout="style_and_inferred_label", rates=RATES)
    state = small.state(std=0.5)
    phase = small.smoothness(1e-4, {"information": information(priors.categorical(LABELS))})
    after, _ = run(phase, state, LARGE_BATCH)

    def cost(encoder):
        labels = softmax(encoded(encoder, LARGE_BATCH.image)["label"])
        entropy = lambda p: -(p * jnp.log(p)).sum(-1)  # noqa: E731
        return 0.1 * (entropy(labels).mean() - 2 * entropy(labels.mean(0)))

    encoder = state.params["encoder"]
    right, _ = sgd(encoder, jax.grad(cost)(encoder), "smoothness")
    assert_label_head_moves(after.params["encoder"], encoder, right, 1e-5, 1e-4)


def test_smoothness_grows_with_the_radius_and_sees_more_than_chance_does(small_experiment):
    small = small_experiment(labels=LABELS, layout="style_and_inferred_label", rates=RATES)
    state, radius = small.state(std=0.5), 0.5
    encoder, image = state.params["encoder"], LARGE_BATCH.image
    target = softmax(encoded(encoder, image)["label"])
    _, near = run(small.smoothness(radius / 2), state, LARGE_BATCH)
    _, far = run(small.smoothness(radius), state, LARGE_BATCH)
    assert far["smoothness"] > 2 * near["smoothness"]
    steps = np.random.default_rng(0).normal(size=image.shape)
    steps *= radius / np.sqrt((steps**2).sum(axis=(1, 2, 3), keepdims=True))
    by_chance = divergence_at(encoder, target, image + jnp.asarray(steps, jnp.float32)).mean()
    assert far["smoothness"] > 3 * by_chance


def test_an_image_and_its_neighbour_have_the_same_input_noise(small_experiment):
    small = of_two_labels(small_experiment, input_noise=1.0, input_dropout=0.3)
    _, metrics = run(small.smoothness(1e-3), small.state(std=0.5), LARGE_BATCH)
    assert 0 < metrics["smoothness"] < 1e-4


def mirrored(keys, images):
    return images[:, :, ::-1]


def test_an_augmentation_that_changes_nothing_leaves_smoothness_as_it_is(small_experiment):
    small = of_two_labels(small_experiment)
    state, penalties = small.state(std=0.5), {"information": information(priors.categorical(2))}
    unchanged = lambda keys, images: images  # noqa: E731
    found, metrics = run(small.smoothness(0.5, penalties, unchanged), state, LARGE_BATCH)
    expected, expected_metrics = run(small.smoothness(0.5, penalties), state, LARGE_BATCH)
    assert_same(metrics, expected_metrics)
    assert_same(found.params, expected.params)


def test_smoothness_about_an_augmented_image_is_the_change_on_the_worst_way_from_there(
    small_experiment,
):
    """From an image of other labels it is known: the slope of the divergence."""
    small = small_experiment(labels=LABELS, layout="style_and_inferred_label", rates=RATES)
    state, radius = small.state(std=0.5), 0.2
    encoder, image = state.params["encoder"], LARGE_BATCH.image
    target = softmax(encoded(encoder, image)["label"])

    def divergence(step):
        return divergence_at(encoder, target, mirrored(None, image) + step)

    slope = jax.grad(lambda step: divergence(step).sum())(jnp.zeros(image.shape))
    length = jnp.sqrt((slope**2).sum(axis=(1, 2, 3), keepdims=True))
    expected = divergence(radius * slope / length).mean()
    _, metrics = run(small.smoothness(radius, augmentation=mirrored), state, LARGE_BATCH)
    assert metrics.keys() == {"smoothness"}
    np.testing.assert_allclose(metrics["smoothness"], expected, rtol=0.01)
    # The step from there counts, and so does the way there.
    _, about_itself = run(small.smoothness(radius), state, LARGE_BATCH)
    assert expected > 1.1 * divergence(0.0).mean() and expected > 2 * about_itself["smoothness"]


def test_labels_of_the_augmented_image_are_moved_to_those_of_the_image(small_experiment):
    """And with them what is of the image itself, for steps so short that nothing changes on them.

    The image's own labels are a constant."""
    small = small_experiment(labels=LABELS, layout="style_and_inferred_label", rates=RATES)
    state, image = small.state(std=0.5), LARGE_BATCH.image
    encoder = state.params["encoder"]
    target = softmax(encoded(encoder, image)["label"])
    entropy = lambda p: -(p * jnp.log(p)).sum(-1)  # noqa: E731

    def costs(encoder, of=image):
        labels = softmax(encoded(encoder, of)["label"])
        divergence = divergence_at(encoder, target, mirrored(None, image)).mean()
        return divergence, 5.0 * (entropy(labels).mean() - 2 * entropy(labels.mean(0)))

    penalties = {"information": information(priors.categorical(LABELS), 5.0)}
    after, metrics = run(small.smoothness(1e-4, penalties, mirrored), state, LARGE_BATCH)
    divergence, known = costs(encoder)
    found = metrics["smoothness"], metrics["information"]
    np.testing.assert_allclose(found, (divergence, known + 10 * np.log(LABELS)), rtol=1e-3)
    assert abs(costs(encoder, mirrored(None, image))[1] - known) > 0.01
    right, _ = sgd(encoder, jax.grad(lambda e: sum(costs(e)))(encoder), "smoothness")
    assert_label_head_moves(after.params["encoder"], encoder, right, 1e-4, 1e-2)


def test_smoothness_augments_with_keys_of_its_own(small_experiment):
    """Beside images of the step that were augmented already, each change is another one."""
    small, used = of_two_labels(small_experiment), []

    def noting(keys, images):
        used.append(keys)
        return images

    small.smoothness(0.5, augmentation=noting)(small.state(), BATCH_OF_8)
    (keys,) = used
    others = all_named(BATCH_OF_8.keys, "smoothness"), all_named(BATCH_OF_8.keys, "augmentation")
    every = jnp.concatenate([jax.random.key_data(k) for k in (keys, *others, BATCH_OF_8.keys)])
    assert len(np.unique(every, axis=0)) == 4 * BATCH


def test_smoothness_asks_for_no_labels(small_experiment):
    small = of_two_labels(small_experiment)
    state, hidden = small.state(std=0.5), LARGE_BATCH._replace(label=jnp.full(LARGE, -1))
    after, _ = run(small.smoothness(0.5), state, LARGE_BATCH)
    assert_same(run(small.smoothness(0.5), state, hidden)[0].params, after.params)


def test_a_phase_from_a_step_on_rests_until_then_and_is_itself_from_then_on(small_experiment):
    small = of_two_labels(small_experiment)
    phase, state = small.smoothness(0.5), small.state(std=0.5)
    assert from_step(phase, 0) is phase
    late = from_step(phase, 3)
    for step in (0, 2):
        waiting = state.replace(step=jnp.int32(step))
        after, metrics = run(late, waiting, LARGE_BATCH)
        assert_same((after.params, after.opt_states), (waiting.params, waiting.opt_states))
        assert metrics == {"smoothness": 0.0}
    for step in (3, 4):
        begun = state.replace(step=jnp.int32(step))
        after, metrics = run(late, begun, LARGE_BATCH)
        expected, expected_metrics = run(phase, begun, LARGE_BATCH)
        jax.tree.map(
            lambda found, right: np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-7),
            (after.params, after.opt_states, metrics),
            (expected.params, expected.opt_states, expected_metrics),
        )
        assert metrics["smoothness"] > 0


# Batch norm


def test_running_statistics_move_in_reconstruction_only(small_experiment):
    matches, shown = recording(style_and_label())
    small = small_experiment(
        matches, labels=LABELS, layout="style_and_inferred_label", batch_norm=True
    )
    state = small.state()
    for phase in (small.regularization, small.classification, small.smoothness(1.0)):
        after, _ = run(phase, state, SEMI_SUPERVISED)
        assert_same(after.batch_stats, state.batch_stats)
    # While training every phase takes the batch's own statistics: with the heads normalised,
    # codes have the moments of their norm's parameters.
    norm = state.params["encoder"]["style_norm"]["norm"]
    codes = shown["style"].codes[0]
    np.testing.assert_allclose(codes.mean(axis=0), norm["bias"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(codes.std(axis=0), np.abs(norm["scale"]), rtol=1e-2)
    after, _ = run(small.reconstruction, state, SEMI_SUPERVISED)
    pairs = zip(*(jax.tree.leaves(s.batch_stats["encoder"]) for s in (state, after)), strict=True)
    assert all((np.asarray(old) != np.asarray(new)).all() for old, new in pairs)
    assert after.batch_stats["discriminator"] == {"label": {}, "style": {}}


def test_spectral_norms_power_iteration_moves_in_regularization(small_experiment):
    small = small_experiment(style_and_label()[:1], spectral_norm=True)
    state = small.state()
    after, _ = run(small.regularization, state, BATCH_OF_8)
    u = "dense_0/kernel/u"
    stats = [s.batch_stats["discriminator"]["style"]["dense_0_spectral"] for s in (state, after)]
    assert (stats[0][u] != stats[1][u]).any()


# Penalties


@pytest.mark.parametrize("std", [1.0, 5.0])
def test_the_kl_penalty_averages_to_the_closed_form(small_experiment, std):
    small = small_experiment(posterior="gaussian")
    params = small.state(std=0.4).params
    many = 20_000
    image = jnp.broadcast_to(BATCH_OF_8.image[:1], (many, 8, 8, 1))
    keys = jax.random.split(jax.random.key(4), many)
    empty = {"encoder": {}, "decoder": {}, "discriminator": {}}
    code, _ = jax.jit(functools.partial(small.model.encode, train=True))(params, empty, image, keys)
    found = kl(priors.gaussian(STYLE_DIM, std), weight=2.0)(params, code)
    heads = encoded(params["encoder"], BATCH_OF_8.image[:1])
    mean, log_variance = (
        np.asarray(heads[name], np.float64)[0] for name in ("style", "style_log_variance")
    )
    ratio = np.exp(log_variance) / std**2
    closed = 0.5 * (ratio + mean**2 / std**2 - 1 - np.log(ratio)).sum()
    # One sample's log ratio varies by about 1.2 nats.
    assert abs(found / 2.0 - closed) < 4 * 1.5 / np.sqrt(many)


def test_the_kl_penalty_is_the_mean_log_ratio_of_the_sample():
    style = np.random.default_rng(0).normal(size=(BATCH, STYLE_DIM))
    log_q = np.random.default_rng(1).normal(size=BATCH)
    code = Code(jnp.asarray(style, jnp.float32), None, jnp.asarray(log_q, jnp.float32))
    log_p = scipy.stats.norm.logpdf(style, scale=5).sum(axis=1)
    found = kl(priors.gaussian(STYLE_DIM, 5.0), weight=0.5)({}, code)
    np.testing.assert_allclose(found, 0.5 * (log_q - log_p).mean(), rtol=1e-5)


def test_the_kl_penalty_needs_densities():
    with pytest.raises(ValueError, match="prior with a density"):
        kl(priors.swiss_roll())
    with pytest.raises(ValueError, match="the Gaussian posterior"):
        kl(priors.gaussian(STYLE_DIM))({}, Code(jnp.zeros((BATCH, STYLE_DIM))))


def test_a_variational_autoencoder_descends_error_and_kl(small_experiment):
    # The posterior's noise is recovered from the code that the penalty sees.
    prior, codes = priors.gaussian(STYLE_DIM, 2.0), []
    divergence_from_prior = kl(prior, weight=0.7)

    def penalty(params, code):
        jax.debug.callback(lambda x: codes.append(np.asarray(x)), code.style)
        return divergence_from_prior(params, code)

    small = small_experiment(posterior="gaussian", penalties={"kl": penalty}, rates=RATES)
    state = small.state()
    after, metrics = run(small.reconstruction, state, BATCH_OF_8)
    moved = {name: state.params[name] for name in ("encoder", "decoder")}
    heads = encoded(moved["encoder"], BATCH_OF_8.image)
    noise = (codes[0] - heads["style"]) / jnp.exp(0.5 * heads["style_log_variance"])

    def both(params):
        heads = encoded(params["encoder"], BATCH_OF_8.image)
        log_variance = heads["style_log_variance"]
        code = heads["style"] + jnp.exp(0.5 * log_variance) * noise
        log_ratio = (
            -0.5 * noise**2 - 0.5 * log_variance + 0.5 * (code / 2.0) ** 2 + jnp.log(2.0)
        ).sum(axis=1)
        return error_of(params, BATCH_OF_8, code), 0.7 * log_ratio.mean()

    np.testing.assert_allclose([metrics["reconstruction"], metrics["kl"]], both(moved), rtol=1e-4)
    gradient = jax.jit(jax.grad(lambda params: sum(both(params))))(moved)
    expected, _ = sgd(*jax.device_get((moved, gradient)), "autoencoder")
    assert_moved_alike(moved, {name: after.params[name] for name in moved}, expected)


def test_near_cluster_heads_cost_their_distances_to_eta():
    heads = np.random.default_rng(0).normal(size=(6, 2))
    eta, cost, near = 1.5, 0.0, 0
    for i in range(6):
        for j in range(i + 1, 6):
            distance = np.sqrt(((heads[i] - heads[j]) ** 2).sum())
            cost += max(0.0, eta - distance)
            near += distance < eta
    assert 0 < near < 15
    params = {"cluster_heads": jnp.asarray(heads, jnp.float32)}
    code = Code(jnp.zeros((BATCH, 2)))
    np.testing.assert_allclose(heads_apart(eta)(params, code), cost, rtol=1e-5)
    np.testing.assert_allclose(heads_apart(eta, weight=3.0)(params, code), 3 * cost, rtol=1e-5)


def test_cluster_heads_at_one_place_have_a_finite_gradient():
    params = {"cluster_heads": jnp.zeros((3, 2))}
    penalty = heads_apart(1.0)
    value, slope = jax.value_and_grad(penalty)(params, Code(jnp.zeros((BATCH, 2))))
    np.testing.assert_allclose(value, 3.0, rtol=1e-4)
    assert jnp.isfinite(slope["cluster_heads"]).all()
