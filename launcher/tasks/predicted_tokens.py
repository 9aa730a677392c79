"""What tasks that predict tokens share: the summed loss, and a score for each text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from launcher.contracts import Predictions, Prepared
from launcher.tasks.text_task import IGNORED, TextTask, predicted_count, summed_loss, token_losses


class PredictedTokens(TextTask):
    """A task that is learned and scored by the tokens of texts; a subclass says which are predicted, and from what."""

    problem: str
    """The problem type of its predictions."""

    def targets(self, batch: Mapping[str, Any]) -> Any:
        """Return which token each place has to predict, int64 [rows, tokens], IGNORED where none is."""
        raise NotImplementedError

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Return how many tokens a batch predicts, those of rows of weight 0 left out; a float32 scalar tensor."""
        return predicted_count(self.targets(batch), batch)

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the summed cross entropy of the predicted tokens, in nats, a float32 scalar tensor."""
        return summed_loss(outputs["logits"], self.targets(batch), batch, label_smoothing=label_smoothing)

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return each row's summed loss and number of predicted tokens, float32 [rows, 2]; the logits would fill the memory."""
        import torch

        targets = self.targets(batch)
        losses = token_losses(outputs["logits"], targets).sum(dim=1)
        return torch.stack([losses, (targets != IGNORED).sum(dim=1).to(losses.dtype)], dim=1)

    # --- evaluation ------------------------------------------------------------------------------------------------

    @property
    def default_metric(self) -> str:
        """The validation metric that chooses the best checkpoint unless the recipe names one."""
        return "loss"

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Add the rows of each text up: ``logits`` are ``row_outputs`` [rows, 2 or more]; Predictions have a row for each text.

        The first column is the summed loss and the second the number of predicted tokens; a third one is a score as well.
        """
        row_ids, places = np.unique(np.asarray(split["row_id"][:], dtype=np.int64), return_inverse=True)
        firsts = np.unique(places, return_index=True)[1]
        logits = logits[:, :3]
        totals = np.zeros((len(row_ids), logits.shape[1]))
        np.add.at(totals, places, logits.astype(np.float64))
        texts = split["text"]
        return Predictions(
            problem_type=self.problem,
            scores=np.delete(totals, 1, axis=1),
            labels=totals[:, 1].astype(np.int64),
            label_names=(),
            texts=tuple(texts[int(first)] for first in firsts),
            row_ids=tuple(row_ids.tolist()),
        )


def by_text(rows: Iterable[tuple[int, np.ndarray]]) -> dict[int, np.ndarray]:
    """Return number of a text -> the tokens of its rows in their order, ascending; ``rows``: (number of the text, tokens)."""
    pieces: dict[int, list[np.ndarray]] = {}
    for row_id, tokens in rows:
        pieces.setdefault(int(row_id), []).append(tokens)
    return {row_id: np.concatenate(pieces[row_id]) for row_id in sorted(pieces)}
