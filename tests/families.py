"""Small models of nine families with a classification head, built on the spot; what they take; and, by hand from names alone,
where each of their parameters lies.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NUM_LABELS = 3
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}


def _text(kind: str, **fields: Any) -> Callable[[], Any]:
    """Return a builder of ``{kind}ForSequenceClassification``."""

    def build() -> Any:
        import transformers

        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = getattr(transformers, f"{kind}Config")(vocab_size=40, num_labels=NUM_LABELS, **special, **fields)
        return getattr(transformers, f"{kind}ForSequenceClassification")(config)

    return build


def _image(kind: str, **fields: Any) -> Callable[[], Any]:
    """Return a builder of ``{kind}ForImageClassification``."""

    def build() -> Any:
        import transformers

        config = getattr(transformers, f"{kind}Config")(num_labels=NUM_LABELS, **fields)
        return getattr(transformers, f"{kind}ForImageClassification")(config)

    return build


FAMILIES: dict[str, Callable[[], Any]] = {
    "bert": _text("Bert", max_position_embeddings=32, **SIZES),
    "distilbert": _text("DistilBert", dim=32, hidden_dim=64, n_heads=2, n_layers=3, max_position_embeddings=32),
    "roberta": _text("Roberta", max_position_embeddings=32, **SIZES),
    "deberta-v2": _text(
        "DebertaV2", max_position_embeddings=32, relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm",
        pos_att_type=["p2c", "c2p"], share_att_key=True, position_biased_input=False, **SIZES,
    ),
    "t5": _text("T5", d_model=32, d_kv=16, d_ff=64, num_heads=2, num_layers=2, decoder_start_token_id=0),
    "gpt2": _text("GPT2", n_embd=32, n_head=2, n_layer=3, n_positions=32),
    "llama": _text("Llama", num_key_value_heads=2, max_position_embeddings=32, **SIZES),
    "vit": _image("ViT", image_size=16, patch_size=8, **SIZES),
    "resnet": _image("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic"),
}  # fmt: skip
HEADS = {
    "bert": "classifier.", "distilbert": ("pre_classifier.", "classifier."), "roberta": "classifier.",
    "deberta-v2": ("pooler.", "classifier."), "t5": "classification_head.", "gpt2": "score.", "llama": "score.",
    "vit": "classifier.", "resnet": "classifier.",
}  # fmt: skip


def build(name: str, *, seed: int = 0) -> Any:
    """Return a family's model with weights of a fixed seed."""
    import torch

    torch.manual_seed(seed)
    return FAMILIES[name]()


def head_names(name: str, model: Any) -> frozenset[str]:
    """Return the names of the head's parameters: what a checkpoint of the encoder does not have."""
    return frozenset(n for n, _ in model.named_parameters() if n.startswith(HEADS[name]))


def inputs(model: Any, *, rows: int = 4, seed: int = 0) -> dict[str, Any]:
    """Return a random batch with labels: token ids and mask [rows, 8], or pixels [rows, 3, 16, 16]; labels [rows]."""
    import torch

    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % NUM_LABELS
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=random), "labels": labels}
    ids = torch.randint(3, 40, (rows, 8), generator=random)
    ids[:, -1] = 2  # T5 reads its answer at the end of the text.
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


# --- where each parameter lies, by hand ------------------------------------------------------------------------------

# Family -> (L, [(pattern of a name's beginning, role, depth)]); the first that matches counts. A depth of None: the number in
# the name plus 1; -1: L+1.
Row = tuple[str, str, int | None]
PLACES: dict[str, tuple[int, list[Row]]] = {
    "bert": (3, [
        (r"bert\.embeddings\.", "embeddings", 0), (r"bert\.encoder\.layer\.(\d)\.", "block", None),
        (r"bert\.pooler\.", "tail", -1), (r"classifier\.", "head", -1),
    ]),
    "distilbert": (3, [
        (r"distilbert\.embeddings\.", "embeddings", 0), (r"distilbert\.transformer\.layer\.(\d)\.", "block", None),
        (r"(pre_)?classifier\.", "head", -1),
    ]),
    "roberta": (3, [
        (r"roberta\.embeddings\.", "embeddings", 0), (r"roberta\.encoder\.layer\.(\d)\.", "block", None),
        (r"classifier\.", "head", -1),
    ]),
    # Its blocks share the embeddings of relative positions and their norm.
    "deberta-v2": (3, [
        (r"deberta\.embeddings\.|deberta\.encoder\.(rel_embeddings|LayerNorm)\.", "embeddings", 0),
        (r"deberta\.encoder\.layer\.(\d)\.", "block", None), (r"(pooler|classifier)\.", "head", -1),
    ]),
    # Two blocks of the encoder, whose final norm is the second's, then two of the decoder.
    "t5": (4, [
        (r"transformer\.shared\.|.*relative_attention_bias", "embeddings", 0),
        (r"transformer\.encoder\.block\.0\.", "block", 1), (r"transformer\.encoder\.block\.1\.", "block", 2),
        (r"transformer\.encoder\.final_layer_norm\.", "block", 2), (r"transformer\.decoder\.block\.0\.", "block", 3),
        (r"transformer\.decoder\.block\.1\.", "block", 4), (r"transformer\.decoder\.final_layer_norm\.", "tail", -1),
        (r"classification_head\.", "head", -1),
    ]),
    "gpt2": (3, [
        (r"transformer\.w[tp]e\.", "embeddings", 0), (r"transformer\.h\.(\d)\.", "block", None),
        (r"transformer\.ln_f\.", "tail", -1), (r"score\.", "head", -1),
    ]),
    "llama": (3, [
        (r"model\.embed_tokens\.", "embeddings", 0), (r"model\.layers\.(\d)\.", "block", None),
        (r"model\.norm\.", "tail", -1), (r"score\.", "head", -1),
    ]),
    "vit": (3, [
        (r"vit\.embeddings\.", "embeddings", 0), (r"vit\.layers\.(\d)\.", "block", None),
        (r"vit\.layernorm\.", "tail", -1), (r"classifier\.", "head", -1),
    ]),
    "resnet": (4, [
        (r"resnet\.embedder\.", "embeddings", 0), (r"resnet\.encoder\.stages\.0\.layers\.0\.", "block", 1),
        (r"resnet\.encoder\.stages\.0\.layers\.1\.", "block", 2), (r"resnet\.encoder\.stages\.1\.layers\.0\.", "block", 3),
        (r"resnet\.encoder\.stages\.1\.layers\.1\.", "block", 4), (r"classifier\.", "head", -1),
    ]),
}  # fmt: skip

# Where no gradient can reach: the bias of a key adds the same to all scores of a query, and softmax takes it away again.
WITHOUT_GRADIENT = {
    "bert": r"bert\.encoder\.layer\.\d\.attention\.self\.key\.bias",
    "roberta": r"roberta\.encoder\.layer\.\d\.attention\.self\.key\.bias",
    "distilbert": r"distilbert\.transformer\.layer\.\d\.attention\.k_lin\.bias",
    "vit": r"vit\.layers\.\d\.attention\.k_proj\.bias",
}


@dataclass(frozen=True)
class Place:
    role: str
    depth: int
    last: int
    """L, the number of blocks."""


def place(family: str, name: str) -> Place:
    last, rows = PLACES[family]
    for pattern, role, depth in rows:
        match = re.match(pattern, name)
        if match:
            number = int(match[1]) + 1 if depth is None else last + 1 if depth == -1 else depth
            return Place(role, number, last)
    raise AssertionError(f"the test says nothing about {name}")


# --- one step --------------------------------------------------------------------------------------------------------


def one_step(model: Any, table: Any) -> None:
    """Forward, backward and one step of AdamW with the table's groups."""
    import torch

    tensors = dict(model.named_parameters())
    groups = [
        {"params": [tensors[name] for name in group.parameters], "lr": group.lr, "weight_decay": group.weight_decay}
        for group in table.trainable
    ]
    optimizer = torch.optim.AdamW(groups)
    model.train()
    torch.manual_seed(1)
    model(**inputs(model)).loss.backward()
    optimizer.step()
