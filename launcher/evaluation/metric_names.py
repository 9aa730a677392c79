"""The metrics by name: how each is called, whether more of it is better, and how its values and differences are written."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import LauncherError
from launcher.registry import suggest


@dataclass(frozen=True)
class Metric:
    """One metric, as people read it."""

    words: str
    """How it is called in sentences and tables."""
    higher_is_better: bool = True
    points: int = 0
    """Points that 1 of it is: differences are said in them. 100 for a share, 1 for a score of 0 to 100; 0: in no points."""
    has_unit: bool = False
    """Whether it is written with significant digits, as a quantity with a unit is, instead of three decimals."""


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", points=100),
    "macro_f1": Metric("macro F1", points=100),
    "micro_f1": Metric("micro F1", points=100),
    "weighted_f1": Metric("weighted F1", points=100),
    "f1": Metric("F1", points=100),
    "margin": Metric("reward margin", has_unit=True),
    "exact_match": Metric("exact match", points=100),
    "mean_iou": Metric("mean IoU", points=100),
    "pixel_accuracy": Metric("pixel accuracy", points=100),
    "mean_accuracy": Metric("mean class accuracy", points=100),
    "bleu": Metric("BLEU", points=1),
    "chrf": Metric("chrF", points=1),
    "rougeL": Metric("ROUGE-L", points=100),
    "rouge1": Metric("ROUGE-1", points=100),
    "rouge2": Metric("ROUGE-2", points=100),
    "rougeLsum": Metric("ROUGE-Lsum", points=100),
    "map": Metric("mAP", points=100),
    "map_50": Metric("mAP at 50", points=100),
    "map_75": Metric("mAP at 75", points=100),
    "mar_100": Metric("mean average recall"),
    "macro_precision": Metric("macro precision"),
    "micro_precision": Metric("micro precision"),
    "precision": Metric("precision"),
    "macro_recall": Metric("macro recall"),
    "micro_recall": Metric("micro recall"),
    "recall": Metric("recall"),
    "mcc": Metric("Matthews correlation"),
    "auroc": Metric("AUROC"),
    "log_loss": Metric("log loss", higher_is_better=False),
    "calibration_error": Metric("calibration error", higher_is_better=False),
    "brier": Metric("Brier score", higher_is_better=False),
    "hamming_loss": Metric("Hamming loss", higher_is_better=False),
    "spearman": Metric("Spearman correlation"),
    "pearson": Metric("Pearson correlation"),
    "r2": Metric("R²"),
    "mse": Metric("mean squared error", higher_is_better=False, has_unit=True),
    "rmse": Metric("root mean squared error", higher_is_better=False, has_unit=True),
    "mae": Metric("mean absolute error", higher_is_better=False, has_unit=True),
    "cut_off": Metric("share that reached the greatest length", higher_is_better=False),
    "loss": Metric("loss", higher_is_better=False, has_unit=True),
    "perplexity": Metric("perplexity", higher_is_better=False, has_unit=True),
}
"""Every metric, in the order of tables; ``loss`` is the training objective, for language models and what generates texts per token."""


def greater_is_better(name: str) -> bool:
    """Return whether more of the metric ``name`` is better; a leading ``eval_`` is allowed.

    Raises:
        LauncherError: no such metric; the text names a near one.
    """
    plain = name.removeprefix("eval_")
    if plain in METRICS:
        return METRICS[plain].higher_is_better
    near = suggest(plain, METRICS)
    hint = f"did you mean {near!r}?" if near else f"known are {', '.join(METRICS)}"
    raise LauncherError(f"{name!r} is not a metric; {hint}")
