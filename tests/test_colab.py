"""The notebooks of launch/colab: each is run from top to bottom, and must reach its score."""

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
COLAB = ROOT / "launch" / "colab"
NAMES = sorted(path.stem for path in COLAB.glob("*.ipynb"))
# What a notebook prints of its model, and the range that it must lie in.
SCORES = {
    "clustering": [(r"in a cluster of their digit: ([\d.]+) %", 78, 100)],
    "quickstart": [
        (r"Gaussian: neighbours name ([\d.]+) %", 60, 100),
        (r"petals: neighbours name ([\d.]+) %", 80, 100),
    ],
    "semi_supervised": [(r"adversarial autoencoder: ([\d.]+) % error", 0, 14.5)],
    "style_and_content": [(r"recognised as asked: ([\d.]+) %", 90, 100)],
    "your_own_images": [(r"above a good one in ([\d.]+) % of pairs", 95, 100)],
}
FIVE_MINUTES = 300  # on two cores, a kernel's start included
LIBRARIES = {"aae_jax", "jax", "numpy", "pathlib", "PIL", "sklearn"}


def read(name):
    notebook = nbformat.read(COLAB / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tree(cell):
    return ast.parse(re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE))


def printed(notebook):
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def pictures(notebook):
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    return [output for output in outputs if "image/png" in output.get("data", {})]


def check_scores(name, text):
    for pattern, low, high in SCORES[name]:
        found = re.search(pattern, text)
        assert found, f"{name} does not print {pattern!r}"
        assert low <= float(found[1]) <= high, found[0]


def test_the_five_are_there_and_in_the_readme():
    assert sorted(SCORES) == NAMES
    readme = (ROOT / "README.md").read_text()
    assert sorted(re.findall(r"\(launch/colab/(\w+)\.ipynb\)", readme)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_with_its_badge_and_what_will_be_seen(name):
    first, install = read(name).cells[:2]
    title, badge, text = first.source.split("\n\n")
    assert first.cell_type == "markdown" and title.startswith("# ")
    (image, target) = re.fullmatch(r"\[!\[Open in Colab\]\((.*)\)\]\((.*)\)", badge).groups()
    assert image == "https://colab.research.google.com/assets/colab-badge.svg"
    place = f"/blob/main/launch/colab/{name}.ipynb"
    assert target.startswith("https://colab.research.google.com/github/")
    assert target.endswith(place), "the badge opens another notebook"
    assert text.startswith("You will see ")
    # One repository for the badge and for pip.
    repository = target.removeprefix("https://colab.research.google.com/").removesuffix(place)
    owner_and_name = repository.removeprefix("github/")
    assert f'"git+https://github.com/{owner_and_name}"' in install.source


@pytest.mark.parametrize("name", NAMES)
def test_no_output_is_stored(name):
    for cell in code(read(name)):
        assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_uses_the_library_and_does_not_repeat_it(name):
    _, *cells = code(read(name))
    imported, called = set(), set()
    for node in (node for cell in cells for node in ast.walk(tree(cell))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
        elif isinstance(node, ast.Attribute):
            called.add(ast.unparse(node))
    assert imported <= LIBRARIES
    assert "aae_jax.fit" in called
    assert {each for each in called if each.startswith("jax.")} <= {
        *("jax.random", "jax.random.key", "jax.random.split"),
    }
    assert not any(isinstance(node, ast.While) for cell in cells for node in ast.walk(tree(cell)))


def install(monkeypatch, tmp_path, installed, importable):
    """The commands that the first cell gives where these distributions are installed."""
    commands = []
    every = [SimpleNamespace(name=name, version=version) for name, version in installed.items()]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importable or None)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: every)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    exec(code(read(NAMES[0]))[0].source, {})
    assert all(command[:4] == [sys.executable, "-m", "pip", "install"] for command in commands)
    return commands


def test_all_install_alike():
    assert len({code(read(name))[0].source for name in NAMES}) == 1


def test_nothing_is_installed_where_the_library_can_be_imported(monkeypatch, tmp_path):
    assert install(monkeypatch, tmp_path, {"jax": "0.10.0"}, importable=True) == []
    assert list(tmp_path.iterdir()) == []


def test_a_preinstalled_jax_is_neither_asked_for_nor_exchanged(monkeypatch, tmp_path):
    installed = {
        **{"jax": "0.10.1", "jaxlib": "0.10.1", "jax-cuda12-plugin": "0.10.1", "numpy": "2.3.1"},
        **{"ml_collections": "1.1.0", "tensorflow": "2.21.0", "Flax": "0.12.1"},
    }
    library, rest = install(monkeypatch, tmp_path, installed, importable=False)
    assert "--no-deps" in library and library[-1].startswith("git+https://")
    assert rest[rest.index("-c") + 1] == "kept.txt"
    kept = (tmp_path / "kept.txt").read_text().split()
    assert {"jax==0.10.1", "jaxlib==0.10.1", "jax-cuda12-plugin==0.10.1", "numpy==2.3.1"} <= {*kept}
    asked = {re.match(r"[\w-]+", word)[0] for word in rest[rest.index("kept.txt") + 1 :]}
    assert not asked & {"jax", "jaxlib", "numpy", "flax", "ml-collections", "tensorflow-cpu"}
    assert {"clu", "optax", "orbax-checkpoint", "jaxtyping"} <= asked
    assert not asked & {"pytest", "torch", "jupyterlab"}, "no extras"


def test_where_there_is_no_jax_it_is_asked_for(monkeypatch, tmp_path):
    _, rest = install(monkeypatch, tmp_path, {"numpy": "2.3.1"}, importable=False)
    assert any(word.startswith("jax>=") for word in rest)
    assert (tmp_path / "kept.txt").read_text() == "numpy==2.3.1"


def test_what_is_too_old_is_renewed_unless_jax_goes_with_it(monkeypatch, tmp_path):
    _, rest = install(monkeypatch, tmp_path, {"jax": "0.10.0", "optax": "0.1"}, importable=False)
    assert any(word.startswith("optax>=") for word in rest)
    assert not any(word.startswith("jax>=") for word in rest)
    with pytest.raises(ImportError, match=r"needs jax>=0\.10.*, here is 0\.4\.33: choose a newer"):
        install(monkeypatch, tmp_path, {"jax": "0.4.33"}, importable=False)
    with pytest.raises(ImportError, match=r"tensorflow-cpu.*, here is 2\.5: choose a newer"):
        install(monkeypatch, tmp_path, {"tensorflow": "2.5"}, importable=False)


@pytest.mark.notebooks
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_reaches_its_score(name, tmp_path, monkeypatch):
    # The kernel of this environment and the library of this folder, whatever else is installed.
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = read(name)
    folder = tmp_path / "work"
    folder.mkdir()
    client = nbclient.NotebookClient(
        notebook,
        timeout=FIVE_MINUTES,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    began = time.monotonic()
    client.execute()
    assert time.monotonic() - began < FIVE_MINUTES
    assert not (folder / "kept.txt").exists(), "installed, although it could be imported"
    assert list(folder.glob("runs/*/report.html"))
    assert len(pictures(notebook)) >= 2
    check_scores(name, printed(notebook))


def test_scores_out_of_their_range_are_told():
    check_scores("semi_supervised", "adversarial autoencoder: 9.1 % error")
    with pytest.raises(AssertionError, match=r"50\.0 % error"):
        check_scores("semi_supervised", "adversarial autoencoder: 50.0 % error")
    with pytest.raises(AssertionError, match="does not print"):
        check_scores("semi_supervised", "nothing")
