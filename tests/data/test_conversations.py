"""Conversations in every format as one form: what is told from the columns, what each becomes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chat_styles
import pytest

from launcher.data.conversations import Wanted
from launcher.data.sources import SplitSet, load_splits
from launcher.data.turns import read_conversation
from launcher.errors import DataError
from launcher.recipe.data_section import DataSection
from launcher.recipe.task_options import COLUMNS

USER, ANSWER = {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Dos."}


def load(folder: Path, rows: list[dict[str, Any]], *, wanted: Wanted | None = None, **data: Any) -> SplitSet:
    wanted = wanted or Wanted()
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    needs = COLUMNS["preference" if wanted.pairs else "sft"]
    section = DataSection.model_validate({"source": str(folder), **data})
    return load_splits(section, base_folder=folder, needs=needs, optional=(), conversations=wanted)


def only(splits: SplitSet, column: str = "conversation") -> tuple[list[dict[str, Any]], Any]:
    return read_conversation(splits.train[column][0])[:2]


def told(splits: SplitSet) -> str:
    return str(splits.provenance["train"][0]["conversations"])


@pytest.mark.parametrize("name", ["alpaca", "sharegpt", "messages", "prompt_completion"])
def test_a_format_is_told_by_its_columns(name: str, tmp_path: Path) -> None:
    assert told(load(tmp_path, [chat_styles.ROWS[name]])) == name


def test_an_instruction_and_its_input_are_one_question(tmp_path: Path) -> None:
    row = {**chat_styles.ROWS["alpaca"], "system": "Be brief.", "history": [["Hi", "Hello"]]}
    messages, tools = only(load(tmp_path, [row]))
    assert messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Name the sum.\n2 and 3"},
        {"role": "assistant", "content": "It is 5."},
    ]
    assert tools is None


def test_calls_of_tools_become_the_assistant_s(tmp_path: Path) -> None:
    messages, tools = only(load(tmp_path, [chat_styles.ROWS["tools"]]))
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": chat_styles.CALL}],
    }
    assert tools == [{"type": "function", "function": chat_styles.TOOL}]


def test_openai_s_calls_have_their_arguments_as_a_mapping(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    rows = [
        {
            "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, ANSWER],
            "tools": [chat_styles.TOOL],
        }
    ]
    messages, _ = only(load(tmp_path, rows))
    assert messages[1]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    ]


def test_parts_of_text_are_one_text_and_json_texts_are_read(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Tw"}, {"type": "text", "text": "o?"}]
    rows = [{"messages": json.dumps([{"role": "user", "content": parts}, ANSWER])}]
    assert only(load(tmp_path, rows))[0] == [USER, ANSWER]


def test_prompt_and_completion_may_be_messages(tmp_path: Path) -> None:
    assert only(load(tmp_path, [{"prompt": [USER], "completion": [ANSWER]}]))[0] == [USER, ANSWER]


@pytest.mark.parametrize("said", ["[1, 2, 3]", '["a", {"b": 1}]', "[]"])
def test_an_answer_that_is_a_json_list_of_other_things_is_a_text(said: str, tmp_path: Path) -> None:
    assert only(load(tmp_path, [{"instruction": "Two?", "output": said}]))[0] == [USER, {**ANSWER, "content": said}]


def test_json_texts_of_messages_are_read_in_prompt_and_completion(tmp_path: Path) -> None:
    row = {"prompt": json.dumps([USER]), "completion": json.dumps([ANSWER])}
    assert only(load(tmp_path, [row]))[0] == [USER, ANSWER]


def test_weights_that_change_nothing_are_left_aside(tmp_path: Path) -> None:
    rows = [{"messages": [{**USER, "weight": 0}, {**ANSWER, "weight": 1.0, "train": True, "loss": None}]}]
    assert only(load(tmp_path, rows))[0] == [USER, ANSWER]


def test_a_tool_s_result_may_be_an_object(tmp_path: Path) -> None:
    rows = [{"messages": [USER, {"role": "tool", "content": {"sum": "é", "of": [1]}}, ANSWER]}]
    assert only(load(tmp_path, rows))[0][1] == {"role": "tool", "content": '{"sum": "é", "of": [1]}'}


def test_a_prompt_that_the_answers_repeat_otherwise_is_not_asked_twice(tmp_path: Path) -> None:
    rejected = [USER, {"role": "assistant", "content": "Uno."}]
    row = {"prompt": "Two? ", "chosen": [USER, ANSWER], "rejected": rejected}
    with pytest.raises(DataError, match="chosen begins with a message of the user that is not the prompt"):
        load(tmp_path, [row], wanted=Wanted(pairs=True))


@pytest.mark.parametrize(
    "row",
    [
        {"system_prompt": "Be brief.", "question": "Two?", "response": "Dos."},
        {"system": "Be brief.", "prompt": [USER], "completion": [USER, ANSWER]},
        {"system": "Be brief.", "messages": [USER, ANSWER]},
        {"system": "Be brief. ", "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Two?"}, {"from": "gpt", "value": "Dos."}]},
        {"system": "Be brief.", "instruction": "Two?", "output": "Dos."},
    ],
)  # fmt: skip
def test_a_column_of_system_messages_is_read_in_every_format(row: dict[str, Any], tmp_path: Path) -> None:
    messages, _ = only(load(tmp_path, [row], wanted=Wanted(system="Be kind.")))
    assert messages == [{"role": "system", "content": "Be brief."}, USER, ANSWER]


@pytest.mark.parametrize("call", [{"name": "add", "arguments": '{"a": 1}'}, '{"name": "add", "arguments": {"a": 1}}'])
@pytest.mark.parametrize("key", ["tool_calls", "function_call"])
def test_a_single_call_beside_words_is_read(call: Any, key: str, tmp_path: Path) -> None:
    tools = [{"name": "add", "parameters": {"type": "object"}}]
    row = {"messages": [USER, {**ANSWER, key: call}], "functions": tools}
    messages, known = only(load(tmp_path, [row]))
    assert messages[1]["content"] == "Dos."
    assert messages[1]["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    assert known == [{"type": "function", "function": tools[0]}]


def test_columns_with_other_names_are_named_by_the_recipe(tmp_path: Path) -> None:
    splits = load(tmp_path, [{"q": "Two?", "a": "Dos."}], columns={"prompt": "q", "completion": "a"})
    assert only(splits)[0] == [USER, ANSWER] and told(splits) == "prompt_completion"


def test_a_system_message_is_put_where_there_is_none(tmp_path: Path) -> None:
    first = {"role": "system", "content": "Be kind."}
    assert only(load(tmp_path, [{"messages": [USER, ANSWER]}], wanted=Wanted(system="Be kind.")))[0][0] == first
    own = {"role": "system", "content": "Be brief."}
    assert only(load(tmp_path, [{"messages": [own, USER, ANSWER]}], wanted=Wanted(system="Be kind.")))[0][0] == own


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Two?", "chosen": "Dos.", "rejected": "Uno."},
        {"instruction": "Two?", "input": "", "chosen": "Dos.", "rejected": "Uno.", "output": "Dos."},
        {"conversations": [{"from": "human", "value": "Two?"}], "chosen": {"from": "gpt", "value": "Dos."}, "rejected": {"from": "gpt", "value": "Uno."}},
        {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "Uno."}]},
        {"prompt": "Two?", "messages": [USER, ANSWER], "chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "Uno."}]},
        {"messages": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "Uno."}], "margin": 3},
        {"messages": [USER], "chosen": "Dos.", "rejected": "Uno."},
        {"conversations": [USER], "chosen": "Dos.", "rejected": "Uno."},
    ],
)  # fmt: skip
def test_pairs_are_two_whole_conversations(row: dict[str, Any], tmp_path: Path) -> None:
    splits = load(tmp_path, [row], wanted=Wanted(pairs=True))
    assert only(splits, "chosen")[0] == [USER, ANSWER]
    assert only(splits, "rejected")[0] == [USER, {"role": "assistant", "content": "Uno."}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "narrator", "content": "x"}, ANSWER]}, "message 1 is by 'narrator'; roles are system, user"),
        ({"messages": [USER]}, "it has no answer of the assistant, only user"),
        ({"messages": []}, "which is no list of messages"),
        ({"messages": "hello"}, "'hello', which is no list of messages"),
        ({"messages": [USER, {"role": "assistant", "content": "  "}]}, "message 2, of the assistant, is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}, "which is not text"),
        ({"prompt": "Two?", "completion": ""}, "completion is empty"),
        ({"prompt": " ", "completion": "x"}, "the prompt is empty"),
        ({"instruction": 3, "output": "x"}, "instruction holds '3' (int), which is not text"),
        ({"messages": [USER, ANSWER], "tools": "{broken"}, "which is no JSON list of tools"),
        ({"messages": [USER, ANSWER], "tools": [{"function": "myname"}]}, "a tool has no name"),
        ({"prompt": "Two?", "completion": None}, "completion is empty"),
        ({"prompt": None, "completion": "x"}, "the prompt is empty"),
        ({"instruction": "x", "output": "y", "history": [["a", None]]}, "history is no list of pairs"),
        ({"instruction": "x", "output": "y", "history": "x, y"}, "history is no list of pairs"),
        ({"instruction": "x", "output": "y", "history": [["a", " "]]}, "history has an answer that is empty"),
        ({"prompt": "Two?", "completion": 2}, "completion holds 2 (int), which is neither text nor messages"),
        ({"prompt": [USER, ANSWER], "completion": "Dos."}, "what stands before completion ends with an answer"),
        ({"prompt": "2?", "completion": [USER, ANSWER]}, "completion begins with a message of the user that is not the prompt"),
        ({"messages": [USER, {**ANSWER, "tool_calls": "[add("}]}, "message 2 has calls of tools that are no JSON list: '[add('"),
        ({"system": "A", "messages": [{"role": "system", "content": "B"}, USER, ANSWER]}, "two system messages that differ"),
        ({"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}, "message 2, of the assistant, has weight 0"),
        ({"messages": [USER, {**ANSWER, "train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}]}, "has train_detail"),
        ({"messages": [USER, {**ANSWER, "train": False}, USER, {**ANSWER, "train": True}]}, "has train False"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_conversation_is_named(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, [row])
    assert said in str(caught.value) and "train.jsonl:1 (row 1)" in str(caught.value)


def test_bad_rows_can_be_skipped(tmp_path: Path) -> None:
    rows = [{"messages": [USER, ANSWER]}] * 19 + [{"messages": [USER]}]
    splits = load(tmp_path, rows, on_bad_row="skip")
    assert len(splits.train) == 19 and len(splits.skipped) == 2


def test_pairs_that_repeat_their_prompt_may_have_a_system_message_before_it(tmp_path: Path) -> None:
    answers = {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "Uno."}]}
    own = {"role": "system", "content": "Be brief."}
    for row in ({"prompt": "Two?"}, {"prompt": "Two?", "system": "Be brief."}, {"prompt": [own, USER]}):
        splits = load(tmp_path, [row | answers], wanted=Wanted(pairs=True, system="Be brief."))
        assert only(splits, "chosen")[0] == [own, USER, ANSWER]
    twice = {"prompt": [{**own, "content": "Be kind."}, USER], "chosen": [own, USER, ANSWER], "rejected": "Uno."}
    with pytest.raises(DataError, match="chosen begins with another system message than the prompt has"):
        load(tmp_path, [twice], wanted=Wanted(pairs=True))


def test_chosen_and_rejected_have_to_differ_and_to_answer_the_same(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="chosen and rejected are the same"):
        load(tmp_path, [{"prompt": "Two?", "chosen": "Dos.", "rejected": "Dos."}], wanted=Wanted(pairs=True))
    other = [{"role": "user", "content": "Three?"}, {"role": "assistant", "content": "Tres."}]
    with pytest.raises(DataError, match="what stands before their answers differs"):
        load(tmp_path, [{"chosen": [USER, ANSWER], "rejected": other}], wanted=Wanted(pairs=True))


@pytest.mark.parametrize(
    ("row", "wanted", "said"),
    [
        ({"body": "x", "reply": "y"}, Wanted(), "columns: {prompt: <what is asked>, completion: <what is answered>}"),
        ({"body": "x", "reply": "y"}, Wanted("alpaca"), "columns: {instruction: <their column>, output: <their column>}"),
        ({"body": "x", "better": "y"}, Wanted(pairs=True), "columns: {prompt: <what is asked>, chosen: <better answer>, rejected: <worse"),
        ({"body": "x"}, Wanted(prompts=True, is_new=True), "rename its columns to prompt"),
        ({"body": "x"}, Wanted(pairs=True, is_new=True), "rename its columns to prompt, chosen and rejected"),
        ({"body": "x"}, Wanted(is_new=True), "rename its columns to prompt and completion, or prompt, chosen and rejected"),
        ({"chosen": "x", "rejected": "y"}, Wanted("prompt_completion", pairs=True), "which has chosen and rejected, and prompt"),
    ],
)  # fmt: skip
def test_columns_that_tell_nothing_are_asked_about(
    row: dict[str, Any], wanted: Wanted, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, [row], wanted=wanted)
    assert said in str(caught.value)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="has no column 'questoin', which data.columns.prompt names.*did you mean 'question'"
    ):
        load(tmp_path, [{"question": "Two?", "answer": "Dos."}], columns={"prompt": "questoin"})


def test_thoughts_have_several_names(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "4"}
    for name in ("reasoning", "reasoning_content"):
        (tmp_path / name).mkdir()
        rows = [{"messages": [{"role": "user", "content": "2+2?"}, {**answer, name: "two and two"}]}]
        messages, _ = only(load(tmp_path / name, rows))
        assert messages[-1] == {**answer, "reasoning_content": "two and two"}
