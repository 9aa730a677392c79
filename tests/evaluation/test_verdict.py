from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from made_up import as_baseline, multi, numbers, single

from launcher.contracts import Predictions
from launcher.evaluation.assessment import Evaluation, evaluate_predictions
from launcher.evaluation.report import verdict, verdict_sentence
from launcher.evaluation.verdict import number, p_value


def constant(p: Predictions) -> Predictions:
    return dataclasses.replace(p, scores=np.tile([1.0] + [0.0] * (p.scores.shape[1] - 1), (len(p.scores), 1)))


def test_better() -> None:
    p = single(1200, skill=2.5)
    e = evaluate_predictions(p, [as_baseline(constant(p), "majority"), as_baseline(single(1200, skill=1.0, seed=4))])
    found = verdict(e)
    assert found.state == "better"
    assert re.fullmatch(
        r"The model is better than the TF-IDF baseline: accuracy 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] against 0\.\d{3}, "
        r"a difference of \d+\.\d points \[\d+\.\d, \d+\.\d\] \(exact McNemar test, p = \de-\d+, 1,200 test rows\)\.",
        found.sentence,
    )
    assert e.intervals["accuracy"]["low"] < e.metrics["accuracy"] < e.intervals["accuracy"]["high"]


def test_worse_says_that_a_linear_model_wins() -> None:
    p = single(1200, skill=1.0)
    found = verdict(evaluate_predictions(p, [as_baseline(single(1200, skill=2.5, seed=4))], bootstrap=100))
    assert found.state == "worse"
    assert found.sentence.startswith(
        "The model is worse than the TF-IDF baseline, a linear model on word and character counts: accuracy"
    )
    assert "a difference of −" in found.sentence


def test_no_difference() -> None:
    p = single(300)
    found = verdict(evaluate_predictions(p, [as_baseline(single(300, seed=4))], bootstrap=100))
    assert found.state == "no_difference"
    assert found.sentence.startswith("No clear difference between the model and the TF-IDF baseline was found")
    same = verdict(evaluate_predictions(p, [as_baseline(p)], bootstrap=100))
    assert "a difference of 0.0 points [0.0, 0.0] (exact McNemar test, p = 1.00" in same.sentence


def test_the_strongest_baseline_is_the_one_to_beat() -> None:
    p = single(600, skill=2.0)
    weak, strong = single(600, skill=0.2, seed=4), single(600, skill=3.0, seed=5)
    e = evaluate_predictions(p, [as_baseline(strong, "majority"), as_baseline(weak)], bootstrap=100)
    assert "worse than the majority class baseline" in verdict_sentence(e)


def test_without_intervals_the_exact_test_decides() -> None:
    p = single(1200, skill=2.5)
    sentence = verdict_sentence(evaluate_predictions(p, [as_baseline(single(1200, skill=1.0, seed=4))], bootstrap=0))
    assert sentence.startswith("The model is better")
    assert "[" not in sentence


def test_what_is_not_known_is_said() -> None:
    p = single(50)
    assert "have no labels" in verdict_sentence(evaluate_predictions(dataclasses.replace(p, labels=None)))
    assert "no baseline was run" in verdict_sentence(evaluate_predictions(p, bootstrap=0))
    assert verdict(None).state == "unknown"
    assert "has not been evaluated" in verdict_sentence(None)
    flat = dataclasses.replace(numbers(20), labels=np.full(20, 1.0))
    assert "mean squared error" in verdict_sentence(evaluate_predictions(flat, bootstrap=0))


def test_validation_rows_are_called_a_little_too_good() -> None:
    assert "a little too good" in verdict_sentence(evaluate_predictions(single(50), bootstrap=0, split="validation"))


def test_multi_label_and_regression() -> None:
    found = verdict(evaluate_predictions(multi(400), [as_baseline(multi(400, skill=1.0, seed=3))], bootstrap=200))
    assert found.state == "better"
    assert "micro F1" in found.sentence and "whole label sets" in found.sentence
    found = verdict(evaluate_predictions(numbers(), [as_baseline(numbers(noise=2.0, seed=3))], bootstrap=200))
    assert found.state == "better"
    assert "Spearman correlation" in found.sentence and "exact sign test" in found.sentence
    worse = verdict(evaluate_predictions(numbers(noise=2.0), [as_baseline(numbers(seed=3))], bootstrap=200))
    assert worse.state == "worse"


def test_an_opposite_second_metric_is_named() -> None:
    # The baseline always says the frequent class; the model trades accuracy on it for the rare ones.
    labels = np.r_[np.zeros(900, dtype=int), np.ones(100, dtype=int)]
    predicted = labels.copy()
    predicted[:200] = 1
    p = dataclasses.replace(single(1000, names=("a", "b")), labels=labels, scores=np.eye(2)[predicted])
    sentence = verdict_sentence(evaluate_predictions(p, [as_baseline(constant(p), "majority")], bootstrap=100))
    assert "worse than the majority class baseline, always giving the same answer" in sentence
    assert "By macro F1, though, it is better" in sentence


@pytest.mark.parametrize("p", [single(), single(names=("n", "y")), multi(), numbers()])
def test_an_evaluation_goes_to_json_and_back(p: Predictions) -> None:
    e = evaluate_predictions(p, [as_baseline(p, chosen={"C": 1.0})], bootstrap=20)
    text = json.dumps(e.to_json(), allow_nan=False)
    assert Evaluation.from_json(json.loads(text)) == e
    assert verdict_sentence(json.loads(text)) == verdict_sentence(e)


def test_details() -> None:
    p = single(300, skill=1.0)
    e = evaluate_predictions(p, bootstrap=0)
    predicted = p.scores.argmax(axis=1)
    assert sum(rows for *_, rows in e.confusion) == 300
    assert sum(rows for a, b, rows in e.confusion if a == b) == (predicted == p.labels).sum()
    scores = [m["score"] for m in e.mistakes]
    assert len(scores) == 25 and scores == sorted(scores, reverse=True)
    first = e.mistakes[0]
    assert first["label"] == p.label_names[p.labels[first["row_id"]]] != first["predicted"]
    assert e.confused_pairs[0]["rows"] == max(rows for a, b, rows in e.confusion if a != b)
    errors = [abs(m["error"]) for m in evaluate_predictions(numbers(), bootstrap=0).mistakes]
    assert errors == sorted(errors, reverse=True)
    assert all(m["label"] != m["predicted"] for m in evaluate_predictions(multi(), bootstrap=0).mistakes)


def test_long_and_broken_texts_are_cut_and_cleaned() -> None:
    p = dataclasses.replace(single(1, names=("a", "b")), texts=("\ud800" + "x" * 5000,), labels=np.array([0]))
    p = dataclasses.replace(p, scores=np.array([[0.1, 0.9]]))
    text = evaluate_predictions(p, bootstrap=0).mistakes[0]["text"]
    assert text.startswith("?xxx") and len(text) < 700 and text.endswith("…")


def test_numbers_in_words() -> None:
    assert [number(x) for x in (0.12345, -0.5, 0, 1e-5, 1234.5, 1e-15)] == [
        "0.123", "−0.500", "0.000", "1.00e−05", "1,234", "0.000",
    ]  # fmt: skip
    assert [p_value(p) for p in (1.0, 0.0412, 0.6, 3.2e-12, 0.0)] == [
        "p = 1.00", "p = 0.041", "p = 0.60", "p = 3e-12", "p < 1e-300",
    ]  # fmt: skip
