"""The engine's mixin on a tiny BERT, in this process."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from in_process import prepare

from launcher.engine.session import write_verdict
from launcher.engine.trainer import RunTrainer
from launcher.errors import PlanMismatch, TrainingDiverged

# 21 rows in batches of 8: the last batch of an epoch has 5.
ROWS, STEPS = 21, 3
NEVER = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
EACH_STEP = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.write_data(tmp_path_factory.mktemp("data"), train=ROWS, validation=9, test=6)


@pytest.fixture
def ready(bert, data, tmp_path):
    """Return a function: changes of the section ``training`` and of others -> a run that is ready to train."""

    def make(run=None, /, sections: dict[str, Any] | None = None, **training: Any):
        return prepare(bert, data, tmp_path / "runs", run=run, **{**(sections or {}), "training": training})

    return make


def ask_to_stop(prepared, monkeypatch, *, at: int) -> None:
    """Let an attempt be asked to stop while it takes step ``at``."""
    on_step = prepared.context.progress.on_step

    def stop(step: int, **facts: Any) -> None:
        on_step(step, **facts)
        if step == at:
            prepared.run.stop_request(prepared.context.attempt).touch()

    monkeypatch.setattr(prepared.context.progress, "on_step", stop)


def rows_of(prepared, key: str = "loss") -> list[dict]:
    return [row for row in tiny.jsonl(prepared.run.progress) if key in row]


# --- loss ------------------------------------------------------------------------------------------------------------


def test_loss_and_norm_are_the_same_with_accumulation(ready):
    found = {}
    for cap in (8, 4, 2):
        prepared = ready(num_train_epochs=2, per_device_train_batch_size=cap, **NEVER)
        prepared.train()
        assert prepared.context.launch.batch.accumulation == 8 // cap
        found[cap] = [(row["loss"], row["grad_norm"]) for row in rows_of(prepared)]
    assert len(found[8]) == 2 * STEPS
    for cap in (4, 2):
        assert [v for pair in found[cap] for v in pair] == pytest.approx(
            [v for pair in found[8] for v in pair], rel=1e-5
        )


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_the_logged_loss_is_torchs_mean_over_the_global_batch(ready, weights):
    prepared = ready(max_steps=1, num_train_epochs=1, learning_rate=1e-12, per_device_train_batch_size=2, **NEVER)
    task, split = prepared.context.task, prepared.context.prepared.train
    if weights == "balanced":
        task.class_weights = torch.tensor([0.5, 1.0, 4.0])
    model = prepared.model.eval()
    prepared.train()
    (row,) = rows_of(prepared)
    ids = tiny.ledger(prepared.run.path)[1]
    batch = task.collator()([split[i] for i in ids])
    with torch.no_grad():
        logits = model.eval()(**{k: v for k, v in batch.items() if k not in ("labels", "sample_weight")}).logits
    wanted = torch.nn.CrossEntropyLoss(weight=task.class_weights)(logits, batch["labels"])
    assert row["loss"] == pytest.approx(float(wanted), rel=1e-4)


def test_the_focal_loss_is_summed_and_divided_over_the_global_batch(ready):
    prepared = ready(
        None,
        {"task": {"type": "text-classification", "class_weights": "balanced", "focal_gamma": 2.0}},
        max_steps=1, num_train_epochs=1, learning_rate=1e-12, per_device_train_batch_size=2, **NEVER,
    )  # fmt: skip
    task, split = prepared.context.task, prepared.context.prepared.train
    model = prepared.model.eval()
    prepared.train()
    (row,) = rows_of(prepared)
    batch = task.collator()([split[i] for i in tiny.ledger(prepared.run.path)[1]])
    with torch.no_grad():
        logits = model.eval()(**{k: v for k, v in batch.items() if k not in ("labels", "sample_weight")}).logits
    right = logits.double().softmax(-1).gather(1, batch["labels"][:, None])[:, 0]
    alpha = task.class_weights.double()[batch["labels"]]
    wanted = (alpha * (1 - right) ** 2 * -right.log()).sum() / alpha.sum()
    assert row["loss"] == pytest.approx(float(wanted), rel=1e-4)


def plain_losses(bert: Path, data: Path, tmp_path: Path, *, micro: int, accumulation: int) -> float:
    """First logged loss of a plain Trainer script, as anybody would write it."""
    from datasets import Dataset
    from transformers import (
        AutoTokenizer,
        BertForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(bert))
    labels = {"fruit": 0, "metal": 1, "river": 2}
    rows = [{**tokenizer(text), "labels": labels[label]} for text, label in tiny.rows(8, seed=0)]
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, max_steps=1,
        logging_steps=1, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, learning_rate=1e-12,
    )  # fmt: skip
    model = BertForSequenceClassification.from_pretrained(str(bert), num_labels=3)
    trainer = Trainer(
        model, arguments, train_dataset=Dataset.from_list(rows), data_collator=DataCollatorWithPadding(tokenizer)
    )
    trainer.train()
    return next(row["loss"] for row in trainer.state.log_history if "loss" in row)


def test_the_trap_a_plain_trainer_doubles_the_loss_with_accumulation(bert, data, tmp_path):
    """Without the cure: BERT's head takes **kwargs, so Trainer takes its loss for one that is summed over the batch."""
    once = plain_losses(bert, data, tmp_path, micro=8, accumulation=1)
    twice = plain_losses(bert, data, tmp_path, micro=4, accumulation=2)
    assert once == pytest.approx(math.log(3), rel=0.1)
    assert twice / once == pytest.approx(2, rel=0.05)


def test_a_loss_that_is_not_finite_ends_the_run(ready, tmp_path, monkeypatch):
    prepared = ready(**NEVER)
    task, calls = prepared.context.task, []
    whole = task.loss

    def loss(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return whole(*args, **kwargs) * (math.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(task, "loss", loss)
    with pytest.raises(TrainingDiverged, match=r"not finite at step 2; lower training.learning_rate") as caught:
        prepared.train()
    assert write_verdict(tmp_path / "verdict.json", caught.value) == 8
    assert json.loads((tmp_path / "verdict.json").read_text())["verdict"] == "diverged"
    assert len(calls) == 2


# --- the table -------------------------------------------------------------------------------------------------------


def test_rates_of_all_groups_follow_the_schedule(ready):
    prepared = ready(
        sections={"strategy": {"type": "full", "head_lr": 0.01}}, num_train_epochs=2, warmup_steps=2, **NEVER
    )
    prepared.train()
    found = rows_of(prepared)
    shape = [0, 0.5, 1, 0.75, 0.5, 0.25]
    assert [row["lr/head"] for row in found] == pytest.approx([0.01 * f for f in shape])
    assert [row["lr/encoder.no_decay"] for row in found] == pytest.approx([1e-3 * f for f in shape])


@pytest.mark.parametrize("key, value", [("lr", 0.5), ("weight_decay", 0.3), ("name", "other")])
def test_a_tampered_optimizer_is_refused_before_the_first_step(ready, monkeypatch, key, value):
    create = RunTrainer.create_optimizer

    def tampered(self: Any, model: Any = None) -> Any:
        optimizer = create(self, model)
        optimizer.param_groups[0][key] = value
        return optimizer

    monkeypatch.setattr(RunTrainer, "create_optimizer", tampered)
    prepared = ready(**NEVER)
    with pytest.raises(PlanMismatch, match="but the tuning table says"):
        prepared.train()
    assert tiny.ledger(prepared.run.path) == {}


@pytest.mark.parametrize("resumed", [False, True], ids=["first-step", "after-a-resume"])
def test_a_rate_that_the_plan_does_not_know_ends_the_run_at_its_first_step(ready, monkeypatch, resumed):
    prepared = ready(num_train_epochs=1, **EACH_STEP)
    if resumed:
        prepared.train()
        whole = prepared
        prepared = ready(whole.run, num_train_epochs=2, **EACH_STEP)
    collect = RunTrainer.get_batch_samples

    def tampering(self: Any, *arguments: Any) -> Any:
        self.optimizer.param_groups[0]["lr"] = 0.5
        return collect(self, *arguments)

    monkeypatch.setattr(RunTrainer, "get_batch_samples", tampering)
    with pytest.raises(
        PlanMismatch, match=rf"step {STEPS + 1 if resumed else 1} used the rate 0.5 for embeddings, but the tuning"
    ):
        prepared.train(resume=resumed)


def test_a_parameter_thawed_behind_the_tables_back_is_refused(ready, monkeypatch):
    prepared = ready(sections={"strategy": {"type": "head", "prefix_cache": "off"}}, **NEVER)
    create = RunTrainer.create_optimizer

    def thawing(self: Any, model: Any = None) -> Any:
        self.model.bert.pooler.dense.bias.requires_grad_(True)
        return create(self, model)

    monkeypatch.setattr(RunTrainer, "create_optimizer", thawing)
    with pytest.raises(PlanMismatch, match=r"bert.pooler.dense.bias"):
        prepared.train()


def test_another_world_than_planned_is_refused(ready):
    from dataclasses import replace

    prepared = ready(**NEVER)
    plan = prepared.context.plan
    launch = replace(plan.launch, processes_per_node=2, engine="ddp")
    prepared.context = replace(prepared.context, plan=replace(plan, launch=launch))
    with pytest.raises(PlanMismatch, match=r"found .*'processes': 1.*plan says .*'processes': 2"):
        prepared.train()


def test_checkpointing_keeps_the_backward_pass_out_of_a_frozen_prefix(ready):
    frozen = {"strategy": {"type": "layerwise", "freeze_layers": 1, "prefix_cache": "off"}}
    found = {}
    for activation_checkpointing in (False, True):
        prepared = ready(
            sections=frozen, num_train_epochs=1, activation_checkpointing=activation_checkpointing, **NEVER
        )
        asked = []
        prepared.model.bert.encoder.layer[0].register_forward_hook(
            lambda module, args, out: asked.append(out.requires_grad)
        )
        prepared.train()
        found[activation_checkpointing] = tiny.losses(prepared.run.path)
        assert asked and not any(asked)
    assert found[True] == pytest.approx(found[False], rel=1e-6)


# --- best model, early stopping --------------------------------------------------------------------------------------


def with_metrics(prepared, values: list[float], monkeypatch) -> None:
    """Let the evaluations find these values of the metric, one after the other."""
    left = iter(values)
    monkeypatch.setattr(prepared.context.task, "metrics", lambda _: {"macro_f1": next(left)})


def same_weights(model: Any, checkpoint: Path) -> bool:
    from safetensors.torch import load_file

    stored = load_file(checkpoint / "model.safetensors")
    return all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items() if name in stored)


def test_the_best_checkpoint_is_kept_and_loaded(ready, monkeypatch):
    prepared = ready(num_train_epochs=2, **EACH_STEP)
    with_metrics(prepared, [0.1, 0.9, 0.5, 0.6, 0.7, 0.8], monkeypatch)
    trainer, stopped = prepared.train()
    kept = sorted(path.name for path in prepared.run.checkpoints.iterdir())
    assert kept == ["step-2", "step-6"] and not stopped
    assert same_weights(trainer.model, prepared.run.checkpoints / "step-2")
    assert not same_weights(trainer.model, prepared.run.checkpoints / "step-6")


def test_less_is_better_for_the_loss(ready, monkeypatch):
    prepared = ready(num_train_epochs=1, metric_for_best_model="mse", **EACH_STEP)
    left = iter([0.5, 0.2, 0.9])
    monkeypatch.setattr(prepared.context.task, "metrics", lambda _: {"mse": next(left)})
    trainer, _ = prepared.train()
    assert same_weights(trainer.model, prepared.run.checkpoints / "step-2")


def test_early_stopping_stops_with_the_best_model(ready, monkeypatch):
    prepared = ready(num_train_epochs=10, early_stopping_patience=2, **EACH_STEP)
    with_metrics(prepared, [0.1, 0.9, 0.5, 0.6, 0.99], monkeypatch)
    trainer, stopped = prepared.train()
    assert trainer.state.global_step == 4 and not stopped, "this end was not asked for by anybody: the run is finished"
    assert same_weights(trainer.model, prepared.run.checkpoints / "step-2")


def test_the_count_of_early_stopping_goes_on_after_a_resume(ready, monkeypatch):
    training = {"num_train_epochs": 4, "early_stopping_patience": 2, **EACH_STEP}
    first = ready(**training)
    with_metrics(first, [0.1, 0.9, 0.5], monkeypatch)
    ask_to_stop(first, monkeypatch, at=4)
    _, stopped = first.train()
    assert stopped
    second = ready(first.run, **training)
    with_metrics(second, [0.6, 0.99], monkeypatch)
    trainer, stopped = second.train(resume=True)
    assert not stopped and trainer.state.global_step == 4, "the second evaluation without a better metric ended it"
    assert same_weights(trainer.model, first.run.checkpoints / "step-2")
    third = ready(first.run, **training)
    trainer, _ = third.train(resume=True)
    assert trainer.state.global_step == 4, "a run that has stopped early is over"


# --- ledger, progress ------------------------------------------------------------------------------------------------


def test_the_ledger_and_the_counts_of_samples_and_tokens(ready, monkeypatch):
    prepared = ready(num_train_epochs=2, per_device_train_batch_size=4, **NEVER)
    told = []
    on_step = type(prepared.context.progress).on_step
    monkeypatch.setattr(
        type(prepared.context.progress),
        "on_step",
        lambda self, step, **facts: (told.append(facts), on_step(self, step, **facts)),
    )
    prepared.train()
    steps = tiny.ledger(prepared.run.path)
    for epoch in (0, 1):
        assert sorted(row for step in range(1, 4) for row in steps[epoch * STEPS + step]) == list(range(ROWS))
    lengths = prepared.context.prepared.train["length"]
    for step, facts in enumerate(told, start=1):
        assert facts["samples"] == len(steps[step])
        assert facts["tokens"] == sum(lengths[row] for row in steps[step])
    assert all(row["tokens_per_second"] > 0 and row["samples_per_second"] > 0 for row in rows_of(prepared))
    assert rows_of(prepared)[-1]["eta_seconds"] == 0


def test_evaluation_rows_have_the_tasks_metrics(ready):
    prepared = ready(num_train_epochs=1)
    prepared.train()
    (row,) = rows_of(prepared, "eval_loss")
    assert row["step"] == STEPS and {"eval_macro_f1", "eval_accuracy", "eval_seconds"} <= set(row)
    assert row["eval_loss"] == pytest.approx(math.log(3), rel=0.2)


def test_the_seed_of_the_order_may_be_0(ready):
    orders = []
    for training in ({"data_seed": 0}, {"data_seed": 1}, {"data_seed": 0, "seed": 7}):
        prepared = ready(num_train_epochs=1, **training, **NEVER)
        prepared.train()
        orders.append(tiny.ledger(prepared.run.path))
    assert orders[0] == orders[2] != orders[1]


# --- stop and resume -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(bert, data, tmp_path_factory):
    prepared = prepare(bert, data, tmp_path_factory.mktemp("whole") / "runs", **DROPOUT)
    trainer, _ = prepared.train()
    return prepared, trainer


# Two epochs of three steps, dropout on: the state of the random numbers counts too.
DROPOUT = {"model": {"config": {"hidden_dropout_prob": 0.2}}, "training": {"num_train_epochs": 2}}


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5, 6], ids=["first", "middle", "end-of-epoch", "second-epoch", "last"])
def test_a_stopped_and_resumed_run_is_the_uninterrupted_run(bert, data, tmp_path, uninterrupted, monkeypatch, stop_at):
    first = prepare(bert, data, tmp_path / "runs", **DROPOUT)
    ask_to_stop(first, monkeypatch, at=stop_at)
    _, stopped = first.train()
    assert stopped and first.run.latest_checkpoint().name == f"step-{stop_at}"
    second = prepare(bert, data, tmp_path / "runs", run=first.run, **DROPOUT)
    trainer, stopped = second.train(resume=True)
    assert not stopped and trainer.state.global_step == 2 * STEPS

    whole, whole_trainer = uninterrupted
    assert tiny.ledger(first.run.path) == tiny.ledger(whole.run.path)
    assert tiny.losses(first.run.path) == tiny.losses(whole.run.path)
    ours, wanted = trainer.model.state_dict(), whole_trainer.model.state_dict()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    evaluated = [[(row["step"], row["eval_loss"]) for row in rows_of(p, "eval_loss")] for p in (first, whole)]
    assert evaluated[0] == evaluated[1], "an evaluation is missing or repeated"


# --- from one phase to the next --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"optim": "sgd"},
        {"optim": "adafactor"},
        {"optim": "adamw_8bit"},
        {"optim": "ademamix"},
        {"optim": "lion_32bit"},
    ],
    ids=lambda training: training.get("optim", "adamw"),
)
def test_a_run_cut_into_phases_is_the_run_in_one(bert, data, tmp_path, training):
    """Two phases of the same batch and table, each with an engine of its own, go on as one: the optimizer loses nothing."""
    whole = prepare(bert, data, tmp_path / "whole", training={"num_train_epochs": 2, **training, **NEVER})
    one, _ = whole.train()
    same = [{"epoch": 1, "global_batch_size": 8}]
    cut = {"training": {"num_train_epochs": 2, "batch_size_schedule": same, **training, **NEVER}}
    first = prepare(bert, data, tmp_path / "cut", **cut)
    assert len(first.context.plan.phases) == 2
    first.train()
    second = prepare(bert, data, tmp_path / "cut", run=first.run, **cut)
    two, _ = second.train(resume=True)
    assert tiny.losses(first.run.path) == tiny.losses(whole.run.path)
    assert tiny.ledger(first.run.path) == tiny.ledger(whole.run.path)
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(two.model.state_dict()[name], tensor), name


class Seen:
    """A task's collators, which note the epoch and the number of each row that is trained on or, by None, evaluated."""

    def __init__(self, task: Any) -> None:
        self.own, self.rows = task.collator, set()

    def __call__(self, *, training: bool = False) -> Any:
        collate = self.own(training=training)

        def noting(rows: Any) -> Any:
            assert all(("epoch" in row) == training for row in rows)
            self.rows |= {(row.get("epoch"), row["row_id"]) for row in rows if row["weight"]}
            return collate(rows)

        return noting


IN_PHASES = {"batch_size_schedule": [{"epoch": 1, "global_batch_size": 4}]}


# The second of two phases is an attempt of its own; in both cases one attempt ends inside an epoch.
@pytest.mark.parametrize("changes, stops", [({}, [1, None]), (IN_PHASES, [None, STEPS + 1, None])], ids=["one", "two"])
def test_a_collator_is_told_the_epoch_of_each_row(ready, monkeypatch, changes, stops):
    """With accumulation, in phases, and after a stop in the middle of an epoch; evaluation has none."""
    training = {
        "num_train_epochs": 2, "per_device_train_batch_size": 2, "eval_strategy": "epoch", "save_strategy": "epoch", **changes,
    }  # fmt: skip
    run, seen = None, set()
    for stop_at in stops:
        attempt = ready(run, **training)
        noting = Seen(attempt.context.task)
        monkeypatch.setattr(attempt.context.task, "collator", noting)
        if stop_at:
            ask_to_stop(attempt, monkeypatch, at=stop_at)
        attempt.train(resume=run is not None)
        run, seen = attempt.run, seen | noting.rows
    # Batches are fetched ahead, so rows that an attempt did not come to are seen again.
    assert {pair for pair in seen if pair[0] is not None} == {(epoch, row) for epoch in (0, 1) for row in range(ROWS)}
    assert {pair for pair in seen if pair[0] is None} == {(None, row) for row in range(9)}


@pytest.fixture(scope="module")
def imbalanced(tmp_path_factory) -> Path:
    """36 rows of fruit and 4 of metal."""
    folder = tmp_path_factory.mktemp("imbalanced")
    for name in ("train", "validation", "test"):
        table = [*tiny.rows(36, seed=len(name), topics=["fruit"]), *tiny.rows(4, seed=9, topics=["metal"])]
        tiny.write_csv(folder / f"{name}.csv", table)
    return folder


def test_classes_are_drawn_alike_over_phases_stops_and_resumes(bert, imbalanced, tmp_path, monkeypatch):
    """The second phase begins inside the first epoch, with other batches; an epoch has half of each class all the same."""
    sections = {
        "task": {"type": "text-classification", "class_sampling": "balanced"},
        "training": {
            "num_train_epochs": 2, "batch_size_schedule": [{"epoch": 0.6, "global_batch_size": 4}], **NEVER,
        },
    }  # fmt: skip

    def in_phases(place: str, *, stop_at: int | None = None) -> Any:
        first = prepare(bert, imbalanced, tmp_path / place, **sections)
        assert len(first.context.plan.phases) == 2
        if stop_at is not None:
            ask_to_stop(first, monkeypatch, at=stop_at)
            assert first.train()[1]
            first = prepare(bert, imbalanced, tmp_path / place, run=first.run, **sections)
        first.train(resume=stop_at is not None)
        again = prepare(bert, imbalanced, tmp_path / place, run=first.run, **sections)
        trainer, _ = again.train(resume=True)
        return again, trainer

    (whole, one), (resumed, two) = in_phases("whole"), in_phases("resumed", stop_at=2)
    steps = tiny.ledger(whole.run.path)
    assert tiny.ledger(resumed.run.path) == steps and tiny.losses(resumed.run.path) == tiny.losses(whole.run.path)
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(two.model.state_dict()[name], tensor), name
    used = [row for step in sorted(steps) for row in steps[step]]
    labels = whole.context.prepared.train["labels"]
    for epoch in (used[:40], used[40:]):
        assert [labels[row] for row in epoch].count(1) == 20 and {row for row in epoch if labels[row]} == {
            36,
            37,
            38,
            39,
        }
    assert "metal is 50.00% of what is drawn instead of 10.00%" in whole.context.prepared.facts["class_sampling"]


def test_drawn_rows_are_read_from_the_prefix_cache(bert, imbalanced, tmp_path):
    found = {}
    for kind in ("off", "memory"):
        run = prepare(
            bert, imbalanced, tmp_path / kind, task={"type": "text-classification", "class_sampling": "square_root"},
            strategy={"type": "head", "prefix_cache": kind}, training={"learning_rate": 1e-2, **NEVER},
        )  # fmt: skip
        trainer, _ = run.train()
        assert (trainer.cache is not None) == (kind == "memory")
        found[kind] = tiny.losses(run.run.path)
    assert found["memory"] == pytest.approx(found["off"], rel=1e-5)


def test_a_stop_at_the_border_of_two_phases_leaves_the_best_checkpoint_what_it_is(ready, monkeypatch):
    training = {"num_train_epochs": 2, "batch_size_schedule": [{"epoch": 1, "global_batch_size": 4}]}
    first = ready(**training)
    ask_to_stop(first, monkeypatch, at=STEPS)
    _, stopped = first.train()
    assert stopped
    second = ready(first.run, **training)
    with_metrics(second, [0.9, 0.1], monkeypatch)
    trainer, _ = second.train(resume=True)
    assert trainer.context.number == 1 and trainer.state.best_global_step == STEPS
    assert [row["step"] for row in rows_of(second, "eval_loss")] == [STEPS, STEPS + 6]
    assert same_weights(trainer.model, first.run.checkpoints / f"step-{STEPS}")
