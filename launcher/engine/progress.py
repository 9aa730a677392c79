"""Progress of a run: rows for machines in progress.jsonl, a bar or plain lines for people, and the ledger of samples."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress as Bar, TaskID, TextColumn

from launcher.atomic import append_json
from launcher.engine.heartbeat import Heartbeat
from launcher.engine.tracking import Tracker
from launcher.rundir import RunDir


class Progress:
    """What one rank tells about its training. Only rank 0 speaks to people and trackers; every rank keeps a ledger."""

    def __init__(
        self,
        run: RunDir,
        *,
        attempt: int,
        rank: int,
        terminal: TextIO | None,
        tracker: Tracker,
        heartbeat: Heartbeat | None = None,
        counted: str = "tokens",
    ) -> None:
        """``counted``: what the work is counted in, for the speed that people are told."""
        self.run = run
        self.attempt = attempt
        self.rank = rank
        self.tracker = tracker
        self.terminal = terminal
        self.counted = counted
        self.heartbeat = heartbeat or Heartbeat()
        self.console = Console(file=terminal, highlight=False, soft_wrap=True) if terminal is not None else None
        self.total_steps = 0
        self.first_step = 0
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._ledger: list[str] = []
        self._started = time.monotonic()
        self._step_started = time.monotonic()
        self._busy = 0.0
        self._samples = 0
        self._tokens = 0
        self._step = 0
        self._last_loss = ""

    # --- people ----------------------------------------------------------------------------------------------------

    def say(self, text: str, *, style: str = "") -> None:
        """Tell people a line: on the terminal, if this rank has it, and in the rank's log."""
        print(text, flush=True)
        if self.console is not None:
            try:
                self.console.print(text, style=style, markup=False)
            except OSError:
                # The terminal is gone (closed window, dead ssh); the run goes on and the log has the line.
                self.console = None

    def warn(self, text: str) -> None:
        """Tell people a warning."""
        self.say(f"warning: {text}", style="yellow")

    def begin(self, *, total_steps: int, done: int) -> None:
        """Show the bar, from step ``done`` of ``total_steps``."""
        self.total_steps, self.first_step, self._step = total_steps, done, done
        self._started = time.monotonic()
        # The first step may compile.
        self.heartbeat.beat("training", step=done, may_be_silent=True)
        if self.console is not None and self.console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")]
            # What libraries print belongs into the log; rich would by default bring it to the terminal.
            self._bar = Bar(*columns, console=self.console, redirect_stdout=False, redirect_stderr=False)
            self._bar.start()
            self._task = self._bar.add_task("training", total=total_steps, completed=done, text="")

    def end(self) -> None:
        """Remove the bar and write what is buffered."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self.flush()

    # --- steps -----------------------------------------------------------------------------------------------------

    def on_batch_wanted(self) -> None:
        """A step begins: its rows are about to be read."""
        self._step_started = time.monotonic()
        if self._step > self.first_step:
            self.heartbeat.beat("reading rows")

    def on_batch(self) -> None:
        """The rows of a step are read: it is computed now."""
        if self._step > self.first_step:
            self.heartbeat.beat("training")

    def on_step(
        self,
        step: int,
        *,
        epoch: float,
        rows: Sequence[int],
        samples: int,
        tokens: int,
        own_seconds: float | None = None,
    ) -> None:
        """A step has ended. ``rows``: this rank's row numbers; ``samples``, ``tokens``: of all ranks; ``own_seconds``: what this
        rank needs for its own part of a step.
        """
        self._step = step
        self.heartbeat.beat("training", step=step, own_seconds=own_seconds)
        self._busy += time.monotonic() - self._step_started
        self._samples += samples
        self._tokens += tokens
        self._ledger.append(json.dumps({"step": step, "epoch": round(epoch, 6), "rows": list(rows)}))
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, text=self._bar_text(step))

    def _bar_text(self, step: int) -> str:
        return f"step {step}/{self.total_steps}  {self._last_loss}  {_duration(self.eta(step))} left"

    def eta(self, step: int) -> float:
        """Seconds to the last step, at the mean pace of this attempt, evaluations included."""
        done = step - self.first_step
        return (time.monotonic() - self._started) / done * (self.total_steps - step) if done else float("nan")

    def throughput(self) -> dict[str, float]:
        """Return samples and real tokens per second of all ranks since the last call, without evaluations and saves."""
        busy, samples, tokens = self._busy, self._samples, self._tokens
        self._busy, self._samples, self._tokens = 0.0, 0, 0
        return {"samples_per_second": samples / busy, "tokens_per_second": tokens / busy} if busy else {}

    # --- rows ------------------------------------------------------------------------------------------------------

    def on_row(self, step: int, values: dict[str, Any]) -> None:
        """A row of metrics: to progress.jsonl, to the tracker, and to people."""
        if self.rank != 0:
            return
        row = {"step": step, **values, "eta_seconds": self.eta(step), "attempt": self.attempt, "time": time.time()}
        append_json(self.run.progress, row)
        self.tracker.log(row)
        self._show(step, values)

    def _show(self, step: int, values: dict[str, Any]) -> None:
        if "loss" in values:
            self._last_loss = f"loss {values['loss']:.4f}  rate {values['learning_rate']:.2e}"
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=step, text=self._bar_text(step))
                print(self._bar_text(step), flush=True)
            else:
                speed = f"  {values['tokens_per_second']:.0f} {self.counted}/s" if "tokens_per_second" in values else ""
                self.say(self._bar_text(step) + speed)
        evaluated = {
            k.removeprefix("eval_"): v for k, v in values.items() if k.startswith("eval_") and k != "eval_seconds"
        }
        if evaluated:
            shown = "  ".join(f"{k} {v:.4f}" for k, v in evaluated.items() if k in _SHOWN)
            self.say(f"step {step}/{self.total_steps}  validation: {shown}")

    def on_evaluation_batch(self, done: int, total: int) -> None:
        """A batch of an evaluation is done."""
        self.heartbeat.beat("evaluating")
        if self._bar is not None and self._task is not None and total > 1:
            text = self._bar_text(self._step) if done == total else f"evaluating {done}/{total}"
            self._bar.update(self._task, text=text)

    def flush(self) -> None:
        """Append the buffered ledger."""
        if self._ledger:
            with self.run.ledger(self.attempt, self.rank).open("a") as file:
                file.write("\n".join(self._ledger) + "\n")
            self._ledger.clear()
        sys.stdout.flush()


_SHOWN = {
    "loss", "accuracy", "macro_f1", "micro_f1", "f1", "exact_match", "spearman", "pearson", "mse", "bleu", "chrf", "rougeL", "map", "mean_iou",
}  # fmt: skip


def _duration(seconds: float) -> str:
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
