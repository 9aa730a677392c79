"""What a model's own files say against a recipe: its architecture, its code, its tokens and its chat template."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launcher.recipe.chat_options import CHAT_TEMPLATE_TOKENS
from launcher.recipe.jinja_checks import file_fault, source_fault
from launcher.recipe.model_files import (
    CHAT_TEMPLATES,
    CONFIG,
    FAST_TOKENIZER,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    VOCABULARIES,
    BadModelFile,
    ModelFiles,
    is_local,
    known_architectures,
    local_files,
)
from launcher.recipe.schema import Recipe
from launcher.recipe.strategy_options import ADAPTER_STRATEGIES
from launcher.recipe.task_options import CONVERSATION_TASKS, IMAGE_TASKS
from launcher.registry import suggest

NO_CHAT_TEMPLATE = "the tokenizer has no chat template, so how messages become text is not said"
NO_CHAT_TEMPLATE_REMEDY = (
    "write task.chat_template: chatml (its tokens are added), plain (no token is added), or a file of Jinja"
)
CODE_REMEDY = "read the model's code, and set model.trust_remote_code: true if you trust it"

# Tasks whose answers come from the output layer that the model was pretrained with.
_OUTPUT_IS_HEAD = ("causal-lm", "sft", "preference", "masked-lm", "translation", "summarization")

# Classes without special tokens of their own: what their files do not name, they do not have.
_WITHOUT_TOKENS = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")


@dataclass(frozen=True)
class ModelFinding:
    """One thing about a recipe's model."""

    key: str
    """The recipe's key that it is about."""
    is_fault: bool
    """Whether a run would end on it."""
    found: str
    remedy: str = ""


def models_of(recipe: Recipe) -> list[tuple[str, str, str | None]]:
    """Return (key, name, revision) of the model and, where it is another's, of the tokenizer."""
    section = recipe.model
    found = []
    if section.name_or_path is not None:
        found.append(("model.name_or_path", section.name_or_path, section.revision))
    if section.tokenizer_name_or_path is not None and recipe.task.type not in IMAGE_TASKS:
        found.append(("model.tokenizer_name_or_path", section.tokenizer_name_or_path, None))
    return found


def check_models(recipe: Recipe) -> Iterator[ModelFinding]:
    """Yield what is known of the recipe's models from what lies on this machine."""
    for key, name, revision in models_of(recipe):
        files = local_files(name, revision)
        # A folder without a configuration is told of with other folders that are not as they should be.
        if files is not None and not (key == "model.name_or_path" and files.has(CONFIG) is False):
            yield from judge_files(recipe, key, files)


def model_notes(recipe: Recipe) -> list[str]:
    """Return what a reader should know of a recipe's models: which could not be looked at, and which tokens stand for which."""
    unseen = [
        f"model {name} is not on this machine, so it was not looked at; `launcher doctor RECIPE` asks the hub"
        for _, name, revision in models_of(recipe)
        if local_files(name, revision) is None and not is_local(name)
    ]
    known = (finding for finding in check_models(recipe) if not finding.is_fault)
    return [*unseen, *("; ".join(filter(None, (finding.found, finding.remedy))) for finding in known)]


def judge_files(recipe: Recipe, key: str, files: ModelFiles) -> Iterator[ModelFinding]:
    """Yield what a model's files say against the recipe, and what a reader should know of them; ``key``: which model they are of."""
    has_tokenizer = key == "model.tokenizer_name_or_path" or recipe.model.tokenizer_name_or_path is None
    try:
        if key == "model.name_or_path":
            if files.has(CONFIG) is False:
                message = f"{key} is {files.name}, which has no {CONFIG}"
                yield ModelFinding(
                    key,
                    True,
                    message,
                    "name a model that save_pretrained wrote; weights in other forms, and adapters, are none",
                )
                return
            yield from _architecture(recipe, key, files)
            yield from _tied_output(recipe, files)
        if has_tokenizer and recipe.task.type not in IMAGE_TASKS:
            yield from _tokenizer(recipe, key, files)
    except BadModelFile as error:
        yield ModelFinding(key, True, f"{key} is {files.name}; {error}", "fetch the model again")


def _architecture(recipe: Recipe, key: str, files: ModelFiles) -> Iterator[ModelFinding]:
    config = files.read(CONFIG)
    kind, known = config.get("model_type"), known_architectures()
    # Models without a type are told by their name, as transformers does it.
    if not config or not known or kind in known or (kind is None and any(name in files.name for name in known)):
        return
    if "AutoConfig" in (config.get("auto_map") or {}):
        if not recipe.model.trust_remote_code:
            message = f"{key} is {files.name}, which runs code of its own (auto_map in its {CONFIG})"
            yield ModelFinding("model.trust_remote_code", True, message, CODE_REMEDY)
        return
    near = suggest(str(kind), sorted(known)) if kind else None
    hint = f"; did you mean {near}?" if near else ""
    message = (
        f"{key} is {files.name}, whose model_type is {kind!r}, which the installed transformers does not know{hint}"
    )
    yield ModelFinding(key, True, message, "choose another model, or a version of transformers that knows it")


def _tied_output(recipe: Recipe, files: ModelFiles) -> Iterator[ModelFinding]:
    """Yield what cannot train where the output layer's weight is the embeddings' too; models that leave that unsaid are looked at later."""
    if recipe.task.type not in _OUTPUT_IS_HEAD:
        return
    config = files.read(CONFIG) | dict(recipe.model.config or {})
    if config.get("tie_word_embeddings") is not True:
        return
    strategy, said = recipe.strategy.type, f"{files.name}'s output layer is its table of embeddings"
    said = f"{said} (tie_word_embeddings)"
    if strategy == "head":
        message = f"strategy.type is head, but {said}, and training it would change the features"
        yield ModelFinding("strategy.type", True, message, "write strategy: lora, layerwise or full")
    template = getattr(recipe.task, "chat_template", None)
    rows = config.get("vocab_size")
    wanted = CHAT_TEMPLATE_TOKENS.get(template or "", ())
    has_own_tokenizer = recipe.model.tokenizer_name_or_path is None
    if strategy not in ADAPTER_STRATEGIES or not (wanted and has_own_tokenizer and isinstance(rows, int)):
        return
    known = _known_tokens(files)
    added = [token for token in wanted if token not in known]
    if known and len(known) + len(added) > rows:
        message = (
            f"task.chat_template is {template}, which adds {', '.join(added)}, but {said}, which cannot train beside the adapters of "
            f"strategy.type {strategy}"
        )
        yield ModelFinding(
            "task.chat_template", True, message, "write task.chat_template: plain, which adds none, or strategy: full"
        )


def _known_tokens(files: ModelFiles) -> set[str]:
    """Return the tokens of a model's own tokenizer.json; none where it does not list them. Raises BadModelFile."""
    told = files.read(FAST_TOKENIZER)
    try:
        vocabulary = (told.get("model") or {}).get("vocab") or {}
        # Unigram models list pairs of a token and its score.
        texts = vocabulary if isinstance(vocabulary, dict) else [entry[0] for entry in vocabulary]
        return {*texts, *(token["content"] for token in told.get("added_tokens") or ())} if texts else set()
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise BadModelFile(f"its {FAST_TOKENIZER} does not list tokens as tokenizers writes them: {error!r}") from error


def _tokenizer(recipe: Recipe, key: str, files: ModelFiles) -> Iterator[ModelFinding]:
    if files.has(FAST_TOKENIZER, *VOCABULARIES) is False:
        message = f"{key} is {files.name}, which has no files of a tokenizer ({FAST_TOKENIZER}, or a vocabulary)"
        yield ModelFinding(key, True, message, "name one that fits it: model.tokenizer_name_or_path")
        return
    if files.has(TOKENIZER_CONFIG) is None:
        return
    told = files.read(TOKENIZER_CONFIG)
    yield from _special_tokens(recipe, key, files, told)
    if recipe.task.type in CONVERSATION_TASKS and getattr(recipe.task, "chat_template", None) is None:
        yield from _chat_template(files, told)
    if files.has(FAST_TOKENIZER) is False:
        message = f"{files.name} has no {FAST_TOKENIZER}: transformers makes one from its vocabulary at each start"
        yield ModelFinding(key, False, message, "save it once: AutoTokenizer.from_pretrained(...).save_pretrained(...)")


def _special_tokens(recipe: Recipe, key: str, files: ModelFiles, told: dict[str, Any]) -> Iterator[ModelFinding]:
    kept = files.read(SPECIAL_TOKENS)
    tokens = {name: _text(told.get(name)) or _text(kept.get(name)) for name in ("pad_token", "eos_token", "unk_token")}
    is_all = told.get("tokenizer_class") in _WITHOUT_TOKENS and files.has(SPECIAL_TOKENS) is not None
    instead = tokens["eos_token"] or tokens["unk_token"]
    if tokens["pad_token"] is None and instead:
        yield ModelFinding(key, False, f"{files.name} names no pad token: {instead} stands for it, and is masked there")
    elif tokens["pad_token"] is None and is_all:
        message = f"{key} is {files.name}, whose tokenizer has no pad token, and no end or unknown token that could stand for it"
        yield ModelFinding(
            key,
            True,
            message,
            f"add pad_token to its {TOKENIZER_CONFIG}, or name another tokenizer: model.tokenizer_name_or_path",
        )
    if tokens["eos_token"] is None and is_all and recipe.task.type in ("causal-lm", *CONVERSATION_TASKS):
        message = (
            f"{files.name} names no end token: a model learns where to stop from a chat template's end of turn alone"
        )
        yield ModelFinding(key, False, message, f"add eos_token to its {TOKENIZER_CONFIG}")


def _text(token: Any) -> str | None:
    """Return a special token's text, which is written alone or with its properties."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) and found else None


def _chat_template(files: ModelFiles, told: dict[str, Any]) -> Iterator[ModelFinding]:
    own = told.get("chat_template")
    names = {part.get("name") for part in own if isinstance(part, dict)} if isinstance(own, list) else set()
    if files.has(*CHAT_TEMPLATES) or (own and (isinstance(own, str) or "default" in names)):
        yield from _template_that_reads(files, own)
        return
    if files.has(CHAT_TEMPLATES[0]) is None:
        # A cache that an older client has filled does not say what was looked for.
        return
    yield ModelFinding("task.chat_template", True, f"{NO_CHAT_TEMPLATE} ({files.name})", NO_CHAT_TEMPLATE_REMEDY)


def _template_that_reads(files: ModelFiles, own: Any) -> Iterator[ModelFinding]:
    path = next((files.found[name] for name in CHAT_TEMPLATES if files.found.get(name) is not None), None)
    if path is not None:
        fault = file_fault(path)
    else:
        parts = own if isinstance(own, list) else []
        named = {part["name"]: part.get("template") for part in parts if isinstance(part, dict) and "name" in part}
        source = own if isinstance(own, str) else named.get("default")
        fault = source_fault(source) if isinstance(source, str) else None
    if fault is not None:
        message = f"the tokenizer's own chat template is of no use ({files.name}): {fault}"
        yield ModelFinding("task.chat_template", True, message, f"mend it, or {NO_CHAT_TEMPLATE_REMEDY}")
