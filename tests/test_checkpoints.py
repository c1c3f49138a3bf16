"""Checkpoints come back bit for bit, and damage of any kind costs one step, never the run."""

import asyncio
import contextlib
import gc
import hashlib
import logging
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aae_jax import checkpoints
from aae_jax.checkpoints import CheckpointError

# Orbax drops its other reads when one fails, and they complain when collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
REPOSITORY = pathlib.Path(checkpoints.__file__).parents[1]


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    batch_stats: Any
    opt_states: Any
    averaged_params: Any
    key: Any
    oddities: Any


def mesh_of(devices: list[jax.Device]) -> jax.sharding.Mesh:
    axis_types = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=axis_types)


def replicated(devices: list[jax.Device] | None = None) -> NamedSharding:
    return NamedSharding(mesh_of(devices or jax.devices()), P())


def make_state(seed: int, width: int = 96) -> State:
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "encoder": {
            "kernel": jax.random.normal(keys[0], (width, 64)),
            "bias": jnp.arange(7.0),
        },
        "decoder": {"kernel": jax.random.normal(keys[1], (64, 3))},
    }
    optimizers = {
        "autoencoder": optax.chain(optax.clip(1.0), optax.adam(1e-3)),
        "generator": optax.sgd(0.1, momentum=0.9),
        "classifier": optax.sgd(0.1),
    }
    state = State(
        step=jnp.int32(seed),
        params=params,
        batch_stats={},
        opt_states={name: each.init(params) for name, each in optimizers.items()},
        averaged_params=None,
        key=jax.random.key(seed),
        oddities={
            "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
            "half": jax.random.normal(keys[2], (5,), jnp.bfloat16),
            "not_numbers": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-40]),
            "flags": jnp.array([True, False]),
            "empty": [(), None, {}, {"deeper": ()}],
        },
    )
    return jax.device_put(state, replicated())


def abstract(state: Any, sharding: Any = None) -> Any:
    sharding = sharding or replicated()
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state
    )


def raw(leaf: Any) -> tuple[str, tuple[int, ...], bytes]:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        implementation = str(jax.random.key_impl(leaf))
        return implementation, leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def assert_same(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert raw(one) == raw(other)


def write(directory: pathlib.Path, seeds: dict[int, int], keep: int = 3) -> None:
    manager = checkpoints.open_checkpoints(directory, keep)
    for step, seed in seeds.items():
        checkpoints.save(manager, step, make_state(seed), {"seed": seed})
    checkpoints.close(manager)


@contextlib.contextmanager
def opened(directory: pathlib.Path, **arguments: Any) -> Iterator[Any]:
    manager = checkpoints.open_checkpoints(directory, **arguments)
    try:
        yield manager
    finally:
        checkpoints.close(manager)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("template") / "checkpoints"
    write(directory, {1: 1, 2: 2})
    return directory


@pytest.fixture
def directory(template: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of its own with steps 1 and 2, whose states have seeds 1 and 2."""
    return pathlib.Path(shutil.copytree(template, tmp_path / "checkpoints"))


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What this package logs at the level of a warning or above."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.pathname == checkpoints.__file__:
                lines.append(record.getMessage())

    collector = Collector(logging.WARNING)
    logging.getLogger("absl").addHandler(collector)
    yield lines
    logging.getLogger("absl").removeHandler(collector)


# Round trips.


def test_round_trip_is_bit_for_bit(directory: pathlib.Path, warnings: list[str]) -> None:
    with opened(directory) as manager:
        restored = checkpoints.restore(manager, abstract(make_state(0)))
        assert restored is not None
        assert restored.step == 2
        assert restored.metadata == {"seed": 2}
        assert_same(restored.state, make_state(2))
        assert_same(
            checkpoints.restore_step(manager, 1, abstract(make_state(0))).state, make_state(1)
        )
        with pytest.raises(CheckpointError, match="step 3"):
            checkpoints.restore_step(manager, 3, abstract(make_state(0)))
    assert warnings == []


def test_nothing_to_restore(tmp_path: pathlib.Path) -> None:
    with opened(tmp_path / "new" / "folder") as manager:
        assert checkpoints.restore(manager, abstract(make_state(0))) is None
        assert (tmp_path / "new" / "folder").is_dir()
    with opened(tmp_path / "absent", read_only=True) as manager:
        assert checkpoints.restore(manager, abstract(make_state(0))) is None
    assert not (tmp_path / "absent").exists()


def test_metadata_comes_back(tmp_path: pathlib.Path) -> None:
    metadata = {"config": {"seed": 3, "lr": 0.1, "name": "é"}, "curve": [1.5, float("inf")]}
    state = {"a": jnp.ones(3)}
    with opened(tmp_path) as manager:
        checkpoints.save(manager, 0, state, {**metadata, "pair": (1, 2)})
        restored = checkpoints.restore(manager, state)
        with pytest.raises(TypeError):
            checkpoints.save(manager, 1, state, {"array": np.ones(3)})
    assert restored is not None
    assert restored.metadata == {**metadata, "pair": [1, 2]}


def test_keeps_the_newest(tmp_path: pathlib.Path) -> None:
    with opened(tmp_path, keep=2) as manager:
        for step in (10, 20, 30, 40):
            checkpoints.save(manager, step, {"a": jnp.full(3, step)})
        checkpoints.wait(manager)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["30", "40"]
    with pytest.raises(ValueError, match="keep"):
        checkpoints.open_checkpoints(tmp_path, keep=0)


def test_saved_steps_stay_as_they_are(directory: pathlib.Path) -> None:
    with opened(directory) as manager:
        checkpoints.save(manager, 2, make_state(7))
        with pytest.raises(CheckpointError, match="step 0 was not saved"):
            checkpoints.save(manager, 0, make_state(7))
        assert_same(
            checkpoints.restore_step(manager, 2, abstract(make_state(0))).state, make_state(2)
        )
    with opened(directory, read_only=True) as manager, pytest.raises(CheckpointError, match="read"):
        checkpoints.save(manager, 3, make_state(7))
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("num_devices", [1, 4])
def test_the_state_may_be_donated_at_once(tmp_path: pathlib.Path, num_devices: int) -> None:
    @jax.jit
    def init() -> dict[str, jax.Array]:
        return {name: jnp.zeros((256, 1024)) for name in "abcd"}

    train = jax.jit(lambda state: jax.tree.map(lambda x: x + 1.0, state), donate_argnums=0)
    sharding = replicated(jax.devices()[:num_devices])
    state = jax.device_put(init(), sharding)
    with opened(tmp_path, keep=4) as manager:
        for step in range(4):
            checkpoints.save(manager, step, state)
            state = train(train(state))
        for leaf in state.values():
            leaf.delete()
        for step in range(4):
            restored = checkpoints.restore_step(manager, step, abstract(init(), sharding))
            for leaf in restored.state.values():
                np.testing.assert_array_equal(leaf, 2.0 * step)


@pytest.mark.parametrize("devices", [[0], [2, 3], [3, 2, 1, 0]])
def test_restores_onto_other_devices(directory: pathlib.Path, devices: list[int]) -> None:
    sharding = replicated([jax.devices()[index] for index in devices])
    with opened(directory) as manager:
        restored = checkpoints.restore(manager, abstract(make_state(0), sharding))
    assert restored is not None
    assert_same(restored.state, make_state(2))
    for leaf in jax.tree.leaves(restored.state):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_sharded_leaves(tmp_path: pathlib.Path) -> None:
    values = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    split = NamedSharding(mesh_of(jax.devices()), P("data"))
    with opened(tmp_path) as manager:
        checkpoints.save(manager, 0, {"a": jax.device_put(values, split)})
        for sharding in (split, replicated(jax.devices()[:2])):
            restored = checkpoints.restore(manager, abstract({"a": values}, sharding))
            assert restored is not None
            assert restored.state["a"].sharding == sharding
            np.testing.assert_array_equal(restored.state["a"], values)
        # No sharding asked for: one device, whatever wrote it.
        restored = checkpoints.restore(manager, jax.eval_shape(lambda: {"a": values}))
        assert restored is not None
        assert restored.state["a"].sharding.device_set == {jax.devices()[0]}


# Damage.


def largest_data_file(step: pathlib.Path) -> pathlib.Path:
    files = [path for path in step.glob("state/**/d/*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip(path: pathlib.Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def halve(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_middle(path: pathlib.Path) -> None:
    flip(path, path.stat().st_size // 2)


def flip_after(path: pathlib.Path, mark: bytes) -> None:
    """Turn a digit of the record into another digit: still JSON, still plausible."""
    position = path.read_bytes().index(mark) + len(mark)
    assert path.read_bytes()[position : position + 1].isdigit()
    flip(path, position)


def empty(path: pathlib.Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def replace_record(path: pathlib.Path) -> None:
    (path / "record" / "metadata").write_text("[]")


def replace_by_garbage(path: pathlib.Path) -> None:
    empty(path)
    (path / "garbage").write_bytes(b"\0" * 100)


DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
    "data deleted": lambda step: largest_data_file(step).unlink(),
    "data emptied": lambda step: os.truncate(largest_data_file(step), 0),
    "data truncated": lambda step: halve(largest_data_file(step)),
    "data flipped": lambda step: flip_middle(largest_data_file(step)),
    "all data deleted": lambda step: shutil.rmtree(step / "state" / "ocdbt.process_0"),
    "index deleted": lambda step: shutil.rmtree(step / "state" / "d"),
    "manifest deleted": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "manifest truncated": lambda step: halve(step / "state" / "manifest.ocdbt"),
    "manifest flipped": lambda step: flip_middle(step / "state" / "manifest.ocdbt"),
    "tree truncated": lambda step: halve(step / "state" / "_METADATA"),
    "state deleted": lambda step: shutil.rmtree(step / "state"),
    "record deleted": lambda step: shutil.rmtree(step / "record"),
    "record file deleted": lambda step: (step / "record" / "metadata").unlink(),
    "record emptied": lambda step: os.truncate(step / "record" / "metadata", 0),
    "record truncated": lambda step: halve(step / "record" / "metadata"),
    "recorded shape altered": lambda step: flip_after(
        step / "record" / "metadata", b'encoder/kernel": "float32['
    ),
    "recorded metadata altered": lambda step: flip_after(step / "record" / "metadata", b'"seed": '),
    "record of another kind": replace_record,
    "step emptied": empty,
    "step full of garbage": replace_by_garbage,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_costs_one_step(directory: pathlib.Path, warnings: list[str], damage: str) -> None:
    DAMAGES[damage](directory / "2")
    with opened(directory) as manager:
        restored = checkpoints.restore(manager, abstract(make_state(0)))
        assert restored is not None
        assert (restored.step, restored.metadata) == (1, {"seed": 1})
        assert_same(restored.state, make_state(1))
        (warning,) = warnings
        assert re.match(r"checkpoint of step 2 in \S+ is damaged: \S+", warning)
        assert "\n" not in warning and len(warning) < 500
        assert list(manager.all_steps()) == [1]
    assert (directory / "damaged" / "2").is_dir()


def test_a_fault_in_any_file_is_harmless(tmp_path: pathlib.Path) -> None:
    """Whichever file it hits: the newest state bit for bit, or the one before."""
    faults = {
        "delete": pathlib.Path.unlink,
        "halve": halve,
        "flip": flip_middle,
    }
    wanted = {seed: {"a": jax.random.normal(jax.random.key(seed), (999,))} for seed in (1, 2)}
    original = tmp_path / "original"
    with opened(original) as manager:
        for step, state in wanted.items():
            checkpoints.save(manager, step, state)
    files = sorted(path.relative_to(original) for path in original.glob("2/**/*") if path.is_file())
    found: dict[str, set[int]] = {}
    for name, spoil in faults.items():
        for file in files:
            copy = pathlib.Path(shutil.copytree(original, tmp_path / "copy"))
            spoil(copy / file)
            with opened(copy, read_only=True) as manager:
                restored = checkpoints.restore(manager, wanted[1])
            assert restored is not None
            assert_same(restored.state, wanted[restored.step])
            found.setdefault(name, set()).add(restored.step)
            shutil.rmtree(copy)
    assert found == {name: {1, 2} for name in faults}


def test_flipped_bits_are_named(directory: pathlib.Path, warnings: list[str]) -> None:
    """Plain Orbax restores this file without complaint; the digest of the leaf is what differs."""
    flip_middle(largest_data_file(directory / "2"))
    with opened(directory, read_only=True) as manager:
        checkpoints.restore(manager, abstract(make_state(0)))
    assert "the values of params/encoder/kernel are not those that were saved" in warnings[-1]


def test_strangers_in_the_folder_are_left_alone(
    directory: pathlib.Path, warnings: list[str]
) -> None:
    (directory / "notes").mkdir()
    (directory / "9.txt").write_text("9")
    with opened(directory) as manager:
        restored = checkpoints.restore(manager, abstract(make_state(0)))
        assert restored is not None and restored.step == 2
    assert warnings == []
    # An empty folder with a step's name is a damaged step.
    (directory / "9").mkdir()
    with opened(directory) as manager:
        restored = checkpoints.restore(manager, abstract(make_state(0)))
        assert restored is not None and restored.step == 2
    assert len(warnings) == 1 and "step 9" in warnings[0]
    assert (directory / "notes").exists() and (directory / "9.txt").exists()


def test_all_damaged(directory: pathlib.Path, warnings: list[str]) -> None:
    halve(largest_data_file(directory / "1"))
    flip_middle(largest_data_file(directory / "2"))
    before = sorted(directory.rglob("*"))
    with opened(directory) as manager:
        with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .* 2, 1") as caught:
            checkpoints.restore(manager, abstract(make_state(0)))
        assert str(directory) in str(caught.value)
        with pytest.raises(checkpoints.DamagedCheckpointError, match="step 1"):
            checkpoints.restore_step(manager, 1, abstract(make_state(0)))
    assert [("step 2" in line, "step 1" in line) for line in warnings] == [
        (True, False),
        (False, True),
    ]
    assert sorted(directory.rglob("*")) == before


def test_training_goes_on_after_damage(directory: pathlib.Path) -> None:
    for attempt, seed in enumerate((12, 22)):
        flip_middle(largest_data_file(directory / "2"))
        with opened(directory) as manager:
            restored = checkpoints.restore(manager, abstract(make_state(0)))
            assert restored is not None and restored.step == 1
            checkpoints.save(manager, 2, make_state(seed), {"seed": seed})
            restored = checkpoints.restore(manager, abstract(make_state(0)))
            assert restored is not None and restored.step == 2
            assert_same(restored.state, make_state(seed))
        with opened(directory) as manager:
            restored = checkpoints.restore(manager, abstract(make_state(0)))
            assert restored is not None and restored.metadata == {"seed": seed}
        assert len(list((directory / "damaged").iterdir())) == attempt + 1
    assert sorted(path.name for path in (directory / "damaged").iterdir()) == ["2", "2-1"]


def test_a_damaged_step_that_cannot_be_moved(directory: pathlib.Path) -> None:
    flip_middle(largest_data_file(directory / "2"))
    (directory / "damaged").write_text("in the way")
    with opened(directory) as manager, pytest.raises(CheckpointError, match="cannot move damaged"):
        checkpoints.restore(manager, abstract(make_state(0)))


def test_reading_only_moves_nothing(directory: pathlib.Path, warnings: list[str]) -> None:
    flip_middle(largest_data_file(directory / "2"))
    (directory / "3.orbax-checkpoint-tmp").mkdir()
    before = sorted(directory.rglob("*"))
    with opened(directory, read_only=True) as manager:
        restored = checkpoints.restore(manager, abstract(make_state(0)))
        assert restored is not None and restored.step == 1
    assert sorted(directory.rglob("*")) == before


def test_a_reader_sees_what_is_saved_meanwhile(tmp_path: pathlib.Path) -> None:
    state = {"a": jnp.ones(3)}
    with opened(tmp_path) as writer, opened(tmp_path, read_only=True) as reader:
        assert checkpoints.restore(reader, state) is None
        for step in (1, 2):
            checkpoints.save(writer, step, state)
            checkpoints.wait(writer)
            restored = checkpoints.restore(reader, state)
            assert restored is not None and restored.step == step


# Other models.


def edit(path: str, value: Any) -> Any:
    """The state with one node, named by its path, replaced (or added)."""
    state = flax.serialization.to_state_dict(make_state(0))
    node = state
    *parents, last = path.split("/")
    for name in parents:
        node = node[name]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return State(**{**vars(make_state(0)), "params": state["params"]})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            edit("params/encoder/kernel", jnp.zeros((96, 65))),
            "params/encoder/kernel is float32[96,64] there and float32[96,65] here",
        ),
        (
            edit("params/encoder/kernel", jnp.zeros((96, 64), jnp.bfloat16)),
            "params/encoder/kernel is float32[96,64] there and bfloat16[96,64] here",
        ),
        (
            edit("params/encoder/kernel_2", jnp.zeros(2)),
            "params/encoder/kernel_2 is nothing there and float32[2] here",
        ),
        (
            edit("params/decoder/kernel", None),
            "params/decoder/kernel is float32[64,3] there and nothing here",
        ),
        (
            make_state(0).replace(batch_stats={"mean": {}}),
            "batch_stats/mean is nothing there and empty here",
        ),
        (make_state(0).replace(key=jax.random.key(0, impl="rbg")), "key is key<fry>[] there"),
    ],
)
def test_another_model_is_refused(
    directory: pathlib.Path, warnings: list[str], changed: Any, words: str
) -> None:
    with opened(directory) as manager, pytest.raises(CheckpointError) as caught:
        checkpoints.restore(manager, abstract(changed))
    assert words in str(caught.value) and "step 2" in str(caught.value)
    assert not isinstance(caught.value, checkpoints.DamagedCheckpointError)
    assert warnings == []
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]


def test_subtrees(directory: pathlib.Path, warnings: list[str]) -> None:
    state = make_state(2)
    sharding = replicated(jax.devices()[1:3])
    wanted = {"params": state.params, "batch_stats": {}}
    restored = checkpoints.restore_subtrees(directory, abstract(wanted, sharding))
    assert (restored.step, restored.metadata) == (2, {"seed": 2})
    assert_same(restored.state, wanted)
    for leaf in jax.tree.leaves(restored.state):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    restored = checkpoints.restore_subtrees(directory, abstract({"key": state.key}))
    assert_same(restored.state, {"key": state.key})
    part = {"params/decoder/kernel": state.params["decoder"]["kernel"], "key": state.key}
    assert_same(checkpoints.restore_subtrees(directory, abstract(part)).state, part)
    assert warnings == []


def test_subtrees_of_another_model(directory: pathlib.Path, tmp_path: pathlib.Path) -> None:
    params = edit("params/decoder/kernel", jnp.zeros((64, 4))).params
    with pytest.raises(CheckpointError, match=r"params/decoder/kernel is float32\[64,3\] there"):
        checkpoints.restore_subtrees(directory, abstract({"params": params}))
    with pytest.raises(CheckpointError, match="weights/w is nothing there"):
        checkpoints.restore_subtrees(directory, abstract({"weights": {"w": jnp.zeros(2)}}))
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoints.restore_subtrees(tmp_path / "absent", abstract({"params": params}))
    assert not (tmp_path / "absent").exists()


def test_subtrees_walk_back_over_damage(directory: pathlib.Path, warnings: list[str]) -> None:
    flip_middle(largest_data_file(directory / "2"))
    before = sorted(directory.rglob("*"))
    wanted = {"params": make_state(1).params}
    restored = checkpoints.restore_subtrees(directory, abstract(wanted))
    assert restored.step == 1
    assert_same(restored.state, wanted)
    assert any("step 2" in line and "params/encoder/kernel" in line for line in warnings)
    assert sorted(directory.rglob("*")) == before
    flip_middle(largest_data_file(directory / "1"))
    with pytest.raises(CheckpointError, match="none of the 2"):
        checkpoints.restore_subtrees(directory, abstract(wanted))


# Failing saves.


def noise(seed: int) -> dict[str, np.ndarray]:
    """Half a megabyte that does not compress."""
    content = np.random.default_rng(seed).integers(0, 256, 1 << 19, np.uint8)
    return {"a": jnp.asarray(content)}


@contextlib.contextmanager
def limited_file_size() -> Iterator[None]:
    """No file of this process may grow beyond 256 KiB: a real failure to write, root or not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def full(disk: pathlib.Path) -> Iterator[None]:
    """Leave 256 KiB free on a small disk."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(b"\1" * (free - (1 << 18)))
    yield
    (disk / "filler").unlink()


def fail_and_recover(
    directory: pathlib.Path, blocked: contextlib.AbstractContextManager[None], reason: str
) -> None:
    """Steps 1 and 2 land, 3 and 4 fail while blocked, 4 lands afterwards."""
    with opened(directory, keep=2) as manager:
        checkpoints.save(manager, 1, noise(1))
        checkpoints.save(manager, 2, noise(2))
        checkpoints.wait(manager)
        with blocked:
            checkpoints.save(manager, 3, noise(3))
            with pytest.raises(CheckpointError, match=reason) as at_the_next_call:
                checkpoints.save(manager, 3, noise(3))
            checkpoints.save(manager, 4, noise(4))
            with pytest.raises(CheckpointError, match=reason) as at_wait:
                checkpoints.wait(manager)
            for caught in (at_the_next_call, at_wait):
                assert str(directory) in str(caught.value)
                assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
            assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]
        assert list(manager.all_steps()) == [1, 2]
        restored = checkpoints.restore(manager, noise(0))
        assert restored is not None and restored.step == 2
        assert_same(restored.state, noise(2))
        checkpoints.save(manager, 4, noise(4))
    with opened(directory) as manager:
        assert list(manager.all_steps()) == [2, 4]
        restored = checkpoints.restore(manager, noise(0))
    assert restored is not None
    assert_same(restored.state, noise(4))


def test_a_write_that_fails(tmp_path: pathlib.Path) -> None:
    fail_and_recover(tmp_path / "checkpoints", limited_file_size(), "File too large")


def test_a_full_disk(tmp_path: pathlib.Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a small disk; the limit on file sizes stands in for it")
    try:
        fail_and_recover(disk / "checkpoints", full(disk), "No space left on device")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_folder_disappears(tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "checkpoints"
    manager = checkpoints.open_checkpoints(directory)
    directory.rmdir()
    directory.write_text("in the way")
    # At once: made in the background, the missing directory would hold up the end of the program.
    with pytest.raises(CheckpointError, match=re.escape(str(directory))):
        checkpoints.save(manager, 1, noise(1))
    checkpoints.close(manager)
    with pytest.raises(CheckpointError, match=re.escape(str(directory))):
        checkpoints.open_checkpoints(directory)


def test_leaves_of_size_zero_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    with opened(tmp_path) as manager, pytest.raises(CheckpointError, match="no_rows"):
        checkpoints.save(manager, 1, {"params": {"no_rows": jnp.zeros((0, 4)), "w": jnp.ones(2)}})
    assert list(tmp_path.iterdir()) == []


def test_close_reports_a_failed_save(tmp_path: pathlib.Path) -> None:
    manager = checkpoints.open_checkpoints(tmp_path)
    with limited_file_size():
        checkpoints.save(manager, 1, noise(1))
        with pytest.raises(CheckpointError, match="File too large"):
            checkpoints.close(manager)
    assert list(tmp_path.iterdir()) == []


def test_half_written_steps_are_cleaned_up(directory: pathlib.Path, warnings: list[str]) -> None:
    leftover = directory / "3.orbax-checkpoint-tmp"
    shutil.copytree(directory / "2", leftover)
    halve(largest_data_file(leftover))
    with opened(directory) as manager:
        restored = checkpoints.restore(manager, abstract(make_state(0)))
        assert restored is not None and restored.step == 2
        checkpoints.save(manager, 3, make_state(3))
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2", "3"]
    assert warnings == []


def test_killed_while_saving(tmp_path: pathlib.Path) -> None:
    program = """
import sys, jax, jax.numpy as jnp
from aae_jax import checkpoints
manager = checkpoints.open_checkpoints(sys.argv[1], keep=2)
state = jax.random.bits(jax.random.key(0), (1 << 20,))
for step in range(1000):
    checkpoints.save(manager, step, {"step": jnp.int32(step), "bits": state + jnp.uint32(step)})
"""
    directory = tmp_path / "checkpoints"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(directory)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list(directory.glob("2.orbax-checkpoint-tmp*/state*/**/d/*")):
        assert process.poll() is None and time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()

    bits = jax.random.bits(jax.random.key(0), (1 << 20,))
    shapes = jax.eval_shape(lambda: {"step": jnp.int32(0), "bits": bits})
    with opened(directory, keep=2) as manager:
        restored = checkpoints.restore(manager, shapes)
        assert restored is not None and restored.step >= 1
        assert int(restored.state["step"]) == restored.step
        np.testing.assert_array_equal(restored.state["bits"], bits + jnp.uint32(restored.step))
        checkpoints.save(manager, restored.step + 1, restored.state)
    assert sorted(int(path.name) for path in directory.iterdir()) == [
        restored.step,
        restored.step + 1,
    ]


# The digest.


def test_digest_is_a_sha256_of_type_shape_and_bytes() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    key = jax.random.key(5)
    trace = optax.TraceState(trace=[jnp.int32(-2)])
    found = checkpoints.digest({"kernel": jnp.asarray(kernel), "key": key, "opt": (trace, None)})
    assert found == {
        "kernel": hashlib.sha256(b"float32[3,4]" + kernel.tobytes()).hexdigest(),
        "key": hashlib.sha256(b"key<fry>[]" + np.array([0, 5], np.uint32).tobytes()).hexdigest(),
        "opt/0/trace/0": hashlib.sha256(b"int32[]" + b"\xfe\xff\xff\xff").hexdigest(),
    }


def test_digest_ignores_placement() -> None:
    state = make_state(1)
    split = NamedSharding(mesh_of(jax.devices()), P("data"))
    here = jax.device_put(state, jax.devices()[3])
    assert checkpoints.digest(here) == checkpoints.digest(state)
    values = jnp.arange(8.0)
    assert checkpoints.digest([jax.device_put(values, split)]) == checkpoints.digest([values])


@given(
    leaf=st.integers(0, 2),
    bit=st.integers(0, 8 * 24 - 1),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=30)
def test_digest_sees_every_bit(leaf: int, bit: int, seed: int) -> None:
    leaves = [np.random.default_rng(seed).bytes(24) for _ in range(3)]
    altered = bytearray(leaves[leaf])
    altered[bit // 8] ^= 1 << bit % 8

    def tree(contents: list[bytes]) -> dict[str, np.ndarray]:
        types = (np.float32, np.int64, np.uint8)
        return {
            str(index): np.frombuffer(content, dtype)
            for index, (content, dtype) in enumerate(zip(contents, types, strict=True))
        }

    before = checkpoints.digest(tree(leaves))
    after = checkpoints.digest(tree([*leaves[:leaf], bytes(altered), *leaves[leaf + 1 :]]))
    assert [name for name in before if before[name] != after[name]] == [str(leaf)]


def test_digest_tells_equal_bytes_apart() -> None:
    zeros = np.zeros(12, np.float32)
    variants = [zeros, zeros.reshape(3, 4), zeros.reshape(4, 3), zeros.view(np.int32)]
    assert len({checkpoints.digest({"a": each})["a"] for each in variants}) == len(variants)


class FailingAtTheEnd:
    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __del__(self) -> None:
        raise RuntimeError(self.reason)


def abandon(file: str) -> None:
    """Drop a coroutine of that file while it waits, which it does not take lightly."""
    source = """async def read(never):
    try:
        await never
    except GeneratorExit:
        raise ValueError from None
"""
    names: dict[str, Any] = {}
    exec(compile(source, file, "exec"), names)
    loop = asyncio.new_event_loop()
    names["read"](loop.create_future()).send(None)
    loop.close()


def test_quiet_orbax(
    directory: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: unraisable.append(each.object))
    for name in ("absl", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    caplog.set_level(logging.INFO)
    checkpoints.quiet_orbax()

    halve(largest_data_file(directory / "2"))
    (directory / "1" / "state" / "manifest.ocdbt").unlink()
    with opened(directory) as manager, limited_file_size():
        with pytest.raises(CheckpointError, match="none of the 2"):
            checkpoints.restore(manager, abstract(make_state(0)))
        checkpoints.save(manager, 3, noise(3))
        with pytest.raises(CheckpointError, match="File too large"):
            checkpoints.wait(manager)
    gc.collect()
    assert [pathlib.Path(record.pathname).name for record in caplog.records] == [
        "checkpoints.py",
        "checkpoints.py",
    ]
    assert unraisable == []

    # Whether Orbax leaves such remains is a matter of timing: here they are for certain.
    abandon("/site/orbax/checkpoint/reading.py")
    FailingAtTheEnd("Event loop is closed")
    logging.getLogger("asyncio").error("exception of %s", "/site/orbax/checkpoint/reading.py")
    logging.getLogger("asyncio").error("exception of %s", "TensorStore({'driver': 'ocdbt'})")
    assert unraisable == [] and len(caplog.records) == 2

    abandon("/site/other/reading.py")
    FailingAtTheEnd("another reason")
    logging.getLogger("asyncio").error("exception of %s", "/site/other/reading.py")
    assert len(unraisable) == 2 and len(caplog.records) == 3
