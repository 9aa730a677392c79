"""``builtin:api-topics``: what is a public API about, told from the first paragraph of its docstring?

The texts are read, without importing anything, from packages that this project installs anyway: the quickstart then has
real English to learn from on any machine, and nothing is downloaded or copied. Names of libraries are masked, markup is
taken off, and of texts that repeat one another nearly word for word only one is kept, so that neither a library's name
nor a family of like sentences gives the topic away.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launcher.data.builtin import BuiltinData
from launcher.data.builtin_api_topics_sources import FINGERPRINT, LIBRARY_NAMES, TOPICS, VERSIONS, Part
from launcher.data.builtin_cache import kept_rows
from launcher.data.builtin_packages import docstrings_of, files_of, parsed
from launcher.errors import DataError

TRAIN_PER_TOPIC = 40
VALIDATION_PER_TOPIC = 40
TEST_PER_TOPIC = 300
MASK = "[library]"

_SHORTEST, _LONGEST = 40, 300
_CONTENT_WORDS = 4
_STOP_TEXT = (
    "a an the of to in for and or is are be by with from as at on that this it its if not can which return returns given "
    "used using use into when whether than then each all any will may been has have was were do does such only one two "
    "also"
)
_STOP_WORDS = frozenset(_STOP_TEXT.split())
_ROLE = re.compile(r":[a-zA-Z:]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`")
# Headings of what follows the prose, in docstrings that leave no blank line before them; and marks of references.
_HEADING = re.compile(
    r"(?:^|\s)(?:Args|Arguments|Parameters|Returns|Return|Raises|Examples?|Notes?|Usage)\s*::?(?=\s|$)"
)
_REFERENCE = re.compile(r"\s*\[[\w.]+\]_|::$")
_NAMES = re.compile(rf"\b({LIBRARY_NAMES})\b", re.IGNORECASE)
_GRAM = 3


@dataclass(frozen=True)
class Text:
    """The first paragraph of one docstring: as shown, as compared, and where it is from."""

    shown: str
    words: tuple[str, ...]
    topic: str
    place: str

    @property
    def rank(self) -> str:
        """The order of everything: a hash of the words, which no machine or Python version changes."""
        return hashlib.sha256(("api-topics:" + " ".join(self.words)).encode()).hexdigest()


def make_api_topics(*, cache_dir: Path | None = None) -> BuiltinData:
    """Return the rows of train (40 a topic), validation (40 a topic) and test: text, label, id (where the text is from).

    The rows are kept in ``cache_dir`` (None: the user's cache folder) under the versions of the packages read. With the
    pinned versions the fingerprint is known; with others a warning names them.

    Raises:
        DataError: a package is missing, or the pinned versions give other rows than they must.
    """
    found = installed_versions()
    here = Path(__file__)
    code = tuple(here.with_name(f"builtin_{name}.py") for name in ("api_topics", "api_topics_sources", "packages"))
    rows = kept_rows("api-topics", versions=found, code=code, make=make_rows, cache_dir=cache_dir)
    digest = _fingerprint(rows)
    other = [f"{name} {found[name]} (pinned: {pinned})" for name, pinned in VERSIONS.items() if found[name] != pinned]
    if not other and digest != FINGERPRINT:
        raise DataError(
            f"builtin:api-topics: the pinned packages gave rows of fingerprint {digest[:16]}, not {FINGERPRINT[:16]}: "
            "files of an installed package were changed; install the packages of constraints.txt again"
        )
    note = (
        f"builtin:api-topics is made from installed packages, and these are not the pinned ones: {', '.join(other)}; "
        "its rows differ from those of the documentation, so scores do not compare"
    )
    splits = {split: [row for row in rows if row["split"] == split] for split in ("train", "validation", "test")}
    plain = {split: [{k: row[k] for k in ("text", "label", "id")} for row in part] for split, part in splits.items()}
    return BuiltinData(plain, {"format": "builtin", "fingerprint": digest}, (note,) if other else ())


def installed_versions() -> dict[str, str]:
    """Return the version of every package that is read, without its local part (+cpu). Raises DataError for a missing one."""
    found = {}
    for name, pinned in VERSIONS.items():
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            raise DataError(f"builtin:api-topics needs the package {name}; install {name}=={pinned}") from None
    return found


def _fingerprint(rows: Sequence[Mapping[str, str]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row["split"], row["label"], row["text"]]).encode())
    return digest.hexdigest()


# --- the rows ------------------------------------------------------------------------------------------------------


def make_rows() -> list[dict[str, str]]:
    """Return all rows (split, label, text, id), read from the installed packages; some 10 to 20 seconds."""
    by_words: dict[tuple[str, ...], list[Text]] = defaultdict(list)
    for topic, parts in TOPICS.items():
        for part in parts:
            for text in _texts(part, topic=topic):
                by_words[text.words].append(text)
    clear = [
        min(same, key=lambda t: (t.shown, t.place)) for same in by_words.values() if len({t.topic for t in same}) == 1
    ]
    return _split(_distinct(sorted(clear, key=lambda text: text.rank)))


def _split(texts: Sequence[Text]) -> list[dict[str, str]]:
    """Deal the texts of each topic, by rank, to train, validation and test."""
    dealt: Counter[str] = Counter()
    rows = []
    for text in texts:
        number = dealt[text.topic]
        dealt[text.topic] += 1
        before_test = TRAIN_PER_TOPIC + VALIDATION_PER_TOPIC
        split = "train" if number < TRAIN_PER_TOPIC else "validation" if number < before_test else "test"
        rows.append({"split": split, "label": text.topic, "text": text.shown, "id": text.place})
    return rows


def _distinct(texts: Sequence[Text]) -> list[Text]:
    """Return the texts, by rank, that differ from all before them in more than a word or two, at most the cap of a topic.

    Left out are a text that equals an earlier one but for a single word, and one that shares half of its word triples
    (or half of the earlier one's) with it.
    """
    cap = TRAIN_PER_TOPIC + VALIDATION_PER_TOPIC + TEST_PER_TOPIC
    kept: list[Text] = []
    sizes: list[int] = []
    counts: Counter[str] = Counter()
    by_gram: dict[tuple[str, ...], list[int]] = defaultdict(list)
    with_hole: set[tuple[int, tuple[str, ...]]] = set()
    for text in texts:
        words = text.words
        grams = {words[i : i + _GRAM] for i in range(len(words) - _GRAM + 1)}
        holes = {(i, words[:i] + words[i + 1 :]) for i in range(len(words))}
        shared = Counter(number for gram in grams for number in by_gram[gram])
        near = any(2 * count >= min(len(grams), sizes[number]) for number, count in shared.items())
        if counts[text.topic] >= cap or near or not holes.isdisjoint(with_hole):
            continue
        for gram in grams:
            by_gram[gram].append(len(kept))
        with_hole |= holes
        counts[text.topic] += 1
        kept.append(text)
        sizes.append(len(grams))
    return kept


# --- the texts -----------------------------------------------------------------------------------------------------


def _texts(part: Part, *, topic: str) -> Iterator[Text]:
    """Yield the usable first paragraphs of a part of a package."""
    for root, path in files_of(part.path, asked_by="builtin:api-topics"):
        tree = parsed(path)
        for name, docstring in docstrings_of(tree, methods=part.methods) if tree else ():
            shown = clean(docstring)
            words = tuple(re.findall(r"[a-z]+", shown.lower()))
            if _usable(shown):
                yield Text(shown, words, topic, f"{path.relative_to(root.parent).as_posix()}:{name}")


def clean(docstring: str) -> str:
    """Return the first paragraph as one line: markup off, names of libraries masked."""
    paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())
    prose = _REFERENCE.sub("", _HEADING.split(paragraph, maxsplit=1)[0].strip())
    plain = _ROLE.sub(lambda match: match[1].strip().split(".")[-1], prose)
    plain = re.sub(r"`+_*", "", plain).replace("**", "")
    return " ".join(_NAMES.sub(MASK, plain).split())


def _usable(shown: str) -> bool:
    """Whether a paragraph is a short piece of prose with enough words of content to have a topic."""
    words = re.findall(r"[a-z]{2,}", shown.replace(MASK, "").lower())
    letters = sum(character.isalpha() or character == " " for character in shown)
    return (
        _SHORTEST <= len(shown) <= _LONGEST
        and len({word for word in words if word not in _STOP_WORDS}) >= _CONTENT_WORDS
        and letters >= 0.8 * len(shown)
        # A directive (".. deprecated::") is a note on the docstring.
        and not shown.startswith("..")
    )
