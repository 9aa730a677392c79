"""Sentences of words as rows of tokens: which token stands for which word, and long sentences in several rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.errors import DataError

_BATCH_ROWS = 1000


@dataclass
class WordRows:
    """Rows of tokens, [rows] each; a sentence that is too long is several rows, cut between words."""

    features: dict[str, list[list[int]]] = field(default_factory=dict)
    """What the model takes, such as ``input_ids``."""
    sentences: list[int] = field(default_factory=list)
    """Number of each row's sentence, ascending."""
    words: list[list[str]] = field(default_factory=list)
    starts: list[list[int]] = field(default_factory=list)
    """For each word of a row, the place of its first token."""
    first_words: list[int] = field(default_factory=list)
    """Which word of its sentence a row begins with."""
    divided: int = 0
    """Sentences that became several rows."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(ids) for ids in self.features["input_ids"]]


def make_word_rows(
    tokenizer: Any, sentences: Sequence[Sequence[str]], *, max_length: int, origin: Callable[[int], str]
) -> WordRows:
    """Tokenize sentences of words, with the tokenizer's special tokens.

    A word that the tokenizer knows nothing of (such as an invisible character) becomes its unknown token; a single word that is
    longer than a row is cut.

    Args:
        tokenizer: a fast one, which tells the word of each token.
        origin: number of a sentence -> its place, for an error message.

    Raises:
        DataError: a word has no token, and the tokenizer has none for unknown words.
    """
    found = WordRows()
    special = tokenizer.num_special_tokens_to_add(pair=False)
    for start in range(0, len(sentences), _BATCH_ROWS):
        batch = [list(words) for words in sentences[start : start + _BATCH_ROWS]]
        sizes = _token_counts(tokenizer, batch)
        for offset, counts in enumerate(sizes):
            if 0 in counts:
                place = origin(start + offset)
                batch[offset] = _known_words(tokenizer, batch[offset], counts=counts, place=place)
                sizes[offset] = [max(count, 1) for count in counts]
        pieces = [_pieces(counts, room=max_length - special) for counts in sizes]
        rows = [(offset, piece) for offset, of_sentence in enumerate(pieces) for piece in of_sentence]
        encoded = tokenizer(
            [batch[offset][piece] for offset, piece in rows],
            is_split_into_words=True, truncation=True, max_length=max_length, return_attention_mask=False, verbose=False,
        )  # fmt: skip
        for name, values in encoded.items():
            found.features.setdefault(name, []).extend(values)
        for number, (offset, piece) in enumerate(rows):
            found.sentences.append(start + offset)
            found.words.append(list(sentences[start + offset][piece]))
            found.starts.append(_first_tokens(encoded.word_ids(number)))
            found.first_words.append(piece.start)
        found.divided += sum(len(of_sentence) > 1 for of_sentence in pieces)
    return found


def _token_counts(tokenizer: Any, batch: list[list[str]]) -> list[list[int]]:
    """Return [sentences][words] the number of each word's tokens."""
    encoded = tokenizer(
        batch, is_split_into_words=True, truncation=False, add_special_tokens=False, return_attention_mask=False, verbose=False
    )  # fmt: skip
    counts = []
    for number, words in enumerate(batch):
        of_words = [0] * len(words)
        for word in encoded.word_ids(number):
            if word is not None:
                of_words[word] += 1
        counts.append(of_words)
    return counts


def _known_words(tokenizer: Any, words: list[str], *, counts: list[int], place: str) -> list[str]:
    lost = words[counts.index(0)]
    if tokenizer.unk_token is None:
        raise DataError(
            f"{place}: the tokenizer makes no token of the word {lost!r} and has none for unknown words; mend the row"
        )
    return [word if count else tokenizer.unk_token for word, count in zip(words, counts, strict=True)]


def _pieces(counts: list[int], *, room: int) -> list[slice]:
    """Return which words make a row: as many as fit, at least one."""
    found, start, used = [], 0, 0
    for word, count in enumerate(counts):
        if word > start and used + count > room:
            found.append(slice(start, word))
            start, used = word, 0
        used += count
    return [*found, slice(start, len(counts))]


def _first_tokens(word_ids: Sequence[int | None]) -> list[int]:
    """Return the place of each word's first token."""
    return [
        place for place, word in enumerate(word_ids) if word is not None and (place == 0 or word_ids[place - 1] != word)
    ]
