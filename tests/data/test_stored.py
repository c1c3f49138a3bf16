"""Stored images behave as the array they stand for, and are read ahead in order.

TFDS sets that are streamed are those that are read into memory.
"""

import io
import shutil
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorflow_datasets.core.features import image_feature
from tensorflow_datasets.proto import tf_example_pb2

from aae_jax.data import DataError, load, preprocessing, split
from aae_jax.data.sources import Stored, TfdsImages
from aae_jax.data.stored import PIECE, Reader, StoredImages, ahead


def numbered(n):
    """Images [n, 2, 3, 1] that differ."""
    return np.random.default_rng(n).integers(0, 256, (n, 2, 3, 1), np.uint8)


# Reading ahead.


@pytest.mark.parametrize("buffered", [1, 2, 7, 100])
def test_items_come_in_order_whoever_is_first(buffered):
    def slow_to_start(number):
        threading.Event().wait(0.02 if number % 5 == 0 else 0)
        return number

    assert list(ahead(slow_to_start, 23, buffered)) == list(range(23))


def test_no_more_is_read_than_may_be_buffered_and_nothing_after_closing():
    called = []
    items = ahead(lambda number: called.append(number) or number, 100, buffered=3)
    assert [next(items), next(items)] == [0, 1]
    threading.Event().wait(0.1)
    assert sorted(called) == [0, 1, 2, 3, 4]
    items.close()
    threading.Event().wait(0.1)
    assert len(called) == 5


def test_an_error_is_raised_in_its_turn():
    def read(number):
        if number == 3:
            raise DataError("the third\nis broken")
        return number

    items = ahead(read, 9, buffered=4)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError) as caught:
        next(items)
    assert str(caught.value) == "the third is broken"


# As an array.


@given(data=st.data(), n=st.integers(1, 40))
def test_slices_and_rows_are_those_of_the_array(data, n, array_reader):
    array = numbered(n)
    stored = StoredImages(array_reader(array))
    bound = st.none() | st.integers(-n - 2, n + 2)
    for _ in range(data.draw(st.integers(0, 3))):
        part = slice(data.draw(bound), data.draw(bound))
        stored, array = stored[part], array[part]
        assert isinstance(stored, StoredImages)
    assert (stored.shape, stored.ndim, stored.size, stored.dtype, len(stored)) == (
        (array.shape, array.ndim, array.size, array.dtype, len(array))
    )
    rows = np.array(data.draw(st.lists(st.integers(0, 39), max_size=9)), np.int32)
    rows = rows[rows < len(array)]
    np.testing.assert_array_equal(stored[rows], array[rows])
    for outside in (-1, len(array)):
        with pytest.raises(IndexError):
            stored[np.array([outside])]


def test_a_slice_reads_nothing_and_asarray_all_of_it(array_reader):
    reader = array_reader(numbered(3 * PIECE + 5))
    assert isinstance(reader, Reader)
    stored = StoredImages(reader)[7:-1][1:]
    assert reader.read_rows == []
    np.testing.assert_array_equal(np.asarray(stored), reader.images[8:-1])
    read = np.concatenate(reader.read_rows)
    assert sorted(read) == list(range(8, len(reader) - 1))
    assert max(len(rows) for rows in reader.read_rows) <= PIECE
    np.testing.assert_array_equal(
        np.concatenate(list(stored.blocks(100))), reader.images[8:-1], strict=True
    )


def test_stored_images_have_no_steps_and_are_never_free(array_reader):
    stored = StoredImages(array_reader(numbered(9)))
    with pytest.raises(IndexError, match="step"):
        stored[::2]
    with pytest.raises(ValueError, match="reading"):
        np.array(stored, copy=False)


@pytest.mark.parametrize("name", preprocessing.NAMES)
def test_constants_are_those_of_the_array_bit_for_bit(name, array_reader):
    array = numbered(1300)
    want = preprocessing.fit(name, array)
    have = preprocessing.fit(name, StoredImages(array_reader(array)))
    np.testing.assert_array_equal(have.shift, want.shift, strict=True)
    np.testing.assert_array_equal(have.scale, want.scale, strict=True)


def test_constants_of_ten_times_the_images_take_the_same_memory(endless_reader):
    peaks = []
    for n in (4_000, 4_000, 40_000):
        tracemalloc.start()
        preprocessing.fit("standardize_pixels", StoredImages(endless_reader(n)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # All images as float64 would take 980 MB, and as bytes 120.
    assert peaks[2] < 1.2 * peaks[1] < 80e6


# Image folders.


@pytest.fixture
def folder(tmp_path):
    """Files in two classes and of no class, for training and testing."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 3)):
        for name in ("cat", "dog", "unlabelled"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
                image.save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def test_a_streamed_folder_is_the_one_in_memory(folder):
    memory, stream = (load(f"folder:{folder}", streaming=each) for each in (False, True))
    assert isinstance(stream.train, Stored) and isinstance(stream.test.image, np.ndarray)
    np.testing.assert_array_equal(np.asarray(stream.train.image), memory.train.image, strict=True)
    np.testing.assert_array_equal(stream.train.label, memory.train.label, strict=True)
    np.testing.assert_array_equal(stream.test.image, memory.test.image, strict=True)
    assert stream.num_classes == memory.num_classes == 2


@pytest.mark.parametrize("fault", ["cut", "scaled", "gone"])
def test_a_file_that_changed_since_the_start_is_named_with_what_to_do(folder, fault):
    images = load(f"folder:{folder}", streaming=True).train.image
    file = folder / "train" / "dog" / "7.png"
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:50])
    elif fault == "scaled":
        Image.new("RGB", (3, 3)).save(file)
    else:
        file.unlink()
    with pytest.raises(DataError) as caught:
        np.asarray(images)
    line = str(caught.value)
    assert line.startswith(f"{file}: ") and "; " in line and "\n" not in line


# TFDS.


def test_a_streamed_tfds_set_is_the_one_in_memory(stored_digits):
    spec, data_dir = stored_digits
    memory, stream = (load(spec, data_dir=data_dir, streaming=each) for each in (False, True))
    assert isinstance(stream.train, Stored)
    for num_valid, num_labels in ((0, -1), (50, 40)):
        want, have = (split(each, num_valid, num_labels, seed=1) for each in (memory, stream))
        np.testing.assert_array_equal(np.asarray(have.train.image), want.train.image, strict=True)
        np.testing.assert_array_equal(have.train.label, want.train.label, strict=True)
        np.testing.assert_array_equal(have.labelled, want.labelled, strict=True)
        for part in ("valid", "test"):
            for a, b in zip(getattr(have, part), getattr(want, part), strict=True):
                assert isinstance(a, np.ndarray)
                np.testing.assert_array_equal(a, b, strict=True)
    assert (stream.name, stream.num_classes) == (memory.name, memory.num_classes)


def test_a_tfds_set_without_labels_streams(write_tfds, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 4, 3), np.uint8)
    spec = write_tfds(tmp_path, "aae_unknown", {"train": (images, None), "test": (images, None)})
    source = load(spec, data_dir=str(tmp_path), streaming=True)
    assert source.num_classes == 0 and source.train.image.shape == (40, 5, 4, 3)
    assert (source.train.label == -1).all()


def test_a_broken_record_is_named_with_what_to_do(stored_digits, tmp_path):
    spec, data_dir = stored_digits
    folder = tmp_path / "aae_digits" / "1.0.0"
    shutil.copytree(Path(data_dir) / "aae_digits" / "1.0.0", folder)
    images = load(spec, data_dir=str(tmp_path), streaming=True).train.image
    (records,) = folder.glob("*-train.array_record*")
    damage(records)
    with pytest.raises(DataError) as caught:
        np.asarray(images)
    line = str(caught.value)
    assert line.startswith(f"{folder}: split train, example ") and "\n" not in line
    assert "prepare the data set again" in line
    whole = [row for row in range(len(images)) if readable(images, row)]
    assert 0 < len(whole) < len(images)  # the others can still be read
    # From the start, it is noticed at once.
    with pytest.raises(DataError, match="prepare the data set again"):
        load(spec, data_dir=str(tmp_path), streaming=True)


class Records(list):
    """A TFDS data source of serialized examples."""

    def __getitems__(self, rows):
        return [self[row] for row in rows]


@pytest.mark.parametrize("decoder", ["opencv", "pillow"])
def test_tfds_images_are_decoded_and_what_is_none_is_named(decoder, monkeypatch):
    if decoder == "pillow":
        monkeypatch.setattr(image_feature, "cv2", None)
    written = numbered(3)
    encoded = [*map(png, written), png(written[0])[:40]]
    feature = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(2, 3, 1))})
    records = Records(serialized(each) for each in encoded)
    reader = TfdsImages(records, feature["image"], "the set")
    np.testing.assert_array_equal(reader.read(np.array([2, 0, 1])), written[[2, 0, 1]])
    with pytest.raises(DataError) as caught:
        reader.read(np.arange(4))
    line = str(caught.value)
    assert line.startswith("the set, example 3: ") and "prepare the data set again" in line
    assert "image" in line and "NoneType" not in line


def serialized(image):
    """A record of a TFDS set."""
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(image)
    return example.SerializeToString()


def png(image):
    """A grey image as a PNG file's bytes."""
    content = io.BytesIO()
    Image.fromarray(image[..., 0]).save(content, "png")
    return content.getvalue()


def damage(records: Path):
    """Overwrites some bytes in the middle of a file in its place, as a bad disk would."""
    with records.open("r+b") as file:
        file.seek(records.stat().st_size // 2)
        file.write(np.random.default_rng(0).bytes(600))


def readable(images, row):
    try:
        images[np.array([row])]
    except DataError:
        return False
    return True


@pytest.mark.parametrize(
    ("shapes", "dtype", "words"),
    [
        ([(6, 5, 1), (6, 4, 1)], np.uint8, ["mixed sizes", "[6, 5, 1]", "[6, 4, 1]", "example "]),
        ([(6, 5, 1)], np.uint16, ["Image of uint16", "uint8"]),
    ],
)
def test_images_that_cannot_be_streamed(write_tfds, tmp_path, shapes, dtype, words):
    images = [np.zeros(shapes[i % len(shapes)], dtype) for i in range(30)]
    spec = write_tfds(tmp_path, "aae_unfit", {"train": (images, None), "test": (images[:1], None)})
    with pytest.raises(DataError) as caught:
        np.asarray(load(spec, data_dir=str(tmp_path), streaming=True).train.image)
    line = str(caught.value)
    assert all(word in line for word in words) and str(tmp_path) in line and "\n" not in line


@pytest.mark.parametrize("spec", ["digits", "idx:/tmp", "npz:/tmp/x.npz"])
def test_other_sources_are_not_streamed(spec):
    with pytest.raises(DataError, match=f"^{spec}: cannot be streamed; .* tfds:NAME, folder"):
        load(spec, streaming=True)
