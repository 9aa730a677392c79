"""Translation and summarization: a text is read, and another one written (sequence to sequence)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Baseline, Predictions, Prepared, ShownRow
from launcher.data.prepare import tokenize
from launcher.data.sources import SplitSet, load_rows, load_splits
from launcher.errors import DataError, ModelError, ModelUnreachable
from launcher.evaluation.generation import SUMMARIZATION, TRANSLATION
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import SummarizationOptions, TranslationOptions
from launcher.tasks.generation import settle_generation, settle_special_tokens, waits_for_others
from launcher.tasks.models import LoadedModel, load_config, load_model, load_tokenizer
from launcher.tasks.padding import pad_inputs, pad_tokens
from launcher.tasks.prepared_task import SPLITS, write_features
from launcher.tasks.text_task import IGNORED, TextTask, predicted_count, summed_loss

_NEEDS, _OPTIONAL = ("text",), ("target", "id")


class SequenceToSequence(TextTask):
    """A task whose model reads a text and writes another; a subclass says how that is scored."""

    problem: str
    """The problem type of its predictions."""

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        super().__init__(recipe, base_folder=base_folder)
        assert isinstance(recipe.task, TranslationOptions | SummarizationOptions)
        self.options = recipe.task

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, told the languages where the recipe names them. Raises ModelError for one that it does not know."""
        found = load_tokenizer(self.recipe.model)
        for name, attribute in (("source_lang", "src_lang"), ("target_lang", "tgt_lang")):
            code = getattr(self.options, name, None)
            if code is not None:
                if not hasattr(found, attribute):
                    raise ModelError(
                        f"task.{name} is {code!r}, but {type(found).__name__} knows no languages; remove it, or for a model such as T5 "
                        "name them in task.source_prefix"
                    )
                try:
                    setattr(found, attribute, code)
                except KeyError as error:
                    raise ModelError(_unknown_language(found, name, code)) from error
        return found

    @property
    def end_id(self) -> int:
        """Number of the token with which texts end. Raises ModelError where the tokenizer has none."""
        for number in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id):
            if number is not None:
                return int(number)
        raise ModelError(
            f"the tokenizer of {self.recipe.model.tokenizer_name_or_path or self.recipe.model.name_or_path} has neither an end nor a "
            "separator token, so that no text would end; choose a sequence-to-sequence model such as T5 or BART"
        )

    # --- data ------------------------------------------------------------------------------------------------------

    def load_splits(self) -> SplitSet:
        """Return the texts of every split, with what is to be written as their label. Raises DataError."""
        return load_splits(
            self.recipe.data, base_folder=self.base_folder, needs=_NEEDS, optional=_OPTIONAL, problem_type=self.problem
        )

    def key_parts(self, splits: SplitSet) -> dict[str, Any]:
        """Return what prepared rows depend on: how generation goes makes no difference."""
        names = ("type", "source_prefix", "max_target_length", "source_lang", "target_lang")
        return {"task": self.options.model_dump(include=set(names))}

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of targets that were cut, of rows with several, and of the model."""
        found = []
        for name, counts in facts["splits"].items():
            if name != "test" and counts["cut_targets"]:
                found.append(
                    f"{counts['cut_targets']:,} of the {counts['rows']:,} {name} targets are longer than "
                    f"{self.options.max_target_length:,} tokens (task.max_target_length) and were cut"
                )
            if name == "train" and counts["with_several"]:
                found.append(
                    f"{counts['with_several']:,} of the {counts['rows']:,} train rows have several targets; the first of each is learned"
                )
        return [*found, *self.notes_on_model()]

    def prepare_splits(self, splits: SplitSet, folder: Path, *, max_length: int) -> dict[str, Any]:
        """Write the tokens of each split into ``folder``; return facts."""
        for name in ("train", "validation"):
            if "label" not in getattr(splits, name).column_names:
                raise DataError(
                    f"the {name} rows have no texts to be written; name their column in data.columns: {{target: ...}}"
                )
        make = self._maker(max_length=max_length)
        counts = {name: _write(splits, name, folder, make) for name in SPLITS if getattr(splits, name) is not None}
        return {
            "fingerprint": splits.fingerprint,
            "problem_type": self.problem,
            "label_names": [],
            "max_length": max_length,
            "pairs": False,
            "splits": counts,
        }

    def _maker(self, *, max_length: int) -> Any:
        return functools.partial(
            pair_features, tokenizer=self.tokenizer, end=self.end_id, prefix=self.options.source_prefix,
            max_length=max_length, max_target_length=self.options.max_target_length,
        )  # fmt: skip

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return a prepared row as the model sees it: what it reads, and then what it learns to write."""
        parts = [*self.text_parts(row["input_ids"])]
        if "target_ids" in row:
            parts += [(" → ", "special"), *self.text_parts(row["target_ids"], learned=True)]
        return ShownRow(row["row_id"], row["length"], tuple(parts), "")

    def prepare_rows(self, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> tuple[Any, Prepared]:
        """Return rows of features for new texts, and what they are to be read with. Raises DataError for pairs."""
        if "text_pair" in columns:
            raise DataError("this model reads single texts; give it no second ones")
        from datasets import Dataset

        numbered = {"text": columns["text"], "row_id": list(range(len(columns["text"])))}
        features, _ = self._maker(max_length=facts["max_length"])(numbered)
        rows = Dataset.from_dict(features)
        return rows, Prepared(rows, rows, rows, "", (), self.problem, facts)

    def read_rows(self, source: str) -> dict[str, list[Any]]:
        """Return the texts of a file. Raises DataError."""
        return load_rows(source, data=self.recipe.data, base_folder=Path(), needs=_NEEDS, optional=_OPTIONAL).lists()

    # --- model -----------------------------------------------------------------------------------------------------

    def build_model(
        self, prepared: Prepared | None, *, skeleton: bool = False, quantization: Any = None
    ) -> LoadedModel:
        """Return the model, which writes as the recipe says; nothing in it depends on the data. Raises ModelError."""
        from transformers import AutoModelForSeq2SeqLM

        section = self.recipe.model
        config = self._config(skeleton=skeleton)
        loaded = load_model(
            AutoModelForSeq2SeqLM, section, config, skeleton=skeleton, quantization=quantization, new_head=False
        )
        settle_generation(loaded.model, section, self.options, target_lang=self._language(skeleton=skeleton))
        # Keys and values of all tokens are of use to generation only; generation_config.json keeps them there.
        loaded.model.config.use_cache = False
        # The loss is ours; Trainer must not scale it by its own count.
        loaded.model.accepts_loss_kwargs = False
        return loaded

    def _config(self, *, skeleton: bool) -> Any:
        config = load_config(self.recipe.model, skeleton=skeleton)
        if not getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"a {config.model_type} model does not read one text and write another; choose an encoder-decoder such as T5, BART, "
                "Marian or NLLB"
            )
        most = getattr(config, "max_position_embeddings", None)
        if most is not None and self.options.max_target_length > most:
            raise ModelError(
                f"task.max_target_length is {self.options.max_target_length:,}, but this model writes at most {most:,} tokens; lower it"
            )
        self.require_vocabulary(config, skeleton=skeleton)
        try:
            settle_special_tokens(config, self.recipe.model, pad=self.tokenizer.pad_token_id, end=self.end_id)
        except ModelUnreachable:
            if not skeleton:
                raise
        return config

    def _language(self, *, skeleton: bool) -> int | None:
        """Return the number of the token of the language that is written; None where the recipe names none."""
        code = getattr(self.options, "target_lang", None)
        if code is None:
            return None
        try:
            tokenizer = self.tokenizer
        except ModelUnreachable:
            if not skeleton:
                raise
            return None
        if hasattr(tokenizer, "get_lang_id"):
            return int(tokenizer.get_lang_id(code))
        number = tokenizer.convert_tokens_to_ids(code)
        if number is None or number == tokenizer.unk_token_id:
            raise ModelError(_unknown_language(tokenizer, "target_lang", code))
        return int(number)

    def load_trained(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        """Return a saved model in evaluation mode."""
        return self.build_model(None).model.eval()

    # --- loss ------------------------------------------------------------------------------------------------------

    @cached_property
    def shift(self) -> Callable[[Any], Any]:
        """What makes a decoder's inputs of labels, as the model's own code does: int64 [rows, tokens] to the same."""
        model = self.build_model(None, skeleton=True).model
        if hasattr(model, "prepare_decoder_input_ids_from_labels"):
            return lambda labels: model.prepare_decoder_input_ids_from_labels(labels=labels)
        config = model.config.get_text_config(decoder=True)
        return functools.partial(shifted, start=config.decoder_start_token_id, pad=config.pad_token_id)

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> padded batch of tensors, with ``sample_weight`` float32 [rows]."""
        return Collator(self.tokenizer, self.shift)

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Return how many tokens of a batch are to be written, a float32 scalar tensor."""
        return predicted_count(batch["labels"], batch)

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the summed cross entropy of the tokens that are to be written, in nats, a float32 scalar tensor."""
        return summed_loss(outputs["logits"], batch["labels"], batch, label_smoothing=label_smoothing)

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return nothing, [rows, 0]: predictions are what is generated."""
        return outputs["logits"][:, 0, :0]

    # --- evaluation ------------------------------------------------------------------------------------------------

    @property
    def generates(self) -> bool:
        """Whether predictions are texts that the model writes."""
        return True

    @property
    def validates_by_loss(self) -> bool:
        """Whether validation during training computes the loss alone."""
        return not self.options.predict_with_generate

    def generate(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Return the tokens that ``model`` writes for a batch, int64 [rows, tokens]; all ranks call it at the same time."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found = getattr(model, "module", model).generate(**inputs, use_cache=True, synced_gpus=waits_for_others(model))
        return found[:, 1:]

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Read what was written: ``logits`` are ``generate``'s tokens [rows, tokens], NaN behind a row's last."""
        rows = [row[np.isfinite(row)].astype(np.int64).tolist() for row in logits]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        references = split["references"][:] if "references" in split.column_names else None
        return Predictions(
            problem_type=self.problem,
            scores=np.array([float(self.end_id in row) for row in rows]),
            labels=None if references is None else np.array([len(of_row) for of_row in references]),
            label_names=(),
            texts=tuple(split["text"][:]),
            row_ids=tuple(split["row_id"][:]),
            answers=tuple(text.strip() for text in texts),
            references=tuple(map(tuple, references)) if references is not None else ((),) * len(rows),
        )

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines: the text itself, what train has for the most similar text, or the first sentences."""
        from launcher.evaluation.baselines_generated import generated_baseline

        train = (prepared.train["text"][:], [targets[0] for targets in prepared.train["references"][:]])
        return [generated_baseline(name, *train, predictions) for name in names]


class Translation(SequenceToSequence):
    """The task ``translation``."""

    problem = TRANSLATION

    @property
    def default_metric(self) -> str:
        """The validation metric that chooses the best checkpoint unless the recipe names one."""
        return "loss" if self.validates_by_loss else "bleu"


class Summarization(SequenceToSequence):
    """The task ``summarization``."""

    problem = SUMMARIZATION

    @property
    def default_metric(self) -> str:
        """The validation metric that chooses the best checkpoint unless the recipe names one."""
        return "loss" if self.validates_by_loss else "rougeL"


class Collator:
    """Pads texts and what is to be written to the longest of their batch; a row's ``sample_weight`` is 0 for padding rows."""

    def __init__(self, tokenizer: Any, shift: Callable[[Any], Any]) -> None:
        self.tokenizer = tokenizer
        self.shift = shift

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return input tensors and ``sample_weight``, and where there are targets ``labels`` int64 [rows, tokens], IGNORED behind a row's
        last, and ``decoder_input_ids`` of the same shape.
        """
        batch = pad_inputs(self.tokenizer, rows)
        if "target_ids" in rows[0]:
            batch["labels"], _ = pad_tokens([row["target_ids"] for row in rows], value=IGNORED)
            batch["decoder_input_ids"] = self.shift(batch["labels"])
        return batch


def shifted(labels: Any, *, start: int, pad: int) -> Any:
    """Return labels moved on by one place, with ``start`` before them and ``pad`` for what is IGNORED; int64 [rows, tokens]."""
    moved = labels.new_full(labels.shape, start)
    moved[:, 1:] = labels[:, :-1]
    return moved.masked_fill(moved == IGNORED, pad)


# --- rows ----------------------------------------------------------------------------------------------------------


def pair_features(
    rows: Mapping[str, list[Any]], *, tokenizer: Any, end: int, prefix: str, max_length: int, max_target_length: int, origin: Any = None
) -> tuple[dict[str, Any], dict[str, int]]:  # fmt: skip
    """Return columns of tokens for texts and, where there are ``references``, for what is to be written; and counts."""
    texts = rows["text"]
    read = tokenize(tokenizer, [prefix + text for text in texts], None, max_length=max_length)
    # Of pairs of texts, which some tokenizers tell apart by a type of each token, these models know nothing.
    ids = read.features["input_ids"]
    columns: dict[str, Any] = {"input_ids": ids, "length": read.lengths, "row_id": rows["row_id"], "text": texts}
    counts = {"rows": len(texts), "tokens": int(read.lengths.sum()), "cut": read.cut}
    references = rows.get("references")
    if references is None:
        return columns, counts
    targets, cut = target_tokens(tokenizer, [of_row[0] for of_row in references], end=end, most=max_target_length)
    lengths = np.array([len(ids) for ids in targets], dtype=np.int64)
    # What is read and what is written: both take time and memory.
    columns |= {"target_ids": targets, "references": references, "length": read.lengths + lengths}
    several = sum(len(of_row) > 1 for of_row in references)
    return columns, {**counts, "tokens": int(columns["length"].sum()), "cut_targets": cut, "with_several": several}


def target_tokens(tokenizer: Any, texts: list[str], *, end: int, most: int) -> tuple[list[list[int]], int]:
    """Return the tokens of what is to be written, each text with its end and at most ``most`` of them, and how many texts were cut."""
    found = tokenizer(text_target=texts, truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
    # Tokenizers of several languages put the language behind the end.
    whole = [ids if end in ids[-2:] else [*ids, end] for ids in found]
    return [ids[:most] for ids in whole], sum(len(ids) > most for ids in whole)


def _write(splits: SplitSet, name: str, folder: Path, make: Any) -> dict[str, Any]:
    """Write a split's features and references; return counts."""
    split = getattr(splits, name)
    is_labelled = "label" in split.column_names
    more = {"references": split["label"]} if is_labelled else {}
    counts = write_features(splits, name, folder, make, more=more)
    return {"cut_targets": 0, "with_several": 0, **counts, "labelled": is_labelled}


def _unknown_language(tokenizer: Any, name: str, code: str) -> str:
    known = list(getattr(tokenizer, "lang_code_to_id", {}))[:5]
    hint = f"it knows {', '.join(known)}, ..." if known else "see the model's page for its codes"
    return f"task.{name} is {code!r}, which is no language of {type(tokenizer).__name__}; {hint}"
