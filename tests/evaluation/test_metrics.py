from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from made_up import multi, numbers, single
from scipy import stats
from sklearn import metrics as reference

from launcher.errors import DataError, LauncherError
from launcher.evaluation import metrics as m
from launcher.evaluation.kinds import kind_of, metrics_for
from launcher.evaluation.metric_names import METRICS, greater_is_better


def averages(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    found = {}
    for average in ("macro", "micro"):
        for name, score in (("f1", "f1"), ("precision", "precision"), ("recall", "recall")):
            call = getattr(reference, f"{score}_score")
            found[f"{average}_{name}"] = call(labels, predicted, average=average, zero_division=0)
    found["weighted_f1"] = reference.f1_score(labels, predicted, average="weighted", zero_division=0)
    found["accuracy"] = reference.accuracy_score(labels, predicted)
    return found


@pytest.mark.parametrize("classes", [2, 3, 11])
@pytest.mark.parametrize("skill", [0.0, 2.0])
def test_single_label_agrees_with_scikit_learn(classes: int, skill: float) -> None:
    p = single(300, [f"c{k}" for k in range(classes)], skill=skill)
    labels, predicted = p.labels, p.scores.argmax(axis=1)
    found = metrics_for(p)
    expected = averages(labels, predicted) | {
        "mcc": reference.matthews_corrcoef(labels, predicted),
        "log_loss": reference.log_loss(labels, p.scores, labels=range(classes)),
        "brier": reference.brier_score_loss(labels, p.scores[:, 1])
        if classes == 2
        else ((p.scores - np.eye(classes)[labels]) ** 2).sum(axis=1).mean(),
        "auroc": reference.roc_auc_score(labels, p.scores[:, 1])
        if classes == 2
        else reference.roc_auc_score(labels, p.scores, multi_class="ovr"),
    }
    if classes == 2:
        expected["f1"] = reference.f1_score(labels, predicted)
        expected["precision"] = reference.precision_score(labels, predicted)
        expected["recall"] = reference.recall_score(labels, predicted)
    calibration = found.pop("calibration_error")
    assert 0 <= calibration <= 1
    assert found == pytest.approx(expected, abs=1e-12)


def test_multi_label_agrees_with_scikit_learn() -> None:
    p = multi(skill=1.0)
    predicted = (p.scores > 0.5).astype(int)
    found = metrics_for(p)
    expected = averages(p.labels, predicted) | {
        "hamming_loss": reference.hamming_loss(p.labels, predicted),
        "auroc": reference.roc_auc_score(p.labels, p.scores, average="macro"),
        "log_loss": np.mean([reference.log_loss(p.labels[:, k], p.scores[:, k]) for k in range(4)]),
        "brier": ((p.scores - p.labels) ** 2).mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_regression_agrees_with_scipy() -> None:
    p = numbers()
    predicted = p.scores[:, 0]
    expected = {
        "mse": reference.mean_squared_error(p.labels, predicted),
        "rmse": reference.root_mean_squared_error(p.labels, predicted),
        "mae": reference.mean_absolute_error(p.labels, predicted),
        "r2": reference.r2_score(p.labels, predicted),
        "pearson": stats.pearsonr(p.labels, predicted)[0],
        "spearman": stats.spearmanr(p.labels, predicted)[0],
    }
    assert metrics_for(p) == pytest.approx(expected, abs=1e-12)


def test_ranks_of_ties_are_shared() -> None:
    values = np.array([3.0, 1.0, 3.0, 2.0, 1.0, 3.0])
    assert m.average_ranks(values).tolist() == stats.rankdata(values).tolist()
    tied = np.array([0.1, 0.5, 0.5, 0.5, 0.9, 0.2]), np.array([False, True, False, True, True, False])
    assert m._auroc(*tied) == pytest.approx(reference.roc_auc_score(tied[1], tied[0]))


def test_calibration_error_by_hand() -> None:
    # Two bins are filled: (0.6, 0.666] with one of two right, (0.866, 0.933] with two of two right.
    confidence = np.array([0.62, 0.64, 0.9, 0.92])
    right = np.array([True, False, True, True])
    assert m.calibration_error(confidence, right) == pytest.approx(0.5 * abs(0.5 - 0.63) + 0.5 * abs(1 - 0.91))
    assert m.calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0
    assert [b["rows"] for b in m.reliability_bins(np.array([0.0, 1 / 15, 1.0]), np.ones(3, dtype=bool))] == [2, 1]


def test_a_class_without_rows_leaves_out_auroc_and_says_why() -> None:
    p = single(60, names=("a", "b", "c"))
    p = dataclasses.replace(p, labels=np.where(p.labels == 2, 0, p.labels))
    assert "auroc" not in metrics_for(p)
    assert "c" in kind_of(p).omitted(p, metrics_for(p))["auroc"]
    assert metrics_for(p)["macro_f1"] == pytest.approx(
        reference.f1_score(p.labels, p.scores.argmax(axis=1), average="macro")
    )
    assert kind_of(single()).omitted(single(), metrics_for(single())) == {}


def test_constant_predictions_have_no_correlation_and_no_nan() -> None:
    p = numbers(20)
    flat = dataclasses.replace(p, scores=np.full((20, 1), 2.5))
    assert set(metrics_for(flat)) == {"mse", "rmse", "mae", "r2"}
    assert set(kind_of(flat).omitted(flat, metrics_for(flat))) == {"spearman", "pearson"}
    same = dataclasses.replace(p, labels=np.full(20, 1.0))
    assert set(metrics_for(same)) == {"mse", "rmse", "mae"}


def test_one_row_and_a_sure_mistake_give_finite_numbers() -> None:
    p = single(1, names=("a", "b"))
    sure = dataclasses.replace(p, scores=np.array([[1.0, 0.0]]), labels=np.array([1]))
    assert all(np.isfinite(value) for value in metrics_for(sure).values())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"labels": None}, "no labels"),
        ({"scores": np.zeros((0, 3)), "labels": np.zeros(0, dtype=int), "row_ids": ()}, "no rows"),
        ({"scores": np.full((200, 3), np.nan)}, "row 0 is not a finite number"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(change: dict, text: str) -> None:
    with pytest.raises(DataError, match=text):
        metrics_for(dataclasses.replace(single(), **change))


def test_per_class() -> None:
    p = single(names=("a", "b", "c"))
    predicted = p.scores.argmax(axis=1)
    records = kind_of(p).details(p)["per_class"]
    assert [r["name"] for r in records] == ["a", "b", "c"]
    assert [r["f1"] for r in records] == pytest.approx(reference.f1_score(p.labels, predicted, average=None).tolist())
    assert sum(r["support"] for r in records) == sum(r["predicted"] for r in records) == 200
    assert "per_class" not in kind_of("regression").details(numbers())


@pytest.mark.parametrize("p", [single(), single(names=("n", "y")), multi(), numbers()])
def test_every_metric_says_which_way_is_better(p) -> None:  # type: ignore[no-untyped-def]
    assert set(metrics_for(p)) <= set(METRICS)
    assert set(kind_of(p).headline) <= set(metrics_for(p))


def test_greater_is_better() -> None:
    assert greater_is_better("eval_macro_f1")
    assert not greater_is_better("loss")
    with pytest.raises(LauncherError, match="did you mean 'macro_f1'"):
        greater_is_better("macro_f")


def test_importing_metrics_is_cheap() -> None:
    heavy = {"torch", "scipy", "sklearn", "matplotlib", "jinja2", "pyarrow", "pandas", "transformers"}
    code = f"import sys, launcher.evaluation.metrics; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
