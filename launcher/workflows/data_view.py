"""What a model will see of a recipe's data: rows as it reads them, lengths, cuts, labels, repeated texts, and what padding costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from launcher import registry
from launcher.contracts import Prepared, ShownRow
from launcher.data.near_duplicates import MOST_TEXTS, near_texts
from launcher.data.sampling import GlobalBatches, Order
from launcher.data.token_batches import TokenBatches, padded
from launcher.launching.batch import plan_batch
from launcher.planning.token_budget import settle_batch
from launcher.plans import BatchPlan
from launcher.recipe.batch_checks import can_count_tokens
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import counted_in

ORDERS: tuple[Order, ...] = ("group_by_length", "random", "sequential")
_BINS = 12
_NEAR_EXAMPLES = 3
_QUANTILES = (0.5, 0.9, 0.99)
BY_TOKENS = "tokens_per_batch"
"""Batches that are bounded by tokens, among the orders whose padding is told."""


@dataclass(frozen=True)
class NearView:
    """Texts of a split that are nearly the same as others (``data/near_duplicates.py``)."""

    looked_at: int
    """Texts; fewer than the split's where there are very many."""
    within: int
    """Those that are like an earlier one of the split."""
    in_train: int
    """Those that are like one of train; 0 for train itself."""
    examples: list[tuple[str, str]]
    """Some of them that are not the same, each with the text that it is like."""


@dataclass(frozen=True)
class SplitView:
    """One split as the model sees it."""

    rows: int
    tokens: int
    cut: int
    """Texts that are longer than ``max_length`` and lose their end."""
    divided: int
    """Texts that are longer and become several rows."""
    lengths: Mapping[str, int]
    """shortest, median, 90 %, 99 % and longest row, in tokens."""
    histogram: list[tuple[int, int, int]]
    """(first, last, rows) of bins of equal width, in tokens."""
    labels: dict[str, int]
    """Name -> rows (words, where words are tagged); empty where there are none."""
    repeated: int
    """Rows whose text (case and spacing aside) or image stands in an earlier row of the split."""
    near: NearView | None = None
    """None where rows are images."""
    texts: int = 0
    """Texts that the rows are of, with those that became none."""
    drawn: dict[str, float] = field(default_factory=dict)
    """Name -> rows of an epoch on average, where rows are drawn by their labels (task.class_sampling)."""


@dataclass(frozen=True)
class DataView:
    """All that is known of a recipe's data before training."""

    task: str
    problem_type: str
    folder: str
    """Where the prepared rows lie."""
    was_cached: bool
    max_length: int
    global_batch_size: int
    """Rows of a step; with training.tokens_per_batch their mean."""
    micro_batch_size: int
    tokens_per_batch: int | None
    """The recipe's, or what goes with its steps of rows: tokens of a step with group_by_length, padding included; None: not for such rows."""
    padding: dict[str, float]
    """Order of rows, or tokens_per_batch -> share of padding in what one process computes in an epoch, 0 to 1; empty where rows are images."""
    order: str
    """The order that the recipe has."""
    warnings: list[str]
    skipped: Mapping[str, Any]
    """Rows that were left out: counts by split, the first of them, and the file that lists all; empty where there are none."""
    splits: dict[str, SplitView]
    rows: list[ShownRow]
    """Examples, of the split that was asked for; behind each its augmented version, where there is one."""
    is_sample: bool = False
    """Whether train is streamed, and what is told of it is of the first rows of its files."""
    mixture: Mapping[str, Any] = field(default_factory=dict)
    """Where sources of train have weights: stopping_strategy, rows and tokens of an epoch, and sources, each with its source, rows,
    weight, rows that are drawn in an epoch, and share of it (``data/mixtures.py``)."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def view_data(recipe: Recipe, *, base_folder: Path, split: str = "train", rows: int = 5) -> DataView:
    """Prepare a recipe's data, or find them in the cache, and look at them.

    Args:
        split: whose rows are shown.
        rows: how many of them, spread evenly over the split.

    Raises:
        DataError: a fault in the data.
    """
    task = registry.load(registry.TASKS, recipe.task.type)(recipe, base_folder=base_folder)
    folder, prepared = task.prepare_data()
    found = {name: getattr(prepared, name) for name in ("train", "validation", "test")}
    shown = found[split] if found[split] is not None else []
    places = sorted({round(place) for place in np.linspace(0, len(shown) - 1, min(rows, len(shown)))})
    training = recipe.training
    lengths = np.asarray(prepared.train["length"][:], dtype=np.int64)
    orders: tuple[Order, ...] = ("random",) if prepared.stream is not None else ORDERS
    batch, by_tokens = _batches(recipe, prepared)
    return DataView(
        task=recipe.task.type,
        problem_type=prepared.problem_type,
        folder=str(folder),
        was_cached=prepared.facts["was_cached"],
        max_length=prepared.facts["max_length"],
        global_batch_size=batch.global_batch_size,
        micro_batch_size=batch.micro_batch_size,
        tokens_per_batch=by_tokens.budget.tokens if by_tokens and by_tokens.budget else None,
        padding={
            **{
                order: padding_share(lengths, batch=batch, seed=training.seed, order=order, draws=prepared.draws)
                for order in (orders if counted_in(recipe.task.type) == "tokens" else ())
            },
            **({BY_TOKENS: padding_share(lengths, batch=by_tokens, seed=training.seed)} if by_tokens else {}),
        },
        order=_order(recipe),
        warnings=list(prepared.facts["warnings"]),
        skipped=prepared.facts.get("skipped", {}),
        splits={name: _view(rows_of, prepared, name) for name, rows_of in found.items() if rows_of is not None},
        rows=[
            row for place in places for row in _as_seen(task, {**shown[place], "place": place}, prepared, split=split)
        ],
        is_sample=prepared.stream is not None,
        mixture={name: value for name, value in prepared.facts.get("mixture", {}).items() if name != "told"},
    )


def _as_seen(task: Any, row: Mapping[str, Any], prepared: Prepared, *, split: str) -> Iterator[ShownRow]:
    """Yield a row, and of train what the first epoch makes of it where that can be shown."""
    yield task.show_row(row, prepared)
    augmented = task.augmented_row(row) if split == "train" else None
    if augmented is not None:
        yield replace(task.show_row(augmented, prepared), is_augmented=True)


def _order(recipe: Recipe) -> str:
    if recipe.data.streaming:
        return "random"
    return BY_TOKENS if recipe.training.tokens_per_batch is not None else recipe.training.train_sampling_strategy


def _batches(recipe: Recipe, prepared: Prepared) -> tuple[BatchPlan, BatchPlan | None]:
    """Return steps of rows and steps of tokens on one process: the recipe's, and the other of about the same size; None: no such steps."""
    training = recipe.training
    lengths = np.asarray(prepared.train["length"][:], dtype=np.int64)
    if training.tokens_per_batch is not None:
        by_tokens = settle_batch(
            recipe, plan_batch(global_batch_size=1, world_size=1, tokens=training.tokens_per_batch), prepared
        )
        return plan_batch(global_batch_size=max(1, round(by_tokens.mean_rows(len(lengths)))), world_size=1), by_tokens
    batch = plan_batch(global_batch_size=training.step_size, world_size=1, cap=training.per_device_train_batch_size)
    if prepared.stream is not None or prepared.draws is not None or not can_count_tokens(recipe.task.type):
        return batch, None
    places = sum(
        _places(lengths[rows], 1) for rows in GlobalBatches(lengths, batch.global_batch_size, training.seed).epoch(0)
    )
    tokens = max(int(padded(lengths.max())), round(places / -(-len(lengths) // batch.global_batch_size)))
    return batch, plan_batch(global_batch_size=1, world_size=1, tokens=tokens)


def _view(rows: Any, prepared: Prepared, name: str) -> SplitView:
    facts, lengths = prepared.facts["splits"][name], np.asarray(rows["length"][:], dtype=np.int64)
    middle = {f"{quantile:.0%}": int(np.quantile(lengths, quantile, method="higher")) for quantile in _QUANTILES}
    return SplitView(
        rows=len(rows),
        tokens=int(lengths.sum()),
        cut=facts["cut"],
        divided=facts.get("divided", 0),
        lengths={"shortest": int(lengths.min()), **middle, "longest": int(lengths.max())},
        histogram=histogram(lengths),
        labels=dict(zip(prepared.label_names, facts.get("labels", ()), strict=False)),
        near=None if "image" in rows.column_names else _near(rows, prepared, name),
        repeated=_repeated(rows["image_hash" if "image_hash" in rows.column_names else "text"][:]),
        texts=facts.get("texts", len(rows)),
        drawn=_drawn(prepared) if name == "train" else {},
    )


def _drawn(prepared: Prepared) -> dict[str, float]:
    if prepared.draws is None or "class_sampling" not in prepared.facts:
        return {}
    rows = np.bincount(prepared.train["labels"], weights=prepared.draws, minlength=len(prepared.label_names))
    return dict(zip(prepared.label_names, rows.tolist(), strict=True))


def _near(rows: Any, prepared: Prepared, name: str) -> NearView:
    texts = _sample(rows)
    within = near_texts(texts)
    train = _sample(prepared.train) if name != "train" else []
    leaks = near_texts(texts, train) if train else []
    pairs = [(texts[one.row], train[one.other]) for one in leaks if one.likeness < 1]
    pairs += [(texts[one.row], texts[one.other]) for one in within if one.likeness < 1]
    return NearView(len(texts), len(within), len(leaks), pairs[:_NEAR_EXAMPLES])


def _sample(rows: Any) -> list[str]:
    # Rows that continue a divided text have none.
    texts = [text for text in rows["text"][:] if text]
    return (
        texts
        if len(texts) <= MOST_TEXTS
        else [texts[n] for n in np.linspace(0, len(texts) - 1, MOST_TEXTS).astype(int)]
    )


def histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (first, last, rows) of at most a dozen bins of equal width over the lengths int64 [rows]."""
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // _BINS))
    counts = np.bincount((lengths - low) // width)
    return [(low + place * width, low + (place + 1) * width - 1, int(count)) for place, count in enumerate(counts)]


def padding_share(
    lengths: np.ndarray,
    *,
    batch: BatchPlan,
    seed: int,
    order: Order = "group_by_length",
    draws: np.ndarray | None = None,
) -> float:
    """Return which share of the places of an epoch's batches is padding, on one process.

    ``lengths``: int64 [rows]; ``draws``: as in ``Prepared``. Exact for ``seed``: the batches are those of a run's first epoch.
    """
    batches: GlobalBatches | TokenBatches = (
        GlobalBatches(lengths, batch.global_batch_size, seed, order, draws)
        if batch.budget is None
        else TokenBatches(lengths, batch.budget.tokens, seed)
    )
    places, tokens = 0, 0
    for rows in batches.epoch(0):
        tokens += int(lengths[rows].sum())
        places += _places(lengths[rows], batch.accumulation)
    return 1 - tokens / places


def _places(lengths: np.ndarray, passes: int) -> int:
    """Return the places of a batch's rows, in the order that they are drawn in."""
    return sum(len(part) * int(padded(part.max(initial=0))) for part in np.array_split(lengths, passes))


def _repeated(texts: Sequence[str]) -> int:
    # Rows that continue a divided text have none.
    counts = Counter(" ".join(text.casefold().split()) for text in texts if text)
    return sum(counts.values()) - len(counts)
