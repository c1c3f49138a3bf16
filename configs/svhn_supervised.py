"""E10 (Fig 7 b): supervised, on SVHN.

  python -m aae_jax.main --config configs/svhn_supervised.py
  python -m aae_jax.main --config configs/svhn_supervised.py \
      --config.data.source=npz:svhn10k.npz --config.data.stand_in_for="the official SVHN split"

RESULTS.md has the share of decoded images that show the digit asked for. It needs steps: after 20
epochs of the stand-in (1400 steps, a style of 20 dimensions) the label hardly changed the image.
"""

from ml_collections import ConfigDict

from aae_jax.config import svhn, use_adam, use_widths


def get_config() -> ConfigDict:
    """Appendix A.2.2's networks with 1000 units; a style too small to hold the digit."""
    config = svhn()
    config.experiment = "E10"
    config.title = "Supervised adversarial autoencoder on SVHN (Fig 7 b)"
    config.model.layout = "style_and_given_label"
    config.model.style_dim = 8
    # The style is Gaussian for every label alike, see mnist_supervised.py.
    config.style.prior = "unconditional(gaussian(8, std=1.0), modes=10)"
    config.style.label_informed = True
    use_adam(config, autoencoder=1e-3, discriminator=2e-3, generator=1e-3)
    use_widths(config, 1000, 1000)
    config.train.epochs = 150.0
    return config
