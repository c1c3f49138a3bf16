"""E12 (Table 2): semi-supervised classification of SVHN with 1000 labels.

  python -m aae_jax.main --config configs/svhn_semisupervised.py
  python -m aae_jax.main --config configs/svhn_semisupervised.py \
      --config.data.source=npz:svhn10k.npz --config.data.stand_in_for="the official SVHN split"

The rates of appendix A.2.2 are known from public re-implementations only.
"""

from ml_collections import ConfigDict

from aae_jax.config import svhn


def get_config() -> ConfigDict:
    """The networks of appendix A.2.2: two layers of 3000 units, batch normalised."""
    config = svhn()
    config.experiment = "E12"
    config.title = "Semi-supervised adversarial autoencoder on SVHN, 1000 labels (Table 2)"
    config.data.labels = 1000
    config.model.layout = "style_and_inferred_label"
    config.label.divergence = "gan()"
    config.phases = ("reconstruction", "regularization", "classification")
    config.optimizers.autoencoder.learning_rate = 1e-4
    config.optimizers.discriminator.learning_rate = 0.01
    config.optimizers.generator.learning_rate = 0.01
    config.optimizers.classifier.learning_rate = 0.1
    for optimizer in config.optimizers.values():
        optimizer.schedule = "step(0.1, epochs=(250,))"
    config.paper = {"classification error": "17.70 ± 0.30"}
    return config
