"""The limit: how fast a step could be if nothing but its matrix products and updates took time.

limit = seconds of the step's matrix products, each measured alone and hot in the caches
      + bytes that the optimizers must move / measured memory bandwidth.

Both are measured in two ways on a CPU, by XLA and by NumPy (its own matrix library, and threads),
of which the faster counts: the limit is the machine's, not that of one library. An accelerator
repeats each many times per call, so that nothing waits for the host, and its bandwidth is that of
arrays too large for its caches, as all optimizers together are.
"""

import functools
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workload import Round, Workload

Layers = Sequence[tuple[int, int]]  # inputs and outputs of fully connected layers
Calls = Callable[[int], int]  # do an operation so many times or somewhat more; how many times
_FLOAT_BYTES = 4
# Long enough for the clock, short enough that a round of the limit is no longer than the others'.
_SECONDS_PER_MEASUREMENT = 0.01
_MEASUREMENTS = 3
_REPEATS = 64  # few beside the 0.01 s of a measurement
_UNCACHED = 2**26  # numbers, a quarter of a gigabyte


class Product(NamedTuple):
    """A matrix product of [rows, inner] and [inner, columns].

    `kind` says which operand a step reads transposed: "forward" none, "weights" (the gradient of
    the weights) the first, "inputs" (the gradient of the inputs) the second.
    """

    kind: str
    rows: int
    inner: int
    columns: int

    @property
    def operations(self) -> int:
        """A multiplication and an addition for each term."""
        return 2 * self.rows * self.inner * self.columns


class Networks(NamedTuple):
    """Layers of the networks of a workload, by part where there are several."""

    trunk: Layers
    heads: dict[str, tuple[int, int]]
    decoder: Layers
    discriminators: dict[str, Layers]

    @property
    def encoder(self) -> Layers:
        """Trunk and all heads."""
        return [*self.trunk, *self.heads.values()]


def networks(workload: Workload) -> Networks:
    """The layers of E1 and E11."""
    design = workload.design
    pixels, width = design.side**2, design.width
    heads = {"style": design.style_dim} | ({"label": design.labels} if design.labels else {})
    code = sum(heads.values())
    return Networks(
        trunk=[(pixels, width), (width, width)],
        heads={name: (width, size) for name, size in heads.items()},
        decoder=[(code, width), (width, width), (width, pixels)],
        discriminators={
            name: [(size, width), (width, width), (width, 1)] for name, size in heads.items()
        },
    )


def products(workload: Workload) -> list[Product]:
    """Every matrix product of one step.

    Nothing is differentiated with respect to images, prior samples, or (for the discriminators)
    codes; the generator's gradient passes the discriminators without one of their weights; the
    codes of the regularization phase are computed once.
    """
    batch, nets = workload.batch_size, networks(workload)

    def forward(layers: Layers, rows: int = batch) -> list[Product]:
        return [Product("forward", rows, a, b) for a, b in layers]

    def weights(layers: Layers, rows: int = batch) -> list[Product]:
        return [Product("weights", a, rows, b) for a, b in layers]

    def inputs(layers: Layers, rows: int = batch) -> list[Product]:
        return [Product("inputs", rows, b, a) for a, b in layers]

    reconstruction = (
        forward([*nets.encoder, *nets.decoder])
        + weights([*nets.encoder, *nets.decoder])
        + inputs([*nets.encoder[1:], *nets.decoder])
    )
    encoder_pass = forward(nets.encoder) + weights(nets.encoder) + inputs(nets.encoder[1:])
    critics = []
    for layers in nets.discriminators.values():
        both = 2 * batch  # prior samples and codes
        critics += forward(layers, both) + weights(layers, both) + inputs(layers[1:], both)
        critics += forward(layers) + inputs(layers)
    classification = []
    if "label" in nets.heads:
        layers = [*nets.trunk, nets.heads["label"]]
        classification = forward(layers) + weights(layers) + inputs(layers[1:])
    return reconstruction + encoder_pass + critics + classification


def operations(workload: Workload) -> int:
    """Floating-point operations of the matrix products of one step."""
    return sum(product.operations for product in products(workload))


def parameters(workload: Workload) -> dict[str, int]:
    """How many parameters each optimizer moves, biases included."""
    nets = networks(workload)

    def size(layers: Layers) -> int:
        return sum((a + 1) * b for a, b in layers)

    sizes = {
        "autoencoder": size(nets.encoder) + size(nets.decoder),
        "discriminator": sum(map(size, nets.discriminators.values())),
        "generator": size(nets.encoder),
        "classifier": size(nets.encoder),
    }
    return {name: sizes[name] for name in workload.design.optimizers}


def optimizer_bytes(workload: Workload) -> int:
    """Bytes that the updates of one step must read and write at least.

    Parameter and gradient are read and the parameter written; each moment is read and written. A
    moment that forgets everything (momentum 0) need not be kept.
    """
    total = 0
    for name, count in parameters(workload).items():
        optimizer = workload.design.optimizers[name]
        moments = (optimizer.name == "adam") + (optimizer.momentum > 0)
        total += count * _FLOAT_BYTES * (3 + 2 * moments)
    return total


def contender(workload: Workload) -> Callable[[], Round]:
    """A round measures everything anew; its seconds are those of the limit."""
    counts = Counter(products(workload))
    on_cpu = jax.default_backend() == "cpu"
    ways = {
        product: [_by_xla(product), *([_by_numpy(product)] if on_cpu else [])] for product in counts
    }
    # As much as an optimizer goes through: what fits in a cache may stay there.
    size = max(parameters(workload).values()) if on_cpu else _UNCACHED
    additions = [_xla_addition(size)]
    if on_cpu:
        additions.append(_threaded_addition(size, workload.threads))
    bytes_added = 3 * _FLOAT_BYTES * size

    def one_round() -> Round:
        computing = sum(
            count * min(_seconds(call) for call in ways[product])
            for product, count in counts.items()
        )
        bandwidth = bytes_added / min(_seconds(add) for add in additions)
        moving = optimizer_bytes(workload) / bandwidth
        readings = {
            "GFLOP/s of the products": operations(workload) / computing / 1e9,
            "GB/s": bandwidth / 1e9,
            "ms a step in products": 1e3 * computing,
            "ms a step in optimizers": 1e3 * moving,
        }
        seconds = workload.steps * (computing + moving)
        return Round(workload.steps * workload.batch_size, readings, seconds)

    return one_round


def _operands(product: Product) -> tuple[np.ndarray, np.ndarray]:
    """As a step holds them in memory: the transposed one is stored the other way round."""
    rng = np.random.default_rng(0)
    first = (product.rows, product.inner)[:: -1 if product.kind == "weights" else 1]
    second = (product.inner, product.columns)[:: -1 if product.kind == "inputs" else 1]
    return rng.standard_normal(first, np.float32), rng.standard_normal(second, np.float32)


def _by_xla(product: Product) -> Calls:
    axes = {"forward": ((1,), (0,)), "weights": ((0,), (0,)), "inputs": ((1,), (1,))}[product.kind]
    first, second = map(jnp.asarray, _operands(product))
    result = jnp.zeros((product.rows, product.columns))

    def multiply(result: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        # Tied to the last result, else a compiler would multiply once for all repetitions.
        a, _ = jax.lax.optimization_barrier((a, result))
        return jax.lax.dot_general(a, b, (axes, ((), ())))

    return _repeated(multiply, result, first, second)


def _by_numpy(product: Product) -> Calls:
    first, second = _operands(product)
    first = first.T if product.kind == "weights" else first
    second = second.T if product.kind == "inputs" else second
    out = np.empty((product.rows, product.columns), np.float32)

    def calls(count: int) -> int:
        for _ in range(count):
            np.matmul(first, second, out=out)
        return count

    return calls


def _xla_addition(size: int) -> Calls:
    return _repeated(lambda a, b: a + b, jnp.zeros(size), jnp.ones(size))


def _repeated(operation: Callable[..., jax.Array], result: jax.Array, *inputs: jax.Array) -> Calls:
    """Calls of result = operation(result, *inputs); on an accelerator each repeats it."""
    repeats = 1 if jax.default_backend() == "cpu" else _REPEATS

    # Donated: a result in new memory would be a measurement of the allocator.
    @functools.partial(jax.jit, donate_argnums=0)
    def several(result: jax.Array, *inputs: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, lambda _, last: operation(last, *inputs), result)

    def calls(count: int) -> int:
        nonlocal result
        times = math.ceil(count / repeats)
        for _ in range(times):
            result = several(result, *inputs)
        result.block_until_ready()
        return times * repeats

    return calls


def _threaded_addition(size: int, threads: int) -> Calls:
    a, b, c = np.zeros(size, np.float32), np.ones(size, np.float32), np.empty(size, np.float32)
    bounds = np.linspace(0, size, threads + 1).astype(int)
    parts = [slice(first, last) for first, last in itertools.pairwise(bounds)]
    pool = ThreadPoolExecutor(threads)

    def part(of: slice) -> None:
        np.add(a[of], b[of], out=c[of])

    def calls(count: int) -> int:
        for _ in range(count):
            list(pool.map(part, parts))
        return count

    return calls


def _seconds(calls: Calls) -> float:
    """Of one operation: the best of some measurements, as a limit is what can be reached."""

    def measured(count: int) -> tuple[float, float]:
        """Seconds of all, and of one."""
        began = time.perf_counter()
        done = calls(count)
        seconds = time.perf_counter() - began
        return seconds, seconds / done

    measured(1)
    count = 1
    while (first := measured(count))[0] < _SECONDS_PER_MEASUREMENT:
        count *= max(2, min(100, round(_SECONDS_PER_MEASUREMENT / max(first[0], 1e-9))))
    return min(first[1], *(measured(count)[1] for _ in range(_MEASUREMENTS - 1)))
