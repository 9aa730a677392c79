"""Instruction tuning: rows of answers, the loss against transformers' own, packing without leaks, samples, and runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import chat_styles
import numpy as np
import pytest
import tiny
import torch

from launcher.engine.loading import Rows
from launcher.errors import DataError, ModelError, RunStateError
from launcher.evaluation.kinds import kind_of
from launcher.recipe.schema import Recipe
from launcher.tasks.answering import left_padded, sample_prompts
from launcher.tasks.next_token_collator import NextTokenCollator
from launcher.tasks.packed_models import leak, require_apart
from launcher.tasks.sft import SFT, WRITTEN
from launcher.tasks.text_task import IGNORED, token_losses

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
import in_process


@pytest.fixture
def story(shared: Path) -> str:
    return str(shared / "models" / "stories260k-llama")


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "validation", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def sums(number: int) -> list[dict[str, str]]:
    """Questions of several lengths, and their answers."""
    random = np.random.default_rng(0)
    found = []
    for row in range(number):
        numbers = random.integers(0, 10, size=2 + row % 5).tolist()
        found.append(
            {"prompt": f"{row}: add {' and '.join(map(str, numbers))}", "completion": f"The sum is {sum(numbers)}."}
        )
    return found


def values(model: Any, data: Path | str, /, task: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    section = model if isinstance(model, dict) else {"name_or_path": model}
    own = {"type": "sft", "chat_template": "plain", "sample_generations": 0, **(task or {})}
    rows = {"max_length": 160, **changes.pop("data", {})}
    return tiny.recipe_values("", data, **{"task": own, "model": section, "data": rows, **changes})


def task_for(model: Any, data: Path | str = "none", /, **changes: Any) -> SFT:
    return SFT(Recipe.model_validate(values(model, data, **changes)))


def losses_of(task: SFT, model: Any, rows: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Each place's loss, and what it is of: [rows, kept]."""
    batch = task.collator()(rows)
    with torch.no_grad():
        outputs = model(**{name: batch[name] for name in batch if name not in ("labels", "sample_weight")})
    return token_losses(outputs["logits"], batch["labels"]), batch


# --- rows --------------------------------------------------------------------------------------------------------------


def test_only_answers_are_learned_unless_all_is(story: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data", [chat_styles.ROWS["messages"]] * 3)
    shown = {}
    for name, options in {
        "all": {},
        "last": {"learned_answers": "last"},
        "every": {"assistant_only_loss": False},
    }.items():
        task = task_for(story, data, task=options)
        _, prepared = task.prepare_data()
        row = prepared.train[0]
        learned = np.asarray(row["input_ids"])[np.asarray(row["learned"]) > 0]
        shown[name] = task.tokenizer.decode(learned)
    assert shown["all"].split() == ["Uno.", "</s>Dos.", "Yes,", "dos.</s>"]
    assert shown["last"].split() == ["Dos.", "Yes,", "dos.</s>"]
    assert "One?" in shown["every"] and "Dos." in shown["every"]


@pytest.mark.parametrize("template", ["plain", "chatml"])
def test_answers_in_a_prompt_are_read(template: str, story: str, tmp_path: Path) -> None:
    asked = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Uno."},
        {"role": "user", "content": "Two?"},
    ]
    answer = [{"role": "assistant", "content": "Dos."}]
    follow = [*answer, {"role": "user", "content": "Three?"}, {"role": "assistant", "content": "Tres."}]
    rows = [
        {"prompt": asked, "completion": answer},
        {"prompt": asked, "completion": follow},
        {"prompt": asked, "completion": [*asked, *answer]},
    ]
    for answers, wanted in (("all", ["Dos.", "Dos.Tres.", "Dos."]), ("last", ["Dos.", "Tres.", "Dos."])):
        task = task_for(
            story, write(tmp_path / answers, rows), task={"chat_template": template, "learned_answers": answers}
        )
        _, prepared = task.prepare_data()
        kept = [np.asarray(row["input_ids"])[np.asarray(row["learned"]) > 0] for row in prepared.train]
        learned = [task.tokenizer.decode(ids, skip_special_tokens=True) for ids in kept]
        assert ["".join(text.split()) for text in learned] == wanted


def test_what_is_cut_is_counted_shown_and_left_out_where_nothing_is_left(story: str, tmp_path: Path) -> None:
    long = {"prompt": "Two?", "completion": "Dos. " * 30}
    silent = {"prompt": "Why? " * 60, "completion": "So."}
    task = task_for(
        story, write(tmp_path / "data", [long, silent, chat_styles.ROWS["prompt_completion"]]), data={"max_length": 48}
    )
    _, prepared = task.prepare_data()
    counts = prepared.facts["splits"]["train"]
    assert (counts["rows"], counts["texts"], counts["cut"], counts["empty"]) == (2, 3, 2, 1)
    notes = " ".join(prepared.facts["warnings"])
    assert (
        "2 of the 3 train conversations are longer than 48 tokens" in notes
        and "1 of the 3 train conversations have nothing" in notes
    )
    assert "told to be prompt_completion (prompt, completion)" in notes
    parts = task.show_row(prepared.train[0], prepared).parts
    assert (
        parts[-1][1] == "cut"
        and ("learned" in {kind for _, kind in parts})
        and f"{long['completion']}</s>\n\n".endswith(parts[-1][0])
    )


def test_nothing_to_learn_at_all_is_an_error(story: str, tmp_path: Path) -> None:
    silent = {"prompt": "Why? " * 60, "completion": "So."}
    with pytest.raises(
        DataError, match="no train conversation has anything to learn within data.max_length, 48 tokens"
    ):
        task_for(story, write(tmp_path / "data", [silent]), data={"max_length": 48}).prepare_data()


def test_a_row_that_the_template_refuses_is_named_or_skipped(story: str, tmp_path: Path) -> None:
    (tmp_path / "turns.jinja").write_text(chat_styles.TURNS)
    rows = [chat_styles.ROWS["messages"]] * 19 + [chat_styles.ROWS["sharegpt"] | {"messages": None}]
    rows[-1] = {"messages": [{"role": "system", "content": "Be brief."}, *chat_styles.ROWS["messages"]["messages"]]}
    data = write(tmp_path / "data", rows)
    options = {"task": {"chat_template": str(tmp_path / "turns.jinja")}}
    with pytest.raises(
        DataError, match=r"train.jsonl:20 \(row 20\).*the chat template refuses it: System role not supported"
    ):
        task_for(story, data, **options).prepare_data()
    _, prepared = task_for(story, data, data={"on_bad_row": "skip"}, **options).prepare_data()
    assert len(prepared.train) == 19


def test_preparing_again_finds_the_rows_until_the_template_changes(story: str, tmp_path: Path) -> None:
    data, path = write(tmp_path / "data", sums(4)), tmp_path / "own.jinja"
    path.write_text(chat_styles.TURNS)
    task = {"task": {"chat_template": str(path)}}
    assert not task_for(story, data, **task).prepare_data()[1].facts["was_cached"]
    assert task_for(story, data, **task).prepare_data()[1].facts["was_cached"]
    path.write_text(chat_styles.WORDS)
    again = task_for(story, data, **task).prepare_data()[1]
    assert not again.facts["was_cached"] and "ends answers with no special token" in " ".join(again.facts["warnings"])


# --- loss --------------------------------------------------------------------------------------------------------------


def test_the_loss_is_transformers_own(story: str, tmp_path: Path) -> None:
    task = task_for(story, write(tmp_path / "data", sums(6)))
    _, prepared = task.prepare_data()
    model, rows = task.build_model(prepared).model.eval(), Rows(prepared.train).__getitems__(range(6))
    batch = task.collator()(rows)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    learned = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["learned"]) for row in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence(
        [torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows], batch_first=True
    )
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(learned == 0, IGNORED)).loss
        outputs = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "logits_to_keep")})
    ours = task.loss(outputs, batch) / task.items(batch)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    assert float(task.items(batch)) == float(learned.sum())
    kept = task.row_outputs(outputs, batch)
    assert kept[:, 1].tolist() == [sum(row["learned"]) for row in rows] and float(kept[:, 0].sum()) == pytest.approx(
        float(task.loss(outputs, batch))
    )
    # Logits are made where some row learns, and nowhere else.
    assert outputs["logits"].shape[1] == len(batch["logits_to_keep"]) < ids.shape[1]


def test_marks_without_the_end_of_a_turn_are_told(story: str, tmp_path: Path) -> None:
    source = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}:{% else %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% endif %}{% endfor %}"
    own = tmp_path / "own.jinja"
    for text, is_told in (
        (source, True),
        (source.replace("{% endgeneration %}{{ eos_token }}", "{{ eos_token }}{% endgeneration %}"), False),
    ):
        own.write_text(text)
        task = task_for(story, write(tmp_path / "data", sums(3)), task={"chat_template": str(own)})
        notes = " ".join(task.prepare_data()[1].facts["warnings"])
        assert ("marks leave out '</s>', which ends an answer" in notes) is is_told


def test_packed_rows_have_the_losses_of_their_sequences(story: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data", sums(20))
    apart, together = (
        task_for(story, data, task={"packing": packing}, data={"max_length": 160}) for packing in (False, True)
    )
    rows, packs = (
        [*Rows(task.prepare_data()[1].train).__getitems__(range(n))] for task, n in ((apart, 20), (together, 3))
    )
    model = apart.build_model(None).model.eval()
    assert max(len(pack["seq_lengths"]) for pack in packs) > 2
    alone = {tuple(row["input_ids"]): float(losses_of(apart, model, [row])[0].sum()) for row in rows}
    losses, batch = losses_of(together, model, packs)
    assert "attention_mask" not in batch
    for number, pack in enumerate(packs):
        begin = 0
        for length in pack["seq_lengths"]:
            own = (batch["logits_to_keep"] >= begin) & (batch["logits_to_keep"] < begin + length)
            found = float(losses[number][own].sum())
            assert found == pytest.approx(alone[tuple(pack["input_ids"][begin : begin + length])], rel=1e-5)
            begin += length


def test_packed_logits_are_those_of_each_sequence_alone_and_a_mask_would_leak(story: str) -> None:
    model = task_for(story).build_model(None).model.eval()
    parts = [torch.tensor([[1, 40, 50, 60, 70]]), torch.tensor([[1, 90, 80, 33]])]
    row = {
        "input_ids": torch.cat(parts, dim=1)[0].tolist(),
        "learned": [0, 1, 1, 1, 1, 0, 1, 1, 1],
        "seq_lengths": [5, 4],
    }
    batch = NextTokenCollator(pad_token_id=0, all_logits=True)([row])
    with torch.no_grad():
        alone = torch.cat([model(input_ids=part).logits for part in parts], dim=1)
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits[:, :9]
        leaking = model(
            **{name: batch[name] for name in ("input_ids", "position_ids")},
            attention_mask=torch.ones_like(batch["input_ids"]),
        ).logits[:, :9]
    assert float((packed - alone).abs().max()) < 1e-4
    assert float((leaking - alone).abs().max()) > 1e-2


def test_flat_rows_are_the_packs_one_after_the_other() -> None:
    rows = [
        {"input_ids": [1, 2, 3], "learned": [0, 1, 1], "seq_lengths": [3]},
        {"input_ids": [4, 5, 6, 7, 8], "learned": [0, 1, 0, 1, 1], "seq_lengths": [2, 3], "weight": 0.0},
    ]
    batch = NextTokenCollator(pad_token_id=9, flat=True)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]] and batch["position_ids"].tolist() == [
        [0, 1, 2, 0, 1, 0, 1, 2]
    ]
    # The second row only fills up.
    assert batch["labels"].tolist() == [[2, 3]] and batch["logits_to_keep"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("kind", "is_apart"),
    [("llama", True), ("qwen3", True), ("gemma3_text", True), ("gpt2", True), ("opt", False), ("bloom", False)],
)
def test_models_that_do_not_keep_packed_sequences_apart_are_refused(kind: str, is_apart: bool) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind)
    if is_apart:
        require_apart(config)
        return
    found = leak(config)
    assert found is not None and found > 1e-3
    with pytest.raises(ModelError, match="packed sequences see each other.*write task.packing: false"):
        require_apart(config)


# --- the model ---------------------------------------------------------------------------------------------------------


def test_tokens_of_a_template_get_embeddings_and_the_model_stops_at_them(story: str) -> None:
    task = task_for(story, task={"chat_template": "chatml"})
    loaded = task.build_model(None)
    weight = loaded.model.get_input_embeddings().weight
    assert weight.shape[0] == 514 == len(task.tokenizer) and loaded.model.config.vocab_size == 514
    assert torch.allclose(weight[512], weight[:512].mean(dim=0), atol=1e-6) and torch.equal(weight[512], weight[513])
    assert "model.embed_tokens.weight" in loaded.newly_initialized
    end = task.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert task.end_id == end and loaded.model.generation_config.eos_token_id == [end, 2]
    skeleton = task.build_model(None, skeleton=True)
    assert skeleton.model.get_input_embeddings().weight.shape[0] == 514


def test_tied_embeddings_of_new_tokens_do_not_go_with_adapters(story: str) -> None:
    with pytest.raises(
        ModelError, match="which adds 2 token.*write task.chat_template: plain, which adds none, or strategy.type: full"
    ):
        task_for(story, task={"chat_template": "chatml"}, strategy={"type": "lora"}).build_model(None)


def test_prompts_are_padded_on_the_left_and_end_before_the_last_answer() -> None:
    ids, mask = left_padded(torch.tensor([[5, 6, 0, 0], [7, 8, 9, 0]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]))
    assert ids.tolist() == [[0, 5, 6], [7, 8, 9]] and mask.tolist() == [[0, 1, 1], [1, 1, 1]]
    from datasets import Dataset

    rows = Dataset.from_dict(
        {
            "row_id": [3, 4],
            "input_ids": [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]],
            "learned": [[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]],
        }
    )
    assert sample_prompts(rows, most=2) == [(3, [1, 2, 3], [4, 5]), (4, [1, 2, 3, 4], [5, 6])]
    assert sample_prompts(rows, most=0) == []


def test_generation_is_transformers_own_for_prompts_of_any_length(story: str, tmp_path: Path) -> None:
    task = task_for(story, write(tmp_path / "data", sums(3)), task={"max_new_tokens": 12})
    model = task.build_model(None).model.eval()
    rows, prepared = task.prepare_rows({"text": ["Once upon a time", "The"]}, {"max_length": 100})
    assert task.writes(prepared) and prepared.problem_type == WRITTEN
    batch = task.collator()(Rows(rows).__getitems__(range(2)))
    found = task.generate(model, batch)
    for number, row in enumerate(rows):
        alone = model.generate(
            torch.tensor([row["input_ids"]]),
            attention_mask=torch.ones(1, row["length"], dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
        )
        assert found[number].tolist()[: alone.shape[1] - row["length"]] == alone[0, row["length"] :].tolist()
    predictions = task.predictions(found.float().numpy(), rows, prepared)
    shown = kind_of(predictions).rows(predictions)
    assert [set(row) for row in shown] == [{"text", "prediction", "ended"}] * 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["One?", " "]}, "text 2 holds nothing that is said to the model"),
        ({"text": ["One?"], "text_pair": ["Two?"]}, "no second text"),
        ({"text": ["One? " * 300]}, r"text 1 has [\d,]+ tokens with the chat template, and the model takes 512"),
        (
            {"conversation": [json.dumps({"messages": [{"role": "assistant", "content": "Uno."}], "tools": None})]},
            "text 1 holds nothing that is said",
        ),
    ],
)
def test_what_cannot_be_answered_is_named(story: str, columns: dict[str, list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_for(story).prepare_rows(columns, {})


def test_a_prompt_that_the_template_refuses_is_named(story: str, tmp_path: Path) -> None:
    (tmp_path / "turns.jinja").write_text(chat_styles.TURNS)
    task = task_for(story, task={"chat_template": str(tmp_path / "turns.jinja"), "default_system_message": "Be brief."})
    with pytest.raises(DataError, match="text 1: the chat template refuses it: System role not supported"):
        task.prepare_rows({"text": ["One?"]}, {})


def test_rows_of_a_file_are_prompts_with_their_answers_apart(story: str, tmp_path: Path) -> None:
    task = task_for(story)
    chats, texts = tmp_path / "chats.jsonl", tmp_path / "asked.txt"
    chats.write_text(json.dumps(chat_styles.ROWS["messages"]) + "\n")
    texts.write_text("One?\nTwo?\n")
    [row] = task.prepare_rows(task.read_rows(str(chats)), {})[0]
    assert row["text"].endswith("?") and row["references"][0].startswith("Dos.") and "Dos." not in row["text"]
    rows, _ = task.prepare_rows(task.read_rows(str(texts)), {})
    assert [row["input_ids"] for row in rows] == [
        row["input_ids"] for row in task.prepare_rows({"text": ["One?", "Two?"]}, {})[0]
    ]


def test_answers_end_where_the_model_does(story: str) -> None:
    """Learned positions have an end, behind which GPT-2 would fail."""
    config = {"model_type": "gpt2", "n_positions": 32, "n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 512}
    task = task_for({"name_or_path": None, "tokenizer_name_or_path": story, "config": config}, data={"max_length": 32})
    model = task.build_model(None).model.eval()
    rows, _ = task.prepare_rows({"text": ["Two?"]}, {})
    found = task.generate(model, task.collator()(Rows(rows).__getitems__([0])))
    assert 0 < found.shape[1] <= 32 - len(rows[0]["input_ids"])


# --- runs --------------------------------------------------------------------------------------------------------------


def test_training_lowers_the_answer_loss_and_the_same_prompts_are_answered_each_time(
    story: str, tmp_path: Path
) -> None:
    prepared = in_process.prepare(
        Path(story), write(tmp_path / "data", sums(24)), tmp_path / "runs",
        task={"type": "sft", "chat_template": "plain", "sample_generations": 2, "max_new_tokens": 8}, data={"max_length": 120},
        training={"num_train_epochs": 4, "learning_rate": 3e-3, "global_batch_size": 8, "eval_on_start": True},
    )  # fmt: skip
    prepared.train()
    rows = [json.loads(line) for line in prepared.run.progress.read_text().splitlines()]
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    samples = [json.loads(line) for line in prepared.run.generations.read_text().splitlines()]
    steps = {sample["step"] for sample in samples}
    assert steps == {0, 3, 6, 9, 12}
    assert len({tuple(s["prompt"] for s in samples if s["step"] == step) for step in steps}) == 1
    assert samples[0]["reference"].startswith("The sum is") and not samples[0]["final"]


def test_another_template_is_another_run(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from launcher.engine.resuming import keep_chat_template

    run: Any = SimpleNamespace(chat_template=tmp_path / "chat_template.jinja")
    task = SimpleNamespace(processor=SimpleNamespace(chat_template="{{ a }}"))
    keep_chat_template(run, task, allow=False)
    keep_chat_template(run, task, allow=False)
    task.processor.chat_template = "{{ b }}"
    with pytest.raises(RunStateError, match="the chat template is no longer the one"):
        keep_chat_template(run, task, allow=False)
    keep_chat_template(run, task, allow=True)
    assert run.chat_template.read_text() == "{{ b }}"


# --- what a reader is told -----------------------------------------------------------------------------------------------


def test_special_tokens_in_what_is_said_and_what_is_not_shown_are_counted(story: str, tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "No.", "reasoning_content": "Hm."}
    rows = [
        {"messages": [{"role": "user", "content": "Is </s> a word?"}, {"role": "assistant", "content": "Yes."}]},
        {"messages": [{"role": "user", "content": "And now?"}, answer]},
        chat_styles.ROWS["messages"],
    ]
    data = write(tmp_path / "data", rows)
    notes = " ".join(task_for(story, data, data={"max_length": 256}).prepare_data()[1].facts["warnings"])
    assert "1 of the 3 train rows have special tokens within what is said" in notes
    assert "1 of the 3 train rows have something that the chat template does not show" in notes
    raw = task_for(story, data, data={"max_length": 256}, task={"chat_template": "raw"}).prepare_data()[1]
    assert "special tokens within" not in " ".join(raw.facts["warnings"]), "they are meant there"


def test_a_template_that_writes_the_day_is_told_of(story: str, tmp_path: Path) -> None:
    (tmp_path / "day.jinja").write_text("{{ strftime_now('%d %B') }}" + chat_styles.TURNS)
    task = task_for(story, write(tmp_path / "data", sums(3)), task={"chat_template": str(tmp_path / "day.jinja")})
    _, prepared = task.prepare_data()
    assert "it is 26 Jul 2024 in all rows" in " ".join(prepared.facts["warnings"])
    assert "26 July" in task.tokenizer.decode(prepared.train[0]["input_ids"])
