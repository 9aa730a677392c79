"""Answers by SQuAD's rules: the official evaluation, written down once more here, on the same predictions."""

from __future__ import annotations

import collections
import re
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from launcher.contracts import Predictions
from launcher.evaluation.answers import ANSWERS, normalized, row_scores
from launcher.evaluation.assessment import Evaluation, evaluate_predictions
from launcher.evaluation.baselines_tokens import overlap_baseline
from launcher.evaluation.kinds import kind_of, metrics_for
from launcher.evaluation.predictions_io import read_predictions, write_predictions
from launcher.evaluation.verdict import verdict_sentence

WORDS = ["the", "a", "An", "red", "Red,", "house", "house.", "of", "7", "seven", "-", "É", "theatre", "(no)"]


# The rules as the evaluation script of SQuAD 2.0 states them, step by step.


def official_tokens(text: str) -> list[str]:
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split()).split()


def official_f1(wanted: str, found: str) -> float:
    gold, ours = official_tokens(wanted), official_tokens(found)
    same = sum((collections.Counter(gold) & collections.Counter(ours)).values())
    if not gold or not ours:
        return float(gold == ours)
    if not same:
        return 0.0
    precision, recall = same / len(ours), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def random_answers(*, rows: int = 200, seed: int = 0, right: float = 0.3) -> Predictions:
    rng = np.random.default_rng(seed)

    def phrase() -> str:
        return " ".join(rng.choice(WORDS, int(rng.integers(1, 5))))

    references = [tuple(phrase() for _ in range(int(rng.integers(0, 4)))) for _ in range(rows)]
    answers = [
        refs[0] if refs and rng.random() < right else "" if rng.random() < 0.2 else phrase() for refs in references
    ]
    counts = np.array([len(refs) for refs in references])
    texts = tuple(f"question {row}" for row in range(rows))
    return Predictions(
        ANSWERS,
        rng.random(rows),
        counts,
        (),
        texts,
        tuple(range(rows)),
        answers=tuple(answers),
        references=tuple(references),
    )


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_the_official_rules(seed):
    found = random_answers(seed=seed)
    exact, f1 = [], []
    for answer, references in zip(found.answers, found.references, strict=True):
        gold = [reference for reference in references if official_tokens(reference)] or [""]
        exact.append(max(float(official_tokens(one) == official_tokens(answer)) for one in gold))
        f1.append(max(official_f1(one, answer) for one in gold))
    assert row_scores(found)[0].tolist() == exact and row_scores(found)[1].tolist() == pytest.approx(f1)
    assert metrics_for(found) == pytest.approx({"exact_match": np.mean(exact), "f1": np.mean(f1)})
    for name, statistic in kind_of(found).statistics(found).items():
        assert statistic(np.arange(len(exact))[None])[0] == pytest.approx(metrics_for(found)[name])


def test_articles_punctuation_and_case_do_not_count():
    assert normalized("The  Theatre, of AN Era!") == "theatre of era"


@pytest.mark.parametrize("labelled", [True, False])
def test_predictions_are_written_and_read(tmp_path: Path, labelled):
    found = random_answers() if labelled else replace(random_answers(), labels=None, references=((),) * 200)
    write_predictions(found, tmp_path / "p.parquet")
    again = read_predictions(tmp_path / "p.parquet")
    assert (again.answers, again.references, again.texts) == (found.answers, found.references, found.texts)
    assert (again.labels is None) if not labelled else np.array_equal(again.labels, found.labels)


def test_an_evaluation_says_how_sure_it_is_and_names_the_worst():
    found = random_answers(right=1.0)
    texts = tuple(f"Where is it? ⏎ it is in {refs[0] if refs else 'no'} place" for refs in found.references)
    found = replace(found, texts=texts)
    baseline = overlap_baseline([text.partition(" ⏎ ")[2] for text in texts], found)
    evaluation = evaluate_predictions(found, [baseline], bootstrap=200)
    assert Evaluation.from_json(evaluation.to_json()) == evaluation and evaluation.headline == ["f1", "exact_match"]
    assert "better than the word-overlap baseline: F1" in verdict_sentence(evaluation)
    assert "exact McNemar test on exact matches" in verdict_sentence(
        evaluation
    ) and "200 test questions" in verdict_sentence(evaluation)
    scores = [mistake["f1"] for mistake in evaluation.mistakes]
    assert scores == sorted(scores) and len(scores) <= 25


def test_the_baseline_answers_beside_the_words_of_the_question():
    context = "The old mill burnt down. In 1861 the tall tower of Arnsberg was built by Jan Weiss. Nobody lives there."
    found = replace(
        random_answers(rows=1), texts=(f"Who built the tower of Arnsberg? ⏎ {context}",), references=(("Jan Weiss",),)
    )
    (answer,) = overlap_baseline([context], found).predictions.answers
    assert answer in context and "Arnsberg" not in answer
    assert overlap_baseline([""], replace(found, texts=("Who? ⏎ ",))).predictions.answers == ("",)
