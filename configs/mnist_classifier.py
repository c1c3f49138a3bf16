"""E18 (section 5): the supervised baseline, the encoder alone with dropout.

python -m aae_jax.main --config configs/mnist_classifier.py:100
python -m aae_jax.main --config configs/mnist_classifier.py:1000
python -m aae_jax.main --config configs/mnist_classifier.py:all

RESULTS.md has the scores.
"""

from ml_collections import ConfigDict

from aae_jax.config import chosen, mnist

PAPER = {"100": "25.80", "1000": "8.73", "all": "1.25"}


def get_config(labels: str = "100") -> ConfigDict:
    """The semi-supervised encoder, trained by its classification phase only."""
    paper = chosen(PAPER, labels)
    config = mnist()
    config.experiment = "E18"
    config.title = f"Supervised network with dropout on MNIST, {labels} labels (Table 2)"
    config.data.labels = -1 if labels == "all" else int(labels)
    config.model.labels = 10
    config.style.divergence = ""
    config.phases = ("classification",)
    config.encoder.input_dropout = 0.2
    config.encoder.dropout = 0.5
    # The N(0, 0.01^2) start of the autoencoders learns nothing through two dropped-out layers.
    config.encoder.init = "he_normal()"
    config.optimizers.classifier.learning_rate = 0.05
    config.optimizers.classifier.schedule = "cosine()"
    config.paper = {"classification error": paper}
    return config
