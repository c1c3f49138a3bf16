"""E6, E8 (Table 1, Fig 5): Parzen log-likelihood of MNIST under 10,000 samples.

  python -m aae_jax.main --config configs/mnist_likelihood.py

Appendix A.1 gives the networks and the prior, not the optimizer.
"""

from ml_collections import ConfigDict

from aae_jax.config import mnist, use_adam


def get_config() -> ConfigDict:
    """An 8-D Gaussian code of standard deviation 5."""
    config = mnist()
    use_adam(config, autoencoder=1e-3, discriminator=2e-3, generator=1e-3)
    config.experiment = "E6"
    config.title = "Adversarial autoencoder on MNIST, 8-D Gaussian prior (Table 1)"
    config.model.style_dim = 8
    config.style.prior = "gaussian(8, std=5.0)"
    config.evaluation.parzen_samples = 10_000
    config.paper = {"Parzen log-likelihood": "340 ± 2"}
    return config
