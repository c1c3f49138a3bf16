import functools
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import yaml

from aae_jax import export, files, program, report
from aae_jax.inference import load

pytestmark = pytest.mark.usefixtures("quick_compilation")

CLASSES = 3
CLUSTERS = {"model.labels": CLASSES, "model.layout": "style_and_inferred_label"}
# Each option at least once, the more of them in one model the fewer are compiled.
IMAGES = {
    **CLUSTERS,
    "encoder.channels": 4,
    "decoder.channels": 4,
    "encoder.batch_norm": True,
    "data.preprocessing": "standardize_pixels",
    "decoder.output": "linear",
    "train.averaging": 0.9,
}
GAUSSIAN = {
    "model.posterior": "gaussian",
    "model.labels": CLASSES,
    "model.layout": "style_and_given_label",
    "decoder.output": "bernoulli",
}
UNIVERSAL = {
    "model.posterior": "universal",
    "model.noise_dim": 2,
    "model.labels": CLASSES,
    "model.layout": "cluster_heads",
    "train.compute_dtype": "bfloat16",
}
CLASSIFIER = {"phases": ("classification",), "style.divergence": "", "model.labels": CLASSES}
ROWS = {"data.preprocessing": "standardize", "decoder.output": "linear"}
EVERY = {
    "images": IMAGES,
    "gaussian": GAUSSIAN,
    "universal": UNIVERSAL,
    "classifier": CLASSIFIER,
    "rows": ROWS,
}
SCORES = [
    report.Score("reconstruction", 1.25, "nats", "lower", "1.0"),
    report.Score("x", 2, "", "", None),
]


@pytest.fixture(scope="module")
def saved(save_run, narrow_config, small_images, tmp_path_factory):
    """A finished run with random weights: kind -> (folder, model, images)."""

    @functools.cache
    def save(kind):
        fields = {"data.source": "npz:/secret/place/mine.npz", **EVERY[kind]}
        config = narrow_config(**fields)
        shape, dtype = ((5,), np.float32) if kind == "rows" else ((8, 8, 1), np.uint8)
        images = small_images(40, 0, shape, dtype)
        folder = save_run(tmp_path_factory.mktemp("runs") / kind, config, images)
        (folder / program.SCORES).write_text(report.scores_json(SCORES))
        # In the data's units, as the exported functions take them.
        floats = images.image / np.float32(255) if dtype == np.uint8 else images.image
        return folder, load(folder), floats

    return save


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory):
    """kind -> the folder that the command line writes."""

    @functools.cache
    def write(kind):
        out = tmp_path_factory.mktemp("exported") / kind
        assert program.export(saved(kind)[0], out) == 0
        return out

    return write


def function(folder, name):
    return jax.export.deserialize(bytearray((folder / name).read_bytes()))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# What is exported is the model


@pytest.mark.parametrize("kind", EVERY)
def test_exported_functions_are_those_of_the_loaded_model(saved, exported, kind):
    _, model, images = saved(kind)
    folder, label = exported(kind), np.eye(CLASSES, dtype=np.float32)[np.arange(40) % CLASSES]
    encoder = function(folder, export.ENCODER)
    assert encoder.platforms == ("cpu", "cuda", "tpu")
    is_random = kind in ("gaussian", "universal")
    for n in (1, 40):
        codes = encoder.call(images[:n], *([7] if is_random else []))
        if kind == "classifier":
            assert list(codes) == ["label"]
            close(codes["label"], model.classify(images[:n]))
            continue
        expected = model.encode(images[:n], jax.random.key(7))
        close(codes["style"], expected.style)
        assert ("label" in codes) == (expected.label is not None)
        given = label[:n] if kind == "gaussian" else expected.label
        if "label" in codes:
            close(codes["label"], expected.label)
        arguments = [expected.style] + ([] if given is None else [given])
        found = function(folder, export.DECODER).call(*arguments)
        assert found.dtype == jnp.float32
        close(found, model.decode(expected.style, given))
    if is_random:
        other = encoder.call(images, 8)["style"]
        assert (np.abs(other - codes["style"]).max(axis=1) > 1e-3).all()
    assert (folder / export.DECODER).exists() == (kind != "classifier")


def test_decoded_images_are_within_the_units_of_the_data(saved, exported):
    style = np.float32([[300, 300], [-300, -300]])
    images = function(exported("images"), export.DECODER).call(
        style, np.eye(3, dtype=np.float32)[:2]
    )
    assert images.min() == 0 and images.max() == 1
    rows = function(exported("rows"), export.DECODER).call(style)
    assert rows.min() < 0 or rows.max() > 1


def test_weights_alone_say_what_the_encoder_does(saved, exported):
    _, _, rows = saved("rows")
    folder = exported("rows")
    held = safetensors.numpy.load_file(folder / export.WEIGHTS)
    assert set(held) == {
        *("preprocessing/shift", "preprocessing/scale"),
        *(
            f"params/{layer}/{kind}"
            for layer in ("encoder/trunk/dense_0", "encoder/style", "decoder/hidden/dense_0")
            for kind in ("kernel", "bias")
        ),
        *("params/decoder/output/kernel", "params/decoder/output/bias"),
    }
    x = (rows - held["preprocessing/shift"]) / held["preprocessing/scale"]
    for layer in ("trunk/dense_0", "style"):
        kernel, bias = (held[f"params/encoder/{layer}/{kind}"] for kind in ("kernel", "bias"))
        x = (np.maximum(x, 0) if layer == "style" else x) @ kernel + bias
    close(function(folder, export.ENCODER).call(rows)["style"], x)


def test_averaged_weights_and_statistics_are_those_that_are_exported(saved, exported):
    _, model, _ = saved("images")
    held = safetensors.numpy.load_file(exported("images") / export.WEIGHTS)
    leaf = model.weights[0]["encoder"]["label"]["kernel"]
    np.testing.assert_array_equal(held["params/encoder/label/kernel"], leaf)
    assert any(name.startswith("batch_stats/encoder/") for name in held)
    assert not any("discriminator" in name for name in held)
    assert "params/cluster_heads" in safetensors.numpy.load_file(
        exported("universal") / export.WEIGHTS
    )


# The folder in the hands of a stranger

STRANGER = """
import sys
for name in ("aae_jax", "flax", "orbax", "ml_collections", "safetensors"):
    sys.modules[name] = None  # as if it were not installed
import numpy as np
exec(open("card.py").read())
assert images.shape == (3, 8, 8, 1)
given = np.load("images.npy")
codes = encoder.call(given)
np.savez("out.npz", **codes, images=decoder.call(codes["style"], codes["label"]))
"""


def example(folder):
    """The code of a model card."""
    (code,) = re.findall(r"```python\n(.*?)\n```", (folder / export.CARD).read_text(), re.DOTALL)
    return code


def test_five_lines_and_jax_are_enough_in_another_process(saved, exported, tmp_path):
    _, model, images = saved("images")
    code = example(exported("images"))
    assert len(code.splitlines()) == 5
    for name in (export.ENCODER, export.DECODER):
        (tmp_path / name).write_bytes((exported("images") / name).read_bytes())
    (tmp_path / "card.py").write_text(code)
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={"PATH": "/usr/bin", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    out, codes = np.load(tmp_path / "out.npz"), model.encode(images)
    close(out["style"], codes.style)
    close(out["label"], codes.label)
    close(out["images"], model.reconstruct(images))


@pytest.mark.parametrize("kind", ["gaussian", "universal", "classifier", "rows"])
def test_the_example_of_every_card_runs(exported, kind, monkeypatch):
    monkeypatch.chdir(exported(kind))
    names = {}
    exec(example(exported(kind)), names)
    shape = (5,) if kind == "rows" else (8, 8, 1)
    assert kind == "classifier" or names["images"].shape == (3, *shape)
    assert len(names["codes"].get("style", names["codes"].get("label"))) == 3


def test_the_card_says_what_a_stranger_must_know(exported):
    for kind in EVERY:
        text = (exported(kind) / export.CARD).read_text()
        _, head, body = text.split("---\n", 2)
        assert yaml.safe_load(head)["library_name"] == "jax"
        for words in ("# Adv", "## Data", "## Limits", "40 training images", "1.2 nats"):
            assert words in body, f"{kind}: {words}"
    text = (exported("images") / export.CARD).read_text()
    assert "| style `float32[n,2]`, label `float32[n,3]` | images `float32[n,8,8,1]` |" in text
    assert "3 clusters" in text and "seed" not in text.split("## Data")[0]
    assert "The seed says" in (exported("gaussian") / export.CARD).read_text()
    assert "3 classes, q(y|x)" in (exported("classifier") / export.CARD).read_text()


def test_nothing_published_names_a_folder_of_this_machine(saved, exported):
    for kind in ("images", "rows"):
        config = json.loads((exported(kind) / "config.json").read_text())
        assert config["data"]["source"] == "npz:mine.npz"
        assert (
            config["encoder"] == json.loads((saved(kind)[0] / "config.json").read_text())["encoder"]
        )
        for path in exported(kind).iterdir():
            content = path.read_bytes()
            for place in (
                b"/secret",
                b"site-packages",
                export.__file__.rpartition("/")[0].encode(),
            ):
                assert place not in content, f"{path.name} names {place}"
    assert jax.config.jax_hlo_source_file_canonicalization_regex is None


# Whole, or not at all


def refusal(capsys, status):
    said = capsys.readouterr()
    assert status == 1 and said.out == ""
    assert said.err.startswith("aae_jax: ") and len(said.err.splitlines()) == 1
    return said.err


def test_a_folder_that_is_there_is_left_alone(saved, exported, capsys, tmp_path):
    folder = exported("rows")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    line = refusal(capsys, program.export(saved("rows")[0], folder))
    assert str(folder) in line and "is there already" in line and "--out" in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "empty").mkdir()
    refusal(capsys, program.export(saved("rows")[0], tmp_path / "empty"))


def test_a_folder_that_is_made_meanwhile_is_left_alone(tmp_path, monkeypatch):
    out = tmp_path / "out"
    whole = files.write_whole

    def slow(path, content):
        out.mkdir(exist_ok=True)
        (out / "thesis.tex").write_text("x")
        whole(path, content)

    monkeypatch.setattr(files, "write_whole", slow)
    with pytest.raises(OSError, match="out"):
        files.write_folder(out, {"a": b"1"})
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.tex"]


def test_a_folder_that_cannot_be_written_is_not_there(saved, tmp_path, capsys, monkeypatch):
    whole = files.write_whole

    def full(path, content):
        assert not (tmp_path / "deep" / "out").exists(), "half a folder is seen"
        if path.name == export.CARD:
            raise OSError(28, "No space left on device", str(path))
        whole(path, content)

    monkeypatch.setattr(files, "write_whole", full)
    line = refusal(capsys, program.export(saved("rows")[0], tmp_path / "deep" / "out"))
    assert "No space left on device" in line
    assert list((tmp_path / "deep").iterdir()) == []
    (tmp_path / "file").write_text("x")
    line = refusal(capsys, program.export(saved("rows")[0], tmp_path / "file" / "out"))
    assert str(tmp_path / "file") in line


def test_a_run_that_is_not_finished_is_not_exported(saved, tmp_path, capsys):
    line = refusal(capsys, program.export(tmp_path, tmp_path / "out"))
    assert "scores.json" in line and "let the run finish" in line
    assert not (tmp_path / "out").exists()
