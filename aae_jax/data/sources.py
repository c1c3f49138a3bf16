"""Data sets as arrays in memory: scikit-learn's digits, TFDS, IDX and .npz files, image folders.

Whatever is wrong with a user's data is a `DataError` of one line: which file, what, what to do.
"""

import gzip
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float32, Int32, Integer, UInt8
from PIL import Image, UnidentifiedImageError

from aae_jax.data.stored import PIECE, StoredImages, ahead, num_threads

KNOWN_SPECS = "digits, tfds:NAME, idx:DIR, npz:FILE, folder:DIR"

_IMAGE_MAGIC, _LABEL_MAGIC = 0x00000803, 0x00000801
# Bytes that a byte of gzip can become.
_MOST_UNPACKED = 1032
# One-hot labels and a network head are made for each class: 3,000,000 "classes" are a mistake.
_MAX_CLASSES = 65_536

_PARTS = ("train", "valid", "test")
_UNLABELLED = ("unlabelled", "unlabeled")
_IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
# Of the many formats that pillow knows, some start other programs.
_IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
# What file managers leave in folders, beside names that begin with a dot.
_LEFT_BEHIND = ("Thumbs.db", "desktop.ini", "__MACOSX")
_TEST_EVERY = 10

ReadOut = TypeVar("ReadOut")


class DataError(ValueError):
    """Data that cannot be used; the message is one line."""

    def __init__(self, message: str):
        """Folds line breaks, which file names and other libraries' messages may hold."""
        super().__init__(" ".join(message.splitlines()))


class Arrays(NamedTuple):
    """Images and labels of one split, row by row.

    image: uint8 0..255 or float32 as given; [n, h, w, c] images or [n, features] rows of a table.
    label: int32 [n], 0..num_classes-1, or -1 where the label is unknown.
    """

    image: UInt8[np.ndarray, "n *shape"] | Float32[np.ndarray, "n *shape"]
    label: Int32[np.ndarray, "n"]


class Stored(NamedTuple):
    """The same, but the images, uint8 [n, h, w, c], stay on disk."""

    image: StoredImages
    label: Int32[np.ndarray, "n"]


class Source(NamedTuple):
    """A whole data set as its authors split it; num_classes is 0 where no label is known.

    Only training images can be stored ones.
    """

    name: str
    train: Arrays | Stored
    valid: Arrays | None
    test: Arrays
    num_classes: int


def load(
    spec: str, download: bool = False, data_dir: str | None = None, streaming: bool = False
) -> Source:
    """Loads a data set into memory.

    Args:
      spec: one of
        `digits`, scikit-learn's 1,797 8x8 digits, of which a fixed, class-stratified 297 are test;
        `tfds:NAME`, a TFDS set with features `image` and (perhaps) `label`, splits `train`, `test`
          and (perhaps) `validation`; NAME may be `name`, `name/config` and end in `:version`;
        `idx:DIR`, the four files of MNIST and its likes (`train-images-idx3-ubyte`, ...), each
          plain or with `.gz`; of two, the plain one is read;
        `npz:FILE`, arrays `x_train`, `x_test` and perhaps `x_valid`, `y_train`, `y_test`,
          `y_valid`: x is uint8 or float [n, h, w], [n, h, w, c] or [n, features], y integers [n].
          A missing y, like a label of -1, means unknown. Floats are taken as they are, uint8 is
          0..255.
        `folder:DIR`, images in class folders: DIR/train/CLASS/, DIR/test/CLASS/ and perhaps
          DIR/valid/CLASS/. From DIR/CLASS/ alone, every tenth image of a class, in the order of
          their names, is a test image. Files are .png, .jpg, .jpeg, .bmp, .webp or .gif (of which
          the first picture is read), all of one size. Labels are 0, 1, ... in the order of the
          names of the training classes ("10" comes before "2"); in folders named `unlabelled` or
          `unlabeled` they are -1. Images are grey, unless any file is in colour: then all have
          three channels. Transparent pixels are laid over white. The order of the images is
          shuffled, always alike, so that the last ones, held out by `split`, are of all classes.
      download: whether a TFDS set that is not on this disk may be downloaded and prepared. Nothing
        else touches the network.
      data_dir: where TFDS keeps prepared sets; by default $TFDS_DATA_DIR, else
        ~/tensorflow_datasets. Only `tfds:` uses it.
      streaming: whether training images stay on disk, as `StoredImages`; for `tfds:`, where they
        must be uint8, and `folder:`. All else is read as ever.

    Returns:
      The source, with images [n, h, w, c] (grey images get c = 1) or table rows [n, features].

    Raises:
      DataError: the spec is unknown, or the data is missing, damaged or inconsistent.
    """
    if "://" in spec or "://" in (data_dir or ""):
        raise DataError(
            f"{spec if '://' in spec else data_dir}: URLs are not read; "
            "download the files first and name them by idx:DIR, npz:FILE or folder:DIR"
        )
    kind, _, place = spec.partition(":")
    if streaming and kind not in ("tfds", "folder"):
        raise DataError(f"{spec}: cannot be streamed; data.streaming reads tfds:NAME, folder:DIR")
    if spec == "digits":
        return _digits()
    if place and kind == "tfds":
        return _tfds(spec, place, download, data_dir, streaming)
    if place and kind == "idx":
        return _idx(spec, _path(place))
    if place and kind == "npz":
        return _npz(spec, _path(place))
    if place and kind == "folder":
        return _folder(spec, _path(place), streaming)
    if place and kind == "arrays":
        raise DataError(
            f"{spec}: these arrays were given to `fit`, and are kept nowhere; fit again, or write "
            "them to npz:FILE and train on that"
        )
    raise DataError(f"unknown data set {spec!r}: known are {KNOWN_SPECS}")


def of_arrays(name: str, image: np.ndarray, label: np.ndarray, num_classes: int) -> Source:
    """A source of training data that are in memory already; it has no validation or test images.

    Args:
      name: to be called by, as in messages.
      image, label: as in an .npz file (see `load`).
      num_classes: of the labels 0..num_classes-1.

    Raises:
      DataError: the arrays cannot be used.
    """
    train = _checked(image, label, f"{name}: images", f"{name}: labels")
    assert isinstance(train, Arrays)
    return Source(name, train, None, Arrays(train.image[:0], train.label[:0]), num_classes)


def read_npz(
    path: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Reads arrays of an .npz file, without pickle.

    Args:
      path: the file.
      required: names of arrays that must be there.
      optional: names of arrays that may be there; any others are not looked at.

    Returns:
      The arrays by name.

    Raises:
      DataError: the file or an array is missing or damaged, or an array is none of plain numbers.
    """
    # os.path's tests, unlike pathlib's, do not raise where a path is too long or not accessible.
    if not os.path.isfile(path):
        cause = "not a file" if os.path.exists(path) else "no such file"
        raise DataError(f"{path}: {cause}; give the path of an .npz file written by numpy.savez")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz (zip) file, or cut short; write it with numpy.savez")
    key, held, arrays = "the archive", [], {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            held = list(archive.files)
            for key in (*required, *optional):
                if key in held:
                    arrays[key] = np.asarray(archive[key])
    # A damaged archive fails in zipfile, zlib, lzma, struct, tokenize or NumPy, each in its way.
    except Exception as error:
        raise DataError(
            f"{path}: {key} cannot be read ({_reason(error)}); "
            "write it again with numpy.savez, each array of one numeric type and shape"
        ) from error
    missing = [key for key in required if key not in arrays]
    if missing:
        raise DataError(
            f"{path}: holds no {missing[0]} (but {', '.join(held) or 'nothing'}); "
            f"save at least {', '.join(required)}"
        )
    return arrays


def _digits() -> Source:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    image = np.round(bunch.images * 255 / 16).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(image)), test_size=297, random_state=0, stratify=bunch.target
    )
    parts = {
        name: (image[index], bunch.target[index])
        for name, index in (("train", train), ("test", test))
    }
    return _source("digits", parts, {}, num_classes=10)


def _idx(spec: str, folder: Path) -> Source:
    if not os.path.isdir(folder):
        cause = "not a folder" if os.path.exists(folder) else "no such folder"
        raise DataError(f"{folder}: {cause}; give the folder that holds the four IDX files")
    parts, names = {}, {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        image_path = _idx_file(folder, f"{prefix}-images-idx3-ubyte")
        label_path = _idx_file(folder, f"{prefix}-labels-idx1-ubyte")
        parts[part] = _read_idx(image_path, _IMAGE_MAGIC), _read_idx(label_path, _LABEL_MAGIC)
        names[part] = str(image_path), str(label_path)
    return _source(spec, parts, names)


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if os.path.isfile(path):
            return path
    raise DataError(f"{folder}: holds neither {name} nor {name}.gz; put one of them there")


def _read_idx(path: Path, magic: int) -> UInt8[np.ndarray, "n *shape"]:
    """The IDX format: big-endian magic (its last byte: the rank), sizes, then the bytes."""
    again = "fetch or write the file again"
    rank = magic & 0xFF
    start = 4 * (1 + rank)
    try:
        content = _unpacked(path, magic, start) if path.suffix == ".gz" else path.read_bytes()
    # Truncated, overwritten or no gzip at all: EOFError, BadGzipFile, zlib.error, struct.error.
    except Exception as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); {again}") from error
    if len(content) < start:
        raise DataError(f"{path}: truncated, {len(content)} bytes hold no IDX header; {again}")
    found, *shape = struct.unpack(f">{1 + rank}I", content[:start])
    if found != magic:
        raise DataError(
            f"{path}: magic number 0x{found:08x} instead of 0x{magic:08x}, so not an IDX file of "
            f"{'images' if magic == _IMAGE_MAGIC else 'labels'} in bytes; {again}"
        )
    expected = start + math.prod(shape)
    if len(content) != expected:
        cause = "truncated" if len(content) < expected else "bytes left over at the end"
        raise DataError(
            f"{path}: {cause}, {len(content)} bytes where the header asks for {expected}; {again}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _unpacked(path: Path, magic: int, start: int) -> bytes:
    """A gzipped IDX file's content, but one byte only of what its header does not ask for.

    A few bytes of gzip may unpack to more than the memory holds.
    """
    with gzip.open(path) as file:
        header = file.read(start)
        if len(header) < start or int.from_bytes(header[:4]) != magic:
            return header
        asked = math.prod(struct.unpack(f">{start // 4 - 1}I", header[4:]))
        return header + file.read(min(asked, _MOST_UNPACKED * path.stat().st_size) + 1)


def _npz(spec: str, path: Path) -> Source:
    arrays = read_npz(path, ("x_train", "x_test"), ("y_train", "y_test", "x_valid", "y_valid"))
    if "y_valid" in arrays and "x_valid" not in arrays:
        raise DataError(f"{path}: y_valid without x_valid; save both or neither")
    parts, names = {}, {}
    for part in ("train", "valid", "test"):
        if f"x_{part}" in arrays:
            parts[part] = arrays[f"x_{part}"], arrays.get(f"y_{part}")
            names[part] = f"{path}: x_{part}", f"{path}: y_{part}"
    return _source(spec, parts, names)


def _folder(spec: str, folder: Path, streaming: bool) -> Source:
    if not os.path.isdir(folder):
        cause = "not a folder" if os.path.exists(folder) else "no such folder"
        raise DataError(f"{folder}: {cause}; give the folder that holds the class folders")
    found = _split_folders(folder)
    classes = _class_names(found)
    listed = {part: _shuffled(found[part], classes) for part in found}
    with ThreadPoolExecutor() as pool:
        shape = _common_shape([path for paths, _ in listed.values() for path in paths], pool)
        parts: dict[str, tuple[np.ndarray | StoredImages, np.ndarray | None]] = {}
        for part, (paths, label) in listed.items():
            if streaming and part == "train":
                parts[part] = StoredImages(FolderImages(paths, shape)), label
            else:
                parts[part] = _read_images(paths, shape, pool), label
    return _source(spec, parts, {}, len(classes))


def _split_folders(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Image files by part ("train", "test" and perhaps "valid") and class folder."""
    names = [path.name for path in _listed(folder) if path.is_dir()]
    if not set(names) & set(_PARTS):
        return _cut(folder, _class_folders(folder))
    for name in names:
        if name not in _PARTS:
            raise DataError(
                f"{folder / name}: beside {', '.join(each for each in names if each in _PARTS)}, "
                f"but not one of {', '.join(_PARTS)}; rename it or move it away"
            )
    for part in ("train", "test"):
        if part not in names:
            raise DataError(
                f"{folder}: holds {', '.join(names)} but no {part}; add {folder / part}/CLASS, or "
                "give class folders alone, of which every tenth image becomes a test image"
            )
    return {part: _class_folders(folder / part) for part in _PARTS if part in names}


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    entries = _listed(folder)
    for path in entries:
        if path.suffix.lower() in _IMAGE_SUFFIXES and not path.is_dir():
            raise DataError(
                f"{path}: an image outside the class folders; move it to {folder}/CLASS, or to "
                f"{folder / _UNLABELLED[0]} where its class is unknown"
            )
    classes = {path.name: _image_files(path) for path in entries if path.is_dir()}
    if not classes:
        raise DataError(f"{folder}: holds no class folders; put the images in {folder}/CLASS")
    return classes


def _image_files(folder: Path) -> list[Path]:
    paths = _listed(folder)
    for path in paths:
        if path.suffix.lower() not in _IMAGE_SUFFIXES:
            cause = "a folder inside a class folder" if path.is_dir() else "not an image file"
            raise DataError(
                f"{path}: {cause}; give {', '.join(_IMAGE_SUFFIXES)}, move anything else away"
            )
    if not paths:
        raise DataError(f"{folder}: holds no images; put some there or remove the folder")
    return paths


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, by name, without hidden files."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read ({error.strerror}); give a folder that can"
        ) from error
    return [folder / name for name in names if name[0] != "." and name not in _LEFT_BEHIND]


def _cut(folder: Path, classes: dict[str, list[Path]]) -> dict[str, dict[str, list[Path]]]:
    """Sets every tenth image of each class apart for testing."""
    test = {name: paths[_TEST_EVERY - 1 :: _TEST_EVERY] for name, paths in classes.items()}
    train = {
        name: [path for number, path in enumerate(paths, 1) if number % _TEST_EVERY]
        for name, paths in classes.items()
    }
    if not any(test.values()):
        raise DataError(
            f"{folder}: no class has the {_TEST_EVERY} images of which one is for testing; add "
            f"images, or choose yourself: {folder / 'train'}/CLASS and {folder / 'test'}/CLASS"
        )
    return {"train": train, "test": test}


def _class_names(found: Mapping[str, Mapping[str, list[Path]]]) -> list[str]:
    """The classes by label: those of the training images, or if none of these has one, of all."""

    def named(parts: Iterable[str]) -> list[str]:
        return sorted({name for part in parts for name in found[part] if not _unlabelled(name)})

    classes = named(["train"]) or named(found)
    for part in found:
        for name in named([part]):
            if name not in classes:
                raise DataError(
                    f"{found[part][name][0].parent}: a class without training images; add some, "
                    f"or move these to {found[part][name][0].parents[1] / _UNLABELLED[0]}"
                )
    return classes


def _unlabelled(name: str) -> bool:
    return name.casefold() in _UNLABELLED


def _shuffled(
    by_class: Mapping[str, list[Path]], classes: Sequence[str]
) -> tuple[list[Path], Int32[np.ndarray, "n"]]:
    """Files and labels, the classes mixed."""
    number = {name: label for label, name in enumerate(classes)}
    pairs = [(path, number.get(name, -1)) for name in by_class for path in by_class[name]]
    order = np.random.default_rng(0).permutation(len(pairs))
    return [pairs[i][0] for i in order], np.array([pairs[i][1] for i in order], np.int32)


def _common_shape(paths: Sequence[Path], pool: Executor) -> tuple[int, int, int]:
    """Height, width and channels that all images share, from the files' headers."""
    in_order = sorted(paths)
    kinds = list(pool.map(partial(_with_image, read=_size_and_colour), in_order))
    width, height = kinds[0][0]
    for path, (size, _) in zip(in_order, kinds, strict=True):
        if size != (width, height):
            raise DataError(
                f"images of mixed sizes (width x height): {in_order[0]} is {width} x {height}, "
                f"{path} is {size[0]} x {size[1]}; scale or crop all images to one size"
            )
    return height, width, 3 if any(colour for _, colour in kinds) else 1


def _read_images(
    paths: Sequence[Path], shape: tuple[int, int, int], pool: Executor
) -> UInt8[np.ndarray, "n h w c"]:
    images = np.empty((len(paths), *shape), np.uint8)

    def read(number: int) -> None:
        images[number] = _with_image(paths[number], partial(_pixels, channels=shape[2]))

    for _ in pool.map(read, range(len(paths))):
        pass
    return images


class FolderImages:
    """Image files of one size, a `Reader` for `StoredImages`."""

    def __init__(self, paths: Sequence[Path], shape: tuple[int, int, int]):
        """Reads nothing yet.

        Args:
          paths: of the files.
          shape: of each image, [h, w, c] with 1 or 3 channels.
        """
        self._paths = paths
        self.shape: tuple[int, ...] = shape

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._paths)

    def read(self, rows: Integer[np.ndarray, "n"]) -> UInt8[np.ndarray, "n h w c"]:
        """Reads and decodes images.

        Raises:
          DataError: one of them is damaged or no longer of its size.
        """
        images = np.empty((len(rows), *self.shape), np.uint8)
        for i, row in enumerate(rows):
            image = _with_image(self._paths[row], partial(_pixels, channels=self.shape[2]))
            if image.shape != self.shape:
                raise _mixed_sizes(str(self._paths[row]), self.shape, image.shape)
            images[i] = image
        return images


def _with_image(path: Path, read: Callable[[Image.Image], ReadOut]) -> ReadOut:
    try:
        with Image.open(path, formats=_IMAGE_FORMATS) as image:
            return read(image)
    # A damaged file fails in pillow, zlib or struct, each in its way.
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        cause = "no image of a known format" if unknown else _reason(error)
        raise DataError(
            f"{path}: cannot be read ({cause}); write the image again or move it away"
        ) from error


def _size_and_colour(image: Image.Image) -> tuple[tuple[int, int], bool]:
    if image.mode == "F" or image.mode.startswith("I"):
        raise ValueError(f"pixels of pillow's mode {image.mode} instead of 8 bits")
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return image.size, bool((palette != palette[:, :1]).any())
    return image.size, image.mode not in ("1", "L", "LA")


def _pixels(image: Image.Image, channels: int) -> UInt8[np.ndarray, "h w c"]:
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    mode = "L" if channels == 1 else "RGB"
    return np.asarray(image.convert(mode)).reshape(image.height, image.width, channels)


def _tfds(spec: str, name: str, download: bool, data_dir: str | None, streaming: bool) -> Source:
    parsed = re.fullmatch(r"(\w+)(?:/([\w.\-]+))?(?::(\d+\.\d+\.\d+))?", name)
    if parsed is None:
        raise DataError(
            f"{spec!r}: a TFDS name is name, name/config, name:1.2.3 or name/config:1.2.3"
        )
    root = _path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    # Looked up before TFDS is imported, let alone asked: its builders may try the network.
    folder = _prepared_folder(root, *parsed.groups())
    if folder is None and not download:
        raise DataError(
            f"{spec}: not prepared in {root}; --config.data.download=True downloads and prepares "
            f"it (load({spec!r}, download=True) in Python), idx:DIR and npz:FILE read files"
        )
    if folder is None:
        folder = _prepare(spec, name, root)
    return _read_tfds(spec, folder, streaming)


def _prepared_folder(root: Path, name: str, config: str | None, version: str | None) -> Path | None:
    """The folder `root/name[/config]/version`, of several versions the highest."""
    base = root / name / config if config else root / name
    pattern = version or "*.*.*"
    found = [path.parent for path in base.glob(f"{pattern}/dataset_info.json")]
    if not found and not config:
        found = [path.parent for path in base.glob(f"*/{pattern}/dataset_info.json")]
        configs = sorted({path.parent.name for path in found})
        if len(configs) > 1:
            raise DataError(
                f"{base}: prepared in several configs; choose one of "
                + ", ".join(f"tfds:{name}/{each}" for each in configs)
            )
    found = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return max(found, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def _prepare(spec: str, name: str, root: Path) -> Path:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, try_gcs=False, data_dir=str(root), file_format="array_record")
        # The copies on Google's servers are no array_record files, so never take those.
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=config)
    # Unknown name, no network, no disk space, a broken checksum: any library may raise anything.
    except Exception as error:
        raise DataError(
            f"{spec}: TFDS could not prepare it in {root} ({_reason(error)}); check the name and "
            "the network, or take idx:DIR or npz:FILE"
        ) from error
    return Path(builder.data_dir)


def _read_tfds(spec: str, folder: Path, streaming: bool) -> Source:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
        formats = {each.value for each in builder.info.available_file_formats()}
        features = dict(builder.info.features.items())
    except Exception as error:
        raise _unreadable(folder, error) from error
    splits = {split: info.num_examples for split, info in builder.info.splits.items()}
    _require_layout(folder, formats, features, splits)
    parts: dict[str, tuple[np.ndarray | StoredImages, np.ndarray | None]] = {}
    names = {}
    for part, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        if splits.get(split):
            where = f"{folder}: split {split}"
            if streaming and part == "train":
                parts[part] = _stored_split(builder, split, where)
            else:
                parts[part] = _read_split(builder, split, splits[split], "label" in features, where)
            names[part] = f"{where}, image", f"{where}, label"
    declared = getattr(features.get("label"), "num_classes", None)
    return _source(spec, parts, names, declared)


def _require_layout(
    folder: Path, formats: Set[str], features: Mapping[str, Any], splits: Mapping[str, int]
) -> None:
    if "array_record" not in formats:
        raise DataError(
            f"{folder}: prepared as {', '.join(sorted(formats))}, without random access; move the "
            "folder away and prepare it as array_record by --config.data.download=True"
        )
    if "image" not in features:
        raise DataError(
            f"{folder}: has no feature 'image' (but {', '.join(features)}); take npz:FILE"
        )
    for split in ("train", "test"):
        if not splits.get(split):
            held = ", ".join(f"{name} ({count})" for name, count in splits.items()) or "none"
            raise DataError(
                f"{folder}: empty or missing split {split}, it has {held}; "
                "cut the data yourself and take npz:FILE"
            )


def _read_split(
    builder: Any, split: str, num_examples: int, labelled: bool, where: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """All images and labels of one split, decoded into one array each."""
    try:
        # What tfds.data_source calls; that one would first go and look for the code of the set.
        examples = builder.as_data_source(split=split, file_format="array_record")
        first = np.asarray(examples[0]["image"])
        images = np.empty((num_examples, *first.shape), first.dtype)
        labels = []
        for i, example in enumerate(examples):
            image = np.asarray(example["image"])
            if image.shape != first.shape:
                raise _mixed_sizes(where, first.shape, image.shape)
            images[i] = image
            labels.append(example["label"] if labelled else -1)
        return images, np.asarray(labels)
    except DataError:
        raise
    # A damaged file fails in array_record, protobuf, PIL or TFDS, each in its way.
    except Exception as error:
        raise _unreadable(where, error) from error


def _mixed_sizes(where: str, first: Sequence[int], other: Sequence[int]) -> DataError:
    return DataError(
        f"{where}: images of mixed sizes, {list(first)} and {list(other)}; "
        "scale them to one size and take npz:FILE or folder:DIR"
    )


def _stored_split(builder: Any, split: str, where: str) -> tuple[StoredImages, np.ndarray | None]:
    """The images of a split, left on disk, and all its labels."""
    import tensorflow_datasets as tfds

    kind = builder.info.features["image"]
    if not isinstance(kind, tfds.features.Image) or kind.np_dtype != np.uint8:
        raise DataError(
            f"{where}, image: the feature is {type(kind).__name__} of {np.dtype(kind.np_dtype)}; "
            "data.streaming reads encoded images, tfds.features.Image of uint8"
        )
    try:
        records = builder.as_data_source(
            split=split,
            file_format="array_record",
            # TFDS's own decoding takes all features apart, at twice the time.
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
        )
        images = StoredImages(TfdsImages(records, kind, where))
        return images, _stored_labels(records, dict(builder.info.features.items()), where)
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(where, error) from error


def _stored_labels(records: Any, features: Mapping[str, Any], where: str) -> np.ndarray | None:
    """All labels; the images beside them are read but not decoded."""
    if "label" not in features:
        return None
    kind = features["label"]
    if kind.shape or not np.issubdtype(kind.np_dtype, np.integer):
        raise DataError(
            f"{where}, label: labels of type {np.dtype(kind.np_dtype)} {list(kind.shape)}; "
            "give one integer an image, -1 for unknown"
        )

    def block(number: int) -> list[int]:
        rows = range(number * PIECE, min((number + 1) * PIECE, len(records)))
        found = records.__getitems__(list(rows))
        return [_stored_feature(record, "label").int64_list.value[0] for record in found]

    blocks = ahead(block, -(-len(records) // PIECE), buffered=num_threads())
    return np.concatenate([np.asarray(labels, np.int64) for labels in blocks])


def _stored_feature(record: bytes, name: str) -> Any:
    """A feature of a serialized `tf.train.Example`, for which TensorFlow is not imported."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature[name]


class TfdsImages:
    """The encoded images of a TFDS split, a `Reader` for `StoredImages`."""

    def __init__(self, records: Any, kind: Any, where: str):
        """Reads the first image, which says what all of them must be like.

        Args:
          records: TFDS data source that gives bytes.
          kind: the TFDS feature that decodes an image, to uint8.
          where: names the split in messages.

        Raises:
          DataError: it cannot be read.
        """
        self._records, self._kind, self._where = records, kind, where
        self.shape = self._image(0).shape

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._records)

    def read(self, rows: Integer[np.ndarray, "n"]) -> UInt8[np.ndarray, "n h w c"]:
        """Reads and decodes images.

        Raises:
          DataError: one of them is damaged or has another size.
        """
        images = np.empty((len(rows), *self.shape), np.uint8)
        for i, image in enumerate(self._images(rows)):
            if image.shape != self.shape:
                raise _mixed_sizes(f"{self._where}, example {rows[i]}", self.shape, image.shape)
            images[i] = image
        return images

    def _images(self, rows: np.ndarray) -> list[np.ndarray]:
        try:
            return [self._decoded(each) for each in self._records.__getitems__(rows.tolist())]
        except Exception:
            return [self._image(int(row)) for row in rows]  # finds the one to be named

    def _image(self, row: int) -> np.ndarray:
        try:
            return self._decoded(self._records[row])
        except Exception as error:
            raise _unreadable(f"{self._where}, example {row}", error) from error

    def _decoded(self, record: bytes) -> np.ndarray:
        return self._kind.decode_example_np(_stored_feature(record, "image").bytes_list.value[0])


def _unreadable(where: Path | str, error: Exception) -> DataError:
    # OpenCV returns None for what is no image, and TFDS takes that for an array.
    no_image = isinstance(error, AttributeError) and error.name == "astype"
    reason = "damaged image" if no_image else _reason(error)
    return DataError(
        f"{where}: TFDS cannot read it ({reason}); delete the folder and prepare the data set again"
    )


def _source(
    name: str,
    parts: Mapping[str, tuple[np.ndarray | StoredImages, np.ndarray | None]],
    names: Mapping[str, tuple[str, str]],
    num_classes: int | None = None,
) -> Source:
    """Checks the splits one by one and against each other.

    Without a declared num_classes, the classes are those of the training labels: a test label
    beyond them is an error, as a classifier could never be right about it.
    """
    where = {
        part: names.get(part, (f"{name}: {part} images", f"{name}: {part} labels"))
        for part in parts
    }
    checked = {part: _checked(*parts[part], *where[part]) for part in parts}
    train = checked["train"]
    for part, arrays in checked.items():
        if (
            arrays.image.shape[1:] != train.image.shape[1:]
            or arrays.image.dtype != train.image.dtype
        ):
            raise DataError(
                f"{where[part][0]}: images {_kind(arrays.image)} differ from the training images, "
                f"{_kind(train.image)}; bring all splits to one shape and type"
            )
    if num_classes is None:
        num_classes = _count_classes([train]) or _count_classes(checked.values())
    for part, arrays in checked.items():
        largest = int(arrays.label.max())
        if largest >= num_classes:
            raise DataError(
                f"{where[part][1]}: label {largest} out of range, the classes of the training data "
                f"are 0..{num_classes - 1}; correct it or give -1 for an unknown label"
            )
    valid, test = checked.get("valid"), checked["test"]
    assert not isinstance(valid, Stored) and not isinstance(test, Stored)
    return Source(name, train, valid, test, num_classes)


def _count_classes(parts: Iterable[Arrays | Stored]) -> int:
    return max(int(arrays.label.max()) + 1 for arrays in parts)


def _checked(
    image: np.ndarray | StoredImages, label: np.ndarray | None, image_name: str, label_name: str
) -> Arrays | Stored:
    if isinstance(image, StoredImages):  # whose reader checks each image
        return Stored(image, _checked_labels(len(image), label, image_name, label_name))
    image = _checked_images(image, image_name)
    return Arrays(image, _checked_labels(len(image), label, image_name, label_name))


def _checked_labels(
    num_images: int, label: np.ndarray | None, image_name: str, label_name: str
) -> Int32[np.ndarray, "n"]:
    if label is None:
        return np.full(num_images, -1, np.int32)
    if not np.issubdtype(label.dtype, np.integer):
        raise DataError(
            f"{label_name}: labels of type {label.dtype}; give integers, -1 for unknown"
        )
    if label.shape != (num_images,):
        raise DataError(
            f"{label_name}: labels {list(label.shape)} for {num_images} images ({image_name}); "
            f"give one label per image, [{num_images}]"
        )
    smallest, largest = int(label.min()), int(label.max())
    if smallest < -1 or largest >= _MAX_CLASSES:
        raise DataError(
            f"{label_name}: labels {smallest}..{largest} out of range; "
            f"give 0..{_MAX_CLASSES - 1} at most, -1 for unknown"
        )
    return label.astype(np.int32)


def _checked_images(
    image: np.ndarray, name: str
) -> UInt8[np.ndarray, "n *shape"] | Float32[np.ndarray, "n *shape"]:
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise DataError(f"{name}: images of type {image.dtype}; give uint8 (0..255) or float")
    if image.ndim not in (2, 3, 4):
        raise DataError(
            f"{name}: images {list(image.shape)}; give [n, h, w], [n, h, w, c] or [n, features]"
        )
    if image.size == 0:
        raise DataError(f"{name}: empty, images {list(image.shape)}; give at least one image")
    if image.dtype != np.uint8:
        with np.errstate(over="ignore"):  # an overflow is named below
            image = image.astype(np.float32, copy=False)
        if not np.isfinite(image).all():
            raise DataError(f"{name}: holds NaN or infinite values (as float32); remove them")
    return image[..., np.newaxis] if image.ndim == 3 else image


def _kind(image: np.ndarray | StoredImages) -> str:
    return f"{list(image.shape[1:])} {image.dtype}"


def _path(place: str) -> Path:
    return Path(os.path.expanduser(place))


def _reason(error: Exception) -> str:
    """The first line of another library's message; its type where there is no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
