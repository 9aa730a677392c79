"""The catalogue of GPUs: names, near misses, and figures that cannot be of another card."""

from __future__ import annotations

import pytest

from launcher.errors import RecipeError
from launcher.planning.gpus import GPUS, find_gpu, hardware_for, spec_of
from launcher.plans import Gpu


@pytest.mark.parametrize(
    "said, name",
    [("h100-80gb", "h100-80gb"), ("H100", "h100-80gb"), ("NVIDIA L4", "l4-24gb"), ("rtx_4090", "rtx-4090-24gb"),
     ("h200", "h200-141gb"), ("t4", "t4-16gb")],
)  # fmt: skip
def test_a_gpu_is_found_by_its_name_or_the_start_of_it(said, name):
    assert find_gpu(said).name == name


def test_a_name_that_fits_several_lists_them():
    with pytest.raises(RecipeError, match=r"a100-80gb, a100-40gb") as caught:
        find_gpu("a100")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "said, near", [("h10-80gb", "h100-80gb"), ("a100-80", "a100-80gb"), ("rtx4090-24gb", "rtx-4090-24gb")]
)
def test_a_near_miss_is_answered(said, near):
    with pytest.raises(RecipeError, match=f"did you mean '{near}'"):
        find_gpu(said)


def test_a_name_like_none_lists_all():
    with pytest.raises(RecipeError, match="t4-16gb"):
        find_gpu("abacus")


def test_figures_are_plausible():
    for spec in GPUS.values():
        nominal = int(spec.name.rsplit("-", 1)[1].removesuffix("gb"))
        assert 0.88 * nominal < spec.memory_bytes / 2**30 < nominal, spec.name
        assert spec.flops["fp16"] >= 1.5 * spec.flops["fp32"], spec.name
        assert ("bf16" in spec.flops) == (spec.compute_capability >= 8.0), spec.name
        assert ("tf32" in spec.flops) == (spec.compute_capability >= 8.0), spec.name
        assert ("fp8" in spec.flops) == (spec.compute_capability >= 8.9), spec.name


def test_what_a_card_lacks_runs_at_its_fp32_rate():
    assert GPUS["v100-16gb"].peak("bf16") == 15.7e12 and GPUS["h100-80gb"].peak("bf16") == 989.4e12


@pytest.mark.parametrize(
    "card, name",
    [(Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, 9.0), "h100-80gb"), (Gpu("NVIDIA H100 PCIe", 81559 * 2**20, 9.0), "h100-pcie-80gb"),
     (Gpu("NVIDIA A100-SXM4-40GB", 40960 * 2**20, 8.0), "a100-40gb"), (Gpu("NVIDIA A100 80GB PCIe", 81920 * 2**20, 8.0), "a100-80gb"),
     (Gpu("NVIDIA L40S", 46068 * 2**20, 8.9), "l40s-48gb"), (Gpu("Tesla T4", 15360 * 2**20, 7.5), "t4-16gb"),
     (Gpu("NVIDIA RTX A6000", 49140 * 2**20, 8.6), "a6000-48gb"), (Gpu("NVIDIA GeForce RTX 4090", 24564 * 2**20, 8.9), "rtx-4090-24gb")],
)  # fmt: skip
def test_a_card_that_is_here_is_recognised(card, name):
    found = spec_of(card)
    assert found is not None and found.name == name


def test_an_unknown_card_is_not_taken_for_another():
    assert spec_of(Gpu("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9856 * 2**20, 9.0)) is None
    assert spec_of(Gpu("AMD Instinct MI300X", 192 * 2**30, 9.4)) is None


def test_a_machine_of_the_catalogue():
    hardware = hardware_for(find_gpu("h100"), 8)
    assert len(hardware.gpus) == 8 and hardware.gpus[0].compute_capability == 9.0 and hardware.memory_bytes == 0
