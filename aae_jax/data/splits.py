"""Training, validation and test data, and which training labels are visible.

The semi-supervised experiments of section 5 of the paper see 100 or 1000 labels of MNIST, the same
number of each class; validation is MNIST's train[50000:].
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from aae_jax.data.sources import Arrays, DataError, Source, Stored
from aae_jax.data.stored import StoredImages


class Splits(NamedTuple):
    """The data of a run.

    train: training images, perhaps left on disk; the label is -1 wherever it is hidden or was
      never known.
    valid: validation images, with their labels; may be empty.
    test: test images, with their labels.
    labelled: sorted indices into train of the examples whose label is visible.
    num_classes: as in the source.
    """

    train: Arrays | Stored
    valid: Arrays
    test: Arrays
    labelled: Int64[np.ndarray, "labels"]
    num_classes: int


def split(source: Source, num_valid: int, num_labels: int, seed: int) -> Splits:
    """Sets validation images apart and hides all training labels but `num_labels`.

    Args:
      source: the data set; its arrays are left as they are, images are shared, not copied.
      num_valid: size of the validation set. A source with a validation set of its own gives that
        set's last `num_valid` images, or all of them for 0, and training images are left alone.
        Otherwise the *last* `num_valid` training images are taken out of training.
      num_labels: -1 keeps all training labels. Otherwise this many stay visible: a subset drawn
        by `seed`, balanced over the classes that the training labels name (counts differ by at
        most 1). With one seed, a smaller subset is contained in every larger one.
      seed: not negative; another seed, another subset.

    Returns:
      The splits; labels of validation and test images are always kept.

    Raises:
      DataError: more images or labels are asked for than there are, in all or of one class.
    """
    train, valid = _validation(source, num_valid)
    classes = np.unique(source.train.label[source.train.label >= 0])
    gone = np.setdiff1d(classes, train.label)
    if len(gone):
        raise DataError(
            f"{source.name}: the last {num_valid} training images are all there is of class "
            f"{gone[0]}, so none would be left to train on; shuffle the file or lower num_valid"
        )
    if num_labels == -1:
        return Splits(
            train, valid, source.test, np.flatnonzero(train.label >= 0), source.num_classes
        )
    labelled = _balanced_subset(source.name, train.label, classes, num_labels, seed)
    visible = np.full_like(train.label, -1)
    visible[labelled] = train.label[labelled]
    return Splits(train._replace(label=visible), valid, source.test, labelled, source.num_classes)


def _validation(source: Source, num_valid: int) -> tuple[Arrays | Stored, Arrays]:
    own = source.valid
    available = len(own.image) if own is not None else len(source.train.image) - 1
    if not 0 <= num_valid <= available:
        kind = "validation images" if own is not None else "training images to spare"
        raise DataError(
            f"{source.name}: num_valid is {num_valid}, but there are {available} {kind}; "
            f"choose 0..{available}"
        )
    if own is not None:
        start = len(own.image) - num_valid if num_valid else 0
        return source.train, Arrays(own.image[start:], own.label[start:])
    image, label = source.train
    cut = len(image) - num_valid
    held_out = Arrays(np.asarray(image[cut:]), label[cut:])
    if isinstance(image, StoredImages):
        return Stored(image[:cut], label[:cut]), held_out
    return Arrays(image[:cut], label[:cut]), held_out


def _balanced_subset(
    name: str, label: np.ndarray, classes: np.ndarray, num_labels: int, seed: int
) -> Int64[np.ndarray, "labels"]:
    known = int(np.count_nonzero(label >= 0))
    if not 0 <= num_labels <= known:
        raise DataError(
            f"{name}: num_labels is {num_labels}, but {known} training labels are known; "
            f"choose 0..{known}, or -1 for all"
        )
    if num_labels == 0:
        return np.zeros(0, np.int64)
    rng = np.random.default_rng(seed)
    # Drawn before the quotas, so that the subsets of one seed are nested.
    candidates = [rng.permutation(np.flatnonzero(label == each)) for each in classes]
    places = rng.permutation(len(classes))
    chosen = []
    for each, candidate, place in zip(classes, candidates, places, strict=True):
        quota = num_labels // len(classes) + int(place < num_labels % len(classes))
        if quota > len(candidate):
            raise DataError(
                f"{name}: class {each} has {len(candidate)} training labels, but {num_labels} "
                f"balanced over {len(classes)} classes need {quota} of it; lower num_labels"
            )
        chosen.append(candidate[:quota])
    return np.sort(np.concatenate(chosen))
