"""What a user waits for, and how much memory it takes, beside training itself.

  python -m benchmarks.costs
  python -m benchmarks.costs --only start,parzen --out runs/costs

start: seconds from the command to the first trained step, with JAX's persistent compilation cache
  off, empty and filled.
memory: peak memory of training E1 against the size of the data set.
parzen: seconds of the Parzen window's log-likelihood, and of choosing sigma.
codes: images encoded and codes decoded a second.
streaming: images a second and peak memory of training E1 on a TFDS set and on one ten times larger,
  in memory and streamed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from aae_jax import train
from aae_jax.data import preprocessing
from aae_jax.evaluation import likelihood
from aae_jax.evaluation.latent_space import FEWEST_CODES
from aae_jax.files import write_whole
from aae_jax.recording import Row, read_metrics
from aae_jax.state import Params, evaluated_params
from aae_jax.validation import BLOCK
from benchmarks import ours, tfds_sets
from benchmarks.contest import REPOSITORY, environment, worker
from benchmarks.speed import cores
from benchmarks.table import aligned
from benchmarks.workload import Workload, examples

Rows = Iterator[tuple[str, str]]
_PATIENCE_SECONDS = 600


def start(arguments: argparse.Namespace) -> Rows:
    """Time to the first step of E1, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.npz"
        ours.write_examples(_workload(arguments), data)
        cached = {
            "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        kinds = {
            "without": {"JAX_ENABLE_COMPILATION_CACHE": "false"},
            "empty": cached,
            "filled": cached,
        }
        for kind, variables in kinds.items():
            # The empty cache can be met only once.
            times = [
                seconds_to_first_step(data, variables, arguments.width)
                for _ in range(1 if kind == "empty" else arguments.rounds)
            ]
            yield f"command to first step, compilation cache {kind}", f"{median(times):.1f} s"


def seconds_to_first_step(data: Path, variables: dict[str, str], width: int = 0) -> float:
    """From the command until the first step's losses are in metrics.csv.

    Raises:
        RuntimeError: the command ended before, or is silent for ten minutes.
    """
    flags = [f"--config.data.source=npz:{data}", "--config.train.chunk_steps=1"]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with _training(Path(folder), flags, width, variables) as process:
            _wait_for(process, Path(folder), step=1)
            return time.perf_counter() - began


@contextmanager
def _training(
    folder: Path, flags: Sequence[str], width: int, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """E1 trained in a process of its own, which is killed afterwards."""
    widths = [f"--config.{net}.widths=({width}, {width})" for net in ("encoder", "decoder")]
    command = [
        *(sys.executable, "-m", "aae_jax.main", "--config", "configs/mnist_gaussian.py"),
        *(f"--workdir={folder / 'run'}", "--config.data.validation=10", *flags),
        *(widths if width else []),
    ]
    with (folder / "errors.txt").open("w") as stderr:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **(variables or {})},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], folder: Path, step: int) -> list[Row]:
    """The rows that are recorded when the step is.

    Raises:
        RuntimeError: the process ended before, or is silent for ten minutes.
    """
    began = time.perf_counter()
    while time.perf_counter() - began < _PATIENCE_SECONDS:
        rows = read_metrics(folder / "run")
        if any(row["step"] >= step for row in rows):
            return rows
        if process.poll() is not None:
            break
        time.sleep(0.02)
    error = (folder / "errors.txt").read_text().strip()[-500:]
    raise RuntimeError(f"step {step} was not trained: {error}")


def memory(arguments: argparse.Namespace) -> Rows:
    """Peak memory of a process that trains for a round, against the data it holds."""
    for images in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "images.npz"
            # Written here: making the data would be part of the peak there.
            workload = _workload(arguments)._replace(num_images=images, steps=20, chunk_steps=10)
            ours.write_examples(workload, data)
            with worker("aae_jax", workload._replace(data_file=str(data))) as process:
                peak = process.ready()["peak_megabytes"]
        megabytes = images * workload.design.side**2 / 1e6
        told = "unknown here" if peak is None else f"{peak:,.0f} MB"
        yield f"peak memory, {images:,} images ({megabytes:,.0f} MB)", told


def parzen(arguments: argparse.Namespace) -> Rows:
    """Parzen windows of MNIST-shaped rows, without their compilation."""
    rng = np.random.default_rng(0)
    count, pixels = arguments.parzen, 28**2
    test, samples = (rng.random((count, pixels), np.float32) for _ in range(2))
    what = f"{count:,} images, {count:,} samples"
    seconds = _median_seconds(
        lambda: likelihood.parzen_log_likelihood(test, samples, 0.2), arguments.rounds
    )
    yield f"Parzen log-likelihood, {what}", f"{seconds:.2f} s"
    seconds = _median_seconds(lambda: likelihood.select_sigma(test, samples), arguments.rounds)
    grid = len(likelihood.PAPER_SIGMAS)
    yield f"Parzen width chosen of {grid}, {what}", f"{seconds:.2f} s"


def codes(arguments: argparse.Namespace) -> Rows:
    """Stored images to codes, and codes to images, in the blocks that evaluation uses."""
    run = ours.prepared(_workload(arguments))
    model, state = run.experiment.model, train.initial_state(run)
    params, stats = evaluated_params(state), state.batch_stats
    keys = jax.random.split(jax.random.key(0), BLOCK)
    image = jnp.asarray(run.splits.train.image[:BLOCK])
    style = jnp.zeros((len(image), model.style_dim))

    # Parameters are arguments: weights that a compiler sees as constants could be rearranged.
    @jax.jit
    def encode(params: Params, image: jax.Array) -> jax.Array:
        seen = preprocessing.normalize(run.preprocessing, image)
        return model.encode(params, stats, seen, keys[: len(image)], False)[0].style

    @jax.jit
    def decode(params: Params, style: jax.Array) -> jax.Array:
        output, _ = model.decode(params, stats, style, None, keys[: len(style)], False)
        return model.likelihood.mean(output)

    def rate(function: Callable[[Params, jax.Array], jax.Array], block: jax.Array) -> str:
        def all_blocks() -> None:
            jax.block_until_ready([function(params, block) for _ in range(arguments.blocks)])

        images = arguments.blocks * len(block)
        return f"{images / _median_seconds(all_blocks, arguments.rounds):,.0f} a second"

    yield f"images encoded, in blocks of {len(image)}", rate(encode, image)
    yield f"images decoded, in blocks of {len(image)}", rate(decode, style)


def streaming(arguments: argparse.Namespace) -> Rows:
    """E1 in processes of their own, in turns, as the loop itself reports its speed."""
    for images in (arguments.images, 10 * arguments.images):
        with tempfile.TemporaryDirectory() as folder:
            image, label = examples(_workload(arguments)._replace(num_images=images))
            image = image[..., np.newaxis]
            splits = {
                "train": (image, label),
                "test": (image[-FEWEST_CODES:], label[-FEWEST_CODES:]),
            }
            spec = tfds_sets.write(Path(folder), "streaming", splits)
            measured: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
            for _ in range(arguments.rounds):
                for streamed, outcomes in measured.items():
                    outcomes.append(_speed_and_peak(spec, folder, streamed, arguments.width))
            for streamed, outcomes in measured.items():
                speed, peak = (median(values) for values in zip(*outcomes, strict=True))
                name = f"{images:,} images, {'streamed' if streamed else 'in memory'}"
                yield name, f"{speed:,.0f} images a second, peak {peak:,.0f} MB"


def _speed_and_peak(spec: str, data_dir: str, streamed: bool, width: int) -> tuple[float, float]:
    """Median images a second of ten chunks, and the process's peak memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            f"--config.data.source={spec}",
            f"--config.data.data_dir={data_dir}",
            f"--config.data.streaming={streamed}",
            "--config.train.chunk_steps=20",
            "--config.train.epochs=1000",
            "--config.evaluation.every_epochs=1000000",
        ]
        with _training(Path(folder), flags, width) as process:
            rows = _wait_for(process, Path(folder), step=12 * 20)
            process.kill()
            _, _, usage = os.wait4(process.pid, 0)
    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return median(speeds[-10:]), usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


COSTS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "start": start,
    "memory": memory,
    "parzen": parzen,
    "codes": codes,
    "streaming": streaming,
}


def main(arguments: argparse.Namespace) -> None:
    """Measures what is asked for, one after the other."""
    os.environ.update(environment(arguments.threads))
    rows: list[Sequence[str]] = [("", "measured")]
    for name in arguments.only.split(","):
        for row in COSTS[name](arguments):
            print(": ".join(row), flush=True)
            rows.append(row)
    text = "\n".join(aligned(rows)) + "\n"
    print(f"\n{text}")
    if arguments.out:
        write_whole(Path(arguments.out) / "costs.md", text.encode())


def _workload(arguments: argparse.Namespace) -> Workload:
    return Workload(
        "E1", 100, num_images=arguments.images, width=arguments.width, threads=arguments.threads
    )


def _median_seconds(action: Callable[[], object], rounds: int) -> float:
    action()  # compiles
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return median(times)


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.costs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", default=",".join(COSTS), help=f"NAME,... of {', '.join(COSTS)}; default: all")
    add("--rounds", type=int, default=5, help="of each measurement but the empty cache")
    add("--images", type=int, default=50_000, help="in the data set, but for memory")
    add("--sizes", type=_sizes, default="10000,50000,200000,500000", help="data sets for memory")
    add("--parzen", type=int, default=10_000, help="images and samples of the Parzen window")
    add("--blocks", type=int, default=50, help="encoded and decoded in a round")
    add("--width", type=int, default=0, help="of the hidden layers; default: that of E1")
    add("--out", default="", help="folder for costs.md")
    parser.set_defaults(threads=cores())
    return parser


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def _checked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    arguments = parser.parse_args()
    unknown = set(arguments.only.split(",")) - set(COSTS)
    if unknown:
        parser.error(f"unknown cost {unknown.pop()}; known are {', '.join(COSTS)}")
    return arguments


if __name__ == "__main__":
    main(_checked(_flags()))
