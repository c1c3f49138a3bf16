"""E18 (Table 2): the supervised baseline on SVHN, the encoder of E12 alone, 1000 labels.

  python -m aae_jax.main --config configs/svhn_classifier.py
  python -m aae_jax.main --config configs/svhn_classifier.py \
      --config.data.source=npz:svhn10k.npz --config.data.stand_in_for="the official SVHN split"
"""

from ml_collections import ConfigDict

from aae_jax.config import svhn


def get_config() -> ConfigDict:
    """The semi-supervised encoder, trained by its classification phase only."""
    config = svhn()
    config.experiment = "E18"
    config.title = "Supervised network with dropout on SVHN, 1000 labels (Table 2)"
    config.data.labels = 1000
    config.style.divergence = ""
    config.phases = ("classification",)
    config.encoder.dropout = 0.5
    config.optimizers.classifier.learning_rate = 0.05
    config.optimizers.classifier.schedule = "cosine()"
    config.paper = {"classification error": "47.50"}
    return config
