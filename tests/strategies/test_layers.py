"""The depth order that is found in models of many families, and the tables that rest on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as tf

from launcher.contracts import Parameter, TuningTable
from launcher.errors import ModelError
from launcher.recipe.schema import Recipe
from launcher.registry import STRATEGIES, load
from launcher.strategies.layers import block_modules, list_parameters, number_of_blocks, uses

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}


@dataclass(frozen=True)
class Family:
    """A small model of a family, and what its parts must be; patterns match whole names."""

    build: Callable[[], Any]
    blocks: int
    block_of: Callable[[str], int | None]
    """Name -> number of the block that it must lie in, from 1; None: outside."""
    embeddings: str
    tail: str
    head: str


def text(config: Any, kind: str = "AutoModelForSequenceClassification") -> Callable[[], Any]:
    return lambda: getattr(tf, kind).from_config(config)


def numbered(pattern: str) -> Callable[[str], int | None]:
    def block_of(name: str) -> int | None:
        match = re.match(pattern, name)
        return int(match[1]) + 1 if match else None

    return block_of


def t5_block(name: str) -> int | None:
    # T5's encoder blocks 1-2, then the decoder's 3-4; the norm behind the encoder belongs to its last block, and the
    # relative positions, which all blocks of a stack share, are embeddings.
    if "relative_attention_bias" in name:
        return None
    if name.endswith("encoder.final_layer_norm.weight"):
        return 2
    match = re.match(r"transformer\.(encoder|decoder)\.block\.(\d+)\.", name)
    return int(match[2]) + 1 + (2 if match[1] == "decoder" else 0) if match else None


def resnet_block(name: str) -> int | None:
    match = re.match(r"resnet\.encoder\.stages\.(\d)\.layers\.(\d)\.", name)
    return int(match[1]) * 2 + int(match[2]) + 1 if match else None


T5 = tf.T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=2)
BERT_LIKE = r"{}\.encoder\.layer\.(\d+)\."

FAMILIES = {
    "bert": Family(
        text(tf.BertConfig(vocab_size=20, **SMALL)), 3, numbered(BERT_LIKE.format("bert")),
        r"bert\.embeddings\..*", r"bert\.pooler\..*", r"classifier\..*",
    ),
    "roberta": Family(
        text(tf.RobertaConfig(vocab_size=20, max_position_embeddings=20, **SMALL)), 3, numbered(BERT_LIKE.format("roberta")),
        r"roberta\.embeddings\..*", r"(?!)", r"classifier\.(dense|out_proj)\..*",
    ),
    "distilbert": Family(
        text(tf.DistilBertConfig(vocab_size=20, dim=16, hidden_dim=32, n_heads=2, n_layers=3)), 3,
        numbered(r"distilbert\.transformer\.layer\.(\d+)\."),
        r"distilbert\.embeddings\..*", r"(?!)", r"(pre_classifier|classifier)\..*",
    ),
    "deberta-v2": Family(
        text(tf.DebertaV2Config(vocab_size=20, relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm",
                                pos_att_type=["p2c", "c2p"], share_att_key=True, position_biased_input=False, **SMALL)),
        3, numbered(BERT_LIKE.format("deberta")),
        r"deberta\.(embeddings|encoder\.(rel_embeddings|LayerNorm))\..*", r"(?!)", r"(pooler|classifier)\..*",
    ),
    "electra": Family(
        text(tf.ElectraConfig(vocab_size=20, embedding_size=8, **SMALL)), 3, numbered(BERT_LIKE.format("electra")),
        r"electra\.(embeddings|embeddings_project)\..*", r"(?!)", r"classifier\..*",
    ),
    "modernbert": Family(
        text(tf.ModernBertConfig(vocab_size=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
                                 **SMALL)),
        3, numbered(r"model\.layers\.(\d+)\."),
        r"model\.embeddings\..*", r"model\.final_norm\..*", r"(head|classifier)\..*",
    ),
    "t5": Family(
        text(T5), 4, t5_block,
        r"transformer\.(shared\..*|.*relative_attention_bias.*)", r"transformer\.decoder\.final_layer_norm\..*",
        r"classification_head\..*",
    ),
    "gpt2": Family(
        text(tf.GPT2Config(vocab_size=20, n_embd=16, n_head=2, n_layer=3, n_positions=16, pad_token_id=0)), 3,
        numbered(r"transformer\.h\.(\d+)\."),
        r"transformer\.w[tp]e\..*", r"transformer\.ln_f\..*", r"score\..*",
    ),
    "llama": Family(
        text(tf.LlamaConfig(vocab_size=20, pad_token_id=0, **SMALL)), 3, numbered(r"model\.layers\.(\d+)\."),
        r"model\.embed_tokens\..*", r"model\.norm\..*", r"score\..*",
    ),
    "qwen2": Family(
        text(tf.Qwen2Config(vocab_size=20, pad_token_id=0, num_key_value_heads=2, **SMALL)), 3,
        numbered(r"model\.layers\.(\d+)\."),
        r"model\.embed_tokens\..*", r"model\.norm\..*", r"score\..*",
    ),
    "vit": Family(
        text(tf.ViTConfig(image_size=16, patch_size=8, **SMALL), "AutoModelForImageClassification"), 3,
        numbered(r"vit\.(?:encoder\.layer|layers|encoder\.layers)\.(\d+)\."),
        r"vit\.embeddings\..*", r"vit\.layernorm\..*", r"classifier\..*",
    ),
    "resnet": Family(
        text(tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic"),
             "AutoModelForImageClassification"),
        4, resnet_block, r"resnet\.embedder\..*", r"(?!)", r"classifier\..*",
    ),
}  # fmt: skip


def on_meta(family: Family) -> Any:
    with torch.device("meta"):
        return family.build()


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> tuple[Family, tuple[Parameter, ...]]:
    family = FAMILIES[request.param]
    return family, list_parameters(on_meta(family), newly_initialized=new_names(family))


def new_names(family: Family) -> set[str]:
    return {name for name, _ in on_meta(family).named_parameters() if re.fullmatch(family.head, name)}


# --- depth order -----------------------------------------------------------------------------------------------------


def test_every_parameter_has_its_place(case):
    family, parameters = case
    assert number_of_blocks(parameters) == family.blocks
    wrong = {}
    for p in parameters:
        block = family.block_of(p.name)
        if block is not None:
            expected = (block, "block")
        elif re.fullmatch(family.embeddings, p.name):
            expected = (0, "embeddings")
        elif re.fullmatch(family.tail, p.name):
            expected = (family.blocks + 1, "tail")
        else:
            assert re.fullmatch(family.head, p.name), f"the test says nothing about {p.name}"
            expected = (family.blocks + 1, "head")
        if (p.depth, p.role) != expected:
            wrong[p.name] = ((p.depth, p.role), expected)
    assert wrong == {}


def test_names_and_shapes_are_the_models(case):
    family, parameters = case
    wanted = {name: tuple(tensor.shape) for name, tensor in on_meta(family).named_parameters()}
    assert {p.name: p.shape for p in parameters} == wanted and len(parameters) == len(wanted)
    assert all(p.numel == torch.Size(p.shape).numel() for p in parameters)


def test_norms_and_biases_do_not_decay(case):
    family, parameters = case
    model = on_meta(family)
    norms = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if re.search(r"norm", type(module).__name__.lower())
        for name, _ in module.named_parameters(recurse=False)
    }
    for p in parameters:
        is_bias = p.name.endswith("bias")
        assert p.decays is not (p.name in norms or is_bias), p.name
    assert any(p.decays for p in parameters) and not all(p.decays for p in parameters)


def test_attention_and_mlp_are_told_apart(case):
    _, parameters = case
    for p in parameters:
        assert (p.component == "other") is (p.role != "block")
    components = {p.component for p in parameters if p.role == "block"}
    has_attention = any("att" in p.name.lower() for p in parameters)
    assert components == ({"attention", "mlp", "norm"} if has_attention else {"mlp", "norm"})


def test_new_heads_are_marked(case):
    family, parameters = case
    assert {p.name for p in parameters if p.newly_initialized} == new_names(family)


# --- tables ----------------------------------------------------------------------------------------------------------


def recipe(kind: str, **options: Any) -> Recipe:
    values = {"version": 1, "name": "a", "task": {"type": "text-classification"}, "model": {"name_or_path": "m"},
              "data": {"source": "d"}, "training": {"learning_rate": 1e-2, "global_batch_size": 2}}  # fmt: skip
    return Recipe.model_validate({**values, "strategy": {"type": kind, **options}})


def table_of(parameters: tuple[Parameter, ...], kind: str, **options: Any) -> TuningTable:
    (phase,) = load(STRATEGIES, kind)().phases(parameters, recipe(kind, **options))
    return phase.table


@pytest.mark.parametrize("kind", ["full", "encoder", "head"])
def test_a_table_has_each_parameter_once_and_says_what_trains(case, kind):
    _, parameters = case
    table = table_of(parameters, kind)
    names = [name for group in table.groups for name in group.parameters]
    assert sorted(names) == sorted(p.name for p in parameters)
    assert len({group.name for group in table.groups}) == len(table.groups)
    assert table.total_numel == sum(p.numel for p in parameters)
    trains = {name for group in table.trainable for name in group.parameters}
    roles = {"full": {"embeddings", "block", "tail", "head"}, "encoder": {"block", "head"}, "head": {"head"}}[kind]
    assert trains == {p.name for p in parameters if p.role in roles or p.newly_initialized}
    by_name = {p.name: p for p in parameters}
    for group in table.groups:
        members = [by_name[name] for name in group.parameters]
        assert group.numel == sum(p.numel for p in members)
        assert group.depths == (min(p.depth for p in members), max(p.depth for p in members))
        assert group.lr == (1e-2 if group.trainable else 0)
        if group.trainable:
            decay = 0.0 if kind == "head" else 0.01
            assert all(group.weight_decay == (decay if p.decays else 0.0) for p in members)


def test_encoder_options_choose_parts(case):
    _, parameters = case
    table = table_of(parameters, "encoder", components=["norm"], train_embeddings=True, head_lr=0.5)
    trains = {name for group in table.trainable for name in group.parameters}
    wanted = {p.name for p in parameters if p.role in ("embeddings", "head") or p.component == "norm"}
    assert trains == wanted
    assert {group.lr for group in table.trainable if group.name.startswith("head")} == {0.5}


def test_full_takes_rates_for_embeddings_and_head(case):
    _, parameters = case
    table = table_of(parameters, "full", embedding_lr=1e-4, head_lr=1e-1)
    rates = {group.name.split(".")[0]: group.lr for group in table.groups}
    assert rates["embeddings"] == 1e-4 and rates["head"] == 1e-1 and rates["encoder"] == 1e-2


def test_a_new_head_cannot_be_frozen(case):
    _, parameters = case
    with pytest.raises(ModelError, match="newly initialised"):
        table_of(parameters, "encoder", train_head=False)


def test_a_trained_head_can_be_frozen():
    parameters = list_parameters(on_meta(FAMILIES["bert"]))
    table = table_of(parameters, "encoder", train_head=False)
    assert {group.name for group in table.trainable} == {"encoder", "encoder.no_decay"}


def test_train_pooler_adds_the_tail():
    parameters = list_parameters(on_meta(FAMILIES["bert"]), newly_initialized={"classifier.weight", "classifier.bias"})
    trains = {name for group in table_of(parameters, "head", train_pooler=True).trainable for name in group.parameters}
    assert trains == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


def test_a_model_without_blocks_has_no_encoder():
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

    parameters = list_parameters(Plain(), newly_initialized={"second.weight", "second.bias"})
    with pytest.raises(ModelError, match="no numbered blocks"):
        table_of(parameters, "encoder")


def test_a_tied_tensor_counts_once():
    config = tf.GPT2Config(vocab_size=20, n_embd=16, n_head=2, n_layer=2, n_positions=16, tie_word_embeddings=True)
    parameters = list_parameters(tf.GPT2LMHeadModel(config))
    (tied,) = [p for p in parameters if p.shape == (20, 16)]
    assert (tied.name, tied.role, tied.also) == ("transformer.wte.weight", "embeddings", ("head",))
    embedding, head = uses(tied, blocks=2)
    assert embedding == tied and (head.role, head.depth, head.name) == ("head", 3, tied.name)
    assert all(uses(p, blocks=2) == (p,) and p.also == () for p in parameters if p is not tied)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda: tf.BertForMaskedLM(tf.BertConfig(vocab_size=20, **SMALL)), "bert.embeddings.word_embeddings.weight"),
        (lambda: tf.T5ForConditionalGeneration(T5), "shared.weight"),
        (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=20, tie_word_embeddings=True, **SMALL)),
         "model.embed_tokens.weight"),
    ],
)  # fmt: skip
def test_embeddings_that_are_the_output_layer_too(model, name):
    with torch.device("meta"):
        parameters = list_parameters(model())
    assert {p.name for p in parameters if "head" in p.also} == {name}


def test_embeddings_that_encoder_and_decoder_share_are_not_the_head():
    with torch.device("meta"):
        parameters = list_parameters(tf.T5ForSequenceClassification(T5))
    assert {p.also for p in parameters} == {()}


def test_an_untied_output_layer_is_the_head():
    config = tf.LlamaConfig(vocab_size=20, tie_word_embeddings=False, **SMALL)
    parameters = list_parameters(tf.LlamaForCausalLM(config))
    assert [(p.name, p.also) for p in parameters if p.role == "head"] == [("lm_head.weight", ())]


def test_blocks_whose_weights_layers_share_are_marked():
    config = tf.AlbertConfig(vocab_size=20, embedding_size=8, **SMALL)
    with torch.device("meta"):
        parameters = list_parameters(tf.AlbertForSequenceClassification(config))
    assert {p.also for p in parameters if p.role == "block"} == {("block",)}
    assert {p.also for p in parameters if p.role != "block"} == {()}


def test_a_block_that_stands_in_two_places_is_marked():
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = torch.nn.Linear(4, 4)
            self.layers = torch.nn.ModuleList([block, torch.nn.Linear(4, 4), block])

    parameters = list_parameters(Twice())
    assert {p.name: p.also for p in parameters} == {
        "layers.0.weight": ("block",), "layers.0.bias": ("block",), "layers.1.weight": (), "layers.1.bias": (),
    }  # fmt: skip


# --- modules of the blocks -------------------------------------------------------------------------------------------

STAGES = {
    "convnext": (
        lambda: tf.ConvNextForImageClassification(tf.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 2, 1])),
        "ConvNextLayer", 5, {"convnext.encoder.stages.2.downsampling_layer.1.weight": 3},
    ),
    "swin": (
        lambda: tf.SwinForImageClassification(
            tf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4)
        ),
        "SwinLayer", 4, {"swin.encoder.layers.0.downsample.reduction.weight": 2},
    ),
    "funnel": (
        lambda: tf.FunnelForSequenceClassification(
            tf.FunnelConfig(vocab_size=20, d_model=16, n_head=2, d_head=8, d_inner=32, block_sizes=[2, 2])
        ),
        "FunnelLayer", 4, {"funnel.encoder.blocks.1.0.attention.q_head.weight": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_split_into_their_blocks(name):
    build, kind, number, places = STAGES[name]
    with torch.device("meta"):
        model = build()
    parameters = {p.name: p for p in list_parameters(model)}
    assert [type(block).__name__ for block in block_modules(model)] == [kind] * number
    assert number_of_blocks(parameters.values()) == number
    assert {n: parameters[n].depth for n in places} == places
    assert {p.also for p in parameters.values()} == {()}


def test_the_modules_of_the_blocks_are_in_the_order_of_depth(case):
    family, parameters = case
    model = on_meta(family)
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    depth = {p.name: p.depth for p in parameters if p.role == "block"}
    blocks = block_modules(model)
    assert len(blocks) == family.blocks
    for number, block in enumerate(blocks, 1):
        # What all blocks of a stack share lies in the first (T5's relative positions) and is not the block's.
        assert {depth[names[id(t)]] for t in block.parameters() if names[id(t)] in depth} == {number}


def test_few_blocks_beside_large_embeddings_are_found():
    config = tf.BertConfig(vocab_size=20_000, **SMALL)
    with torch.device("meta"):
        assert number_of_blocks(list_parameters(tf.BertForSequenceClassification(config))) == 3


def test_a_partitioned_tensor_has_its_whole_shape():
    model = tf.BertForSequenceClassification(tf.BertConfig(vocab_size=20, **SMALL))
    tensor = model.classifier.weight
    tensor.ds_shape = tensor.shape
    tensor.data = torch.zeros(0)
    (found,) = [p for p in list_parameters(model) if p.name == "classifier.weight"]
    assert found.shape == (2, 16) and found.decays
