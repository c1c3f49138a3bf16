"""E1 on your own images in class folders, with convolutional networks and a 16-D Gaussian prior.

  python -m aae_jax.main --config configs/folder_images.py \
      --config.data.source=folder:DIR --workdir runs/mine

DIR holds train/CLASS/ and test/CLASS/ (and perhaps valid/CLASS/), or CLASS/ alone, of which every
tenth image is tested on. All images have one size, with sides divisible by 4 such as 28x28, 48x48
or 64x64, grey or colour. What has no label goes into a folder named unlabelled.

Code and losses are those of E1, where no label is used. With fewer than a thousand images, lower
`--config.data.validation` and `--config.train.batch_size`.
"""

from ml_collections import ConfigDict

from aae_jax.config import base, use_adam


def get_config() -> ConfigDict:
    """Pixels in 0..1 through a sigmoid; two or three convolutions a network, one dense layer."""
    config = base()
    config.title = "Adversarial autoencoder on your own images, 16-D Gaussian prior"
    config.data.source = "folder:images"
    config.data.validation = 100
    config.model.style_dim = 16
    config.style.prior = "gaussian(16, std=1.0)"
    for network in ("encoder", "decoder"):
        config[network].channels = 32
        config[network].widths = (256,)
    config.discriminator.widths = (256, 256)
    use_adam(config)
    return config
