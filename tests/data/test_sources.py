import gzip
import hashlib
import os
import shutil
import socket
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aae_jax.data import Arrays, DataError, load, split

# TensorFlow, which TFDS writes with: quiet, without asking for a cloud machine.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_GCE_CHECK", "true")

IMAGE_FILE = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
LABEL_FILE = {"train": "train-labels-idx1-ubyte", "test": "t10k-labels-idx1-ubyte"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A call may swallow the exception, so attempts are counted too."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("no test may use the network")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert attempts == []


def error_of(spec: str, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        load(spec, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and "\r" not in message
    return message


def assert_same(arrays: Arrays, image: np.ndarray, label: np.ndarray):
    assert arrays.image.dtype == image.dtype and arrays.label.dtype == np.int32
    np.testing.assert_array_equal(arrays.image, image)
    np.testing.assert_array_equal(arrays.label, label)


# --- digits -------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_images_scaled_to_bytes():
    from sklearn.datasets import load_digits

    source = load("digits")
    raw = load_digits()
    scaled = [[[round(x * 255 / 16) for x in row] for row in image] for image in raw.images]
    want = sorted(
        (np.array(image, np.uint8).tobytes(), label)
        for image, label in zip(scaled, raw.target, strict=True)
    )
    have = sorted(
        (image.tobytes(), label)
        for part in (source.train, source.test)
        for image, label in zip(part.image, part.label.tolist(), strict=True)
    )
    assert have == want
    assert source.train.image.shape == (1500, 8, 8, 1)
    assert source.test.image.shape == (297, 8, 8, 1)
    assert source.train.image.dtype == np.uint8 and source.train.image.max() == 255
    assert source.valid is None and source.num_classes == 10


def test_digits_split_is_disjoint_stratified_and_always_the_same():
    source, again = load("digits"), load("digits")
    hashes = [
        {hashlib.sha256(image.tobytes()).hexdigest() for image in part.image}
        for part in (source.train, source.test)
    ]
    assert not hashes[0] & hashes[1]
    train, test = np.bincount(source.train.label), np.bincount(source.test.label)
    assert np.abs(test - (train + test) * 297 / 1797).max() < 1
    assert_same(again.train, *source.train)
    assert_same(again.test, *source.test)
    # Another split would make every score on digits incomparable with older ones.
    digest = hashlib.sha256(source.test.image.tobytes()).hexdigest()
    assert digest.startswith("f56e24c63f14e2aa")


# --- IDX ----------------------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, compress: dict[str, bool] | bool = False) -> dict[str, Arrays]:
    rng = np.random.default_rng(0)
    data = {}
    for part, n in (("train", 20), ("test", 10)):
        label = np.arange(n) % 10
        data[part] = Arrays(rng.integers(0, 256, (n, 5, 4), np.uint8), label.astype(np.int32))
        for name, array in (
            (IMAGE_FILE[part], data[part].image),
            (LABEL_FILE[part], label.astype(np.uint8)),
        ):
            packed = compress if isinstance(compress, bool) else compress[name]
            content = idx_bytes(array)
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content) if packed else content)
    return data


MIXED = {name: "images" in name for name in (*IMAGE_FILE.values(), *LABEL_FILE.values())}


@pytest.mark.parametrize("compress", [False, True, MIXED], ids=["plain", "gz", "mixed"])
def test_idx_round_trip(tmp_path, compress):
    data = write_idx(tmp_path, compress)
    source = load(f"idx:{tmp_path}")
    for part in ("train", "test"):
        assert_same(getattr(source, part), data[part].image[..., None], data[part].label)
    assert source.valid is None and source.num_classes == 10


def test_idx_plain_file_wins_over_gz(tmp_path):
    write_idx(tmp_path, True)
    other = np.full((20, 5, 4), 7, np.uint8)
    (tmp_path / IMAGE_FILE["train"]).write_bytes(idx_bytes(other))
    np.testing.assert_array_equal(load(f"idx:{tmp_path}").train.image[..., 0], other)


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_idx(tmp_path)
    assert len(load("idx:~").train.image) == 20


# --- npz ----------------------------------------------------------------------------------------


def npz_arrays(shape=(5, 4), dtype=np.uint8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    arrays = {}
    for part, n in (("train", 12), ("valid", 5), ("test", 6)):
        image = rng.integers(0, 256, (n, *shape))
        arrays[f"x_{part}"] = (
            image.astype(dtype) if dtype == np.uint8 else (image / 7).astype(dtype)
        )
        arrays[f"y_{part}"] = np.arange(n) % 3
    return arrays


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (20,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, ">f4"])
def test_npz_round_trip(tmp_path, shape, dtype):
    arrays = npz_arrays(shape, dtype)
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    source = load(f"npz:{path}")
    for part in ("train", "valid", "test"):
        image = arrays[f"x_{part}"]
        image = image if image.dtype == np.uint8 else image.astype(np.float32)
        image = image.reshape(len(image), 5, 4, 1) if shape == (5, 4) else image
        assert_same(getattr(source, part), image, arrays[f"y_{part}"])
    assert source.num_classes == 3 and source.name == f"npz:{path}"


def test_npz_unknown_labels_are_minus_one(tmp_path):
    arrays = npz_arrays()
    path = tmp_path / "data.npz"
    np.savez(path, x_train=arrays["x_train"], x_test=arrays["x_test"])
    source = load(f"npz:{path}")
    assert source.valid is None and source.num_classes == 0
    assert (source.train.label == -1).all() and (source.test.label == -1).all()

    # Labels of the test set alone still say how many classes there are.
    np.savez(path, x_train=arrays["x_train"], x_test=arrays["x_test"], y_test=arrays["y_test"])
    source = load(f"npz:{path}")
    assert source.num_classes == 3 and (source.train.label == -1).all()

    arrays["y_train"][::2] = -1
    np.savez(path, **arrays)
    np.testing.assert_array_equal(load(f"npz:{path}").train.label, arrays["y_train"])


def test_npz_other_arrays_are_not_looked_at(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, class_names=np.array(["a", None], object), **npz_arrays())
    assert load(f"npz:{path}").num_classes == 3


# --- image folders ------------------------------------------------------------------------------

GREY, COLOUR = (5, 4), (5, 4, 3)


def pixels(seed: int, shape=GREY) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_image(path: Path, image: np.ndarray | Image.Image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)


def write_folder(root: Path, counts: dict[str, int], shape=GREY) -> dict[bytes, str]:
    """Writes so many images to each folder; where each one is, by its bytes."""
    where = {}
    for folder, count in counts.items():
        for i in range(count):
            image = pixels(len(where), shape)
            write_image(root / folder / f"{i:03}.png", image)
            where[image.tobytes()] = f"{folder}/{i:03}"
    return where


def places(arrays: Arrays, where: dict[bytes, str]) -> dict[str, int]:
    """Where each image was found, with its label."""
    found = [where[image.tobytes()] for image in arrays.image]
    assert len(set(found)) == len(found)
    return dict(zip(found, arrays.label.tolist(), strict=True))


def of_folders(counts: dict[str, int], labels: dict[str, int]) -> dict[str, int]:
    return {f"{f}/{i:03}": label for f, label in labels.items() for i in range(counts[f])}


@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_folder_round_trip(tmp_path, shape):
    counts = {"train/b": 3, "train/10": 2, "train/2": 4, "valid/2": 1, "valid/b": 2}
    counts |= {"test/b": 2, "test/10": 1, "train/unlabelled": 3, "test/Unlabeled": 1}
    where = write_folder(tmp_path, counts, shape)
    source = load(f"folder:{tmp_path}")
    # Names in the order of their letters: 10, 2, b.
    train = {"train/10": 0, "train/2": 1, "train/b": 2, "train/unlabelled": -1}
    assert places(source.train, where) == of_folders(counts, train)
    assert places(source.valid, where) == of_folders(counts, {"valid/2": 1, "valid/b": 2})
    test = {"test/10": 0, "test/b": 2, "test/Unlabeled": -1}
    assert places(source.test, where) == of_folders(counts, test)
    assert source.train.image.shape == (12, 5, 4, 3 if shape == COLOUR else 1)
    assert source.train.image.dtype == np.uint8 and source.train.label.dtype == np.int32
    assert source.num_classes == 3 and source.name == f"folder:{tmp_path}"


def test_folder_of_classes_alone_gives_every_tenth_image_to_the_test_set(tmp_path):
    counts = {"cat": 25, "dog": 9, "unlabelled": 10}
    where = write_folder(tmp_path, counts)
    source = load(f"folder:{tmp_path}")
    everything = of_folders(counts, {"cat": 0, "dog": 1, "unlabelled": -1})
    test = {"cat/009": 0, "cat/019": 0, "unlabelled/009": -1}
    assert places(source.test, where) == test
    train = places(source.train, where)
    assert {**train, **test} == everything and not set(train) & set(test)
    assert source.valid is None and source.num_classes == 2


def test_folder_images_are_mixed_and_always_in_the_same_order(tmp_path):
    write_folder(tmp_path, {"a": 200, "b": 200, "c": 200})
    source = load(f"folder:{tmp_path}")
    # So that images held out from the end are of all classes.
    held_out = split(source, 60, -1, 0).valid.label
    assert np.bincount(held_out).min() > 5
    again = load(f"folder:{tmp_path}")
    assert_same(again.train, *source.train)
    assert_same(again.test, *source.test)


def test_folder_without_labels_or_with_test_labels_alone(tmp_path):
    counts = {"train/unlabelled": 3, "test/unlabeled": 2}
    write_folder(tmp_path, counts)
    assert load(f"folder:{tmp_path}").num_classes == 0
    write_folder(tmp_path, {"test/b": 1, "test/a": 1})
    source = load(f"folder:{tmp_path}")
    assert (source.train.label == -1).all() and source.num_classes == 2
    assert sorted(source.test.label.tolist()) == [-1, -1, 0, 1]


def test_folder_leaves_out_hidden_files(tmp_path):
    write_folder(tmp_path, {"train/a": 2, "test/a": 1, "train/.cache": 1, "__MACOSX/a": 1})
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".000.png"):
        (tmp_path / "train" / "a" / name).write_text("no image")
        (tmp_path / "train" / name).write_text("no image")
    (tmp_path / "README.txt").write_text("beside the folders, anything that is no image")
    source = load(f"folder:{tmp_path}")
    assert len(source.train.image) == 2 and source.num_classes == 1


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".gif", ".jpg", ".jpeg", ".PNG"])
def test_folder_formats(tmp_path, suffix):
    for part in ("train", "test"):
        options = {"lossless": True} if suffix == ".webp" else {"quality": 95}
        even = np.full(COLOUR if suffix == ".webp" else GREY, 77, np.uint8)
        write_image(tmp_path / part / "a" / f"x{suffix}", even, **options)
    image = load(f"folder:{tmp_path}").train.image
    assert image.shape == (1, 5, 4, 3 if suffix == ".webp" else 1)
    assert np.abs(image.astype(int) - 77).max() <= 2


def test_folder_reads_the_first_picture_of_an_animation(tmp_path):
    frames = [Image.new("L", (4, 5), value) for value in (10, 200)]
    write_image(tmp_path / "train/a/x.gif", frames[0], save_all=True, append_images=frames[1:])
    write_image(tmp_path / "test/a/x.png", frames[1])
    assert (load(f"folder:{tmp_path}").train.image == 10).all()


def transparent(alpha: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels(0, COLOUR)).convert("RGBA")
    image.putalpha(Image.fromarray(alpha))
    return image


MODES = {
    "L": (lambda: Image.fromarray(pixels(0)), pixels(0)[..., None]),
    "1": (
        lambda: Image.fromarray(pixels(0)).point(lambda v: 255 * (v > 99), "1"),
        np.uint8(255 * (pixels(0) > 99))[..., None],
    ),
    "RGB": (lambda: Image.fromarray(pixels(0, COLOUR)), pixels(0, COLOUR)),
    "RGBA": (lambda: transparent(np.full(GREY, 255, np.uint8)), pixels(0, COLOUR)),
    # Wholly transparent pixels hold whatever the program that wrote them left there.
    "RGBA, transparent": (
        lambda: transparent(np.uint8(255 * (pixels(1) > 99))),
        np.where((pixels(1) > 99)[..., None], pixels(0, COLOUR), np.uint8(255)),
    ),
    "LA": (
        lambda: Image.merge("LA", (Image.fromarray(pixels(0)), Image.new("L", (4, 5), 0))),
        np.full((5, 4, 1), 255, np.uint8),
    ),
    "P, grey": (lambda: Image.fromarray(pixels(0)).convert("P"), pixels(0)[..., None]),
    "P": (lambda: Image.fromarray(pixels(0, COLOUR) & 128).quantize(8), pixels(0, COLOUR) & 128),
}


@pytest.mark.parametrize("mode", MODES)
def test_folder_converts_to_grey_or_colour(tmp_path, mode):
    make, expected = MODES[mode]
    image = make()
    assert image.mode == mode.split(",")[0]
    for part in ("train", "test"):
        write_image(tmp_path / part / "a" / "x.png", image)
    np.testing.assert_array_equal(load(f"folder:{tmp_path}").train.image[0], expected)


@pytest.mark.parametrize(("grey", "colour"), [("train", "test"), ("test", "train")])
def test_folder_with_one_colour_image_is_in_colour(tmp_path, grey, colour):
    write_image(tmp_path / grey / "a/x.png", pixels(0))
    write_image(tmp_path / colour / "a/x.png", pixels(1, COLOUR))
    source = load(f"folder:{tmp_path}")
    found = getattr(source, grey).image[0], getattr(source, colour).image[0]
    np.testing.assert_array_equal(found[0], np.stack([pixels(0)] * 3, axis=-1))
    np.testing.assert_array_equal(found[1], pixels(1, COLOUR))


# --- bad data -----------------------------------------------------------------------------------


def bad_idx(name: str, change, compress: bool = False):
    """A folder of four good files but for one; the error must name that one."""

    def build(tmp_path: Path) -> tuple[str, str]:
        write_idx(tmp_path, compress)
        path = tmp_path / (f"{name}.gz" if compress else name)
        content = change(path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)
        return f"idx:{tmp_path}", str(tmp_path if content is None else path)

    return build


def bad_npz(change):
    """A good file but for the arrays that `change` returns; None takes one out."""

    def build(tmp_path: Path) -> tuple[str, str]:
        arrays = npz_arrays()
        arrays.update(change(arrays))
        path = tmp_path / "data.npz"
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return f"npz:{path}", str(path)

    return build


def bad_file(write):
    def build(tmp_path: Path) -> tuple[str, str]:
        path = tmp_path / "data.npz"
        np.savez(path, **npz_arrays())
        write(path)
        return f"npz:{path}", str(path)

    return build


def corrupt_member(path: Path):
    """Flips bytes of an array's content: the archive opens, a checksum does not fit."""
    content = bytearray(path.read_bytes())
    middle = content.index(b"NUMPY") + 130
    content[middle : middle + 4] = bytes(255 - byte for byte in content[middle : middle + 4])
    path.write_bytes(content)


def no_array_inside(path: Path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", b"these are no numbers")
        archive.writestr("x_test.npy", b"these are no numbers")


def pretend_huge(content: bytes) -> bytes:
    return content[:4] + b"\xff" * 12 + content[16:]


def ragged(n: int) -> np.ndarray:
    images = np.empty(n, object)
    images[:] = [np.zeros((5, 4 + i % 2), np.uint8) for i in range(n)]
    return images


def bad_folder(name: str, change):
    """A good folder but for one thing, named by the path in it that the error must name."""

    def build(tmp_path: Path) -> tuple[str, str]:
        write_folder(tmp_path, {"train/a": 3, "train/b": 2, "test/a": 2, "valid/b": 1})
        change(tmp_path / name)
        return f"folder:{tmp_path}", str(tmp_path / name)

    return build


def bad_classes(name: str, change, counts=None):
    def build(tmp_path: Path) -> tuple[str, str]:
        write_folder(tmp_path, counts or {"a": 12, "b": 10})
        change(tmp_path / name)
        return f"folder:{tmp_path}", str(tmp_path / name)

    return build


def cut_short(path: Path):
    write_image(path, pixels(0, (64, 64)))
    path.write_bytes(path.read_bytes()[:2000])


def write_text(path: Path):
    path.write_text("<html>404</html>")


TRAIN_IMAGES, TRAIN_LABELS = IMAGE_FILE["train"], LABEL_FILE["train"]
CORRUPTIONS = {
    "idx folder missing": (
        lambda tmp_path: (f"idx:{tmp_path}/none", f"{tmp_path}/none"),
        "no such folder",
    ),
    "idx folder is a file": (
        lambda tmp_path: (
            f"idx:{shutil.copy(__file__, tmp_path / 'file')}",
            str(tmp_path / "file"),
        ),
        "not a folder",
    ),
    "idx file missing": (bad_idx(TRAIN_LABELS, lambda b: None), TRAIN_LABELS),
    "idx file empty": (bad_idx(TRAIN_IMAGES, lambda b: b""), "truncated"),
    "idx header truncated": (bad_idx(TRAIN_IMAGES, lambda b: b[:10]), "truncated"),
    "idx truncated": (bad_idx(TRAIN_IMAGES, lambda b: b[:-1]), "truncated"),
    "idx trailing bytes": (bad_idx(TRAIN_IMAGES, lambda b: b + b"\0"), "left over"),
    "idx labels truncated": (bad_idx(LABEL_FILE["test"], lambda b: b[:-3]), "truncated"),
    "idx wrong magic": (bad_idx(TRAIN_IMAGES, lambda b: b"\0\0\x0d\x03" + b[4:]), "magic"),
    "idx labels for images": (
        bad_idx(TRAIN_IMAGES, lambda b: idx_bytes(np.zeros(400, np.uint8))),
        "magic",
    ),
    "idx impossible size": (bad_idx(TRAIN_IMAGES, pretend_huge), "truncated"),
    "idx no images": (
        bad_idx(TRAIN_IMAGES, lambda b: idx_bytes(np.zeros((0, 5, 4), np.uint8))),
        "empty",
    ),
    "idx fewer labels than images": (
        bad_idx(TRAIN_LABELS, lambda b: idx_bytes(np.zeros(19, np.uint8))),
        "one label per image",
    ),
    "idx test label beyond training classes": (
        bad_idx(LABEL_FILE["test"], lambda b: b[:-1] + bytes([10])),
        "out of range",
    ),
    "idx test images of another size": (
        bad_idx(IMAGE_FILE["test"], lambda b: idx_bytes(np.zeros((10, 4, 4), np.uint8))),
        "one shape",
    ),
    "gz truncated": (bad_idx(TRAIN_IMAGES, lambda b: b[:-20], True), "cannot be read"),
    "gz trailing bytes": (bad_idx(TRAIN_IMAGES, lambda b: b + b"more", True), "cannot be read"),
    "gz damaged inside": (
        bad_idx(TRAIN_IMAGES, lambda b: b[:40] + bytes(9) + b[49:], True),
        "cannot be read",
    ),
    "gz is not gzip": (bad_idx(TRAIN_LABELS, lambda b: b"<html>404</html>", True), "gzip"),
    "gz of a truncated file": (
        bad_idx(TRAIN_IMAGES, lambda b: gzip.compress(gzip.decompress(b)[:-1]), True),
        "truncated",
    ),
    "npz missing": (
        lambda tmp_path: (f"npz:{tmp_path}/a.npz", f"{tmp_path}/a.npz"),
        "no such file",
    ),
    "npz is a folder": (lambda tmp_path: (f"npz:{tmp_path}", str(tmp_path)), "not a file"),
    "npz path too long": (lambda tmp_path: (f"npz:/{'a' * 9999}", "a" * 9999), "no such file"),
    "npz is not a zip": (bad_file(lambda path: path.write_bytes(b"hello" * 99)), "not an .npz"),
    "npz truncated": (
        bad_file(lambda path: path.write_bytes(path.read_bytes()[:-30])),
        "not an .npz",
    ),
    "npz damaged inside": (bad_file(corrupt_member), "cannot be read"),
    "npz without arrays": (bad_file(no_array_inside), "x_train: images of type"),
    "npz is an .npy": (
        bad_file(lambda path: np.save(path.open("wb"), np.zeros(3))),
        "not an .npz",
    ),
    "no x_test": (bad_npz(lambda a: {"x_test": None}), "holds no x_test"),
    "y_valid alone": (bad_npz(lambda a: {"x_valid": None}), "y_valid without x_valid"),
    "mixed sizes": (bad_npz(lambda a: {"x_train": ragged(12)}), "x_train cannot be read"),
    "object labels": (
        bad_npz(lambda a: {"y_train": np.array([None] * 12)}),
        "y_train cannot be read",
    ),
    "more images than labels": (
        bad_npz(lambda a: {"y_train": a["y_train"][:-1]}),
        "one label per image",
    ),
    "one-hot labels": (bad_npz(lambda a: {"y_test": np.eye(6, dtype=int)}), "one label per image"),
    "label below -1": (
        bad_npz(lambda a: {"y_test": np.array([0, 1, 2, -2, 1, 2])}),
        "out of range",
    ),
    "absurd label": (
        bad_npz(lambda a: {"y_train": a["y_train"].astype(np.uint64) + 2**63}),
        "out of range",
    ),
    "validation label beyond training classes": (
        bad_npz(lambda a: {"y_valid": a["y_valid"] + 1}),
        "out of range",
    ),
    "float labels": (bad_npz(lambda a: {"y_train": a["y_train"] * 1.0}), "integers"),
    "text labels": (bad_npz(lambda a: {"y_train": a["y_train"].astype(str)}), "integers"),
    "NaN": (
        bad_npz(lambda a: {"x_train": np.where(np.arange(4) == 3, np.nan, a["x_train"] / 255)}),
        "NaN",
    ),
    "infinite": (bad_npz(lambda a: {"x_test": np.full((6, 5, 4), -np.inf)}), "infinite"),
    "infinite as float32": (bad_npz(lambda a: {"x_test": np.full((6, 5, 4), 1e39)}), "infinite"),
    "no training images": (
        bad_npz(lambda a: {"x_train": a["x_train"][:0], "y_train": a["y_train"][:0]}),
        "empty",
    ),
    "no test images": (
        bad_npz(lambda a: {"x_test": a["x_test"][:0], "y_test": a["y_test"][:0]}),
        "empty",
    ),
    "images without pixels": (bad_npz(lambda a: {"x_test": a["x_test"][:, :, :0]}), "empty"),
    "test images of another size": (bad_npz(lambda a: {"x_test": a["x_test"][:, 1:]}), "one shape"),
    "test images of another type": (
        bad_npz(lambda a: {"x_test": a["x_test"] / np.float32(255)}),
        "type",
    ),
    "integer images": (bad_npz(lambda a: {"x_train": a["x_train"].astype(np.int64)}), "uint8"),
    "a single number per image": (
        bad_npz(lambda a: {"x_train": a["x_train"][:, 0, 0]}),
        "[n, h, w]",
    ),
    "folder missing": (
        lambda tmp_path: (f"folder:{tmp_path}/none", f"{tmp_path}/none"),
        "no such folder",
    ),
    "folder is a file": (
        lambda tmp_path: (
            f"folder:{shutil.copy(__file__, tmp_path / 'file')}",
            str(tmp_path / "file"),
        ),
        "not a folder",
    ),
    "folder empty": (bad_folder("", lambda p: [shutil.rmtree(x) for x in p.iterdir()]), "CLASS"),
    "folder without train": (bad_folder("train", shutil.rmtree), "no train"),
    "folder without test": (bad_folder("test", shutil.rmtree), "no test"),
    "folder beside train": (bad_folder("val", Path.mkdir), "not one of train, valid, test"),
    "folder of train without classes": (
        bad_folder("train", lambda p: [shutil.rmtree(x) for x in p.iterdir()]),
        "no class folders",
    ),
    "folder of a class empty": (bad_folder("train/c", Path.mkdir), "holds no images"),
    "folder of a class with hidden files only": (
        bad_folder("test/b", lambda p: (p.mkdir(), write_text(p / ".x.png"))),
        "holds no images",
    ),
    "folder of a class in a class": (
        bad_folder("train/a/more", Path.mkdir),
        "a folder inside a class folder",
    ),
    "folder with a test class alone": (
        bad_folder("test/c", lambda p: write_image(p / "x.png", pixels(0))),
        "without training images",
    ),
    "image outside the classes": (
        bad_folder("train/x.PNG", lambda p: write_image(p, pixels(0))),
        "outside the class folders",
    ),
    "image outside the classes alone": (
        bad_classes("x.jpeg", lambda p: write_image(p, pixels(0))),
        "outside the class folders",
    ),
    "classes of fewer than ten images": (bad_classes("", lambda p: None, {"a": 9, "b": 2}), "10"),
    "image of a format not read": (
        bad_folder("test/a/x.tif", lambda p: write_image(p, pixels(0))),
        "not an image file",
    ),
    "image that is text": (bad_folder("train/a/001.png", write_text), "no image of a known format"),
    "image empty": (bad_folder("valid/b/000.png", lambda p: p.write_bytes(b"")), "cannot be read"),
    "image cut short": (
        lambda tmp_path: (
            write_folder(tmp_path, {"train/b": 1, "test/b": 1}, (64, 64)),
            cut_short(tmp_path / "train/b/0.png"),
            (f"folder:{tmp_path}", str(tmp_path / "train/b/0.png")),
        )[-1],
        "cannot be read",
    ),
    "image that is a folder": (bad_folder("train/a/x.png", Path.mkdir), "cannot be read"),
    "image of a link to nothing": (
        bad_folder("train/a/x.png", lambda p: p.symlink_to("/nowhere/x.png")),
        "cannot be read",
    ),
    "image of 16 bits": (
        bad_folder("train/a/x.png", lambda p: write_image(p, np.full(GREY, 999, np.uint16))),
        "mode I;16",
    ),
    "image of another size": (
        bad_folder("train/a/x.png", lambda p: write_image(p, pixels(0, (6, 3)))),
        "000.png is 4 x 5, ",
    ),
    "image of another size in the test set": (
        bad_folder("test/a/x.png", lambda p: write_image(p, pixels(0, (6, 3)))),
        "x.png is 3 x 6; ",
    ),
    "video": (bad_npz(lambda a: {"x_train": a["x_train"][..., None, None]}), "[n, h, w]"),
}


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_bad_data_is_one_line_that_names_file_and_cause(tmp_path, case):
    build, cause = CORRUPTIONS[case]
    spec, path = build(tmp_path)
    message = error_of(spec)
    assert path in message
    assert cause in message


@pytest.mark.parametrize(
    "spec",
    ["", "mnist", "digits:8", "tfds", "tfds:", "idx:", "npz:", "npz", "folder:", ":x", "Digits"],
)
def test_unknown_specs_list_the_known_ones(spec):
    assert error_of(spec).endswith("known are digits, tfds:NAME, idx:DIR, npz:FILE, folder:DIR")


@pytest.mark.parametrize("spec", ["http://a/b.npz", "npz:https://a/b.npz", "folder:gs://a/b"])
def test_urls_are_refused(spec):
    assert spec in error_of(spec) and "URLs are not read" in error_of(spec)


def test_line_breaks_of_file_names_are_folded(tmp_path):
    assert "no such file" in error_of(f"npz:{tmp_path}/a\nb\r\nc.npz")


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(["plain", "gz", "npz"]), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_noticed(tmp_path_factory, kind, share):
    folder = tmp_path_factory.mktemp("cut")
    if kind == "npz":
        path, spec = folder / "data.npz", f"npz:{folder}/data.npz"
        np.savez_compressed(path, **npz_arrays())
    else:
        write_idx(folder, kind == "gz")
        path = folder / (TRAIN_IMAGES + (".gz" if kind == "gz" else ""))
        spec = f"idx:{folder}"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert str(path) in error_of(spec)


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(["gz", "npz"]), place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_a_changed_byte_never_gives_other_images(tmp_path_factory, kind, place, flip):
    folder = tmp_path_factory.mktemp("flip")
    if kind == "npz":
        path, spec = folder / "data.npz", f"npz:{folder}/data.npz"
        np.savez_compressed(path, **npz_arrays())
        want = npz_arrays()["x_train"]
    else:
        want = write_idx(folder, True)["train"].image
        path, spec = folder / f"{TRAIN_IMAGES}.gz", f"idx:{folder}"
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= flip
    path.write_bytes(content)
    try:
        image = load(spec).train.image
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        np.testing.assert_array_equal(image[..., 0], want)


# --- TFDS ---------------------------------------------------------------------------------------

TFDS_SIZES = {"train": 23, "validation": 7, "test": 11}


def tfds_image(part: str, i: int, shape=(6, 5, 1)) -> np.ndarray:
    seed = list(TFDS_SIZES).index(part)
    return np.random.default_rng([seed, i]).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def builders():
    """TFDS builders of small sets; defining one registers its name with TFDS."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()

    class AaeTiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        PARTS = ("train", "validation", "test")
        FEATURES = {  # noqa: RUF012
            "image": tfds.features.Image(shape=(6, 5, 1)),
            "label": tfds.features.ClassLabel(num_classes=4),
        }

        def _info(self):
            features = tfds.features.FeaturesDict(self.FEATURES)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, download_manager):
            return {part: self._generate_examples(part) for part in self.PARTS}

        def _generate_examples(self, part):
            for i in range(TFDS_SIZES[part]):
                yield i, self.example(part, i)

        def example(self, part, i):
            return {"image": tfds_image(part, i), "label": i % 3 if part == "train" else -1}

    class AaeUnlabelled(AaeTiny):
        PARTS = ("train", "test")
        FEATURES = {"image": tfds.features.Image(shape=(6, 5, 3))}  # noqa: RUF012

        def example(self, part, i):
            return {"image": tfds_image(part, i, (6, 5, 3))}

    class AaeMixedSizes(AaeUnlabelled):
        FEATURES = {"image": tfds.features.Image(shape=(None, None, 3))}  # noqa: RUF012

        def example(self, part, i):
            return {"image": tfds_image(part, i, (6, 5 + i % 2, 3))}

    class AaeNoImage(AaeUnlabelled):
        FEATURES = {"text": tfds.features.Text()}  # noqa: RUF012

        def example(self, part, i):
            return {"text": "hello"}

    class AaeTrainOnly(AaeTiny):
        PARTS = ("train",)

    class AaeTfrecord(AaeTiny):
        PARTS = ("train", "test")

    class AaeConfigs(AaeUnlabelled):
        BUILDER_CONFIGS = [  # noqa: RUF012
            tfds.core.BuilderConfig(name="small", version="1.0.0"),
            tfds.core.BuilderConfig(name="large", version="2.0.0"),
        ]

    return {each.__name__: each for each in (AaeTiny, *AaeTiny.__subclasses__())} | {
        each.__name__: each for each in AaeUnlabelled.__subclasses__()
    }


@pytest.fixture(scope="module")
def data_dir(builders, tmp_path_factory) -> str:
    """A folder of prepared sets, as TFDS itself writes them."""
    root = str(tmp_path_factory.mktemp("tfds"))
    for name, builder in builders.items():
        if name != "AaeConfigs":
            kind = "tfrecord" if name == "AaeTfrecord" else "array_record"
            builder(data_dir=root, file_format=kind).download_and_prepare()
    return root


def test_tfds_round_trip(data_dir):
    source = load("tfds:aae_tiny", data_dir=data_dir)
    for part, arrays in zip(TFDS_SIZES, (source.train, source.valid, source.test), strict=True):
        # TFDS shuffles as it writes, so the examples are compared as a set.
        want = {tfds_image(part, i).tobytes(): i % 3 for i in range(TFDS_SIZES[part])}
        if part != "train":
            want = dict.fromkeys(want, -1)
        have = {
            image.tobytes(): label
            for image, label in zip(arrays.image, arrays.label.tolist(), strict=True)
        }
        assert have == want
        assert arrays.image.shape == (TFDS_SIZES[part], 6, 5, 1)
        assert arrays.image.dtype == np.uint8 and arrays.label.dtype == np.int32
    assert source.num_classes == 4  # as declared, though no example is of the last class
    again = load("tfds:aae_tiny:1.0.0", data_dir=data_dir)
    assert_same(again.train, *source.train)


def test_tfds_data_dir_defaults_to_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    assert len(load("tfds:aae_tiny").train.image) == TFDS_SIZES["train"]


def test_tfds_without_labels(data_dir):
    source = load("tfds:aae_unlabelled", data_dir=data_dir)
    assert source.train.image.shape == (23, 6, 5, 3)
    assert (source.train.label == -1).all()
    assert source.valid is None and source.num_classes == 0


def test_tfds_set_that_is_not_prepared_is_named_at_once_without_tfds(tmp_path, monkeypatch):
    # With TFDS out of reach, nothing but our own look at the disk can have found it missing.
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for name in ("mnist", "mnist:3.0.1", "mnist_corrupted/identity", "no_such_set"):
        message = error_of(f"tfds:{name}", data_dir=str(tmp_path))
        assert f"tfds:{name}: not prepared in {tmp_path}" in message
        assert "--config.data.download=True" in message
        assert "idx:DIR" in message and "npz:FILE" in message
    assert list(tmp_path.iterdir()) == []


def test_tfds_versions_and_configs(builders, tmp_path):
    root = str(tmp_path)
    for name in ("small", "large"):
        builder = builders["AaeConfigs"](config=name, data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    message = error_of("tfds:aae_configs", data_dir=root)
    assert "tfds:aae_configs/large, tfds:aae_configs/small" in message
    assert len(load("tfds:aae_configs/small", data_dir=root).train.image) == 23
    assert "not prepared" in error_of("tfds:aae_configs/small:2.0.0", data_dir=root)
    assert "not prepared" in error_of("tfds:aae_configs/medium", data_dir=root)
    shutil.rmtree(tmp_path / "aae_configs" / "large")
    assert len(load("tfds:aae_configs:1.0.0", data_dir=root).train.image) == 23
    # Of two versions the higher one is read, and 1.10 is higher than 1.9.
    versions = tmp_path / "aae_configs" / "small"
    shutil.copytree(versions / "1.0.0", versions / "1.10.0")
    (versions / "1.9.0").mkdir()
    (versions / "1.9.0" / "dataset_info.json").write_text("not read")
    assert len(load("tfds:aae_configs/small", data_dir=root).train.image) == 23


def test_tfds_prepares_only_when_asked(builders, tmp_path):
    root = str(tmp_path)
    error_of("tfds:aae_tiny", data_dir=root)
    source = load("tfds:aae_tiny", download=True, data_dir=root)
    assert len(source.train.image) == TFDS_SIZES["train"]
    assert_same(load("tfds:aae_tiny", data_dir=root).train, *source.train)


def test_tfds_download_of_an_unknown_set(tmp_path):
    message = error_of("tfds:aae_no_such_set", download=True, data_dir=str(tmp_path))
    assert "could not prepare" in message and str(tmp_path) in message


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("aae_mixed_sizes", "mixed sizes"),
        ("aae_no_image", "no feature 'image'"),
        ("aae_train_only", "missing split test"),
        ("aae_tfrecord", "prepared as tfrecord"),
    ],
)
def test_tfds_sets_that_do_not_fit(data_dir, name, cause):
    for download in (False, True):
        message = error_of(f"tfds:{name}", download=download, data_dir=data_dir)
        assert f"{data_dir}/{name}/1.0.0" in message
        assert cause in message


@pytest.mark.parametrize("name", ["../x", "a/b/c", "kaggle:x", "mnist:3", "mnist:3.*.*", "a b"])
def test_tfds_names_are_checked(name, tmp_path):
    assert f"'tfds:{name}'" in error_of(f"tfds:{name}", data_dir=str(tmp_path))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "gone", "info", "features", "count"])
def test_tfds_damaged_files(data_dir, tmp_path, damage):
    folder = tmp_path / "aae_tiny" / "1.0.0"
    shutil.copytree(Path(data_dir) / "aae_tiny" / "1.0.0", folder)
    (records,) = folder.glob("*-test.array_record*")
    if damage == "truncated":
        records.write_bytes(records.read_bytes()[:1000])
    elif damage == "garbage":
        size = records.stat().st_size
        records.write_bytes(np.random.default_rng(0).bytes(size))
    elif damage == "gone":
        records.unlink()
    elif damage == "features":
        (folder / "features.json").unlink()
    else:
        info = folder / "dataset_info.json"
        text = info.read_text()
        info.write_text(text[:50] if damage == "info" else text.replace('"11"', '"12"'))
    message = error_of("tfds:aae_tiny", data_dir=str(tmp_path))
    assert str(folder) in message and "prepare the data set again" in message
