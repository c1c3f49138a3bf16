"""E3 (Fig 2 c, d): the variational autoencoder with the priors of E1 and E2, same networks.

python -m aae_jax.main --config configs/mnist_vae.py:gaussian
python -m aae_jax.main --config configs/mnist_vae.py:mixture

RESULTS.md has the distances of codes and prior beside those of the adversarial autoencoder.
"""

from ml_collections import ConfigDict

from aae_jax.config import chosen, mnist, use_adam, use_vae

PRIORS = {"gaussian": "gaussian(2, std=5.0)", "mixture": "petals(modes=10, scale=4.0)"}


def get_config(variant: str = "gaussian") -> ConfigDict:
    """The KL term, by Monte Carlo against the prior's density, in the adversary's place."""
    config = mnist()
    use_adam(config, autoencoder=1e-3)
    config.experiment = "E3"
    config.title = f"Variational autoencoder on MNIST, {variant} prior (Fig 2 c, d)"
    use_vae(config)
    config.style.prior = chosen(PRIORS, variant)
    return config
