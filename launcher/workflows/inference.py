"""Use a finished run's model in one process: evaluate it again, or predict new texts."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher import registry
from launcher.atomic import write_text
from launcher.contracts import Predictions, Prepared
from launcher.engine.predicting import predict_logits
from launcher.errors import DataError, RunStateError
from launcher.evaluation.answers import is_answering
from launcher.evaluation.assessment import Evaluation
from launcher.evaluation.language import text_losses, token_counts
from launcher.evaluation.metrics import decide, is_language
from launcher.evaluation.predictions_io import write_predictions
from launcher.evaluation.tagging import ENTITIES, is_tagging, spans_in_words, tags_by_row
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.rundir import RunDir
from launcher.workflows.evaluate import assess, final_split, save_evaluation
from launcher.workflows.report import read_evaluation, write_report
from launcher.workflows.verify import raise_if_it_differs

# Beyond it, exp() is beyond any float.
_LARGEST_EXPONENT = 709.0


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
        trained = load_recipe(self.run.resolved).recipe
        # The tokenizer and the weights are the run's own; everything else is as it was trained.
        self.recipe: Recipe = trained.model_copy(
            update={"model": trained.model.model_copy(update=_own_model(self.run.model))}
        )
        self.task = registry.load(registry.TASKS, self.recipe.task.type)(self.recipe, base_folder=self._base_folder())
        self.model = self.task.load_trained(self.run.model, self.facts)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)

    def _base_folder(self) -> Path:
        return Path(json.loads(self.run.launch_plan(self.run.last_attempt).read_text())["base_folder"])

    def predict_split(self, split: Any, prepared: Prepared) -> Predictions:
        """Return predictions for prepared rows."""
        logits, _ = predict_logits(
            self.model, split, self.task.collator(),
            batch_size=self.recipe.training.per_device_eval_batch_size, device=self.device, row_outputs=self.task.row_outputs,
        )  # fmt: skip
        result: Predictions = self.task.predictions(logits, split, prepared)
        return result

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
    """Return a dict per row: text, prediction (a label, a list of labels, or a number), and scores by label; of a language
    model text, tokens (that were predicted), loss (per token, nats) and perplexity; of tagged words text, words, prediction (a tag
    for each word), of questions text, answer ("" for none) and score, and, where the tags are entities', entities: type, start, end (words, end exclusive), text.
    """
    if is_language(predictions.problem_type):
        return _language_rows(predictions)
    if is_tagging(predictions.problem_type):
        return _tagged_rows(predictions)
    if is_answering(predictions.problem_type):
        rows_of = zip(predictions.texts, predictions.answers, predictions.scores, strict=True)
        return [{"text": text, "answer": answer, "score": round(float(score), 6)} for text, answer, score in rows_of]
    decided = decide(predictions)
    rows = []
    for i, text in enumerate(predictions.texts):
        row: dict[str, Any] = {"text": text}
        if predictions.problem_type == "regression":
            row["prediction"] = float(predictions.scores[i, 0])
        else:
            names = predictions.label_names
            several = predictions.problem_type == "multi_label_classification"
            row["prediction"] = (
                [n for n, on in zip(names, decided[i], strict=True) if on] if several else names[int(decided[i])]
            )
            row["scores"] = {n: round(float(s), 6) for n, s in zip(names, predictions.scores[i], strict=True)}
        rows.append(row)
    return rows


def _language_rows(predictions: Predictions) -> list[dict[str, Any]]:
    found = []
    for text, tokens, loss in zip(predictions.texts, token_counts(predictions), text_losses(predictions), strict=True):
        is_known = math.isfinite(loss)
        found.append(
            {
                "text": text,
                "tokens": int(tokens),
                "loss": float(loss) if is_known else None,
                "perplexity": math.exp(min(loss, _LARGEST_EXPONENT)) if is_known else None,
            }
        )
    return found


def _tagged_rows(predictions: Predictions) -> list[dict[str, Any]]:
    tags = tags_by_row(predictions, decide(predictions))
    rows: list[dict[str, Any]] = [
        {"text": text, "words": list(words), "prediction": list(of_words)}
        for text, words, of_words in zip(predictions.texts, predictions.words, tags, strict=True)
    ]
    if predictions.problem_type == ENTITIES:
        for number, row in enumerate(rows):
            row["entities"] = spans_in_words(predictions, decide(predictions), number)
    return rows


def write_rows(predictions: Predictions, path: Path) -> None:
    """Write predictions as .jsonl, .csv or .parquet, told by the ending. Raises DataError for another."""
    if path.suffix == ".parquet":
        write_predictions(predictions, path)
    elif path.suffix in (".jsonl", ".json"):
        write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in prediction_rows(predictions)))
    elif path.suffix == ".csv":
        write_text(path, _csv(prediction_rows(predictions)))
    else:
        raise DataError(f"predictions cannot be written to {path}: its ending must be .jsonl, .csv or .parquet")


def _words_and_tags(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return zip(row["words"], row["prediction"], strict=True)


def _csv(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream)
    if rows and "words" in rows[0]:
        writer.writerow(["text", "word", "prediction"])
        writer.writerows((number + 1, *pair) for number, row in enumerate(rows) for pair in _words_and_tags(row))
        return stream.getvalue()
    if rows and ("perplexity" in rows[0] or "answer" in rows[0]):
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)
        return stream.getvalue()
    writer.writerow(["text", "prediction", "score"])
    for row in rows:
        prediction = row["prediction"]
        shown = ",".join(prediction) if isinstance(prediction, list) else prediction
        writer.writerow([row["text"], shown, max(row.get("scores", {"": ""}).values())])
    return stream.getvalue()


def _own_model(folder: Path) -> dict[str, Any]:
    return {"name_or_path": str(folder), "tokenizer_name_or_path": None, "revision": None, "config": None}
