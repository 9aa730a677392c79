"""A model without its frozen prefix: small modules that take the prefix's place and give out stored states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from launcher.strategies.prefix import CachePlan

STATES = "prefix_states"
"""Name of the stored states in a batch."""


class Source(nn.Module):
    """Takes the place of an entry into the model; gives out the states that the model's hook has put in."""

    states: torch.Tensor | None = None

    def take(self) -> torch.Tensor:
        """Return the states of this forward pass; each is given out once."""
        states, self.states = self.states, None
        assert states is not None, f"the batch has no {STATES}"
        return states


class _Entry(Source):
    def __init__(self, *, returns_tuple: bool) -> None:
        super().__init__()
        self.returns_tuple = returns_tuple

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self.take(),) if self.returns_tuple else self.take()


class Skipped(nn.Module):
    """A frozen block whose work is stored: what comes in goes out."""

    def __init__(self, returns_tuple: bool) -> None:
        super().__init__()
        self.returns_tuple = returns_tuple

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what came in, in the form of a block's output."""
        return (hidden_states,) if self.returns_tuple else hidden_states


class _StoredBackbone(Source):
    """A whole backbone whose work is stored: its output is rebuilt with what the head reads."""

    def __init__(self, plan: CachePlan) -> None:
        super().__init__()
        self.reads = plan.reads

    def forward(self, input_ids: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        states = self.take()
        pooled = states[:, 0] if self.reads == "pooler" else None
        if self.reads == "last" and input_ids is not None:
            # The head looks for the last token by itself: it finds the same vector wherever that is.
            states = states.expand(-1, input_ids.shape[1], -1)
        # Has the fields of every family's output.
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=states, pooler_output=pooled)


def source_for(plan: CachePlan) -> Source:
    """Return the module that takes the first of ``places``."""
    if plan.whole_backbone:
        return _StoredBackbone(plan)
    returns_tuple = plan.family.returns_tuple and plan.family.entry.startswith(plan.family.blocks)
    return _Entry(returns_tuple=returns_tuple)


def places(model: Any, plan: CachePlan) -> Iterator[tuple[nn.Module, str]]:
    """Yield (parent, name) of the modules that make up the prefix; the first is where the stored states enter."""
    if plan.whole_backbone:
        yield model, model.base_model_prefix
        return
    backbone = getattr(model, model.base_model_prefix)
    family = plan.family
    entry, _, name = family.entry.rpartition(".")
    yield backbone.get_submodule(entry), name
    blocks = backbone.get_submodule(family.blocks)
    enters_at_block = family.entry.startswith(f"{family.blocks}.")
    for number in range(int(enters_at_block), plan.blocks):
        yield blocks, str(number)
