"""What each chunk of steps trains on: examples on the devices, and rows that index into them.

In memory the examples are the whole data set, placed once. Streamed they are the chunk's own. Which
example comes when does not depend on it: both ask the same function of the step.
"""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int, UInt8

from aae_jax import parallel
from aae_jax.data.sources import Arrays, Stored
from aae_jax.data.stored import PIECE, ahead
from aae_jax.step import Examples, Rows

Feed = Generator[tuple[Examples, Rows], None, None]
Draw = Callable[[int], Rows]


class Needed(NamedTuple):
    """What a chunk needs of the stored examples.

    Attributes:
        examples: [m], each example once, in the order in which they are stored.
        rows: whose indices point into `examples`; 0 for devices of other processes.
    """

    examples: Int[np.ndarray, "m"]
    rows: Rows


def in_memory(train: Arrays, starts: range, draw: Draw, mesh: Mesh, mode: str) -> Feed:
    """The whole training data on every device, and the rows of each chunk.

    Args:
        train: in memory.
        starts: first steps of the chunks.
        draw: first step of a chunk -> which examples its steps see.
        mesh, mode: see `parallel.map_chunk`.
    """
    examples = parallel.place(Examples(*train), parallel.home(mesh, mode))
    for first in starts:
        yield examples, draw(first)


def streamed(train: Stored, starts: range, draw: Draw, mesh: Mesh, mode: str) -> Feed:
    """Each chunk's own examples, and rows that point into them; the next two chunks are read ahead.

    Of several processes each reads what its own devices need, and nothing else. An example that a
    chunk sees twice is read once.

    Args:
        train: on disk.
        starts, draw, mesh, mode: see `in_memory`.

    Raises:
        DataError: an image cannot be read; when its turn has come.
    """
    if not starts:
        return
    own, place = parallel.own_share(mesh), parallel.home(mesh, mode)
    size = min(_most_needed(draw(starts[0]), mesh), len(train.label))
    pieces = -(-size // PIECE)

    @lru_cache(maxsize=4)  # the chunk at work, two ahead, and the one after them
    def need(chunk: int) -> Needed:
        return needed(draw(starts[chunk]), own)

    def piece(number: int) -> UInt8[np.ndarray, "piece h w c"]:
        chunk, part = divmod(number, pieces)
        return train.image[need(chunk).examples[part * PIECE : (part + 1) * PIECE]]

    with closing(ahead(piece, len(starts) * pieces, buffered=2 * pieces)) as images:
        for chunk in range(len(starts)):
            chosen, rows = need(chunk)
            image = _filled(list(islice(images, pieces)), size)
            label = _filled([train.label[chosen]], size)
            yield parallel.place(Examples(image, label), place), rows


def _most_needed(rows: Rows, mesh: Mesh) -> int:
    """Examples that a chunk with so many rows can need, on the process with most devices."""
    devices = max(Counter(device.process_index for device in mesh.devices.flat).values())
    return sum(each.size // mesh.size * devices for each in rows if each is not None)


def _filled(parts: Sequence[np.ndarray], size: int) -> np.ndarray:
    """The parts in one array of `size` rows: another number of them would be compiled anew."""
    whole = np.zeros((size, *parts[0].shape[1:]), parts[0].dtype)
    np.concatenate(parts, out=whole[: sum(len(part) for part in parts)])
    return whole


def needed(rows: Rows, own: Bool[np.ndarray, "devices"]) -> Needed:
    """The distinct examples among the rows of some devices.

    Args:
        rows: of all devices.
        own: whether a device is one of them.
    """
    shares = jax.tree.map(lambda each: parallel.shares(each, len(own)), rows)
    asked = [each[:, own] for each in shares if each is not None]
    examples = np.unique(np.concatenate([each.ravel() for each in asked]))

    def point(share: Int[np.ndarray, "steps devices share"]) -> Int[np.ndarray, "steps batch"]:
        pointers = np.zeros(share.shape, np.int32)
        pointers[:, own] = np.searchsorted(examples, share[:, own])
        return pointers.reshape(len(share), -1)

    return Needed(examples, jax.tree.map(point, shares))
