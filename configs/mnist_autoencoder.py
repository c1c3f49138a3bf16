"""E18 (section 5): the unregularised autoencoder, whose manifold is fractured.

python -m aae_jax.main --config configs/mnist_autoencoder.py

RESULTS.md has the share of pixel neighbours that stay neighbours in the code, and of straight paths
between codes of a class that keep it when decoded.
"""

from ml_collections import ConfigDict

from aae_jax.config import mnist, use_adam


def get_config() -> ConfigDict:
    """E1 without its adversary; the prior serves for drawing samples only."""
    config = mnist()
    use_adam(config, autoencoder=1e-3)
    config.experiment = "E18"
    config.title = "Unregularised autoencoder on MNIST, 2-D code"
    config.style.divergence = ""
    config.phases = ("reconstruction",)
    return config
