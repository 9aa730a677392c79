"""What the estimate makes of facts about a model: a model of a million elements in four equal blocks, of which all trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.planning.memory import estimate_memory
from launcher.planning.model_facts import Line, ModelFacts, StoredTensor, Stretch
from launcher.plans import MemorySetting

N = 1_000_000
BLOCK = N // 4
RESULTS = Path(__file__).parents[2] / "benchmarks/results/planner"
SETTING = MemorySetting(
    engine="single", zero_stage=None, offload="none", precision="fp32", device="cuda", world_size=1, micro_batch_size=4,
    accumulation=1, length=16, activation_checkpointing=False, eval_batch_size=4, eval_length=16, optimizer="adamw_torch_fused",
)  # fmt: skip


def facts(**changes: Any) -> ModelFacts:
    """A step keeps 1,000 bytes of a row and makes gradients of the weights' size."""
    training = Stretch("backward 0.0", Line(4 * N, 1000), Line(4 * BLOCK, 1000), Line(4 * BLOCK, 0))
    values: dict[str, Any] = {
        "tensors": tuple(StoredTensor(BLOCK, 4, True) for _ in range(4)),
        "groups": (N,), "buffer_bytes": 0, "blocks": 4, "largest_block": BLOCK, "in_blocks": N,
        "adapted_bytes": 0, "training": (training,), "evaluation": (Stretch("head", Line(0, 500), Line(0, 500), Line(0, 0)),),
        "kept": Line(0, 900), "kept_by_blocks": Line(0, 800), "batch": Line(0, 8), "is_extrapolated": True,
    }  # fmt: skip
    return ModelFacts(**(values | changes))


def estimate(of: ModelFacts | None = None, **changes: Any) -> Any:
    return estimate_memory(of or facts(), replace(SETTING, **changes))


def part(name: str, moment: str = "training", of: ModelFacts | None = None, **changes: Any) -> int:
    return estimate(of, **changes).moments[moment].get(name, 0)


def sharded(stage: int, **changes: Any) -> dict[str, Any]:
    return {"engine": "deepspeed", "zero_stage": stage, "world_size": 4, **changes}


def test_one_process_holds_weights_gradients_and_two_moments_of_each():
    assert part("weights") == 4 * N
    assert part("gradients") == 4 * (N - BLOCK), "that of the block in question is temporary"
    assert part("optimizer") == 8 * N
    assert part("optimizer", optimizer="sgd") == 4 * N
    assert part("gradients", "evaluation") == 0, "they are given up before"


def test_only_what_trains_has_gradients_and_state():
    frozen = (StoredTensor(3 * BLOCK, 4, False), StoredTensor(BLOCK, 4, True))
    assert part("optimizer", of=facts(tensors=frozen)) == 8 * BLOCK


def test_ddp_adds_its_buckets():
    assert part("buckets", engine="ddp", world_size=4) == 4 * N


def test_zero_shards_the_optimizer_then_gradients_then_weights():
    assert [part("optimizer", **sharded(stage)) for stage in (1, 2, 3)] == [3 * N] * 3, "master weights with it"
    assert part("gradients", **sharded(1, accumulation=2, precision="bf16")) == 2 * N
    assert part("gradients", **sharded(2, accumulation=2, precision="bf16")) == N // 2
    assert part("weights", **sharded(2, precision="bf16")) == 2 * N
    assert part("weights", **sharded(3, precision="bf16")) == N // 2


def test_gathered_weights_leave_block_by_block():
    last = Stretch("backward 0.2", Line(0, 0), Line(4 * BLOCK, 1000), Line(0, 0))
    assert part("gathered weights", of=facts(training=(last,)), **sharded(3)) == 4 * N
    first = replace(last, name="backward 0.0")
    assert part("gathered weights", of=facts(training=(first,)), **sharded(3)) == 4 * BLOCK


def test_offloaded_state_is_counted_in_the_machines_memory():
    found = estimate(**sharded(3, offload="all", precision="bf16"))
    assert {"weights", "optimizer"}.isdisjoint(found.moments["training"])
    assert found.host_moments["training"]["optimizer"] == 3 * N
    assert found.host_moments["training"]["weights"] == N // 2


def test_quantised_weights_count_packed_and_one_unpacked():
    packed = (StoredTensor(3 * BLOCK, 0.5, False, is_quantized=True), StoredTensor(BLOCK, 4, True))
    assert part("weights", of=facts(tensors=packed)) == 3 * BLOCK // 2 + 4 * BLOCK
    assert part("unpacked weights", of=facts(tensors=packed), precision="bf16") == 3 * BLOCK * 2
    assert part("weights", of=facts(tensors=packed), **sharded(2, precision="bf16")) == 3 * BLOCK // 2 + 2 * BLOCK


def test_a_save_gathers_one_weight_at_a_time_on_gpus_and_all_on_the_processor():
    assert part("copies", "saving", **sharded(3)) == 4 * BLOCK
    assert part("copies", "saving", **sharded(3, device="cpu")) == 4 * N


def test_an_asynchronous_save_copies_on_the_processor():
    of = replace(SETTING, device="cpu")
    more = estimate_memory(facts(), of, async_save=True).moments["saving"]
    less = estimate_memory(facts(), of).moments["saving"]
    assert sum(more.values()) - sum(less.values()) == 4 * N + 8 * N


def test_more_rows_take_more_and_only_in_a_step():
    few, many = estimate(), estimate(micro_batch_size=40)
    assert sum(many.moments["training"].values()) > sum(few.moments["training"].values())
    assert many.moments["saving"] == few.moments["saving"]


def test_the_kept_measurements_are_predicted_as_promised():
    """The promise of docs/guide/planner-measured.md, held to the files that the page is made from."""
    errors = {}
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        measured = max(note["peak_bytes"] - note["base_bytes"] for note in found["ranks"])
        errors[path.stem] = found["predicted"]["peak_bytes"] / measured - 1
    assert len(errors) >= 12
    assert min(errors.values()) > -0.05, errors
    assert sum(abs(error) <= 0.15 for error in errors.values()) >= len(errors) * 11 / 12, errors


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_of_them_are_still_predicted(tmp_path):
    """With the code as it is now; the other side of the comparison is the kept measurement."""
    from benchmarks import planner

    for name in ("bert-60m-layerwise", "bert-110m-zero3"):
        setting = next(one for one in planner.SETTINGS if one.name == name)
        kept = json.loads((RESULTS / f"{name}.json").read_text())
        measured = max(note["peak_bytes"] - note["base_bytes"] for note in kept["ranks"])
        assert planner.predict(setting, tmp_path)["peak_bytes"] == pytest.approx(measured, rel=0.05)
