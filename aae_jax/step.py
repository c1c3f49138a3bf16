"""The train step, a fold over phases, and the chunk of steps that runs as one compiled scan."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from aae_jax.augmentation import Augmentation
from aae_jax.phases import Batch, Metrics, Phase
from aae_jax.randomness import all_named, example_keys, named
from aae_jax.state import ALONE, Collective, TrainState, average_params

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Examples(NamedTuple):
    """Examples to draw batches from: a whole data set, or one step's batch.

    Attributes:
        image: [n, ...] as stored (uint8, or float rows).
        label: [n], -1 where unknown.
    """

    image: Array | np.ndarray
    label: Int[Array | np.ndarray, "n"]


class Rows(NamedTuple):
    """Which examples the steps of a chunk see.

    Attributes:
        image: [steps, batch] indices into the data.
        labelled: [steps, labelled_batch] indices of labelled examples, or None.
    """

    image: Int[Array | np.ndarray, "steps batch"]
    labelled: Int[Array | np.ndarray, "steps labelled"] | None


def train_step(phases: tuple[Phase, ...], averaging: float = 0.0) -> Step:
    """The phases in order, as one step.

    Args:
        phases: see `aae_jax.phases`.
        averaging: decay of the exponential parameter average, for states that keep one.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        metrics: Metrics = {}
        for phase in phases:
            state, phase_metrics = phase(state, batch)
            metrics |= phase_metrics
        state = average_params(state, averaging)
        return state.replace(step=state.step + 1), metrics

    return step


def augmented(step: Step, augmentation: Augmentation) -> Step:
    """The step, on augmented images: what networks see, and what they reconstruct."""

    def changed(batch: Batch) -> Batch:
        image = augmentation(all_named(batch.keys, "augmentation"), batch.image)
        return batch._replace(image=image)

    def on_augmented(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = changed(batch)
        if batch.labelled is not None:
            batch = batch._replace(labelled=changed(batch.labelled))
        return step(state, batch)

    return on_augmented


def chunk(
    step: Step, normalize: Callable[[Array], Float[Array, "..."]], collective: Collective = ALONE
) -> Callable[[TrainState, Examples, Rows], tuple[TrainState, dict[str, Float[Array, "steps"]]]]:
    """Many steps as one scan: (state, examples, rows) -> (state, metrics of each step).

    Args:
        step: see `train_step`.
        normalize: stored images -> network inputs.
        collective: how devices act together; each holds its own share of the rows.
    """

    def run(state: TrainState, examples: Examples, rows: Rows) -> tuple[TrainState, Any]:
        def draw(state: TrainState, row: Int[Array | np.ndarray, "local"], stream: str) -> Batch:
            local = row.shape[0]
            indices = collective.rank() * local + jnp.arange(local)
            keys = example_keys(named(state.key, stream), state.step, indices)
            return Batch(normalize(examples.image[row]), examples.label[row], keys)

        def one(state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
            batch = draw(state, rows.image, "images")
            if rows.labelled is not None:
                batch = batch._replace(labelled=draw(state, rows.labelled, "labelled"))
            return step(state, batch)

        state, metrics = jax.lax.scan(one, state, rows)
        return state, collective.average(metrics)

    return run
