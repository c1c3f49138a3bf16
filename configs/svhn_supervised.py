"""E10 (Fig 7 b): supervised, on SVHN.

  python -m aae_jax.main --config configs/svhn_supervised.py
  python -m aae_jax.main --config configs/svhn_supervised.py \
      --config.data.source=npz:svhn10k.npz --config.data.stand_in_for="the official SVHN split"

Seen with these data, nets of 1000 units and 20 epochs: 331 nats; the style changes the image, the
label hardly does (11 % of decoded digits recognised as asked).
"""

from ml_collections import ConfigDict

from aae_jax.config import svhn, use_adam


def get_config() -> ConfigDict:
    """The networks of appendix A.2.2: two layers of 3000 units, batch normalised."""
    config = svhn()
    config.experiment = "E10"
    config.title = "Supervised adversarial autoencoder on SVHN (Fig 7 b)"
    config.model.layout = "style_and_given_label"
    # The style is Gaussian for every label alike, see mnist_supervised.py.
    config.style.prior = "unconditional(gaussian(20, std=1.0), modes=10)"
    config.style.label_informed = True
    use_adam(config, autoencoder=1e-3, discriminator=2e-3, generator=1e-3)
    return config
