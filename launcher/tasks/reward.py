"""Reward models: one number for a conversation, larger for the chosen of two answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Predictions, Prepared
from launcher.data.sources import column_names, load_rows
from launcher.data.turns import conversation_json, read_conversation, readable
from launcher.errors import DataError, ModelUnreachable
from launcher.recipe.chat_options import RewardOptions
from launcher.recipe.schema import Recipe
from launcher.tasks.answering import said_by_user
from launcher.tasks.models import LoadedModel, load_config, load_model
from launcher.tasks.padding import pad_tokens
from launcher.tasks.pair_task import SIDES, PairTask, pad_pairs, too_long
from launcher.tasks.preference_losses import reward_losses

PROBLEM = "reward"


class Reward(PairTask):
    """The task ``reward``: a head with one output reads the last token of a conversation."""

    problem = PROBLEM

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        super().__init__(recipe, base_folder=base_folder)
        assert isinstance(recipe.task, RewardOptions)
        self.options = recipe.task

    # --- data ------------------------------------------------------------------------------------------------------

    def read_rows(self, source: str) -> dict[str, list[Any]]:
        """Return the pairs of a file, or its conversations where it has no chosen and rejected answers. Raises DataError."""
        data = self.recipe.data
        names = column_names(source, data=data, base_folder=self.base_folder)
        if all(data.columns.get(side, side) in names for side in SIDES):
            return super().read_rows(source)
        columns = {ours: theirs for ours, theirs in data.columns.items() if ours not in SIDES}
        return load_rows(
            source, data=data.model_copy(update={"columns": columns}), base_folder=self.base_folder, needs=self._columns(),
            optional=("id", "group"), conversations=replace(self.wanted(), pairs=False, is_new=True),
        ).lists()  # fmt: skip

    def prepare_rows(self, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> tuple[Any, Prepared]:
        """Return rows for new pairs, for conversations, or for what was asked and answered (text and text_pair); and what they are to be read
        with. Raises DataError.
        """
        from datasets import Dataset

        if any(side in columns for side in SIDES):
            return super().prepare_rows(columns, facts)
        if "conversation" not in columns:
            columns = _typed(columns, self.options.default_system_message)
        _require_answered(columns["conversation"])
        texts = self.encoder(facts["max_length"])(columns["conversation"])
        without = [number for number, text in enumerate(texts) if not text.learned.any()]
        if without:
            raise DataError(too_long(without, of=len(texts), what="conversations", max_length=facts["max_length"]))
        rows = Dataset.from_dict(
            {
                "input_ids": [text.input_ids for text in texts],
                "length": [len(text.input_ids) for text in texts],
                "row_id": list(range(len(texts))),
                "text": columns["text"],
            }
        )
        return rows, Prepared(rows, rows, rows, "", (), self.problem)

    # --- model -----------------------------------------------------------------------------------------------------

    def build_model(
        self, prepared: Prepared | None, *, skeleton: bool = False, quantization: Any = None
    ) -> LoadedModel:
        """Return the model with a head of one output, which reads the last token that is not the padding token. Raises ModelError."""
        from transformers import AutoModelForSequenceClassification

        # Pipelines then tell the number as it is.
        fields = {"num_labels": 1, "id2label": {0: "reward"}, "label2id": {"reward": 0}, "problem_type": "regression"}
        config = load_config(self.recipe.model, skeleton=skeleton, **fields)
        self._set_padding(config, skeleton=skeleton)
        loaded = load_model(
            AutoModelForSequenceClassification, self.recipe.model, config, skeleton=skeleton, quantization=quantization
        )
        if hasattr(loaded.model.config, "use_cache"):
            loaded.model.config.use_cache = False
        loaded = self.with_tokens(loaded, skeleton=skeleton)
        # These heads take **kwargs but ignore the count of items; Trainer must not scale their loss by it.
        loaded.model.accepts_loss_kwargs = False
        return loaded

    def _set_padding(self, config: Any, *, skeleton: bool) -> None:
        """Let the head know what the batches are padded with: it reads the token before."""
        try:
            padding = self.tokenizer.pad_token_id
        except ModelUnreachable:
            if not skeleton:
                raise
            # Without weights any will do, but several rows want one.
            padding = 0
        config.get_text_config().pad_token_id = config.pad_token_id = padding

    # --- loss ------------------------------------------------------------------------------------------------------

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> batch of both texts of every row, with ``sample_weight`` float32 [rows]."""
        return RewardCollator(pad_token_id=self.pad_token_id())

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the weighted sum of the pairs' losses, a float32 scalar tensor."""
        chosen, rejected = outputs["logits"].float().squeeze(-1).chunk(2)
        losses = reward_losses(chosen, rejected, center=self.options.center_rewards_coefficient)
        return (losses * batch["sample_weight"]).sum()

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return the rewards of both answers [pairs, 2], or those of single conversations [rows, 1]."""
        import torch

        rewards = outputs["logits"].squeeze(-1)
        return torch.stack(rewards.chunk(2), dim=1) if "labels" in batch else rewards[:, None]

    # --- evaluation ------------------------------------------------------------------------------------------------

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Return rewards, and of pairs also losses; ``logits`` are ``row_outputs``."""
        import torch

        rewards = logits.astype(np.float64)
        if rewards.shape[1] == 1:
            return self.pair_predictions(rewards, split)
        chosen, rejected = torch.from_numpy(rewards).unbind(dim=1)
        losses = reward_losses(chosen, rejected, center=self.options.center_rewards_coefficient)
        return self.pair_predictions(np.column_stack([rewards, losses.numpy()]), split)


def _typed(columns: Mapping[str, list[Any]], system: str | None) -> dict[str, list[Any]]:
    """Return conversations of one question and one answer, behind a system message where there is one. Raises DataError where there is no answer."""
    if "text_pair" not in columns:
        raise DataError("a reward is of an answer: give it with --pair, or a file of conversations (--file)")
    if not all(text.strip() for name in ("text", "text_pair") for text in columns[name]):
        raise DataError("a text is empty; give what is asked, and with --pair what is answered")
    found = [
        [*said_by_user(asked, system), {"role": "assistant", "content": answered}]
        for asked, answered in zip(columns["text"], columns["text_pair"], strict=True)
    ]
    return {
        "text": [readable(messages) for messages in found],
        "conversation": [conversation_json(messages) for messages in found],
    }


def _require_answered(conversations: Sequence[str]) -> None:
    """Raise DataError where one does not end with an answer: the head would read what was asked."""
    for number, text in enumerate(conversations, start=1):
        said = read_conversation(text)[0][-1]["role"]
        if said != "assistant":
            raise DataError(
                f"conversation {number} ends with a message of the {said}, and a reward is of an answer; remove that message, or the row"
            )


class RewardCollator:
    """Makes batches of both texts of every row, or of single conversations, which have no labels."""

    def __init__(self, *, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what ``pad_pairs`` does, and ``labels`` int64 [rows]: 0, the first of the two is the chosen one."""
        import torch

        if "input_ids" in rows[0]:
            ids, mask = pad_tokens([row["input_ids"] for row in rows], value=self.pad_token_id)
            return {"input_ids": ids, "attention_mask": mask, "sample_weight": torch.ones(len(rows))}
        return {**pad_pairs(rows, pad_token_id=self.pad_token_id), "labels": torch.zeros(len(rows), dtype=torch.long)}
