"""E13, E14 (Table 3, Fig 9): unsupervised clustering with any number of clusters.

  python -m aae_jax.main --config configs/mnist_clustering.py:16
  python -m aae_jax.main --config configs/mnist_clustering.py:30
  python -m aae_jax.main --config configs/mnist_clustering.py:16/best
  python -m aae_jax.main --config configs/mnist_clustering.py:30/best

The first 100 of the 1500 epochs of appendix A.3, with layers of 1000 units instead of 3000. The
recipe "best" has layers of 500 units with fewer than 20 clusters and smooths the label head
(aae_jax.phases.smoothness) from epoch 80 on, 112 epochs in all: digits then share clusters, and the
autoencoder's patience finds how. From 20 on it seeks clusters of equal size that say the most of
an image (aae_jax.phases.information), smooth from the start, for 100 epochs with layers of 1200
units, and the autoencoder's rate rises for the first 50. RESULTS.md has the scores; fours and
nines, which clusters part by slant with some seeds, are most of what is left.
"""

from ml_collections import ConfigDict

from aae_jax.config import ConfigError, mnist, use_information, use_smoothness, use_widths

# From so many on, clusters of equal size can be of one digit each.
EVENLY = 20
PAPER = {"16": "9.55 ± 2.05", "30": "4.10 ± 1.13"}


def get_config(variant: str = "16") -> ConfigDict:
    """No labels; batch norm in the encoder, its two heads included, is "crucial"."""
    clusters = variant.removesuffix("/best")
    if not clusters.isdecimal() or int(clusters) < 2:
        raise ConfigError(f"variant {variant!r} is no number of clusters; allowed: 2 or more")
    config = mnist()
    config.experiment = "E13"
    config.title = f"Unsupervised clustering of MNIST, {clusters} clusters (Table 3)"
    config.data.labels = 0
    config.model.style_dim = 5
    config.model.labels = int(clusters)
    config.model.layout = "style_and_inferred_label"
    config.encoder.batch_norm = config.encoder.head_batch_norm = True
    config.encoder.input_dropout = 0.2
    config.style.prior = "gaussian(5, std=1.0)"
    config.label.prior = f"categorical({clusters})"
    config.label.divergence = "gan()"
    config.train.epochs = 100.0
    for optimizer in config.optimizers.values():
        optimizer.schedule = "step(0.1, epochs=(50,))"
    if clusters in PAPER:
        config.paper = {
            "clustering error, clusters named by their most certain validation image": PAPER[
                clusters
            ]
        }
    if variant.endswith("/best"):
        if int(clusters) < EVENLY:
            use_smoothness(config, start=80.0, cut=104.0, end=112.0)
        else:
            use_information(config)
            use_widths(config, 1200, 1200)
            # Clusters are found before the autoencoder can draw them to slant.
            config.optimizers.autoencoder.schedule = "cosine(warmup=50)"
    return config
