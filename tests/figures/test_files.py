import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from aae_jax import files
from aae_jax.figures import code_scatter, save, to_png


def figure():
    return code_scatter(np.eye(2), np.arange(2, dtype=np.int32))


@pytest.mark.parametrize("dpi", [50, 110])
def test_png_has_the_figures_size(dpi):
    drawn = figure()
    image = Image.open(io.BytesIO(to_png(drawn, dpi)))
    image.load()
    assert image.format == "PNG"
    expected = drawn.get_size_inches() * dpi
    assert abs(image.size[0] - expected[0]) <= 1
    assert abs(image.size[1] - expected[1]) <= 1
    colors = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colors) > 10


def test_same_figure_same_bytes():
    assert to_png(figure()) == to_png(figure())


def test_save_follows_the_suffix(tmp_path):
    for name, start in (
        ("a.png", b"\x89PNG"),
        ("b.pdf", b"%PDF"),
        ("c.svg", b"<?xml"),
        ("d", b"\x89PNG"),
    ):
        save(figure(), tmp_path / "new" / name)
        assert (tmp_path / "new" / name).read_bytes().startswith(start)
    assert len(list((tmp_path / "new").iterdir())) == 4


def test_a_failed_drawing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def half(self, buffer, **_):
        buffer.write(b"half of a picture")
        raise RuntimeError("no more memory")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(RuntimeError):
        save(figure(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, call):
    path = tmp_path / "page.html"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(OSError, match="no space"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "page.html"
    path.write_bytes(b"a much longer old text")
    files.write_whole(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_drawing_needs_no_pyplot():
    code = (
        "import sys, numpy as np, aae_jax.figures as f;"
        "f.to_png(f.code_scatter(np.eye(2), np.arange(2)));"
        "assert 'matplotlib.pyplot' not in sys.modules;"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules, 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
