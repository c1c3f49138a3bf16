"""scikit-learn estimators: a classifier that learns from few labels, a clusterer, a transformer.

    from aae_jax import AAEClassifier

    classifier = AAEClassifier(random_state=0).fit(X, y)  # y is -1 where the label is unknown
    guesses = classifier.predict(X_new)

They build a config and train by the same loop as `aae_jax.fit`, from arrays in memory and on the
first device; on several devices, or from data on disk, use that. Whatever is wrong with an argument
is a `ValueError` of one line.

X is [n, features], or images [n, h, w] or [n, h, w, c]. Images in uint8 are 0..255, which the
model sees and returns as 0..1; all else becomes float32, and each feature is standardized by its
training mean and standard deviation, so that a StandardScaler is not needed.
"""

import contextlib
import hashlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Int32, Shaped
from ml_collections import ConfigDict
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.metrics import accuracy_score
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data

from aae_jax import workdir as folders
from aae_jax.arguments import check_whole
from aae_jax.coding import weights_of
from aae_jax.config import base, check_field, use_adam
from aae_jax.data import description, sources
from aae_jax.inference import Trained, trained
from aae_jax.train import TrainingError, prepare, train

# Steps per call of the device at most, and so from one look at the losses to the next.
_CHUNK = 100


class _Estimator(BaseEstimator):
    """What the three have in common.

    Attributes:
        model_: the trained model, for whatever scikit-learn has no name for, such as `sample`.
        image_shape_: shape of one row of X.
        n_features_in_: length of X's second axis.
    """

    model_: Trained
    image_shape_: tuple[int, ...]

    # Any, as scikit-learn wants nothing checked before fit.
    def __init__(
        self,
        *,
        prior: Any = None,
        style_dim: Any = 5,
        widths: Any = (128, 128),
        steps: Any = 2000,
        batch_size: Any = 100,
        random_state: Any = None,
        config: Any = None,
        workdir: Any = None,
    ) -> None:
        self.prior = prior
        self.style_dim = style_dim
        self.widths = widths
        self.steps = steps
        self.batch_size = batch_size
        self.random_state = random_state
        self.config = config
        self.workdir = workdir

    def _train(self, X: np.ndarray, label: Int32[np.ndarray, "n"], num_classes: int) -> None:
        config = self._config(X, label)
        source = sources.of_arrays(config.data.source, X, label, num_classes)
        run = prepare(config, jax.local_devices()[:1], source)
        with _folder(self.workdir, config) as folder:
            outcome = train(run, folder, record=self.workdir is not None)
        if not outcome.finished:
            raise TrainingError(
                "fit: stopped by SIGTERM; with a workdir, it would go on from there"
            )
        weights, step = jax.device_get(weights_of(outcome.state)), int(outcome.state.step)
        self.image_shape_ = X.shape[1:]
        self.model_ = trained(
            config, description.describe(run.splits), run.preprocessing, weights, step
        )

    def _config(self, X: np.ndarray, label: Int32[np.ndarray, "n"]) -> ConfigDict:
        for name in ("style_dim", "steps", "batch_size"):
            check_whole(getattr(self, name), name, 1)
        if isinstance(self.widths, str) or not isinstance(self.widths, Iterable):
            raise ValueError(
                f"widths is {self.widths!r}; allowed: one number for each hidden layer"
            )
        config = base()
        config.title = type(self).__name__
        # Another folder for other data, though the rest of the config is the same.
        config.data.source = f"arrays:{_digest(X, label)}"
        config.data.validation = 0
        if X.dtype != np.uint8:
            config.data.preprocessing, config.decoder.output = "standardize_pixels", "linear"
        config.seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        config.model.style_dim = self.style_dim
        config.style.prior = self.prior or f"gaussian({self.style_dim}, std=1.0)"
        for network in ("encoder", "decoder", "discriminator"):
            config[network].widths = tuple(self.widths)
        use_adam(config, autoencoder=1e-3, discriminator=2e-3, generator=1e-3)
        config.train.batch_size = min(self.batch_size, len(X))
        config.train.epochs = self.steps * config.train.batch_size / len(X)
        config.train.chunk_steps = math.ceil(self.steps / math.ceil(self.steps / _CHUNK))
        config.evaluation.every_epochs = max(1.0, config.train.epochs / 10)
        self._recipe(config, label)
        for field, value in (self.config or {}).items():
            check_field(field)
            config.update_from_flattened_dict({field: value})
        return config

    def _recipe(self, config: ConfigDict, label: Int32[np.ndarray, "n"]) -> None:
        """Changes what this estimator needs in the config."""

    def _checked(self, X: Any, **more: Any) -> Any:
        """X, and y if given, as scikit-learn checks them."""
        is_image = getattr(X, "dtype", None) == np.uint8 and X.ndim > 2
        dtype = np.uint8 if is_image else np.float32
        checked = validate_data(self, X, dtype=dtype, allow_nd=True, **more)
        rows = checked[0] if isinstance(checked, tuple) else checked
        if rows.ndim > 4:
            raise ValueError(
                f"X: {list(rows.shape)}; allowed: rows [n, features], images [n, h, w] or "
                "[n, h, w, c]"
            )
        return checked

    def _new(self, X: Any) -> np.ndarray:
        """X of a fitted estimator, as its model takes it."""
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        return X[..., None] if X.ndim == 3 else X

    def __sklearn_tags__(self) -> Tags:
        """See scikit-learn."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


class AAEClassifier(ClassifierMixin, _Estimator):
    """Semi-supervised classifier (section 5 of the paper): few labels, many rows without one.

    The encoder infers a class and a style of each row, and the decoder needs both to rebuild it; an
    adversary pulls the style to its prior. Rows without a label, -1 as in
    `sklearn.semi_supervised`, teach it what varies within a class. All rows may have labels.

    Args:
        prior: of the style, as in a config: "gaussian(5, std=1.0)", "swiss_roll()"; None is the
            standard Gaussian of `style_dim` dimensions.
        style_dim: dimensions of the style.
        widths: units of the hidden layers of each network.
        steps: of training, a batch each; rounded up to whole chunks of at most 100.
        batch_size: rows a step; all of them if there are fewer.
        random_state: as in scikit-learn; of the weights, the order of the rows and all noise.
        config: any fields of `aae_jax.config.base()` by dotted name, which win over all of the
            above, for example {"train.averaging": 0.99}.
        workdir: a folder to keep the run in, with checkpoints, metrics and events; progress is
            printed, and the same fit goes on where it was interrupted. By default a temporary one,
            of which nothing is kept.

    Attributes:
        classes_: [classes], sorted.
        model_: the trained model; see `aae_jax.Trained`.
        image_shape_: shape of one row of X.
        n_features_in_: length of X's second axis.
    """

    classes_: Shaped[np.ndarray, "classes"]

    def fit(self, X: Any, y: Any) -> "AAEClassifier":
        """Trains on X [n, ...] and labels y [n] of any kind, -1 where unknown.

        Raises:
            ValueError: X, y or a parameter cannot be used; there are fewer than two classes.
            TrainingError: a loss is not finite, or SIGTERM stopped it.
            WorkdirError: the workdir belongs to other data or parameters.
        """
        X, y = self._checked(X, y=y, ensure_min_samples=2)
        if y.dtype.kind == "U" and (y == "-1").any():
            raise ValueError(
                'y: "-1" is a text; unknown is the number -1, in an array of dtype object'
            )
        known = y != -1
        check_classification_targets(y[known])
        classes, codes = np.unique(y[known], return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"y: {known.sum()} of {len(y)} rows have a label (-1 is none), of {len(classes)} "
                "class; give labels of two classes or more"
            )
        label = np.full(len(y), -1, np.int32)
        label[known] = codes
        self._train(X, label, len(classes))
        self.classes_ = classes
        return self

    def _recipe(self, config: ConfigDict, label: Int32[np.ndarray, "n"]) -> None:
        config.model.labels = int(label.max()) + 1
        config.model.layout = "style_and_inferred_label"
        config.label.prior = f"categorical({config.model.labels})"
        config.label.divergence = "gan()"
        config.encoder.input_noise = 0.3
        config.phases = ("reconstruction", "regularization", "classification")
        adam = {"name": "adam", "learning_rate": 1e-3, "schedule": "cosine()"}
        config.optimizers.classifier.update(adam)
        config.train.labelled_batch_size = min(self.batch_size, int((label >= 0).sum()))

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n classes"]:
        """q(y|x) of each row, in the order of `classes_`."""
        X = self._new(X)
        return self.model_.classify(X)

    def predict(self, X: Any) -> Shaped[np.ndarray, "n"]:
        """The likeliest class of each row."""
        proba = self.predict_proba(X)
        return self.classes_[proba.argmax(axis=1)]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy on the rows whose label is known, so that cross-validation can have others."""
        y = column_or_1d(y)
        known = y != -1
        weight = None if sample_weight is None else np.asarray(sample_weight)[known]
        return accuracy_score(y[known], self.predict(X)[known], sample_weight=weight)


class AAEClusterer(ClusterMixin, _Estimator):
    """Clusters rows without labels (section 6 of the paper).

    The encoder infers a cluster and a style of each row, and the decoder needs both. Clusters are
    made certain and equally frequent by their mutual information with the row, in the place of the
    paper's adversary, which holds short runs to their first mistakes. Some may stay empty.

    Args:
        n_clusters: how many at most.
        prior, style_dim, widths, steps, batch_size, random_state, config, workdir: see
            `AAEClassifier`.

    Attributes:
        labels_: [n], the cluster of each training row.
        model_, image_shape_, n_features_in_: see `AAEClassifier`.
    """

    labels_: Int[np.ndarray, "n"]

    # All written out again, as scikit-learn reads a class's parameters off its own signature.
    def __init__(
        self,
        n_clusters: Any = 8,
        *,
        prior: Any = None,
        style_dim: Any = 5,
        widths: Any = (128, 128),
        steps: Any = 2000,
        batch_size: Any = 100,
        random_state: Any = None,
        config: Any = None,
        workdir: Any = None,
    ) -> None:
        """See the class."""
        super().__init__(
            prior=prior,
            style_dim=style_dim,
            widths=widths,
            steps=steps,
            batch_size=batch_size,
            random_state=random_state,
            config=config,
            workdir=workdir,
        )
        self.n_clusters = n_clusters

    def fit(self, X: Any, y: Any = None) -> "AAEClusterer":
        """Trains on X [n, ...]; y is not looked at. Raises what `AAEClassifier.fit` does."""
        check_whole(self.n_clusters, "n_clusters", 1)
        X = self._checked(X, ensure_min_samples=2)
        self._train(X, np.full(len(X), -1, np.int32), 0)
        self.labels_ = self.predict(X)
        return self

    def _recipe(self, config: ConfigDict, label: Int32[np.ndarray, "n"]) -> None:
        config.model.labels = self.n_clusters
        config.model.layout = "style_and_inferred_label"
        config.label.prior = f"categorical({self.n_clusters})"
        config.label.divergence = "mutual_information()"
        config.encoder.batch_norm = config.encoder.head_batch_norm = True

    def predict(self, X: Any) -> Int[np.ndarray, "n"]:
        """The likeliest cluster of each row, 0 to n_clusters - 1."""
        X = self._new(X)
        return self.model_.cluster(X)


class AAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Estimator):
    """Rows to codes that follow a prior, and back (section 2 of the paper).

    Args:
        prior, style_dim, widths, steps, batch_size, random_state, config, workdir: see
            `AAEClassifier`.

    Attributes:
        model_, image_shape_, n_features_in_: see `AAEClassifier`.
    """

    def fit(self, X: Any, y: Any = None) -> "AAETransformer":
        """Trains on X [n, ...]; y is not looked at. Raises what `AAEClassifier.fit` does."""
        X = self._checked(X, ensure_min_samples=2)
        self._train(X, np.full(len(X), -1, np.int32), 0)
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "n style"]:
        """Codes of rows."""
        X = self._new(X)
        return self.model_.encode(X).style

    def inverse_transform(self, X: Any) -> Float[np.ndarray, "n ..."]:
        """Rows of codes [n, style_dim], in the units of the training rows (uint8 as 0..1)."""
        check_is_fitted(self)
        style = check_array(X, dtype=np.float32)
        return self.model_.decode(style).reshape(len(style), *self.image_shape_)

    @property
    def _n_features_out(self) -> int:
        return self.model_.config.model.style_dim

    def __sklearn_tags__(self) -> Tags:
        """See scikit-learn."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


@contextlib.contextmanager
def _folder(workdir: str | os.PathLike[str] | None, config: ConfigDict) -> Iterator[Path]:
    """The run's folder, held and claimed; a temporary one by default."""
    with contextlib.ExitStack() as held:
        folder = Path(workdir or held.enter_context(tempfile.TemporaryDirectory()))
        held.enter_context(folders.locked(folder))
        folders.claim(folder, config)
        yield folder


def _digest(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.tobytes())
    return found.hexdigest()[:16]
