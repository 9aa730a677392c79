"""The model, its number format and attention, chat templates, and trackers: what the three tools share under names of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from launcher.importing.conversion import Conversion

# Ours, in launcher/data/chat_templates; a test holds them to the files there.
OUR_TEMPLATES = ("chatml", "gemma", "llama3", "plain", "raw")

# Names of the other tools -> ours, where the same texts come out.
_FAMILIES = {
    "chatml": "chatml", "qwen": "chatml", "qwen2": "chatml", "qwen2.5": "chatml", "qwen_25": "chatml", "yi": "chatml", "chatml_de": "chatml",
    "llama3": "llama3", "gemma": "gemma", "gemma2": "gemma", "empty": "raw",
}  # fmt: skip
# Models whose own template has the same words as ours, by their names.
_OWN = {
    "chatml": re.compile(r"(?i)qwen|qwq|(?<![a-z])yi-|smollm|internlm|hermes|dolphin|orca|chatml"),
    "llama3": re.compile(r"(?i)llama[-_]?v?3"),
    "gemma": re.compile(r"(?i)gemma"),
}
_QUANTISED = re.compile(r"(?i)(?<![a-z])(awq|gptq|aqlm|hqq|eetq|bnb|nf4|(nv|mx)?fp[48]|[48][-_]?bit)(?![a-z])")
_IMAGES = re.compile(
    r"(?i)(?<![a-z])vl(?![a-z])|(?<![a-z])(qwen\d?(\.\d)?)?vl\d|mossvl|llava|pixtral|paligemma|idefics|vision|internvl|smolvlm|minicpm-?[vo]|"
    r"florence|omni(?![a-z])|[-_]audio|ultravox|(?<![a-z])mllm|imagetext"
)
_WITHOUT = ("default", "alpaca", "vanilla", "vicuna", "fewshot", "aya", "instruct", "inst")
_INSTRUCT = re.compile(r"(?i)instruct|chat|(?<![a-z])it(?![a-z])|hermes|zephyr|dolphin|openchat|qwen3(?!.*base)|sft")

ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


def name_model(c: Conversion, key: str) -> None:
    """Write the model's name. Raises RecipeError where the file names none."""
    from launcher.importing.given import refuse

    if key in c.outside:
        raise c.cannot(
            key, "it names something outside the file, which is not read", "write the model's name into the file"
        )
    if not c.has(key):
        raise refuse(c.path, f"{key} is not given", f"write {key}: the hub id or folder of the model", key)
    c.put("model.name_or_path", str(c.value(key)), key)
    if _QUANTISED.search(str(c.value(key))):
        c.assume(
            "the model's files hold few bits already, as its name says, and launcher quantises whole weights itself: "
            "where it does not load, name the model that it was made from, with strategy.load_in_4bit: true"
        )


def refuse_images(c: Conversion, names: tuple[str, ...], signs: tuple[str, ...] = ()) -> None:
    """Refuse a run that reads images, videos or sounds.

    Args:
        names: keys whose values tell it, such as the name of the model.
        signs: keys that such runs alone have.

    Raises:
        RecipeError: it is one.
    """
    told = (one for one in names if isinstance(c.value(one), str) and _IMAGES.search(c.value(one)))
    sign = next(told, None) or next((one for one in signs if c.has(one)), None)
    if sign is not None:
        raise c.cannot(
            sign,
            "it is of a run that reads images, videos or sounds, and launcher trains language models on texts alone",
            "keep this run where it is; where the data are texts, name a model of texts and leave such keys out",
        )


def revision(c: Conversion, key: str) -> None:
    """Write the model's revision, where it is not the one that is taken anyway."""
    if c.has(key) and c.value(key) != "main":
        c.put("model.revision", str(c.value(key)), key)
    c.unneeded(key, "main is what is taken anyway")


def attention(c: Conversion, key: str, value: str) -> None:
    """Write the kernel of attention."""
    if value in ATTENTIONS:
        c.put("model.attn_implementation", value, key)
    else:
        c.missed(
            key,
            "launcher has no such attention",
            f"model.attn_implementation takes {', '.join(ATTENTIONS)}; null leaves it to transformers",
        )


def is_instruct(model: str) -> bool:
    """Whether a model's name says that it was trained on conversations, so that its tokenizer has a chat template."""
    return _INSTRUCT.search(model) is not None


def template_by_name(c: Conversion, key: str, name: str) -> None:
    """Write the chat template that a tool calls ``name``: the tokenizer's own for a model that has one."""
    model = str(c.recipe.get("model.name_or_path", ""))
    family = re.sub(r"[-_](no)?think(ing)?$", "", name.lower())
    if family in _WITHOUT:
        stand_in = None if is_instruct(model) else "plain"
        what = "the tokenizer's own template" if stand_in is None else "the template plain"
        c.put("task.chat_template", stand_in)
        c.missed(key, f"launcher has no template {name}: {what} stands in for it, with other words around the messages",
                 "write the template as a file of Jinja, and name it under task.chat_template")  # fmt: skip
    elif family in _FAMILIES and not (is_instruct(model) and _is_own(model, _FAMILIES[family])):
        c.put("task.chat_template", _FAMILIES[family], key)
    elif is_instruct(model):
        c.put("task.chat_template", None, key, note="the tokenizer's own template, which such a model brings along")
    else:
        c.put("task.chat_template", None)
        c.missed(key, f"launcher has no template {name}: the tokenizer's own is taken, if it has one",
                 "see `launcher data` for what comes out; task.chat_template also takes a file of Jinja")  # fmt: skip


def _is_own(model: str, ours: str) -> bool:
    return ours in _OWN and _OWN[ours].search(model) is not None


def template_file(c: Conversion, key: str, text: str) -> None:
    """Write a file of Jinja; a template that stands in the configuration itself becomes one, as text."""
    here = next((folder / text for folder in (Path(), c.path.parent) if _is_file(folder, text)), None)
    if here is not None:
        c.put("task.chat_template", str(here), key)
    elif "{" in text:
        c.template = text
        c.put("task.chat_template", f"{c.recipe['name']}.jinja", key, note="a file beside the recipe")
    else:
        c.put("task.chat_template", None)
        c.missed(
            key,
            "the file is not here, and the tokenizer's own template is taken, if it has one",
            "fetch it, and write task.chat_template: my_template.jinja",
        )


def _is_file(folder: Path, text: str) -> bool:
    return len(text) < 255 and not {"\n", "{"} & {*text} and (folder / text).is_file()


def trackers(c: Conversion, *, given: list[str] | None, key: str, wandb: dict[str, Any] | None = None) -> None:
    """Write the trackers; ``given``: their names as transformers has them, None: the file names none."""
    if given is None:
        return
    known = {one.lower() for one in given} - {"none", "[]"}
    if known & {"wandb", "all"}:
        if wandb:
            c.recipe.setdefault("tracking.wandb", dict(wandb))
        c.put("tracking.wandb", c.recipe.get("tracking.wandb") or {"project": "launcher"}, key)
    else:
        c.put("tracking.wandb", None, key)
    if others := sorted(known - {"wandb", "all"}):
        c.put("tracking.report_to", others, key)


def takes_fp8(c: Conversion) -> bool:
    """Write that a run computes in fp8, and return whether it does; under DeepSpeed it does not here, and the list says so."""
    if not c.flag("fp8"):
        return False
    if "distributed.zero_stage" in c.recipe:
        c.missed(
            "fp8",
            "launcher computes in fp8 without DeepSpeed",
            "write distributed: {engine: fsdp} and precision: fp8 to have it",
        )
        return False
    c.put("precision", "fp8", "fp8")
    return True


def weights_type(c: Conversion, dtype: str, *names: str) -> None:
    """Write the type of the weights; fp16 and tf32 compute with float32 weights."""
    precision = c.recipe.get("precision")
    if dtype in ("float16", "bfloat16") and precision in ("fp16", "tf32"):
        for name in names:
            c.missed(name, f"precision {precision} needs float32 weights here", "nothing has to be done")
        dtype = "float32"
    c.put("model.dtype", dtype, *names)


def quantised(c: Conversion, bits: int, *names: str, with_stage_3: str = "deepspeed") -> None:
    """Write frozen weights of 4 or 8 bits, which are not sharded here."""
    c.put(f"strategy.load_in_{bits}bit", True, *names)
    if c.recipe.get("distributed.zero_stage") == 3:
        c.recipe["distributed.zero_stage"] = 2
        c.recipe.pop("distributed.offload", None)
        c.missed(
            with_stage_3,
            f"weights of {bits} bits are not sharded here",
            "zero_stage: 2 was written; each GPU holds them whole",
        )
