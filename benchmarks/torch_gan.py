"""The joint step of PyTorch-GAN's AAE, a much copied one, written anew at its own sizes.

One encoder pass serves reconstruction and adversary: 0.999 of an absolute pixel error and 0.001 of
the generator's loss descend together, then the discriminator's. Images come through a DataLoader,
as there; but they are scaled and turned into tensors beforehand, which theirs does for each batch.
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.workload import Design, Round, Workload, examples


def hidden(inputs: int, width: int) -> list[nn.Module]:
    """Two layers, of which the second is normalised."""
    return [
        nn.Linear(inputs, width),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Linear(width, width),
        nn.BatchNorm1d(width),
        nn.LeakyReLU(0.2, inplace=True),
    ]


class Encoder(nn.Module):
    """Draws a code from a Gaussian whose mean and log-variance depend on the image."""

    def __init__(self, design: Design):
        """Fresh weights."""
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), *hidden(design.side**2, design.width))
        self.mean = nn.Linear(design.width, design.style_dim)
        self.log_variance = nn.Linear(design.width, design.style_dim)

    def forward(self, image: Tensor) -> Tensor:
        """One code for each image."""
        features = self.trunk(image)
        mean = self.mean(features)
        return mean + torch.exp(0.5 * self.log_variance(features)) * torch.randn_like(mean)


def contender(workload: Workload) -> Callable[[], Round]:
    """A round of joint steps."""
    torch.set_num_threads(workload.threads)
    torch.manual_seed(workload.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    design, rates = workload.design, workload.design.optimizers
    pixels = design.side**2
    encoder = Encoder(design).to(device)
    decoder = nn.Sequential(
        *hidden(design.style_dim, design.width), nn.Linear(design.width, pixels), nn.Tanh()
    ).to(device)
    discriminator = nn.Sequential(
        nn.Linear(design.style_dim, design.width),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Linear(design.width, design.width // 2),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Linear(design.width // 2, 1),
        nn.Sigmoid(),
    ).to(device)

    def adam(*networks: nn.Module) -> torch.optim.Optimizer:
        parameters = itertools.chain(*(network.parameters() for network in networks))
        of = rates["autoencoder"]
        return torch.optim.Adam(parameters, lr=of.learning_rate, betas=(of.momentum, 0.999))

    joint, critic = adam(encoder, decoder), adam(discriminator)
    data = TensorDataset(torch.from_numpy(examples(workload)[0])[:, None].float() / 127.5 - 1)
    loader = DataLoader(data, workload.batch_size, shuffle=True, drop_last=True)

    def batches() -> Iterator[Tensor]:
        while True:
            for (image,) in loader:
                yield image.to(device)

    def step(image: Tensor) -> tuple[Tensor, Tensor]:
        real = torch.ones(len(image), 1, device=device)
        joint.zero_grad()
        code = encoder(image)
        output = decoder(code).view_as(image)
        loss = 0.001 * functional.binary_cross_entropy(discriminator(code), real)
        loss = loss + 0.999 * functional.l1_loss(output, image)
        loss.backward()
        joint.step()
        critic.zero_grad()
        prior = torch.randn(len(image), design.style_dim, device=device)
        critic_loss = 0.5 * (
            functional.binary_cross_entropy(discriminator(prior), real)
            + functional.binary_cross_entropy(discriminator(code.detach()), 1 - real)
        )
        critic_loss.backward()
        critic.step()
        return loss.detach(), critic_loss.detach()

    stream = batches()

    def one_round() -> Round:
        for image in itertools.islice(stream, workload.steps):
            loss, critic_loss = step(image)
        readings = {"joint loss": loss.item(), "discriminator": critic_loss.item()}
        return Round(workload.steps * workload.batch_size, readings)

    return one_round
