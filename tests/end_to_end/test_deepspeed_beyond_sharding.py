"""What DeepSpeed does beside sharding, on two real ranks: offloading, a file of the user's own, and ranks that share rows."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from launcher.atomic import write_json
from launcher.launching.batch import plan_batch
from launcher.plans import Hardware
from launcher.recipe.examine import examine
from launcher.rundir import RunDir
from launcher.workflows.start import create_attempt

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORKER = Path(__file__).with_name("warm_ranks.py")
CPU = Hardware((), 2, 2**33, cpu_has_fast_bf16=False)

CELLS: dict[str, dict[str, Any]] = {
    "zero-2": {"zero_stage": 2},
    "zero-1-optimizer": {"zero_stage": 1, "offload": "optimizer"},
    "zero-2-optimizer": {"zero_stage": 2, "offload": "optimizer"},
    "zero-3-optimizer": {"zero_stage": 3, "offload": "optimizer"},
    "zero-3-all": {"zero_stage": 3, "offload": "all"},
    "own-file": {"deepspeed_config": "own.json"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each cell, by one start of two ranks; layerwise, so that several groups are offloaded."""
    folder = tmp_path_factory.mktemp("offload")
    tiny.save_bert(folder / "bert")
    tiny.write_data(folder / "data", train=45)
    (folder / "own.json").write_text(
        json.dumps(
            {
                "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": 5000},
                "train_micro_batch_size_per_gpu": 2,
            }
        )
    )
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for cell, distributed in CELLS.items():
            values = tiny.recipe_values(
                "./bert", "./data", name=cell, strategy={"type": "layerwise", "layer_decay": 0.5},
                training={"num_train_epochs": 1, "per_device_train_batch_size": 2},
                distributed={"processes_per_node": 2, **distributed}, evaluation={"bootstrap": 0, "baselines": []},
            )  # fmt: skip
            loaded, problems = examine(str(tiny.write_recipe(folder / f"{cell}.yaml", values)), [])
            assert loaded is not None and not problems, problems
            made[cell] = create_attempt(loaded, runs=folder / "runs", hardware=CPU)[0].path
        # The attempt has its own copy: what the recipe names is not read again.
        (folder / "own.json").unlink()
    _walk(folder, *made.values())
    return made


def _walk(folder: Path, *paths: Path) -> None:
    """Train runs one after the other, on two ranks."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        ["env", "ACCELERATE_USE_DEEPSPEED=true", *torchrun, str(WORKER), *map(str, paths)],
        cwd=folder, env=tiny.environment(), capture_output=True, text=True, timeout=840,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip


ROWS = {"train": 21, "validation": 9, "test": 11}


def _texts(folder: Path) -> dict[str, Any]:
    """Write texts of ten words; return the task that learns them."""
    for number, (name, count) in enumerate(ROWS.items()):
        texts = [" ".join([*text.split(), *tiny.FILLER][:10]) for text, _ in tiny.rows(count, seed=number)]
        (folder / f"{name}.txt").write_text("\n".join(texts) + "\n")
    return {"type": "causal-lm"}


def _answers(folder: Path) -> dict[str, Any]:
    """Write questions and answers of ten words together, answers of 2 to 6 of them; return the task that learns the answers."""
    for number, (name, count) in enumerate(ROWS.items()):
        drawn = np.random.default_rng(number)
        rows = [(drawn.choice(tiny.FILLER, 10).tolist(), int(drawn.integers(2, 7))) for _ in range(count)]
        lines = [{"prompt": " ".join(words[:-own]) + " ", "completion": " ".join(words[-own:])} for words, own in rows]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"type": "sft", "chat_template": "raw", "sample_generations": 0}


@pytest.mark.parametrize("write", [_texts, _answers])
def test_ranks_that_share_rows_train_as_ranks_with_rows_of_their_own(write, tmp_path, monkeypatch):
    """A small language model on two ranks with rows of their own, and on two ranks that share each row.

    The plan refuses the second without GPUs, because gloo cannot gather rows of different lengths; these have one length.
    """
    monkeypatch.chdir(tmp_path)
    tiny.save_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "data").mkdir()
    task = write(tmp_path / "data")
    model = {"name_or_path": None, "tokenizer_name_or_path": str(tmp_path / "tokenizer"), "config": LLAMA}
    runs = {}
    # Ulysses starts once in a process, so it comes last.
    for name in ("own-rows", "shared-rows"):
        values = tiny.recipe_values(
            "", "./data", name=name, task=task, model=model,
            training={"num_train_epochs": 1, "per_device_train_batch_size": 2},
            distributed={"processes_per_node": 2, "zero_stage": 2}, evaluation={"bootstrap": 0, "baselines": []},
        )  # fmt: skip
        loaded, problems = examine(str(tiny.write_recipe(tmp_path / f"{name}.yaml", values)), [])
        assert loaded is not None and not problems, problems
        runs[name] = create_attempt(loaded, runs=tmp_path / "runs", hardware=CPU)[0]
    _share_rows(runs["shared-rows"])
    _walk(tmp_path, *(run.path for run in runs.values()))
    found, wanted = (tiny.jsonl(runs[name].path / "progress.jsonl") for name in ("shared-rows", "own-rows"))
    for key in ("loss", "grad_norm", "eval_loss"):
        ours, theirs = ([row[key] for row in rows if key in row] for rows in (found, wanted))
        assert ours and ours == pytest.approx(theirs, rel=1e-4), key
    assert tiny.ledger(runs["shared-rows"].path) == tiny.ledger(runs["own-rows"].path)


def _share_rows(run: RunDir) -> None:
    note = json.loads(run.launch_plan(1).read_text())
    batch = plan_batch(global_batch_size=8, world_size=1, cap=2, multiple_of=2)
    note["plan"] |= {"sequence_parallel_size": 2, "batch": asdict(batch)}
    write_json(run.launch_plan(1), note)
    resolved = run.resolved.read_text()
    assert "sequence_parallel_size: 1" in resolved
    run.resolved.write_text(resolved.replace("sequence_parallel_size: 1", "sequence_parallel_size: 2"))


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "zero-2"])
def test_offloading_changes_no_loss(runs, cell):
    found, wanted = tiny.losses(runs[cell]), tiny.losses(runs["zero-2"])
    assert len(wanted) == 6
    assert found == pytest.approx(wanted, rel=1e-4)
    assert tiny.ledger(runs[cell]) == tiny.ledger(runs["zero-2"])


@pytest.mark.parametrize("cell", CELLS)
def test_offloading_changes_no_weight(runs, cell):
    from safetensors.torch import load_file

    found, wanted = (load_file(runs[name] / "model/model.safetensors") for name in (cell, "zero-2"))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name] == pytest.approx(tensor, rel=1e-4, abs=1e-5), name


def test_the_attempt_says_what_is_offloaded(runs):
    for cell, offload in {
        "zero-2": "none",
        "zero-1-optimizer": "optimizer",
        "zero-3-all": "all",
        "own-file": "optimizer",
    }.items():
        launch = json.loads((runs[cell] / "plan.json").read_text())["launch"]
        assert launch["offload"] == offload, cell
    own = json.loads((runs["own-file"] / "attempts/1/deepspeed.json").read_text())
    assert own["zero_optimization"]["reduce_bucket_size"] == 5000 and own["train_batch_size"] == 8
    assert "auto" not in json.dumps(own)
