"""Entities and tags: what seqeval says of the same tags, and how sure it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import seqeval.metrics

from launcher.contracts import Predictions
from launcher.evaluation.assessment import Evaluation, evaluate_predictions
from launcher.evaluation.baselines_tokens import word_tag_baseline
from launcher.evaluation.kinds import kind_of, metrics_for
from launcher.evaluation.predictions_io import read_predictions, write_predictions
from launcher.evaluation.tagging import ENTITIES, TAGS, are_entity_tags, entities_of, row_errors, tags_by_row
from launcher.evaluation.verdict import verdict_sentence

SCHEMES = {
    "iob2": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
    "iobes": ("O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC"),
    "odd names": ("O", "B-no", "I-no", "B-on-off", "I-on-off"),
}


def random_tags(
    names: tuple[str, ...], *, sentences: int = 60, right: float = 0.7, seed: int = 0, kind: str = ENTITIES
) -> Predictions:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 12, sentences)
    labels = rng.integers(len(names), size=sizes.sum())
    predicted = np.where(rng.random(len(labels)) < right, labels, rng.integers(len(names), size=len(labels)))
    words = tuple(tuple(f"w{rng.integers(30)}" for _ in range(size)) for size in sizes)
    texts = tuple(" ".join(row) for row in words)
    return Predictions(
        kind, rng.uniform(0.3, 1, len(labels)), labels, names, texts, tuple(range(sentences)), words, predicted
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(5))
def test_scores_of_entities_are_seqevals(scheme, seed):
    found = random_tags(SCHEMES[scheme], seed=seed)
    wanted, ours = (list(tags_by_row(found, numbers)) for numbers in (found.labels, found.predicted))
    metrics = metrics_for(found)
    assert metrics["f1"] == pytest.approx(seqeval.metrics.f1_score(wanted, ours), abs=1e-12)
    assert metrics["precision"] == pytest.approx(seqeval.metrics.precision_score(wanted, ours), abs=1e-12)
    assert metrics["recall"] == pytest.approx(seqeval.metrics.recall_score(wanted, ours), abs=1e-12)
    assert metrics["macro_f1"] == pytest.approx(seqeval.metrics.f1_score(wanted, ours, average="macro"), abs=1e-12)
    assert metrics["accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(wanted, ours), abs=1e-12)
    report = seqeval.metrics.classification_report(wanted, ours, output_dict=True, zero_division=0)
    for record in evaluate_predictions(found, bootstrap=0).per_class:
        assert record["f1"] == pytest.approx(report[record["name"]]["f1-score"]), record
        assert record["support"] == report[record["name"]]["support"]


def test_scores_of_tags_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score

    found = random_tags(("A", "B", "C"), kind=TAGS)
    assert metrics_for(found) == pytest.approx(
        {
            "accuracy": accuracy_score(found.labels, found.predicted),
            "macro_f1": f1_score(found.labels, found.predicted, average="macro"),
        }
    )
    assert row_errors(found).sum() == (found.labels != found.predicted).sum()


def test_which_tags_are_entities():
    assert are_entity_tags(["O", "B-PER", "I-PER"]) and are_entity_tags(["B-X", "L-X", "U-X"])
    assert not are_entity_tags(["NOUN", "VERB"]) and not are_entity_tags(["O"]) and not are_entity_tags(["O", "X-PER"])
    assert [(one.type, one.start, one.end) for one in entities_of(["U-X", "O", "B-Y", "I-Y", "L-Y"])] == [
        ("X", 0, 1),
        ("Y", 2, 5),
    ]


@pytest.mark.parametrize("kind", [ENTITIES, TAGS])
def test_each_statistic_agrees_with_its_metric_on_all_sentences(kind):
    found = random_tags(SCHEMES["iob2"], kind=kind)
    metrics = metrics_for(found)
    for name, statistic in kind_of(found).statistics(found).items():
        assert statistic(np.arange(60)[None])[0] == pytest.approx(metrics[name]), name
    assert kind_of(found).omitted(found, metrics) == {}


@pytest.mark.parametrize("kind", [ENTITIES, TAGS])
def test_an_evaluation_goes_to_json_and_back(kind):
    found = random_tags(SCHEMES["iob2"], right=0.95, kind=kind)
    flat = [word for row in found.words for word in row]
    baseline = word_tag_baseline(flat, found.labels, found)
    evaluation = evaluate_predictions(found, [baseline], bootstrap=200)
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    metric = evaluation.headline[0]
    interval = evaluation.intervals[metric]
    assert interval["low"] < evaluation.metrics[metric] < interval["high"]
    sentence = verdict_sentence(evaluation)
    assert (
        "better than the most-frequent-tag baseline" in sentence
        and "60 test sentences" in sentence
        and "points" in sentence
    )
    assert kind_of(found).test(found, found).p_value == 1
    assert evaluation.mistakes[0]["errors"] >= evaluation.mistakes[-1]["errors"] > 0
    assert bool(evaluation.confusion) == (kind == TAGS)


def test_mistakes_name_what_is_missed_and_what_is_made_up():
    names = SCHEMES["iob2"]
    found = random_tags(names, sentences=1)
    words = (("Anna", "Lee", "left", "Oslo"),)
    given = {
        "words": words,
        "labels": np.array([1, 2, 0, 3]),
        "predicted": np.array([1, 0, 0, 3]),
        "scores": np.ones(4),
    }
    mistake = evaluate_predictions(replace(found, **given), bootstrap=0).mistakes[0]
    assert (mistake["predicted"], mistake["label"], mistake["errors"]) == ("Anna (PER)", "Anna Lee (PER)", 2)


@pytest.mark.parametrize("labelled", [True, False])
def test_predictions_are_written_and_read(tmp_path: Path, labelled):
    found = random_tags(SCHEMES["odd names"])
    found = found if labelled else replace(found, labels=None)
    write_predictions(found, tmp_path / "p.parquet")
    again = read_predictions(tmp_path / "p.parquet")
    assert (again.words, again.texts, again.label_names) == (found.words, found.texts, found.label_names)
    assert np.array_equal(again.predicted, found.predicted) and np.array_equal(again.scores, found.scores)
    assert (again.labels is None) if not labelled else np.array_equal(again.labels, found.labels)


def test_the_baseline_gives_each_word_its_commonest_tag():
    found = random_tags(("A", "B"), sentences=1, kind=TAGS)
    words = ("x", "y", "new")
    found = replace(found, words=(words,), labels=np.array([1, 0, 0]), predicted=np.zeros(3, int), scores=np.ones(3))
    baseline = word_tag_baseline(["x", "x", "x", "y", "y", "z"], np.array([1, 1, 0, 0, 0, 0]), found)
    assert baseline.predictions.predicted.tolist() == [1, 0, 0] and baseline.metrics["accuracy"] == 1
    assert baseline.predictions.scores.tolist() == pytest.approx([2 / 3, 1, 4 / 6])
