"""Devices: the chunk mapped over them, and where arrays are placed.

The state has no device axis: every device holds the same one. Of a batch each device holds its
share. `pmap` and `jit(shard_map)` give the same result; the first is the default.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from aae_jax.state import ALONE, Collective, across

AXIS = "data"
MODES = ("pmap", "shard_map")
Chunk = Callable[[Any, Any, Any], tuple[Any, Any]]


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


def born_placed(init: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`init` compiled so that its result is born on every device of the mesh.

    A state that is not placed would compile the chunk twice.
    """
    return jax.jit(init, out_shardings=replicated(mesh))


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
        return lambda state, examples, rows: mapped(
            state, examples, jax.tree.map(lambda row: _shares(row, mesh.size), rows)
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
        return lambda state, examples, rows: mapped(
            state, examples, jax.device_put(rows, NamedSharding(mesh, share))
        )
    raise ValueError(f"parallel mode {mode!r} is unknown; known are {', '.join(MODES)}")


def _shares(rows: np.ndarray, num_devices: int) -> np.ndarray:
    return rows.reshape(rows.shape[0], num_devices, -1)
