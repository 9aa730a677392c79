"""The JSON of SQuAD, articles of paragraphs of questions, as rows: one for each question."""

from __future__ import annotations

from typing import Any

from launcher.errors import DataError


def squad_columns(articles: list[dict[str, Any]], shown: str) -> dict[str, list[Any]]:
    """Return the columns id, title, context, question and answers ({text: [...], answer_start: [...]}), as `datasets` names them.

    Questions that are impossible (SQuAD 2.0) have empty lists. Raises DataError naming the article, paragraph and question.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "title", "context", "question", "answers")}
    for number, article in enumerate(articles, start=1):
        for place, paragraph in enumerate(article["paragraphs"], start=1):
            where = f"{shown}, article {number}, paragraph {place}"
            for question, asked in enumerate(_list_of(paragraph, "qas", where), start=1):
                answers = (
                    [] if asked.get("is_impossible") else _list_of(asked, "answers", f"{where}, question {question}")
                )
                columns["id"].append(str(asked.get("id", len(columns["id"]))))
                columns["title"].append(article.get("title"))
                columns["context"].append(paragraph.get("context"))
                columns["question"].append(asked.get("question"))
                columns["answers"].append(
                    {"text": [a.get("text") for a in answers], "answer_start": [a.get("answer_start") for a in answers]}
                )
    return columns


def _list_of(value: Any, key: str, where: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise DataError(f"{where}: has no list of objects {key!r}, which the JSON of SQuAD has; mend it")
    return found
