"""The operations and bytes that the limit rests on."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aae_jax.experiment import build
from aae_jax.phases import Batch
from benchmarks import limit, ours
from benchmarks.workload import Workload

E1, E11 = Workload("E1", 100), Workload("E11", 100)


def built(workload):
    side = workload.design.side
    config = ours.config_of(workload, "digits")
    return build(config, image_shape=(side, side, 1), num_classes=10, num_examples=50_000)


def abstract_batch(workload):
    size, side = workload.batch_size, workload.design.side
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
    batch = Batch(
        jax.ShapeDtypeStruct((size, side, side, 1), jnp.float32),
        jax.ShapeDtypeStruct((size,), jnp.int32),
        keys,
    )
    return batch._replace(labelled=batch) if workload.design.labels else batch


@pytest.mark.parametrize("workload", [E1, E11], ids=["E1", "E11"])
def test_operations_agree_with_xla_cost_analysis(workload):
    experiment = built(workload)
    state = jax.eval_shape(experiment.init, jax.random.key(0))
    lowered = jax.jit(experiment.step).lower(state, abstract_batch(workload))
    # XLA also counts what is done element by element: activations, losses, noise, updates.
    assert 1.0 < lowered.cost_analysis()["flops"] / limit.operations(workload) < 1.03


def test_operations_of_a_step_small_enough_to_count_by_hand():
    # One pass of the encoder or of the decoder is 784 * 2 + 2 * 2 + 2 * 8 multiply-adds, one of
    # the discriminator 8 * 2 + 2 * 2 + 2; the first layer has no gradient of its inputs.
    network, critic, pixels, codes = 784 * 2 + 4 + 16, 16 + 4 + 2, 784 * 2, 8 * 2
    reconstruction = 3 * 2 * network - pixels
    regularization = 3 * network - pixels + 2 * (3 * critic - codes) + 2 * critic
    expected = 2 * (reconstruction + regularization)
    assert limit.operations(Workload("E1", 1, width=2)) == expected
    assert limit.operations(Workload("E1", 7, width=2)) == 7 * expected


@pytest.mark.parametrize("workload", [E1, E11], ids=["E1", "E11"])
def test_parameters_are_those_of_the_state(workload):
    params = jax.eval_shape(built(workload).init, jax.random.key(0)).params

    def size(name):
        return sum(leaf.size for leaf in jax.tree.leaves(params[name]))

    expected = {
        "autoencoder": size("encoder") + size("decoder"),
        "discriminator": size("discriminator"),
        "generator": size("encoder"),
        "classifier": size("encoder"),
    }
    found = limit.parameters(workload)
    assert found == {name: expected[name] for name in found}
    assert ("classifier" in found) == (workload is E11)


def test_bytes_of_adam_and_of_sgd_with_momentum():
    counts = limit.parameters(E1)
    # Parameter, gradient and parameter again; two moments of the autoencoder, read and written;
    # the others' first moment forgets everything.
    words = 7 * counts["autoencoder"] + 5 * counts["discriminator"] + 5 * counts["generator"]
    assert limit.optimizer_bytes(E1) == 4 * words
    assert limit.optimizer_bytes(E11) == 4 * 5 * sum(limit.parameters(E11).values())


@pytest.mark.parametrize("kind", ["forward", "weights", "inputs"])
def test_measured_products_have_the_shape_they_are_counted_with(kind):
    product = limit.Product(kind, 3, 4, 5)
    first, second = limit._operands(product)
    first = first.T if kind == "weights" else first
    second = second.T if kind == "inputs" else second
    assert np.matmul(first, second).shape == (3, 5)
    assert product.operations == 2 * 3 * 4 * 5
    limit._by_xla(product)(2)
    limit._by_numpy(product)(2)


def test_the_limit_of_a_small_step_is_measured(monkeypatch):
    monkeypatch.setattr(limit, "_SECONDS_PER_MEASUREMENT", 1e-5)
    workload = Workload("E1", 2, steps=3, width=3, threads=2)
    done = limit.contender(workload)()
    assert done.images == 6
    assert done.seconds is not None
    milliseconds = sum(value for name, value in done.readings.items() if name.startswith("ms"))
    assert done.seconds == pytest.approx(3 * milliseconds / 1e3)


def test_operations_that_are_repeated_in_one_call_are_timed_one_by_one(monkeypatch):
    monkeypatch.setattr(limit, "_SECONDS_PER_MEASUREMENT", 1e-3)

    def calls(count):
        done = 0
        while done < count:
            time.sleep(2e-3)
            done += 64
        return done

    assert 2e-3 / 64 <= limit._seconds(calls) < 1e-3


@pytest.mark.parametrize("repeats", [1, 64])
def test_an_operation_says_how_often_it_was_done(monkeypatch, repeats):
    monkeypatch.setattr(limit.jax, "default_backend", lambda: "cpu" if repeats == 1 else "gpu")
    assert limit._xla_addition(3)(65) == (65 if repeats == 1 else 128)
