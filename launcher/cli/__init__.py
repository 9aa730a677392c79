"""The command line: parse, call, print. Heavy imports happen inside the verb that needs them."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from launcher import __version__
from launcher.cli import data, jobs, models, planning, recipes, runs
from launcher.errors import LauncherError
from launcher.registry import suggest


class Verbs(TyperGroup):
    """The verbs, with an answer to a word that is near one of them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a verb; a miss names the nearest one."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = suggest(args[0], self.commands)
            hint = f"did you mean {near!r}?" if near else f"the verbs are {', '.join(self.commands)}"
            ctx.fail(f"there is no verb {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From one recipe to a finished, evaluated, usable fine-tuned model.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order in which the help shows them.
_VERBS = (
    recipes.recipes,
    recipes.init,
    recipes.check,
    recipes.import_,
    recipes.schema,
    data.data,
    data.prepare,
    planning.plan,
    planning.lr_find,
    runs.run,
    runs.resume,
    jobs.submit,
    jobs.status,
    jobs.logs,
    jobs.cancel,
    jobs.explain,
    models.evaluate,
    models.predict,
    models.report,
    runs.doctor,
)
for _verb in _VERBS:
    app.command(_verb.__name__.rstrip("_").replace("_", "-"))(_verb)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"launcher {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error for the user is its text and its exit code, without a traceback."""
    try:
        app()
    except LauncherError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
