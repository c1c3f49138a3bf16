"""E4, E5 (Fig 4): the adversary sees labels; 10,000 labelled and 40,000 unlabelled images.

python -m aae_jax.main --config configs/mnist_label_informed.py:mixture
python -m aae_jax.main --config configs/mnist_label_informed.py:swiss_roll

RESULTS.md has the share of test images whose code is in their label's mode.
"""

from ml_collections import ConfigDict

from aae_jax.config import chosen, mnist, use_adam

EXPERIMENTS = {
    "mixture": ("E4", "petals(modes=10, scale=4.0)", "Fig 4 a, b"),
    "swiss_roll": ("E5", "swiss_roll(modes=10, scale=4.0)", "Fig 4 c, d"),
}


def get_config(variant: str = "mixture") -> ConfigDict:
    """E2 or a swiss roll, each digit matched with its own mode."""
    config = mnist()
    use_adam(config)
    config.experiment, config.style.prior, figure = chosen(EXPERIMENTS, variant)
    config.title = f"Label-informed adversary on MNIST, {variant.replace('_', ' ')} ({figure})"
    config.data.labels = 10_000
    # Labels of a fifth of the images are soon learned by heart; changed images make that harder.
    config.encoder.input_dropout = 0.2
    config.train.augmentation = "affine(degrees=6, translate=0.04, scale=0.06, shear=8)"
    config.encoder.batch_norm = True
    config.train.epochs, config.train.averaging = 60.0, 0.999
    config.style.label_informed = True
    if variant == "swiss_roll":
        config.train.epochs = 100.0
        # The roll is a curve: without blur its discriminator tells any code from it, and wins.
        config.style.noise = 0.3
    return config
