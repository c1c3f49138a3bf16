"""Data: where it comes from, how it is split, scaled and put in order.

The way of an image is `sources.load` -> `splits.split` -> `preprocessing.fit` and `normalize`;
`order.rows` says which rows of the training images make up which step.

>>> source = load("digits")
>>> splits = split(source, num_valid=200, num_labels=100, seed=0)
>>> [len(part.image) for part in (splits.train, splits.valid, splits.test)]
[1300, 200, 297]
"""

from aae_jax.data.sources import Arrays, DataError, Source, load
from aae_jax.data.splits import Splits, split

__all__ = ["Arrays", "DataError", "Source", "Splits", "load", "split"]
