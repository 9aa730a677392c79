"""Bytes of a text file to text: byte-order marks, a named encoding, or one that is detected and stated."""

from __future__ import annotations

import codecs
import gzip
import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.errors import DataError

# Longest first: the mark of UTF-32-LE begins with that of UTF-16-LE.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MARK = "\ufeff"
MARK_INSIDE = "begins with a byte-order mark, as where files were written one after the other into this one; remove the mark, and a header that is repeated"
ESCAPED = re.compile("[\udc80-\udcff]+")
_SAMPLE_BYTES = 200_000
_CANDIDATES = ["gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp1252", "cp1250", "cp1251", "cp1253", "cp1254"]
# The rows of the most frequent characters in GB 2312 (lead bytes B0 to D7) and its punctuation (A1, A3).
_COMMON_GB = re.compile(rb"[\xb0-\xd7][\xa1-\xfe]|[\xa1\xa3][\xa1-\xfe]")
_NON_ASCII_RUN = re.compile(rb"[\x80-\xff]+")
_UTF8_CHARACTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")


@dataclass(frozen=True)
class DecodedText:
    """A file's text without byte-order mark, the encoding it was read by, and whether that was a guess."""

    text: str
    encoding: str
    guessed: bool
    broken: dict[int, str] = field(default_factory=dict)
    """Line, from 1, whose bytes do not fit -> what is wrong; they stand in the text as lone surrogates (PEP 383)."""


def read_text(path: Path, *, encoding: str | None = None, shown: str | None = None) -> DecodedText:
    """Read ``path`` as text: by ``encoding``, else by its byte-order mark, as UTF-8, or by detection, in this order.

    ``shown`` is how errors name the file.

    Raises:
        DataError: the file cannot be read, the encoding is unknown, or the bytes do not fit it (the line is named).
    """
    label = shown or str(path)
    decoded = read_broken_text(path, encoding=encoding, shown=label)
    for line, fault in decoded.broken.items():
        raise DataError(f"{label}:{line}: {fault}")
    return decoded


def read_broken_text(path: Path, *, encoding: str | None, shown: str) -> DecodedText:
    """As ``read_text``, with lines whose bytes do not fit in ``broken``. Raises DataError for faults of the whole file."""
    data = _read_bytes(path, shown=shown)
    if encoding is not None:
        return _decode_as(data, shown=shown, encoding=encoding)
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if marked is not None:
        return _decode_as(data, shown=shown, encoding=marked)
    try:
        return DecodedText(data.decode("utf-8"), "utf-8", guessed=False)
    except UnicodeDecodeError:
        return _decode_by_detection(data, shown=shown)


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without its line feed), one at a time: a list of them takes as much as the text once more.

    str.splitlines also cuts at U+2028 and U+0085, which JSON allows inside text.
    """
    start = 0
    for number in itertools.count(1):
        end = text.find("\n", start)
        if end < 0:
            yield number, text[start:]
            return
        yield number, text[start:end]
        start = end + 1


def _read_bytes(path: Path, *, shown: str) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.name.lower().endswith(".gz") else data
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{shown}: cannot be read ({reason}); check the file and its permissions") from None


def _decode_as(data: bytes, *, shown: str, encoding: str) -> DecodedText:
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise DataError(
            f"{shown}: encoding {encoding!r} is not known; write one such as utf-8, gbk, utf-16 or latin-1"
        ) from None
    reader = "utf-8-sig" if name == "utf-8" else "gb18030" if name in ("gb2312", "gbk") else name
    text, broken = _escaped(data, reader=reader, encoding=encoding, shown=shown)
    # A mark is no text, also where the encoding was named with its byte order (utf-16-le).
    return DecodedText(text.removeprefix(MARK), name, guessed=False, broken=broken)


def _escaped(data: bytes, *, reader: str, encoding: str, shown: str) -> tuple[str, dict[int, str]]:
    """Return the text, bytes that do not fit as lone surrogates, and what is wrong by line. Raises DataError where there are no lines."""
    try:
        text = data.decode(reader, "surrogateescape")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{shown}:{line}: {broken_bytes(data[error.start : error.start + 4], encoding)}") from None
    except LookupError:
        raise DataError(f"{shown}: encoding {encoding!r} is none of text; write one such as utf-8 or latin-1") from None
    if not ESCAPED.search(text):
        return text, {}
    found = ((number, ESCAPED.search(line)) for number, line in lines_of(text))
    return text, {
        number: broken_bytes(match[0].encode("utf-8", "surrogateescape")[:4], encoding)
        for number, match in found
        if match
    }


def broken_bytes(bad: bytes, encoding: str) -> str:
    """Return what is wrong with bytes that are no text of an encoding."""
    return (
        f"the bytes {bad.hex(' ')} are not {encoding} text; "
        "set `encoding` of this source to the file's true one (null: detected), or mend the line"
    )


def _decode_by_detection(data: bytes, *, shown: str) -> DecodedText:
    if _mostly_utf8(data):
        text, broken = _escaped(data, reader="utf-8", encoding="UTF-8", shown=shown)
        return DecodedText(text, "utf-8", guessed=False, broken=broken)
    name = _unmarked_utf16(data) or _common_chinese(data) or _detected(data)
    if name is None:
        raise DataError(
            f"{shown}: is not UTF-8 and no other text encoding was recognised; "
            "name it with `encoding`, or check that this is a text file"
        )
    decoded = _decode_as(data, shown=shown, encoding=name)
    return replace(decoded, encoding=name, guessed=True)


def _mostly_utf8(data: bytes) -> bool:
    """Whether the bytes are UTF-8 with a few broken places; other encodings hardly ever form UTF-8 characters."""
    total = sum(len(run) for run in _NON_ASCII_RUN.findall(data))
    valid = sum(len(character) for character in _UTF8_CHARACTER.findall(data))
    return total > 8 and valid >= 0.8 * total


def _unmarked_utf16(data: bytes) -> str | None:
    sample = data[:_SAMPLE_BYTES]
    half = max(1, len(sample) // 2)
    for name, zeros in (("utf-16-le", sample[1::2].count(0)), ("utf-16-be", sample[0::2].count(0))):
        if zeros / half > 0.2:
            return name
    return None


def _common_chinese(data: bytes) -> str | None:
    """gb18030 where nearly all non-ASCII bytes are frequent GB 2312 characters: short texts defeat general detection.

    Western text has single bytes above 7F between letters, which hardly ever pair up so.
    """
    runs = _NON_ASCII_RUN.findall(data[:_SAMPLE_BYTES])
    total = sum(len(run) for run in runs)
    common = sum(len(match) for run in runs for match in _COMMON_GB.findall(run))
    if not total or common < 0.85 * total or len(runs) > total / 3:
        return None
    try:
        data.decode("gb18030")
    except UnicodeDecodeError:
        return None
    return "gb18030"


def _detected(data: bytes) -> str | None:
    from charset_normalizer import from_bytes

    lines = [line for line in data[:_SAMPLE_BYTES].split(b"\n") if any(byte > 127 for byte in line)]
    best = from_bytes(b"\n".join(lines), cp_isolation=_CANDIDATES, threshold=0.5).best()
    if best is not None and _decodes(data, encoding=best.encoding):
        return best.encoding
    return next((name for name in ("cp1252", "latin-1") if b"\x00" not in data and _decodes(data, encoding=name)), None)


def _decodes(data: bytes, *, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
