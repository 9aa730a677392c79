"""Facts about a model that memory follows from: its tensors, and what a step makes beside them, traced without any weights.

A step of the model with one block of each kind, and with two, is run with fake tensors: tensors that have shapes and no data.
Every further block adds what the second one has added, and every further row what the second one has; so much of any depth and any
number of rows is told. Where blocks cannot be taken apart, the whole model is traced.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from launcher.contracts import Phase
from launcher.plans import MemorySetting
from launcher.recipe.schema import Recipe

# A single row may be spared copies that every larger batch makes.
_ROWS = (2, 4)
# Models with more kinds of blocks than this are traced whole: that takes no longer.
_MOST_RUNS = 6
_KINDS = ("fresh", "resident", "gradient")


@dataclass(frozen=True)
class Line:
    """Bytes as a function of the rows of a batch."""

    at_zero: float
    per_row: float

    def at(self, rows: int) -> int:
        """Return the bytes for ``rows`` rows."""
        return max(0, round(self.at_zero + self.per_row * rows))


@dataclass(frozen=True)
class Stretch:
    """The highest bytes within a stretch of a step, such as the backward pass of the first block."""

    name: str
    fresh: Line
    """With gradients that come into being in this step and stay."""
    resident: Line
    """With gradients that are added to others, or sent away, as soon as they are there."""
    gradient: Line
    """The largest gradient that becomes whole in it."""


@dataclass(frozen=True)
class StoredTensor:
    """A parameter; tied ones are there once."""

    numel: int
    itemsize: int
    """Bytes of an element as the model is loaded."""
    trains: bool
    newly_initialized: bool = False


@dataclass(frozen=True)
class ModelFacts:
    """Plain numbers about a model in one phase, one length of rows and one way to compute."""

    tensors: tuple[StoredTensor, ...]
    groups: tuple[int, ...]
    """Elements of each group of the optimizer."""
    buffer_bytes: int
    blocks: int
    largest_block: int
    """Elements of the largest block."""
    hidden_size: int
    adapted_bytes: int
    """Of the weights that adapters are merged into; 0 without adapters."""
    training: tuple[Stretch, ...]
    evaluation: tuple[Stretch, ...]
    kept: Line
    """What the forward pass keeps for the backward pass."""
    kept_by_blocks: Line
    """Those that are there when the last block is through."""
    batch: Line
    """Input tensors of a training batch."""
    is_extrapolated: bool
    """Whether a smaller model was traced."""

    @property
    def numel(self) -> int:
        """Elements of all parameters."""
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def trainable_numel(self) -> int:
        """Elements of the parameters that train."""
        return sum(tensor.numel for tensor in self.tensors if tensor.trains)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters as they are loaded."""
        return sum(tensor.numel * tensor.itemsize for tensor in self.tensors)

    @property
    def trainable_bytes(self) -> int:
        """Bytes of the parameters that train, as they are loaded."""
        return sum(tensor.numel * tensor.itemsize for tensor in self.tensors if tensor.trains)

    def training_peak(
        self, rows: int, *, gradients: Literal["fresh", "resident"], copies: float = 0.0
    ) -> tuple[int, Stretch]:
        """Return the most bytes of a training step beside weights and batch, and the stretch in which they are reached.

        Args:
            copies: how many copies of a gradient, in its own bytes, are there as soon as it is whole.
        """

        def peak(stretch: Stretch) -> int:
            held: Line = getattr(stretch, gradients)
            return held.at(rows) + round(copies * stretch.gradient.at(rows))

        found = max(self.training, key=peak)
        return peak(found), found

    def evaluation_peak(self, rows: int) -> int:
        """Return the most bytes of an evaluation batch beside weights and batch."""
        return max(stretch.fresh.at(rows) for stretch in self.evaluation)


def trace(
    recipe: Recipe,
    task: Any,
    prepared: Any,
    phase: Phase,
    *,
    setting: MemorySetting,
    skeleton: Any = None,
    every_block: bool = False,
) -> ModelFacts:
    """Return facts for ``setting``'s length, precision, engine and checkpointing; its rows may be any.

    Args:
        prepared: the task's data; None: a row is made up from what the tokenizer gives.
        phase: what trains; its table's names are the model's.
        skeleton: the task's model on the meta device, which is not changed; None: it is built.
        every_block: trace the whole model, which takes longer and says the same.
    """
    skeleton = task.build_model(prepared, skeleton=True) if skeleton is None else skeleton
    with _quiet():
        return _Tracer(recipe, task, prepared, phase, setting, skeleton, every_block).facts()


class _Tracer:
    def __init__(
        self,
        recipe: Recipe,
        task: Any,
        prepared: Any,
        phase: Phase,
        setting: MemorySetting,
        skeleton: Any,
        every_block: bool,
    ) -> None:
        from launcher.planning.shrinking import find_runs

        self.recipe, self.task, self.prepared, self.phase, self.setting = recipe, task, prepared, phase, setting
        self.model, self.new = skeleton.model, skeleton.newly_initialized
        self.runs = find_runs(self.model, phase)
        few = 0 < len(self.runs) <= _MOST_RUNS and any(len(run.paths) > 2 for run in self.runs)
        self._is_extrapolated = few and not every_block

    def facts(self) -> ModelFacts:
        from launcher.strategies.layers import block_modules

        steps = self._steps()
        lines = {part: _lines([steps[rows][part] for rows in _ROWS]) for part in ("training", "evaluation")}
        kept = [_line([getattr(steps[rows]["totals"], name) for rows in _ROWS]) for name in ("kept", "kept_by_blocks")]
        blocks = block_modules(self.model)
        config = getattr(self.model, "config", None)
        text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
        return ModelFacts(
            tensors=self._tensors(),
            groups=tuple(group.numel for group in self.phase.table.trainable),
            buffer_bytes=sum(tensor.numel() * tensor.element_size() for tensor in self.model.buffers()),
            blocks=len(blocks),
            largest_block=max((sum(p.numel() for p in block.parameters()) for block in blocks), default=0),
            hidden_size=int(getattr(text, "hidden_size", 0) or 0),
            adapted_bytes=self._adapted_bytes(),
            training=lines["training"],
            evaluation=lines["evaluation"],
            kept=kept[0],
            kept_by_blocks=kept[1],
            batch=_line([steps[rows]["totals"].batch for rows in _ROWS]),
            is_extrapolated=self._is_extrapolated,
        )

    def _tensors(self) -> tuple[StoredTensor, ...]:
        """Return the parameters of the model as it trains, adapters with them."""
        import torch

        from launcher.strategies.adapters import adapted_parameters
        from launcher.strategies.layers import list_parameters

        parameters = list_parameters(self.model, newly_initialized=self.new)
        sizes = {name: tensor.element_size() for name, tensor in self.model.named_parameters()}
        section = self.recipe.model.dtype
        size = None if section == "auto" else torch.empty(0, dtype=getattr(torch, section)).element_size()
        adapters = self.phase.adapters
        if adapters is not None:
            parameters = adapted_parameters(parameters, adapters)
        trainable = {name for group in self.phase.table.trainable for name in group.parameters}
        return tuple(
            StoredTensor(p.numel, size or sizes.get(p.name, 4), p.name in trainable, p.newly_initialized)
            for p in parameters
        )

    def _adapted_bytes(self) -> int:
        adapters = self.phase.adapters
        if adapters is None:
            return 0
        modules = (self.model.get_submodule(name) for name, rank in adapters.ranks.items() if rank)
        return sum(module.weight.numel() * module.weight.element_size() for module in modules)

    # --- steps -----------------------------------------------------------------------------------------------------

    def _steps(self) -> dict[int, dict[str, Any]]:
        """Return rows -> peaks of the whole model."""
        if self._is_extrapolated:
            found = self._extrapolated()
            if found is not None:
                return found
            self._is_extrapolated = False
        whole = self._traced([len(run.paths) for run in self.runs])
        assert whole is not None
        return {rows: _combine([whole[rows]], self.runs, [[len(run.paths) for run in self.runs]]) for rows in _ROWS}

    def _extrapolated(self) -> dict[int, dict[str, Any]] | None:
        base = [min(len(run.paths), 1) for run in self.runs]
        configurations = [base]
        for number, run in enumerate(self.runs):
            if len(run.paths) > 1:
                configurations.append([2 if i == number else length for i, length in enumerate(base)])
        found = []
        for lengths in configurations:
            try:
                traced = self._traced(lengths)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
                # Such a model counts on all its blocks; if it is at fault for another reason, the whole of it fails too.
                return None
            if traced is None:
                return None
            found.append(traced)
        return {rows: _combine([one[rows] for one in found], self.runs, configurations) for rows in _ROWS}

    def _traced(self, lengths: Sequence[int]) -> dict[int, dict[str, Any]] | None:
        """Trace the model with so many blocks of each run; None where it cannot be made, or does not work with fewer blocks."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        from launcher.planning.shrinking import shrink
        from launcher.planning.traced_step import Traced, trace_evaluation, trace_training, weights_dtype, without_data
        from launcher.strategies.preparing import modules_kept_in_eval, prepare_model

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
        for rows in _ROWS:
            batches = {
                name: self._batch(mode, rows, length)
                for name, length in (("training", self.setting.length), ("evaluation", self.setting.eval_length))
            }
            training = trace_training(traced, batches["training"], mode)
            evaluation = trace_evaluation(traced, batches["evaluation"], mode)
            size = sum(tensor.numel() * tensor.element_size() for tensor in batches["training"].values())
            totals = _Totals(training.kept, training.kept_by_blocks, size)
            found[rows] = {"training": training.stretches, "evaluation": evaluation.stretches, "totals": totals}
        return found

    def _loaded_dtype(self) -> Any:
        import torch

        return None if self.recipe.model.dtype == "auto" else getattr(torch, self.recipe.model.dtype)

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
    """Return a batch as the task's collator makes it, of rows that are all ``length`` tokens long."""
    if prepared is None or prepared.train is None or not len(prepared.train):
        return _batch_without_rows(prepared, rows=rows, length=length)
    row = dict(prepared.train[0])
    own = len(row["input_ids"]) if "input_ids" in row else 0
    stretched = {
        name: [value[0]] * length if isinstance(value, list) and own and len(value) == own else value
        for name, value in row.items()
    }
    batch = task.collator()([dict(stretched) for _ in range(rows)])
    return {name: value for name, value in batch.items() if hasattr(value, "dtype")}


def _batch_without_rows(prepared: Any, *, rows: int, length: int) -> dict[str, Any]:
    """Return a batch of texts for tokenizers that are out of reach: a label for each row, or, without labels, for each token."""
    import torch

    tokens = torch.ones((rows, length), dtype=torch.long)
    labels = torch.zeros(rows, dtype=torch.long) if prepared is not None and prepared.label_names else tokens
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- from a few blocks to all of them --------------------------------------------------------------------------------


def _combine(
    traces: Sequence[Mapping[str, Any]], runs: Sequence[Any], configurations: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Return the peaks of the whole model: the first trace, and for each run what each further block adds.

    A stretch of a block stands for those of the first and of the last block of its run: between them peaks lie on a line.
    """
    base, further = traces[0], list(zip(traces[1:], configurations[1:], strict=True))

    def whole(value: Any) -> float:
        """``value(trace, lengths)`` extrapolated to the depth of each run."""
        start = value(base, configurations[0])
        return float(start + sum(
            (value(trace, lengths) - start) * sum(
                len(run.paths) - 1 for run, now, then in zip(runs, lengths, configurations[0], strict=True) if now > then
            )
            for trace, lengths in further
        ))  # fmt: skip

    result: dict[str, Any] = {}
    for part in ("training", "evaluation"):
        result[part] = {
            name: {kind: whole(_reader(part, name, kind)) for kind in _KINDS}
            for name in _names(base[part], configurations[0])
        }
    result["totals"] = _Totals(**{
        name: whole(lambda trace, _, name=name: getattr(trace["totals"], name)) for name in ("kept", "kept_by_blocks")
    }, batch=base["totals"].batch)  # fmt: skip
    return result


def _names(stretches: Mapping[str, Any], lengths: Sequence[int]) -> list[str]:
    """Return the stretches' names, a block's as ``forward RUN.first`` or ``forward RUN.last``."""
    found: dict[str, None] = {}
    for name in stretches:
        way, _, place = name.partition(" ")
        if "." not in place:
            found[name] = None
            continue
        run, _, index = place.partition(".")
        if int(index) == 0:
            found[f"{way} {run}.first"] = None
        if int(index) == lengths[int(run)] - 1:
            found[f"{way} {run}.last"] = None
    return list(found)


def _reader(part: str, name: str, kind: str) -> Any:
    """Return what reads a named stretch's peak in a trace with so many blocks of each run."""
    way, _, place = name.partition(" ")
    run, _, which = place.partition(".")

    def read(trace: Mapping[str, Any], lengths: Sequence[int]) -> float:
        own = f"{way} {run}.{0 if which == 'first' else lengths[int(run)] - 1}" if which else name
        return float(getattr(trace[part][own], kind))

    return read


def _lines(peaks: Sequence[Mapping[str, Mapping[str, float]]]) -> tuple[Stretch, ...]:
    return tuple(Stretch(name, *(_line([one[name][kind] for one in peaks]) for kind in _KINDS)) for name in peaks[0])


def _line(values: Sequence[float]) -> Line:
    """Return the line through the values at the traced numbers of rows."""
    per_row = (values[1] - values[0]) / (_ROWS[1] - _ROWS[0])
    return Line(values[0] - per_row * _ROWS[0], per_row)
