"""The paper's figures, and what they would be for E11, gathered from finished runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from aae_jax import figures, program, workdir
from aae_jax.files import write_whole


class Plate(NamedTuple):
    """A figure of the paper that one run has drawn.

    Attributes:
        name: of the file it becomes; begins with the paper's number, where it has one.
        config: that the run was trained with, FILE[:VARIANT] of the folder configs.
        figure: name among the run's own figures.
    """

    name: str
    config: str
    figure: str


PLATES = (
    Plate("fig2e_manifold", "mnist_gaussian.py", "manifold"),
    Plate("fig4a_mixture_codes", "mnist_label_informed.py:mixture", "codes"),
    Plate("fig4b_mixture_images", "mnist_label_informed.py:mixture", "modes"),
    Plate("fig4c_swiss_roll_codes", "mnist_label_informed.py:swiss_roll", "codes"),
    Plate("fig4d_swiss_roll_images", "mnist_label_informed.py:swiss_roll", "walk"),
    Plate("fig5a_mnist_samples", "mnist_likelihood.py:aae", "samples"),
    Plate("fig5b_stand_in_faces_samples", "faces_likelihood.py:aae", "samples"),
    Plate("fig7a_mnist_styles", "mnist_supervised.py", "styles_and_labels"),
    Plate("fig7b_stand_in_svhn_styles", "svhn_supervised.py", "styles_and_labels"),
    Plate("e11_styles_100_labels", "mnist_semisupervised.py:100/best", "styles_and_labels"),
    Plate("fig9_clusters", "mnist_clustering.py:16/best", "clusters"),
    Plate("fig9_thirty_clusters", "mnist_clustering.py:30/best", "clusters"),
    Plate("fig11a_1000_labels", "mnist_dimensionality.py:1000/best", "heads"),
    Plate("fig11b_100_labels", "mnist_dimensionality.py:100/best", "heads"),
    Plate("fig11c_no_labels", "mnist_dimensionality.py:20/best", "heads"),
    Plate("fig11d_circle", "mnist_dimensionality.py:circle/best", "circle"),
)
# Panels a to d: the adversarial above the variational autoencoder, Gaussian beside mixture.
CODES = ("mnist_gaussian.py", "mnist_mixture.py", "mnist_vae.py:gaussian", "mnist_vae.py:mixture")


def gather(runs: Path, out: Path) -> int:
    """Writes every figure of the paper whose runs are finished, and names the others; the status.

    Args:
        runs: where `train` and `reproduce` keep runs by config; of several seeds the least counts.
        out: where the figures go; another file there is left alone.
    """
    return program.explained(lambda: _gather(runs, out))


def _gather(runs: Path, out: Path) -> None:
    if not runs.is_dir():
        raise workdir.WorkdirError(f"{runs} is no folder of runs")
    for name, missing in _gathered(runs, out):
        if missing:
            print(f"{name}: no finished run; python -m aae_jax.main --config configs/{missing[0]}")
        else:
            print(out / f"{name}.png")


def _gathered(runs: Path, out: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Each figure, once it is written, with the configs whose runs it lacks."""
    panels = {config: finished(runs, config) for config in CODES}
    missing = [config for config, folder in panels.items() if folder is None]
    if not missing:
        panel = program.code_panels([folder for folder in panels.values() if folder])
        figures.save(figures.four_panels(panel), out / "fig2_codes.png")
    yield "fig2_codes", missing
    for plate in PLATES:
        folder = finished(runs, plate.config)
        if folder is not None:
            drawn = folder / "figures" / f"{plate.figure}.png"
            write_whole(out / f"{plate.name}.png", drawn.read_bytes())
        yield plate.name, [] if folder else [plate.config]


def finished(runs: Path, config: str) -> Path | None:
    """The folder of the config's finished run, if there is one."""
    named = runs / workdir.run_name(config)
    seeds = [each for each in named.glob("seed-*") if each.name[5:].isdecimal()]
    folders = named, *sorted(seeds, key=lambda folder: int(folder.name[5:]))
    return next((each for each in folders if (each / program.SCORES).exists()), None)
