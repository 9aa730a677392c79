"""Verbs about what a run has left: its model, its evaluation, its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.shared import Json, RunPath, print_json, short


def evaluate(run: RunPath, as_json: Json = False) -> None:
    """Evaluate a finished run's model again, and write its report anew."""
    from launcher.evaluation.verdict import verdict_sentence
    from launcher.workflows.inference import evaluate_run

    evaluation = evaluate_run(run.resolve())
    if as_json:
        print_json(evaluation.to_json())
        return
    typer.echo(verdict_sentence(evaluation))
    typer.echo(f"report: {run / 'report.html'}")


def predict(
    run: RunPath,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts to predict, or paths of images.", show_default=False)
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="A file of rows, in any format that training reads.")
    ] = None,
    pair: Annotated[str | None, typer.Option("--pair", help="The second text, for a model of pairs.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write to this .jsonl, .csv or .parquet file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict texts or images with a finished run's model."""
    if bool(texts) == bool(file):
        raise typer.BadParameter("give texts, or --file with a file of rows")
    from launcher.workflows.inference import (
        FinishedModel,
        predict_file,
        prediction_lines,
        prediction_rows,
        write_rows,
    )

    finished = FinishedModel(run.resolve())
    pairs = [pair] * len(texts) if pair is not None and texts else None
    predictions = predict_file(finished, file) if file else finished.predict_texts(texts or [], pairs)
    if output is not None:
        write_rows(predictions, output)
        typer.echo(f"wrote {len(predictions.texts):,} predictions to {output}")
    elif as_json:
        print_json(prediction_rows(predictions))
    else:
        for line in prediction_lines(predictions):
            typer.echo(line)


def report(run: RunPath) -> None:
    """Write a run's report.html from its files."""
    from launcher.rundir import RunDir
    from launcher.workflows.report import write_report

    typer.echo(f"report: {short(write_report(RunDir.open(run.resolve())))}")
