"""Axolotl's data sets: each says where its rows lie, and how a row is a conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.importing.conversion import Conversion
from launcher.importing.model import is_instruct, template_by_name
from launcher.importing.trainer import whole

_SLICE = re.compile(r"(?P<name>[^\[\]+]+)\[:(?P<end>\d+)(?P<percent>%?)\]")
_FORMATS = {"csv": "csv", "parquet": "parquet", "arrow": "arrow", "text": "text"}


@dataclass(frozen=True)
class _Form:
    """How a type of Axolotl is read here."""

    task: str = "sft"
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    wording: str = ""
    """What Axolotl writes around the messages that no template of launcher does."""
    template: str | None = None
    """Our template with the words that the type writes, whatever the tokenizer's own are."""


_ALPACA_WORDING = "Axolotl writes the instruction into Alpaca's words (### Instruction: ...)"
_WORDING = "Axolotl writes words of the type's own around them"
_PAIR = {"chosen": "chosen", "rejected": "rejected"}
_TYPES = {
    "alpaca": _Form(format="alpaca", wording=_ALPACA_WORDING),
    "alpaca_chat": _Form(format="alpaca", columns={"instruction": "instruction", "output": "response"}, wording=_ALPACA_WORDING),
    "gpteacher": _Form(format="alpaca", columns={"instruction": "instruction", "input": "input", "output": "response"}, wording=_ALPACA_WORDING),
    "alpaca_chat.load_qa": _Form(format="alpaca", columns={"instruction": "question", "output": "answer"}, wording=_ALPACA_WORDING),
    "alpaca_w_system.load_open_orca": _Form(
        format="alpaca", columns={"instruction": "question", "output": "response", "system": "system_prompt"}, wording=_ALPACA_WORDING
    ),
    "alpaca_chat.load_concise": _Form(format="alpaca", columns={"instruction": "instruction", "input": "input", "output": "response"}, wording=_ALPACA_WORDING),
    "alpaca_chat.load_camel_ai": _Form(format="alpaca", columns={"instruction": "message_1", "output": "message_2"}, wording=_ALPACA_WORDING),
    "oasst": _Form(format="alpaca", columns={"instruction": "INSTRUCTION", "output": "RESPONSE"}, wording=_WORDING),
    "jeopardy": _Form(format="alpaca", columns={"instruction": "question", "output": "answer"}, wording=_WORDING),
    "summarizetldr": _Form(format="alpaca", columns={"instruction": "article", "output": "summary"}, wording=_WORDING),
    "metharme": _Form(format="alpaca", columns={"instruction": "prompt", "output": "generation"}, wording=_WORDING),
    "context_qa": _Form(format="alpaca", columns={"instruction": "question", "input": "article", "output": "answer"}, wording=_WORDING),
    "context_qa.load_v2": _Form(format="alpaca", columns={"instruction": "question", "input": "context", "output": "answer"}, wording=_WORDING),
    "chat_template": _Form(format="messages"),
    "sharegpt": _Form(format="sharegpt"),
    "completion": _Form(task="causal-lm"),
    "pretrain": _Form(task="causal-lm"),
    "bradley_terry.chat_template": _Form(task="reward"),
    "chat_template.default": _Form(task="preference", format="messages"),
    "chat_template.argilla_chat": _Form(task="preference"),
    "chatml.intel": _Form(task="preference", format="alpaca", columns={"instruction": "question", "system": "system", **_PAIR}),
    "chatml.icr": _Form(task="preference", format="alpaca", columns={"instruction": "input", "system": "system", **_PAIR}),
    "chatml.prompt_pairs": _Form(task="preference", format="alpaca", columns={"instruction": "prompt", "system": "system", **_PAIR}),
    "chatml.argilla": _Form(
        task="preference",
        format="alpaca",
        columns={"instruction": "instruction", "system": "system", "chosen": "chosen_response", "rejected": "rejected_response"},
    ),
    "chatml.argilla_chat": _Form(task="preference"),
    "chatml.ultra": _Form(task="preference"),
}  # fmt: skip


def data_keys(c: Conversion) -> None:
    """Translate data: sources, their form, lengths, and what validation rows there are. Raises RecipeError without data."""
    key = "datasets" if c.has("datasets") else "pretraining_dataset"
    found = _sources(c, key)
    if not found:
        raise c.cannot("datasets", "it names the data", "write datasets, a list of path and type")
    c.put("data.train", found[0] if len(found) == 1 else found)
    if c.has("test_datasets"):
        tests = _sources(c, "test_datasets")
        c.put("data.validation", tests[0] if len(tests) == 1 else tests)
        c.unneeded("val_set_size", "test_datasets gives the rows")
    else:
        _share(c)
    c.put("data.max_length", whole(c.number("sequence_len")), "sequence_len")
    _forms(c, key)
    c.unneeded("shuffle_merged_datasets", "rows are shuffled over all sources")
    if key == "pretraining_dataset":
        c.assume(
            "all rows are read before training, which Axolotl streams here; data.streaming: true needs data.validation too"
        )


def _entries(c: Conversion, key: str) -> list[str]:
    """Open each entry of a list of data sets, and return their names."""
    given = c.value(key)
    entries = given if isinstance(given, list) else [given]
    names = []
    for number, entry in enumerate(entries):
        name = f"{key}[{number}]"
        c.open(
            name, {"path": entry} if isinstance(entry, str) else entry if isinstance(entry, Mapping) else {"?": entry}
        )
        names.append(name)
    return names


def _sources(c: Conversion, key: str) -> list[Any]:
    if not c.has(key):
        return []
    return [
        source
        for name in _entries(c, key)
        if (source := _source(c, name, key="data.validation" if key == "test_datasets" else "data.train"))
    ]


def _source(c: Conversion, name: str, *, key: str) -> Any:
    files = c.value(f"{name}.data_files")
    path = str(c.value(f"{name}.path", ""))
    if files and (path in ("json", "csv", "parquet", "text") or not path):
        listed = files if isinstance(files, list) else [files]
        source: dict[str, Any] = {"source": str(listed[0])}
        c.mark(key, f"{name}.path", f"{name}.data_files")
        if len(listed) > 1:
            c.missed(
                f"{name}.data_files",
                "a source is one file or folder",
                f"add {', '.join(map(str, listed[1:]))} to {key}",
            )
    elif path:
        source = {"source": path}
        c.mark(key, f"{name}.path")
        c.missed(
            f"{name}.data_files", "files inside a hub data set are not chosen", "fetch them, and name their folder"
        )
    else:
        return None
    for theirs, ours in (("name", "name"), ("revision", "revision")):
        if c.has(f"{name}.{theirs}"):
            source[ours] = str(c.value(f"{name}.{theirs}"))
            c.mark(key, f"{name}.{theirs}")
    if (kind := _FORMATS.get(str(c.value(f"{name}.ds_type")))) is not None:
        source["format"] = kind
        c.mark(key, f"{name}.ds_type")
    c.unneeded(f"{name}.ds_type", "the file's ending tells it")
    _split(c, name, source, key)
    return source


def _split(c: Conversion, name: str, source: dict[str, Any], key: str) -> None:
    """Write the split of a source, which earlier files call train_on_split, and the number of its first rows."""
    given = f"{name}.split" if c.has(f"{name}.split") else f"{name}.train_on_split"
    if c.has(f"{name}.split"):
        c.unneeded(f"{name}.train_on_split", "split goes before it")
    split = str(c.value(given, ""))
    if not split:
        return
    part = _SLICE.fullmatch(split)
    source["split"] = part["name"] if part else re.split(r"[\[+]", split)[0]
    if part and not part["percent"]:
        source["limit"] = int(part["end"])
    c.mark(key, given)
    if part and part["percent"]:
        c.missed(
            given,
            f"a recipe takes a number of rows, not {part['end']} percent",
            "write limit: ROWS beside the source; the whole split was written",
        )
    elif source["split"] != split and not part:
        c.missed(
            given,
            "a recipe takes one split, or the first rows of it",
            f"the whole split {source['split']} was written; make a file of the rows that you want",
        )


def _share(c: Conversion) -> None:
    share = c.number("val_set_size")
    if 0 < share < 1:
        c.put("data.validation_share", float(share), "val_set_size")
    elif share >= 1:
        c.missed(
            "val_set_size",
            "it is a number of rows, and validation_share a share of them",
            "write data.validation_share, such as 0.05",
        )
    else:
        c.unneeded("val_set_size", "it is off in the file")
        c.recipe["data.validation_share"] = 0.01
        c.comments["data.validation_share"] = "launcher always keeps some rows of train to validate on"
        c.assume("1 percent of train is kept for validation, which Axolotl would train on: data.validation_share")


# --- what a row is -------------------------------------------------------------------------------------------------------


def _forms(c: Conversion, key: str) -> None:
    names = _entries(c, key)
    forms = [_form(c, name, pretraining=key == "pretraining_dataset") for name in names]
    tasks = {form.task for form in forms}
    said = c.recipe.get("task.type")
    if said is None and len(tasks) > 1:
        raise c.cannot(
            key,
            f"its types are for several tasks ({', '.join(sorted(tasks))}), and a run has one",
            "keep data sets of one kind",
        )
    task = said or tasks.pop()
    if said is None:
        c.put("task.type", task, *(f"{name}.type" for name in names))
    first = forms[0]
    others = [name for name, form in zip(names, forms, strict=True) if not _alike(form, first)]
    if first.format and task != "causal-lm":
        c.put("task.format", first.format, *(f"{name}.type" for name in names))
    if first.columns:
        c.put("data.columns", dict(first.columns))
    if task == "sft":
        _learned(c, names)
    elif task == "causal-lm":
        c.unneeded("train_on_inputs", "every token of a text is learned")
    _words(c, names, first)
    for name in others:
        for key in ("type", "field", "text_column", "field_messages", "field_chosen", "field_rejected"):
            c.missed(
                f"{name}.{key}",
                f"a recipe reads the rows of all data in one way, and that of {names[0]} was written",
                "bring these rows to it, in files of your own, or leave them out",
            )
    for name in names:
        c.unneeded(f"{name}.type", f"task.type says it: {task}")


def _alike(one: _Form, other: _Form) -> bool:
    return (one.format, dict(one.columns), one.template) == (other.format, dict(other.columns), other.template)


def _words(c: Conversion, names: list[str], form: _Form) -> None:
    """Write the template that a type of data stands for, or what stands in for it."""
    if form.template is not None:
        c.put("task.chat_template", form.template, *(f"{name}.type" for name in names))
    elif form.wording and not c.has("chat_template"):
        _wording(c, names, form.wording)
    elif not c.has("chat_template") and (
        told := sorted({str(c.value(f"{name}.conversation") or "") for name in names} - {""})
    ):
        template_by_name(c, f"{names[0]}.conversation", told[0])
        if len(told) == 1:
            c.mark("task.chat_template", *(f"{name}.conversation" for name in names))


def _form(c: Conversion, name: str, *, pretraining: bool) -> _Form:
    kind = c.value(f"{name}.type")
    if pretraining or kind in ("completion", "pretrain"):
        column = str(c.value(f"{name}.text_column", c.value(f"{name}.field", "text")))
        c.mark("data.columns", f"{name}.text_column", f"{name}.field")
        return _Form(task="causal-lm", columns={"text": column})
    if isinstance(kind, Mapping):
        return _own_type(c, name, kind)
    found = _by_name(str(kind))
    if found is None:
        c.missed(
            f"{name}.type",
            f"launcher does not know the type {c.shown(f'{name}.type')}",
            "write task.format and data.columns; `launcher data` shows what comes out",
        )
        return _Form(task="preference" if c.value("rl") else "sft")
    return _messages(c, name, found) if str(kind).startswith(("chat_template", "bradley_terry")) else found


def _by_name(kind: str) -> _Form | None:
    """Return the form of a type; those of preferences begin with the name of the template whose words they write."""
    if kind.startswith("sharegpt"):
        kind = "sharegpt"
    family, _, rest = kind.partition(".")
    found = _TYPES.get(kind) or _TYPES.get(f"chatml.{rest}")
    if found is None or family == "chat_template" or found.task != "preference":
        return found
    if family in ("chatml", "llama3", "gemma"):
        return replace(found, template=family)
    return replace(found, wording=f"Axolotl writes the words of {family}")


def _own_type(c: Conversion, name: str, kind: Mapping[str, Any]) -> _Form:
    """A prompter of the file's own: its columns are taken, its words are not."""
    renamed = {
        "field_instruction": "instruction",
        "field_input": "input",
        "field_output": "output",
        "field_system": "system",
    }
    pair = {"field_prompt": "instruction", "field_chosen": "chosen", "field_rejected": "rejected"}
    columns = {ours: str(kind[theirs]) for theirs, ours in {**renamed, **pair}.items() if kind.get(theirs)}
    c.missed(
        f"{name}.type",
        "its columns were taken; the words around them are a template",
        "write them as a file of Jinja under task.chat_template",
    )
    is_pair = "field_chosen" in kind or bool(c.value("rl"))
    return _Form(task="preference" if is_pair else "sft", format="alpaca", columns=columns)


def _messages(c: Conversion, name: str, form: _Form) -> _Form:
    said = c.value(f"{name}.message_property_mappings")
    mapping = said if isinstance(said, Mapping) else {}
    role = mapping.get("role", c.value(f"{name}.message_field_role", "role"))
    content = mapping.get("content", c.value(f"{name}.message_field_content", "content"))
    tags = (f"{name}.message_property_mappings", f"{name}.message_field_role", f"{name}.message_field_content")
    ours = "conversations" if (role, content) == ("from", "value") else "messages"
    form_name = "sharegpt" if ours == "conversations" else "messages"
    if (role, content) in (("role", "content"), ("from", "value")):
        c.put("task.format", form_name, *tags)
    else:
        for tag in tags:
            c.missed(
                tag,
                f"messages here have role and content, or from and value, not {role} and {content}",
                "rename them in the data",
            )
    columns = {}
    if c.has(f"{name}.field_messages"):
        columns[ours] = str(c.value(f"{name}.field_messages"))
        c.mark("data.columns", f"{name}.field_messages")
    for theirs, own in (("field_chosen", "chosen"), ("field_rejected", "rejected"), ("field_tools", "tools")):
        if c.has(f"{name}.{theirs}"):
            columns[own] = str(c.value(f"{name}.{theirs}"))
            c.mark("data.columns", f"{name}.{theirs}")
    _roles(c, name)
    return _Form(task=form.task, format=form_name if form.format else None, columns=columns)


def _roles(c: Conversion, name: str) -> None:
    usual = {
        "user": {"user", "human"},
        "assistant": {"assistant", "gpt"},
        "system": {"system"},
        "tool": {"tool", "function_response"},
    }
    roles = c.value(f"{name}.roles") or {}
    if isinstance(roles, Mapping) and all(
        {*words} <= usual.get(role, set()) for role, words in roles.items() if isinstance(words, list)
    ):
        c.unneeded(f"{name}.roles", "these words for the roles are known")
    else:
        c.missed(
            f"{name}.roles",
            "launcher knows the roles system, user (human), assistant (gpt) and tool",
            "rename the others in the data",
        )


def _learned(c: Conversion, names: list[str]) -> None:
    everything = c.flag("train_on_inputs")
    c.put("task.assistant_only_loss", not everything, "train_on_inputs")
    empty = [
        f"{name}.{key}" for name in names for key in ("roles_to_train", "train_on_eos") if key in c.below.get(name, {})
    ]
    if len(empty) == 2 * len(names) and not any(map(c.has, empty)):
        c.recipe["task.learned_answers"] = "last"
        c.assume(
            "the last answer alone is learned, which is what Axolotl's guide says of empty roles_to_train and train_on_eos"
        )
    for name in names:
        roles = c.names(f"{name}.roles_to_train")
        if roles in (["assistant"], ["gpt"], ["gpt", "assistant"], ["assistant", "gpt"]):
            c.mark("task.assistant_only_loss", f"{name}.roles_to_train")
        elif roles:
            c.missed(
                f"{name}.roles_to_train",
                "launcher learns what the assistant says, or every token",
                "write task.assistant_only_loss: false for all of them",
            )
        if c.value(f"{name}.train_on_eos", "turn") == "turn":
            c.mark("task.assistant_only_loss", f"{name}.train_on_eos")
        else:
            c.missed(
                f"{name}.train_on_eos",
                "the end of each learned turn is learned, no other",
                "nothing has to be done in most runs",
            )


def _wording(c: Conversion, names: list[str], wording: str) -> None:
    instruct = is_instruct(str(c.recipe["model.name_or_path"]))
    c.put("task.chat_template", None if instruct else "plain")
    stand_in = "the tokenizer's own template" if instruct else "the template plain"
    for name in names:
        c.missed(
            f"{name}.type",
            f"its columns were taken; {wording}, and {stand_in} stands in",
            "write those words as a file of Jinja, and name it under task.chat_template",
        )
