"""Extractive question answering: which stretch of a text answers a question, or that none does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Baseline, Predictions, Prepared, ShownRow
from launcher.data.sources import SplitSet, load_rows, load_splits
from launcher.data.windows import best_spans, make_windows, span_of
from launcher.errors import DataError, ModelError
from launcher.evaluation.answers import ANSWERS
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import QuestionAnsweringOptions
from launcher.tasks.models import LoadedModel, load_config, load_model, load_tokenizer
from launcher.tasks.padding import pad_inputs
from launcher.tasks.prepared_task import SPLITS, write_features
from launcher.tasks.text_task import TextTask, joined

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

    def prepare_splits(self, splits: SplitSet, folder: Path, *, max_length: int) -> dict[str, Any]:
        """Write the features of each split into ``folder``; return facts."""
        if "label" not in splits.train.column_names:
            raise DataError("the training questions have no answers; name their column in data.columns: {answers: ...}")
        make = self._maker(max_length=max_length)
        counts = {name: _write(splits, name, folder, make) for name in SPLITS if getattr(splits, name)}
        unanswered = counts["train"]["without_answer"]
        if unanswered == counts["train"]["questions"]:
            raise DataError("no training question has an answer; check data.columns: {answers: ...}")
        return {
            "fingerprint": splits.fingerprint,
            "problem_type": ANSWERS,
            "label_names": [],
            "max_length": max_length,
            "pairs": True,
            "may_have_no_answer": unanswered > 0,
            "splits": counts,
        }

    def _maker(self, *, max_length: int) -> Any:
        return functools.partial(
            window_features, tokenizer=self.tokenizer, max_length=max_length, stride=self.options.doc_stride
        )

    def model_facts(self, prepared: Prepared) -> dict[str, Any]:
        """Return what has to be known to use the saved model without its run."""
        return {**super().model_facts(prepared), "may_have_no_answer": prepared.facts["may_have_no_answer"]}

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
        from datasets import Dataset

        self.may_have_no_answer = facts["may_have_no_answer"]
        questions = {**columns, "row_id": list(range(len(columns["text"])))}
        make = self._maker(max_length=facts["max_length"])
        features, _ = make(questions, origin=lambda row: f"question {row + 1}")
        rows = Dataset.from_dict(features)
        return rows, Prepared(rows, rows, rows, "", (), ANSWERS, facts)

    def read_rows(self, source: str) -> dict[str, list[Any]]:
        """Return the questions and texts of a file. Raises DataError."""
        data = self.recipe.data
        kept = {ours: theirs for ours, theirs in data.columns.items() if ours != "answers"}
        reading = data.model_copy(update={"columns": kept})
        return load_rows(source, data=reading, base_folder=Path(), needs=_NEEDS, optional=("id",)).lists()

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
        from launcher.evaluation.baselines_tokens import overlap_baseline

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
    return np.flatnonzero(np.diff(np.asarray(split["row_id"][:]), prepend=-1))


def window_features(
    rows: Mapping[str, list[Any]], *, tokenizer: Any, max_length: int, stride: int, origin: Callable[[int], str]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return columns of features for questions and texts, with labels where there are ``answers``; and counts.

    What is of a question stands with the first of its windows only.
    """
    questions, contexts, answers = rows["text"], rows["text_pair"], rows.get("answers")
    windows = make_windows(
        tokenizer, questions, contexts, spans=None if answers is None else [span_of(answer) for answer in answers],
        max_length=max_length, stride=stride, origin=origin,
    )  # fmt: skip
    owners = windows.questions
    is_first = [number == 0 or owners[number - 1] != owner for number, owner in enumerate(owners)]

    def of_first(values: Sequence[Any], empty: Any) -> list[Any]:
        return [values[owner] if first else empty for owner, first in zip(owners, is_first, strict=True)]

    columns: dict[str, Any] = {
        **windows.features,
        "length": windows.lengths,
        "row_id": [rows["row_id"][owner] for owner in owners],
        "text": of_first(joined(questions, contexts), ""),
        "context": of_first(contexts, ""),
        "places": windows.places,
    }
    if answers is not None:
        columns["labels"] = [list(pair) for pair in windows.answers]
        columns["references"] = of_first([list(answer["text"]) for answer in answers], [])
    counts = {
        "rows": len(owners),
        "questions": len(questions),
        "tokens": sum(windows.lengths),
        "divided": windows.divided,
    }
    unanswered = 0 if answers is None else sum(not answer["text"] for answer in answers)
    return columns, {**counts, "cut": 0, "without_answer": unanswered}


def _write(splits: SplitSet, name: str, folder: Path, make: Any) -> dict[str, Any]:
    """Write a split's features and answers; return counts."""
    split = getattr(splits, name)
    labelled = "label" in split.column_names
    more = {"answers": split["label"]} if labelled else {}
    return {**write_features(splits, name, folder, make, more=more), "labelled": labelled}
