"""The tree of errors that a user can meet, each with its exit code.

An error for a user says place, value and remedy. A broken assumption of our own is an ``assert``, not one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LauncherError(Exception):
    """Base of every error that is the user's to mend; its text is complete without a traceback."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One fault of a recipe: where it stands, what is wrong with which value, and what to do.

    ``place`` is ``file:line:column`` or ``command line``; ``key`` is the dotted key that the fault is about; ``fix`` is the
    edit that ``check --fix`` makes, where one cures the fault.
    """

    place: str
    message: str
    remedy: str = ""
    key: str = ""
    fix: Fix | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Fix:
    """An edit of a recipe: give ``key`` the name ``new_key`` (None: drop it) and, unless ``keep_value``, ``new_value``."""

    key: str
    new_key: str | None
    new_value: object = None
    keep_value: bool = True


class RecipeError(LauncherError):
    """A recipe has faults; all that were found are listed, in the order of their places."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DataError(LauncherError):
    """Data cannot be read or do not fit the task; the text names file, row, value and remedy."""

    exit_code = 3


class DataUnreachable(DataError):
    """Data are on a hub or at an address that cannot be reached now, and not in the local cache: nothing is known against them."""


class ModelError(LauncherError):
    """A model or tokenizer cannot be found, loaded or used for the task."""

    exit_code = 4


class ModelUnreachable(ModelError):
    """A model or tokenizer is on a hub that cannot be reached now, and not in the local cache: nothing is known against it."""


class InstallationError(LauncherError):
    """This machine lacks something the recipe needs: a package, a device, disk space."""

    exit_code = 5


class RunStateError(LauncherError):
    """A run directory is not in the state that the verb needs: it exists, is unfinished, or has no checkpoint."""

    exit_code = 6


class PlanMismatch(LauncherError):
    """A rank found another world size, engine, stage or learning rate than was planned."""

    exit_code = 7


class TrainingDiverged(LauncherError):
    """The loss is NaN or infinite."""

    exit_code = 8


class RunStalled(LauncherError):
    """No rank advanced within the deadline, or a rank was stopped; the ranks were ended."""

    exit_code = 9


class SavedModelDiffers(LauncherError):
    """The saved model, loaded in a process of its own, is not the trained one."""

    exit_code = 10


class PreflightFailed(LauncherError):
    """Before training, a node of a job was found unfit, or the nodes do not reach each other or their shared folder."""

    exit_code = 11


class Interrupted(LauncherError):
    """The run was asked to stop and did, leaving a state that can be resumed."""

    exit_code = 130
