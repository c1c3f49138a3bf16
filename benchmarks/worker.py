"""One contender in a process of its own: `python -m benchmarks.worker NAME WORKLOAD`.

It builds and warms up (one round, with all compilation), says so, and then runs a round for every
line on standard input. Replies are lines of JSON on standard output; whatever libraries print goes
to standard error.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

from benchmarks.workload import Round, Workload


class Contender(NamedTuple):
    """Who takes part.

    Attributes:
        title: for tables.
        module: of `benchmarks`, with a function `contender`.
        options: arguments of that function beside the workload.
        package: what must be installed, and whose version is told.
        experiments: of which workloads.
    """

    title: str
    module: str
    options: dict[str, Any]
    package: str
    experiments: tuple[str, ...]


_BOTH = ("E1", "E11")
CONTENDERS = {
    "aae_jax": Contender("this project", "ours", {}, "jax", (*_BOTH, "joint")),
    "aae_jax_bfloat16": Contender(
        "this project, hidden layers in bfloat16",
        "ours",
        {"compute_dtype": "bfloat16"},
        "jax",
        _BOTH,
    ),
    "torch": Contender("PyTorch, eager", "torch_twin", {}, "torch", _BOTH),
    "torch_fused": Contender(
        "PyTorch, eager, fused optimizers", "torch_twin", {"fused": True}, "torch", _BOTH
    ),
    "torch_compile": Contender(
        "PyTorch, torch.compile", "torch_twin", {"compiled": "default"}, "torch", _BOTH
    ),
    "torch_graphs": Contender(
        "PyTorch, torch.compile with CUDA graphs",
        "torch_twin",
        {"compiled": "reduce-overhead"},
        "torch",
        _BOTH,
    ),
    "pythae": Contender("pythae Adversarial_AE", "pythae_trainer", {}, "pythae", ("E1",)),
    "torch_gan": Contender("PyTorch-GAN's joint step", "torch_gan", {}, "torch", ("joint",)),
    "limit": Contender("limit of the machine", "limit", {}, "jax", _BOTH),
}


def main(name: str, workload: Workload, requests: TextIO, replies: TextIO) -> None:
    """Serves rounds until the requests end."""

    def reply(**fields: Any) -> None:
        print(json.dumps(fields), file=replies, flush=True)

    who = CONTENDERS[name]
    try:
        importlib.import_module(who.package)
    except ModuleNotFoundError:
        reply(missing=who.package)
        return
    began = time.perf_counter()
    one_round = importlib.import_module(f"benchmarks.{who.module}").contender(
        workload, **who.options
    )
    timed(one_round)
    reply(
        version=f"{who.package} {importlib.metadata.version(who.package)}",
        warm_up_seconds=time.perf_counter() - began,
        peak_megabytes=_peak_megabytes(),
    )
    for _ in requests:
        reply(**timed(one_round)._asdict())


def timed(one_round: Callable[[], Round]) -> Round:
    """Runs a round, with the time it took unless it tells one itself."""
    began = time.perf_counter()
    result = one_round()
    seconds = time.perf_counter() - began
    return result if result.seconds is not None else result._replace(seconds=seconds)


def _peak_megabytes() -> float | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _keep_to_threads(count: int) -> None:
    """XLA has no option for its threads: it makes as many as the process has processors."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


if __name__ == "__main__":
    given = Workload(**json.loads(sys.argv[2]))
    _keep_to_threads(given.threads)
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    main(sys.argv[1], given, sys.stdin, channel)
