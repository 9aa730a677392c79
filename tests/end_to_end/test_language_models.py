"""Instruction tuning on one process, DDP, ZeRO-2 and ZeRO-3: equal losses of the same rows, padded and packed, full and with adapters.

Rows are GSM8K's. The covering of a small pretrained model runs with the slower tests; the full grid, preferences among it, and a random Llama of 17
million parameters with the long ones.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny

sys.path.insert(0, str(Path(__file__).resolve().parent))
import test_engines_grid as grid

from launcher.recipe.examine import examine
from launcher.workflows.start import create_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"processes_per_node": 2},
    "zero-2": {"processes_per_node": 2, "zero_stage": 2},
    "zero-3": {"processes_per_node": 2, "zero_stage": 3},
}
LORA = {"type": "lora", "r": 4, "target_modules": "all-linear"}
WHAT: dict[str, dict[str, Any]] = {
    "sft": {"task": {"type": "sft"}},
    "packed": {"task": {"type": "sft", "packing": True}},
    "preference": {"task": {"type": "preference"}},
}
STRATEGIES: dict[str, dict[str, Any]] = {"full": {"type": "full"}, "lora": LORA}
# The small model has no embeddings for the tokens of chatml: it gets some, which train with the others.
TEMPLATES = {"full": "chatml", "lora": "plain"}
SHARED = Path(__file__).resolve().parents[2].parent / "shared"
STORIES = SHARED / "models" / "stories260k-llama"
# Its loss is computed in parts: 8,192 classes at thousands of places.
RANDOM = {
    "vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
STEPS = 6
LENGTHS = {"sft": 288, "packed": 512, "preference": 512}
RATES = {what: {"full": 1e-4, "lora": 1e-3} if what == "preference" else {"full": 3e-3, "lora": 2e-2} for what in WHAT}
LIMITS = {"train": 29, "validation": 6, "test": 6}


class Cell(NamedTuple):
    """One combination on an engine."""

    what: str
    strategy: str
    checkpointing: bool

    @property
    def name(self) -> str:
        return f"{self.what}-{self.strategy}{'-recomputed' if self.checkpointing else ''}"


ALL = [Cell(*values) for values in itertools.product(WHAT, STRATEGIES, (False, True))]
# Preferences have an engines' test of their own among the slower ones (test_pairs_on_engines).
SOON = ("sft", "packed")


def pairwise(engine: str) -> list[Cell]:
    """Every pair of two settings' values occurs on some engine."""
    e = list(ENGINES).index(engine)
    return [
        Cell(what, strategy, bool((e + s) % 2))
        for what, (s, strategy) in itertools.product(SOON, enumerate(STRATEGIES))
    ]


def test_the_covering_has_every_pair() -> None:
    rows = [(engine, *cell) for engine in ENGINES for cell in pairwise(engine)]
    values = (list(ENGINES), list(SOON), list(STRATEGIES), [False, True])
    for i, j in itertools.combinations(range(4), 2):
        assert {(row[i], row[j]) for row in rows} == set(itertools.product(values[i], values[j])), (i, j)


@pytest.fixture(scope="module", params=["pairwise", pytest.param("full", marks=pytest.mark.soak)])
def size(request: pytest.FixtureRequest, require: Any) -> str:
    require(SHARED.is_dir(), f"needs the data in {SHARED}")
    return str(request.param)


@pytest.fixture(scope="module", params=["stories", pytest.param("17m", marks=pytest.mark.soak)])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def kept() -> dict[Any, Any]:
    """What is made once for a size and a model: pytest makes fixtures with parameters anew whenever it comes back to one."""
    return {}


@pytest.fixture(scope="module")
def folder(size: str, model: str, kept: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (size, model) not in kept:
        kept[size, model] = tmp_path_factory.mktemp(f"language-{size}-{model}")
    return kept[size, model]


def model_at(folder: Path, model: str) -> Path:
    """Return the folder of the pretrained model, or of a random one of 17 million parameters."""
    found = folder / model
    if model == "stories":
        return STORIES
    if not found.exists():
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**RANDOM)).save_pretrained(found)
        AutoTokenizer.from_pretrained(STORIES).save_pretrained(found)
    return found


def data_of(cell: Cell) -> dict[str, Any]:
    if cell.what == "preference":
        return {
            name: {"source": str(SHARED / "data/dpo_en_demo" / f"{name}.json"), "limit": rows}
            for name, rows in LIMITS.items()
        }
    columns = {"columns": {"prompt": "question", "completion": "answer"}}
    parts = {
        name: {"source": str(SHARED / "data/gsm8k" / f"{name}.jsonl"), "limit": rows} for name, rows in LIMITS.items()
    }
    return {**parts, **columns}


def make_run(folder: Path, model: str, engine: str, distributed: dict[str, Any], cell: Cell) -> Path:
    """Make a run of 6 steps of 8 rows, packed ones of 2; two ranks accumulate."""
    rows = 2 if cell.what == "packed" else 8
    training: dict[str, Any] = {
        "max_steps": STEPS, "num_train_epochs": None, "global_batch_size": rows, "learning_rate": RATES[cell.what][cell.strategy], "activation_checkpointing": cell.checkpointing,
        "lr_scheduler_type": "cosine", "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
    }  # fmt: skip
    if engine != "one" and rows > 2:
        training["per_device_train_batch_size"] = 2
    own = {} if cell.what == "preference" else {"sample_generations": 0}
    values = tiny.recipe_values(
        "", "", name=f"{cell.name}-{engine}", training=training, distributed=distributed, model={"name_or_path": str(model_at(folder, model))},
        task={**WHAT[cell.what]["task"], **own, "chat_template": TEMPLATES[cell.strategy]}, strategy=STRATEGIES[cell.strategy],
        data={"source": None, **data_of(cell), "max_length": LENGTHS[cell.what], "cache_dir": str(folder / "cache")},
        evaluation={"bootstrap": 0, "baselines": [], "verify_saved": False},
    )  # fmt: skip
    values["training"] = {name: value for name, value in values["training"].items() if value is not None}
    loaded, problems = examine(str(tiny.write_recipe(folder / f"{cell.name}-{engine}.yaml", values)), [])
    assert loaded is not None and not problems, problems
    return create_run(loaded, runs=folder / "runs", hardware=grid.CPU)[0].path


def run_cells(
    folder: Path, model: str, engine: str, distributed: dict[str, Any], cells: list[Cell]
) -> dict[Cell, Path]:
    command = [sys.executable] if engine == "one" else grid._ranks(distributed)
    found = {cell: make_run(folder, model, engine, distributed, cell) for cell in cells}
    grid.start(command, [*found.values()], folder)
    return found


@pytest.fixture(scope="module")
def one(folder: Path, model: str, size: str, kept: dict[Any, Any]) -> dict[Cell, Path]:
    if folder not in kept:
        cells = ALL if size == "full" else [Cell(what, strategy, False) for what in SOON for strategy in STRATEGIES]
        kept[folder] = run_cells(folder, model, "one", {"processes_per_node": 1}, cells)
    return kept[folder]


@pytest.fixture(scope="module", params=ENGINES)
def two(
    request: pytest.FixtureRequest, folder: Path, model: str, size: str, one: dict[Cell, Path], kept: dict[Any, Any]
) -> dict[Cell, Path]:
    key = (folder, request.param)
    if key not in kept:
        cells = ALL if size == "full" else pairwise(request.param)
        kept[key] = run_cells(folder, model, request.param, ENGINES[request.param], cells)
    return kept[key]


def loss_of_validation(run: Path) -> float:
    return float(json.loads((run / "evaluation/metrics.json").read_text())["metrics"]["loss"])


def test_one_process_learns(one: dict[Cell, Path], model: str) -> None:
    for cell, run in one.items():
        losses = tiny.losses(run)
        assert len(losses) == STEPS and all(math.isfinite(loss) for loss in losses.values()), cell.name
        # Adapters beside random weights learn little in so few steps.
        if cell.what != "preference" and (model, cell.strategy) != ("17m", "lora"):
            # What is read differs from step to step.
            assert losses[STEPS - 1] + losses[STEPS] < losses[1] + losses[2], cell.name


def test_two_ranks_have_the_rows_and_the_losses_of_one(two: dict[Cell, Path], one: dict[Cell, Path]) -> None:
    for cell, run in two.items():
        # Recomputed activations are those of before: one process need not show it here.
        wanted = one.get(cell, one[cell._replace(checkpointing=False)])
        assert tiny.ledger(run) == tiny.ledger(wanted), cell.name
        assert tiny.losses(run) == pytest.approx(tiny.losses(wanted), rel=1e-4), cell.name
        assert loss_of_validation(run) == pytest.approx(loss_of_validation(wanted), rel=1e-4), cell.name


def test_packed_rows_hold_several_conversations(one: dict[Cell, Path]) -> None:
    for cell, run in one.items():
        train = json.loads((run / "plan.json").read_text())["facts"]["splits"]["train"]
        assert (train.get("sequences", 0) > train["rows"]) == (cell.what == "packed"), cell.name


def test_embeddings_for_the_template_s_tokens_are_saved(
    two: dict[Cell, Path], one: dict[Cell, Path], model: str
) -> None:
    """Two more than the small model had; where its weights are sharded, they are gathered for it."""
    from safetensors.torch import load_file

    known = {"stories": 512, "17m": RANDOM["vocab_size"]}[model]
    for cell, run in two.items():
        wanted = one.get(cell, one[cell._replace(checkpointing=False)])
        found, theirs = (
            load_file(path / "model/model.safetensors")["model.embed_tokens.weight"] for path in (run, wanted)
        )
        assert found.shape == theirs.shape == (max(known, 514 if cell.strategy == "full" else 512), found.shape[1])
        assert (found - theirs).abs().max() < 2e-3, cell.name
