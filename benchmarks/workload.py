"""What is trained in a contest: networks, optimizers, data. Needs NumPy only.

Every contender reads the same `Workload`; those that do not use this project's configs take the
constants of `DESIGNS`, which a test compares with the configs.
"""

from typing import NamedTuple

import numpy as np

CLASSES = 10


class Optimizer(NamedTuple):
    """One optimizer; `momentum` is that of SGD, or b1 of Adam."""

    name: str
    learning_rate: float
    momentum: float


class Design(NamedTuple):
    """The step of an experiment.

    Attributes:
        style_dim: width of the style.
        labels: classes of the label head, 0 without one; with one there are three phases.
        prior_std: standard deviation of the style's Gaussian prior.
        input_noise: standard deviation of the noise on what the encoder sees.
        optimizers: by the name of this project's config.
        side: height and width of an image.
        width: units of each hidden layer.
    """

    style_dim: int
    labels: int
    prior_std: float
    input_noise: float
    optimizers: dict[str, Optimizer]
    side: int = 28
    width: int = 1000


DESIGNS = {
    "E1": Design(
        style_dim=8,
        labels=0,
        prior_std=5.0,
        input_noise=0.0,
        optimizers={
            "autoencoder": Optimizer("adam", 5e-4, 0.9),
            "discriminator": Optimizer("adam", 4e-4, 0.0),
            "generator": Optimizer("adam", 2e-4, 0.0),
        },
    ),
    "E11": Design(
        style_dim=10,
        labels=CLASSES,
        prior_std=1.0,
        input_noise=0.3,
        optimizers={
            "autoencoder": Optimizer("sgd", 0.01, 0.9),
            "discriminator": Optimizer("sgd", 0.1, 0.1),
            "generator": Optimizer("sgd", 0.1, 0.1),
            "classifier": Optimizer("sgd", 0.1, 0.9),
        },
    ),
    # The sizes of the AAE of PyTorch-GAN, a much copied one of 512 units on 32x32 images.
    "joint": Design(
        style_dim=10,
        labels=0,
        prior_std=1.0,
        input_noise=0.0,
        optimizers={
            name: Optimizer("adam", 2e-4, 0.5)
            for name in ("autoencoder", "discriminator", "generator")
        },
        side=32,
        width=512,
    ),
}


class Workload(NamedTuple):
    """One line of the contest; plain values, so that it travels as JSON.

    Attributes:
        experiment: a name of `DESIGNS`.
        batch_size: images a step (of labelled ones as many again where there is a label head).
        num_images: size of the data set.
        steps: steps of a round.
        chunk_steps: steps of this project's compiled scan; divides `steps`.
        width: units of each hidden layer; 0 means the design's.
        threads: of every contender.
        seed: of the data.
        data_file: .npz file with the data, where they are written already.
    """

    experiment: str
    batch_size: int
    num_images: int = 50_000
    steps: int = 200
    chunk_steps: int = 100
    width: int = 0
    threads: int = 1
    seed: int = 0
    data_file: str = ""

    @property
    def design(self) -> Design:
        """The experiment's design, at this workload's width."""
        design = DESIGNS[self.experiment]
        return design._replace(width=self.width or design.width)

    @property
    def title(self) -> str:
        """For tables."""
        return f"{self.experiment}, batch {self.batch_size}"


class Round(NamedTuple):
    """What a contender did in one round.

    Attributes:
        images: seen in all steps together.
        readings: losses of its last step, to see that it trains; rates of the limit.
        seconds: None lets the worker's clock decide.
    """

    images: int
    readings: dict[str, float]
    seconds: float | None = None


def examples(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """MNIST-shaped images [n, side, side] (uint8, four of five pixels black) and labels [n]."""
    rng = np.random.default_rng(workload.seed)
    shape = (workload.num_images, workload.design.side, workload.design.side)
    inked = rng.integers(0, 256, shape, np.uint8) < 49
    image = rng.integers(0, 256, shape, np.uint8) * inked
    label = rng.permutation(np.arange(workload.num_images) % CLASSES)
    return image, label


def labelled_rows(labels: np.ndarray, count: int) -> np.ndarray:
    """The first examples of each class, `count` in all: those with a label in E11."""
    each = [np.flatnonzero(labels == label)[: count // CLASSES] for label in range(CLASSES)]
    return np.concatenate(each)
