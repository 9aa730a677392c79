from __future__ import annotations

import warnings

import numpy as np
import pytest

from launcher.errors import LauncherError
from launcher.evaluation import baselines as b
from launcher.evaluation.baselines import TextRows, fit_baseline

SINGLE = "single_label_classification"
TOPICS = ("cooking", "sailing", "music")
WORDS = {
    "cooking": ["boil the rice", "fry an onion", "add salt and pepper", "bake the bread"],
    "sailing": ["hoist the mainsail", "tack into the wind", "drop the anchor", "steer to port"],
    "music": ["tune the violin", "play a minor chord", "sing the chorus", "keep the rhythm"],
}
CHINESE = {
    "体育": ["球队赢得了比赛", "球员在比赛中进球", "教练对球队很满意", "决赛比赛门票售完"],
    "财经": ["股市今天大幅上涨", "银行下调存款利率", "公司利润增长股票上涨", "央行公布利率决定"],
}


def rows_of(words: dict[str, list[str]], count: int, *, seed: int) -> TextRows:
    generator, names = np.random.default_rng(seed), list(words)
    labels = generator.integers(len(names), size=count)
    return TextRows([str(generator.choice(words[names[k]])) + f" {generator.integers(9)}" for k in labels], labels)


def english(count: int, *, seed: int) -> TextRows:
    return rows_of(WORDS, count, seed=seed)


def fit(name: str, train: TextRows, validation: TextRows | None, test: TextRows, **more):  # type: ignore[no-untyped-def]
    given = {"problem_type": SINGLE, "label_names": TOPICS, **more}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fit_baseline(name, train, validation, test, **given)


def test_tfidf_learns_and_says_what_validation_chose() -> None:
    train, validation, test = english(60, seed=0), english(30, seed=1), english(40, seed=2)
    found = fit("tfidf", train, validation, test)
    assert found.metrics["accuracy"] > 0.95
    assert found.chosen["C"] in b.REGULARIZATION_GRID
    assert found.chosen["validation_metric"] == "accuracy"
    assert found.predictions.scores.sum(axis=1) == pytest.approx(1)
    again = fit("tfidf", train, validation, test)
    assert np.array_equal(found.predictions.scores, again.predictions.scores)


def test_test_labels_choose_nothing() -> None:
    train, validation, test = english(40, seed=0), english(30, seed=1), english(40, seed=2)
    found = fit("tfidf", train, validation, test)
    unlabelled = fit("tfidf", train, validation, TextRows(test.texts, None))
    assert np.array_equal(found.predictions.scores, unlabelled.predictions.scores)
    assert unlabelled.metrics == {}


def test_chinese_without_spaces() -> None:
    names = tuple(CHINESE)
    train, validation, test = (rows_of(CHINESE, n, seed=n) for n in (60, 20, 41))
    held_out = TextRows(["这支球队的球员都参加比赛", "利率上涨以后股票市场如何"], np.array([0, 1]))
    assert fit("tfidf", train, validation, test, label_names=names).metrics["accuracy"] > 0.95
    # Sentences that do not occur in training share only characters with it.
    assert fit("tfidf", train, validation, held_out, label_names=names).metrics["accuracy"] == 1


def test_majority_gives_the_training_shares() -> None:
    train = TextRows(["x"] * 4, np.array([1, 1, 1, 0]))
    found = fit("majority", train, None, TextRows(["y", "z"], np.array([1, 2]), [7, 9]))
    assert found.predictions.scores.tolist() == [[0.25, 0.75, 0]] * 2
    assert found.metrics["accuracy"] == 0.5
    assert found.predictions.row_ids == (7, 9)


@pytest.mark.parametrize("name", list(b.BASELINES))
def test_one_class_only(name: str) -> None:
    found = fit(name, TextRows(["a b", "c d"], np.array([2, 2])), english(5, seed=0), english(5, seed=1))
    assert (found.predictions.scores.argmax(axis=1) == 2).all()


def test_a_class_absent_in_training_gets_no_score() -> None:
    train = english(40, seed=0)
    kept = train.take(np.flatnonzero(train.labels != 1))
    found = fit("tfidf", kept, english(20, seed=1), english(20, seed=2))
    assert (found.predictions.scores[:, 1] == 0).all()
    assert np.isfinite(found.metrics["log_loss"])


@pytest.mark.parametrize("texts", [["", "", ""], ["  ", "\n", "…"], ["!", "?", "."]])
def test_empty_texts(texts: list[str]) -> None:
    rows = TextRows(texts, np.array([0, 1, 1]))
    found = fit("tfidf", rows, rows, rows, label_names=("n", "y"))
    assert found.predictions.scores.shape == (3, 2)
    assert np.isfinite(found.predictions.scores).all()


def test_empty_texts_among_others() -> None:
    train, test = english(30, seed=0), TextRows(["", "boil the rice"], np.array([0, 0]))
    assert fit("tfidf", train, english(10, seed=1), test).predictions.scores.argmax(axis=1)[1] == 0


def test_without_validation_or_test_rows() -> None:
    found = fit("tfidf", english(30, seed=0), None, english(30, seed=1))
    assert found.chosen == {"C": 1.0}
    assert "not chosen" in found.note
    assert fit("tfidf", english(30, seed=0), None, TextRows([], None)).predictions.scores.shape == (0, 3)


def test_multi_label_with_empty_rows_and_constant_labels() -> None:
    single = english(80, seed=0)
    labels = np.eye(3, dtype=np.int64)[single.labels]
    labels[:5] = 0
    labels = np.c_[labels, np.zeros(80, dtype=np.int64), np.ones(80, dtype=np.int64)]
    rows = TextRows(single.texts, labels)
    names = (*TOPICS, "never", "always")
    found = fit("tfidf", rows, rows, rows, problem_type="multi_label_classification", label_names=names)
    assert found.metrics["micro_f1"] > 0.8
    assert found.predictions.scores[:, 3:].tolist() == [[0.0, 1.0]] * 80
    plain = fit("majority", rows, rows, rows, problem_type="multi_label_classification", label_names=names)
    assert plain.predictions.scores[0].tolist() == labels.mean(axis=0).tolist()


def test_regression() -> None:
    rows = english(80, seed=0)
    numbers = TextRows(rows.texts, rows.labels * 1.5)
    found = fit("tfidf", numbers, numbers, numbers, problem_type="regression", label_names=("score",))
    assert found.metrics["spearman"] > 0.8
    mean = fit("majority", numbers, None, numbers, problem_type="regression", label_names=("score",))
    assert mean.metrics["mse"] == pytest.approx(numbers.labels.var())
    flat = TextRows(rows.texts, np.full(80, 2.0))
    same = fit("tfidf", flat, flat, flat, problem_type="regression", label_names=("score",))
    assert same.predictions.scores == pytest.approx(2.0)


def test_binary() -> None:
    train = rows_of(CHINESE, 40, seed=0)
    found = fit("tfidf", train, train, train, problem_type="binary_classification", label_names=("n", "y"))
    assert found.predictions.scores.shape == (40, 2)
    assert found.metrics["f1"] > 0.9


def test_many_rows_are_sampled_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(b, "MOST_TRAIN_ROWS", 20)
    found = fit("tfidf", english(50, seed=0), english(10, seed=1), english(10, seed=2))
    assert "a sample of 20 of 50 training rows" in found.note


def test_errors() -> None:
    with pytest.raises(LauncherError, match="did you mean 'tfidf'"):
        fit("tf-idf", english(5, seed=0), None, english(5, seed=0))
    with pytest.raises(LauncherError, match="labelled training rows"):
        fit("majority", TextRows(["a"], None), None, english(5, seed=0))
