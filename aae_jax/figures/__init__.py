"""One function per figure of the paper: NumPy arrays in, a matplotlib Figure out."""

from aae_jax.figures.aggregated_posterior import prior_and_codes
from aae_jax.figures.code_space import (
    CodePanel,
    circle_map,
    code_scatter,
    four_panels,
    heads_scatter,
)
from aae_jax.figures.curves import parzen_curve, training_curves
from aae_jax.figures.files import save, to_png
from aae_jax.figures.images import (
    cluster_heads,
    image_grid,
    mode_axes,
    reconstructions,
    roll_walk,
    samples_with_nearest,
)

__all__ = [
    "CodePanel",
    "circle_map",
    "cluster_heads",
    "code_scatter",
    "four_panels",
    "heads_scatter",
    "image_grid",
    "mode_axes",
    "parzen_curve",
    "prior_and_codes",
    "reconstructions",
    "roll_walk",
    "samples_with_nearest",
    "save",
    "to_png",
    "training_curves",
]
