"""The JSON of SQuAD, articles of paragraphs of questions, as rows: one for each question."""

from __future__ import annotations

from typing import Any

from launcher.data.tables import Fault, Faults
from launcher.errors import DataError


def squad_columns(articles: list[dict[str, Any]], shown: str) -> tuple[dict[str, list[Any]], Faults]:
    """Return the columns id, title, context, question and answers ({text: [...], answer_start: [...]}), as `datasets` names them.

    Questions that are impossible (SQuAD 2.0) have empty lists; one without a list of answers has a fault.
    Raises DataError naming the article and paragraph that has no list of questions.
    """
    faults: Faults = {}
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "title", "context", "question", "answers")}
    for number, article in enumerate(articles, start=1):
        for place, paragraph in enumerate(article["paragraphs"], start=1):
            where = f"article {number}, paragraph {place}"
            questions = _list_of(paragraph, "qas")
            if questions is None:
                raise DataError(f"{shown}, {where}: {_without('qas')}")
            for question, asked in enumerate(questions, start=1):
                answers = [] if asked.get("is_impossible") else _list_of(asked, "answers")
                if answers is None:
                    fault = f"(article {number}, paragraph {place}, question {question}) {_without('answers')}"
                    faults[len(columns["id"])] = Fault(fault, asked.get("answers"))
                    answers = []
                columns["id"].append(str(asked.get("id", len(columns["id"]))))
                columns["title"].append(article.get("title"))
                columns["context"].append(paragraph.get("context"))
                columns["question"].append(asked.get("question"))
                columns["answers"].append(
                    {"text": [a.get("text") for a in answers], "answer_start": [a.get("answer_start") for a in answers]}
                )
    return columns, faults


def _list_of(value: Any, key: str) -> list[Any] | None:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) and all(isinstance(item, dict) for item in found) else None


def _without(key: str) -> str:
    return f"has no list of objects {key!r}, which the JSON of SQuAD has; mend it"
