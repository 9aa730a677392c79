"""One plain sentence: is the model better than the strongest baseline, by how much, how sure is that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from launcher.evaluation.assessment import Evaluation
from launcher.evaluation.kinds import kind_of
from launcher.evaluation.metric_names import METRICS, greater_is_better


@dataclass(frozen=True)
class Verdict:
    """``state`` colours the page; ``sentence`` is what it says first."""

    state: Literal["better", "worse", "no_difference", "unknown"]
    sentence: str


def verdict_sentence(evaluation: Evaluation | Mapping[str, Any] | None) -> str:
    """Return the one sentence that a report says first; see ``verdict``."""
    return verdict(evaluation).sentence


def verdict(evaluation: Evaluation | Mapping[str, Any] | None) -> Verdict:
    """Judge the model against the baseline with the best first headline metric.

    One label per row: by McNemar's exact test. Otherwise by whether the interval of the difference contains 0, and by
    the exact test where there are no intervals. The level is 1 - confidence. None stands for a run without evaluation.
    """
    if evaluation is None:
        return Verdict("unknown", "The model has not been evaluated, so how good it is is not known.")
    e = evaluation if isinstance(evaluation, Evaluation) else Evaluation.from_json(evaluation)
    metric = next((name for name in e.headline if name in e.metrics), None)
    if not e.labelled:
        return Verdict("unknown", f"How good the model is cannot be said: the {_count(e)} have no labels.")
    if metric is None:
        return Verdict(
            "unknown", f"How good the model is cannot be said: no headline metric is defined on the {_count(e)}."
        )
    reference = strongest_baseline(e, metric)
    if reference is None:
        return Verdict("unknown", _alone(e, metric))
    return _against(e, metric, reference)


def strongest_baseline(e: Evaluation, metric: str) -> dict[str, Any] | None:
    """Return the record of the baseline that is best by ``metric``; None where none has it."""
    sign = 1 if greater_is_better(metric) else -1
    able = [b for b in e.baselines if metric in b["metrics"]]
    return max(able, key=lambda b: sign * b["metrics"][metric], default=None)


def _alone(e: Evaluation, metric: str) -> str:
    why = "no baseline was run" if not e.baselines else "no baseline has this metric"
    return (
        f"The model reaches {METRICS[metric].words} {_value(e, metric)} on {_count(e)}; "
        f"{why}, so whether a simpler model would do as well is not known.{_caution(e)}"
    )


def _against(e: Evaluation, metric: str, reference: dict[str, Any]) -> Verdict:
    comparison = next(c for c in e.comparisons if c["name"] == reference["name"])
    difference = comparison["differences"][metric]
    state = _state(e, metric, comparison)
    evidence = (
        f"{METRICS[metric].words} {_value(e, metric)} against {metric_text(metric, reference['metrics'][metric])}, "
        f"a difference of {_difference(metric, difference)} ({_certainty(e, comparison)})."
    )
    return Verdict(
        state, f"{_opening(state, reference)}: {evidence}{_second(e, state, metric, comparison)}{_caution(e)}"
    )


def _opening(state: str, reference: dict[str, Any]) -> str:
    name = f"the {reference['title']} baseline"
    if state == "better":
        return f"The model is better than {name}"
    if state == "worse":
        what = {
            "tfidf": "a linear model on word and character counts",
            "majority": "always giving the same answer",
            "overlap": "words near those that question and text share",
            "word_tag": "the tag that each word has most often",
            "usual_pixels": "the class that each place has most often",
            "copy": "the text as it was read",
            "nearest": "what train has for the text that is most alike",
            "longer": "which prefers the longer answer",
            "lead": "the text's first sentences",
            "unigram": "how often each token occurs",
            "pixels": "a linear model on the pixels of small copies",
            "typical_boxes": "the boxes that are usual in train, the same for every image",
        }
        return f"The model is worse than {name}, {what.get(reference['name'], 'which is simpler')}"
    return f"No clear difference between the model and {name} was found"


def _state(e: Evaluation, metric: str, comparison: dict[str, Any]) -> Literal["better", "worse", "no_difference"]:
    difference, level = comparison["differences"][metric], 1 - e.confidence
    gain = difference["estimate"] if greater_is_better(metric) else -difference["estimate"]
    if metric == "accuracy" or "low" not in difference:
        sure = comparison["test"]["p_value"] < level
        if metric != "accuracy":
            wins = comparison["test"]["a_only"] - comparison["test"]["b_only"]
            sure = sure and (wins > 0) == (gain > 0)
    else:
        sure = difference["low"] > 0 or difference["high"] < 0
    if not sure or gain == 0:
        return "no_difference"
    return "better" if gain > 0 else "worse"


def _certainty(e: Evaluation, comparison: dict[str, Any]) -> str:
    test = comparison["test"]
    what = kind_of(e.problem_type).words.certainty.format(a=f"{test['a_only']:,}", b=f"{test['b_only']:,}")
    return f"{what}, {p_value(test['p_value'])}, {_count(e)}"


def _second(e: Evaluation, state: str, metric: str, comparison: dict[str, Any]) -> str:
    """Return a warning where another headline metric clearly says the opposite."""
    for other in e.headline:
        d = comparison["differences"].get(other, {})
        if other == metric or "low" not in d or state == "no_difference":
            continue
        sign = 1 if greater_is_better(other) else -1
        gains = sorted((sign * d["low"], sign * d["high"]))
        if (state == "better" and gains[1] < 0) or (state == "worse" and gains[0] > 0):
            word = "worse" if state == "better" else "better"
            return f" By {METRICS[other].words}, though, it is {word}: a difference of {_difference(other, d)}."
    return ""


def _caution(e: Evaluation) -> str:
    if e.split == "test":
        return ""
    return f" These are {e.split} {kind_of(e.problem_type).words.unit}s, which helped to choose the model: the numbers are a little too good."


# --- numbers in words ----------------------------------------------------------------------------------------------


def _count(e: Evaluation) -> str:
    return f"{e.rows:,} {e.split} {kind_of(e.problem_type).words.unit}{'' if e.rows == 1 else 's'}"


def _value(e: Evaluation, metric: str) -> str:
    interval = e.intervals.get(metric)
    around = f" [{metric_text(metric, interval['low'])}, {metric_text(metric, interval['high'])}]" if interval else ""
    return metric_text(metric, e.metrics[metric]) + around


def _difference(metric: str, d: Mapping[str, float]) -> str:
    if METRICS[metric].points:
        interval = f" [{in_points(metric, d['low'])}, {in_points(metric, d['high'])}]" if "low" in d else ""
        return f"{in_points(metric, d['estimate'])} points{interval}"
    interval = f" [{metric_text(metric, d['low'])}, {metric_text(metric, d['high'])}]" if "low" in d else ""
    return f"{metric_text(metric, d['estimate'])}{interval}"


def number(value: float) -> str:
    """Return ``value`` with three decimals, or three significant digits where it is large or tiny; a true minus
    sign.
    """
    size = abs(value)
    if size < 1e-12 or 0.001 <= size < 100:
        text = f"{value:.3f}"
    else:
        text = f"{value:,.0f}" if 100 <= size < 1e6 else f"{value:.2e}"
    return text.replace("-", "−") if not text.startswith("-0.000") else "0.000"


def metric_text(name: str, value: float) -> str:
    """Return a metric's value: three decimals, one for a score of 0 to 100, and significant digits for those that carry the labels' unit."""
    return number(value) if METRICS[name].has_unit else signed(value, 1 if METRICS[name].points == 1 else 3)


def in_points(name: str, difference: float) -> str:
    """Return a difference of a metric that is said in points, with one decimal."""
    return signed(METRICS[name].points * difference, 1)


def signed(value: float, decimals: int) -> str:
    """Return ``value`` with a true minus sign, and no minus for zero."""
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def p_value(p: float) -> str:
    """Return ``p`` for a sentence: two digits down to 0.001, then one digit and a power of ten."""
    if p < 1e-300:
        return "p < 1e-300"
    if p < 0.001:
        mantissa, exponent = f"{p:.0e}".split("e")
        return f"p = {mantissa}e{int(exponent)}"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {math.floor(p * 100 + 0.5) / 100:.2f}"
