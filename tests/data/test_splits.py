import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aae_jax.data import Arrays, DataError, Source, load, split


def numbered(n: int, label, first: int = 0) -> Arrays:
    """Images that carry their own number, so that every row can be followed."""
    image = np.arange(first, first + n, dtype=np.float32)[:, None]
    arrays = Arrays(image, np.asarray(label, np.int32))
    for array in arrays:
        array.setflags(write=False)
    return arrays


def source(train_label, valid_label=None, num_classes: int | None = None) -> Source:
    train_label = np.asarray(train_label)
    return Source(
        name="numbered",
        train=numbered(len(train_label), train_label),
        valid=None if valid_label is None else numbered(len(valid_label), valid_label, 1000),
        test=numbered(4, [0, 1, 0, 1], 2000),
        num_classes=num_classes or int(train_label.max()) + 1,
    )


def numbers(arrays: Arrays) -> list[int]:
    return arrays.image[:, 0].astype(int).tolist()


def error_of(*args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        split(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_validation_is_the_last_training_images():
    label = np.arange(20) % 3
    splits = split(source(label), num_valid=6, num_labels=-1, seed=0)
    assert numbers(splits.train) == list(range(14))
    assert numbers(splits.valid) == list(range(14, 20))
    assert numbers(splits.test) == [2000, 2001, 2002, 2003]
    np.testing.assert_array_equal(splits.train.label, label[:14])
    np.testing.assert_array_equal(splits.valid.label, label[14:])
    np.testing.assert_array_equal(splits.labelled, np.arange(14))
    assert splits.num_classes == 3


def test_no_validation():
    splits = split(source(np.arange(9) % 3), num_valid=0, num_labels=-1, seed=0)
    assert numbers(splits.train) == list(range(9))
    assert splits.valid.image.shape == (0, 1) and splits.valid.label.shape == (0,)


@pytest.mark.parametrize(("num_valid", "want"), [(0, range(1000, 1005)), (2, range(1003, 1005))])
def test_a_validation_set_of_its_own_leaves_training_alone(num_valid, want):
    own = source(np.arange(9) % 3, valid_label=[0, 1, 2, 0, 1])
    splits = split(own, num_valid, num_labels=3, seed=0)
    assert numbers(splits.train) == list(range(9))
    assert numbers(splits.valid) == list(want)
    np.testing.assert_array_equal(splits.valid.label, own.valid.label[-len(want) :])


def test_digits_parts_share_no_image():
    splits = split(load("digits"), num_valid=300, num_labels=100, seed=1)
    hashes = [
        {hashlib.sha256(image.tobytes()).hexdigest() for image in part.image}
        for part in (splits.train, splits.valid, splits.test)
    ]
    assert [len(each) for each in hashes] == [1200, 300, 297]
    assert len(set.union(*hashes)) == 1797
    assert np.bincount(splits.train.label[splits.labelled]).tolist() == [10] * 10
    assert (splits.train.label == -1).sum() == 1100


@st.composite
def labelled_sources(draw):
    """Unbalanced, shuffled labels, some unknown, perhaps a class that never occurs."""
    counts = draw(st.lists(st.integers(4, 15), min_size=2, max_size=6))
    label = np.repeat(np.arange(len(counts)), counts)
    if draw(st.booleans()):
        label = label + (label > 0)  # no example of class 1
    label = np.concatenate([label, np.full(draw(st.integers(0, 5)), -1)])
    label = np.random.default_rng(draw(st.integers(0, 99))).permutation(label)
    num_labels = draw(st.integers(0, 4 * len(counts)))
    return source(label), len(counts), num_labels


@settings(deadline=None, max_examples=80)
@given(case=labelled_sources(), seed=st.integers(0, 2**40))
def test_visible_labels_are_balanced_true_and_all_that_is_seen(case, seed):
    whole, occurring, num_labels = case
    before = whole.train.label.copy()
    splits = split(whole, num_valid=0, num_labels=num_labels, seed=seed)
    visible = splits.train.label >= 0
    np.testing.assert_array_equal(splits.labelled, np.flatnonzero(visible))
    assert visible.sum() == num_labels
    np.testing.assert_array_equal(splits.train.label[visible], before[visible])
    assert (splits.train.label[~visible] == -1).all()
    counts = np.bincount(splits.train.label[visible], minlength=whole.num_classes)
    assert set(counts[np.unique(before[before >= 0])].tolist()) <= {
        num_labels // occurring,
        -(-num_labels // occurring),
    }
    np.testing.assert_array_equal(whole.train.label, before)
    assert splits.train.label.dtype == np.int32
    again = split(whole, num_valid=0, num_labels=num_labels, seed=seed)
    np.testing.assert_array_equal(again.labelled, splits.labelled)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_subsets_of_one_seed_are_nested(seed):
    whole = source(np.arange(90) % 9)
    subsets = [
        set(split(whole, 0, num_labels, seed).labelled.tolist()) for num_labels in range(0, 90, 7)
    ]
    assert all(small < large for small, large in pairwise(subsets))


def test_seeds_give_different_subsets_and_every_example_its_chance():
    whole = source(np.arange(60) % 4)
    subsets = np.array([split(whole, 0, 10, seed).labelled for seed in range(300)])
    assert len(np.unique(subsets, axis=0)) > 295
    # Each of 60 examples is labelled in 1/6 of the subsets: 50 +- 6.5 times of 300.
    counts = np.bincount(subsets.ravel(), minlength=60)
    assert np.abs(counts - 50).max() < 5 * 6.5


def test_hidden_labels_come_from_training_images_only():
    """The validation part is cut off before labels are chosen."""
    splits = split(source(np.arange(40) % 2), num_valid=20, num_labels=20, seed=0)
    np.testing.assert_array_equal(splits.labelled, np.arange(20))


@pytest.mark.parametrize(
    ("num_valid", "num_labels", "cause"),
    [
        (12, -1, "choose 0..11"),
        (-1, -1, "choose 0..11"),
        (0, 11, "10 training labels are known"),
        (0, -2, "num_labels is -2"),
        (2, 9, "8 training labels are known"),
        (0, 8, "class 1 has 3 training labels"),
        (8, -1, "class 1"),
    ],
)
def test_impossible_splits(num_valid, num_labels, cause):
    # Seven of class 0, three of class 1 among the last five, two unknown.
    whole = source([0, 0, 0, 0, 0, -1, -1, 0, 0, 1, 1, 1])
    assert cause in error_of(whole, num_valid, num_labels, seed=0)


def test_more_validation_images_than_there_are():
    assert "choose 0..2" in error_of(source([0, 1], valid_label=[0, 1]), 3, -1, seed=0)


def test_no_labels_at_all():
    whole = source([-1] * 5, num_classes=2)
    assert "0 training labels are known" in error_of(whole, 0, 2, seed=0)
    splits = split(whole, num_valid=2, num_labels=-1, seed=0)
    assert splits.labelled.shape == (0,)
