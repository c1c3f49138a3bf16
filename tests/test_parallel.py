"""The mapped chunk is the same on one, two and four devices, in both modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aae_jax import parallel
from aae_jax.config import base
from aae_jax.experiment import build
from aae_jax.step import Examples, Rows, chunk

STEPS = 50


def curve(num_devices: int, mode: str) -> np.ndarray:
    """The reconstruction error and discriminator loss of 50 noisy steps from N(0, 0.01^2)."""
    config = base()
    for network in ("encoder", "decoder", "discriminator"):
        config[network].widths = (32, 32)
    config.encoder.input_noise = 0.3
    mesh = parallel.device_mesh(jax.devices()[:num_devices])
    group = parallel.collective(mesh)
    aae = build(config, image_shape=(8, 8, 1), num_classes=10, num_examples=400, collective=group)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (400, 8, 8, 1)).astype(np.uint8)
    examples = Examples(images, np.full(400, -1, np.int32))
    rows = Rows(rng.integers(0, 400, (STEPS, 40)), None)
    state = parallel.born_placed(aae.init, mesh)(jax.random.key(0))
    mapped = parallel.map_chunk(
        chunk(aae.step, lambda x: x.astype(jnp.float32) / 255, group), mesh, mode
    )
    _, metrics = mapped(state, jax.device_put(examples, parallel.replicated(mesh)), rows)
    return np.stack([metrics["reconstruction"], metrics["style/discriminator"]])


@pytest.fixture(scope="module")
def one_device() -> np.ndarray:
    return curve(1, "pmap")


@pytest.mark.parametrize(("devices", "mode"), [(2, "pmap"), (4, "pmap"), (4, "shard_map")])
def test_devices_share_one_curve(one_device, devices, mode) -> None:
    np.testing.assert_allclose(curve(devices, mode), one_device, rtol=1e-5)
    assert one_device[0, -1] < one_device[0, 0]


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ValueError, match="known are pmap, shard_map"):
        parallel.map_chunk(lambda *_: None, parallel.device_mesh(jax.devices()[:1]), "threads")
