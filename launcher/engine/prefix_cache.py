"""The frozen-prefix cache: what the frozen part of a model makes of each row, computed once and read in every epoch.

``launcher.engine.prefix_decision`` decides whether a run has one, and which. Here it is filled (``build_cache``), the model is
cut so that it starts from stored states (``PrefixCache.unload``), batches get those states (``PrefixCache.collator``), and
the model is made whole again (``PrefixCache.restore``). The parts of the model that still run are the library's own code,
which makes masks, positions and rotary tensors as it always does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.atomic import write_json
from launcher.contracts import TARGETS
from launcher.data.prepare import fingerprint_of
from launcher.data.sampling import evaluation_batches
from launcher.engine.half_weights import convert_weights, converted_to, inputs_for
from launcher.engine.loading import Rows
from launcher.engine.prefix_cut import STATES, Skipped, places, source_for
from launcher.engine.prefix_states import (
    Entries,
    in_memory,
    make_layout,
    read_parts,
    room_in,
    write_part,
)
from launcher.engine.ranks import barrier, rank_and_world, share
from launcher.plans import LaunchPlan
from launcher.strategies.prefix import CachePlan

Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
_BATCH_ROWS = 64


# --- the cache -----------------------------------------------------------------------------------------------------


@dataclass
class PrefixCache:
    """The states of all rows, and the way in and out of training with them."""

    plan: CachePlan
    key: str
    """sha256 of everything that the states depend on."""
    entries: Mapping[str, Entries]
    """Split -> its rows' states."""
    splits: Mapping[str, Any]
    folder: Path | None = None
    _cut: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)
    _hook: Any = None

    def collator(self, collate: Collate, split: Any) -> Collate:
        """Return ``collate`` with stored states in its batches while the model is cut, and as it is otherwise.

        ``split``: the data set whose rows are collated, one of ``splits`` itself.
        """
        if self._hook is None:
            return collate
        name = next((name for name, own in self.splits.items() if own is split), None)
        assert name is not None, "rows of this split are not cached; restore the model first"
        return _WithStates(collate, self.entries[name], self.plan)

    def unload(self, model: Any) -> None:
        """Cut ``model``, in place: it starts from stored states, and the weights of the prefix move to host memory.

        Names of the parameters that stay do not change. Every batch must then come from ``collator``.
        """
        assert self._hook is None
        source = source_for(self.plan)
        for parent, name in places(model, self.plan):
            old = getattr(parent, name)
            self._cut.append((parent, name, old.to("cpu")))
            setattr(parent, name, source if len(self._cut) == 1 else Skipped(self.plan.family.returns_tuple))

        def hand_over(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            source.states = kwargs.pop(STATES, None)
            return args, kwargs

        self._hook = model.register_forward_pre_hook(hand_over, with_kwargs=True)

    def restore(self, model: Any) -> None:
        """Make ``model`` whole again, in place, on the device and in the dtype in which it runs; a second call does nothing."""
        if self._hook is None:
            return
        device = next(model.parameters()).device
        for parent, name, old in reversed(self._cut):
            old.train(parent.training)
            setattr(parent, name, old.to(device))
        self._cut.clear()
        self._hook.remove()
        self._hook = None

    def remove(self) -> None:
        """Delete the cache's files, if it has any."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class _WithStates:
    """A collator that adds stored states, padded exactly as the rows' tokens are."""

    def __init__(self, collate: Collate, entries: Entries, plan: CachePlan) -> None:
        self.collate, self.entries, self.plan = collate, entries, plan

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the batch with ``prefix_states``: [rows, tokens, hidden], or [rows, 1, hidden] for one vector a row."""
        batch = self.collate(rows)
        states = torch.cat([self.entries[row["row_id"]] for row in rows])
        if self.plan.reads != "tokens":
            batch[STATES] = states.unsqueeze(1)
        elif "attention_mask" not in batch:
            batch[STATES] = states.view(len(rows), -1, states.shape[-1])
        else:
            real = batch["attention_mask"].bool()
            padded = states.new_zeros(*real.shape, states.shape[-1])
            padded[real] = states
            batch[STATES] = padded
        return batch


# --- filling it ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def build_cache(
    model: Any,
    splits: Mapping[str, Any],
    plan: CachePlan,
    *,
    collate: Collate,
    launch: LaunchPlan,
    fingerprint: str,
    device: Any,
    folder: Path,
    batch_rows: int = _BATCH_ROWS,
    on_batch: Callable[[int, int], None] | None = None,
) -> PrefixCache:
    """Return the states of all rows; every rank computes a share of them, and has all of them afterwards.

    The model is moved to ``device`` and runs in evaluation mode and in the run's precision. With ``store: disk`` a complete
    cache of the same key in ``folder`` is read instead; an incomplete one is made anew.

    Args:
        splits: name -> prepared rows with ``length``, in tokens.
        collate: the task's own: list of rows -> batch of tensors.
        fingerprint: of the prepared data, which covers the texts, the tokenizer and the preparation.
        folder: where files lie, in a folder named by the key.
        on_batch: told (batches done, batches in all) on this rank.

    Raises:
        InstallationError: the disk is full.
    """
    model.to(device)
    convert_weights(model, launch)
    key = share(lambda: cache_key(model, plan, launch=launch, fingerprint=fingerprint, device=device))
    target = folder / key[:32] if plan.store == "disk" else None
    filler = _Filler(model, plan, collate, launch, torch.device(device), batch_rows, on_batch)
    entries: dict[str, Entries] = {}
    was_training = model.training
    model.eval()
    try:
        for name, split in splits.items():
            entries[name] = filler.fill(split, target / name if target else None)
    finally:
        model.train(was_training)
    return PrefixCache(plan, key, entries, dict(splits), folder=target)


def cache_key(model: Any, plan: CachePlan, *, launch: LaunchPlan, fingerprint: str, device: Any) -> str:
    """Return the sha256 of all that the states depend on, the rows' own numbers apart."""
    digest = hashlib.sha256()
    backbone = getattr(model, model.base_model_prefix)
    blocks = backbone.get_submodule(plan.family.blocks)
    above = {id(tensor) for block in blocks[plan.blocks :] for tensor in block.parameters()}
    for name, tensor in backbone.named_parameters():
        # The blocks above the prefix do not count, nor does what trains.
        if id(tensor) not in above and not tensor.requires_grad:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    import transformers

    return fingerprint_of(
        {
            "weights": digest.hexdigest(),
            "configuration": model.config.to_json_string(use_diff=False),
            "cut": {"blocks": plan.blocks, "whole": plan.whole_backbone, "reads": plan.reads, **asdict(plan.family)},
            "data": fingerprint,
            "dtype": [str(model.dtype), launch.precision, launch.engine == "deepspeed"],
            "attention": model.config._attn_implementation,
            "device": torch.device(device).type,
            "versions": [torch.__version__, transformers.__version__],
        }
    )


@dataclass
class _Filler:
    """Runs the model over rows and keeps what the plan says."""

    model: Any
    plan: CachePlan
    collate: Collate
    launch: LaunchPlan
    device: torch.device
    batch_rows: int
    on_batch: Callable[[int, int], None] | None

    def fill(self, split: Any, folder: Path | None) -> Entries:
        """Return the entries of a split: read from ``folder`` where it is complete, else computed."""
        lengths = np.asarray(split["length"][:], dtype=np.int64)
        entry_lengths = lengths if self.plan.reads == "tokens" else np.ones_like(lengths)
        manifest = folder / "manifest.json" if folder else None
        if folder and manifest and share(manifest.is_file):
            facts = json.loads(manifest.read_text())
            batches = evaluation_batches(lengths, batch_size=facts["batch_rows"])
            return read_parts(folder, facts, make_layout(batches, entry_lengths, facts["ranks"]))
        rank, world = rank_and_world()
        batches = evaluation_batches(lengths, batch_size=self.batch_rows)
        layout = make_layout(batches, entry_lengths, world)
        # A rank without a share computes a row, to know the width and dtype of the others' states.
        computed = self._compute(Rows(split), batches[rank::world] or [batches[0][:1]])
        if folder is None:
            return Entries(in_memory(computed, layout.sizes, self.device), *layout.index)
        facts = {"ranks": world, "batch_rows": self.batch_rows, "sizes": layout.sizes}
        folder.mkdir(parents=True, exist_ok=True)
        with room_in(folder):
            shape = write_part(folder / f"part-{rank}.bin", computed, size=layout.sizes[rank])
        facts |= {"hidden": shape[0], "dtype": shape[1]}
        barrier()
        if rank == 0:
            write_json(folder / "manifest.json", facts)
        barrier()
        return read_parts(folder, facts, layout)

    def _compute(self, rows: Rows, batches: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        """Yield [entries, hidden] for each batch, on the host: the rows' entries one after the other, unpadded."""
        for done, numbers in enumerate(batches, start=1):
            batch = self.collate(rows.__getitems__([int(n) for n in numbers]))
            batch = {k: v.to(self.device) for k, v in batch.items() if k not in TARGETS}
            with self._captured() as captured, self._precision():
                self.model(**inputs_for(self.model, batch))
            yield _entries_of(captured[0], batch, self.model, self.plan).cpu()
            if self.on_batch is not None:
                self.on_batch(done, len(batches))

    @contextlib.contextmanager
    def _captured(self) -> Iterator[list[Any]]:
        """Give a list that gets what leaves the prefix in the next forward pass; blocks above it are passed over."""
        found: list[Any] = []
        backbone = getattr(self.model, self.model.base_model_prefix)
        blocks = backbone.get_submodule(self.plan.family.blocks)
        above = {} if self.plan.whole_backbone else dict(enumerate(blocks[self.plan.blocks :], start=self.plan.blocks))
        last = backbone if self.plan.whole_backbone else blocks[self.plan.blocks - 1]
        hook = last.register_forward_hook(lambda module, args, output: found.append(output))
        for number in above:
            blocks[number] = Skipped(self.plan.family.returns_tuple)
        try:
            yield found
        finally:
            hook.remove()
            for number, block in above.items():
                blocks[number] = block

    def _precision(self) -> Any:
        """Compute as the run does: by autocast, except under DeepSpeed, which casts the weights."""
        if self.launch.half is None or converted_to(self.launch) is not None:
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.launch.half == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)


def _entries_of(output: Any, batch: Mapping[str, torch.Tensor], model: Any, plan: CachePlan) -> torch.Tensor:
    """Return [entries, hidden] of a batch from what left the prefix."""
    if plan.reads == "pooler":
        pooled: torch.Tensor = output["pooler_output"]
        return pooled
    states = output["last_hidden_state"] if plan.whole_backbone else output
    states = states[0] if isinstance(states, tuple) else states
    if plan.reads == "first":
        return states[:, 0]
    if plan.reads == "last":
        return states[torch.arange(len(states), device=states.device), _last_token(batch["input_ids"], model)]
    mask = batch.get("attention_mask")
    return states[mask.bool()] if mask is not None else states.flatten(0, 1)


def _last_token(input_ids: torch.Tensor, model: Any) -> Any:
    """Return [rows], the place that transformers' sequence heads read: the last token that is not the padding token.

    It need not be the last of the attention mask: a text may itself end with the padding token.
    """
    padding = model.config.get_text_config().pad_token_id
    if padding is None:
        return -1
    places = torch.arange(input_ids.shape[-1], device=input_ids.device, dtype=torch.int32)
    return (places * (input_ids != padding).to(torch.int32)).argmax(-1)
