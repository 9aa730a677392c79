"""``precision: auto`` on a processor: measured once, kept, and never a reason to fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import tiny

from launcher.planning import cpu_precision, hardware
from launcher.planning.hardware import detect_hardware, hardware_for


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path / "launcher/cpu-precision.json"


@pytest.fixture
def measurements(monkeypatch):
    """The processes that measure, counted; they print what ``found`` holds."""
    made: list[list[str]] = []
    found = {"fp32": 2.0, "bf16": 1.0}

    def run(command, **_):
        made.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=f"a warning\n{json.dumps(found)}\n")

    monkeypatch.setattr(cpu_precision.subprocess, "run", run)
    return made, found


def test_it_is_measured_once(empty_cache, measurements):
    made, _ = measurements
    assert hardware_for(tiny.recipe(precision="auto")).cpu_has_fast_bf16 is True
    assert hardware_for(tiny.recipe(precision="auto")).cpu_has_fast_bf16 is True
    assert detect_hardware().cpu_has_fast_bf16 is True
    assert len(made) == 1 and empty_cache.is_file()


@pytest.mark.parametrize("seconds, is_fast", [((2.0, 1.0), True), ((1.05, 1.0), False), ((1.0, 4.0), False)])
def test_bf16_has_to_be_worth_it(empty_cache, measurements, seconds, is_fast):
    _, found = measurements
    found.update(fp32=seconds[0], bf16=seconds[1])
    assert hardware_for(tiny.recipe(precision="auto")).cpu_has_fast_bf16 is is_fast


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recipe_that_names_its_precision_needs_no_measurement(empty_cache, measurements, precision):
    hardware_for(tiny.recipe(precision=precision))
    assert not measurements[0]


def test_another_torch_or_processor_is_measured_anew(empty_cache, measurements, monkeypatch):
    hardware_for(tiny.recipe(precision="auto"))
    monkeypatch.setattr(cpu_precision, "_version", lambda _: "99.0")
    assert cpu_precision.kept_answer() is None
    hardware_for(tiny.recipe(precision="auto"))
    assert len(measurements[0]) == 2
    assert len(json.loads(empty_cache.read_text())) == 2, "the first finding stays: homes are shared between machines"


@pytest.mark.parametrize(
    "failure", [OSError("no"), subprocess.TimeoutExpired("x", 1), subprocess.CalledProcessError(1, "x")]
)
@pytest.mark.parametrize("flags, expected", [({"amx_bf16"}, True), ({"avx2"}, False)])
def test_where_it_cannot_be_measured_the_instructions_answer(empty_cache, monkeypatch, failure, flags, expected):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(cpu_precision.subprocess, "run", fail)
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: flags)
    assert hardware_for(tiny.recipe(precision="auto")).cpu_has_fast_bf16 is expected
    assert not empty_cache.exists(), "a failure is not kept"


def test_a_damaged_or_unwritable_cache_is_no_reason_to_stop(empty_cache, measurements):
    empty_cache.parent.mkdir(parents=True)
    empty_cache.write_text("{broken")
    assert hardware_for(tiny.recipe(precision="auto")).cpu_has_fast_bf16 is True
    empty_cache.unlink()
    empty_cache.mkdir()
    assert hardware_for(tiny.recipe(precision="auto")).cpu_has_fast_bf16 is True


def test_the_measurement_itself(monkeypatch):
    done = subprocess.run(
        [sys.executable, "-m", "launcher.planning.cpu_precision"], capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    seconds = json.loads(done.stdout.splitlines()[-1])
    assert set(seconds) == {"fp32", "bf16"} and all(0 < value < 60 for value in seconds.values())


def test_the_tests_themselves_have_a_fixed_answer():
    assert cpu_precision.kept_answer() is False
