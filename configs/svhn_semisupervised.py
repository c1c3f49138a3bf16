"""E12 (Table 2): semi-supervised classification of SVHN with 1000 labels.

  python -m aae_jax.main --config configs/svhn_semisupervised.py
  python -m aae_jax.main --config configs/svhn_semisupervised.py \
      --config.data.source=npz:svhn10k.npz --config.data.stand_in_for="the official SVHN split"

The rates of appendix A.2.2 are known from public re-implementations only.
"""

from ml_collections import ConfigDict

from aae_jax.config import base


def get_config() -> ConfigDict:
    """The networks of appendix A.2.2: two layers of 3000 units, batch normalised."""
    config = base()
    config.experiment = "E12"
    config.title = "Semi-supervised adversarial autoencoder on SVHN, 1000 labels (Table 2)"
    config.data.source = "tfds:svhn_cropped"
    config.data.validation = 1000
    config.data.labels = 1000
    config.data.preprocessing = "standardize_pixels"
    config.model.style_dim = 20
    config.model.labels = 10
    config.model.layout = "style_and_inferred_label"
    config.style.prior = "gaussian(20, std=1.0)"
    config.label.divergence = "gan()"
    config.encoder.widths = config.decoder.widths = config.discriminator.widths = (3000, 3000)
    config.encoder.batch_norm = config.decoder.batch_norm = True
    config.encoder.input_dropout = 0.2
    config.decoder.output = "linear"
    config.phases = ("reconstruction", "regularization", "classification")
    config.optimizers.autoencoder.learning_rate = 1e-4
    config.optimizers.discriminator.learning_rate = 0.01
    config.optimizers.generator.learning_rate = 0.01
    config.optimizers.classifier.learning_rate = 0.1
    for optimizer in config.optimizers.values():
        optimizer.schedule = "step(0.1, epochs=(250,))"
    config.train.epochs = 50.0
    config.paper = {"classification error": "17.70 ± 0.30"}
    return config
