"""Use a finished run's model in one process: evaluate it again, or predict new texts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher import registry
from launcher.atomic import write_text
from launcher.contracts import Predictions, Prepared
from launcher.engine.predicting import predict_logits
from launcher.engine.reference import Reference
from launcher.errors import DataError, ModelError, RunStateError
from launcher.evaluation.assessment import Evaluation
from launcher.evaluation.kinds import kind_of
from launcher.evaluation.predictions_io import write_predictions
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.rundir import RunDir
from launcher.workflows.evaluate import assess, final_split, save_evaluation
from launcher.workflows.report import read_evaluation, write_report
from launcher.workflows.verify import raise_if_it_differs


class FinishedModel:
    """The model of a run, loaded for use."""

    def __init__(self, path: Path) -> None:
        import torch
        from transformers.utils import logging

        # Bars and the report of loaded weights are not what someone who asked for a prediction wants to read.
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        self.run = RunDir.open(path)
        if not (self.run.model / "launcher.json").is_file():
            raise RunStateError(f"{path} has no finished model; finish it with `launcher resume {path}`")
        raise_if_it_differs(self.run)
        self.facts: dict[str, Any] = json.loads((self.run.model / "launcher.json").read_text())
        self.trained: Recipe = load_recipe(self.run.resolved).recipe
        # The tokenizer and the weights are the run's own; everything else is as it was trained.
        self.recipe: Recipe = with_own_model(self.trained, self.run.model)
        self.task = registry.load(registry.TASKS, self.recipe.task.type)(self.recipe, base_folder=self._base_folder())
        self.model = self.task.load_trained(self.run.model, self.facts)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)

    def _base_folder(self) -> Path:
        return Path(json.loads(self.run.launch_plan(self.run.last_attempt).read_text())["base_folder"])

    def predict_split(self, split: Any, prepared: Prepared) -> Predictions:
        """Return predictions for prepared rows."""
        collate = self.task.collator()
        if self.task.reference_columns:
            collate = self._reference(split, prepared).collator(collate, split)
        logits, _ = predict_logits(
            self.model, split, collate,
            batch_size=self.recipe.training.per_device_eval_batch_size, device=self.device, row_outputs=self.task.row_outputs,
            generate=self.task.generate if self.task.writes(prepared) else None,
        )  # fmt: skip
        result: Predictions = self.task.predictions(logits, split, prepared)
        return result

    def _reference(self, split: Any, prepared: Prepared) -> Reference:
        """Return what the model before training makes of rows: what the run has kept, or for new rows what that model, loaded once more, says.

        Raises:
            ModelError: the model before training cannot be loaded.
        """
        found = Reference.wanted(self.task, prepared)
        assert found is not None
        if prepared.fingerprint:
            found.read(self.run)
            return found
        logits, _ = predict_logits(
            self._model_before(prepared), split, self.task.collator(),
            batch_size=self.recipe.training.per_device_eval_batch_size, device=self.device, row_outputs=self.task.row_outputs,
        )  # fmt: skip
        name = next(name for name, own in found.splits.items() if own is split)
        found.values[name] = logits[:, : len(found.columns)]
        return found

    def _model_before(self, prepared: Prepared) -> Any:
        """Return the model that the run began with, in evaluation mode, as the run's first attempt built it."""
        from launcher.plans import LaunchPlan
        from launcher.workflows.building import build_model

        noted = json.loads(self.run.launch_plan(self.run.last_attempt).read_text())
        task = registry.load(registry.TASKS, self.trained.task.type)(self.trained, base_folder=self._base_folder())
        try:
            model, _ = build_model(self.trained, LaunchPlan.from_json(noted["plan"]), task, prepared)
        except ModelError as error:
            raise type(error)(
                f"new pairs are judged by how much likelier training has made their answers, which needs the model before training: {error}"
            ) from error
        return model.to(self.device).eval()

    def predict_texts(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Predictions:
        """Return predictions for texts, or pairs of texts. Raises DataError where pairs are missing or too many."""
        return self.predict_rows({"text": list(texts), **({} if pairs is None else {"text_pair": list(pairs)})})

    def predict_rows(self, columns: Mapping[str, list[Any]]) -> Predictions:
        """Return predictions for rows under our columns' names. Raises DataError."""
        return self.predict_split(*self.task.prepare_rows(columns, self.facts))


def evaluate_run(path: Path) -> Evaluation:
    """Evaluate a finished run's model again on its final split, and write evaluation/ and report.html anew."""
    finished = FinishedModel(path)
    _, facts = read_evaluation(finished.run)
    _, prepared = finished.task.prepare_data()
    plan = json.loads(finished.run.plan.read_text())
    if prepared.fingerprint != plan["facts"]["fingerprint"]:
        raise DataError(
            f"the data have changed since {finished.run.id} was trained (fingerprint {prepared.fingerprint[:12]} instead of "
            f"{plan['facts']['fingerprint'][:12]}); restore them, or predict them with `launcher predict --file`"
        )
    name, split = final_split(prepared)
    predictions = finished.predict_split(split, prepared)
    evaluation = assess(finished.task, finished.recipe, prepared, predictions, split=name)
    save_evaluation(finished.run, evaluation, predictions, **facts)
    write_report(finished.run)
    return evaluation


def predict_file(finished: FinishedModel, source: str) -> Predictions:
    """Return predictions for the rows of a file, read with the recipe's columns; labels in it are not needed."""
    return finished.predict_rows(finished.task.read_rows(source))


def prediction_rows(predictions: Predictions) -> list[dict[str, Any]]:
    """Return a record for each row: text, and what its kind (``evaluation/kinds``) predicts."""
    return kind_of(predictions).rows(predictions)


def prediction_lines(predictions: Predictions) -> Iterator[str]:
    """Yield each row's prediction as a line of the terminal."""
    kind = kind_of(predictions)
    return map(kind.line, kind.rows(predictions))


def write_rows(predictions: Predictions, path: Path) -> None:
    """Write predictions as .jsonl, .csv or .parquet, told by the ending. Raises DataError for another."""
    if path.suffix == ".parquet":
        write_predictions(predictions, path)
    elif path.suffix in (".jsonl", ".json"):
        write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in prediction_rows(predictions)))
    elif path.suffix == ".csv":
        stream, kind = io.StringIO(), kind_of(predictions)
        csv.writer(stream).writerows(kind.table(kind.rows(predictions)))
        write_text(path, stream.getvalue())
    else:
        raise DataError(f"predictions cannot be written to {path}: its ending must be .jsonl, .csv or .parquet")


def with_own_model(trained: Recipe, folder: Path) -> Recipe:
    """Return a run's recipe with the model, tokenizer and chat template that it has saved in ``folder``."""
    own = {"name_or_path": str(folder), "tokenizer_name_or_path": None, "revision": None, "config": None}
    found = trained.model_copy(update={"model": trained.model.model_copy(update=own)})
    if getattr(trained.task, "chat_template", None) is None:
        return found
    return found.model_copy(update={"task": trained.task.model_copy(update={"chat_template": None})})
