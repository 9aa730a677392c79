"""Questions and the texts that may answer them, as rows of tokens: a long text is read in windows that overlap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.errors import DataError

_BATCH_ROWS = 500
NOWHERE = -1
"""Place in the text of a token that is not of it."""


@dataclass
class Windows:
    """Rows of tokens, [rows] each: every window of every question."""

    features: dict[str, list[list[int]]] = field(default_factory=dict)
    """What the model takes, such as ``input_ids``."""
    questions: list[int] = field(default_factory=list)
    """Number of each row's question, ascending."""
    places: list[list[int]] = field(default_factory=list)
    """[2 * tokens] for each token the first character of the text that it stands for, and the one after its last; NOWHERE for others."""
    answers: list[tuple[int, int]] = field(default_factory=list)
    """First and last token of the answer; (0, 0) where the window does not hold it whole."""
    divided: int = 0
    """Questions with several windows."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(ids) for ids in self.features["input_ids"]]


def make_windows(
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    spans: Sequence[tuple[int, int] | None] | None,
    max_length: int,
    stride: int,
    origin: Callable[[int], str],
) -> Windows:
    """Tokenize questions with their texts, each text in windows that share ``stride`` tokens with the next.

    Args:
        tokenizer: a fast one, which tells the place of each token.
        spans: of each question the answer's first character and the one after its last; None: there is no answer. None: unknown.
        origin: number of a question -> its place, for an error message.

    Raises:
        DataError: a question leaves no room for its text.
    """
    found = Windows()
    for start in range(0, len(questions), _BATCH_ROWS):
        batch = list(questions[start : start + _BATCH_ROWS])
        texts = list(contexts[start : start + _BATCH_ROWS])
        _refuse_long(tokenizer, batch, max_length=max_length, stride=stride, first=start, origin=origin)
        encoded = tokenizer(
            batch, texts, truncation="only_second", max_length=max_length, stride=stride, return_overflowing_tokens=True,
            return_offsets_mapping=True, return_attention_mask=False, verbose=False,
        )  # fmt: skip
        owners = list(encoded.pop("overflow_to_sample_mapping"))
        offsets = encoded.pop("offset_mapping")
        for name, values in encoded.items():
            found.features.setdefault(name, []).extend(values)
        for row, (owner, pairs) in enumerate(zip(owners, offsets, strict=True)):
            parts = encoded.sequence_ids(row)
            # An empty stretch is no character of the text; some tokenizers give it to tokens that they add.
            known = [pair if part == 1 and pair[1] > pair[0] else None for pair, part in zip(pairs, parts, strict=True)]
            found.questions.append(start + owner)
            found.places.append([place for pair in known for place in (pair or (NOWHERE, NOWHERE))])
            span = None if spans is None else spans[start + owner]
            found.answers.append((0, 0) if span is None else _tokens_of(span, known))
        found.divided += sum(owners.count(owner) > 1 for owner in range(len(batch)))
    return found


def _refuse_long(
    tokenizer: Any, questions: list[str], *, max_length: int, stride: int, first: int, origin: Callable[[int], str]
) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=True)
    encoded = tokenizer(questions, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    for row, ids in enumerate(encoded, start=first):
        room = max_length - special - len(ids)
        if room <= stride:
            raise DataError(
                f"{origin(row)}: the question has {len(ids)} tokens, which leaves room for {max(room, 0)} tokens of its text in a row of "
                f"{max_length} (data.max_length), and windows share {stride} (task.doc_stride); raise the one or lower the other"
            )


def _tokens_of(span: tuple[int, int], places: Sequence[tuple[int, int] | None]) -> tuple[int, int]:
    """Return the first and the last token of a stretch of characters; (0, 0) where they do not hold it whole."""
    first = next((n for n, place in enumerate(places) if place and place[0] <= span[0] < place[1]), None)
    last = next((n for n, place in enumerate(places) if place and place[0] < span[1] <= place[1]), None)
    return (0, 0) if first is None or last is None else (first, last)


def best_spans(
    start: Any, end: Any, places: Sequence[int], *, most: int, max_tokens: int
) -> list[tuple[float, tuple[int, int]]]:
    """Return the likeliest stretches of a window: (sum of both logits, (first character, the one after the last)), best first.

    ``start`` and ``end``: float [tokens], logits; ``places``: as in Windows; ``most``: how many starts and ends are tried;
    ``max_tokens``: of an answer.
    """
    import numpy as np

    held = np.asarray(places, dtype=np.int64).reshape(-1, 2)
    tokens = np.flatnonzero(held[:, 0] != NOWHERE)
    if not len(tokens):
        return []
    starts = tokens[np.argsort(-start[tokens], kind="stable")[:most]]
    ends = tokens[np.argsort(-end[tokens], kind="stable")[:most]]
    found = [
        (float(start[first] + end[last]), (int(held[first, 0]), int(held[last, 1])))
        for first in starts
        for last in ends
        if first <= last < first + max_tokens
    ]
    return sorted(found, key=lambda one: -one[0])[:most]


def span_of(answer: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Return where the first right answer stands in its text; None: there is none."""
    if not answer or not answer["text"]:
        return None
    return answer["answer_start"][0], answer["answer_start"][0] + len(answer["text"][0])
