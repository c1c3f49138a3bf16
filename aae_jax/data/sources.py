"""Data sets as arrays in memory: scikit-learn's digits, TFDS, IDX files and .npz files.

Whatever is wrong with a user's data is a `DataError` of one line: which file, what, what to do.
"""

import gzip
import math
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

KNOWN_SPECS = "digits, tfds:NAME, idx:DIR, npz:FILE"

_IMAGE_MAGIC, _LABEL_MAGIC = 0x00000803, 0x00000801
# One-hot labels and a network head are made for each class: 3,000,000 "classes" are a mistake.
_MAX_CLASSES = 65_536


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


class Source(NamedTuple):
    """A whole data set as its authors split it; num_classes is 0 where no label is known."""

    name: str
    train: Arrays
    valid: Arrays | None
    test: Arrays
    num_classes: int


def load(spec: str, download: bool = False, data_dir: str | None = None) -> Source:
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
      download: whether a TFDS set that is not on this disk may be downloaded and prepared. Nothing
        else touches the network.
      data_dir: where TFDS keeps prepared sets; by default $TFDS_DATA_DIR, else
        ~/tensorflow_datasets. Only `tfds:` uses it.

    Returns:
      The source, with images [n, h, w, c] (grey images get c = 1) or table rows [n, features].

    Raises:
      DataError: the spec is unknown, or the data is missing, damaged or inconsistent.
    """
    if "://" in spec or "://" in (data_dir or ""):
        raise DataError(
            f"{spec if '://' in spec else data_dir}: URLs are not read; "
            "download the files first and name them by idx:DIR or npz:FILE"
        )
    kind, _, place = spec.partition(":")
    if spec == "digits":
        return _digits()
    if place and kind == "tfds":
        return _tfds(spec, place, download, data_dir)
    if place and kind == "idx":
        return _idx(spec, _path(place))
    if place and kind == "npz":
        return _npz(spec, _path(place))
    raise DataError(f"unknown data set {spec!r}: known are {KNOWN_SPECS}")


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
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    # Truncated, overwritten or no gzip at all: EOFError, BadGzipFile, zlib.error, struct.error.
    except Exception as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); {again}") from error
    rank = magic & 0xFF
    start = 4 * (1 + rank)
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


def _tfds(spec: str, name: str, download: bool, data_dir: str | None) -> Source:
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
    return _read_tfds(spec, folder)


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


def _read_tfds(spec: str, folder: Path) -> Source:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
        formats = {each.value for each in builder.info.available_file_formats()}
        features = dict(builder.info.features.items())
    except Exception as error:
        raise _unreadable(folder, error) from error
    splits = {split: info.num_examples for split, info in builder.info.splits.items()}
    _require_layout(folder, formats, features, splits)
    parts, names = {}, {}
    for part, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        if splits.get(split):
            where = f"{folder}: split {split}"
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
                raise DataError(
                    f"{where}: images of mixed sizes, {list(first.shape)} and "
                    f"{list(image.shape)}; scale them to one size and take npz:FILE"
                )
            images[i] = image
            labels.append(example["label"] if labelled else -1)
        return images, np.asarray(labels)
    except DataError:
        raise
    # A damaged file fails in array_record, protobuf, PIL or TFDS, each in its way.
    except Exception as error:
        raise _unreadable(where, error) from error


def _unreadable(where: Path | str, error: Exception) -> DataError:
    return DataError(
        f"{where}: TFDS cannot read it ({_reason(error)}); "
        "delete the folder and prepare the data set again"
    )


def _source(
    name: str,
    parts: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
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
    checked = {part: _arrays(*parts[part], *where[part]) for part in parts}
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
    return Source(name, train, checked.get("valid"), checked["test"], num_classes)


def _count_classes(parts: Iterable[Arrays]) -> int:
    return max(int(arrays.label.max()) + 1 for arrays in parts)


def _arrays(
    image: np.ndarray, label: np.ndarray | None, image_name: str, label_name: str
) -> Arrays:
    image = _checked_images(image, image_name)
    if label is None:
        return Arrays(image, np.full(len(image), -1, np.int32))
    if not np.issubdtype(label.dtype, np.integer):
        raise DataError(
            f"{label_name}: labels of type {label.dtype}; give integers, -1 for unknown"
        )
    if label.shape != image.shape[:1]:
        raise DataError(
            f"{label_name}: labels {list(label.shape)} for {len(image)} images ({image_name}); "
            f"give one label per image, [{len(image)}]"
        )
    smallest, largest = int(label.min()), int(label.max())
    if smallest < -1 or largest >= _MAX_CLASSES:
        raise DataError(
            f"{label_name}: labels {smallest}..{largest} out of range; "
            f"give 0..{_MAX_CLASSES - 1} at most, -1 for unknown"
        )
    return Arrays(image, label.astype(np.int32))


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


def _kind(image: np.ndarray) -> str:
    return f"{list(image.shape[1:])} {image.dtype}"


def _path(place: str) -> Path:
    return Path(os.path.expanduser(place))


def _reason(error: Exception) -> str:
    """The first line of another library's message; its type where there is no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
