"""How well texts were written, held to what people wrote: BLEU and chrF by sacreBLEU, ROUGE by rouge-score.

Predictions of problem types ``translation`` and ``summarization`` have ``answers`` (what was written), ``references`` (one or more right texts
for each row), as ``scores`` 1 where a text ended by itself and 0 where it reached the greatest length, and as ``labels`` the number of references.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.metric_names import METRICS

TRANSLATION, SUMMARIZATION = "translation", "summarization"
ROUGE = ("rougeL", "rouge1", "rouge2", "rougeLsum")

_LETTERS = re.compile(r"[^\W\d_]")
# Metrics, their intervals, tests and examples each ask for the scores of the same texts: those of a model and its baselines are kept.
_KEPT = 6
# Scripts that put no space between words.
_HAN = re.compile(r"[\u3400-\u9fff]")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")


# --- BLEU and chrF ---------------------------------------------------------------------------------------------------


class CorpusScore:
    """A score of sacreBLEU for a whole split, from counts of its rows that add up.

    Source: Post 2018, "A Call for Clarity in Reporting BLEU Scores"; Papineni et al. 2002 (BLEU), Popović 2015 (chrF). Its significance tests
    add the same counts.
    """

    def __init__(self, metric: Any, answers: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        self._metric = metric
        self.counts = np.array(metric._extract_corpus_statistics(list(answers), _streams(references)), dtype=np.float64)

    def of(self, counts: np.ndarray) -> float:
        """Return the score, 0 to 100, of rows whose ``counts`` [k] are added up."""
        return float(self._metric._compute_score_from_stats(counts.astype(np.int64).tolist()).score)

    def of_all(self) -> float:
        """Return the score of all rows."""
        return self.of(self.counts.sum(axis=0))

    def of_each(self) -> np.ndarray:
        """Return the score of each row on its own, float64 [rows]."""
        return np.array([self.of(counts) for counts in self.counts])

    def drawn(self, rows: np.ndarray) -> np.ndarray:
        """Return the score of each resample, float64 [resamples], for row indices int64 [resamples, n]."""
        return np.array([self.of(self.counts[of_one].sum(axis=0)) for of_one in rows])


def bleu(predictions: Predictions) -> CorpusScore:
    """Return BLEU, its tokens as ``bleu_tokens`` has them."""
    return _bleu(predictions.answers, predictions.references)


@functools.lru_cache(maxsize=_KEPT)
def _bleu(answers: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> CorpusScore:
    from sacrebleu.metrics.bleu import BLEU

    return CorpusScore(BLEU(tokenize=bleu_tokens(references), force=True), answers, references)


def chrf(predictions: Predictions) -> CorpusScore:
    """Return chrF2: characters alone, which suits every script."""
    return _chrf(predictions.answers, predictions.references)


@functools.lru_cache(maxsize=_KEPT)
def _chrf(answers: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> CorpusScore:
    from sacrebleu.metrics.chrf import CHRF

    return CorpusScore(CHRF(), answers, references)


def bleu_tokens(references: Sequence[Sequence[str]]) -> str:
    """Return sacreBLEU's tokenizer for the language of ``references``: 13a, its default, zh for Chinese, char for other scripts without spaces."""
    letters = [letter for row in references for text in row for letter in _LETTERS.findall(text)]
    unspaced = [letter for letter in letters if _UNSPACED.match(letter)]
    if 2 * len(unspaced) <= len(letters):
        return "13a"
    return "zh" if all(map(_HAN.match, unspaced)) else "char"


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Return references as sacreBLEU takes them: the first ones of all rows, the second ones, ...; None where a row has fewer."""
    most = max(map(len, references))
    return [[row[i] if i < len(row) else None for row in references] for i in range(most)]


# --- ROUGE -----------------------------------------------------------------------------------------------------------


def rouge_of_each(predictions: Predictions) -> dict[str, np.ndarray]:
    """Return name -> F-measure of each row, float64 [rows] from 0 to 1, of the reference that suits it best.

    As rouge-score's own with use_stemmer=True, its sentences (for rougeLsum) taken from lines. Source: Lin 2004, "ROUGE: A Package for Automatic
    Evaluation of Summaries".
    """
    return _rouge(predictions.answers, predictions.references)


@functools.lru_cache(maxsize=_KEPT)
def _rouge(answers: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> dict[str, np.ndarray]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), use_stemmer=True, tokenizer=rouge_tokenizer(references))
    rows = [scorer.score_multi(list(right), answer) for answer, right in zip(answers, references, strict=True)]
    return {name: np.array([row[name].fmeasure for row in rows]) for name in ROUGE}


def rouge_tokenizer(references: Sequence[Sequence[str]]) -> Any:
    """Return None for texts in Latin letters, for which rouge-score's own tokenizer is made; one of words of any script otherwise.

    rouge-score drops all but a-z and 0-9: every score of a Russian or Chinese summary would be 0.
    """
    counts = Counter(
        "latin" if letter < "\u0250" else "other"
        for row in references
        for text in row
        for letter in _LETTERS.findall(text)
    )
    return _AnyScript() if counts["other"] > counts["latin"] else None


class _AnyScript:
    """Words of any script in lower case, and single characters where a script has no spaces."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of ``text``."""
        return re.findall(r"\w+", _UNSPACED.sub(r" \g<0> ", text.lower()))


# --- what a kind asks ------------------------------------------------------------------------------------------------


def worst_texts(
    predictions: Predictions, scores: np.ndarray, *, most: int, name: str
) -> list[tuple[int, dict[str, Any]]]:
    """Return (row, {label, predicted, score, scored}) of the rows of the lowest ``scores`` [rows] of the metric ``name``, the worst first."""
    worst = np.argsort(scores, kind="stable")[:most]
    return [
        (
            int(row),
            {
                "label": " / ".join(predictions.references[row]),
                "predicted": predictions.answers[row] or "(nothing)",
                "score": float(scores[row]),
                "scored": f"{METRICS[name].words} {scores[row]:.{1 if METRICS[name].points == 1 else 3}f}",
            },
        )
        for row in worst
    ]


def cut_share(predictions: Predictions) -> float:
    """Return the share of texts that reached the greatest length and so may lack their end."""
    return float(1 - predictions.scores.mean())
