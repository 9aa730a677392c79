"""Whether a chat template is Jinja that can be read at all, found without a tokenizer."""

from __future__ import annotations

import re
from pathlib import Path

_MARKS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def file_fault(path: Path) -> str | None:
    """Return why a file is no chat template; None: nothing is wrong with it."""
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return f"it cannot be read as text: {error}"
    return "it is empty" if not source.strip() else source_fault(source)


def source_fault(source: str) -> str | None:
    """Return why a text is no Jinja, with the line; None: it can be compiled, as transformers does it."""
    from jinja2.exceptions import TemplateSyntaxError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    try:
        # Marks are a word of transformers' own; without them the rest reads the same, line by line.
        environment.from_string(_MARKS.sub("", source))
    except TemplateSyntaxError as error:
        return f"it is no Jinja that can be read (line {error.lineno}: {error.message})"
    return None
