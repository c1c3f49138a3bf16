import pytest

from benchmarks import limit, scaling
from benchmarks.workload import Workload

SLOW = scaling.Machine(4, flops=1e12, memory=1e9, link=1e8, latency=0.5, reached=0.5)


def test_a_step_is_its_parts():
    workload = Workload("E1", 400)
    step = scaling.estimated(SLOW, workload)
    assert step.products == pytest.approx(limit.operations(workload) / 4 / 0.5e12)
    assert step.updates == pytest.approx(limit.optimizer_bytes(workload) / 0.5e9)
    floats = sum(limit.parameters(workload).values())
    assert step.all_reduce == pytest.approx(1.5 * 4 * floats / 1e8 + 3 * 0.5)
    assert step.seconds == pytest.approx(step.products + step.updates + step.all_reduce)


def test_one_device_has_nothing_to_exchange():
    alone = SLOW._replace(devices=1, latency=0.0)
    assert scaling.estimated(alone, Workload("E1", 400)).all_reduce == 0


def test_at_the_balanced_batch_products_take_half():
    batch = scaling.balanced_batch(SLOW, Workload("E1", 100))
    step = scaling.estimated(SLOW, Workload("E1", batch))
    assert step.products == pytest.approx(step.seconds / 2, rel=1e-3)


def test_a_run_that_fails_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"none\.npz"):
        scaling.images_per_second(tmp_path / "run", tmp_path / "none.npz", 1, 1, 10, 8)
