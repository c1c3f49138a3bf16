"""E1 on the 1,797 handwritten digits that scikit-learn ships: no download, under a minute.

python -m aae_jax.main --config configs/digits.py
"""

from ml_collections import ConfigDict

from aae_jax.config import base


def get_config() -> ConfigDict:
    """An adversarial autoencoder with a 2-D Gaussian prior on 8x8 images."""
    config = base()
    config.title = "Adversarial autoencoder on scikit-learn's digits, 2-D Gaussian prior"
    config.data.source = "digits"
    return config
