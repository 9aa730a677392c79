"""GPUs by name, for planning runs on machines that are not at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.errors import Problem, RecipeError
from launcher.plans import Gpu, Hardware
from launcher.registry import suggest


@dataclass(frozen=True)
class GpuSpec:
    """What one kind of GPU has."""

    name: str
    """Our name: model and nominal memory."""
    title: str
    """How its driver calls it."""
    memory_bytes: int
    """All memory that CUDA reports for it: less than the nominal size by what firmware, driver and error correction take."""
    compute_capability: float
    flops: Mapping[str, float]
    """Precision -> peak FLOP/s of dense matrix products, without structured sparsity. bf16 is missing where there is none."""
    link_bytes_per_second: float
    """To the other GPUs of its machine, both directions together, as data sheets give it: NVLink, else PCI Express."""

    def peak(self, precision: str) -> float:
        """Return the peak FLOP/s in a precision of ours; what a GPU does not have runs at its fp32 rate."""
        return self.flops.get(precision, self.flops["fp32"])

    def as_gpu(self) -> Gpu:
        """Return one such card, as a driver would report it."""
        return Gpu(self.title, self.memory_bytes, self.compute_capability)


_GIB = 2**30
_TERA = 1e12


def _spec(
    name: str, title: str, gib: float, capability: float, *, fp32: float, tf32: float | None, half: float,
    bf16: bool = True, fp8: float | None = None, link: float,
) -> GpuSpec:  # fmt: skip
    """Make a row; memory in GiB as CUDA reports it, rates in TFLOP/s, ``link`` in GB/s."""
    rates = {"fp32": fp32, "tf32": tf32, "fp16": half, "bf16": half if bf16 else None, "fp8": fp8}
    flops = {precision: rate * _TERA for precision, rate in rates.items() if rate is not None}
    return GpuSpec(name, title, int(gib * _GIB), capability, flops, link * 1e9)


# Rates: NVIDIA's data sheets of each card and its architecture white papers (Volta, Turing, Ampere GA100 and GA102, Ada,
# Hopper, Blackwell). Data sheets that give rates "with sparsity" are halved. RTX cards: fp16 and bf16 with fp32 accumulation,
# which is what training uses. Memory: the total capacity that PyTorch prints for the card, which is cudaMemGetInfo's.
_SPECS = (
    _spec("b200-180gb", "NVIDIA B200", 178.3, 10.0, fp32=75, tf32=1125, half=2250, fp8=4500, link=1800),
    _spec("h200-141gb", "NVIDIA H200", 139.8, 9.0, fp32=66.9, tf32=494.7, half=989.4, fp8=1978.9, link=900),
    _spec("h100-80gb", "NVIDIA H100 80GB HBM3", 79.1, 9.0, fp32=66.9, tf32=494.7, half=989.4, fp8=1978.9, link=900),
    _spec("h100-pcie-80gb", "NVIDIA H100 PCIe", 79.1, 9.0, fp32=51.2, tf32=378, half=756, fp8=1513, link=128),
    _spec("h100-nvl-94gb", "NVIDIA H100 NVL", 93.0, 9.0, fp32=60, tf32=417.5, half=835.5, fp8=1670.5, link=600),
    _spec("a100-80gb", "NVIDIA A100-SXM4-80GB", 79.1, 8.0, fp32=19.5, tf32=156, half=312, link=600),
    _spec("a100-40gb", "NVIDIA A100-SXM4-40GB", 39.4, 8.0, fp32=19.5, tf32=156, half=312, link=600),
    _spec("l40s-48gb", "NVIDIA L40S", 44.4, 8.9, fp32=91.6, tf32=183, half=362, fp8=733, link=64),
    _spec("rtx-6000-ada-48gb", "NVIDIA RTX 6000 Ada Generation", 47.4, 8.9, fp32=91.1, tf32=182, half=364, fp8=728, link=64),
    _spec("a40-48gb", "NVIDIA A40", 44.4, 8.6, fp32=37.4, tf32=74.8, half=149.7, link=64),
    _spec("a6000-48gb", "NVIDIA RTX A6000", 47.4, 8.6, fp32=38.7, tf32=77.4, half=154.8, link=64),
    _spec("l4-24gb", "NVIDIA L4", 22.0, 8.9, fp32=30.3, tf32=60, half=121, fp8=242, link=64),
    _spec("a10g-24gb", "NVIDIA A10G", 22.0, 8.6, fp32=31.5, tf32=35, half=70, link=64),
    _spec("rtx-4090-24gb", "NVIDIA GeForce RTX 4090", 23.6, 8.9, fp32=82.6, tf32=82.6, half=165.2, fp8=330.3, link=64),
    _spec("rtx-3090-24gb", "NVIDIA GeForce RTX 3090", 23.6, 8.6, fp32=35.6, tf32=35.6, half=71, link=64),
    _spec("v100-32gb", "Tesla V100-SXM2-32GB", 31.7, 7.0, fp32=15.7, tf32=None, half=125, bf16=False, link=300),
    _spec("v100-16gb", "Tesla V100-SXM2-16GB", 15.7, 7.0, fp32=15.7, tf32=None, half=125, bf16=False, link=300),
    _spec("t4-16gb", "Tesla T4", 14.6, 7.5, fp32=8.1, tf32=None, half=65, bf16=False, link=32),
)  # fmt: skip

GPUS: dict[str, GpuSpec] = {spec.name: spec for spec in _SPECS}


def find_gpu(name: str) -> GpuSpec:
    """Return the GPU of a name; the start of a name suffices where it fits one GPU.

    Raises:
        RecipeError: no such GPU, or several; the nearest are named.
    """
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-")
    if wanted in GPUS:
        return GPUS[wanted]
    begun = [known for known in GPUS if known.startswith(f"{wanted}-")]
    # A hundred means the usual one: "h100" is not the PCIe card, of which the name says more.
    plain = [known for known in begun if re.fullmatch(rf"{re.escape(wanted)}-\d+gb", known)]
    if len(plain or begun) == 1:
        return GPUS[(plain or begun)[0]]
    near = suggest(wanted, GPUS)
    hint = f"one of {', '.join(plain or begun)}" if begun else f"did you mean {near!r}?" if near else ""
    remedy = "; ".join(filter(None, [hint, f"the known ones are {', '.join(GPUS)}" if not begun else ""]))
    what = "fits several GPUs" if begun else "is not a GPU of the catalogue"
    raise RecipeError([Problem("command line", f"--gpu {name} {what}", remedy)])


def spec_of(gpu: Gpu) -> GpuSpec | None:
    """Return what the catalogue says of a card that is here, told by its name and memory; None where it has none like it."""
    words = set(re.findall(r"[a-z0-9]+", gpu.name.lower()))
    alike = [spec for spec in _SPECS if _model(spec) <= words and 0.8 < gpu.memory_bytes / spec.memory_bytes < 1.25]
    return max(alike, key=lambda spec: len(_model(spec)), default=None)


def _model(spec: GpuSpec) -> set[str]:
    """Return the words of a card's model: its name without the memory."""
    return set(spec.name.split("-")[:-1])


def hardware_for(spec: GpuSpec, gpus_per_node: int) -> Hardware:
    """Return a machine with such GPUs; its processor and memory are not known (0)."""
    return Hardware(gpus=(spec.as_gpu(),) * gpus_per_node, cpu_count=0, memory_bytes=0, cpu_has_fast_bf16=False)
