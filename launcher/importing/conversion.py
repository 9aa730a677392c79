"""What becomes of each key of the file, and the recipe that comes out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.errors import RecipeError
from launcher.importing.given import as_flag, as_names, as_number, refers_outside, refuse

# Keys with templates, whose signs are not a shell's.
_TEMPLATES = ("chat_template", "chat_template_jinja")
Kind = Literal["translated", "not needed", "not translated"]

# Keys whose values nobody wants in a second file.
_SECRET = re.compile(r"(?i)(api_key|hub_token|hf_token|secret|password|auth_token|webhook)")


@dataclass(frozen=True)
class Fate:
    """What became of one key."""

    key: str
    """Dotted, as the file has it."""
    shown: str
    """Its value, shortened to one line."""
    kind: Kind
    text: str
    """The recipe's keys, or the reason and what to do."""

    def __str__(self) -> str:
        return f"{self.key}: {self.shown} -> {self.text}" if self.kind == "translated" else f"{self.key}: {self.text}"


@dataclass(frozen=True)
class Dialect:
    """A tool: what it calls things, and what it does where its file says nothing."""

    name: str
    shown: str
    defaults: Mapping[str, Any]
    """Values that the tool takes by itself, under the names of transformers' TrainingArguments where that has them."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """TrainingArguments' name -> the tool's."""
    known: frozenset[str] = frozenset()
    """Keys of the tool that launcher reads."""


@dataclass
class Conversion:
    """A file on its way to a recipe: every key that is read leaves a note of what became of it."""

    dialect: Dialect
    path: Path
    values: dict[str, Any]
    gpus: int | None = None
    """GPUs that the tool ran on; None: nobody said."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Dotted key of the recipe -> value."""
    comments: dict[str, str] = field(default_factory=dict)
    """Dotted key of the recipe -> what is said beside it."""
    fates: dict[str, Fate] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)
    origins: dict[str, list[str]] = field(default_factory=dict)
    """Dotted key of the recipe -> keys of the file that it comes from."""
    settled: dict[str, Any] = field(default_factory=dict)
    """Values that follow from other keys of the file, before the tool's defaults: by TrainingArguments' names."""
    below: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Dotted name of a mapping inside the file whose keys are judged one by one -> that mapping."""

    template: str | None = None
    """A chat template that stands in the file itself, to be written beside the recipe."""
    outside: dict[str, Any] = field(default_factory=dict)
    """Keys whose values name something outside the file, which is not read."""

    def __post_init__(self) -> None:
        """Set aside what names something outside the file."""
        self.outside = {
            key: value for key, value in self.values.items() if key not in _TEMPLATES and refers_outside(value)
        }
        self.values = {key: None if key in self.outside else value for key, value in self.values.items()}

    # --- reading -----------------------------------------------------------------------------------------------------

    def key(self, name: str) -> str:
        """Return what the tool calls a field of TrainingArguments."""
        return self.dialect.aliases.get(name, name)

    def has(self, name: str) -> bool:
        """Whether the file gives a key a value."""
        return self.raw(name) not in (None, "")

    def value(self, name: str, default: Any = None) -> Any:
        """Return a key's value, or the tool's default for it, or ``default``."""
        return self.raw(name) if self.has(name) else self._default(name, default)

    def _default(self, name: str, default: Any) -> Any:
        return self.settled.get(name, self.dialect.defaults.get(name, default))

    def number(self, name: str, default: float | None = None) -> Any:
        """Return a key's number; one that is no number is noted, and the default taken."""
        given = self.raw(name)
        if self.has(name) and as_number(given) is None:
            self.missed(
                name, f"it is {self.shown(self.key(name))}, which is no number", "write the number into the recipe"
            )
        found = as_number(given)
        return self._default(name, default) if found is None else found

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return whether a key is on; a word that is neither true nor false is noted, and the default taken."""
        given = self.raw(name)
        if self.has(name) and as_flag(given) is None:
            self.missed(name, f"it is {self.shown(self.key(name))}, neither true nor false", "write it into the recipe")
        found = as_flag(given) if self.has(name) else None
        return bool(self._default(name, default)) if found is None else found

    def names(self, name: str) -> list[str]:
        """Return a key's list of names; [] where it has none."""
        return as_names(self.raw(name)) if self.has(name) else []

    def raw(self, name: str) -> Any:
        """Return what the file has for a key, None where it has nothing."""
        key = self.key(name)
        if key in self.values:
            return self.values[key]
        above, _, last = key.rpartition(".")
        return self.below.get(above, {}).get(last)

    def open(self, name: str, mapping: Mapping[str, Any]) -> None:
        """Let the keys of a mapping inside the file be read and judged one by one, as ``name.key``."""
        if mapping:
            self.below[name] = {str(key): value for key, value in mapping.items()}

    @property
    def keys(self) -> list[str]:
        """Every key that has to be accounted for: those of opened mappings, not the mappings themselves."""
        opened = {name.partition("[")[0] for name in self.below} | set(self.below)
        top = [key for key in self.values if key not in opened]
        return [
            *top,
            *(
                f"{name}.{key}"
                for name, inside in self.below.items()
                for key in inside
                if f"{name}.{key}" not in self.below
            ),
        ]

    # --- writing -----------------------------------------------------------------------------------------------------

    def put(self, target: str, value: Any, *names: str, note: str = "") -> None:
        """Set a key of the recipe from keys of the file; where the file has none of them, it is the tool's default."""
        self.recipe[target] = value
        self.mark(target, *names, note=note)
        if names and not any(map(self.has, names)):
            self.comments[target] = f"{self.dialect.shown}'s default"

    def mark(self, target: str, *names: str, note: str = "") -> None:
        """Note that those of the keys that the file has went into ``target``, which is written apart."""
        given = [self.key(name) for name in names if self.has(name)]
        self.origins.setdefault(target, []).extend(given)
        for key in given:
            old = self.fates.get(key)
            if old and old.kind == "not translated":
                continue
            text = f"{target} ({note})" if note else target
            if old and old.kind == "translated":
                text = old.text if target in re.split(r"[ ,]+", old.text) else f"{old.text}, {text}"
            self._judge(key, "translated", text)

    def unneeded(self, name: str, reason: str) -> None:
        """Note that a key has no counterpart and needs none; a verdict that stands already is kept."""
        if self._stands(name) and self.key(name) not in self.fates:
            self._judge(self.key(name), "not needed", reason)

    def missed(self, name: str, reason: str, remedy: str) -> None:
        """Note that a key is not translated, why, and what to do."""
        if self._stands(name):
            self._judge(self.key(name), "not translated", f"{reason}; {remedy}")

    def cannot(self, name: str, reason: str, remedy: str) -> RecipeError:
        """Return the error of a file that means something that no recipe can mean."""
        return refuse(self.path, f"{self.key(name)} is {self.shown(self.key(name))}; {reason}", remedy, self.key(name))

    def assume(self, text: str) -> None:
        """Note what the recipe takes for granted, as the file does not say it."""
        if text not in self.assumed:
            self.assumed.append(text)

    def drop(self, target: str, reason: str, remedy: str) -> None:
        """Take a key out of the recipe again: it does not fit there."""
        del self.recipe[target]
        self.comments.pop(target, None)
        for key in self.origins.pop(target, []):
            self._judge(key, "not translated", f"{reason}; {remedy}" if remedy else reason)

    def _stands(self, name: str) -> bool:
        key = self.key(name)
        above, _, last = key.rpartition(".")
        return key in self.values or last in self.below.get(above, {})

    def _judge(self, key: str, kind: Kind, text: str) -> None:
        self.fates[key] = Fate(key, self.shown(key), kind, text)

    def shown(self, key: str) -> str:
        """Return the value of the file's key as a listing shows it: one line, cut; secrets are left out."""
        if _SECRET.search(key):
            return "(hidden)"
        value = self.outside.get(key, self.raw(key))
        if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
            text = f"[{', '.join(map(str, value))}]"
        elif isinstance(value, dict | list):
            text = str(value)
        elif value is None or isinstance(value, bool):
            text = {None: "null", True: "true", False: "false"}[value]
        else:
            text = str(value)
        text = "".join(one if one.isprintable() else " " for one in text)
        return text if len(text) <= 60 else text[:57] + "..."
