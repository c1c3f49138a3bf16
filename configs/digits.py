"""E1 on the 1,797 handwritten digits that scikit-learn ships: no download, under a minute.

python -m aae_jax.main --config configs/digits.py
"""

from ml_collections import ConfigDict

from aae_jax.config import base, use_adam, use_widths


def get_config() -> ConfigDict:
    """An adversarial autoencoder with a 2-D Gaussian prior on 8x8 images."""
    config = base()
    config.experiment = "E1"
    config.title = "Adversarial autoencoder on scikit-learn's digits, 2-D Gaussian prior"
    config.data.source = "digits"
    use_widths(config, 256, 256)
    use_adam(config, autoencoder=1e-3, discriminator=2e-3, generator=1e-3)
    config.train.epochs = 400.0
    config.evaluation.every_epochs = 20.0
    config.evaluation.sample_quality = True
    config.evaluation.parzen_samples = 10_000
    return config
