"""How a model writes texts: its special tokens and its generation_config, which are saved with it, so that it writes the same elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.errors import ModelError
from launcher.recipe.schema import ModelSection
from launcher.tasks.models import locate

# Fields of generation_config.json that the recipe sets.
_OPTIONS = ("num_beams", "length_penalty", "no_repeat_ngram_size")
# What sampling goes by; an evaluation must give the same texts each time.
_SAMPLING = ("temperature", "top_k", "top_p", "typical_p", "min_p", "epsilon_cutoff", "eta_cutoff")


def settle_special_tokens(config: Any, section: ModelSection, *, pad: int | None, end: int) -> None:
    """Give a random model the tokenizer's special tokens, unless ``model.config`` names its own; a pretrained one has them.

    Raises:
        ModelError: the model does not know with which token it begins to write.
    """
    given = section.config or {}
    if section.name_or_path is None:
        wanted = {"pad_token_id": pad, "eos_token_id": end, "decoder_start_token_id": pad}
        for name, number in wanted.items():
            if name not in given and number is not None:
                setattr(config, name, number)
    if getattr(config, "decoder_start_token_id", None) is None:
        raise ModelError(
            "the model's configuration has no decoder_start_token_id, the token with which it begins to write; add "
            "model.config: {decoder_start_token_id: ...} (often the pad or the begin token)"
        )


def settle_generation(model: Any, section: ModelSection, options: Any, *, target_lang: int | None) -> None:
    """Make the model's generation_config say what the recipe does: the same text each time, at most max_target_length tokens of it."""
    from transformers import GenerationConfig

    config = model.generation_config
    folder = None if section.name_or_path is None else Path(locate(section.name_or_path))
    if folder is not None and (folder / "generation_config.json").is_file():
        # A model without weights did not read it.
        config = GenerationConfig.from_pretrained(folder)
    for name in _OPTIONS:
        if getattr(options, name) is not None:
            setattr(config, name, getattr(options, name))
    config.do_sample = False
    for name in _SAMPLING:
        setattr(config, name, None)
    config.max_length, config.max_new_tokens = None, options.max_target_length
    config.num_return_sequences = 1
    for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
        if getattr(config, name, None) is None:
            setattr(config, name, getattr(model.config, name, None))
    if target_lang is not None:
        config.forced_bos_token_id = target_lang
    if (config.num_beams or 1) == 1:
        # Without beams these have no effect, and transformers warns of them.
        config.length_penalty, config.early_stopping = None, None
    model.generation_config = config


def waits_for_others(model: Any) -> bool:
    """Whether the weights are shared among ranks (ZeRO-3), so that all have to go on writing until the last one has ended.

    Transformers tells it from DeepSpeed's configuration, which a rank that has saved a merged model no longer has.
    """
    import torch.distributed as dist

    is_shared = any(hasattr(weight, "ds_id") for weight in model.parameters())
    return is_shared and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
