"""Texts that were written: the scores are those of sacreBLEU and rouge-score called directly, on all rows and on any resample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from launcher.contracts import Baseline, Predictions
from launcher.errors import DataError
from launcher.evaluation.assessment import evaluate_predictions
from launcher.evaluation.baselines_generated import (
    first_sentences,
    generated_baseline,
    nearest_targets,
    usual_sentences,
)
from launcher.evaluation.generation import bleu_tokens, rouge_of_each
from launcher.evaluation.kinds import kind_of, metrics_for
from launcher.evaluation.predictions_io import read_predictions, write_predictions
from launcher.evaluation.verdict import verdict_sentence

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "mat,",
    "hat.",
    "quickly!",
    "Blue",
    "O'Neil",
    "well-known",
    "12.5",
    "and",
]


def texts(number: int, *, seed: int, least: int = 3) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(least, 14)))) for _ in range(number)]


def written(problem: str = "translation", *, rows: int = 40, several: bool = True, **changes: Any) -> Predictions:
    """Answers that are half of the first reference and half something else; every third row has two references."""
    firsts, seconds, other = texts(rows, seed=1), texts(rows, seed=2), texts(rows, seed=3)
    answers = [a[: len(a) // 2] + b[len(b) // 2 :] for a, b in zip(firsts, other, strict=True)]
    references = [
        (a, b) if several and i % 3 == 0 else (a,) for i, (a, b) in enumerate(zip(firsts, seconds, strict=True))
    ]
    made = Predictions(
        problem, np.ones(rows), np.array([len(r) for r in references]), (), tuple(f"source {i}" for i in range(rows)),
        tuple(range(rows)), answers=tuple(answers), references=tuple(references),
    )  # fmt: skip
    return replace(made, **changes)


def streams(references: tuple[tuple[str, ...], ...]) -> list[list[str | None]]:
    return [[row[i] if i < len(row) else None for row in references] for i in range(max(map(len, references)))]


def test_bleu_and_chrf_are_those_of_sacrebleu():
    predictions = written()
    found = metrics_for(predictions)
    assert found["bleu"] == sacrebleu.corpus_bleu(list(predictions.answers), streams(predictions.references)).score
    assert found["chrf"] == sacrebleu.corpus_chrf(list(predictions.answers), streams(predictions.references)).score
    assert 5 < found["bleu"] < 95 and found["cut_off"] == 0


def test_a_resample_has_the_score_of_its_rows():
    predictions = written()
    statistics = kind_of(predictions).statistics(predictions)
    drawn = np.random.default_rng(0).integers(40, size=(5, 40))
    for name, of in (("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)):
        found = statistics[name](drawn)
        for row, score in zip(drawn, found, strict=True):
            references = tuple(predictions.references[i] for i in row)
            assert score == pytest.approx(
                of([predictions.answers[i] for i in row], streams(references)).score, abs=1e-9
            )


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge_is_that_of_rouge_score(name):
    predictions = written("summarization")
    scorer = RougeScorer([name], use_stemmer=True)
    rows = zip(predictions.references, predictions.answers, strict=True)
    wanted = [max(scorer.score(r, answer)[name].fmeasure for r in references) for references, answer in rows]
    assert rouge_of_each(predictions)[name].tolist() == wanted
    assert metrics_for(predictions)[name] == pytest.approx(np.mean(wanted)) and 0.1 < np.mean(wanted) < 0.95


def test_languages_without_spaces_and_other_scripts_are_not_scored_as_nothing():
    chinese, japanese, russian = ("今天天气很好",), ("今日はとても良い天気です",), ("сегодня хорошая погода",)
    assert [bleu_tokens([r]) for r in (chinese, japanese, russian, ("fine weather today",))] == [
        "zh", "char", "13a", "13a",
    ]  # fmt: skip
    for references, answer in (
        (chinese, "今天天气不好"),
        (japanese, "今日は良い天気です"),
        (russian, "сегодня погода плохая"),
    ):
        one = written("summarization", rows=1, answers=(answer,), references=(references,), labels=np.ones(1))
        assert 0.3 < metrics_for(one)["rouge1"] < 1
        assert not RougeScorer(["rouge1"]).score(references[0], answer)["rouge1"].fmeasure
        assert metrics_for(replace(one, problem_type="translation"))["chrf"] > 10
    two = written(rows=1, answers=("今天天气不好",), references=(chinese,), labels=np.ones(1))
    assert metrics_for(two)["bleu"] == sacrebleu.corpus_bleu(["今天天气不好"], [list(chinese)], tokenize="zh").score


@pytest.mark.parametrize("problem", ["translation", "summarization"])
def test_the_better_system_wins_and_the_verdict_says_by_what(problem):
    predictions = written(problem)
    right = replace(predictions, answers=tuple(r[0] for r in predictions.references))
    kind = kind_of(problem)
    test = kind.test(right, predictions)
    assert test.a_only > 30 and test.b_only == 0 and test.p_value < 1e-6
    baseline = Baseline("copy", predictions, metrics_for(predictions))
    evaluation = evaluate_predictions(right, [baseline], bootstrap=50)
    sentence = verdict_sentence(evaluation)
    name = "BLEU 100.0 [100.0, 100.0]" if problem == "translation" else "ROUGE-L 1.000 [1.000, 1.000]"
    assert sentence.startswith("The model is better than the copied-text baseline: " + name) and " points [" in sentence
    assert evaluation.mistakes[0]["score"] == kind.of_each(right).min()
    worst = evaluate_predictions(predictions).mistakes[0]
    assert worst["scored"].split()[0] in ("chrF", "ROUGE-L") and worst["label"] and worst["predicted"]


@pytest.mark.parametrize("problem", ["translation", "summarization"])
def test_predictions_go_to_a_file_and_back(tmp_path: Path, problem):
    predictions = written(problem, scores=np.array([1.0, 0.0] * 20))
    write_predictions(predictions, tmp_path / "p.parquet")
    again = read_predictions(tmp_path / "p.parquet")
    assert (again.answers, again.references) == (predictions.answers, predictions.references)
    assert metrics_for(again) == metrics_for(predictions) and metrics_for(again)["cut_off"] == 0.5
    write_predictions(replace(predictions, labels=None, references=((),) * 40), tmp_path / "u.parquet")
    unlabelled = read_predictions(tmp_path / "u.parquet")
    assert unlabelled.labels is None
    with pytest.raises(DataError, match="no labels"):
        metrics_for(unlabelled)


def test_rows_say_whether_a_text_ended():
    kind, predictions = kind_of("translation"), written(scores=np.array([1.0, 0.0] * 20))
    first, second = kind.rows(predictions)[:2]
    assert (first["ended"], second["ended"]) == (True, False)
    assert kind.line(first) == first["prediction"] and kind.line(second).endswith(" …")
    head, *rest = kind.table([first, second])
    assert head == ["text", "prediction", "ended"] and rest[0][1] == first["prediction"]


# --- baselines -------------------------------------------------------------------------------------------------------


def test_copying_nearest_and_lead():
    predictions = written(texts=tuple(r[0] for r in written().references))
    copied = generated_baseline("copy", ["x"], ["y"], predictions)
    assert copied.metrics["bleu"] == pytest.approx(100) and copied.predictions.answers == predictions.texts
    found = nearest_targets(["a red house", "the green tree", "a big dog"], ["A", "B", "C"], ["green trees", "dogs"])
    assert found == ["B", "C"]
    assert nearest_targets(["", " "], ["A", "B"], ["green"]) == ["A"]
    assert usual_sentences(["One. Two.", "One! Two? Three", "One two."]) == 2
    assert first_sentences("It is 3.5 km. Go! Now\nthen", 2) == "It is 3.5 km. Go!"
    lead = generated_baseline("lead", ["x"], ["One. Two."], replace(predictions, texts=("A b. C d. E.",) * 40))
    assert lead.predictions.answers[0] == "A b. C d." and "2 sentences" in lead.note


def test_baselines_of_rows_without_references_have_no_metrics():
    unlabelled = written(labels=None, references=((),) * 40)
    assert generated_baseline("copy", ["x"], ["y"], unlabelled).metrics == {}
