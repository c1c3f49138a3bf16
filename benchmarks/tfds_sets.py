"""TFDS sets written from arrays, to stream from; tests use it too."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Images = Sequence[np.ndarray] | np.ndarray
Labels = Sequence[int] | np.ndarray | None


def write(folder: Path, name: str, splits: Mapping[str, tuple[Images, Labels]]) -> str:
    """Prepares a TFDS set in array_record files; the data source to read it with.

    Args:
        folder: TFDS's data_dir.
        name: of the set, not one of TFDS's own.
        splits: images [h, w, c] and labels (None for none) of "train", "test" and perhaps
            "validation".
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()

    def info(self: Any) -> Any:
        features = tfds.features.FeaturesDict(_features(*splits["train"]))
        return tfds.core.DatasetInfo(builder=self, features=features)

    members = {
        "name": name,
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, manager: {
            split: _examples(*splits[split]) for split in splits
        },
        "_generate_examples": None,
    }
    # A process may write sets of one name to several folders.
    with tfds.core.registered.skip_registration():
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), members)
    builder(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return f"tfds:{name}"


def _features(images: Images, labels: Labels) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    shapes = {image.shape for image in images}
    shape = shapes.pop() if len(shapes) == 1 else (None, None, images[0].shape[-1])
    image = tfds.features.Image(shape=shape, dtype=images[0].dtype)
    if labels is None:
        return {"image": image}
    return {"image": image, "label": tfds.features.ClassLabel(num_classes=int(max(labels)) + 1)}


def _examples(images: Images, labels: Labels) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, image in enumerate(images):
        yield i, {"image": image} | ({} if labels is None else {"label": int(labels[i])})
