"""The training state: what a descent moves and what it leaves, the average over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aae_jax.state import (
    ALONE,
    Update,
    across,
    average_params,
    descend,
    evaluated_params,
    init_state,
    move,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

SGD = Update("autoencoder", ("encoder", "decoder"), optax.sgd(0.5, 0.9))
OTHER = Update("generator", ("encoder",), optax.adam(0.1))


def some_params():
    return {
        "encoder": {"w": jnp.array([1.0, -2.0, 3.0])},
        "decoder": {"w": jnp.array([4.0, 5.0, -6.0])},
        "discriminator": {"style": {"w": jnp.array([0.5, 0.25, 1.0])}},
    }


def some_state(averaged=(), updates=(SGD, OTHER)):
    return init_state(jax.random.key(3), some_params(), {"encoder": {}}, updates, averaged)


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def without_key(state):
    return state.replace(key=jax.random.key_data(state.key))


# The start


def test_the_state_starts_at_step_zero_with_its_optimizers_and_key():
    state = some_state()
    assert state.step == 0 and jnp.issubdtype(state.step.dtype, jnp.integer)
    np.testing.assert_array_equal(
        jax.random.key_data(state.key), jax.random.key_data(jax.random.key(3))
    )
    assert state.averaged_params is None
    assert_same(state.params, some_params())
    expected = {
        "autoencoder": SGD.optimizer.init({k: some_params()[k] for k in ("encoder", "decoder")}),
        "generator": OTHER.optimizer.init({"encoder": some_params()["encoder"]}),
    }
    assert_same(state.opt_states, expected)


def test_the_state_is_one_tree_and_comes_back_from_its_leaves():
    state = some_state(averaged=("encoder",))
    leaves, structure = jax.tree.flatten(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert_same(without_key(structure.unflatten(leaves)), without_key(state))


def test_averages_start_at_the_parameters_in_buffers_of_their_own():
    # A buffer that is there twice could be donated once only.
    state = some_state(averaged=("encoder", "decoder"))
    assert_same(
        state.averaged_params, {name: some_params()[name] for name in ("encoder", "decoder")}
    )
    donating = jax.jit(lambda state: state.replace(step=state.step + 1), donate_argnums=0)
    assert donating(state).step == 1


# Descent


def loss_of(params):
    """Its gradient is known: (encoder * discriminator + 3, 2 decoder) elementwise."""
    encoder, decoder = params["encoder"]["w"], params["decoder"]["w"]
    critic = params["discriminator"]["style"]["w"]
    value = (0.5 * encoder**2 * critic + 3 * encoder).sum() + (decoder**2).sum()
    return value, {"seen": encoder}


def test_two_descents_are_gradient_and_momentum_by_hand():
    state, traces = some_state(), {"encoder": np.zeros(3), "decoder": np.zeros(3)}
    by_hand = {name: np.asarray(some_params()[name]["w"]) for name in traces}
    critic = np.asarray(some_params()["discriminator"]["style"]["w"])
    for _ in range(2):
        before = state
        state, value, aux = descend(SGD, state, loss_of)
        encoder, decoder = by_hand["encoder"], by_hand["decoder"]
        expected = (0.5 * encoder**2 * critic + 3 * encoder).sum() + (decoder**2).sum()
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert_same(aux["seen"], before.params["encoder"]["w"])
        gradients = {"encoder": encoder * critic + 3, "decoder": 2 * decoder}
        for name, gradient in gradients.items():
            traces[name] = 0.9 * traces[name] + gradient
            by_hand[name] = by_hand[name] - 0.5 * traces[name]
            np.testing.assert_allclose(state.params[name]["w"], by_hand[name], rtol=1e-6)


def test_a_descent_moves_its_own_parameters_and_optimizer_and_nothing_else():
    state = some_state(averaged=("encoder",))
    after, _, _ = descend(OTHER, state, loss_of)
    assert (after.params["encoder"]["w"] != state.params["encoder"]["w"]).all()
    for name in ("decoder", "discriminator"):
        assert_same(after.params[name], state.params[name])
    assert_same(after.opt_states["autoencoder"], state.opt_states["autoencoder"])
    count = after.opt_states["generator"][0].count
    assert count == 1
    for name in ("step", "batch_stats", "averaged_params"):
        assert_same(getattr(after, name), getattr(state, name))
    assert_same(jax.random.key_data(after.key), jax.random.key_data(state.key))


def test_moving_by_a_gradient_is_descending_its_loss():
    state = some_state()
    gradient = jax.grad(lambda params: loss_of({**state.params, **params})[0])(
        {"encoder": state.params["encoder"]}
    )
    assert_same(
        without_key(move(OTHER, state, gradient)), without_key(descend(OTHER, state, loss_of)[0])
    )


def test_the_gradient_is_averaged_before_the_optimizer_sees_it():
    # Adam's step from rest has the size of its rate whatever the gradient's, but its sign.
    flipped = OTHER._replace(average=lambda tree: jax.tree.map(jnp.negative, tree))
    state = some_state()
    plain, _, _ = descend(OTHER, state, loss_of)
    turned, _, _ = descend(flipped, state, loss_of)
    start = state.params["encoder"]["w"]
    step = plain.params["encoder"]["w"] - start
    np.testing.assert_allclose(turned.params["encoder"]["w"] - start, -step, rtol=1e-5)


# Devices acting together, here the places of a vmap


def test_alone_averages_gathers_and_numbers_nothing():
    x = jnp.arange(6.0).reshape(3, 2)
    assert_same(ALONE.average({"x": x}), {"x": x})
    assert_same(ALONE.gather(x), x)
    assert ALONE.rank() == 0 and ALONE.axis_name is None


def test_across_averages_every_leaf_and_gathers_in_order():
    collective = across("data")
    assert collective.axis_name == "data"
    rng = np.random.default_rng(0)
    tree = {
        "matrix": rng.normal(size=(4, 3, 2)).astype(np.float32),
        "vector": rng.normal(size=(4, 5)).astype(np.float32),
        "number": rng.normal(size=4).astype(np.float32),
    }

    def each(tree):
        return collective.average(tree), collective.gather(tree["matrix"]), collective.rank()

    means, gathered, indices = jax.vmap(each, axis_name="data")(tree)
    for name, values in tree.items():
        expected = np.broadcast_to(values.mean(axis=0), values.shape)
        np.testing.assert_allclose(means[name], expected, rtol=1e-5, atol=1e-6)
    for place in range(4):
        np.testing.assert_array_equal(gathered[place], tree["matrix"].reshape(12, 2))
    np.testing.assert_array_equal(indices, np.arange(4))


# The average of the parameters


def test_the_average_follows_its_formula():
    decay, steps = 0.9, 120
    state = some_state(averaged=("encoder",))
    rng = np.random.default_rng(1)
    expected = np.asarray(state.params["encoder"]["w"], np.float64)
    average = jax.jit(lambda state: average_params(state, decay))
    for step in range(steps):
        weights = rng.normal(size=3)
        params = {**state.params, "encoder": {"w": jnp.asarray(weights, jnp.float32)}}
        state = average(state.replace(params=params)).replace(step=jnp.int32(step + 1))
        # Warming up: a tenth of the past counts at first, and the decay from step 80 on.
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * weights
        np.testing.assert_allclose(
            state.averaged_params["encoder"]["w"], expected, rtol=1e-4, atol=1e-5
        )
    assert set(state.averaged_params) == {"encoder"}


def test_without_an_average_nothing_is_averaged():
    state = some_state()
    assert average_params(state, 0.9) is state


def test_averages_are_evaluated_where_there_are_any():
    state = some_state(averaged=("encoder",))
    moved = state.replace(params=jax.tree.map(lambda w: w + 1, state.params))
    evaluated = evaluated_params(moved)
    assert_same(evaluated["encoder"], state.averaged_params["encoder"])
    assert_same(evaluated["decoder"], moved.params["decoder"])
    assert_same(evaluated["discriminator"], moved.params["discriminator"])
    plain = some_state()
    assert_same(evaluated_params(plain), plain.params)
