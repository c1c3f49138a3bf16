import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from aae_jax.data.order import example_order, rows

seeds = st.integers(0, 2**64)
sizes = st.integers(1, 40)
streams = st.one_of(st.text(max_size=8), st.integers(0, 2**32 - 1))
few = settings(deadline=None, max_examples=60)


@few
@given(seed=seeds, n=sizes, epochs=st.integers(1, 5), first=st.integers(0, 10**6), stream=streams)
def test_every_epoch_is_a_permutation(seed, n, epochs, first, stream):
    order = example_order(seed, n, first * n, epochs * n, stream)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(
        np.sort(order.reshape(epochs, n)), np.tile(np.arange(n), (epochs, 1))
    )


@few
@given(seed=seeds, n=sizes, start=st.integers(0, 200), count=st.integers(0, 200), stream=streams)
def test_any_window_is_a_window_of_one_stream(seed, n, start, count, stream):
    stream_from_zero = example_order(seed, n, 0, 400, stream)
    np.testing.assert_array_equal(
        example_order(seed, n, start, count, stream), stream_from_zero[start : start + count]
    )


@few
@given(
    seed=seeds,
    n=sizes,
    batch=st.integers(1, 50),
    first=st.integers(0, 30),
    cuts=st.lists(st.integers(0, 6), min_size=1, max_size=4),
)
def test_chunks_of_steps_are_the_same_steps(seed, n, batch, first, cuts):
    whole = rows(seed, n, batch, first, sum(cuts))
    assert whole.shape == (sum(cuts), batch) and whole.dtype == np.int32
    starts = first + np.cumsum([0, *cuts[:-1]])
    parts = [rows(seed, n, batch, int(start), cut) for start, cut in zip(starts, cuts, strict=True)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(whole.ravel(), example_order(seed, n, first * batch, whole.size))


def test_a_batch_larger_than_the_data_set_repeats_evenly():
    counts = np.bincount(rows(0, num_examples=7, batch_size=70, first_step=3, num_steps=1)[0])
    assert counts.tolist() == [10] * 7


def test_far_steps_need_no_long_way():
    assert rows(0, 50_000, 100, 10**9, 2).shape == (2, 100)


def test_seeds_epochs_and_streams_all_differ():
    n = 50
    orders = [
        example_order(seed, n, epoch * n, n, stream).tobytes()
        for seed in (0, 1, 2, 2**32)
        for epoch in (0, 1, 2)
        for stream in ("labelled", "unlabelled", 0, 1, 2)
    ]
    assert len(set(orders)) == len(orders)


def test_streams_are_independent():
    """Places of one example in two streams, over many epochs: no rank correlation."""
    n, epochs = 10, 2000
    places = [
        np.argsort(example_order(0, n, 0, n * epochs, stream).reshape(epochs, n))[:, 3]
        for stream in ("labelled", "unlabelled")
    ]
    assert stats.spearmanr(*places).pvalue > 0.01
    following = places[0][:-1], places[0][1:]
    assert stats.spearmanr(*following).pvalue > 0.01


def test_every_example_comes_at_every_place_alike():
    n, epochs = 6, 3000
    order = example_order(7, n, 0, n * epochs, "unlabelled").reshape(epochs, n)
    counts = np.array([np.bincount(column, minlength=n) for column in order.T])
    # Rows and columns both sum to `epochs`, so (n - 1)**2 counts are free.
    statistic = ((counts - epochs / n) ** 2 / (epochs / n)).sum()
    assert 0.005 < stats.chi2((n - 1) ** 2).sf(statistic) < 0.995


def test_order_is_the_same_in_every_process_and_release():
    """Pinned: a change would reorder every resumed run."""
    assert example_order(3, 8, 4, 10, "labelled").tolist() == [5, 0, 6, 4, 5, 1, 4, 7, 0, 3]
    assert example_order(3, 8, 4, 10).tolist() == [1, 0, 4, 7, 1, 4, 0, 3, 7, 6]


@pytest.mark.parametrize(
    "bad", [{"num_examples": 0}, {"seed": -1}, {"start": -1}, {"count": -1}], ids=str
)
def test_impossible_orders(bad):
    arguments = {"seed": 0, "num_examples": 5, "start": 0, "count": 3} | bad
    with pytest.raises(ValueError, match=next(iter(bad))):
        example_order(**arguments)
