"""Models that predict the next token: how they are loaded, their output layer, and their vocabulary."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from launcher.errors import ModelError
from launcher.recipe.schema import ModelSection
from launcher.tasks.models import LoadedModel, load_config, load_model

# Their output layers read a text in both directions: each token would see what it is to predict.
_NOT_CAUSAL = ("xlm", "xlnet")


def load_causal_config(section: ModelSection, *, skeleton: bool) -> Any:
    """Return the configuration of a model that predicts the next token. Raises ModelError for one that does not."""
    config = load_config(section, skeleton=skeleton)
    if config.model_type in _NOT_CAUSAL:
        raise ModelError(
            f"a {config.model_type} model reads texts in both directions, so it cannot be trained on next tokens; choose "
            "another model"
        )
    if getattr(config, "is_decoder", None) is False:
        # Encoders read in both directions unless they are told to be decoders: each token would see what it predicts.
        config.is_decoder = True
    return config


def load_causal_model(section: ModelSection, config: Any, *, skeleton: bool, quantization: Any) -> LoadedModel:
    """Return a model with its own output layer. Raises ModelError."""
    from transformers import AutoModelForCausalLM

    loaded = load_model(
        AutoModelForCausalLM, section, config, skeleton=skeleton, quantization=quantization, new_head=False
    )
    # Keys and values of all tokens are of use to generation only; generation_config.json keeps them there.
    loaded.model.config.use_cache = False
    # The loss is ours; Trainer must not scale it by its own count.
    loaded.model.accepts_loss_kwargs = False
    return loaded


def takes_logits_to_keep(config: Any) -> bool:
    """Whether a model of this configuration gives logits at chosen places alone."""
    import inspect

    from transformers import AutoModelForCausalLM

    try:
        found: Any = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        # Its code is its own.
        return False
    return "logits_to_keep" in inspect.signature(found.forward).parameters


def longest_row(tokenizer: Any, config: Any) -> int | None:
    """Return how many tokens a model takes; None: that is not known."""
    known = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    return min((size for size in known if size and 0 < size < 10**7), default=None)


def with_vocabulary(loaded: LoadedModel, tokens: int) -> LoadedModel:
    """Return a model that has a row of embeddings for each of ``tokens``; new ones are the mean of the others, and have to train.

    Where weights are sharded over ranks while they are loaded (ZeRO-3), they are gathered for it.
    """
    model = loaded.model
    known = model.get_input_embeddings().num_embeddings
    if tokens <= known:
        return loaded
    model.resize_token_embeddings(tokens, mean_resizing=False)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = {id(layer.weight): layer.weight for layer in layers if layer is not None}
    for weight in weights.values():
        _set_to_mean(weight, first=known)
    names = {name for name, weight in model.named_parameters() if id(weight) in weights}
    return LoadedModel(model, loaded.newly_initialized | names)


def _set_to_mean(weight: Any, *, first: int) -> None:
    """Give the rows of ``weight`` [tokens, width] from ``first`` on the mean of those before."""
    import torch

    if weight.is_meta:
        return
    gathered: Any = nullcontext()
    if hasattr(weight, "ds_id"):
        from deepspeed import zero

        gathered = zero.GatheredParameters([weight], modifier_rank=0)
    with gathered, torch.no_grad():
        if weight.shape[0] > first:
            weight[first:] = weight[:first].float().mean(dim=0, keepdim=True).to(weight.dtype)
