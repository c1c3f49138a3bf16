"""E1 (Fig 2 a, e): unsupervised, 2-D Gaussian prior of standard deviation 5.

python -m aae_jax.main --config configs/mnist_gaussian.py

20 epochs take 7 minutes on two CPU cores. RESULTS.md has the distances of codes and prior.
"""

from ml_collections import ConfigDict

from aae_jax.config import mnist, use_adam


def get_config() -> ConfigDict:
    """Encoder, decoder and discriminator of two layers of 1000 units."""
    config = mnist()
    use_adam(config, autoencoder=5e-4, discriminator=4e-4, generator=2e-4)
    config.train.averaging = 0.999
    config.experiment = "E1"
    config.title = "Adversarial autoencoder on MNIST, 2-D Gaussian prior (Fig 2 a, e)"
    config.style.prior = "gaussian(2, std=5.0)"
    return config
