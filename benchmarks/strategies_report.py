"""What the strategies benchmark found: intervals, exact paired tests, tables and pictures, of a whole grid or of a part of one."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
from matplotlib.ticker import NullFormatter
from strategies_cells import ARMS, TUNING_SEED, DataSet, Settings, chosen_rate, read_cells, total_cells, unpack_counts

from launcher.evaluation.statistics import percentile_interval
from launcher.evaluation.svg import BLUE, FONT_SIZE, INK, VERMILLION, figure, standalone, to_svg, width_of

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "guide" / "strategies-measured.md"
PICTURES = ROOT / "docs" / "pictures"
RESAMPLES = 4000

AGAINST_FULL = tuple((arm, "full") for arm in ARMS if arm != "full")
ABOUT_RANKS = (
    ("discriminative", "lora"),
    ("discriminative", "permuted"),
    ("discriminative", "lora-longer"),
    ("adalora", "lora"),
)
FAMILIES: Mapping[str, tuple[tuple[str, str], ...]] = {"against-full": AGAINST_FULL, "about-ranks": ABOUT_RANKS}
"""Comparisons that were decided on before the runs; each family has its own correction for their number."""

_MARK = re.compile(r"(<!-- measured: (?P<name>[\w-]+) -->\n).*?(<!-- end of measured -->)", re.DOTALL)


# --- statistics ------------------------------------------------------------------------------------------------------


def sign_flip_test(differences: Sequence[float]) -> float:
    """Return the exact two-sided p-value of the mean of paired differences: the share of all 2^n choices of their signs whose
    mean is at least as far from zero.

    If the two arms were equally good, each difference would be as likely with the other sign. With six pairs it is at least 2/64.
    Source: Fisher 1935, "The Design of Experiments", section 21; Pitman 1937.
    """
    values = np.asarray(differences, dtype=np.float64)
    signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    sums = np.abs(signs @ values)
    return float((sums >= abs(values.sum()) - 1e-12).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number. Source: Holm 1979, Scandinavian Journal of Statistics 6."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    result, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, p_values[place] * (len(p_values) - rank)))
        result[place] = least
    return result


def resampled_means(counts: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the mean metric over runs for draws of runs and of test rows with replacement, float64 [resamples].

    Args:
        counts: int [runs, rows, 3], labels found, predicted and there.
        seed: equal numbers of runs and rows get the same draws for the same seed, so results of two arms can be subtracted.
    """
    generator = np.random.default_rng(seed)
    runs, rows, _ = counts.shape
    times = generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(np.float64)
    weights = generator.multinomial(runs, np.full(runs, 1 / runs), size=resamples) / runs
    sums = np.einsum("tr,src->tsc", times, counts.astype(np.float64), optimize=True)
    metric = 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)
    return np.asarray((metric * weights).sum(axis=1))


# --- summary ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """The rows of a grid, as far as it is."""

    settings: Settings
    rows: Sequence[Mapping[str, Any]]
    memory: Sequence[Mapping[str, Any]] = ()

    def runs(self, data: str, arm: str) -> dict[int, Mapping[str, Any]]:
        """Return seed -> row of the runs that are reported of an arm."""
        rate = chosen_rate(self.settings, self.rows, data=data, arm=arm)
        found = [row for row in self.rows if (row["data"], row["arm"], row["rate"]) == (data, arm, rate)]
        return {
            row["seed"]: row
            for row in sorted(found, key=lambda row: row["seed"])
            if row["seed"] != TUNING_SEED and "test" in row
        }


def summarize(found: Results) -> dict[str, Any]:
    """Return everything that the report says, as plain values."""
    settings = found.settings
    sets = {data.name: _set_summary(found, data) for data in settings.sets}
    return {
        "settings": {data.name: settings.key(data.name) for data in settings.sets},
        "cells": len(found.rows),
        "cells_in_all": total_cells(settings),
        "sets": sets,
        "both": {family: _both(sets, pairs) for family, pairs in FAMILIES.items()},
    }


def _set_summary(found: Results, data: DataSet) -> dict[str, Any]:
    arms = {arm: summary for arm in ARMS if (summary := _arm_summary(found, data, arm))}
    return {
        "metric": data.metric,
        "arms": arms,
        "comparisons": {family: _comparisons(found, data, pairs) for family, pairs in FAMILIES.items()},
    }


def _arm_summary(found: Results, data: DataSet, arm: str) -> dict[str, Any]:
    settings, rates = found.settings, found.settings.rates_for(data.name)
    rate, runs = chosen_rate(settings, found.rows, data=data.name, arm=arm), found.runs(data.name, arm)
    if rate is None or not runs:
        return {}
    rows = list(runs.values())
    tests = [row["test"] for row in rows]
    interval = percentile_interval(resampled_means(_counts(rows)), confidence=0.95)
    memory = [row for row in found.memory if row["arm"] == arm]
    summary = {
        "rate": rate,
        "rate_is_at_border": rate in (min(rates), max(rates)),
        "tuning": {f"{row['rate']:g}": row.get("validation") for row in found.rows
                   if (row["data"], row["arm"], row["seed"]) == (data.name, arm, TUNING_SEED)},
        "seeds": list(runs),
        "tests": tests,
        "mean": fmean(tests),
        "deviation": stdev(tests) if len(tests) > 1 else None,
        "interval": [interval.low, interval.high] if interval else None,
        "log_loss": fmean(row["test_log_loss"] for row in rows),
        "trainable": round(median(row["trainable"] for row in rows)),
        "steps": rows[0]["steps"],
        "cpu_seconds": median(row["cpu_seconds"] for row in rows),
        "seconds": median(row["seconds"] for row in rows),
        "probe_cpu_seconds": median(row["probe_cpu_seconds"] for row in rows),
        "peak_mib": memory[0]["peak_mib"] if memory else None,
        "training_mib": memory[0]["peak_mib"] - memory[0]["before_mib"] if memory else None,
    }  # fmt: skip
    if all("is_uniform" in row for row in rows):
        summary["uniform_seeds"] = [row["seed"] for row in rows if row["is_uniform"]]
        summary["effective_shares"] = [row["effective_share"] for row in rows]
    return summary


def _counts(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.stack([unpack_counts(row["counts"]) for row in rows])


def _comparisons(found: Results, data: DataSet, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return what is known of each pair of arms on one set; those without common seeds are left out."""
    result = []
    for a, b in pairs:
        runs = found.runs(data.name, a), found.runs(data.name, b)
        seeds = [seed for seed in runs[0] if seed in runs[1]]
        if not seeds:
            continue
        rows = [[part[seed] for seed in seeds] for part in runs]
        differences = [x["test"] - y["test"] for x, y in zip(*rows, strict=True)]
        draws = resampled_means(_counts(rows[0])) - resampled_means(_counts(rows[1]))
        interval = percentile_interval(draws, confidence=0.95)
        assert interval is not None
        result.append(
            {"a": a, "b": b, "seeds": seeds, "differences": differences, "mean": fmean(differences),
             "interval": [interval.low, interval.high], "p": sign_flip_test(differences)}
        )  # fmt: skip
    return _with_holm(result)


def _both(sets: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the exact tests over the pairs of all sets together, where every set has them."""
    family = next(name for name, known in FAMILIES.items() if known is pairs)
    result = []
    for a, b in pairs:
        parts = [c for found in sets.values() for c in found["comparisons"][family] if (c["a"], c["b"]) == (a, b)]
        if len(parts) == len(sets):
            differences = [value for part in parts for value in part["differences"]]
            result.append(
                {
                    "a": a,
                    "b": b,
                    "mean": fmean(differences),
                    "pairs": len(differences),
                    "p": sign_flip_test(differences),
                }
            )
    return _with_holm(result)


def _with_holm(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    corrected = holm([found["p"] for found in comparisons])
    return [{**found, "p_holm": p} for found, p in zip(comparisons, corrected, strict=True)]


# --- tables ----------------------------------------------------------------------------------------------------------


def arms_table(summary: Mapping[str, Any], name: str) -> str:
    """Return the table of a set's arms."""
    found = summary["sets"][name]
    head = ["arm", f"test {_title(found['metric'])}, mean [95 % interval]", "deviation of seeds", "rate", "trainable parameters",
            "CPU-seconds", "memory, MiB"]  # fmt: skip
    rows = [
        [
            f"`{arm}`",
            f"{_percent(s['mean'])} [{_percent(s['interval'][0])}, {_percent(s['interval'][1])}]"
            + _incomplete(s["seeds"]),
            "" if s["deviation"] is None else _percent(s["deviation"]),
            f"{s['rate']:g}" + (" (border)" if s["rate_is_at_border"] else ""),
            f"{s['trainable']:,}",
            f"{s['cpu_seconds']:.0f}" + (f" ({s['probe_cpu_seconds']:.0f} probe)" if s["probe_cpu_seconds"] else ""),
            "" if s["training_mib"] is None else f"{s['training_mib']:,}",
        ]
        for arm, s in found["arms"].items()
    ]
    return _table(head, rows)


def arms_part(summary: Mapping[str, Any], name: str) -> str:
    """Return the table of a set's arms and its two pictures, or that nothing is measured yet."""
    if name not in _measured(summary):
        return "No run of this set is done yet."
    title = _title(summary["sets"][name]["metric"])
    return (
        f"{arms_table(summary, name)}\n\n![Test {title} of each arm](../pictures/strategies-{name}.svg)\n\n"
        f"![Trainable parameters against test {title}](../pictures/strategies-{name}-size.svg)"
    )


def _measured(summary: Mapping[str, Any]) -> list[str]:
    return [name for name, found in summary["sets"].items() if found["arms"]]


def comparisons_table(summary: Mapping[str, Any], family: str) -> str:
    """Return the table of a family of comparisons: each set, and both together."""
    head = ["comparison"]
    for name in summary["sets"]:
        head += [f"{name}: difference [95 % interval]", "p (Holm)"]
    rows = []
    for a, b in FAMILIES[family]:
        row = [f"`{a}` − `{b}`"]
        for found in summary["sets"].values():
            c = next((c for c in found["comparisons"][family] if (c["a"], c["b"]) == (a, b)), None)
            row += ["", ""] if c is None else [_difference(c), _p(c)]
        both = next((c for c in summary["both"][family] if (c["a"], c["b"]) == (a, b)), None)
        rows.append([*row, "" if both is None else _p(both)])
    return _table([*head, "both sets: p (Holm)"], rows)


def tuning_table(summary: Mapping[str, Any], settings: Settings) -> str:
    """Return what each rate gave on validation."""
    head = ["arm", *(f"{name}, {rate:g}" for name in summary["sets"] for rate in settings.rates_for(name))]
    rows = []
    for arm in ARMS:
        row = [f"`{arm}`"]
        for name, found in summary["sets"].items():
            arm_found = found["arms"].get(arm)
            for rate in settings.rates_for(name):
                value = arm_found["tuning"].get(f"{rate:g}") if arm_found else None
                text = "diverged" if arm_found and value is None else "" if value is None else _percent(value)
                row.append(f"**{text}**" if arm_found and arm_found["rate"] == rate else text)
        rows.append(row)
    return _table(head, rows)


def progress_line(summary: Mapping[str, Any]) -> str:
    """Return how much of the grid there is."""
    done, wanted = summary["cells"], summary["cells_in_all"]
    return f"{done} of {wanted} runs are done" + (
        "." if done >= wanted else ": these tables are of a part of the grid."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _difference(c: Mapping[str, Any]) -> str:
    low, high = c["interval"]
    return f"{100 * c['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]" + _incomplete(c["seeds"])


def _p(c: Mapping[str, Any]) -> str:
    return f"{c['p']:.3f} ({c['p_holm']:.2f})" if c["p"] >= 0.001 else f"{c['p']:.4f} ({c['p_holm']:.3f})"


def _incomplete(seeds: Sequence[int]) -> str:
    return "" if len(seeds) >= 6 else f" ({len(seeds)} seeds)"


def _title(metric: str) -> str:
    return {"micro_f1": "micro F1", "accuracy": "accuracy"}.get(metric, metric)


# --- pictures --------------------------------------------------------------------------------------------------------


def arms_picture(summary: Mapping[str, Any], name: str) -> str:
    """Return each arm's mean and interval, and a dot for each seed, as an SVG file's text."""
    found = summary["sets"][name]
    arms = list(found["arms"].items())[::-1]
    left = max(width_of(arm) for arm in ARMS) + 14
    with figure(560, 46 + 24 * len(arms), margins=(left, 14, 8, 38)) as (drawing, axes):
        for place, (_, s) in enumerate(arms):
            axes.plot([100 * value for value in s["interval"]], [place, place], color=BLUE)
            axes.plot(100 * np.array(s["tests"]), [place] * len(s["tests"]), "o", ms=3, color=INK, alpha=0.35, mew=0)
            axes.plot([100 * s["mean"]], [place], "o", ms=7, color=BLUE)
        axes.set_yticks(range(len(arms)), [arm for arm, _ in arms])
        axes.set_xlabel(f"{name}: test {_title(found['metric'])}, %")
        alt = f"Test {_title(found['metric'])} of each arm on {name}: mean, 95 % interval, and each seed"
        return standalone(to_svg(drawing, name=f"strategies-{name}", alt=alt))


def size_picture(summary: Mapping[str, Any], name: str) -> str:
    """Return trainable parameters against the metric, as an SVG file's text."""
    found = summary["sets"][name]
    with figure(560, 300, margins=(52, 96, 10, 40)) as (drawing, axes):
        axes.set_xscale("log")
        for arm, s in found["arms"].items():
            x, y = s["trainable"], 100 * s["mean"]
            axes.plot([x, x], [100 * value for value in s["interval"]], color=BLUE, alpha=0.3)
            axes.plot([x], [y], "o", ms=6, color=VERMILLION if arm in ("discriminative", "permuted") else BLUE)
        _label(axes, found["arms"])
        axes.xaxis.set_major_formatter(_count)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("trainable parameters")
        axes.set_ylabel(f"test {_title(found['metric'])}, %")
        alt = f"Trainable parameters of each arm against its test {_title(found['metric'])} on {name}"
        return standalone(to_svg(drawing, name=f"strategies-{name}-size", alt=alt))


def _count(value: float, position: int) -> str:
    """Return a tick's number of parameters; matplotlib's own would be mathematics, which SVG text does not know."""
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k"


def _label(axes: Any, arms: Mapping[str, Any]) -> None:
    """Write each arm's name beside its dot: left where a larger size is near, and pushed down where names would overlap."""
    low, high = axes.get_ylim()
    height = (high - low) * (FONT_SIZE + 2) / 250
    sizes = [s["trainable"] for s in arms.values()]
    columns: dict[float, float] = {}
    for arm, s in sorted(arms.items(), key=lambda item: -item[1]["mean"]):
        size = s["trainable"]
        is_left = any(1.2 * size < other < 3 * size for other in sizes)
        column = round(np.log10(size), 1) + 0.05 * is_left
        y = min(100 * s["mean"], columns.get(column, float("inf")) - height)
        columns[column] = y
        axes.annotate(
            arm, (size / 1.15 if is_left else size * 1.15, y), ha="right" if is_left else "left", va="center",
            fontsize=FONT_SIZE - 2, color=INK, annotation_clip=False,
        )  # fmt: skip


# --- writing ---------------------------------------------------------------------------------------------------------


def write_report(settings: Settings, results: Path) -> None:
    """Write the summary beside the results, the pictures, and the generated parts of the guide's page."""
    rows = read_cells(results / "cells.jsonl", settings)
    memory = read_cells(results / "memory.jsonl", settings)
    summary = summarize(Results(settings, rows, memory))
    (results / "strategies.json").write_text(json.dumps(summary, indent=1) + "\n")
    PICTURES.mkdir(exist_ok=True)
    for name in _measured(summary):
        (PICTURES / f"strategies-{name}.svg").write_text(arms_picture(summary, name))
        (PICTURES / f"strategies-{name}-size.svg").write_text(size_picture(summary, name))
    if PAGE.is_file():
        PAGE.write_text(renewed(PAGE.read_text(), parts(summary, settings)))
    print(progress_line(summary))


def parts(summary: Mapping[str, Any], settings: Settings) -> dict[str, Callable[[], str]]:
    """Return the generated parts of the page by name."""
    tables: dict[str, Callable[[], str]] = {
        "progress": lambda: progress_line(summary),
        "tuning": lambda: tuning_table(summary, settings),
    }
    for name in summary["sets"]:
        tables[f"arms-{name.replace('_', '-')}"] = lambda name=name: arms_part(summary, name)  # type: ignore[misc]
    for family in FAMILIES:
        tables[family] = lambda family=family: comparisons_table(summary, family)  # type: ignore[misc]
    return tables


def renewed(text: str, made: Mapping[str, Callable[[], str]]) -> str:
    """Return a page with its generated parts written anew."""
    return _MARK.sub(lambda match: match[1] + "\n" + made[match["name"]]() + "\n\n" + match[3], text)
