"""Adversarial Autoencoders (Makhzani et al., 2015, arXiv:1511.05644) in JAX and Flax.

`aae_jax.load(workdir)` is a trained model (see `aae_jax.inference`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aae_jax.inference import Codes, InferenceError, Trained, load

__all__ = ["Codes", "InferenceError", "Trained", "load"]


def __getattr__(name: str) -> Any:
    """Imports JAX only when asked for something that needs it: `--help` should not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from aae_jax import inference

    return getattr(inference, name)
