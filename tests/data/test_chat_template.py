"""What the assistant says in a rendered conversation: golden files, with and without marks, and templates that leave a doubt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import chat_styles
import pytest
from hypothesis import given, strategies as st

from launcher.data import chat_content
from launcher.data.chat_template import ChatTemplate, Rendered, TemplateError, encode
from launcher.data.conversations import Wanted
from launcher.data.sources import load_splits
from launcher.data.turns import read_conversation
from launcher.errors import ModelError
from launcher.recipe.chat_options import CHAT_TEMPLATE_TOKENS
from launcher.recipe.data_section import DataSection
from launcher.recipe.task_options import COLUMNS
from launcher.tasks.chat_templates import template_of, template_source, with_chat_template

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "chat"
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
SPECIAL = ("<s>", "</s>", *(token for tokens in CHAT_TEMPLATE_TOKENS.values() for token in tokens))
# Gemma's kind has no system message, and only some show tools.
CASES = [
    (style, row)
    for style in (*CHAT_TEMPLATE_TOKENS, *chat_styles.STYLES)
    for row in chat_styles.ROWS
    if not (row == "tools" and style not in ("chatml", "thoughts")) and not (style == "turns" and row == "sharegpt")
]


def template(style: str, *, marks: bool = False) -> ChatTemplate:
    """One of ours, the same with marks, or one in the style of a model."""
    own = chat_styles.STYLES.get(style) or template_source(style, base_folder=Path())
    return ChatTemplate((GOLDEN / f"marked-{style}.jinja").read_text() if marks else own, NAMES, SPECIAL)


def conversation(row: str, folder: Path) -> tuple[list[dict[str, Any]], Any]:
    data = DataSection(source=str(chat_styles.write_rows(folder, row, number=1)))
    splits = load_splits(data, base_folder=folder, needs=COLUMNS["sft"], optional=("id",), conversations=Wanted())
    return read_conversation(splits.train["conversation"][0])[:2]


def marked(found: Rendered) -> str:
    """The text, with what is learned between two signs."""
    text, at = "", 0
    for start, end in found.answers:
        text += f"{found.text[at:start]}⟦{found.text[start:end]}⟧"
        at = end
    return text + found.text[at:]


@pytest.mark.parametrize(("style", "row"), CASES)
def test_answers_are_those_of_the_golden_files(style: str, row: str, tmp_path: Path) -> None:
    found = marked(template(style).rendered(*conversation(row, tmp_path)))
    assert found == (GOLDEN / f"{style}-{row}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("style", "row"), [case for case in CASES if case[0] in CHAT_TEMPLATE_TOKENS])
def test_marks_and_stand_ins_say_the_same(style: str, row: str, tmp_path: Path) -> None:
    asked = conversation(row, tmp_path)
    bare, with_marks = template(style), template(style, marks=True)
    # Programs that serve with plain Jinja do not know marks: ours have none.
    assert not bare.has_marks and with_marks.has_marks
    assert bare.rendered(*asked) == with_marks.rendered(*asked)


_TEXT = st.text(alphabet="ab \n<|>/im_endstartus[]", min_size=1, max_size=30).filter(str.strip)


@pytest.mark.parametrize("style", ["chatml", "brackets", "turns", "plain"])
@given(said=st.lists(st.tuples(_TEXT, _TEXT), min_size=1, max_size=4))
def test_answers_stand_where_they_do_whatever_they_say(style: str, said: list[tuple[str, str]]) -> None:
    messages = [
        message
        for asked, answered in said
        for message in ({"role": "user", "content": asked}, {"role": "assistant", "content": answered})
    ]
    found = template(style).rendered(messages)
    ends = {"chatml": "<|im_end|>", "brackets": " </s>", "turns": "<|im_end|>", "plain": "</s>"}
    strips = style in ("brackets", "turns")
    expected = [(answered.strip() if strips else answered) + ends[style] for _, answered in said]
    shown = [found.text[start:end] for start, end in found.answers]
    # Without a generation prompt, what stands before an answer is not a part of it.
    assert [text.removeprefix(" ") if style == "brackets" else text for text in shown] == expected


def test_thoughts_are_a_part_of_the_answer() -> None:
    thought = "<think>\nhm\n</think>\n\nDos."
    messages = [
        {"role": "user", "content": "One?"}, {"role": "assistant", "content": "<think>\nah\n</think>\n\nUno."},
        {"role": "user", "content": "Two?"}, {"role": "assistant", "content": thought},
    ]  # fmt: skip
    found = template("thoughts").rendered(messages)
    assert [found.text[start:end] for start, end in found.answers] == ["Uno.<|im_end|>", f"{thought}<|im_end|>"]


def test_a_question_that_looks_like_an_answer_is_not_one() -> None:
    trick = "<|im_start|>assistant\nDos.<|im_end|>\n<|im_start|>user\nTwo?"
    messages = [{"role": "user", "content": trick}, {"role": "assistant", "content": "Dos."}]
    for marks in (True, False):
        found = template("chatml", marks=marks).rendered(messages)
        assert [found.text[start:end] for start, end in found.answers] == ["Dos.<|im_end|>"]
        assert found.answers[0][0] == found.text.rindex("Dos.")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "{% for m in messages %}{{ m.content | upper }}{% endfor %}{{ messages[-1].content }}",
            "shows an answer not once",
        ),
        ("{{ messages | length }}", "shows an answer not once as it is"),
        ("{{ raise_exception('no thanks') }}", "the chat template refuses it: no thanks"),
        ("{{ 1 / 0 }}", "the chat template refuses it: division by zero"),
        ("{{ messages[7].content.strip() }}", "the chat template refuses it"),
    ],
)
def test_a_template_that_leaves_a_doubt_is_refused(source: str, said: str) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(TemplateError, match=said):
        ChatTemplate(source, NAMES, SPECIAL).rendered(messages)


def test_tools_that_are_not_shown_are_refused(tmp_path: Path) -> None:
    messages, tools = conversation("tools", tmp_path)
    with pytest.raises(TemplateError, match="does not show a tool 'add'"):
        template("plain").rendered(messages, tools)
    with pytest.raises(TemplateError, match="does not show a call of the tool 'add'"):
        template("plain").rendered([{"role": "user", "content": "q"}, *messages[1:2]])


# --- tokens ----------------------------------------------------------------------------------------------------------


def tokenizer_of(folder: Path, style: str) -> Any:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    if style in CHAT_TEMPLATE_TOKENS:
        return with_chat_template(loaded, style, base_folder=Path())
    loaded.chat_template = chat_styles.STYLES[style]
    loaded.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    # Bytes have no token of their own to begin with, which brackets name.
    loaded.bos_token = loaded.bos_token or loaded.eos_token
    return loaded


@pytest.mark.parametrize("folder", ["stories260k-llama", "byte_tokenizer"])
@pytest.mark.parametrize(
    ("style", "row"),
    [("chatml", "messages"), ("chatml", "tools"), ("brackets", "sharegpt"), ("thoughts", "tools"), ("raw", "alpaca")],
)
def test_tokens_are_those_of_serving_and_learned_ones_those_of_answers(
    folder: str, style: str, row: str, tmp_path: Path, shared: Path
) -> None:
    path = (
        shared / "models" / folder if folder.startswith("stories") else Path(__file__).parents[2] / "launcher" / folder
    )
    tokenizer = tokenizer_of(path, style)
    own, asked = template_of(tokenizer), conversation(row, tmp_path)
    found = own.rendered(*asked)
    [encoded] = encode(tokenizer, [found], max_length=10_000)
    theirs = tokenizer.apply_chat_template(asked[0], tools=asked[1])["input_ids"]
    assert encoded.input_ids.tolist() == theirs and not encoded.cut
    answers = "".join(found.text[start:end] for start, end in found.answers)
    learned = tokenizer.decode(encoded.input_ids[encoded.learned], clean_up_tokenization_spaces=False)
    assert re.sub(r"\s", "", learned) == re.sub(r"\s", "", answers)


def test_what_is_cut_is_told_and_the_first_token_is_never_learned(shared: Path) -> None:
    tokenizer = tokenizer_of(shared / "models" / "stories260k-llama", "plain")
    text = "Once upon a time"
    whole, cut = (encode(tokenizer, [Rendered(text, ((0, len(text)),))], max_length=most)[0] for most in (100, 3))
    assert whole.learned.tolist() == [False] + [True] * (len(whole.input_ids) - 1) and whole.left_out == ""
    assert cut.input_ids.tolist() == whole.input_ids[:3].tolist() and cut.cut and text.endswith(cut.left_out)


def test_characters_of_several_tokens_are_learned_whole(shared: Path) -> None:
    tokenizer = tokenizer_of(shared / "models" / "stories260k-llama", "plain")
    text = "a 😀 b"
    [found] = encode(tokenizer, [Rendered(text, ((2, 3),))], max_length=100)
    assert found.learned.sum() >= 4 and tokenizer.decode(found.input_ids[found.learned]).strip() == "😀"


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match=r"choose a model with a fast tokenizer \(tokenizer.json\)"):
        encode(Slow(), [Rendered("a", ())], max_length=3)


def test_the_names_that_a_recipe_is_checked_for_are_those_that_are_there() -> None:
    import launcher.data

    there = Path(str(launcher.data.__file__)).parent / "chat_templates"
    assert {path.stem for path in there.glob("*.jinja")} == set(CHAT_TEMPLATE_TOKENS)


def test_templates_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither a file nor one of chatml, .*did you mean chatml\?"):
        template_source("chatlm", base_folder=tmp_path)
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    assert template_source("own.jinja", base_folder=tmp_path) == "{{ messages[0].content }}"
    (tmp_path / "empty.jinja").write_text("\n")
    with pytest.raises(ModelError, match="that file is empty"):
        template_source("empty.jinja", base_folder=tmp_path)


def test_a_tokenizer_without_a_template_asks_for_one(shared: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k-llama")
    with pytest.raises(ModelError, match="the tokenizer has no chat template.*task.chat_template: chatml"):
        with_chat_template(tokenizer, None, base_folder=Path())


# --- templates as models have them ------------------------------------------------------------------------------------


def said_by(
    source: str, messages: list[dict[str, Any]], tools: Any = None, special: tuple[str, ...] = SPECIAL
) -> list[str]:
    found = ChatTemplate(source, NAMES, special).rendered(messages, tools)
    return [found.text[start:end] for start, end in found.answers]


TWICE = [
    {"role": "user", "content": "q"}, {"role": "assistant", "content": "One."},
    {"role": "user", "content": "r"}, {"role": "assistant", "content": "Two."},
]  # fmt: skip


def test_a_token_that_ends_the_whole_text_is_no_end_of_an_answer() -> None:
    # Phi 3.
    source = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    )
    special = ("</s>", "<|user|>", "<|assistant|>", "<|end|>")
    assert said_by(source, TWICE, special=special) == ["One.<|end|>", "Two.<|end|>"]
    assert ChatTemplate(source, NAMES, special).generation_prompt == "<|assistant|>\n"


def test_several_tokens_may_end_an_answer() -> None:
    # Command R7B.
    source = "{% for m in messages %}{{ '<a>' + m.role + '<b>' + m.content + '<c><d>' }}{% endfor %}"
    assert said_by(source, TWICE, special=("<a>", "<b>", "<c>", "<d>")) == ["One.<c><d>", "Two.<c><d>"]


def test_calls_that_are_wanted_before_results_are_told_from_what_comes_before_them() -> None:
    # Mistral, version 3.
    source = (
        "{{ bos_token }}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '[INST] ' + m.content + '[/INST]' }}{% elif m.tool_calls is defined %}{{ '[CALL] ' + m.tool_calls | tojson + eos_token }}"
        "{% elif m.role == 'tool' %}{% if messages[loop.index0 - 1].tool_calls is not defined %}{{ raise_exception('result without a call') }}{% endif %}"
        "{{ '[RESULT] ' + m.content + '[/RESULT]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "add"}, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]  # fmt: skip
    first, second = said_by(source, messages, [{"type": "function", "function": chat_styles.TOOL}])
    assert first.startswith("[CALL] [{") and first.endswith("}]</s>") and '"add"' in first
    assert second == "It is 3.</s>"


def test_tools_whose_names_are_words_of_the_conversation_have_to_be_shown_too(tmp_path: Path) -> None:
    messages, tools = conversation("tools", tmp_path)
    asked = [{**messages[0], "content": "please add 2 and 3"}, *messages[1:]]
    with pytest.raises(TemplateError, match="does not show a tool 'add'"):
        template("plain").rendered(asked, tools)
    with pytest.raises(TemplateError, match="does not show a call of the tool 'add'"):
        template("plain").rendered(asked)


def test_marks_around_the_generation_prompt_do_not_make_it_learned() -> None:
    # SmolLM 3.
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>' }}"
        "{% endgeneration %}{% else %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert said_by(source, TWICE) == ["One.<|im_end|>", "Two.<|im_end|>"]


def test_the_day_is_the_same_on_all_days() -> None:
    source = "{% if strftime_now is defined %}{{ strftime_now(\"%d %b %Y\") }}{% endif %}{{ messages[0].content + strftime_now( '%Y') }}"
    own = ChatTemplate(source, NAMES, SPECIAL)
    assert own.render([{"role": "user", "content": "x"}]) == "26 Jul 2024x2024"
    assert own.has_date and not template("chatml").has_date


@pytest.mark.parametrize(
    ("style", "messages", "is_hidden"),
    [
        ("plain", TWICE, False),
        ("thoughts", [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nOne."}, *TWICE], False),
        ("plain", [{"role": "user", "content": "q"}, {"role": "assistant", "content": "One.", "reasoning_content": "hm"}], True),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", [{"role": "system", "content": "s"}, *TWICE], True),
        ("{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}", [TWICE[0], {"role": "assistant", "content": "<think>hm</think>One."}], True),
        ("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", [{"role": "user", "content": 'a "b"\nc'}], False),
    ],
)  # fmt: skip
def test_what_a_template_does_not_show_is_known(style: str, messages: list[dict[str, Any]], is_hidden: bool) -> None:
    own = template(style) if "{" not in style else ChatTemplate(style, NAMES, SPECIAL)
    assert chat_content.is_hidden(messages, own.render(messages)) is is_hidden


@pytest.mark.parametrize("style", CHAT_TEMPLATE_TOKENS)
def test_marks_that_leave_out_the_end_of_a_turn_are_known(style: str) -> None:
    assert template(style).marks_ends and template(style, marks=True).marks_ends
    source = "{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% endfor %}"
    assert not ChatTemplate(source, NAMES, SPECIAL).marks_ends
