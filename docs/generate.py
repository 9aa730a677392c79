"""Write the generated parts of docs/ and its pictures anew: ``python docs/generate.py``; with ``--check`` only say what is out of
date.

A page marks a generated part by ``<!-- generated: NAME -->`` and ``<!-- end -->``; the parts are the functions in PARTS.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_MARK = re.compile(r"(<!-- generated: (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> Iterator[Path]:
    """Yield every page that may have generated parts."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def renewed(text: str) -> str:
    """Return a page with its generated parts written anew."""
    return _MARK.sub(lambda match: match[1] + "\n" + part(match["name"]).strip("\n") + "\n\n" + match[3], text)


def part(name: str) -> str:
    """Return the generated part ``name``, such as ``keys data``."""
    kind, *arguments = name.split()
    return PARTS[kind](*arguments)


# --- keys of a recipe --------------------------------------------------------------------------------------------------


def keys(section: str) -> str:
    """Return the table of a section's keys; ``section`` is the name of its class in recipe/."""
    schema = _schema()
    definition = schema if section == "Recipe" else schema["$defs"][section]
    own = _own_keys(section)
    return _table(
        ["key", "values", "default", "what"],
        [[f"`{key}`", _values(value), _default(value, key, definition), _words(value["description"])]
         for key, value in definition["properties"].items() if key in own and key != "type"],
    )  # fmt: skip


def profile() -> str:
    """Return the table of a cluster profile's keys, those of its container after them."""
    from launcher.recipe.cluster_profile import ClusterProfile

    whole = ClusterProfile.model_json_schema()
    container = whole["$defs"]["Container"]
    named = [("", whole), ("container.", container)]
    return _table(
        ["key", "values", "default", "what"],
        [[f"`{above}{key}`", _values(value), _default(value, key, definition), _words(value["description"])]
         for above, definition in named for key, value in definition["properties"].items()],
    )  # fmt: skip


def passthrough() -> str:
    """Return the table of the fields of TrainingArguments that ``training`` takes beside its own."""
    from launcher.recipe.training_fields import passthrough_fields

    rows = []
    for name, field in sorted(passthrough_fields().items()):
        values = ", ".join(f"`{c}`" for c in field.choices[:6]) + (", ..." if len(field.choices) > 6 else "")
        rows.append(
            [f"`{name}`", values or " or ".join(_KINDS.get(k, k) for k in field.kinds), _first_sentence(field.help)]
        )
    return _table(["key", "values", "what (transformers' own words)"], rows)


_KINDS = {
    "bool": "true or false",
    "int": "whole number",
    "float": "number",
    "str": "text",
    "dict": "mapping",
    "None": "null",
}


def renamed() -> str:
    """Return the table of names of earlier years and what to write today."""
    from launcher.recipe.training_tables import ADVICE, RENAMED

    rows = [
        [f"`{old}`", f"`{new}`" if new else ADVICE.get(old, "remove it")] for old, (new, _) in sorted(RENAMED.items())
    ]
    return _table(["earlier", "now"], rows)


def owned() -> str:
    """Return the table of TrainingArguments' fields that ``training`` refuses."""
    from launcher.recipe.training_tables import OWNED, WITHOUT_EFFECT

    found: dict[tuple[str, str], list[str]] = {}
    for name, why in {**OWNED, **WITHOUT_EFFECT}.items():
        found.setdefault((why.reason, why.remedy), []).append(f"`{name}`")
    return _table(["fields", "why", "instead"], [[", ".join(names), *why] for why, names in found.items()])


def _schema() -> dict[str, Any]:
    from launcher.recipe.json_schema import json_schema

    return json_schema()


def _own_keys(section: str) -> set[str]:
    from launcher.recipe import data_section, schema, strategy_options, task_options

    modules = (schema, data_section, task_options, strategy_options)
    found = next(getattr(module, section) for module in modules if hasattr(module, section))
    return set(found.model_fields)


def _values(value: dict[str, Any]) -> str:
    for inner in (value.get("anyOf"), value.get("oneOf")):
        if inner:
            return " or ".join(dict.fromkeys(_values(one) for one in inner))
    if "$ref" in value:
        return {"SourceSpec": "a source", "WandbSection": "mapping"}.get(value["$ref"].rpartition("/")[2], "mapping")
    if "const" in value:
        return f"`{json.dumps(value['const']).strip(chr(34))}`"
    if "enum" in value:
        return ", ".join(f"`{_plain(one)}`" for one in value["enum"])
    kind = value.get("type", "any")
    if kind == "array":
        return f"list of {_values(value['items'])}"
    words = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "mapping"}
    return words.get(kind, kind) + _bounds(value)


def _bounds(value: dict[str, Any]) -> str:
    names = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below"))
    found = [f"{word} {value[name]:g}" for name, word in names if name in value]
    return f" {' '.join(found)}" if found else ""


def _default(value: dict[str, Any], key: str, definition: dict[str, Any]) -> str:
    if "default" in value:
        return f"`{_plain(value['default'])}`"
    return "required" if key in definition.get("required", ()) or key == "name_or_path" else ""


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _words(text: str) -> str:
    return re.sub(r"``(.*?)``", r"`\1`", " ".join(text.split()))


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", text)[0]


# --- the command line --------------------------------------------------------------------------------------------------


def verbs() -> str:
    """Return every verb with its arguments and options."""
    import typer

    from launcher.cli import app

    return "\n\n".join(_verb(name, command) for name, command in typer.main.get_command(app).commands.items())  # type: ignore[attr-defined]


def _verb(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    shown = [
        f"{p.name.upper()}{'...' if p.nargs == -1 else ''}"
        if p.required
        else f"[{p.name.upper()}{'...' if p.nargs == -1 else ''}]"
        for p in arguments
    ]
    rows = [[f"`{p.name.upper()}`", p.help or ""] for p in arguments] + [
        [f"`{', '.join(p.opts)}`", p.help or ""] for p in options
    ]
    usage = " ".join(["launcher", name, *(["[OPTIONS]"] if options else []), *shown])
    return f"### {name}\n\n{command.help}\n\n```\n{usage}\n```" + (f"\n\n{_table(['', ''], rows)}" if rows else "")


def exit_codes() -> str:
    """Return the table of exit codes."""
    from launcher import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.LauncherError)]
    found = sorted(
        {
            (c.exit_code, c.__name__, _words((c.__doc__ or "").split(".")[0].split(";")[0]))
            for c in classes
            if c.__name__ != "LauncherError"
        }
    )
    rows = [["0", "", "it went well"], ["1", "", "any other failure: a verb's own, or a rank's traceback"]]
    return _table(["code", "error", "when"], rows + [[str(code), f"`{name}`", text] for code, name, text in found])


# --- the house ---------------------------------------------------------------------------------------------------------


def tree() -> str:
    """Return the files of launcher/ with the first sentence of each module's docstring."""
    package = ROOT / "launcher"
    lines = ["```", "launcher/"]
    folders = sorted(path for path in package.iterdir() if path.is_dir() and (path / "__init__.py").is_file())
    for path in sorted(package.glob("*.py")):
        lines += _file(path, indent=2) if path.name != "__init__.py" else []
    for folder in folders:
        lines.append(f"  {folder.name + '/':<34}{_about(folder / '__init__.py')}")
        for path in sorted(folder.glob("*.py")):
            lines += _file(path, indent=4) if path.name != "__init__.py" else []
    return "\n".join([*lines, "```"])


def _file(path: Path, *, indent: int) -> list[str]:
    return [f"{' ' * indent}{path.name:<{36 - indent}}{_about(path)}"]


def _about(path: Path) -> str:
    text = " ".join(
        (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split()
    ).replace("``", "")
    return re.split(r"(?<=[.])\s", text)[0].rstrip(".")


# --- shared ------------------------------------------------------------------------------------------------------------


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in cells
    )


PARTS: dict[str, Callable[..., str]] = {
    "keys": keys,
    "profile": profile,
    "passthrough": passthrough,
    "renamed": renamed,
    "owned": owned,
    "verbs": verbs,
    "exit-codes": exit_codes,
    "tree": tree,
}


# --- pictures ----------------------------------------------------------------------------------------------------------


def pictures() -> Iterator[tuple[Path, str]]:
    """Yield every picture of the guide with its text; none where another version of matplotlib would draw other bytes."""
    if str(ROOT / "docs") not in sys.path:
        sys.path.append(str(ROOT / "docs"))
    import drawing

    if drawing.is_comparable():
        for name, text in drawing.pictures():
            yield ROOT / "docs" / "pictures" / f"{name}.svg", text


# --- all ---------------------------------------------------------------------------------------------------------------


def outputs() -> Iterator[tuple[Path, str]]:
    """Yield every generated file with the text that it should have."""
    for path in pages():
        yield path, renewed(path.read_text(encoding="utf-8"))
    yield ROOT / "recipes" / "recipe.schema.json", json.dumps(_schema(), indent=2, ensure_ascii=False) + "\n"
    yield from pictures()


def stale() -> list[Path]:
    """Return the files that are out of date."""
    return [path for path, text in outputs() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def main() -> int:
    """Write what is out of date, or with ``--check`` only name it."""
    check = "--check" in sys.argv[1:]
    found = stale()
    for path in found:
        print(f"{'out of date' if check else 'wrote'}: {path.relative_to(ROOT)}")
    if not check:
        for path, text in outputs():
            if path in found:
                path.write_text(text, encoding="utf-8")
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
