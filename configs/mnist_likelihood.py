"""E6, E8 (Table 1, Fig 5): Parzen log-likelihood of MNIST under 10,000 samples.

  python -m aae_jax.main --config configs/mnist_likelihood.py:aae
  python -m aae_jax.main --config configs/mnist_likelihood.py:vae
  python -m aae_jax.main --config configs/mnist_likelihood.py:mmd
  python -m aae_jax.main --config configs/mnist_likelihood.py:ae
  python -m aae_jax.main --config configs/mnist_likelihood.py:aae/best

Appendix A.1 gives the networks and the prior, not the optimizer. The adversarial autoencoder has
the SGD and the initial weights of the paper's other experiments, with rates that fall to zero.
What it is compared with has the same networks and Adam, by which the first two reconstruct
validation images better: the variational autoencoder, the autoencoder matched by MMD, and the one
that follows no prior, which is sampled from a Gaussian fitted to its training codes.

These have 20 epochs, the recipe "best" has 100: noisy and incomplete images, a heavier adversary
and averaged weights make codes, and what is decoded from them, smoother.
"""

from ml_collections import ConfigDict

from aae_jax.config import RIVALS, chosen, mnist, use_adam, use_vae

VARIANTS = {
    **RIVALS,
    "ae": "Autoencoder with a Gaussian fitted to its codes",
    "aae/best": RIVALS["aae"],
}


def get_config(variant: str = "aae") -> ConfigDict:
    """An 8-D Gaussian code of standard deviation 5."""
    config = mnist()
    config.experiment = "E6"
    config.title = f"{chosen(VARIANTS, variant)} on MNIST, 8-D code (Table 1)"
    config.model.style_dim = 8
    config.style.prior = "gaussian(8, std=5.0)"
    config.evaluation.parzen_samples = 10_000
    if variant.startswith("aae"):
        for name in ("autoencoder", "discriminator", "generator"):
            config.optimizers[name].schedule = "cosine()"
        config.paper = {"Parzen log-likelihood": "340 ± 2"}
    else:
        use_adam(config, autoencoder=1e-3, discriminator=2e-3, generator=1e-3)
    if variant == "aae/best":
        config.encoder.input_dropout = config.encoder.dropout = 0.2
        config.encoder.input_noise, config.style.weight = 0.6, 3.0
        config.train.epochs, config.train.averaging = 100.0, 0.999
    if variant == "vae":
        use_vae(config)
    if variant == "mmd":
        config.style.divergence = "mmd(scale=5.0)"
    if variant == "ae":
        config.style.divergence = ""
        config.phases = ("reconstruction",)
        config.evaluation.fitted_prior = True
    return config
