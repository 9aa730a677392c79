"""Preference tuning: of two answers the better one, by direct preference optimization and its relatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Predictions, Prepared
from launcher.recipe.chat_options import REFERENCE_FREE_LOSSES, PreferenceOptions
from launcher.recipe.schema import Recipe
from launcher.tasks.causal_model import takes_logits_to_keep
from launcher.tasks.models import load_config
from launcher.tasks.pair_task import SIDES, PairTask, pad_pairs
from launcher.tasks.preference_losses import PairScores, pair_losses, pair_rewards
from launcher.tasks.text_task import IGNORED, token_losses

PROBLEM = "preference"


class Preference(PairTask):
    """The task ``preference``.

    What most of its losses want of the model before training are the answers' summed log-probabilities, which the engine computes once.
    """

    problem = PROBLEM

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        super().__init__(recipe, base_folder=base_folder)
        assert isinstance(recipe.task, PreferenceOptions)
        self.options = recipe.task

    @property
    def reference_columns(self) -> tuple[str, ...]:
        """Names of the first columns of ``row_outputs`` that the loss wants of the model before training; (): it wants none."""
        return () if self.options.loss_type in REFERENCE_FREE_LOSSES else SIDES

    # --- loss ------------------------------------------------------------------------------------------------------

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> batch of both texts of every row, with ``sample_weight`` float32 [rows]."""
        places = takes_logits_to_keep(load_config(self.recipe.model, skeleton=True))
        return PreferenceCollator(pad_token_id=self.pad_token_id(), only_learned=places)

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the weighted sum of the pairs' losses, a float32 scalar tensor."""
        reference = batch["reference"].unbind(dim=1) if self.reference_columns else ()
        scores = PairScores(*answer_scores(outputs, batch), *reference)
        return (pair_losses(scores, self.options) * batch["sample_weight"]).sum()

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return of each pair the summed log-probabilities of both answers, their tokens, and where it is known the reference: float32
        [pairs, 4 or 6].
        """
        import torch

        own = torch.stack(answer_scores(outputs, batch), dim=1)
        return torch.cat([own, batch["reference"]], dim=1) if "reference" in batch else own

    # --- evaluation ------------------------------------------------------------------------------------------------

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Return the pairs' rewards and losses; ``logits`` are ``row_outputs`` [rows, 4 or 6]."""
        import torch

        scores = PairScores(*torch.from_numpy(logits.astype(np.float64)).unbind(dim=1))
        columns = (*pair_rewards(scores, self.options), pair_losses(scores, self.options))
        return self.pair_predictions(torch.stack(columns, dim=1).numpy(), split)


def answer_scores(outputs: Any, batch: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Return the summed log-probability of the chosen and of the rejected answers, in nats, and their tokens; float32 [pairs] each."""
    targets = batch["shift_labels"]
    summed = -token_losses(outputs["logits"], targets).sum(dim=1)
    tokens = (targets != IGNORED).sum(dim=1).to(summed.dtype)
    return (*summed.chunk(2), *tokens.chunk(2))


class PreferenceCollator:
    """Makes batches of both texts of every row; the logits of places after which no row learns are not asked for."""

    def __init__(self, *, pad_token_id: int, only_learned: bool) -> None:
        """``only_learned``: whether the model takes ``logits_to_keep``."""
        self.pad_token_id = pad_token_id
        self.only_learned = only_learned

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what ``pad_pairs`` does, ``shift_labels`` int64 [2 * rows, places], the token that follows each place where it is an
        answer's, and ``logits_to_keep`` int64 [places], the same places in every row.
        """
        import torch
        import torch.nn.functional as F

        batch = pad_pairs(rows, pad_token_id=self.pad_token_id)
        learned = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        for number, own in enumerate(row[f"{side}_learned"] for side in SIDES for row in rows):
            learned[number, : len(own)] = torch.as_tensor(own, dtype=torch.bool)
        # Nothing comes before the first token.
        labels = batch["input_ids"].masked_fill(~learned, IGNORED)
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        if self.only_learned:
            places = (targets != IGNORED).any(dim=0).nonzero().flatten()
            # Of a row that was cut before its answer one place is asked for, of which nothing is learned.
            places = places if len(places) else torch.zeros(1, dtype=torch.long)
            batch["logits_to_keep"], targets = places, targets[:, places]
        return {**batch, "shift_labels": targets}
