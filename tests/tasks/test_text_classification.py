from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers as tf
from torch import nn

from launcher.contracts import Prepared
from launcher.errors import DataError, ModelError
from launcher.recipe.schema import Recipe
from launcher.tasks.class_sampling import class_draws, describe_draws
from launcher.tasks.class_weights import class_weights
from launcher.tasks.text_classification import Collator, TextClassification, probabilities

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
BINARY, REGRESSION = "binary_classification", "regression"
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


def make_task(bert: Path, *, data: Path | str = "data", task: dict | None = None, **options: Any) -> TextClassification:
    """``options``: keys of the section ``data``."""
    values = tiny.recipe_values(bert, data, data=options)
    values |= {"task": {"type": "text-classification", **(task or {})}, "strategy": {"type": "full"}}
    return TextClassification(Recipe.model_validate(values))


# --- loss ------------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([[2.0, -1.0, 0.3], [0.1, 0.2, -0.7], [-1.5, 2.5, 0.0], [0.0, 0.4, 1.1]])
NAMES = {SINGLE: ("a", "b", "c"), MULTI: ("a", "b", "c"), BINARY: ("no", "yes"), REGRESSION: ()}
LABELS = {
    SINGLE: torch.tensor([0, 2, 1, 1]),
    MULTI: torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]]),
    BINARY: torch.tensor([0, 1, 1, 0]),
    REGRESSION: torch.tensor([0.5, -1.0, 2.0, 3.5]),
}
WEIGHTS = {
    SINGLE: torch.tensor([1.0, 0.25, 3.0]),
    MULTI: torch.tensor([1.0, 0.25, 3.0]),
    BINARY: torch.tensor([0.5, 2.0]),
}


def task_with(bert: Path, problem: str, *, weights: bool) -> TextClassification:
    names = NAMES[problem]
    chosen = dict(zip(names, WEIGHTS[problem].tolist(), strict=True)) if weights else "none"
    task = make_task(bert, task={"problem_type": problem, "class_weights": chosen})
    task.problem_type = problem
    task.class_weights = class_weights(chosen, names=names, counts=())
    return task


def mean_loss(
    task: TextClassification, logits: torch.Tensor, labels: torch.Tensor, weight=None, smoothing: float = 0.0
) -> float:
    batch = {"labels": labels, "sample_weight": torch.ones(len(labels)) if weight is None else weight}
    summed = task.loss({"logits": logits}, batch, label_smoothing=smoothing)
    assert summed.dtype == torch.float32 and summed.shape == ()
    return float(summed / task.items(batch))


def torch_mean(problem: str, logits: torch.Tensor, labels: torch.Tensor, weights, smoothing: float) -> float:
    if problem == SINGLE:
        return float(nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)(logits, labels))
    if problem == MULTI:
        return float(nn.BCEWithLogitsLoss(weight=weights)(logits, labels))
    if problem == BINARY:
        # Two classes with logits 0 and z are the same model; so torch's cross entropy is the reference here too.
        two = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return float(nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)(two, labels))
    return float(nn.MSELoss()(logits[:, 0], labels))


# Weights and smoothing that a recipe refuses are left out: smoothing without one label a row, weights without classes.
COMBINATIONS = [
    (problem, weighted, smoothing)
    for problem in (SINGLE, MULTI, BINARY, REGRESSION)
    for weighted in (False, True)
    for smoothing in (0.0, 0.1)
    if not (weighted and problem == REGRESSION) and not (smoothing and problem in (MULTI, REGRESSION))
]


@pytest.mark.parametrize("problem, weights, smoothing", COMBINATIONS)
def test_the_loss_is_torchs_own_mean(bert, problem, weights, smoothing):
    logits = LOGITS[:, :1] if problem in (BINARY, REGRESSION) else LOGITS
    wanted = torch_mean(problem, logits, LABELS[problem], WEIGHTS[problem] if weights else None, smoothing)
    found = mean_loss(task_with(bert, problem, weights=weights), logits, LABELS[problem], smoothing=smoothing)
    assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("problem", [SINGLE, MULTI, BINARY, REGRESSION])
def test_rows_of_weight_0_do_not_count(bert, problem):
    task = task_with(bert, problem, weights=problem != REGRESSION)
    logits = LOGITS[:, :1] if problem in (BINARY, REGRESSION) else LOGITS
    labels, weight = LABELS[problem], torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert mean_loss(task, logits, labels, weight) == pytest.approx(mean_loss(task, logits[:2], labels[:2]), rel=1e-6)
    changed = logits.clone()
    changed[2:] = 50.0
    assert mean_loss(task, changed, labels, weight) == pytest.approx(mean_loss(task, logits, labels, weight), rel=1e-6)


def test_half_precision_logits_give_a_float32_loss(bert):
    task = task_with(bert, SINGLE, weights=False)
    assert mean_loss(task, LOGITS.bfloat16(), LABELS[SINGLE]) == pytest.approx(
        mean_loss(task, LOGITS, LABELS[SINGLE]), rel=0.02
    )


# --- focal loss ------------------------------------------------------------------------------------------------------

CERTAIN = torch.tensor([[60.0, -60.0, 0.0], [-60.0, 60.0, 0.0], [1e4, -1e4, 3.0], [-1e4, 1e4, 3.0]])


def focal(bert: Path, problem: str, gamma: float, *, weights: bool) -> TextClassification:
    task = task_with(bert, problem, weights=weights)
    task.options = task.options.model_copy(update={"focal_gamma": gamma})
    return task


def focal_mean(problem: str, logits: torch.Tensor, labels: torch.Tensor, weights, gamma: float) -> float:
    """Lin et al. 2017, eq. 5, written down row by row in float64, and its mean as torch has it with weights."""
    total, items = 0.0, 0.0
    for row, label in zip(logits.double().numpy(), labels.tolist(), strict=True):
        if problem == SINGLE:
            right = [np.exp(row[label]) / np.exp(row).sum()]
            alphas = [1.0 if weights is None else float(weights[label])]
        else:
            yes = 1 / (1 + np.exp(-row))
            decided = label if problem == MULTI else [label]
            right = [p if on else 1 - p for p, on in zip(yes, decided, strict=True)]
            by_label = range(len(right)) if problem == MULTI else [label]
            alphas = [1.0 if weights is None else float(weights[k]) for k in by_label]
        losses = [-alpha * (1 - p) ** gamma * np.log(p) for alpha, p in zip(alphas, right, strict=True)]
        total += float(np.mean(losses))
        items += 1.0 if problem == MULTI else alphas[0]
    return total / items


@pytest.mark.parametrize("problem", [SINGLE, MULTI, BINARY])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_the_focal_loss_is_its_formula(bert, problem, weighted, gamma):
    logits = LOGITS[:, :1] if problem == BINARY else LOGITS
    found = mean_loss(focal(bert, problem, gamma, weights=weighted), logits, LABELS[problem])
    wanted = focal_mean(problem, logits, LABELS[problem], WEIGHTS[problem] if weighted else None, gamma)
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("problem", [SINGLE, MULTI, BINARY])
def test_a_focal_loss_of_gamma_0_is_cross_entropy_bit_for_bit(bert, problem):
    logits = torch.randn(64, 1 if problem == BINARY else 3, generator=torch.Generator().manual_seed(0))
    labels = LABELS[problem].repeat(*([16, 1] if problem == MULTI else [16]))
    plain = mean_loss(task_with(bert, problem, weights=True), logits, labels)
    assert mean_loss(focal(bert, problem, 0.0, weights=True), logits, labels) == plain


@pytest.mark.parametrize("problem", [SINGLE, MULTI, BINARY])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_gradient_of_the_focal_loss_is_finite_where_the_model_is_certain(bert, problem, gamma):
    """A row that is certainly right pulls at nothing; one that is certainly wrong pulls as cross entropy does."""
    logits = (CERTAIN[:, :1] if problem == BINARY else CERTAIN).clone().requires_grad_()
    labels = {
        SINGLE: torch.zeros(4, dtype=torch.long),
        BINARY: torch.ones(4, dtype=torch.long),
        MULTI: torch.ones(4, 3),
    }
    batch = {"labels": labels[problem], "sample_weight": torch.ones(4)}
    focal(bert, problem, gamma, weights=False).loss({"logits": logits}, batch).backward()
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())
    pull = logits.grad[:, 0] * (3 if problem == MULTI else 1)
    assert pull.tolist() == pytest.approx([0.0, -1.0, 0.0, -1.0], abs=1e-5)


@pytest.mark.parametrize(
    "task, training, message",
    [
        ({}, {"label_smoothing_factor": 0.1}, "training.label_smoothing_factor has no effect"),
        ({"class_sampling": "balanced"}, {}, "task.class_sampling has no effect"),
        ({"class_weights": "balanced"}, {}, "task.class_weights has no effect"),
        ({"focal_gamma": 2.0}, {}, "task.focal_gamma has no effect"),
    ],
)
def test_what_has_no_effect_on_the_labels_that_were_found_is_refused(bert, tmp_path, task, training, message):
    """The recipe leaves open what a label is; only the rows say that it is a number."""
    for name in ("train", "validation"):
        tiny.write_csv(tmp_path / f"{name}.csv", [("an apple", "0.5"), ("a pear", "1.25"), ("a plum", "2.0")])
    values = tiny.recipe_values(bert, tmp_path, data={"cache_dir": str(tmp_path / "c")}, training=training)
    values |= {"task": {"type": "text-classification", **task}, "strategy": {"type": "full"}}
    with pytest.raises(DataError, match=f"{message}: the labels were read as regression"):
        TextClassification(Recipe.model_validate(values)).prepare_data()


# --- class sampling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen, wanted", [("natural", [81, 16, 1]), ("balanced", [98 / 3] * 3), ("square_root", [63, 28, 7])]
)
def test_how_often_the_rows_of_a_class_are_drawn(chosen, wanted):
    labels = np.repeat([0, 1, 3], [81, 16, 1])
    draws = class_draws(chosen, labels, classes=4)
    assert np.bincount(labels, weights=draws).tolist() == pytest.approx([*wanted[:2], 0, wanted[2]])
    assert draws.sum() == pytest.approx(98) and len(set(draws[:81])) == 1


def test_draws_in_words():
    labels = np.repeat([0, 1], [90, 10])
    draws = class_draws("balanced", labels, classes=3)
    assert describe_draws("balanced", draws, labels, names=("a", "b", "c")) == (
        "balanced; b is 50.00% of what is drawn instead of 10.00%, each of its rows 5 times an epoch; "
        "a is 50.00% of what is drawn instead of 90.00%, each of its rows 0.556 times an epoch"
    )


# --- class weights ---------------------------------------------------------------------------------------------------


def test_balanced_weights_follow_the_counts():
    weights = class_weights("balanced", names=("a", "b", "c"), counts=[60, 30, 10])
    assert weights.tolist() == pytest.approx([100 / 180, 100 / 90, 100 / 30])


def test_a_weight_for_no_label_is_refused():
    with pytest.raises(DataError, match=r"'bb', which is no label; labels: a, b"):
        class_weights({"a": 1.0, "bb": 2.0}, names=("a", "b"), counts=[1, 1])


# --- probabilities ---------------------------------------------------------------------------------------------------


def test_probabilities():
    logits = LOGITS.double().numpy()
    assert probabilities(logits, SINGLE) == pytest.approx(torch.softmax(LOGITS.double(), 1).numpy())
    assert probabilities(logits, MULTI) == pytest.approx(torch.sigmoid(LOGITS.double()).numpy())
    p = torch.sigmoid(LOGITS[:, :1].double()).numpy()
    assert probabilities(logits[:, :1], BINARY) == pytest.approx(np.hstack([1 - p, p]))
    assert probabilities(logits[:, :1], REGRESSION).tolist() == logits[:, :1].tolist()
    extreme = np.array([[1e4, -1e4, 0.0]])
    assert probabilities(extreme, SINGLE).tolist() == [[1, 0, 0]] and probabilities(extreme, MULTI).tolist() == [
        [1, 0, 0.5]
    ]


# --- collator --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(bert):
    return tf.AutoTokenizer.from_pretrained(str(bert))


def test_the_collator_pads_to_the_longest_and_keeps_weights(tokenizer):
    rows = [
        {"input_ids": [2, 7, 3], "token_type_ids": [0, 0, 0], "labels": 1, "row_id": 0, "weight": 1.0},
        {"input_ids": list(range(2, 13)), "token_type_ids": [0] * 11, "labels": 0, "row_id": 1, "weight": 0.0},
    ]
    batch = Collator(tokenizer, SINGLE)(rows)
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels", "sample_weight"}
    assert batch["input_ids"].shape == (2, 16), "the longest of 11 tokens, as a multiple of 8"
    assert batch["attention_mask"].sum(1).tolist() == [3, 11]
    assert batch["labels"].dtype == torch.long and batch["sample_weight"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "problem, label, dtype",
    [
        (SINGLE, 2, torch.long),
        (BINARY, 1, torch.long),
        (REGRESSION, 0.5, torch.float),
        (MULTI, [0.0, 1.0], torch.float),
    ],
)
def test_labels_have_the_type_of_the_problem(tokenizer, problem, label, dtype):
    rows = [{"input_ids": [2, 3], "labels": label}] * 2
    batch = Collator(tokenizer, problem)(rows)
    assert batch["labels"].dtype == dtype and batch["labels"].tolist() == [label, label]
    assert batch["sample_weight"].tolist() == [1.0, 1.0]


def test_unlabelled_rows_have_no_labels(tokenizer):
    assert "labels" not in Collator(tokenizer, SINGLE)([{"input_ids": [2, 3]}])


# --- head ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "problem, names, outputs, stored, shown",
    [
        (SINGLE, ("a", "b", "c"), 3, SINGLE, {0: "a", 1: "b", 2: "c"}),
        (MULTI, ("a", "b", "c"), 3, MULTI, {0: "a", 1: "b", 2: "c"}),
        # One logit for the second name; pipelines then apply a sigmoid.
        (BINARY, ("no", "yes"), 1, MULTI, {0: "yes"}),
        (REGRESSION, (), 1, REGRESSION, None),
    ],
)
def test_the_head_fits_the_problem(bert, problem, names, outputs, stored, shown):
    loaded = make_task(bert).build_model(Prepared(None, None, None, "", names, problem))
    config = loaded.model.config
    assert loaded.model.classifier.out_features == outputs and config.num_labels == outputs
    assert config.problem_type == stored
    assert shown is None or config.id2label == shown and config.label2id == {name: k for k, name in shown.items()}
    assert loaded.newly_initialized == {"classifier.weight", "classifier.bias"}
    assert loaded.model.accepts_loss_kwargs is False


def test_a_skeleton_has_the_same_parameters_and_no_weights(bert):
    task, prepared = make_task(bert), Prepared(None, None, None, "", ("a", "b"), SINGLE)
    real, skeleton = task.build_model(prepared), task.build_model(prepared, skeleton=True)
    shapes = [{n: tuple(t.shape) for n, t in loaded.model.named_parameters()} for loaded in (real, skeleton)]
    assert shapes[0] == shapes[1] and real.newly_initialized == skeleton.newly_initialized
    assert all(t.is_meta for t in skeleton.model.parameters())


def test_a_head_for_other_labels_is_made_anew(bert, tmp_path):
    model = tf.BertForSequenceClassification(tiny.bert_config(num_labels=5))
    model.save_pretrained(tmp_path / "tuned")
    tiny.save_tokenizer(tmp_path / "tuned")
    task = make_task(tmp_path / "tuned")
    loaded = task.build_model(Prepared(None, None, None, "", ("a", "b"), SINGLE))
    assert loaded.newly_initialized == {"classifier.weight", "classifier.bias"}
    kept = task.build_model(Prepared(None, None, None, "", tuple("abcde"), SINGLE))
    assert kept.newly_initialized == frozenset()
    assert torch.equal(kept.model.classifier.weight, model.classifier.weight)


@pytest.mark.parametrize("problem, names", [(SINGLE, ("no", "yes")), (MULTI, ("a", "b", "c")), (BINARY, ("no", "yes"))])
def test_a_pipeline_gives_our_labels_and_scores(bert, tmp_path, problem, names):
    task = make_task(bert)
    prepared = Prepared(None, None, None, "", names, problem)
    model = task.build_model(prepared).model.eval()
    with torch.no_grad():
        model.classifier.weight.mul_(200)
    model.save_pretrained(tmp_path / "model")
    task.tokenizer.save_pretrained(tmp_path / "model")
    pipe = tf.pipeline("text-classification", model=str(tmp_path / "model"), top_k=None, device="cpu")
    texts = ["an apple and a pear", "iron and zinc", "the old rhine"]
    with torch.no_grad():
        logits = [model(**task.tokenizer(text, return_tensors="pt")).logits[0].double().numpy() for text in texts]
    ours = probabilities(np.stack(logits), problem)
    for row, scores in zip(ours, pipe(texts), strict=True):
        theirs = {s["label"]: s["score"] for s in scores}
        wanted = dict(zip(names, row, strict=True))
        assert theirs == pytest.approx({name: wanted[name] for name in theirs}, abs=1e-5)
        assert len(theirs) == (1 if problem == BINARY else len(names))


FAMILIES = {
    "bert": (tf.BertConfig(vocab_size=128, **SMALL), "dropout"),
    "distilbert": (tf.DistilBertConfig(vocab_size=128, dim=16, hidden_dim=32, n_heads=2, n_layers=1), "dropout"),
    "deberta-v2": (tf.DebertaV2Config(vocab_size=128, **SMALL), "dropout"),
    "gpt2": (tf.GPT2Config(vocab_size=128, n_embd=16, n_head=2, n_layer=1, n_positions=64, pad_token_id=0), None),
    "llama": (tf.LlamaConfig(vocab_size=128, pad_token_id=0, **SMALL), None),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_head_dropout(tmp_path, name):
    config, field = FAMILIES[name]
    tf.AutoModel.from_config(config).save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    task = make_task(tmp_path, task={"head_dropout": 0.37})
    prepared = Prepared(None, None, None, "", ("a", "b"), SINGLE)
    if field is None:
        with pytest.raises(ModelError, match=r"task.head_dropout is 0.37, but \w+ has no dropout before its head"):
            task.build_model(prepared)
        return
    model = task.build_model(prepared).model
    found = getattr(model, field)
    assert getattr(found, "p", getattr(found, "drop_prob", None)) == 0.37


# --- lengths, pairs --------------------------------------------------------------------------------------------------


def test_a_length_beyond_the_model_is_refused(bert, tmp_path):
    data = tiny.write_data(tmp_path / "data", train=6, validation=3, test=3)
    with pytest.raises(DataError, match=r"data.max_length is 65, but this model takes at most 64 tokens"):
        make_task(bert, data=data, max_length=65).prepare_data()
    values = make_task(bert, data=data, max_length=None)
    assert values.max_length() == 64


def pairs(path: Path) -> Path:
    path.mkdir()
    for name, count in {"train": 12, "validation": 6, "test": 6}.items():
        table = [(text, text[::-1], label) for text, label in tiny.rows(count, seed=count)]
        tiny.write_csv(path / f"{name}.csv", table, head=("one", "two", "label"))
    return path


def test_pairs_are_tokenized_together_and_asked_for_at_prediction(bert, tmp_path):
    columns = {"text": "one", "text_pair": "two", "label": "label"}
    task = make_task(bert, data=pairs(tmp_path / "pairs"), columns=columns, cache_dir=str(tmp_path / "c"))
    _, prepared = task.prepare_data()
    assert prepared.facts["pairs"] is True and set(prepared.train[0]["token_type_ids"]) == {0, 1}
    facts = task.model_facts(prepared)
    assert json.loads(json.dumps(facts)) == facts
    rows, _ = task.prepare_rows({"text": ["apple"], "text_pair": ["pear"]}, facts)
    assert rows[0]["token_type_ids"] == [0, 0, 0, 1, 1]
    with pytest.raises(DataError, match="trained on pairs of texts"):
        task.prepare_rows({"text": ["apple"]}, facts)
    with pytest.raises(DataError, match="trained on single texts"):
        task.prepare_rows({"text": ["apple"], "text_pair": ["pear"]}, {**facts, "pairs": False})


@pytest.mark.parametrize(
    "problem, metric", [(SINGLE, "macro_f1"), (BINARY, "macro_f1"), (MULTI, "micro_f1"), (REGRESSION, "spearman")]
)
def test_the_metric_that_chooses_the_best_checkpoint(bert, problem, metric):
    task = make_task(bert)
    task.problem_type = problem
    assert task.default_metric == metric
