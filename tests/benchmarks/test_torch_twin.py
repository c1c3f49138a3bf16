"""The PyTorch twin does the same work: the same losses and weights after a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aae_jax.experiment import build
from aae_jax.phases import Batch
from aae_jax.priors import sample_batch
from aae_jax.randomness import all_named
from benchmarks import ours
from benchmarks.workload import Workload

torch = pytest.importorskip("torch")
torch_twin = pytest.importorskip("benchmarks.torch_twin")
pytestmark = pytest.mark.usefixtures("quick_compilation")
SIZE = 6


def put(module, layers):
    """Flax's layers into PyTorch's, which hold the transposed weights."""
    linear = [each for each in module.modules() if isinstance(each, torch.nn.Linear)]
    with torch.no_grad():
        for into, layer in zip(linear, layers, strict=True):
            into.weight.copy_(torch.from_numpy(np.array(layer["kernel"]).T))
            into.bias.copy_(torch.from_numpy(np.array(layer["bias"])))


def layers_of(params, part):
    """In PyTorch's order."""
    if part == "encoder":
        trunk, heads = params["encoder"]["trunk"], params["encoder"]
        return [
            trunk["dense_0"],
            trunk["dense_1"],
            *(heads[n] for n in ("style", "label") if n in heads),
        ]
    if part == "decoder":
        hidden = params["decoder"]["hidden"]
        return [hidden["dense_0"], hidden["dense_1"], params["decoder"]["output"]]
    critics = params["discriminator"]
    return [
        critics[part][layer]
        for part in ("style", "label")
        if part in critics
        for layer in ("dense_0", "dense_1", "score")
    ]


@pytest.mark.parametrize("experiment", ["E1", "E11"])
def test_a_step_gives_the_same_losses_and_weights(experiment):
    workload = Workload(experiment, SIZE, width=16)
    config = ours.config_of(workload, "digits")
    config.encoder.input_noise = 0.0
    for network in ("encoder", "decoder", "discriminator"):
        config[network].init = "he_normal()"
    built = build(config, image_shape=(28, 28, 1), num_classes=10, num_examples=100)
    state = built.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    image = rng.random((SIZE, 28, 28, 1), np.float32)
    label = rng.integers(0, 10, SIZE)
    keys = jax.random.split(jax.random.key(1), SIZE)
    batch = Batch(jnp.asarray(image), jnp.asarray(label, jnp.int32), keys)
    labelled = batch if workload.design.labels else None
    after, losses = jax.jit(built.step)(state, batch._replace(labelled=labelled))

    twin = torch_twin.Twin(workload.design._replace(input_noise=0.0), compiled="", fused=False)
    parts = {
        "encoder": twin.encoder,
        "decoder": twin.decoder,
        "discriminator": twin.discriminators,
    }
    for part, module in parts.items():
        put(module, layers_of(state.params, part))
    phase_keys = all_named(keys, "regularization")
    prior = [
        torch.from_numpy(np.array(sample_batch(m.prior, all_named(phase_keys, f"{m.part}_prior"))))
        for m in built.matches
    ]
    twin._prior = lambda count: prior
    flat = torch.from_numpy(image).flatten(1)
    found = twin.step(flat, (flat, torch.from_numpy(label)) if labelled else None)

    expected = {
        "reconstruction": losses["reconstruction"],
        "discriminator": sum(losses[f"{m.part}/discriminator"] for m in built.matches),
        "generator": sum(losses[f"{m.part}/generator"] for m in built.matches),
    }
    if labelled:
        expected["classification"] = losses["classification"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(float(value), rel=1e-4), name
    for part, module in parts.items():
        linear = [each for each in module.modules() if isinstance(each, torch.nn.Linear)]
        for found_layer, layer in zip(linear, layers_of(after.params, part), strict=True):
            np.testing.assert_allclose(
                found_layer.weight.detach().numpy().T, layer["kernel"], atol=2e-4
            )


@pytest.mark.parametrize("experiment", ["E1", "E11"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_round_trains(experiment, fused):
    workload = Workload(experiment, 20, num_images=200, steps=3, chunk_steps=3, width=8)
    done = torch_twin.contender(workload, fused=fused)()
    assert done.images == 60
    assert all(np.isfinite(value) for value in done.readings.values())


def test_batches_are_permutations_one_after_another():
    stream = torch_twin.batches(torch.arange(5), 3)
    drawn = torch.cat([next(stream) for _ in range(5)])
    for epoch in drawn.split(5):
        assert sorted(epoch.tolist()) == [0, 1, 2, 3, 4]
