"""What someone does with a saved model who has transformers and PEFT, and not launcher: run as a script, JSON in and out.

Standard input: a list of ``{run, conversation, chats, max_new_tokens, base}``. Standard output: what was found of each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline


def largest_difference(model: Any, probe: dict[str, torch.Tensor]) -> float:
    """Return by how much a model's logits differ, at most, from those of the model that was trained, as its run kept them."""
    found = []
    for number in range(sum(name.endswith(".places") for name in probe)):
        own = {name.split(".input.")[1]: value for name, value in probe.items() if name.startswith(f"{number}.input.")}
        with torch.no_grad():
            logits = model.eval()(**own).logits
        found.append(logits.reshape(-1, logits.shape[-1])[probe[f"{number}.places"]])
    return float((torch.cat(found) - probe["logits"]).abs().max())


def served(asked: dict[str, Any]) -> dict[str, Any]:
    """Load a run's model/ (and adapter/), and answer."""
    run, limit = Path(asked["run"]), asked["max_new_tokens"]
    folder, probe = str(run / "model"), load_file(run / "attempts/1/saved_model/probe.safetensors")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    found: dict[str, Any] = {
        "template": tokenizer.chat_template,
        "ids": tokenizer.apply_chat_template(asked["conversation"], return_dict=True)["input_ids"],
        "difference": largest_difference(model, probe),
        "ends": model.generation_config.eos_token_id,
        "pad": model.generation_config.pad_token_id,
        "rows": [model.get_input_embeddings().num_embeddings, len(tokenizer)],
    }
    if asked["base"]:
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(asked["base"])
        adapted = PeftModel.from_pretrained(base, str(run / "adapter"))
        found["adapter_difference"] = largest_difference(adapted, probe)
    found["tokens"], found["texts"] = [], []
    for chat in asked["chats"]:
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = model.generate(**prompt, max_new_tokens=limit, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        found["tokens"].append(written.tolist())
        found["texts"].append(tokenizer.decode(written, skip_special_tokens=True))
    answer = pipeline("text-generation", model=folder)
    found["pipeline"] = [
        answer(chat, max_new_tokens=limit, do_sample=False)[0]["generated_text"][-1] for chat in asked["chats"]
    ]
    return found


if __name__ == "__main__":
    results = [served(asked) for asked in json.load(sys.stdin)]
    assert not any(name.split(".")[0] == "launcher" for name in sys.modules)
    json.dump(results, sys.stdout)
