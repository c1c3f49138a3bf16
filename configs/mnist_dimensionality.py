"""E15, E16, E17 (Fig 11): dimensionality reduction, code = W_C^T y + z.

  python -m aae_jax.main --config configs/mnist_dimensionality.py:1000    2-D, 1000 labels
  python -m aae_jax.main --config configs/mnist_dimensionality.py:100     2-D, 100 labels
  python -m aae_jax.main --config configs/mnist_dimensionality.py:20      2-D, 20 heads, no labels
  python -m aae_jax.main --config configs/mnist_dimensionality.py:circle  10-D, 100 labels
  python -m aae_jax.main --config configs/mnist_dimensionality.py:1000/best
  python -m aae_jax.main --config configs/mnist_dimensionality.py:100/best
  python -m aae_jax.main --config configs/mnist_dimensionality.py:20/best
  python -m aae_jax.main --config configs/mnist_dimensionality.py:circle/best

The first 100 epochs of the schedule of appendix A.2.1. The recipe "best" is that of
mnist_semisupervised.py and mnist_clustering.py (aae_jax.config.use_information). RESULTS.md has the
scores.

The least distance of heads, eta, is not in the paper: heads start 2 apart or more for most pairs
with unit-variance styles, so eta = 2 keeps styles of different heads from overlapping much.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from aae_jax.config import chosen, mnist, use_information, with_best


class Panel(NamedTuple):
    """What differs between the panels of Fig 11."""

    experiment: str
    letter: str
    style_dim: int
    heads: int
    labels: int
    paper: str


VARIANTS = {
    "1000": Panel("E15", "a", 2, 10, 1000, "4.20"),
    "100": Panel("E15", "b", 2, 10, 100, "6.08"),
    "20": Panel("E16", "c", 2, 20, 0, "13.5 to 13.95"),
    "circle": Panel("E17", "d", 10, 10, 100, "3.90"),
}


def get_config(variant: str = "1000") -> ConfigDict:
    """The semi-supervised or the clustering experiment with cluster heads."""
    panel = chosen(with_best(VARIANTS), variant)
    config = mnist()
    config.experiment = panel.experiment
    config.title = (
        f"Dimensionality reduction of MNIST to {panel.style_dim}-D (Fig 11 {panel.letter})"
    )
    config.data.labels = panel.labels
    config.model.style_dim = panel.style_dim
    config.model.labels = panel.heads
    config.model.layout = "cluster_heads"
    config.style.prior = f"gaussian({panel.style_dim}, std=1.0)"
    config.label.prior = f"categorical({panel.heads})"
    config.label.divergence = "gan()"
    if panel.style_dim == 2:
        config.cluster_heads.init_std = 5.0
        config.cluster_heads.eta = 2.0
        config.penalties.heads_apart = 1.0
    else:
        config.cluster_heads.fixed = 10.0
    if panel.labels:
        config.encoder.input_noise = 0.3
        config.phases = ("reconstruction", "regularization", "classification")
        config.paper = {"classification error": panel.paper}
    else:
        config.encoder.batch_norm = config.encoder.head_batch_norm = True
        config.encoder.input_dropout = 0.2
        config.paper = {
            "clustering error, clusters named by their most certain validation image": panel.paper
        }
    config.train.epochs = 100.0
    for optimizer in config.optimizers.values():
        optimizer.schedule = "step(0.1, epochs=(50,))"
    if variant.endswith("/best"):
        use_information(config)
    return config
