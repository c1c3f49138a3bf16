import json

import numpy as np
import pytest

from aae_jax.data import DataError, description
from aae_jax.data.description import Description
from aae_jax.data.sources import Arrays, Stored
from aae_jax.data.splits import Splits
from aae_jax.data.stored import StoredImages

DIGITS = Description((8, 8, 1), "uint8", 10, 1200)


@pytest.mark.parametrize("described", [DIGITS, Description((5,), "float32", 0, 1)])
def test_what_is_saved_is_loaded(tmp_path, described):
    description.save(described, tmp_path / "data.json")
    assert description.load(tmp_path / "data.json") == described


def test_data_are_described_where_ever_they_are(array_reader):
    image, label = np.zeros((6, 4, 4, 3), np.uint8), np.zeros(6, np.int32)
    few = Arrays(image[:2], label[:2])
    for train in (Arrays(image, label), Stored(StoredImages(array_reader(image)), label)):
        splits = Splits(train, few, few, np.zeros(0, np.int64), 7)
        assert description.describe(splits) == Description((4, 4, 3), "uint8", 7, 6)
    rows = Arrays(np.zeros((3, 5), np.float32), label[:3])
    splits = Splits(rows, few, few, np.zeros(0, np.int64), 0)
    assert description.describe(splits) == Description((5,), "float32", 0, 3)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps(DIGITS._asdict())[:-5],
        *(
            json.dumps({**DIGITS._asdict(), **change})
            for change in (
                {"image_shape": [8, 8]},
                {"image_shape": [8, 0, 1]},
                {"image_shape": [8, 8, 1.5]},
                {"image_shape": 64},
                {"image_type": "int8"},
                {"num_classes": -1},
                {"num_classes": "ten"},
                {"num_examples": 0},
                {"num_examples": 10**400},
                {"more": 1},
            )
        ),
    ],
)
def test_what_is_no_description_is_named(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"data\.json: holds no description") as caught:
        description.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_description_is_named(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        description.load(tmp_path / "data.json")
