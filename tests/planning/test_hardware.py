from __future__ import annotations

import subprocess

import pytest

from launcher.planning import hardware
from launcher.planning.hardware import detect_hardware
from launcher.plans import Gpu

SMI = "NVIDIA H100 80GB HBM3, 81559, 9.0\nTesla T4, 15360, 7.5\n"


@pytest.fixture
def two_cards(monkeypatch):
    monkeypatch.setattr(hardware.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    done = subprocess.CompletedProcess([], 0, stdout=SMI)
    monkeypatch.setattr(hardware.subprocess, "run", lambda *_, **__: done)


@pytest.mark.parametrize(
    "selection, names",
    [
        (None, ["NVIDIA H100 80GB HBM3", "Tesla T4"]), ("", []), ("1", ["Tesla T4"]), ("1,0", ["Tesla T4", "NVIDIA H100 80GB HBM3"]),
        ("-1", []), ("0,9,1", ["NVIDIA H100 80GB HBM3"]), ("0, 1", ["NVIDIA H100 80GB HBM3", "Tesla T4"]),
    ],
)  # fmt: skip
def test_visible_cards_are_those_that_cuda_would_see(two_cards, monkeypatch, selection, names):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if selection is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", selection)
    assert [gpu.name for gpu in detect_hardware().gpus] == names


def test_a_cards_facts(two_cards, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert detect_hardware().gpus[1] == Gpu("Tesla T4", 15360 * 2**20, 7.5)


@pytest.mark.parametrize(
    "error", [OSError("no"), subprocess.TimeoutExpired("nvidia-smi", 20), subprocess.CalledProcessError(9, "x")]
)
def test_a_driver_that_does_not_answer_means_no_card(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hardware.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(hardware.subprocess, "run", fail)
    assert detect_hardware().gpus == ()


def test_odd_output_of_the_driver_means_no_card(monkeypatch):
    """Some cards report no capability or memory: [N/A]."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    done = subprocess.CompletedProcess([], 0, stdout="Some card, [N/A], [N/A]\nNo devices were found\n")
    monkeypatch.setattr(hardware.subprocess, "run", lambda *_, **__: done)
    assert isinstance(detect_hardware().gpus, tuple)


def test_this_machine():
    found = detect_hardware()
    assert found.cpu_count >= 1 and found.memory_bytes > 2**28
