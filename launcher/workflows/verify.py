"""Whether a saved model is the one that was trained: loaded in a process of its own, and held to what the live model gave.

python -m launcher.workflows.verify MODEL_DIR PROBE.json      (0: it is; 1: it is not; the findings are printed)

A probe is PROBE.json (how the live model computed, and a digest of every tensor that was to be saved) and PROBE.safetensors
beside it (inputs, and the live model's logits for them). A run leaves its own in ``attempts/N/saved_model/``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.atomic import write_json
from launcher.engine.checkpoint_files import MANIFEST
from launcher.errors import SavedModelDiffers
from launcher.launching.processes import die_with_parent
from launcher.rundir import RunDir

RESULT = "result.json"

_POLL_SECONDS = 0.05
_NAMED = 5
# How long the live model's memory on a GPU may take to be given back.
_ROOM_SECONDS = 30.0
# What a forward pass of a few short rows needs beside the weights.
_ROOM_BYTES = 2**30


@dataclass(frozen=True)
class AdapterProbe:
    """The adapters of a run, to be checked on the pretrained model as well."""

    folder: str
    base: str
    """Folder or hub id of the pretrained model."""
    revision: str | None
    tolerance: float
    digests: Mapping[str, str]
    """Name -> digest of what trained, under PEFT's names."""


@dataclass(frozen=True)
class Probe:
    """What the live model was given, and how it computed."""

    rows: int
    precision: str
    """The run's."""
    architecture: str
    """Name of transformers' class."""
    dtype: str
    """Type of the saved weights, by torch's name."""
    autocast: str | None
    """Type of torch.autocast around the forward pass; None: there was none."""
    device: str
    attention: str | dict[str, str] | None
    """transformers' attn_implementation; a mapping where a part of the model, such as a detector's backbone, has another."""
    threads: int
    """Of torch on the processor."""
    tolerance: float
    """Largest difference of a logit from the live model's."""
    digests: Mapping[str, str]
    """Name -> digest of every tensor that was to be saved."""
    adapter: AdapterProbe | None = None
    trust_remote_code: bool = False

    @classmethod
    def read(cls, path: Path) -> Probe:
        """Read back what ``write_json(path, asdict(probe))`` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        adapter = values.pop("adapter")
        return cls(**values, adapter=None if adapter is None else AdapterProbe(**adapter))


@dataclass(frozen=True)
class Finding:
    """How one of a run's folders compares with the live model."""

    largest_difference: float | None
    """Between two logits; None: there are none to compare, or they are not finite."""
    tolerance: float
    differing_tensors: tuple[str, ...] = ()
    """Names whose values are not what was to be saved."""
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is the trained model."""
        return not self.describe()

    def describe(self) -> str:
        """Return what is wrong, in words; "" where nothing is."""
        parts = [self.error] if self.error else []
        if self.differing_tensors:
            more = len(self.differing_tensors) - _NAMED
            names = ", ".join(self.differing_tensors[:_NAMED])
            parts.append(f"has not the trained values in {names}" + (f" and {more} more" if more > 0 else ""))
        if not self.error and (self.largest_difference is None or self.largest_difference > self.tolerance):
            found = "are not finite" if self.largest_difference is None else f"differ by {self.largest_difference:.2g}"
            parts.append(f"its logits {found} (tolerance {self.tolerance:.1g})")
        return "; ".join(parts)


# --- what both processes do ------------------------------------------------------------------------------------------


def digest(tensor: Any) -> str:
    """Return a digest of a tensor's shape and values; the same numbers have the same one in every floating type."""
    import torch

    values = tensor.detach().cpu()
    if values.is_floating_point():
        values = values.to(torch.float32)
    content = values.contiguous().reshape(-1).view(torch.uint8).numpy()
    found = hashlib.sha256(str(list(tensor.shape)).encode())
    found.update(memoryview(content))
    return found.hexdigest()[:32]


def digests(state: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> digest of the tensors in ``state``."""
    return {name: digest(tensor) for name, tensor in state.items() if hasattr(tensor, "detach")}


def logits_in(outputs: Mapping[str, Any]) -> Any:
    """Return the logits among a model's outputs; those of an answer's two ends as one tensor, [rows, tokens, 2]."""
    import torch

    if "logits" in outputs:
        return outputs["logits"]
    return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)


def logits_of(model: Any, batches: Sequence[Mapping[str, Any]], places: Sequence[Any]) -> Any:
    """Return float32 [places, outputs] on the CPU: the logits of ``batches`` at ``places``.

    Args:
        model: in evaluation mode.
        batches: inputs on the model's device.
        places: for each batch, int64 numbers of its rows or, where a row has logits for every token, of its flattened tokens.
    """
    import torch

    from launcher.engine.half_weights import inputs_for

    found = []
    with torch.no_grad():
        for batch, chosen in zip(batches, places, strict=True):
            logits = logits_in(model(**inputs_for(model, batch)))
            found.append(logits.reshape(-1, logits.shape[-1])[chosen.to(logits.device)].float().cpu())
    return torch.cat(found)


def write_tensors(probe: Path, batches: Sequence[Mapping[str, Any]], places: Sequence[Any], logits: Any) -> None:
    """Write PROBE.safetensors beside PROBE.json."""
    from safetensors.torch import save_file

    tensors = {f"{i}.input.{name}": value.cpu() for i, batch in enumerate(batches) for name, value in batch.items()}
    tensors |= {f"{i}.places": chosen for i, chosen in enumerate(places)}
    save_file({name: value.contiguous() for name, value in {**tensors, "logits": logits}.items()}, _tensors_of(probe))


def _read_tensors(probe: Path) -> tuple[list[dict[str, Any]], list[Any], Any]:
    from safetensors.torch import load_file

    tensors = load_file(_tensors_of(probe))
    count = sum(name.endswith(".places") for name in tensors)
    batches = [
        {name.removeprefix(f"{i}.input."): value for name, value in tensors.items() if name.startswith(f"{i}.input.")}
        for i in range(count)
    ]
    return batches, [tensors[f"{i}.places"] for i in range(count)], tensors["logits"]


def _tensors_of(probe: Path) -> Path:
    return probe.with_suffix(".safetensors")


# --- the fresh process -----------------------------------------------------------------------------------------------


def verify(model_dir: Path, probe_file: Path) -> dict[str, Any]:
    """Load a saved model, and its adapters on their base, and compare; return the findings as plain values.

    ``passed``, ``model`` and ``adapter`` (a Finding each, adapter may be None), ``rows``, ``tensors``, ``precision``, ``device``
    and ``seconds``.
    """
    started = time.time()
    probe = Probe.read(probe_file)
    _prepare_torch(probe)
    device = _device(probe, model_dir)
    model = _finding(lambda: _load_model(model_dir, probe), probe, probe_file, device, probe.tolerance, probe.digests)
    adapter = None
    if probe.adapter is not None:
        load, its = (lambda: _load_adapter(model_dir, probe)), probe.adapter
        adapter = _finding(load, probe, probe_file, device, its.tolerance, its.digests)
    return {
        "passed": model.passed and (adapter is None or adapter.passed),
        "model": asdict(model),
        "adapter": None if adapter is None else asdict(adapter),
        "rows": probe.rows,
        "precision": probe.precision,
        "device": device,
        "tensors": len(probe.digests),
        "seconds": round(time.time() - started, 3),
    }


def _prepare_torch(probe: Probe) -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(probe.threads)
    if probe.precision == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def _device(probe: Probe, model_dir: Path) -> str:
    """Return the live model's device; the processor where its GPU has no room left for the weights."""
    import torch

    if not probe.device.startswith("cuda") or not torch.cuda.is_available():
        return "cpu"
    weights = sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))
    ends = time.monotonic() + _ROOM_SECONDS
    while torch.cuda.mem_get_info(probe.device)[0] < 1.1 * weights + _ROOM_BYTES:
        if time.monotonic() > ends:
            return "cpu"
        time.sleep(_POLL_SECONDS)
    return probe.device


def _finding(
    load: Any, probe: Probe, probe_file: Path, device: str, tolerance: float, expected: Mapping[str, str]
) -> Finding:
    import torch

    batches, places, wanted = _read_tensors(probe_file)
    try:
        model, of = load()
        wrong = _differing(expected, digests({name: value for name, value in model.state_dict().items() if of(name)}))
        model = model.to(device).eval()
        with _as_live(probe, device):
            found = logits_of(model, [{k: v.to(device) for k, v in batch.items()} for batch in batches], places)
    except (MemoryError, torch.OutOfMemoryError):
        # That says nothing about the folder.
        raise
    except Exception as error:  # whatever a library says, a folder that does not load is the finding
        return Finding(None, tolerance, error=f"cannot be loaded: {type(error).__name__}: {error}".strip())
    if found.shape != wanted.shape:
        text = f"gives {list(found.shape)} logits where the trained model gave {list(wanted.shape)}"
        return Finding(None, tolerance, wrong, error=text)
    difference = float((found - wanted).abs().max())
    return Finding(difference if torch.isfinite(found).all() else None, tolerance, wrong)


def _differing(expected: Mapping[str, str], found: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)))


def _as_live(probe: Probe, device: str) -> AbstractContextManager[Any]:
    import torch

    if probe.autocast is None:
        return nullcontext()
    return torch.autocast(device.partition(":")[0], dtype=getattr(torch, probe.autocast))


def _load_model(folder: Path, probe: Probe) -> tuple[Any, Any]:
    """Return the model of ``folder``, and which of its tensors to compare: all."""
    return _from_pretrained(str(folder), probe), lambda name: True


def _load_adapter(model_dir: Path, probe: Probe) -> tuple[Any, Any]:
    """Return the pretrained model with the adapters on it, and which of its tensors to compare: what trained."""
    import torch
    from peft import PeftModel
    from transformers import AutoConfig

    assert probe.adapter is not None
    # The saved model's configuration has the labels; what the base lacks is in the adapter's folder.
    config = AutoConfig.from_pretrained(str(model_dir), trust_remote_code=probe.trust_remote_code)
    base = _from_pretrained(probe.adapter.base, probe, config=config, revision=probe.adapter.revision)
    model = PeftModel.from_pretrained(base, probe.adapter.folder)
    if probe.autocast is None:
        model = model.to(getattr(torch, probe.dtype))
    return model, probe.adapter.digests.__contains__


def _from_pretrained(place: str, probe: Probe, **options: Any) -> Any:
    import torch

    options |= {"dtype": getattr(torch, probe.dtype), "attn_implementation": probe.attention}
    # A tensor of another size is made anew, and its values then tell which one it is.
    options |= {"ignore_mismatched_sizes": True, "trust_remote_code": probe.trust_remote_code}
    return _model_class(place, probe).from_pretrained(place, **options)


def _model_class(place: str, probe: Probe) -> Any:
    """Return transformers' class or, where a model brings its own code, the Auto class that finds it."""
    import transformers

    found = getattr(transformers, probe.architecture, None)
    if found is not None:
        return found
    config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=probe.trust_remote_code)
    for auto, target in (getattr(config, "auto_map", None) or {}).items():
        if str(target).endswith(f".{probe.architecture}"):
            return getattr(transformers, auto)
    raise ValueError(f"neither transformers nor {place} has a class {probe.architecture}")


# --- what a run says of its model ------------------------------------------------------------------------------------


def describe(verification: Mapping[str, Any]) -> str:
    """Return a line about the findings in a saved model's manifest."""
    if verification["passed"] is None:
        return f"saved model not verified: {verification['reason']}"
    findings = findings_of(verification)
    if verification["passed"]:
        worst = max(finding.largest_difference or 0.0 for finding in findings.values())
        return (
            f"saved {' and '.join(findings)} verified in a process of its own: largest difference {worst:.1g} on "
            f"{verification['rows']} rows; {verification['tensors']} tensors equal"
        )
    wrong = (f"{name}/ {finding.describe()}" for name, finding in findings.items() if not finding.passed)
    return f"the saved model is not the trained one: {'; '.join(wrong)}"


def findings_of(verification: Mapping[str, Any]) -> dict[str, Finding]:
    """Return folder (model, adapter) -> what was found."""
    return {name: Finding(**verification[name]) for name in ("model", "adapter") if verification.get(name)}


def verification_of(run: RunDir) -> dict[str, Any] | None:
    """Return the findings in the manifest of a run's model; None: it has no manifest."""
    path = run.model / MANIFEST
    return json.loads(path.read_text())["verification"] if path.is_file() else None


def raise_if_it_differs(run: RunDir) -> None:
    """Raise SavedModelDiffers where the saved model was found not to be the trained one."""
    found = verification_of(run)
    if found is not None and found["passed"] is False:
        raise SavedModelDiffers(
            f"{describe(found)}; checkpoints and {run.model} are kept; `launcher resume {run.path}` saves and compares "
            f"anew, and what was compared lies in {run.saved_model(run.last_attempt)}"
        )


# --- the command -----------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Verify one folder; print and keep the findings."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    if options.wait:
        parent = os.getppid()
        die_with_parent()
        for name in options.warm:
            importlib.import_module(name)
        while not options.probe.exists():
            time.sleep(_POLL_SECONDS)
            if os.getppid() != parent:
                return 1
    found = verify(options.model, options.probe)
    write_json(options.probe.with_name(RESULT), found)
    print(json.dumps(found, indent=2))
    return 0 if found["passed"] else 1


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launcher.workflows.verify", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, help="folder of the saved model")
    parser.add_argument("probe", type=Path, help="PROBE.json")
    parser.add_argument(
        "--wait", action="store_true", help="wait for PROBE.json; end with the process that started this"
    )
    parser.add_argument("--warm", nargs="*", default=[], help="modules to import while waiting")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
