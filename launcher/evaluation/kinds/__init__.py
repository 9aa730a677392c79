"""The kinds of problems that are evaluated: one file for each, and the table of them."""

from __future__ import annotations

from launcher.contracts import Predictions
from launcher.evaluation.kinds.answers import Answers
from launcher.evaluation.kinds.base import Kind
from launcher.evaluation.kinds.generated import Summarization, Translation
from launcher.evaluation.kinds.labels import MultiLabel, SingleLabel
from launcher.evaluation.kinds.language import AnswerLanguage, Language
from launcher.evaluation.kinds.masked import MaskedLanguage
from launcher.evaluation.kinds.objects import Objects
from launcher.evaluation.kinds.pixels import Pixels
from launcher.evaluation.kinds.preferences import Preferences, Rewards
from launcher.evaluation.kinds.regression import Regression
from launcher.evaluation.kinds.tagging import Entities, Tags
from launcher.evaluation.kinds.written import Written

KINDS: dict[str, Kind] = {
    "single_label_classification": SingleLabel(),
    "binary_classification": SingleLabel(),
    "multi_label_classification": MultiLabel(),
    "regression": Regression(),
    "causal_lm": Language(),
    "sft": AnswerLanguage(),
    "written_answers": Written(),
    "masked_lm": MaskedLanguage(),
    "semantic_segmentation": Pixels(),
    "translation": Translation(),
    "summarization": Summarization(),
    "question_answering": Answers(),
    "entity_recognition": Entities(),
    "token_classification": Tags(),
    "object_detection": Objects(),
    "preference": Preferences(),
    "reward": Rewards(),
}
"""Problem type -> what it decides."""


def kind_of(predictions: Predictions | str) -> Kind:
    """Return the kind of predictions, or of a problem type."""
    return KINDS[predictions if isinstance(predictions, str) else predictions.problem_type]


def metrics_for(predictions: Predictions) -> dict[str, float]:
    """Return the metrics that fit the predictions' problem type.

    Raises:
        DataError: there are no rows, no labels, or scores that are not finite.
    """
    return kind_of(predictions).metrics(predictions)
