from __future__ import annotations

import time

import numpy as np
import pytest
from made_up import multi, numbers, single
from scipy import stats

from launcher.evaluation import statistics as s
from launcher.evaluation.kinds import kind_of, metrics_for


@pytest.mark.parametrize("p", [single(), single(names=("n", "y")), multi(), numbers()])
def test_statistics_agree_with_the_metrics(p) -> None:  # type: ignore[no-untyped-def]
    metrics, n = metrics_for(p), len(p.row_ids)
    everything = np.tile(np.arange(n), (2, 1))
    for name, statistic in kind_of(p).statistics(p).items():
        assert statistic(everything) == pytest.approx([metrics[name]] * 2), name


def test_f1_of_a_resample_is_that_of_its_rows() -> None:
    from sklearn.metrics import f1_score

    p = single(40, names=[f"c{k}" for k in range(9)], skill=1.0)
    predicted = p.scores.argmax(axis=1)
    rows = np.random.default_rng(0).integers(40, size=(20, 40))
    expected = [f1_score(p.labels[r], predicted[r], average="macro") for r in rows]
    assert s.f1_statistic(predicted, p.labels, classes=9)(rows) == pytest.approx(expected)


def test_interval_of_a_mean_is_near_the_closed_form_and_seeded() -> None:
    right = np.arange(1000) < 700
    interval = s.bootstrap_interval(s.mean_statistic(right), 1000, resamples=4000, seed=1)
    half = 1.96 * (0.7 * 0.3 / 1000) ** 0.5
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.003)
    assert interval == s.bootstrap_interval(s.mean_statistic(right), 1000, resamples=4000, seed=1)
    assert interval != s.bootstrap_interval(s.mean_statistic(right), 1000, resamples=4000, seed=2)


def test_coverage_of_accuracy_and_macro_f1() -> None:
    # Rows come from a known confusion matrix, so the true values are known; 300 sets have a standard error of 1.7 %.
    generator = np.random.default_rng(5)
    joint = np.array([[0.35, 0.05, 0.0], [0.05, 0.25, 0.05], [0.02, 0.03, 0.2]])
    f1 = 2 * np.diag(joint) / (joint.sum(axis=0) + joint.sum(axis=1))
    truth, hits = {"accuracy": np.trace(joint), "macro_f1": f1.mean()}, {"accuracy": 0, "macro_f1": 0}
    for _ in range(300):
        cells = generator.choice(9, size=250, p=joint.ravel())
        labels, predicted = cells // 3, cells % 3
        for name, statistic in (
            ("accuracy", s.mean_statistic(labels == predicted)),
            ("macro_f1", s.f1_statistic(predicted, labels, classes=3)),
        ):
            interval = s.bootstrap_interval(statistic, 250, resamples=300, confidence=0.9)
            assert interval is not None
            hits[name] += interval.low <= truth[name] <= interval.high
    assert all(0.84 <= count / 300 <= 0.96 for count in hits.values()), hits


def test_paired_difference_is_narrower_than_two_intervals() -> None:
    generator = np.random.default_rng(0)
    easy = generator.random(2000) < 0.8
    a, b = easy | (generator.random(2000) < 0.1), easy
    interval = s.paired_bootstrap_difference(s.mean_statistic(a), s.mean_statistic(b), 2000, seed=3)
    assert interval is not None
    assert 0 < interval.low < a.mean() - b.mean() < interval.high
    separate = s.bootstrap_interval(s.mean_statistic(a), 2000, seed=3)
    assert separate is not None
    assert interval.high - interval.low < 0.6 * (separate.high - separate.low)
    draws = [s.resample(s.mean_statistic(x), 2000, resamples=1000, seed=3) for x in (a, b)]
    assert interval == s.percentile_interval(draws[0] - draws[1], confidence=0.95)


def test_undefined_statistics_give_no_interval() -> None:
    flat = s.correlation_statistic(np.zeros(30), np.arange(30.0), ranks=True)
    assert s.bootstrap_interval(flat, 30, resamples=20) is None
    assert s.bootstrap_interval(s.mean_statistic(np.ones(5)), 5, resamples=0) is None


@pytest.mark.parametrize(("a_only", "b_only"), [(0, 0), (1, 0), (5, 5), (3, 17), (120, 80), (606, 1058)])
def test_exact_test_is_the_binomial_test(a_only: int, b_only: int) -> None:
    right_a = np.r_[np.ones(a_only), np.zeros(b_only), np.ones(30), np.zeros(7)].astype(bool)
    right_b = np.r_[np.zeros(a_only), np.ones(b_only), np.ones(30), np.zeros(7)].astype(bool)
    test = s.exact_paired_test(right_a, right_b)
    assert (test.a_only, test.b_only) == (a_only, b_only)
    expected = stats.binomtest(a_only, a_only + b_only, 0.5).pvalue if a_only + b_only else 1.0
    assert test.p_value == pytest.approx(expected, rel=1e-9)
    mirrored = s.exact_paired_test(right_b, right_a)
    assert (mirrored.a_only, mirrored.p_value) == (b_only, test.p_value)


def test_exact_test_by_hand() -> None:
    # One row of four: P(0 or 4 of 4) = 2 / 16 for none of four.
    assert s.exact_paired_test(np.ones(4, bool), np.zeros(4, bool)).p_value == pytest.approx(2 / 16)


def test_exact_test_keeps_its_level() -> None:
    generator = np.random.default_rng(1)
    tests = [s.exact_paired_test(*(generator.random((2, 200)) < 0.7)) for _ in range(1000)]
    assert np.mean([t.p_value < 0.05 for t in tests]) < 0.06


def test_sign_test_leaves_out_ties() -> None:
    test = s.sign_test(np.array([0.1, -0.2, 1.0, 2.0, 0.5]), np.array([-0.5, 0.4, -1.0, 1.0, 3.0]))
    assert (test.a_only, test.b_only) == (3, 1)
    assert test.p_value == pytest.approx(stats.binomtest(3, 4, 0.5).pvalue)


def test_a_thousand_resamples_of_77_classes_take_seconds() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(77, size=4000)
    predicted = np.where(generator.random(4000) < 0.8, labels, generator.integers(77, size=4000))
    start = time.process_time()
    s.bootstrap_interval(s.mean_statistic(labels == predicted), 4000)
    s.bootstrap_interval(s.f1_statistic(predicted, labels, classes=77), 4000)
    assert time.process_time() - start < 3
