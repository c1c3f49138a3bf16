"""Few labels on tables: `aae_jax.AAEClassifier` beside scikit-learn's own classifiers.

  python -m benchmarks.tables                 # the table of the README, on test rows
  python -m benchmarks.tables --validation    # what the phases were chosen by

Tables are those that scikit-learn ships. A third of each, the same rows whatever the seed, is for
the test; with each seed other rows of the rest have a label. With --validation the test rows are
left alone, and a third of the rest is scored.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn import datasets
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from sklearn.svm import SVC

from aae_jax import AAEClassifier

# Labels of each table, a few a class.
TABLES: dict[str, tuple[Callable[..., Any], int]] = {
    "digits": (datasets.load_digits, 50),
    "breast_cancer": (datasets.load_breast_cancer, 20),
    "wine": (datasets.load_wine, 12),
    "iris": (datasets.load_iris, 12),
}


class Rows(NamedTuple):
    """Rows to learn from, with -1 for a hidden label, and rows to score on."""

    X: np.ndarray
    y: np.ndarray
    X_scored: np.ndarray
    y_scored: np.ndarray


def rows(table: str, seed: int, validation: bool) -> Rows:
    """The rows of one trial; labels are stratified, so frequent classes have more of them."""
    load, num_labels = TABLES[table]
    X, y = load(return_X_y=True)
    X, X_scored, y, y_scored = train_test_split(X, y, test_size=1 / 3, random_state=0, stratify=y)
    if validation:
        X, X_scored, y, y_scored = train_test_split(
            X, y, test_size=1 / 3, random_state=seed, stratify=y
        )
    shown, _ = train_test_split(
        np.arange(len(y)), train_size=num_labels, random_state=seed, stratify=y
    )
    known = np.full(len(y), -1)
    known[shown] = y[shown]
    return Rows(X, known, X_scored, y_scored)


def classifiers(seed: int, config: dict[str, Any]) -> dict[str, ClassifierMixin]:
    """The contestants by name; those that are supervised are given the labelled rows alone."""
    regression = LogisticRegression(max_iter=1000)
    return {
        "LogisticRegression": regression,
        "SVC": SVC(),
        "SelfTrainingClassifier": SelfTrainingClassifier(regression),
        "LabelSpreading": LabelSpreading(kernel="knn"),
        "AAEClassifier": AAEClassifier(random_state=seed, config=config),
    }


def error_percent(classifier: ClassifierMixin, trial: Rows) -> float:
    """The error on the scored rows after training."""
    X, y = trial.X, trial.y
    if isinstance(classifier, LogisticRegression | SVC):
        X, y = X[y >= 0], y[y >= 0]
    model = make_pipeline(StandardScaler(), classifier).fit(X, y)
    return 100 * (1 - float(model.score(trial.X_scored, trial.y_scored)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", default="", help="one classifier")
    parser.add_argument("--config", type=json.loads, default={}, help="fields, as JSON")
    options = parser.parse_args(arguments)
    names = [options.only] if options.only else list(classifiers(0, {}))
    print("| table | rows | labels | " + " | ".join(names) + " |")
    print("|---|---|---|" + "---|" * len(names))
    for table in options.tables.split(","):
        errors: dict[str, list[float]] = {name: [] for name in names}
        for seed in range(options.seeds):
            trial = rows(table, seed, options.validation)
            contestants = classifiers(seed, options.config)
            for name in names:
                errors[name].append(error_percent(contestants[name], trial))
        shown = [
            f"{np.mean(e):.1f} ± {np.std(e, ddof=1) / np.sqrt(len(e)):.1f}" for e in errors.values()
        ]
        cells = [table, len(trial.X), TABLES[table][1], *shown]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
