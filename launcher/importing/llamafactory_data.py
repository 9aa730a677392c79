"""LLaMA-Factory's data: names that stand for files or hub ids in a dataset_info.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.importing.conversion import Conversion
from launcher.importing.given import as_number
from launcher.importing.trainer import whole

_INFO = "dataset_info.json"
# Its column -> ours.
_ALPACA = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    **{name: name for name in ("system", "history", "tools")},
}
_SHAREGPT = {"messages": "conversations", "system": "system", "tools": "tools"}
_PAIR = {"chosen": "chosen", "rejected": "rejected"}
_SHAREGPT_TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
_MESSAGES_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def data_keys(c: Conversion) -> None:
    """Translate data: sources, mixing, lengths, and what validation rows there are."""
    info = _info(c)
    c.put("data.train", _one_or_list(_sources(c, "dataset", info)), "dataset")
    _mixing(c)
    if c.has("eval_dataset"):
        c.put("data.validation", _one_or_list(_sources(c, "eval_dataset", info)), "eval_dataset")
        c.unneeded("val_size", "eval_dataset gives the rows")
    else:
        _share(c)
    _columns(c, info)
    c.put("data.max_length", whole(c.number("cutoff_len")), "cutoff_len")
    c.unneeded("dataset_dir", "sources are written with their places")


def _info(c: Conversion) -> dict[str, Any] | None:
    folder = str(c.value("dataset_dir"))
    for place in (c.path.parent / folder, Path(folder), c.path.parent):
        try:
            found = json.loads((place / _INFO).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return {name: {**entry, "at": place} for name, entry in found.items() if isinstance(entry, dict)}
    return None


def _sources(c: Conversion, key: str, info: dict[str, Any] | None) -> list[Any]:
    names = c.names(key)
    if not names:
        raise c.cannot(key, "it names the data", f"write {key}, a name of {_INFO}")
    limit = whole(c.number("max_samples"))
    found, unknown = (
        [],
        [] if c.value("dataset_dir") == "ONLINE" else [name for name in names if name not in (info or {})],
    )
    if unknown:
        where = (
            "has no such name" if info is not None else f"is neither in {c.value('dataset_dir')} nor beside the file"
        )
        remedy = "replace them in the recipe by files, folders or hub ids, or import again with it at hand"
        c.missed(key, f"{', '.join(unknown)} stand in the recipe as they are, as {_INFO} {where}", remedy)
    for name in names:
        entry = (info or {}).get(name)
        source = _source(c, name, entry or {})
        counts = [
            one for one in (limit, entry.get("num_samples") if entry else None) if isinstance(one, int) and one > 0
        ]
        if counts:
            source["limit"] = min(counts)
        if entry and entry.get("folder"):
            c.assume(
                f"the folder {entry['folder']} inside {name!r} is not chosen, but the whole data set: name the folder as the source"
            )
        found.append(source)
    if limit:
        c.mark("data.train", "max_samples", note="limit of each source")
    return found


def _source(c: Conversion, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    if "file_name" in entry:
        return {"source": str(entry["at"] / str(entry["file_name"]))}
    if "script_url" in entry:
        c.assume(
            f"data {name!r} come out of a script, which is never run: REPLACE it under data by what the script makes"
        )
        return {"source": name}
    source: dict[str, Any] = {"source": str(entry.get("hf_hub_url", entry.get("ms_hub_url", name)))}
    if "hf_hub_url" not in entry and "ms_hub_url" in entry:
        c.assume(f"data {name!r} are looked for on the Hugging Face hub; they were named on ModelScope")
    for theirs, ours in (("subset", "name"), ("split", "split"), ("revision", "revision")):
        if entry.get(theirs):
            source[ours] = str(entry[theirs])
    return source


def _one_or_list(sources: list[dict[str, Any]]) -> Any:
    plain = [one["source"] if list(one) == ["source"] else one for one in sources]
    return plain[0] if len(plain) == 1 else plain


def _mixing(c: Conversion) -> None:
    strategy, shares = c.value("mix_strategy", "concat"), [as_number(one) for one in c.names("interleave_probs")]
    train = c.recipe["data.train"]
    if strategy == "concat":
        c.unneeded("mix_strategy", "sources of a list come one after the other, and are shuffled")
        return
    if not isinstance(train, list) or len(shares) not in (0, len(train)) or not all(shares or [1]):
        c.missed(
            "interleave_probs",
            "it does not give each data set its share",
            "write weight beside each source of data.train",
        )
        return
    weights = shares or [1.0] * len(train)
    mixed = [
        {**({"source": one} if isinstance(one, str) else one), "weight": float(weight or 1)}
        for one, weight in zip(train, weights, strict=True)
    ]
    c.put("data.train", mixed, "interleave_probs", "mix_strategy")
    c.put(
        "data.stopping_strategy",
        "all_exhausted" if strategy == "interleave_over" else "first_exhausted",
        "mix_strategy",
    )


def _share(c: Conversion) -> None:
    share = c.number("val_size", 0.0)
    if 0 < share < 1:
        c.put("data.validation_share", float(share), "val_size")
        return
    if share < 1:
        c.unneeded("val_size", "it is off in the file")
        c.recipe["data.validation_share"] = 0.01
        c.comments["data.validation_share"] = "launcher always keeps some rows of train to validate on"
        c.assume("1 percent of train is kept for validation, which LLaMA-Factory would train on: data.validation_share")


def _columns(c: Conversion, info: dict[str, Any] | None) -> None:
    entries = [entry for name in c.names("dataset") if (entry := (info or {}).get(name)) is not None]
    if not entries:
        return
    for entry in entries:
        if seen := {"images", "videos", "audios"} & set(entry.get("columns") or {}):
            raise c.cannot(
                "dataset",
                f"{_INFO} gives it {', '.join(sorted(seen))}, and launcher trains on texts alone",
                "leave it out",
            )
    forms = [_form(c, entry) for entry in entries]
    if any(form != forms[0] for form in forms[1:]):
        c.missed(
            "dataset",
            f"{_INFO} gives the data sets different columns, and a recipe reads all rows in one way: that of the first was written",
            "bring the others to it, in files of your own, or leave them out",
        )
    form, columns = forms[0]
    if form is not None and c.recipe["task.type"] != "causal-lm":
        c.put("task.format", form)
    if columns:
        c.put("data.columns", columns)


def _form(c: Conversion, entry: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    columns = entry.get("columns") or {}
    if c.recipe["task.type"] == "causal-lm":
        return None, {"text": str(columns.get("prompt", "text"))}
    pair = {ours: str(columns[theirs]) for theirs, ours in _PAIR.items() if theirs in columns}
    if entry.get("formatting", "alpaca") == "alpaca":
        return "alpaca", {ours: str(columns[theirs]) for theirs, ours in _ALPACA.items() if theirs in columns} | pair
    openai = _MESSAGES_TAGS if entry.get("formatting") == "openai" else {}
    tags = {**_SHAREGPT_TAGS, **openai, **(entry.get("tags") or {})}
    named = {ours: str(columns[theirs]) for theirs, ours in _SHAREGPT.items() if theirs in columns}
    if all(tags[name] == word for name, word in _MESSAGES_TAGS.items()):
        renamed = {"messages" if ours == "conversations" else ours: theirs for ours, theirs in named.items()}
        return "messages", renamed | pair
    if any(tags[name] != word for name, word in _SHAREGPT_TAGS.items()):
        c.assume(
            f"the messages have other words than from, value, human and gpt ({_INFO}: tags): rename them in the data"
        )
    return "sharegpt", named | pair
