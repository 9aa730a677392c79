"""Write a run's report from the files of its directory alone."""

from __future__ import annotations

from launcher.rundir import RunDir


def write_report(run: RunDir) -> None:
    """Write report.html."""
