"""report.html of a run: one self-contained page, made from plain values that the run directory holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.evaluation import plots, plots_training
from launcher.evaluation.assessment import Evaluation, evaluate_predictions
from launcher.evaluation.kinds import kind_of
from launcher.evaluation.kinds.base import Words, clean_text
from launcher.evaluation.metric_names import METRICS, greater_is_better
from launcher.evaluation.verdict import (
    Verdict,
    in_points,
    metric_text,
    number,
    p_value,
    strongest_baseline,
    verdict,
    verdict_sentence,
)

__all__ = [
    "Evaluation",
    "ReportFacts",
    "Verdict",
    "evaluate_predictions",
    "render_report",
    "verdict",
    "verdict_sentence",
]

_TEMPLATES = Path(__file__).parent / "templates"
_METRIC_WORDS = {name: metric.words for name, metric in METRICS.items()}


@dataclass(frozen=True)
class ReportFacts:
    """Everything a report shows; plain values, all read from a run directory."""

    run_name: str
    created: str
    """Date and time, as it shall be read."""
    recipe_text: str
    evaluation: Mapping[str, Any] | None = None
    """``Evaluation.to_json()``; None: not evaluated."""
    progress: Sequence[Mapping[str, Any]] = ()
    """Rows of progress.jsonl: step, epoch, loss, learning_rate, ``lr/GROUP``, grad_norm, ``eval_METRIC``."""
    tuning_tables: Sequence[Mapping[str, Any]] = ()
    """In the order of the run: headings (a line for each phase with this table), note, is_probe, and rows of group, depth
    (text), parameters (elements), trainable, lr, weight_decay; and where they apply rank, l1_penalty, l2_penalty."""
    rates: Mapping[str, Any] = field(default_factory=dict)
    """What ``plots_training.draw_rates`` draws: lines, bands and note; and ``used``: the lines of the rates that were used."""
    importance: Mapping[str, Any] = field(default_factory=dict)
    """sentences, and grids: records of name, what, title and the cells of ``plots_training.module_grid``."""
    label_errors: Mapping[str, Any] = field(default_factory=dict)
    """folds, and splits {name: rows, judged, found, by (tfidf or model), shown [lines of label_errors.jsonl]}."""
    samples: Sequence[Mapping[str, Any]] = ()
    """For each sample prompt: prompt, reference, and answers (a list of when, answer, ended), in the order of the run."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """splits {name: rows}, truncated {name: rows cut at max_length}, fingerprint, warnings [text]; any other fact."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions, devices, git revision and so on; mappings and lists may be nested."""
    commands: Sequence[str] = ()
    """What to type to run this again."""
    timing: Mapping[str, Any] = field(default_factory=dict)
    """Durations in seconds by name (``training_seconds`` or ``training``); training is shown first."""
    metric_for_best_model: str = ""
    """Validation metric that chose the checkpoint."""


def render_report(facts: ReportFacts) -> str:
    """Return the page as HTML text; it loads nothing: styles and plots are inside, and everything from data is
    escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "number": number,
        "duration": duration,
        "count": count,
        "rate": rate,
        "words": words,
        "p_value": p_value,
        "plain": plain,
        "breakable": breakable,
    }
    evaluation = Evaluation.from_json(facts.evaluation) if facts.evaluation else None
    page = pages.get_template("report.html.j2").render(
        facts=facts, e=evaluation, verdict=verdict(evaluation), tiles=_tiles(facts, evaluation),
        metric_rows=_metric_rows(evaluation), comparisons=_comparisons(evaluation), plots=_plots(facts, evaluation),
        splits=_splits(facts.data), other_data=_other_data(facts.data), tuning=[_tuning(table) for table in facts.tuning_tables], grids=_grids(facts.importance),
        timing=_timing(facts.timing), comparison_plots=_comparison_plots(evaluation), metrics=METRICS,
        kind=kind_of(evaluation.problem_type).words if evaluation else Words(),
    )  # fmt: skip
    return clean_text(page)


# --- what the page shows -------------------------------------------------------------------------------------------


def _tiles(facts: ReportFacts, e: Evaluation | None) -> list[dict[str, str]]:
    tiles = _metric_tiles(e) if e else []
    if e:
        tiles.append(
            {"name": f"{e.split} {kind_of(e.problem_type).words.unit}s", "value": count(e.rows), "note": _label_note(e)}
        )
    tiles += _trained_tile([table["rows"] for table in facts.tuning_tables if not table.get("is_probe")])
    timing = _timing(facts.timing)
    if timing:
        tiles.append({"name": timing[0][0], "value": duration(timing[0][1]), "note": _steps_note(facts.progress)})
    return tiles


def _trained_tile(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    """Say how much trains: in the run's only table, or in the one in which the most does."""
    counts = [
        (sum(r["parameters"] for r in rows if r["trainable"]), sum(r["parameters"] for r in rows)) for rows in tables
    ]
    if not counts or not max(counts)[1]:
        return []
    trainable, total = max(counts)
    note = f"of {short_count(total)}, {100 * trainable / total:.3g} %" + (", at most" if len(set(counts)) > 1 else "")
    return [{"name": "trained parameters", "value": short_count(trainable), "note": note}]


def _metric_tiles(e: Evaluation) -> list[dict[str, str]]:
    tiles = []
    for name in e.headline:
        if name in e.metrics:
            interval = e.intervals.get(name)
            note = f"{metric_text(name, interval['low'])} to {metric_text(name, interval['high'])}" if interval else ""
            tiles.append({"name": METRICS[name].words, "value": metric_text(name, e.metrics[name]), "note": note})
    reference = strongest_baseline(e, e.headline[0]) if e.headline[0] in e.metrics else None
    if reference:
        differences = next(c["differences"] for c in e.comparisons if c["name"] == reference["name"])
        tiles.append(_difference_tile(e.headline[0], differences[e.headline[0]], reference))
    return tiles


def _difference_tile(metric: str, difference: Mapping[str, float], reference: Mapping[str, Any]) -> dict[str, str]:
    """Say the difference with its sign; the unit goes below, where there is room."""
    estimate, title = difference["estimate"], f"against {reference['title']}"
    value = in_points(metric, estimate) if METRICS[metric].points else metric_text(metric, estimate)
    unit = f"points of {METRICS[metric].words}" if METRICS[metric].points else METRICS[metric].words
    rounds_to_zero = not any(digit in value for digit in "123456789")
    return {"name": title, "value": f"+{value}" if estimate > 0 and not rounds_to_zero else value, "note": unit}


def _label_note(e: Evaluation) -> str:
    return f"{len(e.label_names)} labels" if e.problem_type != "regression" and e.label_names else ""


def _steps_note(progress: Sequence[Mapping[str, Any]]) -> str:
    steps = [row["step"] for row in progress if "step" in row]
    epochs = [row["epoch"] for row in progress if row.get("epoch") is not None]
    if not steps:
        return ""
    return f"{count(max(steps))} steps" + (f", {max(epochs):.3g} epochs" if epochs else "")


def _metric_rows(e: Evaluation | None) -> list[dict[str, Any]]:
    if e is None or not e.metrics:
        return []
    # With one label per row these equal accuracy.
    hidden = (
        {n for n in e.metrics if n.startswith("micro_")} if e.problem_type.startswith(("single", "binary")) else set()
    )
    names = [*e.headline, *(name for name in METRICS if name in e.metrics and name not in e.headline)]
    systems: list[tuple[Mapping[str, float], Mapping[str, Any]]] = [(e.metrics, e.intervals)]
    systems += [(b["metrics"], b["intervals"]) for b in e.baselines]
    return [_metric_row(name, systems, e) for name in names if name in e.metrics and name not in hidden]


def _metric_row(
    name: str, systems: Sequence[tuple[Mapping[str, float], Mapping[str, Any]]], e: Evaluation
) -> dict[str, Any]:
    known = [metrics[name] for metrics, _ in systems if name in metrics]
    # A baseline that always says the classes' shares is well calibrated and of no use: no medal for that.
    best = max(known) if greater_is_better(name) else min(known)
    cells = [
        {
            "value": metric_text(name, metrics[name]) if name in metrics else "–",
            "range": _range(name, intervals.get(name)),
            "best": len(known) > 1 and name != "calibration_error" and metrics.get(name) == best,
        }
        for metrics, intervals in systems
    ]
    return {
        "title": METRICS[name].words,
        "lower": not greater_is_better(name),
        "cells": cells,
        "headline": name in e.headline,
    }


def _range(metric: str, interval: Mapping[str, float] | None) -> str:
    return f"{metric_text(metric, interval['low'])} to {metric_text(metric, interval['high'])}" if interval else ""


def _comparisons(e: Evaluation | None) -> list[dict[str, Any]]:
    if e is None:
        return []
    titles = {b["name"]: b["title"] for b in e.baselines}
    return [
        {"title": titles[c["name"]], **c["test"],
         "differences": [_spoken_difference(name, c["differences"].get(name)) for name in e.headline]}
        for c in e.comparisons
    ]  # fmt: skip


def _spoken_difference(metric: str, d: Mapping[str, float] | None) -> dict[str, Any] | None:
    if d is None:
        return None

    def say(value: float) -> str:
        return in_points(metric, value) if METRICS[metric].points else metric_text(metric, value)

    return {"value": say(d["estimate"]), "range": f"{say(d['low'])} to {say(d['high'])}" if "low" in d else ""}


def _plots(facts: ReportFacts, e: Evaluation | None) -> dict[str, Any]:
    from markupsafe import Markup

    found = {
        "loss": plots.loss_curve(facts.progress),
        "metric": plots.metric_curve(facts.progress, _followed(facts, e), titles=_METRIC_WORDS),
        # Where the plan's groups are known, the rates that were used stand beside the planned ones.
        "rate": "" if facts.rates.get("used") else plots.rate_curve(facts.progress),
        "norm": plots.gradient_norm_curve(facts.progress),
        **_rate_plots(facts.rates),
    } | (_result_plots(e) if e and e.labelled else {})
    # matplotlib escapes the text that it writes; the page must not do so again.
    return {name: Markup(svg) for name, svg in found.items() if svg}


def _rate_plots(rates: Mapping[str, Any]) -> dict[str, str]:
    """Draw the rates as planned and, beside them, as they were used."""
    if not rates:
        return {}
    bands = rates["bands"]
    return {
        "planned": plots_training.rates_svg(rates["lines"], bands, name="planned", note=rates["note"]),
        "used": plots_training.rates_svg(rates["used"], bands, name="used"),
    }


def _grids(importance: Mapping[str, Any]) -> list[dict[str, Any]]:
    from markupsafe import Markup

    drawn = [
        {**grid, "svg": Markup(plots_training.module_grid(grid["cells"], what=grid["what"], name=grid["name"]))}
        for grid in importance.get("grids", ())
    ]
    return [grid for grid in drawn if grid["svg"]]


def _result_plots(e: Evaluation) -> dict[str, str]:
    found = {
        "confusion": plots.confusion_matrix(e.confusion, e.label_names),
        "overview": plots.confusion_overview(e.confusion, e.label_names),
        "reliability": plots.reliability_diagram(e.reliability),
        "scatter": plots.regression_scatter(e.scatter),
        "classes": plots.class_f1_bars(e.per_class),
    }
    return found


def _comparison_plots(e: Evaluation | None) -> list[Any]:
    from markupsafe import Markup

    if e is None or not e.baselines:
        return []
    systems: list[dict[str, Any]] = [{"name": "model", "metrics": e.metrics, "intervals": e.intervals}]
    systems += [{**b, "name": b["title"]} for b in e.baselines]
    found = []
    for name in e.headline:
        able = [s for s in systems if name in s["metrics"]]
        dots = [{"name": s["name"], "value": s["metrics"][name], **s["intervals"].get(name, {})} for s in able]
        found += [Markup(plots.comparison_plot(dots, title=METRICS[name].words))] if name in e.metrics else []
    return found


def _followed(facts: ReportFacts, e: Evaluation | None) -> list[str]:
    chosen = facts.metric_for_best_model.removeprefix("eval_")
    names = dict.fromkeys([chosen] if chosen else [])
    names |= dict.fromkeys(
        name
        for name in (e.headline if e else ("accuracy", "macro_f1", "spearman"))
        if METRICS[name].points or name in ("spearman", "perplexity")
    )
    return [name for name in names if name != "loss"]


def _splits(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    truncated = data.get("truncated") or {}
    return [
        {"name": name, "rows": rows, "truncated": truncated.get(name)}
        for name, rows in (data.get("splits") or {}).items()
    ]


def _other_data(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in data.items()
        if key not in ("splits", "truncated", "warnings") and value not in (None, "", [], {})
    }


def _tuning(table: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a row may leave out, and say which of the rare columns have anything in them."""
    rare = ("rank", "l1_penalty", "l2_penalty")
    rows = [{"depth": None, **dict.fromkeys(rare), **row} for row in table["rows"]]
    columns = {name: any(row[name] for row in rows) for name in rare}
    return {"headings": (), "note": "", "is_probe": False, **table, "rows": rows, "columns": columns}


def _timing(timing: Mapping[str, Any]) -> list[tuple[str, float]]:
    known = [
        (words(re.sub(r"_?seconds$", "", key)) or key, float(value))
        for key, value in timing.items()
        if isinstance(value, (int, float))
    ]
    return sorted(known, key=lambda item: not item[0].startswith("train"))


# --- numbers and names in words ------------------------------------------------------------------------------------


def count(value: Any) -> str:
    """Return a whole number with commas; anything else as it is."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def short_count(value: int) -> str:
    """Return ``value`` with three digits and a unit: 22.7 M."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 43 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def rate(value: float) -> str:
    """Return a learning rate or decay in its shortest form: 3e-4, 0.01."""
    if value == 0:
        return "0"
    text = f"{value:.3g}"
    if abs(value) < 0.01:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return text


def words(name: str) -> str:
    """Return a key as words."""
    return str(name).replace("_", " ").strip()


def breakable(name: str) -> Any:
    """Return a name, escaped, that a browser may break after its underscores, dots, dashes and slashes."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_./-])(?=\w)", r"\1<wbr>", str(escape(name))))


def plain(value: Any) -> str:
    """Return a single value as text for a table of facts."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value) if abs(value) >= 0.001 or value == 0 else rate(value)
    return "none" if value is None else count(value)
