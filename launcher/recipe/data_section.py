"""The section data: where rows come from, and what is made of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from launcher.recipe.section import Section

# A test holds these equal to the sources that launcher.data.builtin makes.
BUILTIN_SOURCES = (
    "api-topics",
    "code-roles",
    "default-values",
    "digits",
    "docstrings",
    "number-preferences",
    "number-words",
    "shapes",
)

# The format that a file's ending stands for.
FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".xlsx": "xlsx",
    ".txt": "labelled-text",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".conllu": "conllu",
}


# Formats that can be read from a place inside a file on.
STREAMED_FORMATS = ("jsonl", "csv", "tsv", "text", "parquet", "arrow")


class SourceSpec(Section):
    """One place that rows come from."""

    source: str = Field(min_length=1)
    """A file, a folder, ``builtin:NAME``, a hub id, or an address such as ``s3://bucket/rows.csv``."""
    name: str | None = None
    """Configuration of a hub data set, such as ``mrpc`` of ``nyu-mll/glue``."""
    split: str | None = None
    """Split to take from a source that has several; null: the one that the key (train, validation, test) names."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    format: (
        Literal[
            "csv", "tsv", "json", "jsonl", "parquet", "arrow", "xlsx", "labelled-text", "text", "paragraphs", "conll", "conllu",
        ]
        | None
    ) = None  # fmt: skip
    """File format; null: told by the ending. ``labelled-text`` is ``label<TAB>text`` on each line, ``text`` a text on each line,
    ``paragraphs`` texts between blank lines; ``conll`` and ``conllu`` have a word and its tags on each line. The ending .txt means
    labelled-text, for causal-lm and masked-lm text."""
    encoding: str | None = None
    """Text encoding such as ``gbk``; null: detected (UTF-8 with or without a byte-order mark first)."""
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """Column separator of a csv file; null: detected from the header."""
    header: list[str] | None = None
    """Column names of a csv, tsv or xlsx file whose first line is data; null: the first line names the columns. Of a conll file, which
    has no such line: null names them tokens, column_2, ..., tags."""
    limit: int | None = Field(None, ge=1)
    """Take only this many rows, the first ones."""
    filter: dict[str, str | int | float | bool | list[str | int | float | bool]] | None = None
    """Keep a row when each named column (of the source, before ``columns``) has the value, or one of the values."""
    weight: float | None = Field(None, gt=0)
    """Share of an epoch that is drawn from this source, in proportion to the weights of the others; for all or none of a list under
    ``train``. null: each row once an epoch."""


Sources = str | SourceSpec | list[str | SourceSpec]


class DataSection(Section):
    """Rows to train on, to choose settings by, and to test on."""

    source: str | SourceSpec | None = None
    """One source with all splits: a folder with train/validation/test files, a folder saved by ``datasets``, a hub id,
    ``builtin:NAME``, or one file (all of it train). Give this or ``train``."""
    train: Sources | None = None
    """Rows to train on: a source or a list of sources, one after the other, or drawn from by their ``weight``."""
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] | None = None
    """Where an epoch ends when the sources of train have weights: ``first_exhausted`` when the source that is used up first is used up
    (each of its rows once, a part of the others); ``all_exhausted`` when each source was seen whole (small ones repeat). null:
    first_exhausted."""
    validation: Sources | None = None
    """Rows to choose settings and checkpoints by; without it a share of train is set aside."""
    test: Sources | None = None
    """Rows for the final evaluation only. Without labels they are for prediction only."""
    columns: dict[str, str | list[str]] = Field(default_factory=dict)
    """Our column name: the source's. ``{text: [title, body], label: category}`` joins a list with ``join``. Of token-classification
    ``{tokens: words, label: ner_tags}``, each a list. ``{group: user_id}`` names groups of rows that are not divided between train and validation."""
    join: str = " "
    """What joined columns are joined by."""
    labels: list[str] | str | None = None
    """Names of the labels in the order of their numbers, or a file with one name a line; null: found in train."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What follows from a row that cannot be used (broken JSON, another number of cells, no text, an unknown label, ...): ``error`` stops at the
    first one; ``skip`` leaves them out, counts them and lists them in skipped.jsonl beside the prepared rows. More than 10 percent of a split are an
    error all the same, as are faults of a whole file."""
    max_length: int | None = Field(None, ge=4)
    """Longest input in tokens; longer texts are cut, and the cut ones are counted and reported; causal-lm and masked-lm divide them
    into several rows instead, token-classification between words, and question-answering reads them in windows that overlap. null: what the model takes, at most 512."""
    validation_share: float = Field(0.1, gt=0, lt=1)
    """Share of train set aside, stratified by label, where no validation rows are given."""
    split_seed: int = 42
    """Seed of that split."""
    streaming: bool = False
    """Whether the rows of train are read from their files while training, and never all held or kept: for data that are larger than a disk.
    Needs training.max_steps, and validation rows of their own."""
    shuffle_buffer_size: int = Field(10_000, ge=1)
    """Rows of train that are read at a time and shuffled among each other, with ``streaming``; each process holds as many."""
    cache_dir: str | None = None
    """Folder of prepared data; null: ``launcher`` in the user's cache folder."""

    @property
    def weighted(self) -> tuple[SourceSpec, ...]:
        """The sources of train, where they have weights; () where they have none."""
        listed = self.train if isinstance(self.train, list) else []
        return tuple(one for one in listed if isinstance(one, SourceSpec) and one.weight is not None)

    @property
    def stopping(self) -> str:
        """Where an epoch of weighted sources ends."""
        return self.stopping_strategy or "first_exhausted"

    def rows_alone(self) -> dict[str, Any]:
        """Return what prepared rows depend on, as plain values: all but how often they are drawn."""
        values = self.model_dump(exclude={"stopping_strategy"})
        for source in values["train"] if isinstance(values["train"], list) else []:
            if isinstance(source, dict):
                source.pop("weight")
        return values
