"""pythae's Adversarial_AE at the widths of E1, trained by its own trainer.

A round is one epoch of the trainer's `train_step` (data loader, progress bar and all) over as many
images as the round has steps; what the trainer does between epochs, such as copying the best model,
is left out. Its losses are those of E1 with the deterministic posterior, but in one joint step.
"""

import itertools
import tempfile
from collections.abc import Callable

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import Adversarial_AE, Adversarial_AE_Config
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseDiscriminator, BaseEncoder
from pythae.trainers import AdversarialTrainer, AdversarialTrainerConfig
from torch import Tensor, nn

from benchmarks.torch_twin import mlp
from benchmarks.workload import Design, Round, Workload, examples


class Encoder(BaseEncoder):
    """An MLP; pythae asks for a log-covariance, which a deterministic posterior does not use."""

    def __init__(self, design: Design):
        """Fresh weights."""
        super().__init__()
        self.layers = mlp(design.side**2, design.width, design.style_dim)

    def forward(self, x: Tensor) -> ModelOutput:
        """The code of each image."""
        code = self.layers(x.flatten(1))
        return ModelOutput(embedding=code, log_covariance=torch.zeros_like(code))


class Decoder(BaseDecoder):
    """An MLP with sigmoid output."""

    def __init__(self, design: Design):
        """Fresh weights."""
        super().__init__()
        self.side = design.side
        self.layers = mlp(design.style_dim, design.width, design.side**2)

    def forward(self, z: Tensor) -> ModelOutput:
        """The image of each code."""
        image = self.layers(z).sigmoid().reshape(-1, 1, self.side, self.side)
        return ModelOutput(reconstruction=image)


class Discriminator(BaseDiscriminator):
    """An MLP; pythae asks for a probability."""

    def __init__(self, design: Design):
        """Fresh weights."""
        super().__init__()
        self.layers = nn.Sequential(mlp(design.style_dim, design.width, 1), nn.Sigmoid())

    def forward(self, z: Tensor) -> ModelOutput:
        """The probability that each code is a prior sample."""
        return ModelOutput(embedding=self.layers(z))


def contender(workload: Workload) -> Callable[[], Round]:
    """A round is an epoch over the first `steps` batches of the data."""
    torch.set_num_threads(workload.threads)
    torch.manual_seed(workload.seed)
    design, rates = workload.design, workload.design.optimizers
    images, labels = examples(workload)
    rows = np.arange(workload.steps * workload.batch_size) % len(images)
    data = BaseDataset(
        torch.from_numpy(images[rows])[:, None].float() / 255, torch.from_numpy(labels[rows])
    )
    model = Adversarial_AE(
        Adversarial_AE_Config(
            input_dim=(1, design.side, design.side),
            latent_dim=design.style_dim,
            deterministic_posterior=True,
        ),
        Encoder(design),
        Decoder(design),
        Discriminator(design),
    )

    def adam(of: str) -> dict[str, tuple[float, float]]:
        return {"betas": (rates[of].momentum, 0.999)}

    # Checkpoints would go there; a contest writes none.
    with tempfile.TemporaryDirectory() as folder:
        trainer = AdversarialTrainer(
            model,
            data,
            training_config=AdversarialTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=workload.batch_size,
                autoencoder_optimizer_cls="Adam",
                autoencoder_learning_rate=rates["autoencoder"].learning_rate,
                autoencoder_optimizer_params=adam("autoencoder"),
                discriminator_optimizer_cls="Adam",
                discriminator_learning_rate=rates["discriminator"].learning_rate,
                discriminator_optimizer_params=adam("discriminator"),
            ),
        )
        trainer.prepare_training()
    epochs = itertools.count(1)

    def one_round() -> Round:
        _, autoencoder, discriminator = trainer.train_step(next(epochs))
        readings = {"autoencoder, mean": autoencoder, "discriminator, mean": discriminator}
        return Round(len(rows), readings)

    return one_round
