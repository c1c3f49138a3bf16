"""One, two and four devices, mapped either way, do what one device does with the whole batch.

After one step from rest, the momentum of SGD is the gradient that its phase descended: so the
gradients of all phases are read from the optimizers' states, unspoilt by the step's rounding.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType

from aae_jax import divergences, parallel, priors
from aae_jax.augmentation import affine
from aae_jax.phases import Match, information, kl
from aae_jax.randomness import example_keys, named
from aae_jax.state import ALONE, TrainState
from aae_jax.step import Examples, Rows, augmented, chunk, train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

LABELS, BATCH, LABELLED, STEPS = 4, 16, 8, 50
MAPPED = [(mode, devices) for mode in parallel.MODES for devices in (1, 2, 4)]


def mesh_of(devices):
    return parallel.device_mesh(jax.devices()[:devices])


def normalize(image):
    return image.astype(jnp.float32) / 255


def some_examples(n=64):
    rng = np.random.default_rng(0)
    image = (255 * rng.uniform(size=(n, 8, 8, 1)) ** 3).astype(np.uint8)  # dark, to be learned
    label = np.where(np.arange(n) < n // 2, np.arange(n) % LABELS, -1)
    return Examples(image, label.astype(np.int32))


def some_rows(steps, labelled):
    """Rows of all examples, and of the labelled first half."""
    rng = np.random.default_rng(1)
    image = rng.integers(64, size=(steps, BATCH)).astype(np.int32)
    known = rng.integers(32, size=(steps, LABELLED)).astype(np.int32)
    return Rows(image, known if labelled else None)


EXAMPLES = some_examples()


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """What has been compiled since the test began."""
    compiled: list[str] = []

    def listen(event: str, seconds: float, **details: object) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(str(details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listen)


# Experiments


def paper(small_experiment, collective):
    """The paper's start, noise and rates: its curve is the same on any devices."""
    match = Match("style", priors.gaussian(3, 5.0), divergences.gan())
    small = small_experiment((match,), input_noise=0.3, collective=collective)
    return functools.partial(small.state, std=0.01), (small.reconstruction, small.regularization)


def normed(small_experiment, collective):
    """Batch norm, labels seen by the critic, a gradient penalty, three phases."""
    corners = priors.gaussian_mixture(2 * np.eye(4, 3), [0.1 * np.eye(3)] * 4)
    small = small_experiment(
        (
            Match("style", corners, divergences.wasserstein(), label_informed=True),
            Match("label", priors.categorical(LABELS), divergences.hinge(), noise=0.1),
        ),
        labels=LABELS,
        layout="style_and_inferred_label",
        batch_norm=True,
        collective=collective,
    )
    return small.state, (small.reconstruction, small.regularization, small.classification)


def spectral(small_experiment, collective):
    """A discrepancy of the whole batch, spectral norm, a random posterior, cluster heads."""
    prior = priors.gaussian(3)
    small = small_experiment(
        (
            Match("style", prior, divergences.mmd()),
            Match("label", priors.categorical(LABELS), divergences.least_squares()),
        ),
        labels=LABELS,
        layout="cluster_heads",
        cluster_heads=lambda key: jnp.zeros((LABELS, 3)),
        posterior="gaussian",
        penalties={"kl": kl(prior)},
        spectral_norm=True,
        collective=collective,
    )
    return small.state, (small.reconstruction, small.regularization, small.classification)


def summed(small_experiment, collective):
    """Sums of divergences of an example and of the whole batch, labels seen, smoothness and what is
    descended with it."""
    corners = priors.gaussian_mixture(2 * np.eye(4, 3), [0.1 * np.eye(3)] * 4)
    style = divergences.total(divergences.gan(), divergences.mmd())
    label = divergences.total(divergences.gan(), divergences.balance(3.0))
    small = small_experiment(
        (
            Match("style", corners, style, label_informed=True),
            Match("label", priors.categorical(LABELS), label),
        ),
        labels=LABELS,
        layout="style_and_inferred_label",
        batch_norm=True,
        collective=collective,
    )
    uneven = information(priors.categorical(LABELS, range(1, LABELS + 1)), collective=collective)
    smooth = small.smoothness(1.0, {"information": uneven})
    return small.state, (small.reconstruction, small.regularization, smooth)


def convolutional(small_experiment, collective):
    """Batch norm per channel and dropout in convolutions."""
    match = Match("style", priors.gaussian(3), divergences.gan())
    small = small_experiment((match,), channels=4, batch_norm=True, collective=collective)
    return small.state, (small.reconstruction, small.regularization)


def turned(small_experiment, collective):
    """Augmented images, labelled ones too, and smoothness about images that are changed once more.

    A phase has the form of a step, and each that is augmented by itself sees the same images.
    """
    change = affine(degrees=20.0, translate=0.1, scale=0.1, shear=10.0)
    small = small_experiment(
        (Match("style", priors.gaussian(3), divergences.gan()),),
        labels=LABELS,
        layout="style_and_inferred_label",
        collective=collective,
    )
    smooth = small.smoothness(1.0, augmentation=change)
    phases = small.reconstruction, small.regularization, small.classification, smooth
    return small.state, tuple(augmented(phase, change) for phase in phases)


class Run(NamedTuple):
    """Some steps of an experiment, each a chunk of its own."""

    gradients: dict  # of the first step, by optimizer
    batch_stats: dict  # after the first step
    metrics: dict  # [steps] each


def run(experiment, small_experiment, steps=1, mode=None, devices=1, after_first=None) -> Run:
    """The experiment mapped over devices, or not mapped at all."""
    if mode is None:
        new_state, phases = experiment(small_experiment, ALONE)
        call, state = jax.jit(chunk(train_step(phases), normalize)), new_state()
    else:
        mesh = mesh_of(devices)
        collective = parallel.collective(mesh)
        new_state, phases = experiment(small_experiment, collective)
        call = parallel.map_chunk(chunk(train_step(phases), normalize, collective), mesh, mode)
        state = jax.device_put(new_state(), parallel.replicated(mesh))
    rows, metrics = some_rows(steps, labelled=True), []
    for step in range(steps):
        labelled = None if rows.labelled is None else rows.labelled[step : step + 1]
        state, of_step = call(state, EXAMPLES, Rows(rows.image[step : step + 1], labelled))
        metrics.append(of_step)
        if step == 0:
            gradients = {name: jax.device_get(s[0].trace) for name, s in state.opt_states.items()}
            batch_stats = jax.device_get(state.batch_stats)
            if after_first is not None:
                after_first()
    curve = {name: np.concatenate([of_step[name] for of_step in metrics]) for name in metrics[0]}
    return Run(gradients, batch_stats, curve)


def assert_gradients_agree(found: Run, expected: Run):
    """To 1e-5 of the largest entry of each leaf, and to rounding where a leaf should be zero.

    Smoothness to 1e-4: the direction of its step is a small gradient, made longer.
    """
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
        assert largest > 0 or name in ("classifier", "smoothness"), name
        paths = jax.tree_util.tree_leaves_with_path(gradient)
        for (path, right), leaf in zip(paths, jax.tree.leaves(found.gradients[name]), strict=True):
            share = 1e-4 if name == "smoothness" else 1e-5
            tolerance = share * np.abs(right).max() + 1e-6 * largest
            np.testing.assert_allclose(leaf, right, rtol=0, atol=tolerance, err_msg=f"{name}{path}")


@pytest.fixture(scope="module")
def papers_run(small_experiment):
    return run(paper, small_experiment, steps=STEPS)


@pytest.mark.parametrize(("mode", "devices"), MAPPED)
def test_the_papers_run_is_the_same_on_any_devices(
    small_experiment, papers_run, compilations, mode, devices
):
    found = run(paper, small_experiment, STEPS, mode, devices, after_first=compilations.clear)
    assert not compilations  # the first call compiled everything
    assert_gradients_agree(found, papers_run)
    assert found.metrics.keys() == papers_run.metrics.keys()
    for name, curve in papers_run.metrics.items():
        # An accuracy jumps by 1 / 16 where a score crosses zero; losses are smooth.
        jump = 1.01 / BATCH if name.endswith("accuracy") else 0.0
        np.testing.assert_allclose(found.metrics[name], curve, rtol=1e-5, atol=jump, err_msg=name)
    learned = papers_run.metrics["reconstruction"]
    assert learned[-1] < learned[0]


@pytest.mark.parametrize(
    ("experiment", "mode"),
    [
        (normed, "pmap"),
        (spectral, "shard_map"),
        (summed, "shard_map"),
        (convolutional, "pmap"),
        (turned, "pmap"),
        (turned, "shard_map"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_phases_gradient_is_the_whole_batchs(small_experiment, experiment, mode):
    expected = run(experiment, small_experiment)
    found = run(experiment, small_experiment, 1, mode, devices=4)
    assert found.gradients.keys() >= {"autoencoder", "discriminator", "generator", "classifier"}
    assert_gradients_agree(found, expected)
    for name, value in expected.metrics.items():
        np.testing.assert_allclose(found.metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    pairs = zip(*map(jax.tree.leaves, (found.batch_stats, expected.batch_stats)), strict=True)
    for leaf, right in pairs:
        np.testing.assert_allclose(leaf, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("experiment", "mode"),
    [(normed, "shard_map"), (convolutional, "pmap")],
    ids=["normed", "convolutional"],
)
def test_gradients_of_bfloat16_layers_are_the_whole_batchs_up_to_its_rounding(
    small_experiment, experiment, mode
):
    small = functools.partial(small_experiment, dtype=jnp.bfloat16)
    expected = run(experiment, small)
    found = run(experiment, small, 1, mode, devices=4)
    for name, gradient in expected.gradients.items():
        right, other = (ravel_pytree(g)[0] for g in (gradient, found.gradients[name]))
        # Each device rounds the products and sums of its own share: 0.006 and less is seen. In the
        # generator's, which is small, a unit on the other side of its rectifier's edge shows: 0.2.
        share = 0.4 if name == "generator" else 0.03
        assert jnp.linalg.norm(other - right) <= share * jnp.linalg.norm(right), name
    assert {leaf.dtype for leaf in jax.tree.leaves(found.gradients)} == {np.dtype(np.float32)}
    for name, value in expected.metrics.items():
        np.testing.assert_allclose(found.metrics[name], value, rtol=0.02, atol=0.02, err_msg=name)


# What is mapped, with steps made up for it


def looking(seen):
    """A step that notes its share of the batch, and whose metric is the mean of its labels."""

    def step(state, batch):
        for name, part in (("images", batch), ("labelled", batch.labelled)):
            arrays = part.image, part.label, jax.random.key_data(part.keys)
            jax.debug.callback(
                lambda *of, name=name: seen.append((name, together(*map(np.asarray, of)))), *arrays
            )
        return state.replace(step=state.step + 1), {"label": batch.label.mean(dtype=jnp.float32)}

    return step


def together(image, label, key):
    """Each example's image, label and key as one row."""
    return np.hstack([image.reshape(len(image), -1), label[:, None], key]).astype(np.float64)


def in_order(rows):
    return rows[np.lexsort(rows.T)]


def plain_state(key):
    return TrainState(jnp.int32(0), {"w": jnp.arange(3.0)}, {}, {}, None, key)


@pytest.mark.parametrize("mode", parallel.MODES)
def test_each_device_sees_its_share_with_the_keys_of_the_whole_batch(mode):
    mesh, seen = mesh_of(4), []
    collective = parallel.collective(mesh)
    call = parallel.map_chunk(chunk(looking(seen), normalize, collective), mesh, mode)
    rows = Rows(
        np.arange(3 * BATCH, dtype=np.int32).reshape(3, BATCH),
        np.arange(3 * LABELLED, dtype=np.int32).reshape(3, LABELLED),
    )
    state = parallel.born_placed(plain_state, parallel.replicated(mesh))(jax.random.key(9))
    state, metrics = call(state, EXAMPLES, rows)
    jax.block_until_ready((state, metrics))
    jax.effects_barrier()
    np.testing.assert_allclose(metrics["label"], EXAMPLES.label[rows.image].mean(axis=1), rtol=1e-6)
    assert len(seen) == 2 * 3 * 4
    # In whatever order the devices came.
    for name, indices in (("images", rows.image), ("labelled", rows.labelled)):
        found = np.concatenate([share for stream, share in seen if stream == name])
        expected = []
        for step, row in enumerate(indices):
            of_stream = named(jax.random.key(9), name)
            keys = example_keys(of_stream, jnp.int32(step), jnp.arange(len(row)))
            image = EXAMPLES.image[row] / np.float32(255)
            data = np.asarray(jax.random.key_data(keys))
            expected.append(together(image, EXAMPLES.label[row], data))
        np.testing.assert_allclose(
            in_order(found), in_order(np.concatenate(expected)), rtol=1e-6, err_msg=name
        )


def counting(state, examples, rows):
    return state.replace(step=state.step + 1), {}


@pytest.mark.parametrize("mode", parallel.MODES)
def test_the_state_is_donated_and_comes_back_whole_on_every_device(mode):
    mesh, key = mesh_of(4), jax.random.key(0)
    state = parallel.born_placed(plain_state, parallel.replicated(mesh))(key)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_equivalent_to(parallel.replicated(mesh), leaf.ndim)
    after, _ = parallel.map_chunk(counting, mesh, mode)(state, EXAMPLES, some_rows(1, True))
    assert state.params["w"].is_deleted()
    assert after.step == 1 and after.params["w"].shape == (3,)
    copies = [np.asarray(shard.data) for shard in after.params["w"].addressable_shards]
    assert len(copies) == 4
    for copy in copies:
        np.testing.assert_array_equal(copy, np.arange(3.0))
    # The caller's key is no part of what was given away.
    assert jax.random.key_data(key).tolist() == [0, 0]


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'xmap' is unknown; known are pmap, shard_map"):
        parallel.map_chunk(counting, mesh_of(1), "xmap")


@pytest.mark.parametrize("mode", parallel.MODES)
def test_rows_that_devices_cannot_share_are_refused(mode):
    mesh = mesh_of(4)
    state = parallel.born_placed(plain_state, parallel.replicated(mesh))(jax.random.key(0))
    call = parallel.map_chunk(counting, mesh, mode)
    with pytest.raises(ValueError):
        call(state, EXAMPLES, Rows(np.zeros((2, 6), np.int32), None))


def test_a_mesh_has_all_devices_unless_told_and_shards_by_hand():
    assert parallel.device_mesh().size == len(jax.devices()) == 4
    mesh = mesh_of(2)
    assert mesh.size == 2 and mesh.axis_names == ("data",)
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_one_device_needs_no_collective():
    assert parallel.collective(mesh_of(1)) is ALONE
    assert parallel.collective(mesh_of(2)).axis_name == "data"


# Several processes: what can be said without them (tests/system/test_processes.py has two).


JOINING = {
    "JAX_COORDINATOR_ADDRESS": "host:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, False),  # a batch script, not a step of srun
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
        ({"TPU_PROCESS_ADDRESSES": "10.0.0.1:8471,10.0.0.2:8471"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        # A job of a single pod has a number too.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, False),
        # JAX's own variable, which only says where processes would meet.
        ({"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_PROCESS_ID": "0"}, False),
        (JOINING | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, False),
        ({"JAX_NUM_PROCESSES": "1"}, False),
        (JOINING, True),
        # A lone process is said to be alone, whatever else is around it.
        ({"JAX_NUM_PROCESSES": "1", "TPU_WORKER_HOSTNAMES": "host-0,host-1"}, False),
    ],
)
def test_processes_join_by_themselves_where_there_are_several(monkeypatch, environ, several):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **fields: calls.append(fields))
    assert parallel.several_announced(environ) == several
    parallel.start(parallel.Processes(), environ)
    parallel.start(parallel.Processes("no"), environ)
    assert len(calls) == several
    parallel.start(parallel.Processes("yes"), {})
    assert len(calls) == several + 1
    assert "coordinator_address" not in calls[-1]


def test_processes_join_the_coordinator_they_are_told(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **fields: calls.append(fields))
    parallel.start(parallel.Processes("auto", "host:1234", 4, 3), {})
    (fields,) = calls
    assert fields["coordinator_address"] == "host:1234"
    assert (fields["num_processes"], fields["process_id"]) == (4, 3)
    assert fields["heartbeat_timeout_seconds"] <= 30


def test_processes_join_as_the_environment_says(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **fields: calls.append(fields))
    for mode in ("auto", "yes"):
        parallel.start(parallel.Processes(mode), JOINING)
        fields = calls.pop()
        assert fields["coordinator_address"] == "host:1234"
        assert (fields["num_processes"], fields["process_id"]) == (4, 3)
        assert fields["cluster_detection_method"] == "deactivate"
    parallel.start(parallel.Processes("no"), JOINING)
    assert not calls
    parallel.start(parallel.Processes("auto", "other:1", 2, 0), JOINING)
    assert calls.pop()["coordinator_address"] == "other:1", "flags have precedence"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"JAX_PROCESS_ID": None}, "JAX_PROCESS_ID not set, but JAX_NUM_PROCESSES is"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "JAX_COORDINATOR_ADDRESS not set"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS is 'host'; allowed: HOST:"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; allowed: a whole number"),
        ({"JAX_NUM_PROCESSES": ""}, "JAX_NUM_PROCESSES is ''"),
        ({"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID is 'x'"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID is 4 and JAX_NUM_PROCESSES 4"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID is -1"),
    ],
)
def test_an_environment_that_is_wrong_is_named_in_one_line(changes, said):
    environ = {k: v for k, v in {**JOINING, **changes}.items() if v is not None}
    with pytest.raises(parallel.ProcessError, match=said) as raised:
        parallel.start(parallel.Processes(), environ)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("count", "number"), [(0, -1), (2, -1), (2, 2), (0, 0)])
def test_an_incomplete_process_is_named(count, number):
    with pytest.raises(parallel.ProcessError, match="--process_id must be") as raised:
        parallel.start(parallel.Processes("auto", "host:1234", count, number), {})
    assert "host:1234" in str(raised.value) and "\n" not in str(raised.value)


def test_a_coordinator_that_cannot_be_joined_is_one_line(monkeypatch):
    def fail(**fields):
        raise RuntimeError("no\n  such host")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(parallel.ProcessError, match=r"cannot join the run's other .*no such host"):
        parallel.start(parallel.Processes("yes"), {})


def test_a_failed_collective_is_told_apart_from_other_faults(monkeypatch):
    def chained(inner, outer):
        try:
            try:
                raise inner
            except Exception as error:
                raise outer from error
        except Exception as error:
            return error

    gone = ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
    assert parallel.lost(gone) is None, "there is no other process"
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    for error in (gone, chained(gone, RuntimeError("cannot write checkpoint"))):
        told = parallel.lost(error)
        assert "another one is gone; start all of them again" in told
        assert "Connection reset by peer" in told and "\n" not in told
    for error in (ValueError("an UNKNOWN: animal"), chained(KeyError("a"), TypeError("b"))):
        assert parallel.lost(error) is None


def test_a_single_process_agrees_with_itself():
    assert parallel.is_first()
    assert parallel.agreed(True) is True and parallel.agreed(False) is False
    done = []
    parallel.first_only(lambda: done.append(1))
    assert done == [1]
    tree = {"key": jax.random.key(0), "x": jnp.ones(2)}
    mesh = mesh_of(2)
    assert parallel.own(tree, mesh) is tree and parallel.whole(tree, mesh) is tree
    assert parallel.home(mesh, "pmap") == parallel.home(mesh, "shard_map")
