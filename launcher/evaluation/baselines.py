"""Simple models on the same rows, so that a fine-tune has something honest to beat."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from launcher.contracts import Baseline, Predictions
from launcher.errors import LauncherError
from launcher.evaluation.kinds import kind_of, metrics_for
from launcher.evaluation.metric_names import greater_is_better
from launcher.registry import suggest

REGULARIZATION_GRID = (0.1, 1.0, 10.0, 100.0)
"""Values of C (inverse strength) that validation chooses from; ridge regression uses alpha = 1 / C."""

MANY_ROWS = 20_000
"""From this many training rows on, n-grams that occur once and the weakest regularisation are left out: with that much
text they do not help, and cost most of the time."""

MOST_TRAIN_ROWS = 200_000
"""Above this many training rows the TF-IDF baseline learns from a seeded sample of that size, and says so."""

MOST_FEATURES = 100_000
"""Most frequent n-grams that are kept, of words and of characters each."""

TITLES = {
    "majority": "majority class",
    "tfidf": "TF-IDF",
    "word_tag": "most-frequent-tag",
    "overlap": "word-overlap",
    "unigram": "unigram",
    "pixels": "linear-on-pixels",
    "usual_pixels": "usual-class-of-each-place",
    "copy": "copied-text",
    "nearest": "nearest-training-text",
    "lead": "first-sentences",
    "typical_boxes": "typical-boxes",
    "longer": "longer-answer",
}
"""How a baseline is called in sentences and tables."""


Predict = Callable[[Any], np.ndarray]
"""Features [n, d] -> scores [n, outputs]."""


@dataclass(frozen=True)
class TextRows:
    """Rows of a split as plain text; pairs are joined already.

    ``labels`` are those of contracts.Predictions: int64 [n], 0/1 [n, c], float64 [n], or None.
    """

    texts: Sequence[str]
    labels: np.ndarray | None
    row_ids: Sequence[int] | None = None

    def take(self, rows: np.ndarray) -> TextRows:
        """Return the rows with these indices."""
        labels = None if self.labels is None else self.labels[rows]
        return TextRows(
            [self.texts[i] for i in rows], labels, None if self.row_ids is None else [self.row_ids[i] for i in rows]
        )


def fit_baseline(
    name: str,
    train: TextRows,
    validation: TextRows | None,
    test: TextRows,
    *,
    problem_type: str,
    label_names: Sequence[str],
) -> Baseline:
    """Train the baseline ``name`` on ``train`` and return its predictions for ``test``; deterministic.

    Raises:
        LauncherError: no such baseline, or training rows without labels.
    """
    if name not in BASELINES:
        near = suggest(name, BASELINES)
        hint = f"did you mean {near!r}?" if near else f"known are {', '.join(BASELINES)}"
        raise LauncherError(f"{name!r} is not a baseline; {hint}")
    return BASELINES[name](train, validation, test, problem_type=problem_type, label_names=label_names)


# --- majority ------------------------------------------------------------------------------------------------------


def majority_baseline(
    train: TextRows, validation: TextRows | None, test: TextRows, *, problem_type: str, label_names: Sequence[str]
) -> Baseline:
    """Return the baseline that ignores the text.

    Every row gets the classes' shares of the training rows as scores (so the most frequent class is predicted, or, for
    multi-label, each label that more than half of the rows have), or for regression the mean training label.
    """
    row = _constant_row(_labels(train), problem_type, len(label_names))
    return _finish("majority", np.tile(row, (len(test.texts), 1)), test, problem_type, label_names)


def _constant_row(labels: np.ndarray, problem_type: str, classes: int) -> np.ndarray:
    if problem_type == "regression":
        return np.array([labels.astype(float).mean()])
    if problem_type == "multi_label_classification":
        return np.asarray(labels.mean(axis=0), dtype=np.float64)
    return np.bincount(labels.astype(np.int64), minlength=classes) / len(labels)


def _labels(train: TextRows) -> np.ndarray:
    if train.labels is None or len(train.labels) == 0:
        raise LauncherError(
            "a baseline needs labelled training rows and there are none; set evaluation.baselines to []"
        )
    return np.asarray(train.labels)


def _finish(
    name: str, scores: np.ndarray, test: TextRows, problem_type: str, label_names: Sequence[str],
    chosen: Mapping[str, Any] | None = None, notes: Sequence[str] = (),
) -> Baseline:  # fmt: skip
    row_ids = tuple(range(len(test.texts)) if test.row_ids is None else (int(i) for i in test.row_ids))
    scores = np.asarray(scores, dtype=np.float64)
    predictions = Predictions(problem_type, scores, test.labels, tuple(label_names), tuple(test.texts), row_ids)
    metrics = {} if test.labels is None or not len(scores) else metrics_for(predictions)
    return Baseline(name, predictions, metrics, dict(chosen or {}), " ".join(notes))


# --- TF-IDF with a linear model ------------------------------------------------------------------------------------


def tfidf_baseline(
    train: TextRows, validation: TextRows | None, test: TextRows, *, problem_type: str, label_names: Sequence[str]
) -> Baseline:
    """Return a linear model on TF-IDF weights of word 1-2-grams and character 1-4-grams.

    Characters are read across the whole text, so that languages without spaces have features too. The model is
    multinomial logistic regression, one logistic regression per label for multi-label, ridge regression for numbers;
    its strength of regularisation is chosen from REGULARIZATION_GRID by the first headline metric on validation rows,
    never on test rows. It is trained on the training rows only, as the model is. 100,000 texts of 30 words
    take about three minutes on one core.
    """
    train, notes = _sampled(train)
    labels, classes = _labels(train), len(label_names)
    if problem_type != "regression" and labels.ndim == 1 and len(np.unique(labels)) < 2:
        return _fallback(train, test, problem_type, label_names, "all training rows have one label")
    fitted = fit_features(train.texts)
    if fitted is None:
        return _fallback(train, test, problem_type, label_names, "no training text has a word or character")
    held_out = _usable(validation)
    if held_out is None:
        notes = [*notes, "There are no labelled validation rows, so C = 1 was not chosen but set."]
    grid = REGULARIZATION_GRID if len(train.texts) < MANY_ROWS else REGULARIZATION_GRID[:-1]
    transform, features = fitted
    models = _linear_models(features, labels, problem_type, classes, grid if held_out else (1.0,))
    inputs = [transform(rows.texts) if rows and rows.texts else None for rows in (held_out, test)]
    chosen, scores = _best_on_validation(models, held_out, inputs, problem_type, label_names)
    return _finish("tfidf", scores, test, problem_type, label_names, chosen, notes)


def _best_on_validation(
    models: Iterator[tuple[float, Predict]],
    held_out: TextRows | None,
    inputs: Sequence[Any],
    problem_type: str,
    label_names: Sequence[str],
) -> tuple[dict[str, Any], np.ndarray]:
    """Return what was chosen and the scores of the test rows; ``inputs`` are the validation and the test features.

    Only the best model's test scores are kept, not its weights.
    """
    chosen: dict[str, Any] = {}
    metric, best, kept = kind_of(problem_type).headline[0], (-np.inf, -np.inf), np.zeros((0, max(len(label_names), 1)))
    for c, predict in models:
        value = _validation_score(predict(inputs[0]), held_out, problem_type, label_names) if held_out else (0.0, 0.0)
        if value > best:
            best, chosen = value, {"C": c}
            kept = kept if inputs[1] is None else predict(inputs[1])
    if held_out:
        chosen = {**chosen, "validation_metric": metric, "validation_score": best[0]}
    return chosen, kept


def _fallback(train: TextRows, test: TextRows, problem_type: str, label_names: Sequence[str], why: str) -> Baseline:
    row = _constant_row(_labels(train), problem_type, len(label_names))
    note = f"It predicts the same for every row: {why}."
    return _finish("tfidf", np.tile(row, (len(test.texts), 1)), test, problem_type, label_names, notes=[note])


def _sampled(train: TextRows) -> tuple[TextRows, list[str]]:
    if len(train.texts) <= MOST_TRAIN_ROWS:
        return train, []
    rows = np.sort(np.random.default_rng(0).choice(len(train.texts), size=MOST_TRAIN_ROWS, replace=False))
    return train.take(rows), [f"It learned from a sample of {MOST_TRAIN_ROWS:,} of {len(train.texts):,} training rows."]


def _usable(validation: TextRows | None) -> TextRows | None:
    return validation if validation is not None and validation.labels is not None and len(validation.texts) else None


def fit_features(texts: Sequence[str]) -> tuple[Callable[[Sequence[str]], Any], Any] | None:
    """Return texts -> features [n, d], sparse, and the features of ``texts``; None where they have no n-gram at all."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    shared: dict[str, Any] = {
        "sublinear_tf": True,
        "min_df": 1 if len(texts) < MANY_ROWS else 2,
        "max_features": MOST_FEATURES,
    }
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **shared)
    characters = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), **shared)
    fitted = [(v, features) for v in (words, characters) if (features := _fit_transform(v, texts)) is not None]
    if not fitted:
        return None
    return lambda new: hstack([v.transform(new) for v, _ in fitted]).tocsr(), hstack([f for _, f in fitted]).tocsr()


def _fit_transform(vectorizer: Any, texts: Sequence[str]) -> Any:
    try:
        return vectorizer.fit_transform(texts)
    except ValueError as error:
        # scikit-learn has no error class of its own for texts without a single token.
        if "vocabulary" in str(error) or "no terms remain" in str(error):
            return None
        raise


def _validation_score(
    scores: np.ndarray, rows: TextRows, problem_type: str, label_names: Sequence[str]
) -> tuple[float, float]:
    """Return the first headline metric, and what breaks ties, which are common on few rows: the log loss or the mse."""
    predictions = Predictions(problem_type, scores, rows.labels, tuple(label_names), (), tuple(range(len(rows.texts))))
    metrics, name = metrics_for(predictions), kind_of(problem_type).headline[0]
    assert greater_is_better(name)
    # Where correlation is undefined (equal predictions) the model is worth nothing as a ranking.
    return metrics.get(name, -1.0), -metrics["mse" if problem_type == "regression" else "log_loss"]


def _linear_models(
    features: Any, labels: np.ndarray, problem_type: str, classes: int, choices: Sequence[float]
) -> Iterator[tuple[float, Predict]]:
    """Yield (C, features [n, d] -> scores [n, outputs]) for each C; a model is valid until the next one is asked
    for.
    """
    if problem_type == "regression":
        yield from _ridge_models(features, labels, choices)
    elif problem_type == "multi_label_classification":
        for c in choices:
            columns = [one_label_model(features, labels[:, k], c) for k in range(classes)]
            yield c, functools.partial(_stacked, columns)
    else:
        yield from logistic_models(features, labels, classes, choices)


def _ridge_models(features: Any, labels: np.ndarray, choices: Sequence[float]) -> Iterator[tuple[float, Predict]]:
    from sklearn.linear_model import Ridge

    for c in choices:
        model = Ridge(alpha=1 / c).fit(features, labels)
        yield c, functools.partial(_column, model)


def _column(model: Any, features: Any) -> np.ndarray:
    return np.asarray(model.predict(features)).reshape(-1, 1)


def _stacked(columns: Sequence[Predict], features: Any) -> np.ndarray:
    return np.stack([column(features) for column in columns], axis=1)


def logistic_models(
    features: Any, labels: np.ndarray, classes: int, choices: Sequence[float]
) -> Iterator[tuple[float, Predict]]:
    """Yield (C, features [n, d] -> probabilities [n, classes]) of logistic regression for each C; valid until the next is asked for."""
    from sklearn.linear_model import LogisticRegression

    # One model warmed up from the weaker fit before it: about half the steps of fresh starts.
    model = LogisticRegression(max_iter=300, tol=1e-4, warm_start=True)

    def predict(x: Any) -> np.ndarray:
        scores = np.zeros((x.shape[0], classes))
        scores[:, model.classes_] = model.predict_proba(x)
        return scores

    for c in choices:
        model.set_params(C=c)
        with _quiet():
            model.fit(features, labels)
        yield c, predict


def one_label_model(features: Any, column: np.ndarray, c: float) -> Predict:
    """Return a logistic regression of one label, ``column`` 0/1 or bool [n], on ``features`` [n, d]: new features -> float64 [n]."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(column)) < 2:
        value = float(column[0])
        return lambda x: np.full(x.shape[0], value)
    model = LogisticRegression(C=c, solver="liblinear", dual=True, random_state=0)
    with _quiet():
        model.fit(features, column)
    return lambda x: np.asarray(model.predict_proba(x)[:, 1])


class _quiet(warnings.catch_warnings):
    """Silence that a fit stopped at its limit of steps: validation judges the fit as it is."""

    def __enter__(self) -> None:
        from sklearn.exceptions import ConvergenceWarning

        super().__enter__()
        warnings.simplefilter("ignore", ConvergenceWarning)


BASELINES: dict[str, Callable[..., Baseline]] = {"majority": majority_baseline, "tfidf": tfidf_baseline}
"""The baselines of labelled texts that a recipe may name in evaluation.baselines."""
