"""Does a model keep packed sequences apart? Shown on a small random model of its architecture, before anything is trained."""

from __future__ import annotations

import copy
from typing import Any

from launcher.errors import ModelError

# Fields that make a model large, and what is enough here.
_SMALL = {
    "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2, "n_layers": 2, "vocab_size": 64, "hidden_size": 32, "n_embd": 32, "d_model": 32,
    "word_embed_proj_dim": 32, "embedding_size": 32, "intermediate_size": 32, "n_inner": 32, "ffn_dim": 32, "ffn_hidden_size": 32,
    "moe_intermediate_size": 32, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "num_experts_per_tok": 2, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64,
    "num_kv_shared_layers": 0, "rotary_dim": 8,
}  # fmt: skip
_TOKENS = (("pad_token_id", None), ("bos_token_id", 1), ("eos_token_id", 2))
_LENGTHS = (7, 5)
_NEAR = 1e-3


def require_apart(config: Any) -> None:
    """Raise ModelError where packed sequences of a model of this configuration see each other, or where that cannot be shown."""
    difference = leak(config)
    if difference is None:
        raise ModelError(
            f"whether a {config.model_type} model keeps packed sequences apart cannot be shown on a small one; write task.packing: false"
        )
    if difference > _NEAR:
        raise ModelError(
            f"in a {config.model_type} model packed sequences see each other (logits differ by {difference:.2g} from those of the sequences "
            "alone): it does not tell them by their positions; write task.packing: false"
        )


def leak(config: Any) -> float | None:
    """Return by how much logits of two packed sequences differ from those of each alone, at most; None: no small model can be made."""
    import torch
    from transformers import AutoModelForCausalLM

    from launcher.data.packing import positions

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = AutoModelForCausalLM.from_config(_smaller(config), attn_implementation="sdpa").float().eval()
        except Exception:  # whatever an architecture refuses of such numbers
            try:
                model = AutoModelForCausalLM.from_config(_smaller(config)).float().eval()
            except Exception:
                return None
        ids = torch.randint(3, model.get_input_embeddings().num_embeddings, (1, sum(_LENGTHS)))
        places = torch.from_numpy(positions([_LENGTHS], places=sum(_LENGTHS)))
        try:
            with torch.no_grad():
                packed = model(input_ids=ids, position_ids=places, use_cache=False).logits
                alone = [model(input_ids=part, use_cache=False).logits for part in ids.split(_LENGTHS, dim=1)]
        except Exception:
            return None
    return float((packed - torch.cat(alone, dim=1)).abs().max())


def _smaller(config: Any) -> Any:
    """Return the configuration of a small model of the same kind."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    for name, most in _SMALL.items():
        value = getattr(text, name, None)
        # Some names are only read, and parts of heads that are sized on their own go with the whole heads.
        if isinstance(value, int) and not isinstance(value, bool) and name in vars(text):
            setattr(
                text, name, min(value, most) if name != "head_dim" or not hasattr(text, "qk_rope_head_dim") else value
            )
    for name, number in _TOKENS:
        if hasattr(text, name):
            setattr(text, name, number)
    types = getattr(text, "layer_types", None)
    if types:
        # The last of a pattern has another kind of attention than the others.
        text.layer_types = [types[0], types[-1]]
    for name in ("quantization_config", "auto_map"):
        if hasattr(small, name):
            delattr(small, name)
    return small
