"""Predictions as a parquet file that any table tool reads, and back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from launcher.atomic import write_bytes
from launcher.contracts import Predictions
from launcher.errors import DataError
from launcher.evaluation.kinds import kind_of
from launcher.evaluation.kinds.base import clean_text

_METADATA = b"launcher.predictions"


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Write one row per prediction to ``path``, atomically.

    Columns: row_id, text, and what the predictions' kind (``evaluation/kinds``) has of its own; labels are null where they are unknown.
    """
    import pyarrow
    import pyarrow.parquet

    facts = {"problem_type": predictions.problem_type, "label_names": list(predictions.label_names)}
    columns = {
        "row_id": pyarrow.array(np.asarray(predictions.row_ids, dtype=np.int64)),
        "text": pyarrow.array([clean_text(text) for text in predictions.texts], pyarrow.string()),
        **kind_of(predictions).columns(predictions),
    }
    table = pyarrow.table(columns).replace_schema_metadata({_METADATA: json.dumps(facts).encode()})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Return what ``write_predictions`` wrote.

    Exact, except where only the scores of the best labels were kept (``kinds.labels``).

    Raises:
        DataError: the file is missing, or not one of launcher's predictions.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; launcher evaluate RUN writes it") from None
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a parquet file: {error}") from None
    if _METADATA not in (table.schema.metadata or {}):
        raise DataError(f"{path} was not written by launcher; predictions of a run lie in its evaluation/ folder")
    facts = json.loads(table.schema.metadata[_METADATA])
    columns = dict(zip(table.column_names, table.columns, strict=True))
    return Predictions(
        problem_type=facts["problem_type"],
        label_names=tuple(facts["label_names"]),
        texts=tuple(columns["text"].to_pylist()),
        row_ids=tuple(columns["row_id"].to_pylist()),
        **kind_of(facts["problem_type"]).read(columns, facts),
    )
