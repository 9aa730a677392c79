"""On what terms a run goes on: the recipe with what is changed on the command line, and which changes it bears."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.errors import Problem, RecipeError, RunStateError
from launcher.recipe.changes import Change, list_changes
from launcher.recipe.contradictions import CONTRADICTIONS
from launcher.recipe.load import LoadedRecipe, load_recipe
from launcher.recipe.schema import Recipe
from launcher.recipe.view import View
from launcher.rundir import RunDir


def load_for_resume(run: RunDir, overrides: Sequence[str]) -> LoadedRecipe:
    """Return a run's recipe with ``key=value`` overrides laid over it.

    Raises:
        RecipeError: a key or value is wrong, or contradicts another.
    """
    loaded = load_recipe(run.resolved, overrides)
    if not overrides:
        return loaded
    # A recipe with every value written out also has those without effect: only contradictions count here.
    view = View(loaded.recipe)
    findings = [finding for rule in CONTRADICTIONS for finding in rule(view)]
    if findings:
        raise RecipeError([Problem(loaded.place(f.key), f.message, f.remedy, f.key) for f in findings])
    return loaded


def changes_since_first(run: RunDir, recipe: Recipe) -> tuple[Change, ...]:
    """Return what differs between ``recipe`` and the recipe of the run's first attempt."""
    return list_changes(load_recipe(_first_recipe(run)).recipe, recipe)


def refuse_another_run(run: RunDir, changes: Sequence[Change], *, allow: bool) -> None:
    """Refuse changes that would make it another run.

    Raises:
        RunStateError: there are such changes, and they are not allowed; or the checkpoint does not fit them at all.
    """
    never = [change for change in changes if change.verdict == "never"]
    wrong = never or ([] if allow else [change for change in changes if change.verdict == "flag"])
    if not wrong:
        return
    listed = "\n".join(f"  {change} ({change.reason})" for change in wrong)
    remedy = (
        "start a new run with `launcher run`"
        if never
        else "start a new run with `launcher run`, or, if you mean it, resume with --allow-changes"
    )
    raise RunStateError(f"{run.path} would become another run:\n{listed}\n{remedy}")


def _first_recipe(run: RunDir) -> Path:
    kept = (run.attempt_recipe(number) for number in range(1, run.last_attempt + 1))
    return next((path for path in kept if path.is_file()), run.resolved)
