"""What a trained model must know of its data to be used without them, kept beside its weights."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aae_jax.data.sources import DataError
from aae_jax.data.splits import Splits
from aae_jax.files import write_whole

IMAGE_TYPES = ("uint8", "float32")


class Description(NamedTuple):
    """The shape of a data set.

    Attributes:
        image_shape: of one image, [h, w, c], or [features] of a table's row.
        image_type: uint8, whose units are [0, 1], or float32, whose units are the data's own.
        num_classes: 0 where no label is known.
        num_examples: training images.
    """

    image_shape: tuple[int, ...]
    image_type: str
    num_classes: int
    num_examples: int


def describe(splits: Splits) -> Description:
    """The description of a run's data."""
    images = splits.train.image
    return Description(
        tuple(images.shape[1:]), str(np.dtype(images.dtype)), splits.num_classes, len(images)
    )


def save(description: Description, path: str | Path) -> None:
    """Writes a description as JSON to exactly this path."""
    write_whole(path, (json.dumps(description._asdict(), indent=2) + "\n").encode())


def load(path: str | Path) -> Description:
    """Reads what `save` wrote.

    Raises:
        DataError: the file is missing, damaged or holds something else.
    """
    try:
        fields = json.loads(Path(path).read_text())
        description = Description(**{**fields, "image_shape": tuple(fields["image_shape"])})
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        )
        raise DataError(f"{path}: holds no description of data ({reason})") from error
    sizes = (*description.image_shape, description.num_examples)
    if (
        not all(type(size) is int and 0 < size < 2**31 for size in sizes)
        or len(description.image_shape) not in (1, 3)
        or type(description.num_classes) is not int
        or description.num_classes < 0
        or description.image_type not in IMAGE_TYPES
    ):
        raise DataError(f"{path}: holds no description of data, but {tuple(description)}")
    return description
