"""Images that stay on disk, where an array of all of them would not fit into memory.

A `Reader` knows one format and reads any images of it at any time. `StoredImages` stands where an
array of all of them would: in `Arrays`, and with it in sources and splits. `ahead` reads in the
background.
"""

import os
from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt8

Item = TypeVar("Item")

# Images read in one go: few enough to share a chunk among threads, and many a call of a reader.
PIECE = 128
_MOST_THREADS = 16


@runtime_checkable
class Reader(Protocol):
    """All images of a split, to be read in any order and by several threads at once.

    Attributes:
        shape: of each image, [h, w, c].
    """

    shape: tuple[int, ...]

    def __len__(self) -> int:
        """How many images there are."""

    def read(self, rows: Integer[np.ndarray, "n"]) -> UInt8[np.ndarray, "n h w c"]:
        """Reads and decodes images.

        Raises:
            DataError: which one cannot be read, and what to do.
        """


class StoredImages:
    """Stored images in the place of a uint8 array [n, h, w, c].

    As with an array, a slice is a view, which reads nothing, and a choice of rows is a copy, which
    reads them. `np.asarray` reads all: slice first.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, reader: Reader, first: int = 0, stop: int | None = None):
        """The images first..stop of a reader, by default all."""
        self._reader, self._first = reader, first
        self._stop = len(reader) if stop is None else stop

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the array: [n, h, w, c]."""
        return (len(self), *self._reader.shape)

    @property
    def ndim(self) -> int:
        """As of the array."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """As of the array: the number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        """How many images there are."""
        return self._stop - self._first

    def __getitem__(self, index: slice | Integer[np.ndarray, "n"]) -> Any:
        """A view for a slice (of step 1), an array for an array of rows.

        Raises:
            IndexError: there is no such row.
            DataError: an image cannot be read.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise IndexError(f"stored images have slices of step 1, not {step}")
            return StoredImages(self._reader, self._first + start, self._first + max(start, stop))
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"rows {index.min()}..{index.max()} of {len(self)} stored images")
        return self._reader.read(index + self._first)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All images, read in order."""
        if copy is False:
            raise ValueError("stored images cannot be had without reading them")
        images = np.empty(self.shape, self.dtype)
        for start, block in zip(range(0, len(self), PIECE), self.blocks(PIECE), strict=True):
            images[start : start + PIECE] = block
        return images if dtype is None else images.astype(dtype, copy=False)

    def blocks(self, size: int) -> Generator[UInt8[np.ndarray, "block h w c"], None, None]:
        """All images in order, `size` at a time, read ahead."""

        def block(number: int) -> UInt8[np.ndarray, "block h w c"]:
            return self[np.arange(number * size, min((number + 1) * size, len(self)))]

        return ahead(block, -(-len(self) // size), buffered=num_threads())


def num_threads() -> int:
    """How many threads read."""
    return min(_MOST_THREADS, os.cpu_count() or 1)


def ahead(read: Callable[[int], Item], count: int, buffered: int) -> Generator[Item, None, None]:
    """read(0), read(1), ..., read(count - 1) in this order, some of them ahead of being asked for.

    Args:
        read: called by several threads at once; what it raises is raised here in its turn.
        count: how many there are.
        buffered: how many may be ready or in work, at least 1; they take memory.
    """
    import grain  # takes a second to import, for which only those who stream should wait

    options = grain.ReadOptions(min(num_threads(), buffered), prefetch_buffer_size=buffered)
    items = iter(grain.MapDataset.range(count).map(read).to_iter_dataset(options))
    try:
        yield from items
    finally:
        items.close()
