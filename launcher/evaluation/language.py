"""How well a language model predicts texts: loss and perplexity per token, and a unigram model to compare with.

Predictions of problem types ``causal_lm`` and ``masked_lm`` have one score for each text, the summed negative log-likelihood of its tokens in nats,
and as label the number of tokens that were predicted; those of ``masked_lm`` have a second score, the number of tokens that were told right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launcher.contracts import Predictions


def text_losses(predictions: Predictions) -> np.ndarray:
    """Return each text's loss per token in nats, float64 [rows]; NaN for a text without a predicted token."""
    summed, tokens = np.asarray(predictions.scores, dtype=np.float64)[:, 0], token_counts(predictions)
    return np.asarray(np.divide(summed, tokens, out=np.full(len(tokens), np.nan), where=tokens > 0))


def token_counts(predictions: Predictions) -> np.ndarray:
    """Return how many tokens of each text were predicted, float64 [rows]."""
    return np.asarray(predictions.labels, dtype=np.float64)


def language_metrics(summed: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Return loss (mean negative log-likelihood per token, nats) and perplexity, exp(loss) (Jelinek et al. 1977).

    ``summed``: summed negative log-likelihood of each text [rows]; ``tokens``: predicted tokens of each text [rows]. Each token
    counts the same, however long its text is. Perplexity is left out where it is beyond any number.
    """
    total = float(tokens.sum())
    if not total:
        return {}
    loss = float(summed.sum()) / total
    with np.errstate(over="ignore"):
        found = {"loss": loss, "perplexity": float(np.exp(loss))}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def masked_accuracy(right: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Return accuracy, the share of the masked tokens that were told right; {} where none is masked.

    ``right``, ``tokens``: of each text, how many were told right, and how many were to be told [rows].
    """
    total = float(tokens.sum())
    return {"accuracy": float(right.sum()) / total} if total else {}


def commonest_right(train: np.ndarray, targets: Sequence[np.ndarray]) -> np.ndarray:
    """Return how many of each row's targets are the commonest token of ``train``, which a unigram model tells everywhere; float64 [rows]."""
    seen, counts = np.unique(train, return_counts=True)
    return np.array([np.count_nonzero(row == seen[counts.argmax()]) for row in targets], dtype=np.float64)


def unigram_losses(train: np.ndarray, targets: Sequence[np.ndarray]) -> np.ndarray:
    """Return the summed negative log-likelihood of each row's targets under a unigram model of ``train``, float64 [rows].

    A token's probability is its share of the training tokens with 1 added to each count (Laplace 1814); all tokens that train
    has not share one place, so that the vocabulary's unused tokens cost nothing.

    Args:
        train: int [tokens] that the model was trained to predict.
        targets: for each row, int [tokens] that were predicted.
    """
    seen, counts = np.unique(train, return_counts=True)
    losses = np.log(counts.sum() + len(counts) + 1) - np.log(np.append(counts + 1, 1).astype(np.float64))
    return np.array([losses[_places(seen, row)].sum() for row in targets], dtype=np.float64)


def _places(seen: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return where each token stands in ``seen``, sorted; the place behind its end for one that is not there."""
    places = np.searchsorted(seen, row)
    is_known = places < len(seen)
    is_known[is_known] = seen[places[is_known]] == row[is_known]
    return np.asarray(np.where(is_known, places, len(seen)))
