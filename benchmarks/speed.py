"""Images per second of this project, of its peers, and of the machine at most.

  python -m benchmarks.speed
  python -m benchmarks.speed --workloads E1:100,E11:100 --rounds 5 --out runs/speed
  python -m benchmarks.speed --pythae-python other-venv/bin/python

Peers need `pip install -e '.[benchmarks]'`; those that are not installed are named and left out.
Let nothing else run meanwhile.
"""

import argparse
import os
import platform
import time
from pathlib import Path

from aae_jax.files import write_whole
from benchmarks import table
from benchmarks.contest import Outcome, contest
from benchmarks.worker import CONTENDERS
from benchmarks.workload import DESIGNS, Workload

_WORKLOADS = "E1:100,E1:500,E11:100,joint:64"


def main(arguments: argparse.Namespace) -> None:
    """Runs the contests one after another; the tables so far are kept after each."""
    outcomes: list[Outcome] = []
    names = arguments.contenders.split(",")
    interpreters = {
        package: getattr(arguments, f"{package}_python")
        for package in ("torch", "pythae")
        if getattr(arguments, f"{package}_python")
    }
    busy = busy_processors()
    if busy > 0.2:
        print(f"other programs keep {busy:.1f} processors busy: these figures will not hold")
    for experiment, batch_size in _parsed(arguments.workloads):
        workload = Workload(
            experiment,
            batch_size,
            num_images=arguments.images,
            steps=arguments.steps,
            chunk_steps=min(arguments.chunk_steps, arguments.steps),
            width=arguments.width,
            threads=arguments.threads,
        )
        outcomes.append(contest(workload, names, arguments.rounds, interpreters))
        print(f"\n{table.markdown(outcomes[-1])}\n", flush=True)
        if arguments.out:
            write(outcomes, arguments, Path(arguments.out))


def write(outcomes: list[Outcome], arguments: argparse.Namespace, folder: Path) -> None:
    """`speed.md` and `rounds.csv` in the folder."""
    versions = sorted({version for outcome in outcomes for version in outcome.versions.values()})
    head = (
        f"{_processor()}, {arguments.threads} threads; {', '.join(versions)}. Medians of "
        f"{arguments.rounds} rounds of {arguments.steps} steps, contenders taking turns."
    )
    text = "\n\n".join([head, *map(table.markdown, outcomes)])
    write_whole(folder / "speed.md", (text + "\n").encode())
    write_whole(folder / "rounds.csv", table.csv_text(outcomes).encode())


def _parsed(text: str) -> list[tuple[str, int]]:
    pairs = [part.partition(":")[::2] for part in text.split(",")]
    return [(experiment, int(batch_size)) for experiment, batch_size in pairs]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def busy_processors(seconds: float = 1.0) -> float:
    """How many processors others use while this process sleeps; 0 where that is not known."""

    def busy() -> float:
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")

    try:
        before = busy()
        time.sleep(seconds)
        return (busy() - before) / seconds
    except (OSError, ValueError):
        return 0.0


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workloads", default=_WORKLOADS, help=f"EXPERIMENT:BATCH,... of {', '.join(DESIGNS)}")
    add("--contenders", default=",".join(CONTENDERS), help="NAME,...; default: all")
    add("--rounds", type=int, default=7, help="of each contender")
    add("--steps", type=int, default=200, help="of a round")
    add("--chunk-steps", type=int, default=100, help="of this project's scan; divides --steps")
    add("--images", type=int, default=50_000, help="in the data set")
    add("--width", type=int, default=0, help="of all hidden layers; default: the experiment's")
    add("--threads", type=int, default=cores(), help="of each contender; default: all cores")
    add("--torch-python", default="", help="interpreter that has torch, if not this one")
    add("--pythae-python", default="", help="interpreter that has pythae, if not this one")
    add("--out", default="", help="folder for speed.md and rounds.csv")
    return parser


def _checked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    arguments = parser.parse_args()
    unknown = set(arguments.contenders.split(",")) - set(CONTENDERS)
    if unknown:
        parser.error(f"unknown contender {unknown.pop()}; known are {', '.join(CONTENDERS)}")
    try:
        pairs = _parsed(arguments.workloads)
    except ValueError:
        parser.error(f"--workloads {arguments.workloads}: write EXPERIMENT:BATCH,...")
    unknown = {experiment for experiment, _ in pairs} - set(DESIGNS)
    if unknown:
        parser.error(f"unknown experiment {unknown.pop()}; known are {', '.join(DESIGNS)}")
    if arguments.steps % min(arguments.chunk_steps, arguments.steps):
        parser.error("--chunk-steps must divide --steps")
    if not 0 < arguments.threads <= cores():
        parser.error(f"--threads is {arguments.threads}; allowed: 1 to {cores()}")
    return arguments


if __name__ == "__main__":
    main(_checked(_flags()))
