"""importance.json to cells and sentences: where each module lies, and what was decided."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.workflows.importance_view import importance_facts, module_places


def modules(names: dict[str, int], **more: Any) -> dict[str, Any]:
    return {
        name: {"depth": depth, "cost": 8, "numel": 16, "scores": [1.0 + depth]} for name, depth in names.items()
    } | more


BERT = {f"bert.encoder.layer.{i}.{kind}": i + 1 for i in range(12) for kind in ("attention.self.query", "output.dense")}


def test_modules_of_a_block_share_a_column_and_kinds_share_a_row():
    places = module_places(BERT)
    assert places["bert.encoder.layer.10.output.dense"] == ("output.dense", 11)
    assert {kind for kind, _ in places.values()} == {"attention.self.query", "output.dense"}


@pytest.mark.parametrize(
    "depths, name, place",
    [
        ({"encoder.block.0.layer.0.SelfAttention.q": 1, "encoder.block.0.layer.1.DenseReluDense.wi": 1,
          "decoder.block.0.layer.0.SelfAttention.q": 2},
         "decoder.block.0.layer.0.SelfAttention.q", ("layer.0.SelfAttention.q", 2)),
        ({"stages.0.layers.0.conv": 1, "stages.0.layers.1.conv": 2, "stages.1.layers.0.conv": 3},
         "stages.0.layers.1.conv", ("conv", 2)),
        ({"h.0.attn": 0, "h.1.attn": 0, "h.10.attn": 0}, "h.10.attn", ("attn", 3)),
        ({"pooler.dense": 13, "layer.0.dense": 1}, "pooler.dense", ("pooler.dense", 13)),
    ],
    ids=["T5", "stages", "no depths", "outside the blocks"],
)  # fmt: skip
def test_blocks_are_told_from_stages_and_layers_in_them(depths, name, place):
    assert module_places(depths)[name] == place


def test_shares_add_up_and_what_was_decided_comes_first():
    allocation = {"apply": "ranks", "ranks": dict.fromkeys(BERT, 8), "is_uniform": False}
    found = importance_facts({"modules": modules(BERT), "score": "sensitivity", "allocation": allocation})
    ranks, shares = found["grids"]
    assert {cell["value"] for cell in ranks["cells"]} == {8.0}
    assert sum(cell["value"] for cell in shares["cells"]) == pytest.approx(100)
    assert "sensitivity" in found["sentences"][0] and len(found["sentences"]) == 1


def test_a_uniform_outcome_is_said_in_words():
    allocation = {"apply": "ranks", "ranks": dict.fromkeys(BERT, 8), "is_uniform": True}
    values = {"modules": modules(BERT), "allocation": allocation}
    assert "so all got the same rank" in importance_facts(values)["sentences"][1]
    assert "strategy.uniform_above (82%)" in importance_facts(values, uniform_above=0.82)["sentences"][1]


def test_what_trains_and_rates_have_grids_of_their_own():
    first = next(iter(BERT))
    found = importance_facts({"modules": modules(BERT), "allocation": {"apply": "freeze", "trainable": [first]}})
    assert [cell["text"] for cell in found["grids"][0]["cells"]].count("yes") == 1
    found = importance_facts(
        {"modules": modules(BERT), "allocation": {"apply": "lr", "scales": dict.fromkeys(BERT, 0.5)}}
    )
    assert found["grids"][0]["what"] == "factor" and found["grids"][0]["cells"][0]["value"] == 0.5


def test_a_file_from_elsewhere_needs_no_allocation():
    found = importance_facts({"modules": {name: {"scores": [0.0]} for name in BERT}})
    (shares,) = found["grids"]
    assert {round(cell["value"], 3) for cell in shares["cells"]} == {round(100 / 24, 3)}
    assert sorted({cell["depth"] for cell in shares["cells"]}) == list(range(1, 13))
