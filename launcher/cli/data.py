"""Verbs about data: what the model will see of them, and preparing them without training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from launcher.cli.shared import (
    Json,
    Overrides,
    RecipeName,
    console,
    load_checked,
    print_json,
    print_table,
    short,
    write_picture,
)

if TYPE_CHECKING:
    from launcher.contracts import ShownRow
    from launcher.workflows.data_view import DataView, SplitView

_STYLES = {"special": "dim", "read": "", "learned": "green", "label": "bold magenta", "cut": "red strike"}
_MOST_LABELS = 30
_BAR = 40
_BRIEF = 110
_MOST_CUT = 400
_LEGEND = " (special tokens dim, what is learned green, what is cut off red)"


def data(
    recipe: RecipeName,
    overrides: Overrides = None,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option("--split", help="Whose rows are shown.")
    ] = "train",
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many rows are shown, spread over the split.")] = 5,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the lengths of rows into this .svg or .png file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what the model will really see: rows, lengths, cuts, labels, repeated texts, and what padding costs.

    The data are prepared for it, as `launcher prepare` does.
    """
    loaded = load_checked(recipe, overrides, quiet=as_json)
    from launcher.recipe.task_options import IMAGE_TASKS
    from launcher.workflows.data_bar import data_bar
    from launcher.workflows.data_view import view_data

    if plot is not None and loaded.recipe.task.type in IMAGE_TASKS:
        raise typer.BadParameter("images have no lengths to draw; leave it out", param_hint="--plot")

    with data_bar(None if as_json else sys.stderr):
        found = view_data(loaded.recipe, base_folder=Path.cwd(), split=split, rows=rows)
    if as_json:
        print_json(found.to_json())
    else:
        _show(found, split=split)
    if plot is not None:
        _draw(found, plot, name=loaded.recipe.name)
        typer.echo(f"picture: {short(plot)}", err=as_json)


def prepare(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Read, check, split and tokenize the data, and keep them for the runs to come; nothing is trained.

    For a machine with processors and a network, before jobs that have neither: runs with the same data, tokenizer and options find
    them, on every machine that shares the folder (data.cache_dir).
    """
    loaded = load_checked(recipe, overrides, quiet=as_json)
    from launcher import registry
    from launcher.plans import told_rows
    from launcher.workflows.data_bar import data_bar

    task = registry.load(registry.TASKS, loaded.recipe.task.type)(loaded.recipe, base_folder=Path.cwd())
    with data_bar(None if as_json else sys.stderr):
        folder, prepared = task.prepare_data()
    facts = prepared.facts
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "was_cached": facts["was_cached"],
                "splits": facts["splits"],
                "warnings": facts["warnings"],
                "skipped": facts.get("skipped", {}),
            }
        )
        return
    for text in facts["warnings"]:
        typer.echo(f"warning: {text}", err=True)
    typer.echo(f"{'found' if facts['was_cached'] else 'prepared'}: {told_rows(facts)} in {short(folder)}")


# --- for people ------------------------------------------------------------------------------------------------------


def _show(found: DataView, *, split: str) -> None:
    for text in found.warnings:
        typer.echo(f"warning: {text}", err=True)
    if not found.padding:
        _show_images(found)
    else:
        _show_lengths_and_cuts(found)
    _show_near(found)
    _show_mixture(found)
    _show_labels(found)
    if found.padding:
        _show_padding(found)
    if found.rows:
        typer.echo(f"\n{split} rows as the model sees them{_LEGEND if found.padding else ''}:")
    for row in found.rows:
        console().print(_row_text(row, counted=bool(found.padding), is_sample=found.is_sample), soft_wrap=True)
    typer.echo(f"\nprepared rows: {short(Path(found.folder))}")


def _show_near(found: DataView) -> None:
    """Say of each split how many texts are nearly the same as others, with examples."""
    for name, view in found.splits.items():
        near = view.near
        if near is None or not (near.within or near.in_train):
            continue
        sample = "" if near.looked_at >= view.rows else f" (of {near.looked_at:,} that were looked at)"
        train = f"; {near.in_train:,} are nearly one of train, so scores on {name} flatter" if near.in_train else ""
        typer.echo(f"{name}: {near.within:,} texts are nearly an earlier one{sample}{train}")
        for one, other in near.examples:
            typer.echo(f"  {_brief(one)}\n  ~ {_brief(other)}")


def _show_mixture(found: DataView) -> None:
    """Show how many rows of each source an epoch has, where sources have weights."""
    from launcher.recipe.task_options import counted_in

    mixture = found.mixture
    if not mixture:
        return
    typer.echo(
        f"\nan epoch: {mixture['rows']:,} rows, {mixture['tokens']:,} {counted_in(found.task)} "
        f"({mixture['stopping_strategy']})"
    )
    table = [
        [
            one["source"], f"{one['rows']:,}", f"{one['weight']:g}", f"{one['drawn']:,}", f"{one['share']:.1%}",
            f"{one['drawn'] / one['rows']:.3g}",
        ]
        for one in mixture["sources"]
    ]  # fmt: skip
    print_table(["source", "rows", "weight", "in an epoch", "share", "times a row"], table, right=set(range(1, 6)))


def _brief(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _BRIEF else f"{plain[:_BRIEF]} ..."


def _show_images(found: DataView) -> None:
    table = [[name, f"{view.rows:,}", _share(view.repeated, view.rows)] for name, view in found.splits.items()]
    print_table(["split", "images", "repeated"], table, right={1, 2})


def _show_lengths_and_cuts(found: DataView) -> None:
    print_table(
        ["split", "rows", "tokens", "shortest", "median", "90%", "99%", "longest", "cut", "divided", "repeated"],
        [_split_row(name, view) for name, view in found.splits.items()],
        right=set(range(1, 11)),
    )
    _show_lengths(found.splits["train"], most=found.max_length)


def _share(count: int, of: int) -> str:
    return f"{count:,} ({count / of:.1%})" if count else "0"


def _split_row(name: str, view: SplitView) -> list[str]:
    lengths = [f"{length:,}" for length in view.lengths.values()]
    return [
        name,
        f"{view.rows:,}",
        f"{view.tokens:,}",
        *lengths,
        *(_share(count, view.texts) for count in (view.cut, view.divided)),
        _share(view.repeated, view.rows),
    ]


def _show_lengths(view: SplitView, *, most: int) -> None:
    typer.echo(f"lengths of train rows, in tokens (max_length {most:,})")
    highest = max(count for _, _, count in view.histogram)
    width = len(f"{view.histogram[-1][1]:,}")
    for first, last, count in view.histogram:
        bar = "█" * -(-_BAR * count // highest)
        typer.echo(f"  {first:>{width},} – {last:>{width},}  {bar} {count:,}")


def _show_labels(found: DataView) -> None:
    names = list(found.splits["train"].labels)
    if not names:
        return
    typer.echo("\nlabels" + (" of words" if found.task == "token-classification" else ""))
    ordered = sorted(names, key=lambda name: -found.splits["train"].labels[name])
    labelled = {name: view for name, view in found.splits.items() if view.labels}
    totals = {name: max(sum(view.labels.values()), 1) for name, view in labelled.items()}
    table = [
        [
            label,
            *(f"{view.labels[label]:,} ({view.labels[label] / totals[name]:.1%})" for name, view in labelled.items()),
        ]
        for label in ordered[:_MOST_LABELS]
    ]
    drawn = found.splits["train"].drawn
    if drawn:
        rows = sum(drawn.values())
        table = [[*row, f"{drawn[row[0]]:,.1f} ({drawn[row[0]] / rows:.1%})"] for row in table]
    head = ["label", *labelled, *(["drawn in an epoch"] if drawn else [])]
    print_table(head, table, right=set(range(1, len(head))))
    if len(names) > _MOST_LABELS:
        typer.echo(f"  and {len(names) - _MOST_LABELS} rarer ones; --json has them all")


def _show_padding(found: DataView) -> None:
    from launcher.workflows.data_view import BY_TOKENS

    is_by_tokens = found.order == BY_TOKENS
    steps = (
        f"steps of {'about ' if is_by_tokens else ''}{found.global_batch_size} rows, {found.micro_batch_size} at a time"
    )
    shares = ", ".join(f"{order} {share:.1%}" for order, share in found.padding.items() if order != BY_TOKENS)
    chosen = "" if is_by_tokens else f" (training.train_sampling_strategy is {found.order})"
    typer.echo(f"padding of an epoch in {steps}: {shares}{chosen}")
    if BY_TOKENS in found.padding:
        given = "as the recipe has it" if is_by_tokens else "instead of global_batch_size"
        share = f"{found.padding[BY_TOKENS]:.1%}"
        typer.echo(f"padding of an epoch with training.tokens_per_batch {found.tokens_per_batch:,}, {given}: {share}")


def _row_text(row: ShownRow, *, counted: bool, is_sample: bool) -> Any:
    from rich.text import Text

    text = Text().append(f"\nrow {row.row_id}" + (f" ({row.tokens} tokens)" if counted else ""), "bold")
    if row.is_augmented:
        # A stream's rows have other numbers than those of a sample.
        text.append("  augmented, for example" if is_sample else "  augmented, as in the first epoch", "italic")
    if row.label:
        text.append(f"  label: {row.label}", "bold magenta")
    text.append("\n", "")
    for part, kind in row.parts:
        if kind == "cut" and len(part) > _MOST_CUT:
            part = f"{part[:_MOST_CUT]} … ({len(part):,} characters)"
        text.append({"label": f"[{part}]", "special": f" {part} "}.get(kind, part), _STYLES[kind])
    return text


def _draw(found: DataView, path: Path, *, name: str) -> None:
    from launcher.evaluation.plots_data import draw_lengths

    lengths = {split: view.histogram for split, view in found.splits.items()}
    write_picture(
        path,
        lambda write: draw_lengths(lengths, max_length=found.max_length, write=write),
        alt=f"Lengths of the rows of {name}, in tokens",
    )
