"""This project as a contender, on networks of a few units."""

import math

import numpy as np
import pytest

from aae_jax.config import validate
from benchmarks import ours
from benchmarks.workload import DESIGNS, Optimizer, Workload, examples, labelled_rows

pytestmark = pytest.mark.usefixtures("quick_compilation")


def small(experiment, **changes):
    return Workload(
        experiment, 20, **{"num_images": 200, "steps": 6, "chunk_steps": 3, "width": 8, **changes}
    )


def test_a_round_trains():
    # E11 has every phase; each experiment more would take seconds to compile.
    one_round = ours.contender(small("E11"))
    first, second = one_round(), one_round()
    assert first.images == second.images == 6 * 20
    assert first.seconds is None  # told by the worker's clock
    assert all(math.isfinite(value) for value in second.readings.values())
    assert second.readings["reconstruction"] != first.readings["reconstruction"]
    assert {"classification", "label/generator", "style/generator"} <= second.readings.keys()


@pytest.mark.parametrize("experiment", ["E1", "E11", "joint"])
def test_the_constants_for_other_contenders_are_those_of_the_configs(experiment):
    workload = Workload(experiment, 100)
    config, design = ours.config_of(workload, "digits"), DESIGNS[experiment]
    validate(config)
    assert config.model.style_dim == design.style_dim
    assert config.model.labels == design.labels
    assert config.style.prior == f"gaussian({design.style_dim}, std={design.prior_std})"
    assert config.encoder.input_noise == design.input_noise
    assert config.encoder.widths == config.decoder.widths == (design.width, design.width)
    assert ("classification" in config.phases) == bool(design.labels)
    optimizers = {
        name: Optimizer(*(config.optimizers[name][field] for field in Optimizer._fields))
        for name in design.optimizers
    }
    assert optimizers == design.optimizers
    assert config.train.averaging == 0, "no contender averages its weights"
    if design.labels:
        assert config.data.labels == ours.LABELS


def test_data_are_like_mnist_and_follow_from_the_seed():
    image, label = examples(small("E1"))
    assert image.shape == (200, 28, 28)
    assert image.dtype == np.uint8
    assert 0.1 < (image > 0).mean() < 0.3
    assert np.bincount(label).tolist() == [20] * 10
    again, other = examples(small("E1")), examples(small("E1", seed=1))
    np.testing.assert_array_equal(image, again[0])
    assert (image != other[0]).any()


def test_labelled_examples_are_as_many_of_each_class():
    _, label = examples(small("E11"))
    assert np.bincount(label[labelled_rows(label, 100)]).tolist() == [10] * 10
