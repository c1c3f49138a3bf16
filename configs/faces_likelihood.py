"""E7 (Table 1): Parzen log-likelihood of 48x48 faces under 10,000 samples.

  python -m aae_jax.main --config configs/faces_likelihood.py:aae \
      --config.data.source=npz:faces48.npz
  python -m aae_jax.main --config configs/faces_likelihood.py:vae \
      --config.data.source=npz:faces48.npz
  python -m aae_jax.main --config configs/faces_likelihood.py:mmd \
      --config.data.source=npz:faces48.npz

The Toronto Face Dataset is not public. Any 48x48 grey faces with x_train, x_valid and x_test stand
in for it, such as FER-2013; scores on them do not compare with the paper's 2252 +- 16.
"""

from ml_collections import ConfigDict

from aae_jax.config import RIVALS, base, chosen, use_adam, use_vae


def get_config(variant: str = "aae") -> ConfigDict:
    """A 15-D Gaussian code of standard deviation 10, linear output, standardised pixels."""
    config = base()
    config.experiment = "E7"
    config.title = f"{chosen(RIVALS, variant)} on faces, 15-D code (Table 1)"
    config.data.source = "npz:faces48.npz"
    config.data.stand_in_for = "the Toronto Face Dataset"
    config.data.validation = 0
    config.data.preprocessing = "standardize_pixels"
    config.model.style_dim = 15
    config.style.prior = "gaussian(15, std=10.0)"
    config.decoder.output = "linear"
    use_adam(config, autoencoder=3e-4, discriminator=2e-3, generator=1e-3)
    # Codes are ten times as large as what He's weights expect: with these nearly all units of the
    # decoder's second layer die, and what is left draws the mean face (RESULTS.md).
    for network in ("encoder", "decoder", "discriminator"):
        config[network].init = "normal(0.01)"
    config.train.epochs = 50.0
    config.evaluation.samples = 3500
    config.evaluation.parzen_samples = 10_000
    config.evaluation.sample_quality = True
    if variant == "vae":
        use_vae(config)
    if variant == "mmd":
        config.style.divergence = "mmd(scale=10.0)"
    return config
