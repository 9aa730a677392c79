"""Weights & Biases, started late and without ever waiting for a key, a prompt or a network."""

from __future__ import annotations

import contextlib
import netrc
import os
import re
import shlex
import socket
import threading
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from launcher.recipe.schema import WandbSection
from launcher.rundir import RunDir

_REACH_SECONDS = 2.0


class Tracker(Protocol):
    """Where rows of progress go besides the run directory."""

    def log(self, row: dict[str, Any]) -> None:
        """Take a row of progress.jsonl."""
        ...

    def log_table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Take a table: rows with the same keys."""
        ...

    def alert(self, title: str, text: str) -> None:
        """Tell the run's owner, by mail or chat as they have it set up there."""
        ...

    def finish(self, *, summary: dict[str, Any], report: Path | None, predictions: Path | None) -> str:
        """End the run and return a line for people (how to sync, where to look), or nothing."""
        ...


class NoTracker:
    """Takes everything and does nothing."""

    def log(self, row: dict[str, Any]) -> None:
        """Do nothing."""

    def log_table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Do nothing."""

    def alert(self, title: str, text: str) -> None:
        """Do nothing."""

    def finish(self, *, summary: dict[str, Any], report: Path | None, predictions: Path | None) -> str:
        """Return no line."""
        return ""


class WandbTracker:
    """A W&B run with the run directory's id, begun at the first row so that it does not delay the first step."""

    def __init__(
        self, section: WandbSection, run: RunDir, *, mode: str, config: dict[str, Any], alerts: bool = False
    ) -> None:
        self.section = section
        # What is uploaded later would come too late.
        self._alerts = alerts and mode == "online"
        self.run = run
        self.config = config
        self.mode = mode
        self._wandb_run: Any = None

    def log(self, row: dict[str, Any]) -> None:
        """Log a row under ``train/global_step``; replayed steps after a resume then overlay each other."""
        self._start()
        self._wandb_run.log(wandb_row(row))

    def log_table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Log a table under ``name``."""
        import wandb

        self._start()
        columns: list[str | int] = [*rows[0]]
        self._wandb_run.log({name: wandb.Table(columns=columns, data=[list(row.values()) for row in rows])})

    def alert(self, title: str, text: str) -> None:
        """Send an alert, where they are wanted and the server is reached."""
        if self._alerts:
            self._start()
            self._wandb_run.alert(title=f"{self.run.id}: {title}", text=text)

    def finish(self, *, summary: dict[str, Any], report: Path | None, predictions: Path | None) -> str:
        """Write the final metrics as the summary, the report as an artifact, and end the run."""
        import wandb

        self._start()
        self._wandb_run.summary.update(summary)
        if report is not None:
            artifact = wandb.Artifact(f"report-{safe_id(self.run.id)}", type="report")
            artifact.add_file(str(report))
            self._wandb_run.log_artifact(artifact)
        if predictions is not None and self.section.log_predictions:
            import pandas as pd

            self._wandb_run.log({"predictions": wandb.Table(dataframe=pd.read_parquet(predictions))})
        folder, url = Path(self._wandb_run.dir).parent, self._wandb_run.url
        self._wandb_run.finish()
        self._alerts = False
        return (
            f"W&B: offline; to upload: wandb sync {shlex.quote(str(folder))}"
            if self.mode == "offline"
            else f"W&B: {url}"
        )

    def _start(self) -> None:
        if self._wandb_run is not None:
            return
        # wandb itself fails on a mode that is exported but empty; ours is given below.
        if os.environ.get("WANDB_MODE") == "":
            del os.environ["WANDB_MODE"]
        import wandb

        self._wandb_run = wandb.init(
            id=safe_id(self.run.id),
            name=self.run.id,
            resume="allow",
            project=self.section.project,
            entity=self.section.entity,
            group=self.section.group,
            tags=self.section.tags,
            mode=self.mode,  # type: ignore[arg-type]
            dir=str(self.run.path),
            config=self.config,
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=False),
        )
        self._wandb_run.define_metric("train/global_step")
        self._wandb_run.define_metric("*", step_metric="train/global_step")


def start_tracker(
    section: WandbSection | None, run: RunDir, *, rank: int, config: dict[str, Any], alerts: bool = False
) -> Tracker:
    """Return the tracker of a rank: only rank 0 has one. ``alerts``: whether it tells the run's owner how attempts end."""
    if section is None or rank != 0:
        return NoTracker()
    mode = choose_mode(section)
    return NoTracker() if mode == "disabled" else WandbTracker(section, run, mode=mode, config=config, alerts=alerts)


def choose_mode(section: WandbSection) -> str:
    """Return online, offline or disabled. ``auto``: WANDB_MODE if it is set, else online with a key and a reachable server."""
    if section.mode != "auto":
        return section.mode
    named = os.environ.get("WANDB_MODE", "")
    if named in ("online", "offline", "disabled"):
        return named
    return "online" if has_key() and can_reach(server()) else "offline"


def server() -> str:
    """Return the address of the W&B server."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def has_key() -> bool:
    """Whether a key is at hand; it is not read further."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(server()).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def can_reach(url: str) -> bool:
    """Whether the server takes a connection within two seconds, looking up its name included."""
    parsed = urlparse(url)
    address = (parsed.hostname or "", parsed.port or (443 if parsed.scheme == "https" else 80))
    reached = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=_REACH_SECONDS).close()
            reached.set()

    # A dead name server, or a name with several addresses, would take longer than any socket's own limit.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(_REACH_SECONDS)
    return reached.is_set()


def safe_id(name: str) -> str:
    """Return ``name`` without the characters that W&B refuses in an id."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)


def wandb_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of progress.jsonl under W&B's names: ``train/``, ``eval/`` and ``lr/``."""
    named = {}
    for key, value in row.items():
        if key in ("attempt", "time", "eta_seconds") or value is None:
            continue
        if key == "step":
            named["train/global_step"] = value
        elif key.startswith("eval_"):
            named["eval/" + key.removeprefix("eval_")] = value
        elif "/" in key:
            named[key] = value
        else:
            named[f"train/{key}"] = value
    return named
