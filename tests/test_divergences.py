"""Divergences against their formulas in float64 NumPy, on scores and critics made by hand."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from aae_jax import divergences
from aae_jax.divergences import (
    DIVERGENCES,
    balance,
    gan,
    hinge,
    least_squares,
    mmd,
    mutual_information,
    total,
    wasserstein,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH = 8
KEYS = jax.random.split(jax.random.key(0), BATCH)
few_examples = settings(deadline=None, max_examples=10, derandomize=True)

# The formulas: (critic loss of prior and code scores, matching loss of code scores).
FORMULAS = {
    "gan": (
        lambda p, c: np.logaddexp(0, -p).mean() + np.logaddexp(0, c).mean(),
        lambda c: np.logaddexp(0, -c).mean(),
    ),
    "least_squares": (
        lambda p, c: 0.5 * ((p - 1) ** 2).mean() + 0.5 * (c**2).mean(),
        lambda c: 0.5 * ((c - 1) ** 2).mean(),
    ),
    "hinge": (
        lambda p, c: np.maximum(0, 1 - p).mean() + np.maximum(0, 1 + c).mean(),
        lambda c: -c.mean(),
    ),
    "wasserstein": (lambda p, c: c.mean() - p.mean(), lambda c: -c.mean()),
}
CONSTRUCTORS = {
    "gan": gan,
    "least_squares": least_squares,
    "hinge": hinge,
    "wasserstein": lambda: wasserstein(0.0),
}


def first_column(codes):
    """A critic whose scores are told it: a code's first value."""
    return codes[:, 0]


def column(scores):
    return jnp.asarray(np.reshape(scores, (-1, 1)), jnp.float32)


def by_formula(name, prior_scores, code_scores):
    critic, matching = FORMULAS[name]
    return critic(prior_scores, code_scores), matching(code_scores)


score_lists = st.lists(
    st.floats(-60, 60, width=32).map(lambda x: 0.0 if abs(x) < 1e-20 else x),
    min_size=BATCH,
    max_size=BATCH,
)


# Losses of scores


@pytest.mark.parametrize("name", FORMULAS)
@few_examples
@given(prior_scores=score_lists, code_scores=score_lists)
def test_losses_are_their_formulas(name, prior_scores, code_scores):
    divergence = CONSTRUCTORS[name]()
    prior, code = column(prior_scores), column(code_scores)
    loss, (of_prior, of_code) = divergence.critic_loss(first_column, prior, code, KEYS)
    matching = divergence.matching_loss(first_column, prior, code, KEYS)
    expected = by_formula(name, np.array(prior_scores), np.array(code_scores))
    np.testing.assert_allclose([loss, matching], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(of_prior, prior[:, 0])
    np.testing.assert_array_equal(of_code, code[:, 0])


@pytest.mark.parametrize("name", FORMULAS)
def test_gradients_are_the_formulas_slopes(name):
    rng = np.random.default_rng(1)
    prior, code = rng.normal(scale=2, size=(2, BATCH))
    divergence = CONSTRUCTORS[name]()

    def both(prior, code):
        loss, _ = divergence.critic_loss(first_column, prior, code, KEYS)
        return jnp.stack([loss, divergence.matching_loss(first_column, prior, code, KEYS)])

    of_prior, of_code = jax.jacobian(both, (0, 1))(column(prior), column(code))
    step = 1e-6 * np.eye(BATCH)
    for example in range(BATCH):
        for slope, move in ((of_prior, (step[example], 0)), (of_code, (0, step[example]))):
            up = np.array(by_formula(name, prior + move[0], code + move[1]))
            down = np.array(by_formula(name, prior - move[0], code - move[1]))
            np.testing.assert_allclose(
                slope[:, example, 0], (up - down) / 2e-6, rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("name", FORMULAS)
def test_the_critic_raises_prior_scores_and_the_encoder_raises_code_scores(name):
    divergence = CONSTRUCTORS[name]()
    prior, code = column(np.linspace(-0.5, 0.5, BATCH)), column(np.linspace(0.4, -0.4, BATCH))
    of_prior, of_code = jax.grad(
        lambda p, c: divergence.critic_loss(first_column, p, c, KEYS)[0], (0, 1)
    )(prior, code)
    assert (of_prior < 0).all()  # descent raises them: prior = 1
    # Least squares pulls to 0 from both sides; the others push codes down without end.
    assert (of_code * jnp.where(name == "least_squares", code, 1.0) > 0).all()
    of_matched = jax.grad(lambda c: divergence.matching_loss(first_column, prior, c, KEYS))(code)
    assert (of_matched < 0).all()


@pytest.mark.parametrize("name", ["gan", "least_squares", "hinge"])
def test_losses_stand_extreme_scores(name):
    divergence = CONSTRUCTORS[name]()
    extreme = column([1e4, -1e4] * (BATCH // 2))

    def total(scores):
        loss, _ = divergence.critic_loss(first_column, scores, scores, KEYS)
        return loss + divergence.matching_loss(first_column, scores, scores, KEYS)

    value, slope = jax.value_and_grad(total)(extreme)
    assert jnp.isfinite(value) and jnp.isfinite(slope).all()


@pytest.mark.parametrize("name", ["gan", "least_squares", "hinge"])
def test_the_equilibrium_is_the_best_that_a_critic_can_do_on_equal_distributions(name):
    divergence = CONSTRUCTORS[name]()
    critic, matching = FORMULAS[name]
    # On equal distributions the best critic gives one score to all.
    constant = scipy.optimize.minimize_scalar(
        lambda score: critic(np.full(3, score), np.full(3, score)), bounds=(-5, 5), method="bounded"
    )
    undecided = np.full(BATCH, divergence.boundary)
    found = divergence.equilibrium
    np.testing.assert_allclose(found[0], constant.fun, rtol=1e-6)
    np.testing.assert_allclose(found[0], critic(undecided, undecided), rtol=1e-6)
    np.testing.assert_allclose(found[1], matching(undecided), rtol=1e-6, atol=1e-12)


def test_divergences_without_a_known_equilibrium_claim_none():
    for divergence in (wasserstein(), mmd()):
        assert divergence.equilibrium is None and divergence.boundary is None


def test_those_without_a_critic_need_the_whole_batch():
    whole = {"mmd", "mutual_information", "balance"}
    assert DIVERGENCES.keys() == {"gan", "least_squares", "hinge", "wasserstein", "total", *whole}
    for name in DIVERGENCES.keys() - {"total"}:
        divergence = DIVERGENCES[name]()
        assert divergence.whole_batch == (name in whole)
        assert (divergence.critic_loss is None) == (name in whole)
        assert divergence.of_distributions == (name in {"mutual_information", "balance"})


# Wasserstein with gradient penalty


def penalty_of(critic, prior, codes, keys=KEYS, weight=10.0):
    """What the gradient penalty adds to the loss."""
    with_penalty, _ = wasserstein(weight).critic_loss(critic, prior, codes, keys)
    without, _ = wasserstein(0.0).critic_loss(critic, prior, codes, keys)
    return float(with_penalty - without)


@pytest.mark.parametrize("norm", [0.2, 1.0, 3.0])
def test_the_gradient_penalty_of_a_linear_critic_is_known(norm):
    rng = np.random.default_rng(2)
    prior, codes = jnp.asarray(rng.normal(size=(2, BATCH, 4)), jnp.float32)
    direction = rng.normal(size=4)
    slope = jnp.asarray(norm * direction / np.linalg.norm(direction), jnp.float32)
    found = penalty_of(lambda z: z @ slope + 5.0, prior, codes)
    np.testing.assert_allclose(found, 10.0 * (norm - 1) ** 2, rtol=1e-4, atol=1e-4)


def test_the_gradient_penalty_is_taken_between_each_prior_sample_and_its_code():
    # The gradient of |z|^2 / 2 is z. Between 0 and a unit vector its norm is the place between
    # them, uniform on 0 to 1, where (norm - 1)^2 has mean 1/3 and standard deviation 0.298. Were
    # the place the same for all examples of a batch, the batch's mean would vary as much as one.
    batches = 1000
    keys = jax.random.split(jax.random.key(5), (batches, BATCH))
    unit = jnp.tile(jnp.array([0.6, 0.0, 0.8]), (BATCH, 1))

    def half_square(codes):
        return 0.5 * (codes**2).sum(axis=1)

    def penalty(keys):
        loss, _ = wasserstein(1.0).critic_loss(half_square, 0 * unit, unit, keys)
        return loss - 0.5  # less the codes' scores

    found = np.asarray(jax.jit(jax.vmap(penalty))(keys), np.float64)
    spread = 0.298 / np.sqrt(BATCH)
    assert abs(found.mean() - 1 / 3) < 4 * spread / np.sqrt(batches)
    assert abs(found.std() / spread - 1) < 0.1


def test_the_gradient_penalty_reaches_the_critics_parameters():
    rng = np.random.default_rng(3)
    prior, codes = jnp.asarray(rng.normal(size=(2, BATCH, 3)), jnp.float32)
    slope = jnp.array([2.0, 0.0, 0.0])

    def loss(slope):
        return wasserstein(10.0).critic_loss(lambda z: z @ slope, prior, codes, KEYS)[0]

    # d 10 (|w| - 1)^2 / dw = 20 (|w| - 1) w / |w|, beside the slope of the scores.
    expected = np.asarray(codes - prior, np.float64).mean(axis=0) + np.array([20.0, 0, 0])
    np.testing.assert_allclose(jax.grad(loss)(slope), expected, rtol=1e-4, atol=1e-5)


def test_a_flat_critic_has_a_finite_gradient_penalty():
    codes = jnp.ones((BATCH, 3))

    def loss(slope):
        return wasserstein(10.0).critic_loss(lambda z: z @ slope, codes, codes, KEYS)[0]

    value, slope = jax.value_and_grad(loss)(jnp.zeros(3))
    np.testing.assert_allclose(value, 10.0, rtol=1e-4)
    assert jnp.isfinite(slope).all()


def test_a_negative_gradient_penalty_is_refused():
    with pytest.raises(ValueError, match=r"gradient_penalty is -1; it must be 0 or more"):
        wasserstein(-1)


def test_arguments_may_be_whole_numbers_as_a_config_writes_them():
    rng = np.random.default_rng(8)
    prior, codes = jnp.asarray(rng.normal(size=(2, BATCH, 3)), jnp.float32)
    for whole, fraction in ((wasserstein(10), wasserstein(10.0)), (mmd(2, 3), mmd(2.0, 3.0))):
        losses = [d.matching_loss(first_column, prior, codes, KEYS) for d in (whole, fraction)]
        assert losses[0] == losses[1]


# Maximum mean discrepancy


def brute_force_mmd(prior, codes, scale):
    """Unbiased, by double loops: kernels sum over s of C / (C + |a - b|^2), C = 2 dim scale^2 s."""

    def kernel(a, b):
        widths = [2 * len(a) * scale**2 * s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)]
        return sum(width / (width + ((a - b) ** 2).sum()) for width in widths)

    n = len(codes)
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                within = kernel(prior[i], prior[j]) + kernel(codes[i], codes[j])
                total += within / (n * (n - 1))
            total -= 2 * kernel(prior[i], codes[j]) / n**2
    return total


def matched(divergence, prior, codes):
    def no_critic(codes):
        raise AssertionError("MMD has no critic")

    as_float32 = [jnp.asarray(x, jnp.float32) for x in (prior, codes)]
    return divergence.matching_loss(no_critic, *as_float32, KEYS)


@few_examples
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.5, 1.0, 5.0]))
def test_mmd_is_its_double_sum(seed, scale):
    rng = np.random.default_rng(seed)
    prior, codes = rng.normal(scale=scale, size=(2, BATCH, 3))
    codes = 0.7 * codes + rng.normal()
    expected = brute_force_mmd(prior, codes, scale)
    np.testing.assert_allclose(
        matched(mmd(scale=scale), prior, codes), expected, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        matched(mmd(scale=scale, weight=3.0), prior, codes), 3 * expected, rtol=1e-4, atol=1e-5
    )


def test_the_gradient_of_mmd_is_that_of_its_double_sum():
    rng = np.random.default_rng(4)
    prior, codes = rng.normal(size=(2, BATCH, 3))
    slope = jax.grad(lambda c: matched(mmd(), prior, c))(jnp.asarray(codes, jnp.float32))
    for place in [(0, 0), (3, 2), (7, 1)]:
        move = np.zeros_like(codes)
        move[place] = 1e-5
        up, down = (brute_force_mmd(prior, codes + sign * move, 1.0) for sign in (1, -1))
        np.testing.assert_allclose(slope[place], (up - down) / 2e-5, rtol=1e-3, atol=1e-5)


def test_mmd_is_zero_on_average_for_equal_distributions_and_positive_for_others():
    # Unbiased: of equal distributions it averages to zero; the biased one would not.
    rng = np.random.default_rng(5)
    prior, same = jnp.asarray(rng.normal(size=(2, 400, BATCH, 2)), jnp.float32)
    values = jax.jit(jax.vmap(lambda p, c: mmd().matching_loss(first_column, p, c, KEYS)))
    equal = np.asarray(values(prior, same), np.float64)
    assert abs(equal.mean()) < 4 * equal.std() / np.sqrt(400)
    for other in (same + 1.0, 2.5 * same):
        different = np.asarray(values(prior, other), np.float64)
        assert different.mean() > 10 * different.std() / np.sqrt(400)


def test_mmd_does_not_see_the_order_of_codes_and_is_symmetric():
    rng = np.random.default_rng(6)
    prior, codes = rng.normal(size=(2, BATCH, 3))
    value = matched(mmd(), prior, codes)
    np.testing.assert_allclose(matched(mmd(), prior, codes[::-1]), value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(matched(mmd(), codes, prior), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [{"scale": 0.0}, {"scale": -1.0}, {"weight": 0.0}])
def test_mmd_refuses_what_is_not_positive(bad):
    with pytest.raises(ValueError, match="both must be positive"):
        mmd(**bad)


def mutual_information_by_hand(joint):
    """Of image and label, in nats, by its definition: sum of p(x, y) log p(x, y) / p(x) p(y)."""
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    used = joint > 0
    return (joint[used] * np.log(joint[used] / independent[used])).sum()


@pytest.mark.parametrize("seed", range(3))
def test_mutual_information_is_that_of_image_and_label(seed):
    codes = np.random.default_rng(seed).dirichlet(np.full(5, 0.3), size=BATCH)
    loss = matched(mutual_information(), codes[::-1], codes)
    expected = -mutual_information_by_hand(codes / BATCH)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(matched(mutual_information(), codes * 0, codes), loss, rtol=1e-6)


def test_mutual_information_is_least_for_certain_and_equally_frequent_labels():
    certain = np.eye(4)[np.arange(8) % 4]
    assert matched(mutual_information(), certain, certain) == pytest.approx(-np.log(4), rel=1e-5)
    one_label = np.eye(4)[np.zeros(8, int)]
    unsure = np.full((8, 4), 0.25)
    for useless in (one_label, unsure):
        assert matched(mutual_information(), certain, useless) == pytest.approx(0, abs=1e-5)


def test_the_weight_of_the_conditional_entropy():
    codes = np.random.default_rng(0).dirichlet(np.ones(3), size=BATCH)
    conditional = -(codes * np.log(codes)).sum(axis=1).mean()
    light, heavy = (matched(mutual_information(w), codes, codes) for w in (0.25, 2.25))
    np.testing.assert_allclose(heavy - light, 2 * conditional, rtol=1e-4)
    with pytest.raises(ValueError, match=r"conditional is -1; it must be 0 or more"):
        mutual_information(-1)


def test_balance_is_what_frequent_labels_cost():
    codes = np.random.default_rng(0).dirichlet(np.full(3, 0.3), size=BATCH)
    frequency = codes.mean(axis=0)
    cost = 2.5 * (frequency * np.log(3 * frequency)).sum()
    np.testing.assert_allclose(matched(balance(2.5), codes * 0, codes), cost, rtol=1e-5)
    unsure = np.full((BATCH, 3), 1 / 3)  # of each image it asks nothing
    assert matched(balance(), unsure, unsure) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"weight is 0; it must be positive"):
        balance(0)


@pytest.mark.parametrize("divergence", [mutual_information(), balance()])
def test_a_label_that_is_certain_has_a_finite_slope(divergence):
    certain = jnp.eye(4)[jnp.arange(8) % 4]
    assert np.isfinite(jax.grad(lambda c: matched(divergence, certain, c))(certain)).all()


# Sums


def test_a_sum_pulls_as_its_parts_do_together_and_has_their_discriminator():
    rng = np.random.default_rng(0)
    prior, codes = jnp.asarray(rng.dirichlet(np.ones(3), size=(2, BATCH)), jnp.float32)
    parts = gan(), mmd(), balance(2.0)
    summed = total(*parts)

    def pull(divergence):
        return jax.grad(lambda c: divergence.matching_loss(first_column, prior, c, KEYS))(codes)

    np.testing.assert_allclose(pull(summed), sum(map(pull, parts)), rtol=1e-5, atol=1e-7)
    assert summed.critic_loss is parts[0].critic_loss and summed.boundary == 0
    assert summed.whole_batch and summed.of_distributions and summed.equilibrium is None
    assert total(mmd()).critic_loss is None
    plain = total(gan())
    assert not plain.whole_batch and not plain.of_distributions


@pytest.mark.parametrize(("parts", "said"), [((), "0 parts"), ((gan(), hinge()), "2 of them")])
def test_a_sum_of_nothing_or_of_two_discriminators_is_refused(parts, said):
    with pytest.raises(ValueError, match=said):
        total(*parts)


def test_the_examples_in_the_documentation_are_right():
    result = doctest.testmod(divergences)
    assert result.attempted > 0 and result.failed == 0
