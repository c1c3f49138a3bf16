"""Which example comes when: a pure function of seed and step.

The training data is an endless stream, one permutation of all examples after another. A run that
resumes at step 1000 asks for the rows of step 1000; there is no iterator whose state could be lost.
"""

import zlib
from functools import lru_cache

import numpy as np
from jaxtyping import Int32


def example_order(
    seed: int, num_examples: int, start: int, count: int, stream: str | int = 0
) -> Int32[np.ndarray, "count"]:
    """Positions start..start+count of the endless stream of examples.

    Positions e*num_examples..(e+1)*num_examples are epoch e, a permutation of all examples drawn
    from (seed, stream, e) alone.

    Args:
      seed: the run's seed, not negative.
      num_examples: size of the data set.
      start: first position, not negative.
      count: how many positions; may exceed an epoch.
      stream: name or number (0..2**32-1) of an independent stream, so that labelled and unlabelled
        batches do not follow one another.

    Returns:
      Indices of examples.

    Raises:
      ValueError: there is no example, or a negative number.
    """
    if num_examples < 1 or min(seed, start, count) < 0:
        raise ValueError(
            "an order needs num_examples >= 1 and seed, start, count >= 0, not "
            f"num_examples={num_examples}, seed={seed}, start={start}, count={count}"
        )
    first, last = start // num_examples, (start + max(count, 1) - 1) // num_examples
    epochs = [_epoch(seed, num_examples, epoch, stream) for epoch in range(first, last + 1)]
    offset = start - first * num_examples
    return np.concatenate(epochs)[offset : offset + count]


def rows(
    seed: int,
    num_examples: int,
    batch_size: int,
    first_step: int,
    num_steps: int,
    stream: str | int = 0,
) -> Int32[np.ndarray, "num_steps batch_size"]:
    """The examples of steps first_step..first_step+num_steps, one batch a row.

    Batches follow one another in the stream of `example_order`: one may straddle two epochs, and no
    example is left out of an epoch.

    Args:
      seed: the run's seed, not negative.
      num_examples: size of the data set.
      batch_size: examples a step.
      first_step: the first step, not negative.
      num_steps: how many steps.
      stream: as in `example_order`.

    Returns:
      Indices of examples.

    Raises:
      ValueError: there is no example, or a negative number.
    """
    start, count = first_step * batch_size, num_steps * batch_size
    order = example_order(seed, num_examples, start, count, stream)
    return order.reshape(num_steps, batch_size)


# Chunks ask for few steps at a time, and a permutation of millions takes longer than these.
@lru_cache(maxsize=4)
def _epoch(
    seed: int, num_examples: int, epoch: int, stream: str | int
) -> Int32[np.ndarray, "num_examples"]:
    # crc32, as Python's hash() of a string differs from process to process.
    number = zlib.crc32(stream.encode()) if isinstance(stream, str) else stream
    sequence = np.random.SeedSequence(seed, spawn_key=(number, epoch))
    return np.random.default_rng(sequence).permutation(np.arange(num_examples, dtype=np.int32))
