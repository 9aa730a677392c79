"""What a step makes beside a model's weights, traced without any weights.

A step of the model with three blocks of each kind is run with fake tensors: tensors that have shapes and no data. Every further
block adds what the middle one does (docs/decisions/018-three-blocks.md), and every further row what the second one has; so much
of any depth and any number of rows is told. Where blocks cannot be taken apart, the whole model is traced.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from launcher.contracts import Phase
from launcher.planning.model_facts import Line, ModelFacts, Stretch, packed_weights, untraced_facts
from launcher.plans import MemorySetting
from launcher.recipe.schema import Recipe

# A single row may be spared copies that every larger batch makes.
_ROWS = (2, 4)
# Of each kind of block: a first one, one that stands for all between them, and a last one.
_BLOCKS = 3
# Models with more kinds of blocks than this are traced whole: that takes no longer.
_MOST_RUNS = 6
_KINDS = ("fresh", "resident", "gradient")


def trace(
    recipe: Recipe,
    task: Any,
    prepared: Any,
    phase: Phase,
    *,
    setting: MemorySetting,
    skeleton: Any = None,
    untraced: ModelFacts | None = None,
    evaluation: tuple[Stretch, ...] | None = None,
    every_block: bool = False,
) -> ModelFacts:
    """Return facts for ``setting``'s length, precision, engine and checkpointing; its rows may be any.

    Args:
        prepared: the task's data; None: a row is made up from what the tokenizer gives.
        phase: what trains; its table's names are the model's.
        skeleton: the task's model on the meta device, which is not changed; None: it is built.
        untraced: what is known without a trace; None: found out.
        evaluation: that of an earlier trace, of the same precision and engine (checkpointing may differ); None: traced.
        every_block: trace the whole model, which takes longer and says the same.
    """
    skeleton = task.build_model(prepared, skeleton=True) if skeleton is None else skeleton
    with _quiet():
        traced = _Tracer(recipe, task, prepared, phase, setting, skeleton, evaluation, every_block).facts()
    return replace(untraced or untraced_facts(recipe, phase, skeleton), **traced)


class _Tracer:
    def __init__(
        self,
        recipe: Recipe,
        task: Any,
        prepared: Any,
        phase: Phase,
        setting: MemorySetting,
        skeleton: Any,
        evaluation: tuple[Stretch, ...] | None,
        every_block: bool,
    ) -> None:
        from launcher.planning.shrinking import find_runs

        self.recipe, self.task, self.prepared, self.phase, self.setting = recipe, task, prepared, phase, setting
        self.skeleton, self.evaluation = skeleton, evaluation
        self.packed = packed_weights(recipe, skeleton)
        self.model = self._as_it_computes() if self.packed else skeleton.model
        self.runs = find_runs(self.model, phase)
        few = 0 < len(self.runs) <= _MOST_RUNS and any(len(run.paths) > _BLOCKS for run in self.runs)
        self._is_extrapolated = few and not every_block

    def facts(self) -> dict[str, Any]:
        """Return the fields of ModelFacts that a trace tells."""
        steps = self._steps()
        lines = {part: _lines([steps[rows][part] for rows in _ROWS]) for part in ("training", "evaluation")}
        kept = [_line([getattr(steps[rows]["totals"], name) for rows in _ROWS]) for name in ("kept", "kept_by_blocks")]
        return {
            "training": lines["training"],
            "evaluation": lines["evaluation"] if self.evaluation is None else self.evaluation,
            "kept": kept[0],
            "kept_by_blocks": kept[1],
            "batch": _line([steps[rows]["totals"].batch for rows in _ROWS]),
            "is_extrapolated": self._is_extrapolated,
        }

    def _as_it_computes(self) -> Any:
        """Return a copy of the model whose quantised weights have the type that they are unpacked to, and fp32 everywhere else."""
        import copy

        import torch

        model = copy.deepcopy(self.skeleton.model).to(torch.float32)
        half = {"bf16": torch.bfloat16}.get(self.setting.precision, torch.float32)
        for name in self.packed:
            module = model.get_submodule(name.rpartition(".")[0])
            module.weight = torch.nn.Parameter(module.weight.to(half), requires_grad=module.weight.requires_grad)
        return model

    # --- steps -----------------------------------------------------------------------------------------------------

    def _steps(self) -> dict[int, dict[str, Any]]:
        """Return rows -> peaks of the whole model."""
        if self._is_extrapolated:
            try:
                few = self._traced([min(len(run.paths), _BLOCKS) for run in self.runs])
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
                # Such a model counts on all its blocks; if it is at fault for another reason, the whole of it fails too.
                few = None
            if few is not None:
                more = [max(0, len(run.paths) - _BLOCKS) for run in self.runs]
                return {rows: _with_more_blocks(traced, more) for rows, traced in few.items()}
            self._is_extrapolated = False
        whole = self._traced([len(run.paths) for run in self.runs])
        assert whole is not None
        return {rows: _with_more_blocks(traced, [0] * len(self.runs)) for rows, traced in whole.items()}

    def _traced(self, lengths: Sequence[int]) -> dict[int, dict[str, Any]] | None:
        """Trace the model with so many blocks of each run; None where it cannot be made, or does not work with fewer blocks."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        from launcher.planning.kept_tensors import nothing_kept
        from launcher.planning.shrinking import shrink
        from launcher.planning.traced_step import Traced, trace_evaluation, trace_training, weights_dtype, without_data
        from launcher.strategies.preparing import modules_kept_in_eval, prepare_model
        from launcher.tasks.chunked_loss import as_if

        small = shrink(self.model, self.phase, self.runs, lengths)
        if small is None:
            import copy

            from launcher.planning.shrinking import Shrunk

            if any(length < len(run.paths) for run, length in zip(self.runs, lengths, strict=True)):
                return None
            small = Shrunk(copy.deepcopy(self.model), self.phase, tuple(run.paths for run in self.runs))
        blocks = [[small.model.get_submodule(path) for path in run] for run in small.runs]
        compute = compute_of(self.setting)
        mode = FakeTensorMode()
        model = prepare_model(small.model, small.phase)
        with mode:
            model = without_data(model, dtype=weights_dtype(compute) or self._loaded_dtype())
        _set_checkpointing(model, self.recipe, self.setting)
        smoothing = self.recipe.training.label_smoothing_factor
        eval_modules = modules_kept_in_eval(model, small.phase)
        traced = Traced(model, blocks, eval_modules, self.task, smoothing, compute, self.setting.device)
        found: dict[int, dict[str, Any]] = {}
        with nothing_kept(model):
            for rows in _ROWS:
                batches = {
                    name: self._batch(mode, rows, length)
                    for name, length in (
                        ("training", self.setting.held_length),
                        ("evaluation", self.setting.eval_length),
                    )
                }
                with as_if(max(_ROWS[-1], self.setting.micro_batch_size) / rows):
                    training = trace_training(traced, batches["training"], mode)
                evaluation = {}
                if not self.evaluation:
                    with as_if(max(_ROWS[-1], self.setting.eval_batch_size) / rows):
                        evaluation = dict(trace_evaluation(traced, batches["evaluation"], mode).stretches)
                size = sum(tensor.numel() * tensor.element_size() for tensor in batches["training"].values())
                totals = _Totals(training.kept, training.kept_by_blocks, size)
                found[rows] = {"training": training.stretches, "evaluation": evaluation, "totals": totals}
        return found

    def _loaded_dtype(self) -> Any:
        import torch

        return None if self.packed or self.recipe.model.dtype == "auto" else getattr(torch, self.recipe.model.dtype)

    def _batch(self, mode: Any, rows: int, length: int) -> dict[str, Any]:
        batch = example_batch(self.task, self.prepared, rows=rows, length=length)
        return {name: mode.from_tensor(tensor) for name, tensor in batch.items()}


@dataclass(frozen=True)
class _Totals:
    kept: float
    kept_by_blocks: float
    batch: float


def compute_of(setting: MemorySetting) -> Literal["fp32", "autocast_bf16", "autocast_fp16", "bf16", "fp16"]:
    """Return how an engine computes in a precision: DeepSpeed and FSDP convert the weights, the others use autocast."""
    converts = setting.engine in ("deepspeed", "fsdp")
    if setting.precision in ("bf16", "fp8"):
        return "bf16" if converts else "autocast_bf16"
    if setting.precision == "fp16":
        return "fp16" if converts else "autocast_fp16"
    return "fp32"


def example_batch(task: Any, prepared: Any, *, rows: int, length: int) -> dict[str, Any]:
    """Return a batch as the task's collator makes it, of rows that are all ``length`` tokens long; what is written counts among them."""
    has_rows = prepared is not None and prepared.train is not None and len(prepared.train)
    row = dict(prepared.train[0]) if has_rows else task.example_row()
    if row is None:
        return _batch_without_rows(task, prepared, rows=rows, length=length)
    if "chosen_ids" in row:
        return _batch_of_pairs(task, row, rows=rows, length=length)
    if "target_ids" in row:
        written = _written(task, length)
        row["target_ids"], length = row["target_ids"][:1] * written, length - written
    own = len(row["input_ids"]) if "input_ids" in row else 0
    # A row that is learned whole needs most: logits are made where something is learned.
    row = {
        **row,
        **({"learned": [1] * own} if "learned" in row else {}),
        **({"seq_lengths": [length]} if "seq_lengths" in row else {}),
    }
    stretched = {
        name: [value[0]] * length if isinstance(value, list) and own and len(value) == own else value
        for name, value in row.items()
    }
    batch = task.collator()([dict(stretched) for _ in range(rows)])
    return {name: value for name, value in batch.items() if hasattr(value, "dtype")}


def _batch_of_pairs(task: Any, row: Mapping[str, Any], *, rows: int, length: int) -> dict[str, Any]:
    """Return a batch of pairs of texts, each half as long as its row, and learned throughout: how much is, differs from row to row."""
    import torch

    each = {"ids": [row["chosen_ids"][0]], "learned": [True]}
    pair = {f"{side}_{name}": value * (length // 2) for side in ("chosen", "rejected") for name, value in each.items()}
    batch = task.collator()([{**row, **pair} for _ in range(rows)])
    if task.reference_columns:
        batch["reference"] = torch.zeros((rows, len(task.reference_columns)))
    return {name: value for name, value in batch.items() if hasattr(value, "dtype")}


def _written(task: Any, length: int) -> int:
    """Return how many of a row's tokens are taken to be written."""
    return min(length // 2, int(task.options.max_target_length))


def _batch_without_rows(task: Any, prepared: Any, *, rows: int, length: int) -> dict[str, Any]:
    """Return a batch of texts for tokenizers that are out of reach: a label for each row, or, without labels, for each token."""
    import torch

    if task.generates:
        written = torch.zeros((rows, _written(task, length)), dtype=torch.long)
        read = torch.ones((rows, length - written.shape[1]), dtype=torch.long)
        batch = {"input_ids": read, "attention_mask": torch.ones_like(read)}
        return {**batch, "labels": written, "decoder_input_ids": written, "sample_weight": torch.ones(rows)}
    tokens = torch.ones((rows, length), dtype=torch.long)
    by_row = prepared is not None and prepared.label_names and prepared.problem_type != "token_classification"
    labels = torch.zeros(rows, dtype=torch.long) if by_row else tokens
    if prepared is not None and prepared.problem_type == "question_answering":
        labels = torch.tensor([[0, 0, length]] * rows)
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": torch.zeros_like(labels),
        "sample_weight": torch.ones(rows),
    }


def _set_checkpointing(model: Any, recipe: Recipe, setting: MemorySetting) -> None:
    """Do what Trainer and our callback do with ``training.activation_checkpointing``."""
    if not setting.activation_checkpointing:
        return
    from launcher.planning.traced_step import recomputing_as

    options = dict(recipe.training.passthrough.get("activation_checkpointing_kwargs") or {})
    every = options.pop("every_n_layers", 1)
    options.pop("offload", None)
    if not options.get("use_reentrant"):
        options |= {"use_reentrant": False, "context_fn": recomputing_as(compute_of(setting), setting.device)}
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=options or None, every_n_layers=every)
    if not options.get("use_reentrant"):
        bare = model.get_base_model() if hasattr(model, "peft_config") else model
        bare.disable_input_require_grads()


@contextmanager
def _quiet() -> Iterator[None]:
    # bitsandbytes, which PEFT imports, misses kernels that no trace uses.
    packed = logging.getLogger("bitsandbytes")
    level = packed.level
    packed.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        packed.setLevel(level)


# --- from a few blocks to all of them --------------------------------------------------------------------------------


def _with_more_blocks(traced: Mapping[str, Any], more: Sequence[int]) -> dict[str, Any]:
    """Return the peaks of a model with ``more[i]`` further blocks in the middle of run i.

    All of them are like the middle one of the three that were traced: what it has kept when it is through is also kept by each
    further one, and so is what it leaves behind after its backward pass. The outermost blocks stay as they are: a first
    block may keep what the embeddings share with it, a last one what the head does.
    """
    result: dict[str, Any] = {}
    for part in ("training", "evaluation"):
        stretches = traced[part]
        added = dict.fromkeys(stretches, (0.0, 0.0))
        for run, count in enumerate(more):
            if count and stretches:
                for name, (fresh, resident) in _added_by_block(stretches, run).items():
                    added[name] = (added[name][0] + count * fresh, added[name][1] + count * resident)
        result[part] = {
            name: {
                "fresh": peaks.fresh + added[name][0],
                "resident": peaks.resident + added[name][1],
                "gradient": float(peaks.gradient),
            }
            for name, peaks in stretches.items()
        }
    totals = traced["totals"]
    kept = sum(count * _kept(traced["training"], run)[0] for run, count in enumerate(more) if count)
    result["totals"] = replace(totals, kept=totals.kept + kept, kept_by_blocks=totals.kept_by_blocks + kept)
    return result


def _kept(stretches: Mapping[str, Any], run: int) -> tuple[float, float]:
    """Return what the middle block keeps when its forward pass is through: with gradients, and without."""
    middle, last = stretches[f"forward {run}.1"], stretches[f"forward {run}.2"]
    return last.fresh_before - middle.fresh_before, last.resident_before - middle.resident_before


def _added_by_block(stretches: Mapping[str, Any], run: int) -> dict[str, tuple[float, float]]:
    """Return stretch -> the bytes that a further block of a run adds to it: nothing before its forward pass begins.

    Until its backward pass it is what the block keeps, after it what the block leaves behind: its gradients.
    """
    kept = left = _kept(stretches, run)
    if f"backward {run}.0" in stretches and f"backward {run}.1" in stretches:
        middle, first = stretches[f"backward {run}.1"], stretches[f"backward {run}.0"]
        left = (
            kept[0] + first.fresh_before - middle.fresh_before,
            kept[1] + first.resident_before - middle.resident_before,
        )
    found: dict[str, tuple[float, float]] = {}
    now = (0.0, 0.0)
    for name in stretches:
        if name == f"forward {run}.2":
            now = kept
        elif name == f"backward {run}.1":
            now = left
        found[name] = now
    return found


def _lines(peaks: Sequence[Mapping[str, Mapping[str, float]]]) -> tuple[Stretch, ...]:
    return tuple(Stretch(name, *(_line([one[name][kind] for one in peaks]) for kind in _KINDS)) for name in peaks[0])


def _line(values: Sequence[float]) -> Line:
    """Return the line through the values at the traced numbers of rows."""
    per_row = (values[1] - values[0]) / (_ROWS[1] - _ROWS[0])
    return Line(values[0] - per_row * _ROWS[0], per_row)
