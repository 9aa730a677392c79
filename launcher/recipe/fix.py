"""The edits that ``check --fix`` makes: only the words in question change, every other character of the file stays."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import Fix, Problem, RecipeError
from launcher.recipe.tree import KeyPath, dotted, parse_tree, read_text


def apply_fixes(path: str | Path, problems: Sequence[Problem]) -> str | None:
    """Return a file's text with the edits that its problems carry; None where none can be made.

    Problems of other files (base files) and of the command line are passed over.
    """
    original = text = read_text(Path(path))
    for problem in problems:
        if problem.fix is not None and problem.place.startswith(f"{path}:"):
            text = apply_fix(text, problem.fix) or text
    return None if text == original else text


def write_fixed(path: str | Path, text: str) -> None:
    """Put ``text`` in the place of a recipe file in one step, so that no reader sees half of it."""
    path = Path(path).resolve()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, path.stat().st_mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class _Entry:
    """A key with its value, as nodes of the text."""

    key: Any
    value: Any
    parent: Any


def apply_fix(text: str, fix: Fix) -> str | None:
    """Return the text with one edit made, or None where it cannot be made safely."""
    entries = _entries(text)
    entry = entries.get(fix.key) or _shorthand(entries, fix.key)
    if entry is None or _is_shared(text, entry):
        return None
    changed = _edited(text, fix, entry, entries)
    try:
        parse_tree(changed or "", "recipe")
    except RecipeError:
        return None
    return changed


def _entries(text: str) -> dict[str, _Entry]:
    from ruamel.yaml import YAML

    root = YAML(typ="safe", pure=True).compose(text)
    return {dotted(path): entry for path, entry in _below(root, ())}


def _below(node: Any, path: KeyPath) -> Iterator[tuple[KeyPath, _Entry]]:
    if isinstance(node.value, str):
        return
    is_mapping = bool(node.value) and isinstance(node.value[0], tuple)
    for index, item in enumerate(node.value):
        key, value = item if is_mapping else (None, item)
        here = (*path, key.value if key is not None else index)
        yield here, _Entry(key, value, node)
        yield from _below(value, here)


def _shorthand(entries: dict[str, _Entry], key: str) -> _Entry | None:
    above, _, name = key.rpartition(".")
    entry = entries.get(above)
    return entry if name == "type" and entry is not None and isinstance(entry.value.value, str) else None


def _is_shared(text: str, entry: _Entry) -> bool:
    """Whether the value is an alias or has an anchor: an edit here would change another place."""
    if entry.key is None:
        return False
    after = text[entry.key.end_mark.index :].lstrip().removeprefix(":").lstrip()
    return after.startswith(("*", "&"))


def _edited(text: str, fix: Fix, entry: _Entry, entries: dict[str, _Entry]) -> str | None:
    if fix.new_key is None:
        return _removed(text, entry, entries)
    above, _, name = fix.new_key.rpartition(".")
    if fix.new_key == fix.key:
        return _with_value(text, entry, fix)
    if fix.new_key in entries or entry.key is None:
        return None
    if above == fix.key.rpartition(".")[0]:
        text = _with_value(text, entry, fix)
        return text[: entry.key.start_mark.index] + name + text[entry.key.end_mark.index :]
    value = _source(text, entry.value) if fix.keep_value else _flow(fix.new_value)
    removed = _removed(text, entry, entries)
    return None if value is None or removed is None else _inserted(removed, fix.new_key, value)


def _with_value(text: str, entry: _Entry, fix: Fix) -> str:
    if fix.keep_value:
        return text
    start, end = entry.value.start_mark.index, _end(entry.value)
    space = "" if text[start - 1 : start] == " " else " "
    return text[:start] + space + _flow(fix.new_value) + text[end:]


def _flow(value: object) -> str:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = True
    yaml.width = 10**6
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("...\n").strip()


def _source(text: str, node: Any) -> str | None:
    """Return a value as it is written; None where it spans several lines."""
    written = text[node.start_mark.index : _end(node)].strip()
    return None if "\n" in written else written or "null"


def _end(node: Any) -> int:
    """Return where a value's own text ends: a block's end mark lies beyond the comments after it."""
    if isinstance(node.value, str) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _removed(text: str, entry: _Entry, entries: dict[str, _Entry]) -> str | None:
    if entry.key is None:
        return None
    if len(entry.parent.value) == 1:
        owner = next((above for above in entries.values() if above.value is entry.parent), None)
        # A section without keys would be null, which is another fault.
        return _removed(text, owner, entries) if owner is not None else None
    start, end = entry.key.start_mark.index, _end(entry.value)
    if not entry.parent.flow_style:
        newline = text.find("\n", end)
        return text[: text.rfind("\n", 0, start) + 1] + ("" if newline < 0 else text[newline + 1 :])
    before, after = text[:start], text[end:].lstrip()
    if after.startswith(","):
        return before + after[1:].lstrip()
    return before.rstrip().removesuffix(",") + text[end:]


def _inserted(text: str, key: str, value: str) -> str | None:
    """Return the text with a new key: at the end of its section, or of the file where the section is not there."""
    newline = "\r\n" if "\r\n" in text else "\n"
    above, _, name = key.rpartition(".")
    missing = [f"{name}: {value}"]
    entries = _entries(text)
    while above and above not in entries:
        above, _, section = above.rpartition(".")
        missing = [f"{section}:", *("  " + line for line in missing)]
    if not above:
        return text + ("" if text.endswith("\n") else newline) + newline.join(missing) + newline
    section = entries[above].value
    if not section.value or isinstance(section.value, str):
        return None
    if section.flow_style:
        closing = section.end_mark.index - 1
        return None if len(missing) > 1 else text[:closing].rstrip() + f", {missing[0]}" + text[closing:]
    indent = " " * section.value[0][0].start_mark.column
    at = text.find("\n", _end(section))
    head, tail = (text + newline, "") if at < 0 else (text[: at + 1], text[at + 1 :])
    return head + "".join(indent + line + newline for line in missing) + tail
