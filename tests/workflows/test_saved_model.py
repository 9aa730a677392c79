"""What a run saves is held to its live model: every way of training, and what happens where they differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from engine import in_process
from safetensors.torch import load_file, save_file

from launcher.atomic import write_json
from launcher.engine.checkpoint_files import MANIFEST
from launcher.engine.session import write_verdict
from launcher.errors import Interrupted, SavedModelDiffers
from launcher.workflows.evaluate import evaluate_and_report
from launcher.workflows.finish import save_model
from launcher.workflows.saved_model import ROWS, SavedModelCheck, _places
from launcher.workflows.verify import raise_if_it_differs, verification_of, verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("saved")
    tiny.save_bert(found / "bert", hidden_dropout_prob=0.1)
    tiny.write_data(found / "data", train=24)
    return found


def trained(folder: Path, runs: Path, **changes: Any) -> tuple[Any, SavedModelCheck]:
    """A trained run, and its check without a process."""
    changes = {"evaluation": {"verify_saved": True, "bootstrap": 0, "baselines": []}, **changes}
    changes["training"] = {"num_train_epochs": 1, "learning_rate": 0.01, **changes.get("training", {})}
    made = in_process.prepare(folder / "bert", folder / "data", runs, **changes)
    trainer, _ = made.train()
    trainer.make_whole()
    context = made.context
    write_json(context.run.plan, {**context.plan.to_json(), "facts": dict(context.prepared.facts)})
    check = SavedModelCheck(
        context.recipe,
        context.launch,
        context.run,
        attempt=context.attempt,
        progress=context.progress,
        stop=context.stop,
    )
    return trainer, check


LORA = {"type": "lora", "r": 4}
CASES: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({}, 0.0),
    "bf16": ({"precision": "bf16"}, 0.0),
    "lora": ({"strategy": LORA}, 1e-5),
    "dora": ({"strategy": {**LORA, "use_dora": True}}, 1e-5),
    "lora-bf16": ({"strategy": LORA, "precision": "bf16"}, 5e-2),
    "modules-to-save": ({"strategy": {**LORA, "modules_to_save": ["bert.embeddings.word_embeddings"]}}, 1e-5),
    "pissa": ({"strategy": {**LORA, "init_lora_weights": "pissa"}}, 1e-5),
    "cached-head": ({"strategy": {"type": "head", "prefix_cache": "memory"}}, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_is_what_was_trained(folder, tmp_path, case):
    changes, most = CASES[case]
    trainer, check = trained(folder, tmp_path, **changes)
    save_model(trainer, check)
    check.begin()
    found = verify(check.run.model, check.request)
    assert found["passed"], found
    assert found["rows"] == ROWS and found["model"]["largest_difference"] <= most
    # Adapters on their base compute as the live model did, to the bit.
    assert (found["adapter"] is None) == ("lora" not in str(changes))
    assert found["adapter"] is None or found["adapter"]["largest_difference"] == 0.0


def change(path: Path, name: str) -> None:
    tensors = load_file(path)
    tensors[name] = tensors[name] + 0.1
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_changed_adapter_is_named(folder, tmp_path):
    trainer, check = trained(folder, tmp_path, strategy=LORA)
    save_model(trainer, check)
    check.begin()
    name = next(key for key in load_file(check.run.adapter / "adapter_model.safetensors") if "lora_B" in key)
    change(check.run.adapter / "adapter_model.safetensors", name)
    found = verify(check.run.model, check.request)
    assert not found["passed"] and not found["model"]["differing_tensors"]
    assert found["adapter"]["differing_tensors"] == (name.replace(".weight", ".default.weight"),)


@pytest.fixture(scope="module")
def tampered(folder, tmp_path_factory) -> tuple[Any, pytest.ExceptionInfo[SavedModelDiffers]]:
    """A run whose model/ was changed between saving and comparing, by the process that a run starts."""
    trainer, check = trained(folder, tmp_path_factory.mktemp("tampered"))
    check.get_ready(trainer.model, 1000.0)
    assert check._process is None, "training is far from its end"
    check.get_ready(trainer.model, 1.0)
    process = check._process
    assert process is not None
    check.start(trainer.model)
    assert check._process is process
    save_model(trainer, check)
    change(check.run.model / "model.safetensors", "classifier.weight")
    with pytest.raises(SavedModelDiffers) as error:
        evaluate_and_report(trainer, check, worker_seconds=1.0)
    return check.run, error


def test_a_model_that_is_not_the_trained_one_ends_the_run_with_an_error(tampered, tmp_path):
    run, error = tampered
    text = str(error.value)
    assert "the saved model is not the trained one: model/ has not the trained values in classifier.weight" in text
    assert "its logits differ by" in text and f"launcher resume {run.path}" in text
    assert write_verdict(tmp_path / "verdict.json", error.value) == 10
    assert json.loads((tmp_path / "verdict.json").read_text())["verdict"] == "saved_model_differs"


def test_all_that_it_has_is_kept_and_marked(tampered):
    run, _ = tampered
    assert verification_of(run)["passed"] is False
    assert json.loads((run.model / MANIFEST).read_text())["sha256"].keys() >= {"model.safetensors", "config.json"}
    assert (run.model / "model.safetensors").is_file() and run.latest_checkpoint() is not None
    assert (run.evaluation / "metrics.json").is_file()
    assert "the saved model is not the trained one" in run.report.read_text()
    with pytest.raises(SavedModelDiffers):
        raise_if_it_differs(run)


def test_a_process_that_dies_says_nothing_about_the_model(folder, tmp_path):
    trainer, check = trained(folder, tmp_path)
    check.start(trainer.model)
    check._process.kill()
    save_model(trainer, check)
    check.begin()
    found = check.result()
    assert found["passed"] is None and "code -9" in found["reason"]
    raise_if_it_differs(check.run)


def test_a_stop_ends_the_process(folder, tmp_path):
    trainer, check = trained(folder, tmp_path)
    check.start(trainer.model)
    check.stop.reason = "SIGTERM"
    with pytest.raises(Interrupted, match="while the saved model was verified"):
        check.result()
    assert check._process.returncode == -9


def test_switched_off_nothing_is_compared(folder, tmp_path):
    trainer, check = trained(folder, tmp_path, evaluation={"verify_saved": False, "bootstrap": 0, "baselines": []})
    check.start(trainer.model)
    save_model(trainer, check)
    check.begin()
    assert check.result() == {"passed": None, "reason": "evaluation.verify_saved is false"}
    assert not check.folder.exists() and (check.run.model / MANIFEST).is_file()


def test_of_a_language_models_logits_real_tokens_are_kept_and_their_number_is_bounded():
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])
    assert _places({"attention_mask": mask}, (2, 4, 10), share=1).tolist() == [1, 2, 3, 4, 5]
    few = _places({"attention_mask": mask}, (2, 4, 2**21), share=1)
    assert few.tolist() == [1, 5]
    assert _places({}, (3, 7), share=0.5).tolist() == [0, 1, 2]
    assert len(_places({}, (2, 4, 10), share=1)) == 8
