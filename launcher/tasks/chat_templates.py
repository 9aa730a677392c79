"""Which chat template a run has: the tokenizer's own, one of ours by name, or a file; it is saved with the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.data.chat_template import ChatTemplate
from launcher.errors import ModelError
from launcher.recipe.chat_options import CHAT_TEMPLATE_TOKENS
from launcher.recipe.model_checks import NO_CHAT_TEMPLATE, NO_CHAT_TEMPLATE_REMEDY
from launcher.registry import suggest

_FOLDER = Path(__file__).resolve().parent.parent / "data" / "chat_templates"


def with_chat_template(tokenizer: Any, wanted: str | None, *, base_folder: Path) -> Any:
    """Return the tokenizer with the template that is wanted, and with its special tokens; None: its own.

    Raises:
        ModelError: the tokenizer has none, or no such template is there.
    """
    if wanted is None:
        own = tokenizer.chat_template
        if own is None:
            raise ModelError(f"{NO_CHAT_TEMPLATE}; {NO_CHAT_TEMPLATE_REMEDY}")
        if isinstance(own, dict):
            # One of several is the usual one, and the only one that is saved for serving as it was trained.
            if "default" not in own:
                raise ModelError(
                    f"the tokenizer has the chat templates {', '.join(own)} and none called default; write task.chat_template with a file"
                )
            tokenizer.chat_template = own["default"]
        return tokenizer
    tokenizer.chat_template = template_source(wanted, base_folder=base_folder)
    missing = [token for token in CHAT_TEMPLATE_TOKENS.get(wanted, ()) if token not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer


def template_source(wanted: str, *, base_folder: Path) -> str:
    """Return the Jinja of one of our templates, or of a file. Raises ModelError where there is neither."""
    if wanted in CHAT_TEMPLATE_TOKENS:
        return (_FOLDER / f"{wanted}.jinja").read_text(encoding="utf-8")
    path = base_folder / Path(wanted).expanduser()
    if not path.is_file():
        near = suggest(wanted, CHAT_TEMPLATE_TOKENS)
        hint = f"; did you mean {near}?" if near else ""
        raise ModelError(
            f"task.chat_template is {wanted}, which is neither a file nor one of {', '.join(CHAT_TEMPLATE_TOKENS)}{hint}"
        )
    source = path.read_text(encoding="utf-8")
    if not source.strip():
        raise ModelError(f"task.chat_template is {wanted}, and that file is empty")
    return source


def template_of(tokenizer: Any) -> ChatTemplate:
    """Return the tokenizer's template as ``with_chat_template`` has set it."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    special = tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))
    return ChatTemplate(tokenizer.chat_template, dict(tokenizer.special_tokens_map), special)
