"""E2 (Fig 2 b): unsupervised, the prior a mixture of ten 2-D Gaussians.

python -m aae_jax.main --config configs/mnist_mixture.py

The paper does not tell the mixture's scale. At scale 1 the reconstruction error pushes codes out of
the petals (seen on validation images), so here they are about as wide as the Gaussian of E1.

RESULTS.md has the distances of codes and prior.
"""

from ml_collections import ConfigDict

from aae_jax.config import mnist, use_adam


def get_config() -> ConfigDict:
    """E1 with another prior."""
    config = mnist()
    use_adam(config)
    config.experiment = "E2"
    config.title = "Adversarial autoencoder on MNIST, mixture of ten Gaussians (Fig 2 b)"
    config.style.prior = "petals(modes=10, scale=4.0)"
    return config
