"""E10 (Fig 7 b): supervised, on SVHN.

  python -m aae_jax.main --config configs/svhn_supervised.py
  python -m aae_jax.main --config configs/svhn_supervised.py \
      --config.data.source=npz:svhn10k.npz --config.data.stand_in_for="the official SVHN split"
"""

from ml_collections import ConfigDict

from aae_jax.config import base, use_adam


def get_config() -> ConfigDict:
    """The networks of appendix A.2.2: two layers of 3000 units, batch normalised."""
    config = base()
    config.experiment = "E10"
    config.title = "Supervised adversarial autoencoder on SVHN (Fig 7 b)"
    config.data.source = "tfds:svhn_cropped"
    config.data.validation = 1000
    config.data.preprocessing = "standardize_pixels"
    config.model.style_dim = 20
    config.model.labels = 10
    config.model.layout = "style_and_given_label"
    config.style.prior = "gaussian(20, std=1.0)"
    config.encoder.widths = config.decoder.widths = config.discriminator.widths = (3000, 3000)
    config.encoder.batch_norm = config.decoder.batch_norm = True
    config.encoder.input_dropout = 0.2
    config.decoder.output = "linear"
    use_adam(config)
    config.train.epochs = 50.0
    config.evaluation.sample_quality = True
    return config
