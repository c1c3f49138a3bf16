"""Adversarial Autoencoders (Makhzani et al., 2015, arXiv:1511.05644) in JAX and Flax.

`aae_jax.fit(config, workdir)` trains a model and `aae_jax.load(workdir)` is a trained one (see
`aae_jax.program` and `aae_jax.inference`).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aae_jax.estimators import AAEClassifier, AAEClusterer, AAETransformer
    from aae_jax.inference import Codes, InferenceError, Trained, load
    from aae_jax.program import fit

__all__ = [
    "AAEClassifier",
    "AAEClusterer",
    "AAETransformer",
    "Codes",
    "InferenceError",
    "Trained",
    "fit",
    "load",
]
_ESTIMATORS = ("AAEClassifier", "AAEClusterer", "AAETransformer")


def __getattr__(name: str) -> Any:
    """Imports JAX only when asked for something that needs it: `--help` should not."""
    if name not in __all__:
        return _module(name)
    # What trains needs more, TensorFlow's writers among it, than what is trained.
    module = "program" if name == "fit" else "estimators" if name in _ESTIMATORS else "inference"
    return getattr(importlib.import_module(f"aae_jax.{module}"), name)


def _module(name: str) -> Any:
    """A module, as in `aae_jax.config.base()` after `import aae_jax` alone."""
    try:
        return importlib.import_module(f"aae_jax.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"aae_jax.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
