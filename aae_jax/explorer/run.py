"""A run as the explorer shows it: its trained model and its test images."""

from pathlib import Path

from aae_jax.data import sources
from aae_jax.explorer.scene import Scene, scene
from aae_jax.inference import Trained, load


def read(folder: Path) -> tuple[Trained, Scene]:
    """A run's model and its scene.

    Raises:
        InferenceError: the run has nothing to walk in (see `scene`).
        DataError: its data cannot be read.
        What `aae_jax.load` raises.
    """
    model = load(folder)
    data = model.config.data
    # Training images, which nothing here needs, stay on disk where they can.
    streaming = data.source.split(":")[0] in ("tfds", "folder") and data.streaming
    test = sources.load(data.source, data.download, data.data_dir or None, streaming).test
    return model, scene(model, test, folder.resolve().name)
