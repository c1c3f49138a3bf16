"""Orbax behind a handful of functions: save in the background, verify, walk back over damage.

A checkpoint is one step of an `orbax.checkpoint.CheckpointManager` with two items: `state`, the
pytree as Orbax stores it, and `record`, a JSON file with the layout and the SHA-256 of every leaf
and the caller's metadata. Orbax alone restores flipped bits without a word and names a truncated
step as the latest one; the record is what tells a good step from a damaged one.

What happens to a damaged step: `restore` warns, uses the step before, and moves the damaged
directory to `damaged/` beside the checkpoints, so that training can save the same step number
again. Nothing is moved while no good step is found, or through a manager opened read-only, and
nothing but the steps beyond `keep` is ever deleted: a step that was merely unreadable for a moment
can be moved back by hand.

On several processes every function that takes a manager must be called by all of them.
"""

import contextlib
import hashlib
import json
import logging as standard_logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree

DAMAGED_DIRECTORY = "damaged"
_ORBAX = f"{os.sep}orbax{os.sep}checkpoint{os.sep}"


class CheckpointError(Exception):
    """A checkpoint could not be written or used; the message is one line for the user."""


class DamagedCheckpointError(CheckpointError):
    """One step is truncated, altered or unreadable; an older one may be good."""


class Restored(NamedTuple):
    """What a checkpoint held: step, the state (or subtrees) asked for, the metadata of `save`."""

    step: int
    state: PyTree
    metadata: dict[str, Any]


class _ReadOnlyManager(ocp.CheckpointManager):
    """Marks a manager that must leave the directory as it is."""


def open_checkpoints(
    directory: str | os.PathLike[str], keep: int = 3, read_only: bool = False
) -> ocp.CheckpointManager:
    """Open a folder of checkpoints.

    The folder is created, and what a killed save left in it is removed, unless `read_only`.

    Args:
      directory: the folder; `gs://` addresses pass through to Orbax.
      keep: how many of the newest checkpoints stay; an older one goes when a newer one has landed.
      read_only: look only, as inference or an evaluation beside a running training must.

    Raises:
      ValueError: `keep` is less than one.
      CheckpointError: the folder cannot be created or listed.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    path = os.fspath(directory)
    path = path if "://" in path else os.path.abspath(path)
    manager_type = _ReadOnlyManager if read_only else ocp.CheckpointManager
    options = ocp.CheckpointManagerOptions(
        preservation_policy=None if read_only else ocp.checkpoint_managers.LatestN(n=keep),
        save_interval_steps=0 if read_only else 1,
        create=not read_only,
        read_only=read_only,
        # Made in the background, a directory that cannot be created (no inodes, read-only disk)
        # keeps Orbax's threads, and the end of the program, waiting for five minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    if read_only:
        logging.get_absl_logger().addFilter(_is_news)
    try:
        manager = manager_type(path, options=options)
        if not read_only:
            _remove_leftovers(manager)
        return manager
    except OSError as error:
        raise CheckpointError(f"cannot open checkpoints in {path}: {_cause(error)}") from error


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: PyTree,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Save a state in the background; the state may be donated as soon as this returns.

    Before it returns the leaves are copied to the host and hashed; writing goes on afterwards. A
    step that is already there is left alone. A save that fails, a full disk for one, leaves the
    older checkpoints as they are and is reported by the next call on the manager.

    Args:
      manager: from `open_checkpoints`.
      step: the number of the checkpoint, larger than those saved before.
      state: any pytree of arrays, typed keys included, none of size zero; empty nodes are kept.
      metadata: what JSON can hold; given back by `restore`.

    Raises:
      CheckpointError: this save could not start, the one before failed, or the folder is
        read-only or already has a later step (which would make Orbax skip this one silently).
      TypeError: JSON cannot hold the metadata.
    """
    wait(manager)
    if step in manager.all_steps():
        return
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        record=ocp.args.JsonSave(_record(state, metadata or {})),
    )
    try:
        saved = manager.save(step, args=items)
    except Exception as error:
        raise _write_failure(manager, error) from error
    if not saved:
        raise CheckpointError(
            f"checkpoint of step {step} was not saved: {manager.directory} is opened read-only "
            f"or has a later step (latest: {manager.latest_step()})"
        )


def restore(manager: ocp.CheckpointManager, abstract_state: PyTree) -> Restored | None:
    """Restore the newest good checkpoint, or give None where there are none at all.

    A damaged step costs one warning line naming step and cause, and the one before is tried; see
    the top of this module for what becomes of it.

    Args:
      manager: from `open_checkpoints`.
      abstract_state: the state's structure with a `jax.ShapeDtypeStruct` (or an array) for each
        leaf; every leaf is placed by its `sharding`, whatever devices it was saved from, or on
        the first local device where it has none.

    Raises:
      CheckpointError: the newest readable checkpoint is of another model (the message names the
        first path that differs), there are checkpoints but none is usable, a damaged one cannot
        be moved, or the save before failed.
    """
    wait(manager)
    manager.reload()
    restored, damaged = _first_good(
        manager, lambda step: restore_step(manager, step, abstract_state), newest_first
    )
    if restored is not None:
        _set_aside(manager, damaged)
    return restored


def restore_step(manager: ocp.CheckpointManager, step: int, abstract_state: PyTree) -> Restored:
    """Restore one given step, as `restore` does, without walking back.

    Raises:
      DamagedCheckpointError: the step is truncated, altered or unreadable.
      CheckpointError: there is no such step, or it is of another model (the message names the
        first path that differs).
    """
    wait(manager)
    abstract_state = _placed(abstract_state)
    request = ocp.args.StandardRestore(abstract_state)
    return _restore_verified(manager, step, abstract_state, request, lambda path: True)


def newest_first(steps: list[int]) -> list[int]:
    """The order in which checkpoints are tried unless told otherwise."""
    return sorted(steps, reverse=True)


def restore_subtrees(
    directory: str | os.PathLike[str],
    abstract_subtrees: dict[str, PyTree],
    order: Callable[[list[int]], list[int]] = newest_first,
) -> Restored:
    """Restore some subtrees of the first good checkpoint of another run, and only those.

    `restore_subtrees(run / "checkpoints", {"params/encoder": ..., "key": ...}).state` is a
    dictionary with the same keys: what `init_from` starts a new run with. The folder is only read.

    Args:
      directory: the other run's folder of checkpoints.
      abstract_subtrees: for each name or path in the saved state, none of them within another, its
        structure as for `restore`.
      order: the steps that are there -> those to try, in this order.

    Raises:
      CheckpointError: there is no checkpoint, none is usable, or a subtree is of another model
        (the message names the first path that differs).
    """
    nested = _placed(unflatten_dict(abstract_subtrees, sep="/"))
    request = ocp.args.PyTreeRestore(
        nested,
        restore_args=ocp.checkpoint_utils.construct_restore_args(nested),
        partial_restore=True,
    )

    def asked(path: str) -> bool:
        return any(f"{path}/".startswith(f"{name}/") for name in abstract_subtrees)

    with open_checkpoints(directory, read_only=True) as manager:
        restored, _ = _first_good(
            manager,
            lambda step: _restore_verified(manager, step, nested, request, asked),
            order,
        )
    if restored is None:
        raise CheckpointError(f"there is no checkpoint in {manager.directory}")
    found = {path: reduce(getitem, path.split("/"), restored.state) for path in abstract_subtrees}
    return restored._replace(state=found)


def wait(manager: ocp.CheckpointManager) -> None:
    """Wait until the save in the background has landed.

    Raises:
      CheckpointError: it failed; the message names the folder and the cause. Raised once; the
        same step may then be saved again.
    """
    try:
        manager.wait_until_finished()
    except Exception as error:
        raise _write_failure(manager, error) from error


def close(manager: ocp.CheckpointManager) -> None:
    """Wait as `wait` does, then release the manager's threads, also if the last save failed.

    Raises:
      CheckpointError: the last save failed.
    """
    try:
        wait(manager)
    finally:
        manager.close()


def digest(state: PyTree) -> dict[str, str]:
    """SHA-256 of each leaf (hexadecimal) by its path, such as `params/encoder/kernel`.

    Type, shape and bytes enter; typed keys count by their key data. Equal digests mean equal
    states, bit for bit; where and how the leaves are placed does not matter.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    arrays = jax.device_get([_addressable(leaf) for _, leaf in leaves])
    return {
        _name(path): _sha256(_layout_of(leaf).encode(), _bytes_of(array))
        for (path, leaf), array in zip(leaves, arrays, strict=True)
    }


def quiet_orbax() -> None:
    """Silence Orbax: its log lines, and the tracebacks of the threads and reads that it abandons.

    For the start of a program, since it adds filters to warnings and to the loggers `absl` and
    `asyncio`, and wraps `sys.unraisablehook`, all of the whole process. Without it one failed save
    prints hundreds of lines. Failures still arrive as `CheckpointError`, and this module's warnings
    stay.
    """
    logging.get_absl_logger().addFilter(_not_from_orbax)
    standard_logging.getLogger("asyncio").addFilter(_not_from_orbax)
    # What a failed save was still to write; the only coroutines here are Orbax's.
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        coroutine = getattr(unraisable.object, "cr_code", None)
        # Said by TensorStore's threads when Orbax has left the event loop they answer to.
        unheard = str(unraisable.exc_value) == "Event loop is closed"
        if not unheard and (coroutine is None or _ORBAX not in coroutine.co_filename):
            report(unraisable)

    sys.unraisablehook = report_others


def _is_news(entry: standard_logging.LogRecord) -> bool:
    """False for Orbax's warning that a folder opened to be read only is read only."""
    return _ORBAX not in entry.pathname or "is read only" not in entry.getMessage()


def _not_from_orbax(entry: standard_logging.LogRecord) -> bool:
    """False for what Orbax logs, and for what asyncio logs about its abandoned reads."""
    if entry.name == "asyncio":
        # Some messages hold a TensorStore's specification, others only the reason in its words.
        message = entry.getMessage().lower()
        return not any(name in message for name in (_ORBAX, "ocdbt", "tensorstore"))
    return _ORBAX not in entry.pathname


# The record: what a good checkpoint must contain.


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_bare(node: Any) -> bool:
    return not jax.tree_util.treedef_children(jax.tree.structure(node))


def _layout(tree: PyTree) -> dict[str, str]:
    """Type and shape of each leaf by its path.

    Empty nodes count, and all alike, as for Orbax: None, {}, () and optax's EmptyState.
    """
    return {
        _name(path): _layout_of(node)
        for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_bare)
    }


def _layout_of(node: Any) -> str:
    if not jax.tree.leaves(node):
        return "empty"
    return f"{node.dtype}[{','.join(map(str, node.shape))}]"


def _addressable(leaf: Any) -> Any:
    """The leaf's data in a form that this process can copy to the host."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if not isinstance(leaf, Array) or leaf.is_fully_addressable:
        return leaf
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    return multihost_utils.process_allgather(leaf, tiled=True)


def _bytes_of(array: Any) -> np.ndarray:
    # Through uint8, because bfloat16 and its kin do not support the buffer protocol.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _sha256(*parts: Any) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()


def _record(state: PyTree, metadata: Mapping[str, Any]) -> dict[str, Any]:
    content = {"layout": _layout(state), "digest": digest(state), "metadata": dict(metadata)}
    # As it will be read back, or tuples and integer keys would break the seal.
    content = json.loads(json.dumps(content))
    return {"content": content, "seal": _seal(content)}


def _seal(content: dict[str, Any]) -> str:
    """A digest of the record itself: altered text must not look like another model."""
    return _sha256(json.dumps(content, sort_keys=True).encode())


# Reading and verifying.


def _restore_verified(
    manager: ocp.CheckpointManager,
    step: int,
    abstract: PyTree,
    request: ocp.args.CheckpointArgs,
    asked: Callable[[str], bool],
) -> Restored:
    """Restore `request` from one step, and check the paths that are `asked` for."""
    if step not in manager.all_steps():
        raise CheckpointError(f"there is no checkpoint of step {step} in {manager.directory}")
    problem = None
    try:
        content = _read_content(manager, step)
        _check_layout(manager, step, content["layout"], _layout(abstract), asked)
        state = manager.restore(step, args=ocp.args.Composite(state=request)).state
        wanted = {path: sha for path, sha in content["digest"].items() if asked(path)}
        problem = _first_altered(wanted, digest(state))
    except CheckpointError:
        raise
    except Exception as error:
        problem = _cause(error)
    if _on_any_process(problem is not None):
        raise DamagedCheckpointError(
            f"checkpoint of step {step} in {manager.directory} is damaged: "
            f"{problem or 'another process could not read it'}"
        )
    return Restored(step, state, content["metadata"])


def _read_content(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
    if record["seal"] != _seal(record["content"]):
        raise ValueError("the text of its record was altered")
    return record["content"]


def _check_layout(
    manager: ocp.CheckpointManager,
    step: int,
    saved: dict[str, str],
    wanted: dict[str, str],
    asked: Callable[[str], bool],
) -> None:
    saved = {path: layout for path, layout in saved.items() if asked(path)}
    # Empty nodes last: one of them in the place of a subtree says less than the subtree's leaves.
    for path in sorted([*wanted, *saved], key=lambda path: "empty" in (wanted | saved)[path]):
        here, there = wanted.get(path, "nothing"), saved.get(path, "nothing")
        if here != there:
            raise CheckpointError(
                f"checkpoint of step {step} in {manager.directory} is of another model: "
                f"{path or 'the root'} is {there} there and {here} here"
            )


def _first_altered(wanted: dict[str, str], found: dict[str, str]) -> str | None:
    for path, sha in wanted.items():
        if found.get(path) != sha:
            return f"the values of {path} are not those that were saved"
    return None


def _first_good(
    manager: ocp.CheckpointManager,
    read: Callable[[int], Restored],
    order: Callable[[list[int]], list[int]],
) -> tuple[Restored | None, list[int]]:
    """The first step in this order that `read` accepts, and the damaged ones passed over."""
    damaged: list[int] = []
    for step in order(list(manager.all_steps())):
        try:
            return read(step), damaged
        except DamagedCheckpointError as error:
            logging.warning("%s; trying the next", error)
            damaged.append(step)
    if damaged:
        raise CheckpointError(
            f"none of the {len(damaged)} checkpoints in {manager.directory} is usable: steps "
            f"{', '.join(map(str, damaged))} are damaged"
        )
    return None, damaged


def _set_aside(manager: ocp.CheckpointManager, steps: list[int]) -> None:
    """Move steps into `damaged/`, so that a save of the same step lands instead of being skipped.

    They are not deleted: a good step on a file system that failed for a moment looks the same.
    """
    if not steps or isinstance(manager, _ReadOnlyManager):
        return
    if jax.process_index() == 0:
        shelf = manager.directory / DAMAGED_DIRECTORY
        try:
            shelf.mkdir(exist_ok=True)
            for step in steps:
                copies = sum(path.name.split("-")[0] == str(step) for path in shelf.iterdir())
                target = shelf / (f"{step}-{copies}" if copies else str(step))
                (manager.directory / str(step)).rename(target)
                logging.info("moved the damaged checkpoint of step %d to %s", step, target)
        except OSError as error:
            raise CheckpointError(
                f"cannot move damaged checkpoints to {shelf}: {_cause(error)}"
            ) from error
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("damaged checkpoints set aside")
    manager.reload()


def _placed(abstract: PyTree) -> PyTree:
    """Every leaf with a sharding: Orbax would otherwise ask for the devices it was saved from."""

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None)
        if sharding is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, abstract)


# Failures.


def _write_failure(manager: ocp.CheckpointManager, error: Exception) -> CheckpointError:
    """Tidy up after a failed save, and say in one line what happened."""
    with contextlib.suppress(OSError):
        # What it had written would go on filling a full disk.
        _remove_leftovers(manager)
        # Orbax has already struck the step that was to make room off its list; it is still there.
        manager.reload()
    return CheckpointError(f"cannot write checkpoint to {manager.directory}: {_cause(error)}")


def _remove_leftovers(manager: ocp.CheckpointManager) -> None:
    """Remove the temporary directories of saves that did not finish; none must be under way."""
    if jax.process_index() == 0:
        for path in manager.directory.iterdir():
            if ocp.utils.TMP_DIR_SUFFIX in path.name:
                path.rmtree()


def _cause(error: BaseException) -> str:
    """The reason at the bottom of an exception, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    # TensorStore quotes its whole specification; the operating system's reason is enough.
    code = re.search(r"os_error_code='(\d+)'", text)
    if code:
        return os.strerror(int(code[1]))
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"


def _on_any_process(flag: bool) -> bool:
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
