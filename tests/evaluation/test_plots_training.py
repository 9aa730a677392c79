"""Pictures of rates, importance and range tests: what is in them, at any size."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from typing import Any

import pytest

from launcher.evaluation.plots_training import (
    depth_colour,
    draw_range_test,
    draw_rates,
    module_grid,
    rates_svg,
    used_rates,
)
from launcher.evaluation.range_test import exponential_rates, read_range_test
from launcher.evaluation.svg import standalone, to_png


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def line(name: str, depth: float, peak: float, *, first: int = 0, last: int = 50) -> dict[str, Any]:
    steps = list(range(first + 1, last + 1))
    return {"name": name, "depth": depth, "steps": steps, "rates": [peak * (1 - (step - 1) / 50) for step in steps]}


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>(.*?)</text>", svg)


def drawn_lines(lines: Sequence[dict[str, Any]], bands: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """What matplotlib was given, one record for each line."""

    def look(drawing: Any) -> list[dict[str, Any]]:
        return [
            {
                "x": found.get_xdata(),
                "y": found.get_ydata(),
                "colour": found.get_color(),
                "style": found.get_linestyle(),
            }
            for found in drawing.axes[0].lines
        ]

    return draw_rates(lines, bands, write=look)


def test_each_group_is_a_line_in_the_colour_of_its_depth():
    found = drawn_lines([line("embeddings", 0, 1e-4), line("encoder", 3, 2e-4), line("head", 6, 3e-4)])
    assert [one["colour"] for one in found] == [depth_colour(0), depth_colour(0.5), depth_colour(1)]
    assert [max(one["y"]) for one in found] == [1e-4, 2e-4, 3e-4]
    svg = rates_svg([line("embeddings", 0, 1e-4), line("head", 6, 3e-4)], name="x")
    assert {"embeddings", "head", "step"} <= set(texts(svg))


def test_equal_rates_share_a_line_and_a_second_group_of_a_depth_is_dashed():
    lines = [line("block.1", 1, 1e-4), line("block.1.no_decay", 1, 1e-4), line("tail", 2, 2e-4), line("head", 2, 4e-4)]
    found = drawn_lines(lines)
    assert [one["style"] for one in found] == ["-", "-", "--"]
    assert "block.1.no_decay" not in rates_svg(lines, name="x") and "block.1" in rates_svg(lines, name="x")


def test_a_frozen_stretch_has_no_line():
    gap = {"name": "a", "depth": 1, "steps": [1, 2, 3, 6, 7], "rates": [1.0, 1.0, None, 0.5, 0.4]}
    (found,) = drawn_lines([gap])
    assert [y != y for y in found["y"]] == [False, False, True, False, False]
    late = line("b", 1, 1e-3, first=30)
    assert min(drawn_lines([late, line("head", 2, 1e-3)])[0]["x"]) == 31


def test_many_groups_get_a_scale_of_depth_in_place_of_names():
    lines = [line(f"block.{depth}", depth, 1e-3 * 0.9**depth) for depth in range(13)] + [line("head", 12, 2e-3)]
    found = texts(rates_svg(lines, name="x"))
    assert "depth 0" in found and "12" in found and "dashed: head" in found
    assert "block.4" not in found


def test_several_phases_are_named_and_one_is_not():
    bands = [{"name": "stage.1", "first": 0, "last": 25}, {"name": "stage.2", "first": 25, "last": 50}]
    assert {"stage.1", "stage.2"} <= set(texts(rates_svg([line("a", 1, 1e-3)], bands, name="x")))
    assert "main" not in rates_svg([line("a", 1, 1e-3)], [{"name": "main", "first": 0, "last": 50}], name="x")
    many = [{"name": f"unfreeze-{i}", "first": 4 * i, "last": 4 * i + 4} for i in range(12)]
    found = texts(rates_svg([line("a", 1, 1e-3)], many, name="x"))
    assert "11" in found and "unfreeze-11" not in found, "names that do not fit are cut to their ends"
    alike = [{**band, "name": f"stage {i}: blocks {9 - i} and above"} for i, band in enumerate(many)]
    found = texts(rates_svg([line("a", 1, 1e-3)], alike, name="x"))
    assert "above" not in found and {"1", "2", "12"} <= set(found), "ends that are alike would say nothing"


def test_rates_far_apart_get_a_logarithmic_axis():
    def scale(drawing: Any) -> str:
        return str(drawing.axes[0].get_yscale())

    assert draw_rates([line("a", 1, 1e-3), line("b", 2, 1e-5)], write=scale) == "log"
    assert draw_rates([line("a", 1, 1e-3), line("b", 2, 1e-4)], write=scale) == "linear"


def test_the_smallest_runs_can_be_drawn():
    assert rates_svg([], name="x") == ""
    assert rates_svg([line("a", 1, 1e-3, last=1)], [{"name": "main", "first": 0, "last": 1}], name="x")
    assert rates_svg([{"name": "a", "depth": 1, "steps": [1], "rates": [0.0]}], name="x")


def test_the_note_stands_beside_the_steps():
    assert "step (a note)" in texts(rates_svg([line("a", 1, 1e-3)], name="x", note="a note"))


def test_used_rates_are_those_of_the_log():
    progress = [
        {"step": 10, "loss": 1.0, "lr/head": 0.2, "lr/a": 0.1},
        {"step": 20, "lr/head": 0.1, "lr/a": 0.05},
        {"step": 20, "eval_loss": 1.0},
    ]
    found = used_rates(progress, {"head": 7, "a": 1, "never": 3})
    assert [(one["name"], one["steps"], one["rates"]) for one in found] == [
        ("a", [10, 20], [0.1, 0.05]),
        ("head", [10, 20], [0.2, 0.1]),
    ]


# --- modules by depth --------------------------------------------------------------------------------------------------


def grid(blocks: int, *, value: Any = lambda kind, depth: kind + depth) -> list[dict[str, Any]]:
    kinds = ("attention.self.query", "intermediate.dense", "output.dense")
    return [
        {"kind": name, "depth": depth, "value": value(kind, depth)}
        for depth in range(1, blocks + 1)
        for kind, name in enumerate(kinds)
    ]


def test_a_grid_has_a_row_for_each_kind_a_column_for_each_block_and_numbers():
    found = texts(module_grid(grid(6), what="rank"))
    assert {"attention.self.query", "intermediate.dense", "output.dense", "1", "6", "8", "rank 1"} <= set(found)
    assert len([text for text in found if text.isdigit()]) == 18 + 6 + 1


def test_equal_values_are_said_once_in_words():
    assert "rank 8 everywhere" in texts(module_grid(grid(4, value=lambda kind, depth: 8), what="rank"))


def test_texts_of_cells_replace_their_numbers():
    cells = [{**cell, "text": "yes"} for cell in grid(2)]
    assert texts(module_grid(cells, what="trains")).count("yes") == 6


def test_a_grid_without_values_is_empty_and_missing_cells_stay_so():
    assert module_grid([], what="rank") == "" == module_grid(grid(2, value=lambda kind, depth: None), what="rank")
    assert module_grid(grid(3, value=lambda kind, depth: depth if kind else None), what="rank")


@pytest.mark.parametrize("blocks", [1, 2, 12, 32, 96])
def test_a_grid_of_any_depth(blocks):
    svg = module_grid(grid(blocks, value=lambda kind, depth: 0.001 * (kind + depth)), what="share in %")
    assert "depth of the block" in texts(svg)


# --- range test and files ----------------------------------------------------------------------------------------------


def test_a_range_test_marks_what_it_found():
    rates = exponential_rates(1e-7, 1, 100)
    losses = [2.0 - 1.2 / (1 + (1e-4 / rate)) + (rate / 0.02) ** 2 for rate in rates]
    test = read_range_test(rates.tolist(), losses)
    svg = draw_range_test(test.to_json(), write=lambda d: to_svg_text(d))
    assert {"learning rate", "minimum", "steepest"} <= set(texts(svg))
    assert any(text.startswith("suggestion ") for text in texts(svg))
    flat = read_range_test(rates.tolist(), [1.0] * 100)
    assert not any(text.startswith("suggestion") for text in texts(draw_range_test(flat.to_json(), write=to_svg_text)))


def to_svg_text(drawing: Any) -> str:
    from launcher.evaluation.svg import to_svg

    return to_svg(drawing, name="x", alt="x")


def test_a_picture_file_stands_alone():
    text = standalone(rates_svg([line("a", 1, 1e-3)], name="x"))
    assert (
        text.startswith('<svg xmlns="http://www.w3.org/2000/svg" width="400') and "<rect" in text and "#ffffff" in text
    )
    HTMLParser().feed(text)
    import xml.etree.ElementTree as tree

    assert tree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    png = draw_rates([line("a", 1, 1e-3)], write=to_png)
    assert png.startswith(b"\x89PNG") and png == draw_rates([line("a", 1, 1e-3)], write=to_png)
