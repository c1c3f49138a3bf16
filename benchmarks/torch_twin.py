"""E1 and E11 in plain PyTorch, as a careful practitioner would write them.

The same work as this project's step: data in memory as uint8, shuffled batches by index, the same
networks, losses and optimizers. Where habits differ the faster one is taken: the encoder runs once
for both losses of the regularization phase, and the generator's loss leaves the discriminators'
weights without gradients. On a GPU data and their order live there, and matrix products are TF32,
as JAX's are by default.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import workload as workloads
from benchmarks.workload import Design, Round, Workload

LABELS = 100


class Encoder(nn.Module):
    """Two hidden layers, a style head and perhaps a label head (logits)."""

    def __init__(self, design: Design):
        """Fresh weights."""
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(design.side**2, design.width),
            nn.ReLU(),
            nn.Linear(design.width, design.width),
            nn.ReLU(),
        )
        self.style = nn.Linear(design.width, design.style_dim)
        self.label = nn.Linear(design.width, design.labels) if design.labels else None

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Style and label logits of each image."""
        hidden = self.trunk(image)
        return self.style(hidden), None if self.label is None else self.label(hidden)


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Two hidden layers and a linear one."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )


class Twin:
    """Networks, optimizers and the phases of one step."""

    def __init__(self, design: Design, compiled: str, fused: bool):
        """Builds everything; losses and updates through torch.compile in the mode `compiled`."""
        self.design, self.compiled = design, compiled
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        code = design.style_dim + design.labels
        self.encoder = Encoder(design).to(self.device)
        self.decoder = mlp(code, design.width, design.side**2).to(self.device)
        sizes = [design.style_dim] + ([design.labels] if design.labels else [])
        self.discriminators = nn.ModuleList(mlp(size, design.width, 1) for size in sizes)
        self.discriminators.to(self.device)
        for network in (self.encoder, self.decoder, self.discriminators):
            network.apply(_he_init if design.optimizers["autoencoder"].name == "adam" else _init)
        moved = {
            "autoencoder": [*self.encoder.parameters(), *self.decoder.parameters()],
            "discriminator": list(self.discriminators.parameters()),
            "generator": list(self.encoder.parameters()),
            "classifier": list(self.encoder.parameters()),
        }
        self.optimizers = {
            name: _optimizer(of, moved[name], fused) for name, of in design.optimizers.items()
        }
        wrap: Callable[..., Any] = lambda function: function  # noqa: E731
        if compiled:
            # The optimizers share the code of `step`, each compiled for its first step and for the
            # others: more versions than PyTorch keeps by default before it falls back to eager.
            torch._dynamo.config.recompile_limit = 64
            wrap = functools.partial(torch.compile, mode=compiled)
        self.reconstruction_loss = wrap(self._reconstruction_loss)
        self.codes = wrap(self._codes)
        self.discriminator_loss = wrap(self._discriminator_loss)
        self.generator_loss = wrap(self._generator_loss)
        self.classification_loss = wrap(self._classification_loss)
        self.update = {name: wrap(optimizer.step) for name, optimizer in self.optimizers.items()}

    def step(self, image: Tensor, labelled: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
        """All phases on one batch; the losses."""
        if self.compiled == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        reconstruction = self._descend("autoencoder", self.reconstruction_loss(image))
        codes = self.codes(image)
        detached = [code.detach() for code in codes]
        discriminator = self._descend(
            "discriminator", self.discriminator_loss(self._prior(len(image)), detached)
        )
        self.discriminators.requires_grad_(False)
        generator = self._descend("generator", self.generator_loss(codes))
        self.discriminators.requires_grad_(True)
        losses = {
            "reconstruction": reconstruction,
            "discriminator": discriminator,
            "generator": generator,
        }
        if labelled is not None:
            loss = self._descend("classifier", self.classification_loss(*labelled))
            losses["classification"] = loss
        return losses

    def _descend(self, name: str, loss: Tensor) -> Tensor:
        self.optimizers[name].zero_grad()
        loss.backward()
        self.update[name]()
        return loss.detach()

    def _seen(self, image: Tensor) -> Tensor:
        noise = self.design.input_noise
        return image + noise * torch.randn_like(image) if noise else image

    def _codes(self, image: Tensor) -> list[Tensor]:
        style, logits = self.encoder(self._seen(image))
        return [style] if logits is None else [style, logits.softmax(dim=1)]

    def _reconstruction_loss(self, image: Tensor) -> Tensor:
        output = self.decoder(torch.cat(self._codes(image), dim=1)).sigmoid()
        return 0.5 * ((output - image) ** 2).sum(dim=1).mean()

    def _prior(self, count: int) -> list[Tensor]:
        design = self.design
        style = design.prior_std * torch.randn(count, design.style_dim, device=self.device)
        if not design.labels:
            return [style]
        label = torch.randint(design.labels, (count,), device=self.device)
        return [style, functional.one_hot(label, design.labels).float()]

    def _discriminator_loss(self, prior: list[Tensor], codes: list[Tensor]) -> Tensor:
        losses = []
        for network, real, fake in zip(self.discriminators, prior, codes, strict=True):
            losses += [_cross_entropy(network(real), 1.0), _cross_entropy(network(fake), 0.0)]
        return torch.stack(losses).sum()

    def _generator_loss(self, codes: list[Tensor]) -> Tensor:
        pairs = zip(self.discriminators, codes, strict=True)
        return torch.stack([_cross_entropy(network(code), 1.0) for network, code in pairs]).sum()

    def _classification_loss(self, image: Tensor, label: Tensor) -> Tensor:
        _, logits = self.encoder(self._seen(image))
        return functional.cross_entropy(logits, label)


def contender(workload: Workload, compiled: str = "", fused: bool = False) -> Callable[[], Round]:
    """A round of steps.

    Args:
        workload: of E1 or E11.
        compiled: mode of torch.compile for losses and updates; "" leaves them eager.
        fused: PyTorch's fused optimizers, which are not its default on a CPU.

    Raises:
        RuntimeError: CUDA graphs (the mode "reduce-overhead") without a CUDA device.
    """
    if compiled == "reduce-overhead" and not torch.cuda.is_available():
        raise RuntimeError("CUDA graphs need a CUDA device")
    torch.set_num_threads(workload.threads)
    torch.manual_seed(workload.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    twin = Twin(workload.design, compiled, fused)
    images, labels = workloads.examples(workload)
    shown = workloads.labelled_rows(labels, LABELS)
    image = torch.from_numpy(images).flatten(1).to(twin.device)
    label = torch.from_numpy(labels).to(twin.device)
    rows = batches(torch.arange(len(image), device=twin.device), workload.batch_size)
    shown_rows = batches(torch.from_numpy(shown).to(twin.device), workload.batch_size)

    def inputs(row: Tensor) -> Tensor:
        return image[row].float() / 255

    def one_round() -> Round:
        losses: dict[str, Tensor] = {}
        for row in itertools.islice(rows, workload.steps):
            labelled = None
            if workload.design.labels:
                chosen = next(shown_rows)
                labelled = inputs(chosen), label[chosen]
            losses = twin.step(inputs(row), labelled)
        readings = {name: loss.item() for name, loss in losses.items()}
        return Round(workload.steps * workload.batch_size, readings)

    return one_round


def batches(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Endless shuffled batches; one may straddle two epochs, so that few rows can fill it."""
    left = rows[:0]
    while True:
        while len(left) < size:
            left = torch.cat([left, rows[torch.randperm(len(rows), device=rows.device)]])
        yield left[:size]
        left = left[size:]


def _cross_entropy(score: Tensor, target: float) -> Tensor:
    return functional.binary_cross_entropy_with_logits(score, torch.full_like(score, target))


def _optimizer(
    of: workloads.Optimizer, parameters: list[nn.Parameter], fused: bool
) -> torch.optim.Optimizer:
    # None lets PyTorch choose.
    chosen = True if fused else None
    if of.name == "adam":
        betas = (of.momentum, 0.999)
        return torch.optim.Adam(parameters, lr=of.learning_rate, betas=betas, fused=chosen)
    return torch.optim.SGD(parameters, lr=of.learning_rate, momentum=of.momentum, fused=chosen)


def _he_init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
