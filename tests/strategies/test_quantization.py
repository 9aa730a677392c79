"""Which weights are quantised, and how many bytes they take, told without weights, is what bitsandbytes makes of a model."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification

from launcher.recipe.strategy_options import LoraOptions
from launcher.strategies.quantization import kept_whole, prepare_quantized, quantization_config, quantized_bytes

pytest.importorskip("bitsandbytes")


def _loaded(folder, options, kept):
    config = quantization_config(options, compute_dtype="float32", skip=kept)
    return AutoModelForSequenceClassification.from_pretrained(str(folder), quantization_config=config)


def _skeleton(folder):
    from transformers import AutoConfig

    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(str(folder)))


def _bytes(module):
    state = module.weight.quant_state
    scales = state.absmax.nbytes + state.state2.absmax.nbytes
    return module.weight.nbytes + scales


def test_four_bits_and_their_scales(tmp_path):
    folder = tiny.save_bert(tmp_path / "bert", hidden_size=128, intermediate_size=256, num_attention_heads=4)
    options = LoraOptions(type="lora", load_in_4bit=True)
    kept = kept_whole(_skeleton(folder), ["classifier"])
    told = quantized_bytes(_skeleton(folder), options, kept)
    made = {
        f"{name}.weight": module
        for name, module in _loaded(folder, options, kept).named_modules()
        if type(module).__name__ == "Linear4bit"
    }
    assert set(told) == set(made) and len(made) > 10
    shapes = dict(_skeleton(folder).named_parameters())
    whole = sum(told[name] * shapes[name].numel() for name in told)
    assert sum(_bytes(module) for module in made.values()) == pytest.approx(whole, rel=0.02)


def test_eight_bits(tmp_path):
    folder = tiny.save_bert(tmp_path / "bert")
    options = LoraOptions(type="lora", load_in_8bit=True)
    kept = kept_whole(_skeleton(folder), ["classifier"])
    made = {
        f"{name}.weight": module.weight
        for name, module in _loaded(folder, options, kept).named_modules()
        if type(module).__name__ == "Linear8bitLt"
    }
    told = quantized_bytes(_skeleton(folder), options, kept)
    assert set(told) == set(made) and all(told[name] == made[name].element_size() for name in told)


def test_an_output_layer_is_kept_whole_though_other_modules_are_named():
    """transformers leaves it out by itself only where nothing is named."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, vocab_size=100, tie_word_embeddings=False))
    kept = kept_whole(model, ["q_proj"])
    assert "lm_head" in kept
    told = quantized_bytes(model, LoraOptions(type="lora", load_in_4bit=True), kept)
    assert "lm_head.weight" not in told and not any(name.endswith("q_proj.weight") for name in told) and told


@pytest.mark.parametrize("width", [128, 24])
def test_training_goes_on_after_an_evaluation(tmp_path, width):
    """bitsandbytes packs weights in evaluation on processors with AVX512-BF16; gradients would end at the first packed layer."""
    folder = tiny.save_bert(tmp_path / "bert", hidden_size=width, intermediate_size=2 * width, num_attention_heads=4)
    options = LoraOptions(type="lora", load_in_4bit=True)
    model = prepare_quantized(_loaded(folder, options, kept_whole(_skeleton(folder), ["classifier"])))
    embeddings = model.get_input_embeddings().weight.requires_grad_()
    ids = torch.arange(5, 25)[None]

    def gradient():
        embeddings.grad = None
        model.train()(input_ids=ids).logits.square().sum().backward()
        return embeddings.grad.clone()

    before = gradient()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    assert before.abs().sum() > 0 and torch.equal(gradient(), before)
