"""E7 (Table 1): Parzen log-likelihood of 48x48 faces under 10,000 samples.

  python -m aae_jax.main --config configs/faces_likelihood.py \
      --config.data.source=npz:faces48.npz

The Toronto Face Dataset is not public. Any 48x48 grey faces with x_train, x_valid and x_test stand
in for it, such as FER-2013; scores on them do not compare with the paper's 2252 +- 16.

Seen on FER-2013 after 8 epochs: 370 nats, samples little more than the mean face in several lights.
"""

from ml_collections import ConfigDict

from aae_jax.config import base, use_adam


def get_config() -> ConfigDict:
    """A 15-D Gaussian code of standard deviation 10, linear output, standardised pixels."""
    config = base()
    config.experiment = "E7"
    config.title = "Adversarial autoencoder on faces, 15-D Gaussian prior (Table 1)"
    config.data.source = "npz:faces48.npz"
    config.data.stand_in_for = "the Toronto Face Dataset"
    config.data.validation = 0
    config.data.preprocessing = "standardize_pixels"
    config.model.style_dim = 15
    config.style.prior = "gaussian(15, std=10.0)"
    config.decoder.output = "linear"
    use_adam(config, autoencoder=1e-3, discriminator=2e-3, generator=1e-3)
    config.train.epochs = 50.0
    config.evaluation.samples = 3500
    config.evaluation.parzen_samples = 10_000
    return config
