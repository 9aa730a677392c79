"""Predictions made from seeded noise, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.assessment import evaluate_predictions
from launcher.evaluation.baselines import Baseline
from launcher.evaluation.kinds import metrics_for
from launcher.evaluation.report import ReportFacts


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def single(
    rows: int = 200,
    names: Sequence[str] = ("a", "b", "c"),
    *,
    skill: float = 2.0,
    seed: int = 0,
    texts: Sequence[str] | None = None,
    kind: str = "single_label_classification",
) -> Predictions:
    """``skill`` is the right label's advantage in logits; labels do not depend on ``seed``."""
    labels = np.random.default_rng(99).integers(len(names), size=rows)
    logits = np.random.default_rng(seed).normal(size=(rows, len(names)))
    logits[np.arange(rows), labels] += skill
    texts = texts or [f"text {i}" for i in range(rows)]
    return Predictions(kind, softmax(logits), labels, tuple(names), tuple(texts), tuple(range(rows)))


def multi(
    rows: int = 120, names: Sequence[str] = ("x", "y", "z", "w"), *, skill: float = 3.0, seed: int = 0
) -> Predictions:
    labels = (np.random.default_rng(98).random((rows, len(names))) < 0.3).astype(np.int64)
    logits = skill * (labels - 0.5) + np.random.default_rng(seed).normal(size=labels.shape)
    texts = tuple(f"text {i}" for i in range(rows))
    return Predictions(
        "multi_label_classification", 1 / (1 + np.exp(-logits)), labels, tuple(names), texts, tuple(range(rows))
    )


def numbers(rows: int = 150, *, noise: float = 0.5, seed: int = 0) -> Predictions:
    labels = np.random.default_rng(97).uniform(0, 5, rows)
    predicted = labels + noise * np.random.default_rng(seed).normal(size=rows)
    texts = tuple(f"text {i}" for i in range(rows))
    return Predictions("regression", predicted[:, None], labels, ("score",), texts, tuple(range(rows)))


def as_baseline(predictions: Predictions, name: str = "tfidf", **more: Any) -> Baseline:
    metrics = {} if predictions.labels is None else metrics_for(predictions)
    return Baseline(name, predictions, metrics, **more)


def progress() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(10, 210, 10):
        rates = {"learning_rate": 1e-4 / step, "lr/embeddings": 5e-5 / step, "lr/head": 1e-4 / step}
        rows.append({"step": step, "epoch": step / 50, "loss": 3 / step, "grad_norm": 1.0, **rates})
        if step % 50 == 0:
            rows.append({"step": step, "eval_loss": 4 / step, "eval_accuracy": 1 - 1 / step, "eval_macro_f1": 0.5})
    return rows


def facts(predictions: Predictions | None, baselines: Sequence[Baseline] = (), **more: Any) -> ReportFacts:
    evaluation = evaluate_predictions(predictions, baselines, bootstrap=50).to_json() if predictions else None
    group = {"depth": 0, "parameters": 1000, "weight_decay": 0.01}
    given: dict[str, Any] = {
        "run_name": "made-up-001",
        "created": "12 March 2025, 14:03",
        "recipe_text": "version: 1\nname: made-up\n",
        "evaluation": evaluation,
        "progress": progress(),
        "tuning_tables": [
            {
                "headings": ["main: steps 1-200"],
                "rows": [
                    {"group": "embeddings", "trainable": False, "lr": 0.0, **group},
                    {"group": "head", "trainable": True, "lr": 3e-4, **group},
                ],
            }
        ],
        "data": {"splits": {"train": 10, "test": 5}, "truncated": {"train": 1}, "warnings": ["a warning"]},
        "environment": {"versions": {"torch": "2.13.0"}, "devices": ["CPU"], "git_revision": None},
        "commands": ["launcher run recipe.yaml"],
        "timing": {"training_seconds": 43.0},
    }
    return ReportFacts(**(given | more))
