"""Extractive question answering: which stretch of a text answers a question, or that none does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Baseline, Predictions, Prepared, ShownRow
from launcher.data.sources import SplitSet, load_rows, load_splits
from launcher.data.windows import Windows, best_spans, make_windows, span_of
from launcher.errors import DataError, ModelError
from launcher.evaluation.answers import ANSWERS
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import QuestionAnsweringOptions
from launcher.tasks.models import LoadedModel, load_config, load_model, load_tokenizer
from launcher.tasks.padding import pad_inputs
from launcher.tasks.text_task import SPLITS, TextTask, joined

_NEEDS, _OPTIONAL = ("question", "context"), ("answers", "id")


class QuestionAnswering(TextTask):
    """The task ``question-answering``."""

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        super().__init__(recipe, base_folder=base_folder)
        assert isinstance(recipe.task, QuestionAnsweringOptions)
        self.options = recipe.task
        self.may_have_no_answer = False

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, which has to tell the place of each token in the text. Raises ModelError."""
        found = load_tokenizer(self.recipe.model)
        if not found.is_fast:
            raise ModelError(
                f"{type(found).__name__} does not tell where in a text a token stands, which question-answering needs; choose a model "
                "with a tokenizer.json"
            )
        # So that a token of a row keeps its place in a batch.
        found.padding_side = "right"
        return found

    # --- data ------------------------------------------------------------------------------------------------------

    def load_splits(self) -> SplitSet:
        """Return the questions of every split. Raises DataError."""
        return load_splits(
            self.recipe.data, base_folder=self.base_folder, needs=_NEEDS, optional=_OPTIONAL, problem_type=ANSWERS
        )

    def key_parts(self, splits: SplitSet) -> dict[str, Any]:
        """Return what prepared rows depend on: how windows overlap."""
        return {"task": [self.options.type, self.options.doc_stride]}

    def load_data(self, folder: Path) -> Prepared:
        """Return the prepared data in ``folder``: what every rank does after rank 0 has prepared them."""
        prepared = super().load_data(folder)
        self.may_have_no_answer = prepared.facts["may_have_no_answer"]
        return prepared

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of the windows."""
        return [
            f"{counts['divided']:,} of the {counts['questions']:,} {name} texts are longer than {facts['max_length']:,} tokens allow and are "
            f"read in overlapping windows; all questions together are {counts['rows']:,} rows"
            for name, counts in facts["splits"].items()
            if counts["divided"]
        ]

    def prepare_splits(self, splits: SplitSet, *, max_length: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return split -> Dataset of features, and facts."""
        if "label" not in splits.train.column_names:
            raise DataError("the training questions have no answers; name their column in data.columns: {answers: ...}")
        prepared, counts = {}, {}
        for name in SPLITS:
            if getattr(splits, name) is not None:
                prepared[name], counts[name] = self._features(splits, name, max_length=max_length)
        unanswered = counts["train"]["without_answer"]
        if unanswered == counts["train"]["questions"]:
            raise DataError("no training question has an answer; check data.columns: {answers: ...}")
        facts = {
            "fingerprint": splits.fingerprint,
            "problem_type": ANSWERS,
            "label_names": [],
            "max_length": max_length,
            "pairs": True,
            "may_have_no_answer": unanswered > 0,
            "splits": counts,
        }
        return prepared, facts

    def model_facts(self, prepared: Prepared) -> dict[str, Any]:
        """Return what has to be known to use the saved model without its run."""
        return {**super().model_facts(prepared), "may_have_no_answer": prepared.facts["may_have_no_answer"]}

    def _features(self, splits: SplitSet, name: str, *, max_length: int) -> tuple[Any, dict[str, Any]]:
        split = getattr(splits, name)
        answers = list(split["label"]) if "label" in split.column_names else None
        windows = self._windows(
            list(split["text"]),
            list(split["text_pair"]),
            answers=answers,
            max_length=max_length,
            origin=splits.origin(name),
        )
        counts = {
            "rows": len(windows.questions),
            "questions": len(split),
            "tokens": sum(windows.lengths),
            "divided": windows.divided,
            "cut": 0,
            "labelled": answers is not None,
            "without_answer": 0 if answers is None else sum(not answer["text"] for answer in answers),
        }
        rows = _dataset(
            windows, list(split["text"]), list(split["text_pair"]), answers=answers, row_ids=list(split["row_id"])
        )
        return rows, counts

    def _windows(
        self, questions: list[str], contexts: list[str], *, answers: list[Any] | None, max_length: int, origin: Any
    ) -> Windows:
        spans = None if answers is None else [span_of(answer) for answer in answers]
        return make_windows(
            self.tokenizer,
            questions,
            contexts,
            spans=spans,
            max_length=max_length,
            stride=self.options.doc_stride,
            origin=origin,
        )

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return a prepared row as the model sees it, the answer's tokens learned."""
        ids = row["input_ids"]
        first, last = row.get("labels", (0, 0))
        if not last:
            return ShownRow(row["row_id"], len(ids), tuple(self.text_parts(ids)), "(no answer in this window)")
        parts = (
            *self.text_parts(ids[:first]),
            *self.text_parts(ids[first : last + 1], learned=True),
            *self.text_parts(ids[last + 1 :]),
        )
        return ShownRow(row["row_id"], len(ids), parts, self.tokenizer.decode(ids[first : last + 1]))

    def prepare_rows(self, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> tuple[Any, Prepared]:
        """Return rows of features for new questions, and what they are to be read with. Raises DataError where texts are missing."""
        if "text_pair" not in columns:
            raise DataError("a question is answered from a text; give it with --pair, or both in a file")
        questions, contexts = columns["text"], columns["text_pair"]
        self.may_have_no_answer = facts["may_have_no_answer"]
        windows = self._windows(
            questions, contexts, answers=None, max_length=facts["max_length"], origin=lambda row: f"question {row + 1}"
        )
        rows = _dataset(windows, questions, contexts, answers=None, row_ids=list(range(len(questions))))
        return rows, Prepared(rows, rows, rows, "", (), ANSWERS, facts)

    def read_rows(self, source: str) -> dict[str, list[Any]]:
        """Return the questions and texts of a file. Raises DataError."""
        data = self.recipe.data
        kept = {ours: theirs for ours, theirs in data.columns.items() if ours != "answers"}
        reading = data.model_copy(update={"columns": kept})
        return load_rows(source, data=reading, base_folder=Path(), needs=_NEEDS, optional=("id",)).columns

    # --- model -----------------------------------------------------------------------------------------------------

    def build_model(
        self, prepared: Prepared | None, *, skeleton: bool = False, quantization: Any = None
    ) -> LoadedModel:
        """Return the model with a head for the answer's two ends; nothing in it depends on the data. Raises ModelError."""
        from transformers import AutoModelForQuestionAnswering

        config = load_config(self.recipe.model, skeleton=skeleton)
        loaded = load_model(
            AutoModelForQuestionAnswering, self.recipe.model, config, skeleton=skeleton, quantization=quantization
        )
        # The loss is ours; Trainer must not scale it by its own count.
        loaded.model.accepts_loss_kwargs = False
        return loaded

    def load_trained(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        """Return a saved model in evaluation mode."""
        return self.build_model(None).model.eval()

    # --- loss ------------------------------------------------------------------------------------------------------

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> padded batch of tensors, with ``sample_weight`` float32 [rows]."""
        return Collator(self.tokenizer)

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Return how many windows count, a scalar tensor."""
        return batch["sample_weight"].sum()

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the sum over windows of the mean cross entropy of the answer's first and last token, a float32 scalar tensor.

        A window without the answer has token 0 as both. Places of padding cannot be chosen, so that the loss does not depend on them.
        """
        import torch
        import torch.nn.functional as F

        tokens = batch["labels"][:, 2:]
        hidden = torch.arange(outputs["start_logits"].shape[1], device=tokens.device) >= tokens
        ends = []
        for number, name in enumerate(("start_logits", "end_logits")):
            logits = outputs[name].float().masked_fill(hidden, float("-inf"))
            losses = F.cross_entropy(logits, batch["labels"][:, number], reduction="none")
            if label_smoothing:
                known = logits.log_softmax(dim=-1).masked_fill(hidden, 0.0).sum(dim=-1) / (~hidden).sum(dim=-1)
                losses = (1 - label_smoothing) * losses - label_smoothing * known
            ends.append(losses)
        return ((ends[0] + ends[1]) / 2 * batch["sample_weight"]).sum()

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return the logits of each token as the answer's first and last, float32 [rows, tokens, 2]."""
        import torch

        return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1).float()

    # --- evaluation ------------------------------------------------------------------------------------------------

    @property
    def default_metric(self) -> str:
        """The validation metric that chooses the best checkpoint unless the recipe names one."""
        return "f1"

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Choose each question's answer over its windows: ``logits`` are ``row_outputs`` [rows, tokens, 2]."""
        firsts = _first_rows(split)
        bounds = [*firsts.tolist(), len(split)]
        places, contexts = split["places"], [split["context"][int(row)] for row in firsts]
        answers, scores = [], []
        for question, context in enumerate(contexts):
            rows = range(bounds[question], bounds[question + 1])
            answer, score = self._answer([logits[row] for row in rows], [places[row] for row in rows], context)
            answers.append(answer)
            scores.append(score)
        is_labelled = "references" in split.column_names
        references = [split["references"][int(row)] for row in firsts] if is_labelled else [[] for _ in firsts]
        return Predictions(
            problem_type=ANSWERS,
            scores=np.array(scores),
            labels=np.array([len(of_row) for of_row in references]) if is_labelled else None,
            label_names=(),
            texts=tuple(split["text"][int(row)] for row in firsts),
            row_ids=tuple(int(split["row_id"][int(row)]) for row in firsts),
            answers=tuple(answers),
            references=tuple(tuple(of_row) for of_row in references),
        )

    def _answer(self, logits: list[np.ndarray], places: list[list[int]], context: str) -> tuple[str, float]:
        """Return the best answer over a question's windows and its probability among the n best; "" stands for none."""
        options, found = self.options, []
        for window, of_window in zip(logits, places, strict=True):
            start, end = window[: len(of_window) // 2, 0], window[: len(of_window) // 2, 1]
            found += best_spans(start, end, of_window, most=options.n_best_size, max_tokens=options.max_answer_length)
        found = sorted(found, key=lambda one: -one[0])[: options.n_best_size]
        candidates = [(score, context[first:last]) for score, (first, last) in found]
        if self.may_have_no_answer or not candidates:
            # The window that is surest that it holds the answer speaks for the question.
            none = min(float(window[0, 0] + window[0, 1]) for window in logits)
            threshold = options.null_score_diff_threshold
            wins = not candidates or none - candidates[0][0] > threshold
            candidates = [(none, ""), *candidates] if wins else [*candidates, (none, "")]
        exponents = np.exp(np.array([score for score, _ in candidates]) - max(score for score, _ in candidates))
        return candidates[0][1], float(exponents[0] / exponents.sum())

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines: words near those that question and text share."""
        from launcher.evaluation.baselines import overlap_baseline

        rows = getattr(prepared, split)
        contexts = [rows["context"][int(row)] for row in _first_rows(rows)]
        return [overlap_baseline(contexts, predictions) for _ in names]


class Collator:
    """Pads rows to the longest of their batch; a row's ``sample_weight`` is 0 for padding rows."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return input tensors, ``labels`` int64 [rows, 3] where there are any (the answer's first and last token, and the row's number of
        tokens, beyond which there is padding), and ``sample_weight``.
        """
        import torch

        batch = pad_inputs(self.tokenizer, rows)
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([[*row["labels"], len(row["input_ids"])] for row in rows], dtype=torch.long)
        return batch


def _first_rows(split: Any) -> np.ndarray:
    """Return the numbers of the rows that begin a question, int64 [questions]."""
    return np.flatnonzero(np.diff(np.asarray(split["row_id"]), prepend=-1))


def _dataset(
    windows: Windows, questions: list[str], contexts: list[str], *, answers: list[Any] | None, row_ids: Sequence[int]
) -> Any:
    """Return the windows as a Dataset; what is of a question stands with the first of its windows only."""
    from datasets import Dataset

    owners = windows.questions
    is_first = [number == 0 or owners[number - 1] != owner for number, owner in enumerate(owners)]

    def of_first(values: Sequence[Any], empty: Any) -> list[Any]:
        return [values[owner] if first else empty for owner, first in zip(owners, is_first, strict=True)]

    columns: dict[str, Any] = {
        **windows.features,
        "length": windows.lengths,
        "row_id": [row_ids[owner] for owner in owners],
        "text": of_first(joined(questions, contexts), ""),
        "context": of_first(contexts, ""),
        "places": windows.places,
    }
    if answers is not None:
        columns["labels"] = [list(pair) for pair in windows.answers]
        columns["references"] = of_first([list(answer["text"]) for answer in answers], [])
    return Dataset.from_dict(columns)
