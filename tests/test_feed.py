"""What chunks train on: the same examples in memory and streamed, read once and where needed."""

import tracemalloc

import jax
import numpy as np
import pytest

from aae_jax import feed, parallel
from aae_jax.data import Arrays, DataError, order
from aae_jax.data.sources import Stored
from aae_jax.data.stored import StoredImages
from aae_jax.step import Rows

N, STEPS, BATCH, LABELLED_BATCH = 300, 5, 24, 8
LABELLED = np.arange(7, N, 30)
STARTS = range(0, 60, STEPS)  # 4.8 epochs


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (N, 3, 2, 1), np.uint8)
    return Arrays(image, rng.integers(-1, 5, N).astype(np.int32))


@pytest.fixture
def stored(arrays, array_reader):
    return Stored(StoredImages(array_reader(arrays.image)), arrays.label)


def reader_of(stored):
    return stored.image._reader


def draw(first):
    image = order.rows(3, N, BATCH, first, STEPS, "images")
    labelled = order.rows(3, len(LABELLED), LABELLED_BATCH, first, STEPS, "labelled")
    return Rows(image, LABELLED[labelled])


def draw_images(first):
    return draw(first)._replace(labelled=None)


def seen(chunks, own=slice(None)):
    """Images and labels in the order in which the devices see them."""
    for examples, rows in chunks:
        image, label = (np.asarray(each) for each in examples)
        for each in rows:
            if each is not None:
                yield image[each[:, own]], label[each[:, own]]


@pytest.mark.parametrize("drawn", [draw, draw_images])
@pytest.mark.parametrize("mode", parallel.MODES)
@pytest.mark.parametrize("devices", [1, 4])
def test_streamed_chunks_hold_the_examples_of_the_data_in_memory(
    arrays, stored, drawn, mode, devices
):
    mesh = parallel.device_mesh(jax.devices()[:devices])
    whole = seen(feed.in_memory(arrays, STARTS, drawn, mesh, mode))
    streamed = seen(feed.streamed(stored, STARTS, drawn, mesh, mode))
    for have, want in zip(streamed, whole, strict=True):
        for a, b in zip(have, want, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


def test_chunks_are_alike_for_the_compiler_and_placed_as_in_memory(arrays, stored):
    mesh = parallel.device_mesh(jax.devices()[:4])
    ((whole, _),) = feed.in_memory(arrays, STARTS[:1], draw, mesh, "pmap")
    kinds = {
        (examples.image.shape, examples.label.shape, rows.image.dtype, rows.labelled.dtype)
        for examples, rows in feed.streamed(stored, STARTS, draw, mesh, "pmap")
    }
    assert len(kinds) == 1
    ((image, _, image_rows, labelled_rows),) = kinds
    # All 160 rows of a chunk could differ.
    assert image == (STEPS * (BATCH + LABELLED_BATCH), 3, 2, 1)
    assert image_rows == labelled_rows == np.int32
    (examples, _), *_ = feed.streamed(stored, STARTS[:1], draw, mesh, "pmap")
    assert examples.image.sharding == whole.image.sharding
    assert examples.label.dtype == whole.label.dtype


def test_a_run_goes_on_anywhere(stored):
    mesh = parallel.device_mesh(jax.devices()[:1])
    whole = list(seen(feed.streamed(stored, STARTS, draw, mesh, "pmap")))
    rest = list(seen(feed.streamed(stored, range(35, 60, STEPS), draw, mesh, "pmap")))
    for have, want in zip(rest, whole[14:], strict=True):
        np.testing.assert_array_equal(have[0], want[0])
    assert list(feed.streamed(stored, range(60, 60, STEPS), draw, mesh, "pmap")) == []


def test_an_example_is_read_once_a_chunk(stored):
    mesh = parallel.device_mesh(jax.devices()[:1])
    ((_, rows),) = feed.streamed(stored, STARTS[2:3], draw, mesh, "pmap")
    read = np.concatenate(reader_of(stored).read_rows)
    asked = np.concatenate([each.ravel() for each in draw(STARTS[2])])
    assert len(read) < rows.image.size + rows.labelled.size
    assert sorted(read) == sorted(set(asked.tolist()))


def test_a_process_reads_the_examples_of_its_own_devices_only(arrays, stored, monkeypatch):
    mesh = parallel.device_mesh(jax.devices()[:4])
    for own in ([True, True, False, False], [False, False, True, True]):
        own = np.array(own)
        monkeypatch.setattr(parallel, "own_share", lambda mesh, own=own: own)
        reader_of(stored).read_rows.clear()
        asked = [
            parallel.shares(each, 4)[:, own].ravel() for first in STARTS for each in draw(first)
        ]
        columns = {size: np.repeat(own, size // 4) for size in (BATCH, LABELLED_BATCH)}
        chunks = feed.streamed(stored, STARTS, draw, mesh, "pmap")
        for (examples, rows), first in zip(chunks, STARTS, strict=True):
            image = np.asarray(examples.image)
            for have, want in zip(rows, draw(first), strict=True):
                mine = columns[want.shape[1]]
                np.testing.assert_array_equal(image[have[:, mine]], arrays.image[want[:, mine]])
        read = np.concatenate(reader_of(stored).read_rows)
        assert set(read.tolist()) == set(np.concatenate(asked).tolist())


def test_an_image_that_cannot_be_read_stops_the_chunk_that_needs_it(stored):
    bad, reader = draw_images(10).image[3, 3], reader_of(stored)

    def read(rows):
        if bad in rows:
            raise DataError(f"example {bad} is broken")
        return reader.images[rows]

    reader.read = read
    mesh = parallel.device_mesh(jax.devices()[:1])
    first = next(i for i, start in enumerate(STARTS) if bad in draw_images(start).image)
    chunks = feed.streamed(stored, STARTS, draw_images, mesh, "pmap")
    for _ in range(first):
        next(chunks)
    with pytest.raises(DataError) as caught:
        next(chunks)
    assert str(caught.value) == f"example {bad} is broken"


def test_memory_is_that_of_a_few_chunks_however_many_images_there_are(endless_reader):
    mesh, n = parallel.device_mesh(jax.devices()[:1]), 50_000
    stored = Stored(StoredImages(endless_reader(n)), np.zeros(n, np.int32))
    tracemalloc.start()
    try:
        chunks = feed.streamed(
            stored,
            range(0, n // 50, 20),
            lambda first: Rows(order.rows(0, n, 50, first, 20), None),
            mesh,
            "pmap",
        )
        assert sum(len(examples.label) for examples, _ in chunks) == n
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A chunk has 3 MB; all images would have 154.
    assert peak < 60e6
