"""E13, E14 (Table 3, Fig 9): unsupervised clustering with any number of clusters.

  python -m aae_jax.main --config configs/mnist_clustering.py:16
  python -m aae_jax.main --config configs/mnist_clustering.py:30
  python -m aae_jax.main --config configs/mnist_clustering.py:16/best
  python -m aae_jax.main --config configs/mnist_clustering.py:30/best

The first 100 of the 1500 epochs of appendix A.3, with layers of 1000 units instead of 3000. The
recipe "best" seeks clusters of equal size that say the most of an image, and the same of images
that are moved, turned and slanted a little (aae_jax.config.use_information), in layers of 1200
units for 40 epochs. RESULTS.md has the scores.
"""

from ml_collections import ConfigDict

from aae_jax.config import ConfigError, mnist, use_information, use_widths

# So many of equal size are several of one digit each, and slant is what tells them apart.
EVENLY = 30
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
        use_information(config)
        use_widths(config, 1200, 1200)
        # Clusters are found before the autoencoder can draw them to slant.
        config.optimizers.autoencoder.schedule = "cosine(warmup=20)"
        if int(clusters) >= EVENLY:
            config.train.smoothness_augmentation = (
                "affine(degrees=5, translate=0.05, scale=0.08, shear=5)"
            )
    return config
