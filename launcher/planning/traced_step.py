"""One training step and one evaluation batch of a model without data, and what lives in memory at each of their stretches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from launcher.contracts import TARGETS
from launcher.planning.live_storage import LiveStorage, Peaks

Compute = Literal["fp32", "autocast_bf16", "autocast_fp16", "bf16", "fp16"]
"""``autocast_*``: weights in fp32, computed with under autocast; ``bf16``, ``fp16``: the weights themselves are."""

LOSS_BEGINS = "head"
BACKWARD_BEGINS = "backward"


@dataclass(frozen=True)
class StepPeaks:
    """Peaks by stretch. A block's stretch is named ``forward RUN.INDEX`` or ``backward RUN.INDEX``."""

    stretches: Mapping[str, Peaks]
    kept: int
    """Bytes that the forward pass keeps for the backward pass."""
    kept_by_blocks: int
    """Those that are there when the last block is through: without logits and loss."""


def weights_dtype(compute: Compute) -> Any:
    """Return the dtype that weights are converted to; None: they stay as they are."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(compute)


# --- a model without data --------------------------------------------------------------------------------------------


def without_data(model: Any, *, dtype: Any) -> Any:
    """Return ``model`` with fake tensors on the processor for its own; call it inside a FakeTensorMode. Changed in place.

    Args:
        dtype: what floating-point tensors are converted to; None: they stay as they are.
    """
    made: dict[int, Any] = {}

    def fake(tensor: Any) -> Any:
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=wanted)

    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                if id(tensor) not in made:
                    made[id(tensor)] = nn.Parameter(fake(tensor), requires_grad=tensor.requires_grad)
                module._parameters[name] = made[id(tensor)]
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = fake(tensor)
    return model


# --- what differs on a GPU -------------------------------------------------------------------------------------------


class AsOnGpu(TorchFunctionMode):
    """Lets a trace on the processor make the tensors that CUDA's operations would.

    Attention runs in one fused kernel, which keeps its output and a sum for each row (FlashAttention: Dao et al. 2022,
    arXiv:2205.14135), dropout keeps one byte for each element, and under autocast norms and softmax compute in fp32 (torch.amp's
    list of operations that do).
    """

    _IN_FP32 = (
        F.layer_norm,
        F.group_norm,
        F.softmax,
        F.log_softmax,
        F.cross_entropy,
        F.nll_loss,
        torch.softmax,
        torch.rsqrt,
    )

    def __init__(self, *, autocast: bool) -> None:
        super().__init__()
        self._autocast = autocast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the operations whose memory differs."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        if func is F.dropout:
            return _fused_dropout(*args, **kwargs)
        if self._autocast and func in self._IN_FP32:
            args = tuple(_in_fp32(value) for value in args)
            kwargs = {name: _in_fp32(value) for name, value in kwargs.items()}
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _in_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _fused_dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return torch.native_dropout(input, p, training)[0] if training and p > 0 else input


def _fused_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, is_causal, scale=scale)[0]


def _autocast(compute: Compute) -> AbstractContextManager[Any]:
    dtypes = {"autocast_bf16": torch.bfloat16, "autocast_fp16": torch.float16}
    return torch.autocast("cpu", dtype=dtypes[compute]) if compute in dtypes else nullcontext()


# --- a step ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traced:
    """A small model that is ready to be traced, and how its loss is computed."""

    model: Any
    runs: Sequence[Sequence[Any]]
    """Modules of the blocks, by run."""
    kept_in_eval: Sequence[Any]
    task: Any
    label_smoothing: float
    compute: Compute
    device: Literal["cpu", "cuda"]


def trace_training(traced: Traced, batch: Mapping[str, Any], mode: FakeTensorMode) -> StepPeaks:
    """Return what a forward and a backward pass of a batch (tensors without data) hold beside weights and batch."""
    model = traced.model
    model.train()
    for module in traced.kept_in_eval:
        module.eval()
    live = _live(traced, batch)
    with mode, live, _like_device(traced), _arrivals(model, live) as arrivals:
        live.begin("embeddings")
        with _marks(traced, live) as marks:
            loss = _loss(traced, batch, live)
            marks.forward_is_over = True
            live.begin(BACKWARD_BEGINS)
            loss.backward()
            del loss
    for tensor in model.parameters():
        tensor.grad = None
    found = live.recording
    return StepPeaks(found.peaks(arrivals), found.alive_at(BACKWARD_BEGINS), found.alive_at(LOSS_BEGINS))


@contextmanager
def _arrivals(model: Any, live: LiveStorage) -> Iterator[dict[int, int]]:
    """Fill a dictionary: place of a gradient's storage -> number of the operation after which it is whole."""
    found: dict[int, int] = {}

    def note(tensor: Any) -> None:
        found.update(dict.fromkeys(live.places([tensor.grad]), live.recording.operations))

    handles = [tensor.register_post_accumulate_grad_hook(note) for tensor in model.parameters() if tensor.requires_grad]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def trace_evaluation(traced: Traced, batch: Mapping[str, Any], mode: FakeTensorMode) -> StepPeaks:
    """Return what a batch of an evaluation holds beside weights and batch."""
    traced.model.eval()
    live = _live(traced, batch)
    with mode, live, _like_device(traced), torch.no_grad():
        live.begin("embeddings")
        with _marks(traced, live):
            inputs = {name: value for name, value in batch.items() if name not in TARGETS}
            outputs = _forward(traced, inputs)
            live.begin(LOSS_BEGINS)
            found = traced.task.row_outputs(outputs, batch).float()
            loss = _task_loss(traced, outputs, batch)
            del found, loss
    return StepPeaks(live.recording.peaks({}), 0, live.recording.alive_at(LOSS_BEGINS))


def _live(traced: Traced, batch: Mapping[str, Any]) -> LiveStorage:
    known = [*traced.model.parameters(), *traced.model.buffers(), *batch.values()]
    length = max((int(tensor.shape[-1]) for tensor in batch.values() if tensor.dim() > 1), default=1)
    return LiveStorage(known=known, answer=lambda func, args: _answer(func, args, length))


def _answer(func: Any, args: Any, length: int) -> Any:
    """Answer what only a tensor's data could: a condition holds, a number is the length, and one place in each row is chosen."""
    aten = torch.ops.aten
    tensor = args[0] if args else None
    if not isinstance(tensor, FakeTensor):
        return NotImplemented
    if func is aten._local_scalar_dense.default:
        return True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else length
    if func is aten.unique_consecutive.default:
        return tensor.new_empty(1), tensor.new_empty(0), tensor.new_empty(0)
    if func is aten.nonzero.default:
        return torch.empty((tensor.shape[0], tensor.dim()), dtype=torch.long)
    if func is aten.index.Tensor and any(_is_mask(index) for index in args[1]):
        chosen = [part for index in args[1] for part in (_places(index) if _is_mask(index) else [index])]
        return func(tensor, chosen)
    return NotImplemented


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool


def _places(mask: Any) -> list[Any]:
    return [torch.empty(mask.shape[0], dtype=torch.long) for _ in range(mask.dim())]


def recomputing_as(compute: Compute, device: str) -> Callable[[], tuple[Any, Any]]:
    """Return ``context_fn`` of torch's checkpoint: a mode is left while it handles the backward pass, and blocks run in that again."""
    return lambda: (nullcontext(), _as_on(compute, device))


def _like_device(traced: Traced) -> AbstractContextManager[Any]:
    return _as_on(traced.compute, traced.device)


def _as_on(compute: Compute, device: str) -> AbstractContextManager[Any]:
    return nullcontext() if device == "cpu" else AsOnGpu(autocast=compute.startswith("autocast"))


def _forward(traced: Traced, inputs: Mapping[str, Any]) -> Any:
    with _autocast(traced.compute):
        outputs = traced.model(**inputs)
    if traced.compute.startswith("autocast"):
        from accelerate.utils.operations import convert_to_fp32

        # What accelerate's wrapper around a model's forward pass does.
        outputs = convert_to_fp32(outputs)
    return outputs


def _loss(traced: Traced, batch: Mapping[str, Any], live: LiveStorage) -> Any:
    inputs = {name: value for name, value in batch.items() if name not in TARGETS}
    outputs = _forward(traced, inputs)
    return _task_loss(traced, outputs, batch) / 2


def _task_loss(traced: Traced, outputs: Any, batch: Mapping[str, Any]) -> Any:
    targets = {name: batch[name] for name in TARGETS if name in batch}
    return traced.task.loss(outputs, targets, label_smoothing=traced.label_smoothing)


# --- where the stretches begin ---------------------------------------------------------------------------------------


@dataclass
class _Marks:
    forward_is_over: bool = False


@contextmanager
def _marks(traced: Traced, live: LiveStorage) -> Iterator[_Marks]:
    """Begin a stretch with each block: in the forward pass as it is called, in the backward pass as its output has a gradient."""
    marks, handles = _Marks(), []
    seen: set[str] = set()
    blocks = [(f"{r}.{i}", module) for r, run in enumerate(traced.runs) for i, module in enumerate(run)]

    def begin(label: str) -> None:
        if label not in seen:
            seen.add(label)
            live.begin(label)

    def on_call(name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            if marks.forward_is_over:
                return
            begin(f"forward {name}")
            entering = _first_tensor((args, kwargs))
            if name == blocks[0][0] and entering is not None and entering.requires_grad:
                entering.register_hook(lambda grad: begin("backward embeddings"))

        return hook

    def on_return(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            leaving = _first_tensor(output)
            if marks.forward_is_over:
                return
            if leaving is not None and leaving.requires_grad:
                leaving.register_hook(lambda grad: begin(f"backward {name}"))
            if name == blocks[-1][0]:
                begin(LOSS_BEGINS)

        return hook

    for name, module in blocks:
        handles.append(module.register_forward_pre_hook(on_call(name), with_kwargs=True))
        handles.append(module.register_forward_hook(on_return(name)))
    try:
        yield marks
    finally:
        for handle in handles:
            handle.remove()
        if LOSS_BEGINS not in seen:
            begin(LOSS_BEGINS)


def _first_tensor(values: Any) -> Any:
    from torch.utils._pytree import tree_leaves

    found = (value for value in tree_leaves(values) if isinstance(value, torch.Tensor) and value.is_floating_point())
    return next(found, None)
