"""Names that a recipe may use, and where their code lives; nothing is imported before it is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

# name -> "module:attribute". A row here, an options class in recipe/schema.py, one file, one shipped recipe and one test
# are all it takes to add one.
TASKS = {
    "text-classification": "launcher.tasks.text_classification:TextClassification",
    "token-classification": "launcher.tasks.token_classification:TokenClassification",
    "question-answering": "launcher.tasks.question_answering:QuestionAnswering",
    "causal-lm": "launcher.tasks.causal_lm:CausalLM",
    "sft": "launcher.tasks.sft:SFT",
    "preference": "launcher.tasks.preference:Preference",
    "reward": "launcher.tasks.reward:Reward",
    "masked-lm": "launcher.tasks.masked_lm:MaskedLM",
    "translation": "launcher.tasks.seq2seq:Translation",
    "summarization": "launcher.tasks.seq2seq:Summarization",
    "image-classification": "launcher.tasks.image_classification:ImageClassification",
    "object-detection": "launcher.tasks.object_detection:ObjectDetection",
    "semantic-segmentation": "launcher.tasks.semantic_segmentation:SemanticSegmentation",
}
STRATEGIES = {
    "full": "launcher.strategies.full:Full",
    "encoder": "launcher.strategies.encoder:Encoder",
    "head": "launcher.strategies.head:Head",
    "layerwise": "launcher.strategies.layerwise:Layerwise",
    "lora": "launcher.strategies.lora:Lora",
    "discriminative": "launcher.strategies.discriminative:Discriminative",
}
BACKENDS = {
    "local": "launcher.backends.local:LocalBackend",
    "slurm": "launcher.backends.slurm:SlurmBackend",
}

# What people type when they mean one of our words.
NEAR_MISSES = {
    "encoder-only": "encoder",
    "encoder_only": "encoder",
    "feature-extraction": "head",
    "linear-probe": "head",
    "linear_probe": "head",
    "sequence-classification": "text-classification",
    "text_classification": "text-classification",
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "pos": "token-classification",
    "named-entity-recognition": "token-classification",
    "sequence-labelling": "token-classification",
    "sequence-labeling": "token-classification",
    "tagging": "token-classification",
    "qa": "question-answering",
    "squad": "question-answering",
    "extractive-question-answering": "question-answering",
    "image_classification": "image-classification",
    "vision": "image-classification",
    "seq2seq": "translation",
    "machine-translation": "translation",
    "mt": "translation",
    "text2text-generation": "summarization",
    "summarisation": "summarization",
    "object_detection": "object-detection",
    "segmentation": "semantic-segmentation",
    "image-segmentation": "semantic-segmentation",
    "detection": "object-detection",
    "detr": "object-detection",
    "causal_lm": "causal-lm",
    "clm": "causal-lm",
    "language-modeling": "causal-lm",
    "language-modelling": "causal-lm",
    "text-generation": "causal-lm",
    "pretraining": "causal-lm",
    "instruction-tuning": "sft",
    "instruct": "sft",
    "chat": "sft",
    "supervised-fine-tuning": "sft",
    "supervised": "sft",
    "dpo": "preference",
    "ipo": "preference",
    "preferences": "preference",
    "reward-modeling": "reward",
    "reward-modelling": "reward",
    "reward_model": "reward",
    "rm": "reward",
    "masked_lm": "masked-lm",
    "mlm": "masked-lm",
    "fill-mask": "masked-lm",
    "masked-language-modeling": "masked-lm",
    "masked-language-modelling": "masked-lm",
    "domain-adaptation": "masked-lm",
    "full-finetuning": "full",
    "layer-wise": "layerwise",
    "layer_wise": "layerwise",
    "freeze": "layerwise",
    "gradual-unfreezing": "layerwise",
    "gradual_unfreezing": "layerwise",
    "qlora": "lora",
    "dora": "lora",
    "rslora": "lora",
    "adalora": "discriminative",
    "importance": "discriminative",
    "train": "run",
    "launch": "run",
    "start": "run",
    "continue": "resume",
    "validate": "check",
    "eval": "evaluate",
    "infer": "predict",
    "lr_find": "lr-find",
    "find-lr": "lr-find",
    "range-test": "lr-find",
    "new": "init",
    "convert": "import",
}


def suggest(word: str, known: Iterable[str]) -> str | None:
    """Return the name in ``known`` that ``word`` most likely meant, or None."""
    known = list(known)
    if NEAR_MISSES.get(word) in known:
        return NEAR_MISSES[word]
    folded = {name.lower().replace("-", "_"): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def load(registry: dict[str, str], name: str) -> Any:
    """Import and return the object registered under ``name``.

    Raises:
        KeyError: no such name; the message suggests a near one.
    """
    if name not in registry:
        near = suggest(name, registry)
        hint = f"; did you mean {near!r}?" if near else ""
        raise KeyError(f"{name!r} is not one of {', '.join(sorted(registry))}{hint}")
    module, attribute = registry[name].split(":")
    return getattr(importlib.import_module(module), attribute)
