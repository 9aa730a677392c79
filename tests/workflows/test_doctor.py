from __future__ import annotations

import pytest

from launcher.workflows import doctor
from launcher.workflows.doctor import examine_machine

SECRET = "SecretMarkerOfAKey" * 2


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(doctor, "can_reach", lambda _: False)


def test_everything_that_was_asked_about_has_a_verdict_and_a_remedy():
    findings = {finding.name: finding for finding in examine_machine()}
    assert {
        "python",
        "torch",
        "transformers",
        "deepspeed",
        "processor",
        "ninja",
        "disk for runs",
        "W&B",
        "Slurm",
    } <= set(findings)
    assert any(name.startswith("hub") for name in findings)
    assert any(name.startswith("gpu") for name in findings)
    for finding in findings.values():
        assert finding.verdict in ("ok", "warning", "missing") and finding.found
        assert bool(finding.remedy) is (finding.verdict != "ok"), finding


def test_no_key_is_shown(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert SECRET not in repr(examine_machine())


def test_another_version_is_a_warning_and_a_missing_package_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "TESTED", {"pytest": "0.0.1", "no-such-package-at-all": "1.0"})
    verdicts = {finding.name: finding.verdict for finding in doctor._packages()}
    assert verdicts == {"pytest": "warning", "no-such-package-at-all": "missing"}


@pytest.mark.parametrize(
    ("script", "verdict", "found"),
    [
        ("echo slurm 22.05.8", "ok", "slurm 22.05.8"),
        (
            "echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1",
            "warning",
            "no cluster is configured",
        ),
    ],
    ids=["a-cluster", "no-cluster"],
)
def test_slurm_without_a_cluster_is_not_taken_for_one(tmp_path, monkeypatch, script, verdict, found):
    for name in ("sbatch", "sinfo"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (finding,) = [finding for finding in examine_machine() if finding.name == "Slurm"]
    assert finding.verdict == verdict and found in finding.found
