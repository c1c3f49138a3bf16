"""Devices and processes: the chunk mapped over them, and where arrays are placed.

The state has no device axis: every device holds the same one. Of a batch each device holds its
share. `pmap` and `jit(shard_map)` give the same result; the first is the default.

On several processes every one runs the same program. Under `pmap` each holds arrays of its own
devices, under `shard_map` its part of arrays that span all; `own` and `whole` lead from one view
to the other, and are the identity on a single process.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Int

from aae_jax.state import ALONE, Collective, across

AXIS = "data"
MODES = ("pmap", "shard_map")
Chunk = Callable[[Any, Any, Any], tuple[Any, Any]]
# The errors that XLA's collectives end with come in several classes, and all with a status first.
_FAILED_COLLECTIVE = re.compile("(UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|INTERNAL): ")
# A process that is silent for so long is taken for dead, and the others stop.
HEARTBEAT_SECONDS = 20
# Processes that have trained wait so long for the first one, which draws the report.
_REPORT_SECONDS = 6 * 3600


# How a launcher tells a process of the others: HOST:PORT of process 0, how many, which one this is.
# JAX itself reads the first; the launchers of Orbax set all three.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class ProcessError(RuntimeError):
    """The processes of a run cannot find, or have lost, each other; one line."""


class Processes(NamedTuple):
    """How the processes of a run find each other.

    Attributes:
        mode: "auto" joins several where the environment's `VARIABLES`, Slurm or Cloud TPU say that
            there are several; "yes" always, as these or JAX's detection have them; "no" never.
        coordinator: HOST:PORT of process 0, for a machine that says nothing; "" detects it.
        num_processes, process_id: how many there are, and which one this is, from 0.
    """

    mode: str = "auto"
    coordinator: str = ""
    num_processes: int = 0
    process_id: int = -1


def start(processes: Processes, environ: Mapping[str, str]) -> None:
    """Joins the run's other processes, if there are any; before anything is computed.

    Raises:
        ProcessError: they cannot be joined, or what is said of them is incomplete.
    """
    mode, coordinator, num_processes, process_id = processes
    found: dict[str, Any] = {}  # JAX asks Slurm or Cloud TPU
    if coordinator:
        if not 0 <= process_id < num_processes:
            raise ProcessError(
                f"process {process_id} of {num_processes} cannot join {coordinator}; --process_id "
                "must be at least 0 and less than --num_processes"
            )
        found = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    elif mode == "no" or (mode == "auto" and not several_announced(environ)):
        return
    elif VARIABLES[1] in environ:
        # Everything is said: in a pod, JAX would look for Kubernetes' own interface, and complain.
        found = {**_described(environ), "cluster_detection_method": "deactivate"}
    try:
        jax.distributed.initialize(
            **found,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_REPORT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise ProcessError(f"cannot join the run's other processes: {_line(error)}") from error


def several_announced(environ: Mapping[str, str]) -> bool:
    """Whether `VARIABLES`, Slurm (a step of srun) or Cloud TPU say that processes are several.

    A single one is left alone. On a Cloud TPU pod whose workers do not list each other in the
    environment, say `--distributed=yes`. Kubernetes by itself does not tell a pod how many there
    are: launch/kubernetes.yaml has it set the variables from what JobSet writes on each pod.

    Raises:
        ProcessError: the number of processes is no number; one line.
    """
    if VARIABLES[1] in environ:
        return _number(environ, VARIABLES[1]) > 1
    if "SLURM_PROCID" in environ and "SLURM_LOCALID" in environ:
        return int(environ.get("SLURM_NTASKS", "1")) > 1
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES", "")
    return "," in workers


def _described(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the environment's `VARIABLES` say, as JAX's arguments."""
    missing = [name for name in VARIABLES if not environ.get(name)]
    if missing:
        raise ProcessError(
            f"{', '.join(missing)} not set, but {VARIABLES[1]} is; set all of "
            f"{', '.join(VARIABLES)}, or unset {VARIABLES[1]}"
        )
    address = environ[VARIABLES[0]]
    if not re.fullmatch(r".+:\d+", address):
        raise ProcessError(f"{VARIABLES[0]} is {address!r}; allowed: HOST:PORT of process 0")
    num_processes, process_id = (_number(environ, name) for name in VARIABLES[1:])
    if not 0 <= process_id < num_processes:
        raise ProcessError(
            f"{VARIABLES[2]} is {process_id} and {VARIABLES[1]} {num_processes}; allowed: "
            "0 or more, and less than the number"
        )
    return {
        "coordinator_address": address,
        "num_processes": num_processes,
        "process_id": process_id,
    }


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError as error:
        raise ProcessError(f"{name} is {environ[name]!r}; allowed: a whole number") from error


def lost(error: BaseException | None) -> str | None:
    """What to tell of a collective that failed because another process is gone; None otherwise."""
    if not jax.distributed.is_initialized():
        return None
    while error is not None and not _FAILED_COLLECTIVE.match(str(error)):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    return (
        f"process {jax.process_index()} of {jax.process_count()} stops, another one is gone; start "
        f"all of them again to go on from the last checkpoint ({_line(error)[:200]})"
    )


def is_first() -> bool:
    """Whether this process writes the records and the report."""
    return jax.process_index() == 0


def first_only(action: Callable[[], None]) -> None:
    """Runs the action on process 0; its failure stops the others too.

    Raises:
        ProcessError: on the others, when process 0 failed; it says why itself.
    """
    failure: Exception | None = None
    if is_first():
        try:
            action()
        except Exception as error:
            failure = error
    failed = agreed(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise ProcessError(f"process {jax.process_index()} stops because process 0 could not start")


def agreed(flag: bool) -> bool:
    """What process 0 says, on all of them."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over the devices (all of them by default)."""
    devices = list(devices or jax.devices())
    # make_mesh defaults to Explicit axes, which plain data parallelism does not want.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def collective(mesh: Mesh) -> Collective:
    """How the mesh's devices act together inside a mapped chunk."""
    # One device has nothing to average, and ravelling gradients would copy them for nothing.
    return ALONE if mesh.size == 1 else across(AXIS)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: the state and the data set."""
    return NamedSharding(mesh, PartitionSpec())


def home(mesh: Mesh, mode: str) -> NamedSharding:
    """Where the loop keeps state and data: under `pmap`, on the devices of this process alone."""
    if mode == "shard_map" or jax.process_count() == 1:
        return replicated(mesh)
    return replicated(mesh.local_mesh)


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process has whole, placed."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def own(tree: Any, mesh: Mesh) -> Any:
    """Replicated arrays as this process sees them, computed with without the other processes."""

    def convert(x: Any) -> Any:
        if x.is_fully_addressable:
            return x
        return multihost_utils.global_array_to_host_local_array(x, mesh, PartitionSpec())

    return tree if jax.process_count() == 1 else _map_raw(convert, tree)


def whole(tree: Any, mesh: Mesh) -> Any:
    """Arrays that are the same on every process, as one array over all devices."""

    def convert(x: Any) -> Any:
        if not x.is_fully_addressable:
            return x
        return multihost_utils.host_local_array_to_global_array(x, mesh, PartitionSpec())

    return tree if jax.process_count() == 1 else _map_raw(convert, tree)


def _map_raw(convert: Callable[[Any], Any], tree: Any) -> Any:
    def raw(x: Any) -> Any:
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return convert(x)
        return jax.random.wrap_key_data(
            convert(jax.random.key_data(x)), impl=jax.random.key_impl(x)
        )

    return jax.tree.map(raw, tree)


def born_placed(init: Callable[..., Any], sharding: NamedSharding) -> Callable[..., Any]:
    """`init` compiled so that its result is born in its place.

    A state that is not placed would compile the chunk twice.
    """
    return jax.jit(init, out_shardings=sharding)


def map_chunk(chunk: Chunk, mesh: Mesh, mode: str = "pmap") -> Chunk:
    """The chunk mapped over the mesh: (state, examples, rows) -> (state, metrics).

    Args:
        chunk: written for one device's share of the rows (see `aae_jax.step.chunk`).
        mesh: the devices.
        mode: "pmap", or "shard_map" for `jax.jit(jax.shard_map)`.

    Returns:
        A function of whole rows ([steps, batch] NumPy arrays); the state is donated.

    Raises:
        ValueError: the mode is unknown.
    """
    if mode == "pmap":
        mapped = jax.pmap(
            chunk,
            AXIS,
            in_axes=(None, None, 1),
            out_axes=(None, None),
            devices=list(mesh.devices.flat),
            donate_argnums=(0,),
        )
        here = own_share(mesh)
        return lambda state, examples, rows: mapped(
            state, examples, jax.tree.map(lambda row: shares(row, mesh.size)[:, here], rows)
        )
    if mode == "shard_map":
        whole, share = PartitionSpec(), PartitionSpec(None, AXIS)
        # check_vma=True, the default, would multiply gradients by the number of devices here.
        mapped = jax.jit(
            jax.shard_map(
                chunk,
                mesh=mesh,
                in_specs=(whole, whole, share),
                out_specs=(whole, whole),
                check_vma=False,
            ),
            donate_argnums=(0,),
        )
        sharded = NamedSharding(mesh, share)
        return lambda state, examples, rows: mapped(
            state,
            examples,
            jax.tree.map(
                lambda row: jax.make_array_from_callback(row.shape, sharded, row.__getitem__), rows
            ),
        )
    raise ValueError(f"parallel mode {mode!r} is unknown; known are {', '.join(MODES)}")


def own_share(mesh: Mesh) -> Bool[np.ndarray, "devices"]:
    """Whether a device of the mesh belongs to this process."""
    return np.array([each.process_index == jax.process_index() for each in mesh.devices.flat])


def shares(
    rows: Int[np.ndarray, "steps batch"], num_devices: int
) -> Int[np.ndarray, "steps devices share"]:
    """Each device's share of the rows."""
    return rows.reshape(rows.shape[0], num_devices, -1)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
