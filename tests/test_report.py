import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from aae_jax.figures import image_grid
from aae_jax.report import Report, Score, render, score_table, scores_json, write

EVIL = '<script>alert("1")</script> & <img src=http://example.com/x.png onerror=1>'
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and insists that tags are closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, tag, name):
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def grid():
    return image_grid(np.full((2, 3, 8, 8, 1), 0.5), "Grid")


def scores():
    return [
        Score("error", 2.0134, "%", "lower", "1.90 ± 0.10", "8x8 digits, not MNIST"),
        Score("log-likelihood", 338.27, "nats", "higher", None),
        Score("NMI", 0.912345, "fraction", "higher", None, split="valid"),
        Score("KL", float("nan"), "nats", "lower", None),
    ]


def report(**changes):
    plain = Report(
        title="Run",
        summary="First paragraph.\n\nSecond paragraph.",
        command="python -m aae_jax.main --config=configs/a.py",
        config_text="seed: 0",
        facts=[("wall-clock", "12 s"), ("device", "cpu")],
        scores=scores(),
        figures=[("grid", "Six grey images.", grid())],
        curves=[("curve", "", grid())],
        notes=["A note."],
    )
    return plain._replace(**changes)


def test_everything_is_on_the_page():
    page = Page(render(report()))
    text = " ".join(" ".join(page.text).split())
    for piece in (
        "Run",
        "First paragraph.",
        "Second paragraph.",
        "python -m aae_jax.main --config=configs/a.py",
        "seed: 0",
        "wall-clock",
        "12 s",
        "2.01 %",
        "1.90 ± 0.10",
        "338.3 nats",
        "0.9123",
        "8x8 digits, not MNIST",
        "Six grey images.",
        "A note.",
    ):
        assert piece in text
    assert page.tags.count("p") == 2
    assert page.values("section", "id") == ["scores", "curves", "figures", "run", "notes"]
    assert page.values("a", "href") == [f"#{anchor}" for anchor in page.values("section", "id")]


def test_every_text_is_escaped():
    evil = report(
        title=EVIL,
        summary=EVIL,
        command=EVIL,
        config_text=EVIL,
        facts=[(EVIL, EVIL)],
        scores=[Score(EVIL, 1.0, EVIL, "lower", EVIL, EVIL, EVIL)],
        figures=[(EVIL, EVIL, grid())],
        curves=[(EVIL, "", grid())],
        notes=[EVIL],
    )
    html = render(evil)
    page = Page(html)
    assert "script" not in page.tags
    assert page.tags.count("img") == 2
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "".join(page.text).count(EVIL) >= 14
    assert page.values("img", "alt") == [EVIL, EVIL]


def test_nothing_is_loaded_from_elsewhere():
    html = render(report(config_text="url: https://example.com/a.png"))
    page = Page(html)
    assert not {"link", "script", "iframe", "object", "embed", "base"} & set(page.tags)
    for _, name, value in page.attributes:
        if name in ("src", "href", "srcset", "poster", "action", "data"):
            assert value.startswith(("data:image/png;base64,", "#"))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [v for v in page.values("meta", "content") if "default-src" in v]
    assert "default-src 'none'" in policy


def test_fit_for_a_phone_and_for_the_dark():
    page = Page(render(report()))
    assert "width=device-width, initial-scale=1" in page.values("meta", "content")
    assert "prefers-color-scheme: dark" in "".join(page.text)
    assert "max-width: 100%" in "".join(page.text)


def test_figures_are_embedded_in_order():
    wide = Figure(figsize=(5, 1))
    wide.add_subplot()
    page = Page(render(report(figures=[("a", "", grid()), ("b", "", wide)], curves=[])))
    images = []
    for source in page.values("img", "src"):
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        image = Image.open(io.BytesIO(data))
        image.load()
        images.append(image)
    assert len(images) == 2
    assert abs(images[1].size[0] - 550) <= 1
    assert abs(images[1].size[1] - 110) <= 1
    grey = np.asarray(images[0].convert("L"))
    # Six images of 72 x 72 pixels, mid-grey.
    assert (np.abs(grey.astype(int) - 127) <= 1).sum() >= 6 * 72 * 72


def test_empty_sections_are_left_out():
    page = Page(render(report(scores=[], figures=[], curves=[], notes=[], facts=[], summary="")))
    assert page.values("section", "id") == ["run"]
    assert "table" not in page.tags


def test_missing_paper_numbers_are_dashes():
    html = render(report(scores=[Score("a", 1.0, "nats", "", None)]))
    row = re.search(r"<tbody>\s*<tr>(.*?)</tr>", html, re.S).group(1)
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
    assert cells == ["a", "1.0 nats", "-", "-", "test", ""]


def test_table_is_aligned():
    lines = score_table(scores()).split("\n")
    assert len(lines) == 2 + 4
    for word, column in (("split", "test"), ("paper", "1.90 ± 0.10"), ("better", "lower")):
        assert lines[2].index(column) == lines[0].index(word)
    ends = [
        line.index(end) + len(end)
        for line, end in zip(
            [lines[0], lines[2], lines[3], lines[4], lines[5]],
            ["this run", "2.01 %", "338.3 nats", "0.9123", "not finite"],
            strict=True,
        )
    ]
    assert len(set(ends)) == 1
    assert lines[3].split()[-2:] == ["-", "higher"]
    assert lines[2].endswith("8x8 digits, not MNIST")
    assert all(line == line.rstrip() for line in lines)


def test_table_keeps_one_line_per_score():
    table = score_table([Score("a\nb", 1.0, "", "", None, note="x\n\ty")])
    assert len(table.split("\n")) == 3
    assert "a b" in table
    assert table.endswith("x y")
    assert len(score_table([]).split("\n")) == 2


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.849, "%", "0.85 %"),
        (97.5, "percent", "97.50 percent"),
        (-88.66, "nats", "-88.7 nats"),
        (0.5, "fraction", "0.5000"),
        (41234.5, "images/s", "41,234 images/s"),
        (0.0123456, "", "0.01235"),
        (float("inf"), "nats", "not finite"),
    ],
)
def test_digits_follow_the_unit(value, unit, text):
    assert text in score_table([Score("s", value, unit, "", None)])


def test_json_has_every_field_at_full_precision():
    records = json.loads(scores_json(scores()))
    assert [record["name"] for record in records] == ["error", "log-likelihood", "NMI", "KL"]
    assert records[0] == scores()[0]._asdict()
    assert records[2]["value"] == 0.912345
    assert records[3]["value"] is None
    assert "NaN" not in scores_json(scores())
    assert json.loads(scores_json([])) == []
    assert json.loads(scores_json([Score("x", np.float32(0.5), "", "", None)]))[0]["value"] == 0.5


def test_write_replaces_the_file_whole(tmp_path):
    path = tmp_path / "run" / "report.html"
    write(report(), path)
    assert path.read_text(encoding="utf-8") == render(report())
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_midway_leaves_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write(report(), path)
    old = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("aae_jax.files.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write(report(title="Another"), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_import_is_light():
    code = (
        "import sys, aae_jax.report;"
        "heavy = {'tensorflow', 'jax', 'matplotlib', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
