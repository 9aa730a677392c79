"""What is traced without data is what a real step holds, and a few blocks tell what many do."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from launcher.contracts import Parameter, Phase
from launcher.planning.live_storage import LiveStorage
from launcher.planning.traced_step import Traced, trace_evaluation, trace_training, without_data
from launcher.planning.tracing import ModelFacts, trace
from launcher.plans import MemorySetting
from launcher.recipe.schema import Recipe
from launcher.registry import STRATEGIES, load
from launcher.strategies.layers import block_modules, list_parameters
from launcher.tasks import chunked_loss
from launcher.tasks.causal_lm import CausalLM
from launcher.tasks.models import LoadedModel
from launcher.tasks.text_classification import TextClassification

SETTING = MemorySetting(
    engine="single", zero_stage=None, offload="none", precision="fp32", device="cpu", world_size=1, micro_batch_size=4,
    accumulation=1, length=16, activation_checkpointing=False, eval_batch_size=4, eval_length=16, optimizer="adamw_torch_fused",
)  # fmt: skip


class Rows:
    """The part of a task that a step needs."""

    def loss(self, outputs: Any, batch: Any, *, label_smoothing: float = 0.0) -> Any:
        return F.cross_entropy(outputs["logits"].float(), batch["labels"], reduction="sum")

    def row_outputs(self, outputs: Any, batch: Any) -> Any:
        return outputs["logits"]


# --- storage -----------------------------------------------------------------------------------------------------------


def test_live_storage_counts_what_lives_and_forgets_what_is_freed() -> None:
    known = torch.ones(100)
    with LiveStorage(known=[known]) as live:
        live.begin("first")
        kept = known * 2
        view = kept[10:]
        del kept
        live.begin("second")
        other = torch.zeros(1000)
        del other
        live.begin("third")
        last = view + 1
    found = live.recording.peaks({})
    assert [found[name].fresh for name in ("first", "second", "third")] == [400, 400 + 4000, 400 + 360]
    assert live.recording.alive_at("third") == 400
    del last, view


def test_a_gradient_counts_until_it_is_whole_where_it_is_sent_away() -> None:
    weight = torch.nn.Parameter(torch.ones(50, 20))
    arrivals: dict[int, int] = {}
    with LiveStorage(known=[weight]) as live:
        live.begin("backward")
        weight.register_post_accumulate_grad_hook(
            lambda p: arrivals.update(dict.fromkeys(live.places([p.grad]), live.recording.operations))
        )
        (weight * 2).sum().backward()
        live.begin("after")
        rest = torch.zeros(10)
    found = live.recording.peaks(arrivals)
    assert found["backward"].gradient == 4000
    assert (found["after"].fresh, found["after"].resident) == (4040, 40)
    del rest


# --- families ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in families.FAMILIES if name != "resnet"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_without_data_holds_what_a_real_one_does(name: str, checkpointing: bool) -> None:
    model, batch = families.build(name), _padded(families.build(name))
    if checkpointing and not model.supports_gradient_checkpointing:
        pytest.skip("the model cannot be checkpointed")
    real = _step(model, batch, nullcontext(), checkpointing=checkpointing)
    mode = FakeTensorMode()
    skeleton = families.build(name)
    with mode:
        skeleton = without_data(skeleton, dtype=None)
    fake = _step(skeleton, {k: mode.from_tensor(v) for k, v in batch.items()}, mode, checkpointing=checkpointing)
    for made, measured in zip(fake, real, strict=True):
        peaks = [max(stretch.fresh for stretch in found.stretches.values()) for found in (made, measured)]
        assert peaks[0] == pytest.approx(peaks[1], rel=0.03)
        assert made.kept == pytest.approx(measured.kept, rel=0.03)


def _padded(model: Any) -> dict[str, Any]:
    batch = families.inputs(model)
    if "attention_mask" in batch:
        # With a mask of ones a real forward pass looks at its values and leaves it out.
        batch["attention_mask"][0, :2] = 0
    return batch


def _step(model: Any, batch: Any, mode: Any, *, checkpointing: bool) -> tuple[Any, Any]:
    if checkpointing:
        model.activation_checkpointing_enable()
    traced = Traced(model, [block_modules(model)], (), Rows(), 0.0, "fp32", "cpu")
    with torch.random.fork_rng():
        return trace_training(traced, batch, mode), trace_evaluation(traced, batch, mode)


def test_checkpointing_keeps_less_and_autocast_keeps_copies_of_weights() -> None:
    mode = FakeTensorMode()
    with mode:
        model = without_data(families.build("bert"), dtype=None)
    batch = {k: mode.from_tensor(v) for k, v in _padded(families.build("bert")).items()}
    traced = Traced(model, [block_modules(model)], (), Rows(), 0.0, "fp32", "cpu")
    plain = trace_training(traced, batch, mode)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embeddings" not in n)
    halved = trace_training(replace(traced, compute="autocast_bf16"), batch, mode)
    assert halved.kept > matrices * 2
    model.activation_checkpointing_enable()
    assert trace_training(traced, batch, mode).kept < 0.6 * plain.kept


# --- recipes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"), num_hidden_layers=9)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_data(tmp_path_factory.mktemp("data"))


def _facts(
    bert: Path, data: Path, *, strategy: dict[str, Any], every_block: bool = False, **setting: Any
) -> ModelFacts:
    recipe, task, prepared, phase, skeleton = _planned(bert, data, strategy)
    changed = replace(SETTING, **setting)
    return trace(recipe, task, prepared, phase, setting=changed, skeleton=skeleton, every_block=every_block)


def _planned(bert: Path, data: Path, strategy: dict[str, Any]) -> tuple[Recipe, Any, Any, Phase, LoadedModel]:
    values = tiny.recipe_values(bert, data, strategy=strategy) | {"task": {"type": "text-classification"}}
    recipe = Recipe.model_validate(values)
    task = TextClassification(recipe)
    _, prepared = task.prepare_data()
    skeleton = task.build_model(prepared, skeleton=True)
    parameters: tuple[Parameter, ...] = list_parameters(skeleton.model, newly_initialized=skeleton.newly_initialized)
    return recipe, task, prepared, load(STRATEGIES, recipe.strategy.type)().phases(parameters, recipe)[-1], skeleton


STRATEGY: dict[str, dict[str, Any]] = {
    "full": {"type": "full"},
    "layerwise": {"type": "layerwise", "freeze_layers": 4},
    "lora": {"type": "lora"},
    "head": {"type": "head"},
}


@pytest.mark.parametrize("name", STRATEGY)
@pytest.mark.parametrize(
    "setting",
    [{}, {"activation_checkpointing": True}, {"precision": "bf16"}, {"device": "cuda", "precision": "bf16"}],
    ids=["plain", "checkpointing", "bf16", "gpu"],
)
def test_three_blocks_tell_what_the_whole_model_does(
    bert: Path, data: Path, name: str, setting: dict[str, Any]
) -> None:
    told = _facts(bert, data, strategy=STRATEGY[name], **setting)
    whole = _facts(bert, data, strategy=STRATEGY[name], every_block=True, **setting)
    assert told.is_extrapolated
    assert not whole.is_extrapolated
    for rows in (3, 8):
        for gradients in ("fresh", "resident"):
            found = [facts.training_peak(rows, gradients=gradients)[0] for facts in (told, whole)]  # type: ignore[arg-type]
            assert found[0] == pytest.approx(found[1], rel=0.02)
        assert told.evaluation_peak(rows) == pytest.approx(whole.evaluation_peak(rows), rel=0.02)
    assert told.kept.at(8) == pytest.approx(whole.kept.at(8), rel=0.02)


def test_frozen_blocks_keep_nothing(bert: Path, data: Path) -> None:
    kept = {name: _facts(bert, data, strategy=options).kept.at(8) for name, options in STRATEGY.items()}
    assert kept["head"] < 0.15 * kept["full"]
    assert kept["layerwise"] < 0.75 * kept["full"]
    assert kept["lora"] > 0.5 * kept["full"]


def test_the_facts_count_parameters_once(bert: Path, data: Path) -> None:
    facts = _facts(bert, data, strategy={"type": "full"})
    _, _, _, _, skeleton = _planned(bert, data, {"type": "full"})
    assert facts.numel == facts.trainable_numel == sum(p.numel() for p in skeleton.model.parameters())
    assert facts.weight_bytes == 4 * facts.numel
    assert facts.blocks == 9
    lora = _facts(bert, data, strategy={"type": "lora"})
    assert lora.trainable_numel < 0.5 * facts.numel < lora.numel
    assert lora.adapted_bytes > 0


def test_longer_rows_and_more_of_them_hold_more(bert: Path, data: Path) -> None:
    short, long = (_facts(bert, data, strategy={"type": "full"}, length=length) for length in (8, 32))
    peaks = [facts.training_peak(rows, gradients="fresh")[0] for facts in (short, long) for rows in (1, 2, 16)]
    assert peaks[0] < peaks[1] < peaks[2] < peaks[5]
    assert peaks[3] < peaks[4]


def test_few_rows_tell_what_many_do_where_the_loss_of_many_is_computed_in_parts(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {
        "model_type": "llama", "vocab_size": 4096, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    model = {"name_or_path": None, "tokenizer_name_or_path": str(bert), "config": numbers}
    recipe = Recipe.model_validate(tiny.recipe_values("", "none", model=model, task={"type": "causal-lm"}))
    task = CausalLM(recipe)
    skeleton = task.build_model(None, skeleton=True)
    phase = load(STRATEGIES, "full")().phases(list_parameters(skeleton.model, newly_initialized=frozenset()), recipe)[
        -1
    ]

    def peak(large_bytes: int, rows: int) -> float:
        monkeypatch.setattr(chunked_loss, "LARGE_BYTES", large_bytes)
        setting = replace(SETTING, micro_batch_size=rows, eval_batch_size=rows)
        found = trace(recipe, task, None, phase, setting=setting, skeleton=skeleton)
        return found.training_peak(32, gradients="fresh")[0] + found.evaluation_peak(32)

    # Of 32 rows the logits are 8 MiB, of the rows that are traced at most one.
    whole, parts = peak(2**30, 32), peak(0, 32)
    assert parts < 0.8 * whole
    assert peak(2**22, 32) == parts
    assert peak(2**22, 8) == whole
