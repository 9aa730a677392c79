"""A saved folder is held to the live model: bit for bit in its tensors, and in what it computes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from launcher.atomic import write_json
from launcher.workflows.verify import Finding, Probe, digest, digests, logits_of, main, verify, write_tensors

BATCHES = [
    {"input_ids": torch.arange(5, 29).reshape(3, 8), "attention_mask": torch.ones(3, 8, dtype=torch.long)},
    {"input_ids": torch.arange(40, 48).reshape(1, 8), "attention_mask": torch.ones(1, 8, dtype=torch.long)},
]


def bert(**fields: Any) -> Any:
    from transformers import BertForSequenceClassification

    torch.manual_seed(3)
    return BertForSequenceClassification(tiny.bert_config(num_labels=3, **fields)).eval()


def llama(*, tied: bool = True) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def probe_of(model: Any, folder: Path, *, autocast: str | None = None, **changes: Any) -> Path:
    """Write the probe of a live model."""
    tokens = "lm_head" in dict(model.named_modules())
    places = [torch.arange(batch["input_ids"].numel() if tokens else len(batch["input_ids"])) for batch in BATCHES]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast is not None):
        logits = logits_of(model, BATCHES, places)
    probe = Probe(
        rows=4, precision="fp32", architecture=type(model).__name__, dtype=str(next(model.parameters()).dtype)[6:],
        autocast=autocast, device="cpu", attention="sdpa", threads=1, tolerance=1e-6, digests=digests(model.state_dict()),
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    path = folder / "probe.json"
    write_tensors(path, BATCHES, places, logits)
    write_json(path, asdict(replace(probe, **changes)))
    return path


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder / "model")
    return folder / "model"


def change_tensor(folder: Path, name: str, change: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


def findings(folder: Path, probe: Path) -> tuple[bool, Finding]:
    found = verify(folder, probe)
    return found["passed"], Finding(
        **{**found["model"], "differing_tensors": tuple(found["model"]["differing_tensors"])}
    )


@pytest.mark.parametrize("make", [bert, llama, lambda: llama(tied=False)], ids=["bert", "tied", "untied"])
def test_the_same_model_gives_the_same_bits(tmp_path, make):
    model = make()
    passed, finding = findings(saved(model, tmp_path), probe_of(model, tmp_path))
    assert passed and finding.largest_difference == 0.0 and not finding.differing_tensors


def test_weights_in_bf16_and_autocast_are_computed_as_the_live_model_did(tmp_path):
    short, mixed = bert().to(torch.bfloat16), bert()
    assert findings(saved(short, tmp_path / "a"), probe_of(short, tmp_path / "a"))[1].largest_difference == 0.0
    probe = probe_of(mixed, tmp_path / "b", autocast="bfloat16")
    assert findings(saved(mixed, tmp_path / "b"), probe)[1].largest_difference == 0.0
    # Without it, the comparison would not be of the same computation.
    values = json.loads(probe.read_text())
    write_json(probe, {**values, "autocast": None})
    assert findings(tmp_path / "b/model", probe)[1].largest_difference > 1e-5


def test_a_changed_value_is_named_even_where_no_logit_tells(tmp_path):
    model = bert()
    folder, probe = saved(model, tmp_path), probe_of(model, tmp_path)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        # A token that no row of the probe has.
        tensor[100] += 1.0
        return tensor

    change_tensor(folder, "bert.embeddings.word_embeddings.weight", change)
    passed, finding = findings(folder, probe)
    assert not passed and finding.largest_difference == 0.0
    assert finding.differing_tensors == ("bert.embeddings.word_embeddings.weight",)
    assert finding.describe() == "has not the trained values in bert.embeddings.word_embeddings.weight"


def test_a_flipped_bit_is_found(tmp_path):
    model = bert()
    folder, probe = saved(model, tmp_path), probe_of(model, tmp_path)

    def flip(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(torch.int32)[0, 0] ^= 1
        return tensor

    change_tensor(folder, "classifier.weight", flip)
    assert findings(folder, probe)[1].differing_tensors == ("classifier.weight",)


def test_a_missing_tensor_is_named(tmp_path):
    model = bert()
    folder, probe = saved(model, tmp_path), probe_of(model, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    passed, finding = findings(folder, probe)
    assert not passed and finding.differing_tensors == ("classifier.weight",)


@pytest.mark.parametrize("field, value", [("hidden_act", "relu"), ("layer_norm_eps", 0.1), ("num_hidden_layers", 1)])
def test_a_configuration_that_computes_something_else_is_found(tmp_path, field, value):
    model = bert()
    folder, probe = saved(model, tmp_path), probe_of(model, tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, field: value}))
    passed, finding = findings(folder, probe)
    assert not passed and finding.largest_difference > finding.tolerance


def test_a_head_that_is_no_longer_tied_is_found(tmp_path):
    model = llama()
    folder, probe = saved(model, tmp_path), probe_of(model, tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": False}))
    passed, finding = findings(folder, probe)
    assert not passed and finding.differing_tensors == ("lm_head.weight",)


def test_resized_embeddings(tmp_path):
    model = llama()
    model.resize_token_embeddings(70, mean_resizing=False)
    folder, probe = saved(model, tmp_path), probe_of(model, tmp_path)
    assert findings(folder, probe)[0]
    # As if the size had not been written down: the new rows would be lost.
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "vocab_size": 64}))
    passed, finding = findings(folder, probe)
    assert not passed and "embed_tokens.weight" in finding.describe()


def test_a_truncated_file_cannot_be_loaded(tmp_path):
    model = bert()
    folder, probe = saved(model, tmp_path), probe_of(model, tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    passed, finding = findings(folder, probe)
    assert not passed and finding.describe().startswith("cannot be loaded: ")


def test_logits_that_are_not_finite_do_not_pass():
    assert not Finding(None, 1.0).passed and "not finite" in Finding(None, 1.0).describe()
    assert Finding(0.5, 1.0).passed and not Finding(2.0, 1.0).passed


def test_a_digest_is_of_shape_and_numbers():
    tensor = torch.tensor([[1.0, 2.0]])
    assert digest(tensor) == digest(tensor.to(torch.bfloat16)) == digest(torch.nn.Parameter(tensor))
    assert digest(tensor) != digest(tensor.T) and digest(tensor) != digest(-tensor)
    assert digest(torch.tensor(3)) != digest(torch.tensor(4))


def test_the_command_waits_for_its_probe_and_tells_by_its_code(tmp_path):
    model = bert()
    folder, probe = saved(model, tmp_path), probe_of(model, tmp_path)
    hidden = probe.rename(probe.with_name("later.json"))
    command = [sys.executable, "-m", "launcher.workflows.verify", str(folder), str(probe), "--wait"]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=tiny.environment())
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=2)
    hidden.rename(probe)
    out, _ = waiting.communicate(timeout=280)
    assert waiting.returncode == 0 and json.loads(out)["model"]["largest_difference"] == 0.0
    change_tensor(folder, "classifier.bias", lambda tensor: tensor + 1)
    assert main([str(folder), str(probe)]) == 1
    assert json.loads((tmp_path / "result.json").read_text())["passed"] is False
