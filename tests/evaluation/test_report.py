from __future__ import annotations

import dataclasses
import json
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up import as_baseline, facts, multi, numbers, progress, single

from launcher.contracts import Predictions
from launcher.evaluation import plots
from launcher.evaluation.report import ReportFacts, duration, rate, render_report, short_count

HOSTILE = "<script>alert('x')</script>\"><img src=http://example.org/x onerror=alert(1)>$\\frac{1}$ & ]]>"
VOID = {"meta", "link", "img", "br", "wbr", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, and checks that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def all_kinds() -> dict[str, ReportFacts]:
    many = single(900, names=[f"label_{k}" for k in range(77)], skill=4.0)
    chinese = single(names=("体育", "财经", "科技与互联网"), texts=["央行宣布下调存款准备金率。"] * 200)
    kinds: dict[str, Predictions] = {
        "three": single(),
        "many": many,
        "binary": single(names=("n", "y"), kind="binary_classification"),
        "multi": multi(),
        "regression": numbers(),
        "chinese": chinese,
    }
    given = {name: facts(p, [as_baseline(p, "majority"), as_baseline(p)]) for name, p in kinds.items()}
    given["unlabelled"] = facts(dataclasses.replace(single(), labels=None))
    given["alone"] = facts(single(), progress=[], tuning_tables=[], data={}, environment={}, commands=[], timing={})
    given["nothing"] = ReportFacts("made-up-001", "today", "version: 1\n")
    return given


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {name: render_report(given) for name, given in all_kinds().items()}


def assert_loads_nothing(text: str) -> None:
    for tag, attributes in Page(text).tags:
        assert tag not in {"script", "iframe", "object", "embed", "img", "image", "base"}, tag
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, target)
        assert not any(name.startswith("on") for name in attributes)
    styles = " ".join(re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL))
    assert "@import" not in styles and not re.search(r"url\((?!#)", text)


def test_pages_are_well_formed_and_load_nothing(pages: dict[str, str]) -> None:
    for text in pages.values():
        assert_loads_nothing(text)
        assert "http://" not in text and "https://" not in text
        assert "default-src 'none'" in text


def test_pages_start_with_the_verdict(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        words = Page(text[text.index("<body>") : text.index("</body>") + 7]).words.split("\n")
        first = [line for line in words if line.strip()][2]
        assert first.startswith(("The model", "No clear", "How good")), (name, first)


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        ("three", "metrics training confusions labels calibration mistakes data tuning reproduce environment"),
        ("multi", "metrics training labels calibration mistakes data tuning reproduce environment"),
        ("regression", "metrics training scatter mistakes data tuning reproduce environment"),
        ("unlabelled", "training data tuning reproduce environment"),
        ("alone", "metrics confusions labels calibration mistakes reproduce"),
        ("nothing", "reproduce"),
    ],
)
def test_sections(pages: dict[str, str], kind: str, sections: str) -> None:
    tags = Page(pages[kind]).tags
    assert " ".join(str(a["id"]) for tag, a in tags if tag == "section") == sections
    links = [a["href"] for tag, a in tags if tag == "a"]
    assert links == [f"#{name}" for name in sections.split()]


def test_everything_from_data_is_escaped() -> None:
    names = (HOSTILE, "b", "c")
    p = single(60, names=names, skill=0.0, texts=[HOSTILE] * 60)
    baseline = as_baseline(p, note=HOSTILE)
    row = {"depth": HOSTILE, "parameters": 5, "trainable": True, "lr": 1.0, "weight_decay": 0.0}
    line = {"name": HOSTILE, "depth": 0, "steps": [1, 2], "rates": [0.1, 0.2]}
    band = {"name": HOSTILE, "first": 0, "last": 1}
    cell = {"kind": HOSTILE, "depth": 1, "value": 2.0, "text": HOSTILE}
    given = facts(
        p,
        [baseline],
        run_name=HOSTILE,
        created=HOSTILE,
        recipe_text=HOSTILE,
        commands=[HOSTILE],
        tuning_tables=[{"headings": [HOSTILE] * 2, "note": HOSTILE, "rows": [{"group": HOSTILE, **row}]}],
        rates={"lines": [line], "bands": [band, {**band, "first": 1, "last": 2}], "note": HOSTILE, "used": [line]},
        importance={
            "sentences": [HOSTILE],
            "grids": [{"name": "x", "what": HOSTILE, "title": HOSTILE, "cells": [cell]}],
        },
        data={"splits": {HOSTILE: 3}, "warnings": [HOSTILE], HOSTILE: {HOSTILE: [HOSTILE]}},
        environment={HOSTILE: HOSTILE},
        progress=[{"step": 1, f"lr/{HOSTILE}": 0.1, "loss": 1.0}, {"step": 2, f"lr/{HOSTILE}": 0.2}],
    )
    text = render_report(given)
    assert_loads_nothing(text)
    assert "<script" not in text and "<img" not in text
    assert "&lt;script&gt;" in text


def test_lone_surrogates_do_not_break_the_page() -> None:
    p = single(30, names=("a\ud800", "b"), skill=0.0, texts=["x \udfff"] * 30)
    render_report(facts(p, run_name="r\ud800")).encode()


def test_a_page_is_made_again_from_json(pages: dict[str, str]) -> None:
    given = dataclasses.asdict(all_kinds()["three"])
    assert render_report(ReportFacts(**json.loads(json.dumps(given, allow_nan=False)))) == pages["three"]


def test_numbers_and_names_on_the_page(pages: dict[str, str]) -> None:
    words = Page(pages["three"]).words
    for expected in ("3e-4", "frozen", "43 s", "a warning", "launcher run recipe.yaml", "version: 1", "2.13.0"):
        assert expected in words, expected
    assert "体育" in Page(pages["chinese"]).words
    assert "NaN" not in words and "nan" not in words.split()


def tables() -> list[dict[str, object]]:
    row = {"depth": "1", "parameters": 100, "trainable": True, "lr": 3e-4, "weight_decay": 0.01}
    frozen = {
        "group": "embeddings.frozen",
        "depth": "0",
        "parameters": 900,
        "trainable": False,
        "lr": 0.0,
        "weight_decay": 0,
    }
    return [
        {"headings": ["probe: 20 steps"], "is_probe": True, "rows": [{"group": "p", **row, "parameters": 950, "rank": 32}]},
        {"headings": ["main: steps 1-5", "main: steps 6-9"], "note": "a note", "rows": [{"group": "b", **row, "rank": 8}, frozen]},
        {"headings": ["last: steps 10-12"], "rows": [{"group": "c", **row, "l1_penalty": 1e-4}, {**frozen, "l1_penalty": 0.0}]},
    ]  # fmt: skip


def test_every_phase_has_its_heading_its_note_and_its_table() -> None:
    text = render_report(facts(None, tuning_tables=tables()))
    section = text[text.index('<section id="tuning">') : text.index('<section id="reproduce">')]
    heads = re.findall(r"<h3>(.*?)</h3>", section)
    assert heads == ["probe: 20 steps", "main: steps 1-5", "main: steps 6-9", "last: steps 10-12"]
    columns = [re.findall(r"<th[^>]*>(.*?)</th>", head) for head in re.findall(r"<thead>(.*?)</thead>", section)]
    both = ["group", "depth", "parameters", "learning rate", "weight decay"]
    assert columns == [[*both[:3], "rank", *both[3:]]] * 2 + [[*both, "L1"]]
    assert "a note" in section and section.count("frozen</td>") == 2
    # The probe's weights are discarded, so what it trains is not what the run trains.
    assert "of 1e+03, 10 %" in text.replace("1 k", "1e+03") and "950" in section


def test_a_run_with_rates_and_importance_shows_them() -> None:
    line = {"name": "head", "depth": 3, "steps": [1, 2, 3], "rates": [0.0, 0.2, 0.1]}
    rates = {"lines": [line], "bands": [{"name": "main", "first": 0, "last": 3}], "note": "", "used": [line]}
    cells = [{"kind": "query", "depth": 1, "value": 3.0}]
    grid = {"name": "ranks", "what": "rank", "title": "Ranks", "cells": cells}
    given = facts(None, rates=rates, importance={"sentences": ["It is even."], "grids": [grid]})
    text = render_report(given)
    assert "as planned" in text and "that were used" in text and 'href="#importance"' in text
    assert "It is even." in text and ">query<" in text and "Ranks" in text
    assert render_report(ReportFacts(**json.loads(json.dumps(dataclasses.asdict(given), allow_nan=False)))) == text


def test_words() -> None:
    assert [duration(s) for s in (4.25, 43.2, 185, 7800)] == ["4.2 s", "43 s", "3 min 05 s", "2 h 10 min"]
    assert [rate(x) for x in (3e-4, 0.01, 2.43e-5, 0)] == ["3e-4", "0.01", "2.43e-5", "0"]
    assert [short_count(n) for n in (22_713_216, 999, 1_234)] == ["22.7 M", "999", "1.23 k"]


# --- plots ---------------------------------------------------------------------------------------------------------


def test_series_takes_the_later_of_two_rows_of_a_step() -> None:
    rows = [
        {"step": 2, "loss": 1.0},
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": float("nan")},
    ]
    steps, values = plots.series([*rows, {"step": 4, "loss": None}, {"loss": 1.0}], "loss")
    assert (steps.tolist(), values.tolist()) == ([1, 2], [3.0, 0.5])


def test_plots_without_data_are_empty() -> None:
    assert plots.loss_curve([]) == plots.rate_curve([]) == plots.gradient_norm_curve([{"step": 1}]) == ""
    assert plots.metric_curve(progress(), ["mse"]) == plots.confusion_matrix([], ["a"]) == ""
    assert plots.reliability_diagram([]) == plots.regression_scatter([]) == plots.class_f1_bars([]) == ""
    assert plots.comparison_plot([], title="x") == ""


def test_plots_are_compact_and_repeatable() -> None:
    long = [{"step": k, "loss": 1 / (k + 1)} for k in range(20_000)]
    assert len(plots.loss_curve(long)) < 12_000
    assert plots.loss_curve(long) == plots.loss_curve(long)


def test_equal_rates_are_one_line() -> None:
    rows = [{"step": k, "lr/a": k, "lr/b": k, "lr/c": 2 * k} for k in range(1, 40)]
    text = plots.rate_curve(rows)
    assert "a, b" in text and ">c<" in text
    assert "all groups" in plots.rate_curve([{"step": k, "lr/a": k, "lr/b": k} for k in range(1, 40)])


@pytest.mark.parametrize("classes", [1, 2, 3, 11, 25, 26, 77, 300])
def test_confusion_matrix_of_any_size(classes: int) -> None:
    names = [f"label {k}" for k in range(classes)]
    confusion = [[k, k, 10] for k in range(classes)] + [[k, (k + 1) % classes, 1 + k % 3] for k in range(classes)][
        : classes - 1
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = plots.confusion_matrix(confusion, names)
        overview = plots.confusion_overview(confusion, names)
    shown = sum(f">{name}<" in text for name in names)
    assert shown == (classes if classes <= 25 else 14)
    assert bool(overview) == (25 < classes <= 200)


def test_the_most_confused_labels() -> None:
    confusion = [[0, 0, 50], [1, 2, 9], [2, 1, 3], [5, 6, 8], [3, 4, 1]]
    assert plots.most_confused(confusion, most=4) == [1, 2, 5, 6]
    assert plots.most_confused([[0, 0, 5], [3, 3, 5]]) == [0, 3]


def test_extreme_values_can_be_drawn() -> None:
    assert plots.loss_curve([{"step": 1, "loss": 1e9}])
    assert plots.regression_scatter([[1.0, 1.0]])
    assert plots.comparison_plot([{"name": "model", "value": 0.0, "low": 0.0, "high": 0.0}], title="accuracy")
    assert (
        plots.tick_text(-0.00012) == "−1.2e−4"
        and plots.tick_text(1200) == "1,200"
        and plots.tick_text(np.float64(0)) == "0"
    )
