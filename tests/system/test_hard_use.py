"""What careless, unlucky and hostile users do: each ends in one line, and nothing else happens.

Damaged data files one by one are in tests/data, damaged checkpoints and killed runs beside this.
"""

import gzip
import io
import json
import os
import pickle
import random
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from aae_jax import data, program, train
from aae_jax.config import ConfigError, base, validate
from aae_jax.data import DataError
from aae_jax.experiment import build
from aae_jax.inference import load
from aae_jax.phases import Batch
from aae_jax.spec import SpecError

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE, CLASSES = (4, 4, 1), 3


def one_line(error: Exception) -> str:
    line = str(error)
    assert line and len(line.splitlines()) == 1, f"{type(error).__name__}: {line!r}"
    return line


@pytest.fixture(scope="module")
def small_npz(small_images, tmp_path_factory) -> str:
    """A data set of 40 images of 4x4."""
    part = small_images(40, 0, SHAPE)
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, x_train=part.image, y_train=part.label, x_test=part.image, y_test=part.label)
    return f"npz:{path}"


# Configs

WILD = [
    None, True, False, -1, 0, 1, 2, 3, 4, 7, 8, 10**30, 10**400, -0.5, 0.0, 0.1, 0.25, 0.5, 1.0,
    1e300, float("nan"), float("inf"), "", " ", "nan", "x\ny", "gan()", "gan(", "mmd()",
    "normal(0.1)", "normal(1,2,3)", "petals(modes=3)", "uniform(2)", "swiss_roll()",
    "gaussian(10**9)", "gaussian(2, std='a')", "adam", "gaussian", "tanh", "linear", "cosine()",
    "step(2, (1, 2))", "__import__('os')", (), (3,), (3, 2), (0,), (True,), ("reconstruction",),
    ("regularization",) * 2, ([],), [3, 4], {}, {"a": 1}, b"bytes", np.float64(0.5), np.int64(3),
    object(),
]  # fmt: skip
# Groups of fields that change what is computed.
COMPUTED = (
    "encoder",
    "decoder",
    "discriminator",
    "model",
    "style",
    "label",
    "optimizers",
    "penalties",
)
STARTS: list[dict[str, Any]] = [
    {},
    {
        "model.labels": CLASSES,
        "model.layout": "style_and_inferred_label",
        "label.prior": f"categorical({CLASSES})",
    },
    {"model.posterior": "gaussian", "penalties.kl": 1.0},
    {"phases": ("reconstruction",), "style.divergence": ""},
]


def leaves(fields: dict[str, Any], prefix: str = "") -> list[str]:
    """Every field and every group of fields, by its dotted name."""
    names = []
    for name, value in fields.items():
        names.append(prefix + name)
        if isinstance(value, dict):
            names += leaves(value, f"{prefix}{name}.")
    return names


def mutated(seed: int, source: str) -> tuple[ConfigDict, list[str]]:
    """A config with one or two fields changed, removed or added; and their names."""
    rng = random.Random(seed)
    fields = base().to_dict()
    fields["data"].update(source=source, validation=5)
    fields["train"].update(batch_size=4, labelled_batch_size=4, chunk_steps=2)
    for net in ("encoder", "decoder", "discriminator"):
        fields[net]["widths"] = (4,)
    for name, value in rng.choice(STARTS).items():
        *groups, last = name.split(".")
        _group(fields, groups)[last] = value
    known, touched = leaves(base().to_dict()), []
    for _ in range(rng.randint(1, 2)):
        *groups, last = (name := rng.choice(known)).split(".")
        group = _group(fields, groups)
        if not isinstance(group, dict) or last not in group:
            continue
        touched.append(name)
        what = rng.random()
        if what < 0.05:
            del group[last]
        elif what < 0.1:
            group[f"{last}s"] = 1
        elif what < 0.9:  # of the right type, so that some are valid
            same = [value for value in WILD if type(value) is type(group[last])]
            group[last] = rng.choice(same or WILD)
        else:
            group[last] = rng.choice(WILD)
    return ConfigDict(fields), touched


def _group(fields: Any, groups: list[str]) -> Any:
    for name in groups:
        fields = fields.get(name) if isinstance(fields, dict) else None
    return fields


def few_steps(config: ConfigDict) -> None:
    """The first steps of a run."""
    experiment = build(config, image_shape=SHAPE, num_classes=CLASSES, num_examples=35)
    keys = jax.random.split(jax.random.key(1), 4)
    batch = Batch(jnp.full((4, *SHAPE), 0.5), jnp.arange(4) % CLASSES, keys)

    @jax.jit
    def run(key):
        advance = lambda state, _: experiment.step(state, batch)  # noqa: E731
        return jax.lax.scan(advance, experiment.init(key), length=2)

    state, metrics = run(jax.random.key(0))
    assert int(state.step) == 2 and metrics


def test_of_200_random_configs_each_is_valid_or_named_in_one_line(small_npz) -> None:
    valid = []
    for seed in range(200):
        config, touched = mutated(seed, small_npz)
        try:
            validate(config)
            valid.append((config, touched))
        except ConfigError as error:
            assert_named(error, touched)
    assert 40 < len(valid) < 160
    ran = 0
    for config, touched in valid:
        try:
            train.prepare(config, jax.devices()[:1])
        except (ConfigError, SpecError, DataError) as error:
            assert_named(error, touched)
            continue
        if ran < 10 and touched[0].split(".")[0] in COMPUTED:
            few_steps(config)
            ran += 1
    assert ran == 10


def assert_named(error: Exception, fields: list[str]) -> None:
    line = one_line(error)
    assert any(name.split(".")[-1] in line for name in fields), (fields, line)


# Data

NPY = b"\x93NUMPY\x01\x00"


def npy(header: str, content: bytes = b"", length: int | None = None) -> bytes:
    """An array file with this header, true or not."""
    size = len(header) if length is None else length
    return NPY + struct.pack("<H", size) + header.encode() + content


def lying(shape: str, kind: str = "|u1") -> bytes:
    return npy(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n", bytes(64))


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def with_member(content: Callable[[Path], bytes], name: str = "x_train") -> Callable[[Path], str]:
    """An .npz file whose array of this name is such bytes."""

    def write(folder: Path) -> str:
        x, y = io.BytesIO(), io.BytesIO()
        np.save(x, np.zeros((4, 4, 4), np.uint8))
        np.save(y, np.arange(4))
        arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
        members = {key: value.getvalue() for key, value in arrays.items()}
        members[name] = content(folder / "canary")
        with zipfile.ZipFile(folder / "data.npz", "w") as archive:
            for key, value in members.items():
                archive.writestr(f"{key}.npy", value)
        return f"npz:{folder / 'data.npz'}"

    return write


def pickled(canary: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Payload(canary)] * 4, object), allow_pickle=True)
    return file.getvalue()


def with_idx(content: bytes, name: str = "train-images-idx3-ubyte.gz") -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        for part in ("train", "t10k"):
            images = struct.pack(">4I", 0x803, 4, 4, 4) + bytes(64)
            (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
            labels = struct.pack(">2I", 0x801, 4) + bytes(4)
            (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
        (folder / name).write_bytes(gzip.compress(content))
        return f"idx:{folder}"

    return write


def with_image(content: Callable[[], bytes], name: str = "a/x.png") -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        for kind in ("a", "b"):
            for number in range(10):
                path = folder / "images" / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded("PNG"))
        (folder / "images" / name).write_bytes(content())
        return f"folder:{folder / 'images'}"

    return write


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, kind)
    return file.getvalue()


def huge_png() -> bytes:
    """A picture of 60,000 x 60,000 pixels, says its header."""
    content = bytearray(encoded("PNG"))
    content[16:24] = struct.pack(">2I", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


MEGABYTES_64 = bytes(2**26)
HOSTILE: dict[str, Callable[[Path], str]] = {
    "gzip that unpacks to much more than its header asks for": with_idx(
        struct.pack(">4I", 0x803, 4, 4, 4) + MEGABYTES_64
    ),
    "gzip of something else that unpacks to much": with_idx(MEGABYTES_64),
    "sizes whose product is 2**96": with_idx(struct.pack(">4I", 0x803, *[2**32 - 1] * 3) + b"xx"),
    "more labels than there can be": with_idx(
        struct.pack(">2I", 0x801, 2**32 - 1), "train-labels-idx1-ubyte.gz"
    ),
    "a petabyte": with_member(lambda _: lying("(4, 10**15)".replace("10**15", "1" + "0" * 15))),
    "a shape beyond all integers": with_member(lambda _: lying(f"({2**62}, {2**62})")),
    "a negative shape": with_member(lambda _: lying("(-4, 4, 4)")),
    "more than follows": with_member(lambda _: lying("(4, 1000, 1000, 1000)")),
    "a shape that is text": with_member(lambda _: lying("'(4, 4)'")),
    "records": with_member(lambda _: npy("{'descr': [('a', '<f4'), ('b', '<i8')], "
                                         "'fortran_order': False, 'shape': (4,)}\n", bytes(48))),
    "times": with_member(lambda _: lying("(4, 2)", "<M8[s]")),
    "complex numbers": with_member(lambda _: lying("(4, 1)", "<c16")),
    "no shape at all": with_member(lambda _: lying("()")),
    "a header that is longer than the file": with_member(lambda _: npy("{}", length=65_535)),
    "a header of 60,000 brackets": with_member(lambda _: npy("(" * 60_000 + "\n")),
    "a header that is a program": with_member(
        lambda canary: npy(f"__import__('os').mkdir({str(canary)!r})\n")
    ),
    "a version of the future": with_member(lambda _: b"\x93NUMPY\x09\x00" + bytes(99)),
    "pickled images": with_member(pickled),
    "pickled labels": with_member(pickled, "y_train"),
    "a bare pickle": with_member(lambda canary: pickle.dumps(Payload(canary))),
    "a picture of 60,000 x 60,000": with_image(huge_png),
    "a picture whose header is damaged": with_image(lambda: flipped(encoded("PNG"), 18)),
    "a picture whose pixels are damaged": with_image(lambda: flipped(encoded("PNG"), 50)),
    "a drawing in PostScript": with_image(lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    "a drawing in SVG": with_image(lambda: b"<svg width='8' height='8'/>"),
    "half a JPEG": with_image(lambda: encoded("JPEG")[:-80], "b/x.jpg"),
    "a pickle as picture": with_image(lambda: pickle.dumps(Payload(Path("canary"))), "a/x.gif"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_data_end_in_one_line_without_filling_the_memory(tmp_path, what) -> None:
    spec = HOSTILE[what](tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            data.load(spec)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(tmp_path) in one_line(caught.value)
    # Of an array that is cut short NumPy reserves the whole, which takes no memory.
    assert peak < 2**24 or spec.startswith("npz"), f"{peak / 2**20:.0f} MB"
    assert not (tmp_path / "canary").exists()


# A model folder from a stranger

CODE = [
    "__import__('os').mkdir({canary!r})",
    "gaussian(2, std=__import__('os').mkdir({canary!r}))",
    "gaussian.__globals__['np'].os.mkdir({canary!r})",
    "(lambda: 0).__class__",
]
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def model_folder(save_run, narrow_config, small_images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stranger") / "run"
    return save_run(folder, narrow_config(), small_images(20, 0, SHAPE))


def refused(folder: Path) -> str:
    with pytest.raises((*program.EXPLAINED,)) as caught:
        load(folder)
    return one_line(caught.value)


def test_no_file_of_a_model_runs_code(model_folder, tmp_path) -> None:
    """Each file in turn is a pickle that would make a folder."""
    canary = tmp_path / "canary"
    expected = load(model_folder)
    for number, path in enumerate(sorted(model_folder.rglob("*"))):
        if not path.is_file():
            continue
        copy = Path(shutil.copytree(model_folder, tmp_path / f"run{number}"))
        poisoned = copy / path.relative_to(model_folder)
        poisoned.write_bytes(pickle.dumps(Payload(canary)))
        try:
            model = load(copy)
        except program.EXPLAINED as error:
            assert str(copy) in one_line(error)
        else:  # a file that is not needed
            jax.tree.map(np.testing.assert_array_equal, model.weights, expected.weights)
        assert not canary.exists(), path


def test_neither_configs_nor_constants_run_code(model_folder, tmp_path) -> None:
    canary = tmp_path / "canary"
    for field in ("style.prior", "encoder.init", "optimizers.generator.schedule"):
        for code in CODE:
            copy = Path(shutil.copytree(model_folder, tmp_path / "run"))
            fields = json.loads((copy / "config.json").read_text())
            *groups, last = field.split(".")
            _group(fields, groups)[last] = code.format(canary=str(canary))
            (copy / "config.json").write_text(json.dumps(fields))
            assert field in refused(copy)
            shutil.rmtree(copy)
    copy = Path(shutil.copytree(model_folder, tmp_path / "run"))
    with zipfile.ZipFile(copy / "preprocessing.npz", "w") as archive:
        for name in ("shift", "scale"):
            archive.writestr(f"{name}.npy", pickled(canary))
    assert "preprocessing.npz" in refused(copy)
    assert not canary.exists()


@pytest.mark.parametrize(
    "text", [DEEP, '{"a":' * 50_000, "9" * 5000, "\0", "!!python/object/apply:os.getcwd []"]
)
@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_text_that_no_run_wrote_is_named(model_folder, tmp_path, name, text) -> None:
    copy = Path(shutil.copytree(model_folder, tmp_path / "run"))
    (copy / name).write_text(text)
    assert name in refused(copy)


@pytest.mark.parametrize(
    "change",
    [{"image_shape": [10**30, 4, 1]}, {"image_shape": [10**9] * 3}, {"num_examples": 10**400}],
)
def test_sizes_that_no_data_have_are_named(model_folder, tmp_path, change) -> None:
    copy = Path(shutil.copytree(model_folder, tmp_path / "run"))
    fields = json.loads((copy / "data.json").read_text())
    (copy / "data.json").write_text(json.dumps({**fields, **change}))
    assert str(copy) in refused(copy)
