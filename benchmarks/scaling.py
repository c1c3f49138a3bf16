"""What more devices and more processes make of E1: measured on this machine, estimated for pods.

  python -m benchmarks.scaling
  python -m benchmarks.scaling --only estimate --out runs/scaling

measured: the median images per second of whole runs, on 1, 2 and 4 CPU devices of one process and
  in 1, 2 and 4 processes. They share the machine's cores: what is seen is the cost of acting
  together, not a gain.
estimate: counted operations and bytes over the published rates of a TPU v5e-16 and of 8 H100.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from aae_jax.files import write_whole
from aae_jax.recording import read_metrics
from benchmarks import limit, ours
from benchmarks.contest import REPOSITORY
from benchmarks.table import aligned
from benchmarks.workload import Workload

Row = tuple[str, ...]
BATCHES = (100, 1_000, 10_000)


class Machine(NamedTuple):
    """Devices that act together; published peaks.

    Attributes:
        devices: how many.
        flops: of a device's matrix products as JAX computes float32 by default, per second.
        memory: bytes per second of a device's memory.
        link: bytes per second that a device sends to its neighbours in an all-reduce.
        latency: seconds until an all-reduce of nothing is done.
        reached: share of the peaks that products and updates of this size can reach.
    """

    devices: int
    flops: float
    memory: float
    link: float
    latency: float
    reached: float = 0.4


# TPU: one pass of bfloat16, 1,600 Gbit/s of interconnect a chip (cloud.google.com/tpu/docs/v5e).
# H100 SXM: TF32 without sparsity, NVLink 450 GB/s each way (nvidia.com, H100 data sheet).
MACHINES = {
    "TPU v5e-16": Machine(16, 197e12, 819e9, 200e9, 20e-6),
    "8 x H100": Machine(8, 495e12, 3.35e12, 450e9, 20e-6),
}


class Step(NamedTuple):
    """Seconds of a step on each device, by what they are spent on."""

    products: float
    updates: float
    all_reduce: float

    @property
    def seconds(self) -> float:
        """Nothing overlaps."""
        return sum(self)


def estimated(machine: Machine, workload: Workload) -> Step:
    """A step whose batch is shared by the machine's devices.

    Every device computes its share, all of them make the same updates, and the gradient of each
    optimizer crosses the links once in a ring: 2 (n - 1) / n times its bytes.
    """
    share = limit.operations(workload) / machine.devices
    gradient = 4 * sum(limit.parameters(workload).values())
    ring = 2 * (machine.devices - 1) / machine.devices * gradient / machine.link
    return Step(
        share / (machine.flops * machine.reached),
        limit.optimizer_bytes(workload) / (machine.memory * machine.reached),
        ring + len(workload.design.optimizers) * machine.latency,
    )


def balanced_batch(machine: Machine, workload: Workload) -> int:
    """The batch from which on products take longer than updates and all-reduce together."""
    step = estimated(machine, workload)
    return round(workload.batch_size * (step.updates + step.all_reduce) / step.products)


def estimates() -> Iterator[Row]:
    """A table: the machine, the batch over all devices, where the time goes."""
    yield (
        *("machine", "batch", "images/s", "products ms", "updates ms", "all-reduce ms"),
        *("of one device's speed times n", "computes most from batch"),
    )
    for name, machine in MACHINES.items():
        for batch in BATCHES:
            workload = Workload("E1", batch)
            step = estimated(machine, workload)
            alone = estimated(
                machine._replace(devices=1, latency=0.0),
                workload._replace(batch_size=max(1, batch // machine.devices)),
            )
            yield (
                name,
                f"{batch:,}",
                f"{batch / step.seconds:,.0f}",
                *(f"{1e3 * part:.3f}" for part in step),
                f"{alone.seconds / step.seconds:.0%}",
                f"{balanced_batch(machine, workload):,}",
            )


def measured(steps: int, width: int) -> Iterator[Row]:
    """A table: devices or processes, images per second, share of a single device's."""
    yield "", "images/s", "of one device"
    one = None
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.npz"
        ours.write_examples(Workload("E1", 100, num_images=10_000), data)
        for processes, devices in ((1, 1), (1, 2), (1, 4), (2, 1), (4, 1)):
            run = Path(folder) / f"{processes}x{devices}"
            rate = images_per_second(run, data, processes, devices, steps, width)
            one = one or rate
            name = f"processes: {processes}, devices of each: {devices}"
            yield name, f"{rate:,.0f}", f"{rate / one:.0%}"


def images_per_second(
    run: Path, data: Path, processes: int, devices: int, steps: int, width: int
) -> float:
    """The median of a run's chunks.

    Raises:
        RuntimeError: the run failed.
    """
    widths = [
        f"--config.{net}.widths=({width}, {width})"
        for net in ("encoder", "decoder", "discriminator")
    ]
    flags = [
        *("--config", "configs/mnist_gaussian.py", f"--workdir={run}"),
        f"--config.data.source=npz:{data}",
        "--config.data.validation=100",
        f"--config.train.epochs={steps / 100}",
        f"--config.train.chunk_steps={max(1, steps // 10)}",
        "--config.evaluation.samples=100",
        "--config.evaluation.sample_quality=False",
        "--config.evaluation.every_epochs=1000",
        *(widths if width else []),
    ]
    launcher = [
        *(sys.executable, "launch/local_processes.py"),
        *(f"--processes={processes}", f"--devices={devices}", "--", *flags),
    ]
    alone = [sys.executable, "-m", "aae_jax.main", *flags]
    ended = subprocess.run(
        launcher if processes > 1 else alone,
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise RuntimeError(f"the run failed: {(ended.stderr or ended.stdout).strip()[-500:]}")
    return median(
        row["images_per_second"] for row in read_metrics(run) if "images_per_second" in row
    )


def main() -> None:
    """Prints the tables, and writes them with --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("measured", "estimate"))
    parser.add_argument("--steps", type=int, default=500, help="of each measured run")
    parser.add_argument("--width", type=int, default=0, help="units a layer; 0 means 1000")
    parser.add_argument("--out", type=Path, help="folder for scaling.md")
    chosen = parser.parse_args()
    tables = []
    if chosen.only != "estimate":
        tables.append("\n".join(aligned(list(measured(chosen.steps, chosen.width)))))
    if chosen.only != "measured":
        tables.append("\n".join(aligned(list(estimates()))))
    text = "\n\n".join(tables) + "\n"
    print(text)
    if chosen.out:
        write_whole(chosen.out / "scaling.md", text.encode())


if __name__ == "__main__":
    main()
