"""The training state, and the only place with gradients, averaging over devices and optax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

Params = dict[str, Any]


class TrainState(flax.struct.PyTreeNode):
    """Everything that a run's next step depends on; exactly what is checkpointed.

    Attributes:
        step: [], steps taken.
        params: by network: encoder, decoder, discriminator {part}, cluster_heads.
        batch_stats: running statistics by network.
        opt_states: by optimizer: autoencoder, discriminator, generator, classifier.
        averaged_params: exponential average of the encoder, decoder and cluster heads, or None.
        key: the run's base key, constant; noise is keyed by (key, step, example).
    """

    # Arrays, Int[Array, ""] and Key[Array, ""], in a state; but a tree of the state's shapes, as
    # jax.eval_shape returns, or of shardings holds something else in their places.
    step: Any
    params: Params
    batch_stats: Params
    opt_states: dict[str, optax.OptState]
    averaged_params: Any
    key: Any


class Collective(NamedTuple):
    """How the devices of a mapped step act together.

    Attributes:
        average: pytree -> its mean over devices.
        gather: [local, ...] -> [global, ...], all devices' examples in order.
        rank: () -> this device's number.
        axis_name: name of the mapped axis, or None.
    """

    average: Callable[[Any], Any]
    gather: Callable[[Array], Array]
    rank: Callable[[], Int[Array, ""]]
    axis_name: str | None


# A step that is not mapped, as in a notebook.
ALONE = Collective(lambda tree: tree, lambda x: x, lambda: jnp.int32(0), None)


def across(axis_name: str) -> Collective:
    """The collective of a step mapped over `axis_name`."""

    def average(tree: Any) -> Any:
        # One vector, one collective: a collective for each leaf is 3-5 times slower over gloo.
        vector, unravel = ravel_pytree(tree)
        return unravel(jax.lax.pmean(vector, axis_name))

    def gather(x: Array) -> Array:
        return jax.lax.all_gather(x, axis_name, tiled=True)

    return Collective(average, gather, lambda: jax.lax.axis_index(axis_name), axis_name)


class Update(NamedTuple):
    """One optimizer and the parameter subtrees it moves.

    Attributes:
        name: key of its state in `TrainState.opt_states`.
        subtrees: keys of `TrainState.params`.
        optimizer: the optax transformation.
        average: mean over devices of a pytree.
    """

    name: str
    subtrees: tuple[str, ...]
    optimizer: optax.GradientTransformation
    average: Callable[[Any], Any] = ALONE.average


def init_state(
    key: Key[Array, ""],
    params: Params,
    batch_stats: Params,
    updates: tuple[Update, ...],
    averaged: tuple[str, ...] = (),
) -> TrainState:
    """The state before the first step.

    Args:
        key: the run's base key.
        params, batch_stats: from `Model.init`.
        updates: the optimizers.
        averaged: parameter subtrees of which to keep an exponential average.
    """
    opt_states = {u.name: u.optimizer.init(_subtrees(params, u)) for u in updates}
    # Copies: a buffer may be donated once only.
    copies = jax.tree.map(jnp.copy, {name: params[name] for name in averaged}) if averaged else None
    return TrainState(jnp.int32(0), params, batch_stats, opt_states, copies, key)


def descend(
    update: Update, state: TrainState, loss: Callable[[Params], tuple[Float[Array, ""], Any]]
) -> tuple[TrainState, Float[Array, ""], Any]:
    """Moves the update's subtrees down the gradient of `loss`.

    Args:
        update: which optimizer and which parameters.
        state: where from.
        loss: all parameters -> (scalar, auxiliary output).

    Returns:
        (state, the loss before the move, the auxiliary output).
    """

    def of_moved(moved: Params) -> tuple[Float[Array, ""], Any]:
        return loss({**state.params, **moved})

    (value, aux), gradient = jax.value_and_grad(of_moved, has_aux=True)(
        _subtrees(state.params, update)
    )
    return move(update, state, gradient), value, aux


def move(update: Update, state: TrainState, gradient: Params) -> TrainState:
    """Moves the update's subtrees by their gradient, averaged over devices."""
    params = _subtrees(state.params, update)
    step, opt_state = update.optimizer.update(
        update.average(gradient), state.opt_states[update.name], params
    )
    return state.replace(
        params={**state.params, **optax.apply_updates(params, step)},
        opt_states={**state.opt_states, update.name: opt_state},
    )


def average_params(state: TrainState, decay: float) -> TrainState:
    """Moves the exponential average of the parameters, if the state keeps one."""
    if state.averaged_params is None:
        return state
    # Short runs should not remember their initialisation: the average warms up with the step.
    warm = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    averaged = jax.tree.map(
        lambda mean, new: warm * mean + (1 - warm) * new,
        state.averaged_params,
        {name: state.params[name] for name in state.averaged_params},
    )
    return state.replace(averaged_params=averaged)


def evaluated_params(state: TrainState) -> Params:
    """The parameters to evaluate: averaged ones where the state keeps them."""
    return {**state.params, **(state.averaged_params or {})}


def _subtrees(params: Params, update: Update) -> Params:
    return {name: params[name] for name in update.subtrees}
