"""Simple models of tokens and words: how often each occurs, the tag that each has most often, the words that a question shares with a text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from launcher.contracts import Baseline, Predictions
from launcher.evaluation.kinds import metrics_for
from launcher.evaluation.language import commonest_right, unigram_losses

# --- unigram -------------------------------------------------------------------------------------------------------


def unigram_baseline(train: np.ndarray, targets: Sequence[np.ndarray], predictions: Predictions) -> Baseline:
    """Return what a unigram model of the training tokens makes of a language model's texts.

    Args:
        train: int [tokens] that the language model was trained to predict.
        targets: for each text of ``predictions``, int [tokens] that were predicted.
    """
    assert predictions.labels is not None and [len(row) for row in targets] == predictions.labels.tolist()
    scores = unigram_losses(train, targets)[:, None]
    if predictions.scores.shape[1] > 1:
        scores = np.column_stack([scores, commonest_right(train, targets)])
    own = replace(predictions, scores=scores)
    return Baseline("unigram", own, metrics_for(own))


# --- the tag of a word ---------------------------------------------------------------------------------------------


def word_tag_baseline(words: Sequence[str], tags: np.ndarray, predictions: Predictions) -> Baseline:
    """Return the baseline that gives each word the tag it has most often in train; a word that train has not, the commonest tag.

    Args:
        words: of train.
        tags: their tags' numbers, int64 [words].
        predictions: of a model, for the rows that are to be tagged.
    """
    names = len(predictions.label_names)
    vocabulary, numbers = np.unique(np.asarray(words, dtype=object), return_inverse=True)
    counts = np.zeros((len(vocabulary) + 1, names))
    np.add.at(counts, (numbers, tags), 1.0)
    counts[-1] = np.bincount(tags, minlength=names)
    place = {word: number for number, word in enumerate(vocabulary)}
    wanted = np.array([place.get(word, -1) for row in predictions.words for word in row])
    shares = counts / counts.sum(axis=1, keepdims=True)
    found = shares.argmax(axis=1)[wanted]
    own = replace(predictions, predicted=found, scores=shares.max(axis=1)[wanted])
    return Baseline("word_tag", own, {} if own.labels is None else metrics_for(own))


# --- a stretch of words --------------------------------------------------------------------------------------------

_WORDS = re.compile(r"\w+")
_NEAR = 12
_MOST_ANSWER_WORDS = 4


def overlap_baseline(contexts: Sequence[str], predictions: Predictions) -> Baseline:
    """Return the baseline that answers with the words nearest to those that question and text share.

    It slides a window over the text and takes the one with the most words of the question, rare ones counting more; there it answers with
    the longest run, of up to four words, that are not in the question. After the sliding-window baseline of Richardson, Burges and Renshaw
    2013, "MCTest: A Challenge Dataset for the Open-Domain Machine Comprehension of Text", section 4.1.

    Args:
        contexts: the texts of ``predictions``' questions.
    """
    answers = []
    for text, context in zip(predictions.texts, contexts, strict=True):
        asked = {match[0].lower() for match in _WORDS.finditer(text[: len(text) - len(context)])}
        answers.append(_near(asked, context))
    own = replace(predictions, answers=tuple(answers), scores=np.zeros(len(answers)))
    return Baseline("overlap", own, {} if own.labels is None else metrics_for(own))


def _near(asked: set[str], context: str) -> str:
    words = list(_WORDS.finditer(context))
    if not words:
        return ""
    plain = [match[0].lower() for match in words]
    counts = Counter(plain)
    weights = np.array([np.log1p(1 / counts[word]) if word in asked else 0.0 for word in plain])
    sums = np.convolve(weights, np.ones(min(_NEAR, len(weights))), mode="valid")
    first = int(sums.argmax())
    place, size, run = first, 1, 0
    for number in range(first, min(first + _NEAR, len(words))):
        run = 0 if plain[number] in asked else run + 1
        if size < run <= _MOST_ANSWER_WORDS or (run == 1 and plain[place] in asked):
            place, size = number - run + 1, run
    return context[words[place].start() : words[place + size - 1].end()]
