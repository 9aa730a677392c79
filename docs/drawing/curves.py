"""Curves: schedules, the prefix cache's gain, a range test."""

from __future__ import annotations

from typing import Any

from drawing.model import ROWS, measured, plan_of, recipe
from launcher.evaluation.svg import (
    BLUE,
    FONT_SIZE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    VERMILLION,
    figure,
    standalone,
    to_svg,
)

# --- schedules -------------------------------------------------------------------------------------------------------

_STEPS, _WARMUP = 200, 20
_OPTIONS: dict[str, dict[str, Any]] = {
    "cosine_with_restarts": {"num_cycles": 3},
    "cosine_with_min_lr": {"min_lr_rate": 0.2},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.2, "warmup_lr_rate": 0.4},
    "polynomial": {"power": 2.0},
    "warmup_stable_decay": {"num_decay_steps": 60},
    "step": {"step_size": 0.25, "gamma": 0.5},
    "exponential": {"final_scale": 0.05},
    "cyclic": {"cycle_steps": 0.25, "cycle_decay": 0.75},
    "reduce_lr_on_plateau": {"factor": 0.5, "patience": 1},
    "greedy": {"factor": 0.7, "patience": 1},
}
# A made-up metric at each of twenty evaluations: better, level, better again.
_METRIC = [0.3, 0.5, 0.6, 0.65, 0.68, *[0.68] * 7, 0.7, 0.72, 0.74, 0.76, *[0.76] * 4]


def schedules() -> str:
    """Draw the factor of every schedule over a run of 200 steps with 20 steps of warm-up."""
    from launcher.recipe.schedule_keys import KWARGS, OURS

    columns, cell, gap = 4, (166, 76), (14, 44)
    names = [*(n for n in KWARGS if n not in OURS), *OURS]
    rows = -(-len(names) // columns)
    size = (columns * (cell[0] + gap[0]) + 22, rows * (cell[1] + gap[1]) + 12)
    with figure(*size, margins=(0, 0, 0, 0)) as (drawing, axes):
        axes.remove()
        for number, name in enumerate(names):
            row, column = divmod(number, columns)
            x, y = 30 + column * (cell[0] + gap[0]), size[1] - 34 - row * (cell[1] + gap[1]) - cell[1]
            inside = drawing.add_axes((x / size[0], y / size[1], cell[0] / size[0], cell[1] / size[1]))
            _schedule(inside, name, is_ours=name in OURS, is_first=column == 0)
        _colours_of_schedules(drawing, x + cell[0] + gap[0], y + cell[1], size=size)
        return standalone(to_svg(drawing, name="schedules", alt="The factor of every schedule over a run"))


def _colours_of_schedules(drawing: Any, x: float, y: float, *, size: tuple[float, float]) -> None:
    said = (
        ("transformers' schedules", BLUE),
        ("launcher's own", VERMILLION),
        (f"factor over a run of {_STEPS} steps, {_WARMUP} of them warm-up", INK),
        ("reduce_lr_on_plateau, greedy: a metric that stands still in the middle", INK),
    )
    for line, (text, colour) in enumerate(said):
        drawing.text(
            x / size[0], (y - 8 - 18 * line) / size[1], text, color=colour, va="center", fontsize=FONT_SIZE - 0.5
        )


def _schedule(axes: Any, name: str, *, is_ours: bool, is_first: bool) -> None:
    factors = _factors(name)
    axes.plot(range(_STEPS), factors, color=VERMILLION if is_ours else BLUE, linewidth=1.6)
    axes.set_xlim(0, _STEPS)
    axes.set_ylim(0, 1.06)
    axes.set_xticks([0, 100, 200], [])
    axes.set_yticks([0, 0.5, 1], ["0", "", "1"] if is_first else [])
    axes.text(0, 1.3, name, transform=axes.transAxes, va="center", fontsize=FONT_SIZE - 0.5, fontweight="bold")
    options = ", ".join(f"{key} {value:g}" for key, value in _OPTIONS.get(name, {}).items())
    axes.text(0, 1.12, options, transform=axes.transAxes, va="center", fontsize=FONT_SIZE - 2.5)


def _factors(name: str) -> list[float]:
    from launcher.engine.schedule import plateau_factor
    from launcher.strategies.schedules import schedule_factor

    base = recipe("quickstart/api-topics")
    training = base.training.model_copy(update={"lr_scheduler_type": name, "lr_scheduler_kwargs": _OPTIONS.get(name)})
    changed = base.model_copy(update={"training": training})
    factor = schedule_factor(changed, total_steps=_STEPS, warmup_steps=_WARMUP)
    follows, between = plateau_factor(changed, greater_is_better=True), _STEPS // len(_METRIC)
    found = []
    for step in range(_STEPS):
        if follows is not None and step and step % between == 0:
            follows.on_metric(_METRIC[step // between - 1])
        found.append(factor(step) * (1.0 if follows is None else follows.value))
    return found


# --- prefix cache ----------------------------------------------------------------------------------------------------


def prefix_cache() -> str:
    """Draw the predicted speed-up over the frozen share, for some numbers of epochs."""
    from launcher.strategies.prefix import predicted_speed_up

    shares = [i / 200 for i in range(201)]
    with figure(560, 310, margins=(46, 96, 24, 44)) as (drawing, axes):
        for epochs, colour in ((3, BLUE), (10, VERMILLION), (30, GREEN), (1000, PURPLE)):
            label = f"{epochs} epochs" if epochs < 1000 else "very many"
            axes.plot(shares, [predicted_speed_up(s, epochs=epochs) for s in shares], color=colour, label=label)
        axes.axhline(1.3, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(0.01, 1.34, "auto caches from here on: 1.3", fontsize=FONT_SIZE - 1, va="bottom")
        marks = ((0.5, "half of the blocks", "center"), (11 / 12, "11 of 12", "right"), (1.0, "head only", "left"))
        for share, text, side in marks:
            axes.axvline(share, color=INK, linewidth=0.7, alpha=0.3)
            axes.text(share + (0.02 if side == "right" else 0), 44, text, ha=side, va="bottom", fontsize=FONT_SIZE - 1)
        axes.set_yscale("log")
        axes.set_ylim(0.9, 40)
        axes.set_xlim(0, 1.0)
        axes.set_yticks([1, 2, 3, 5, 10, 30], ["1", "2", "3", "5", "10", "30"])
        axes.minorticks_off()
        axes.set_xlabel("share of a forward pass that is frozen (phi)")
        axes.set_ylabel("predicted speed-up")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
        return standalone(to_svg(drawing, name="prefix", alt="Predicted speed-up of the prefix cache"))


# --- rates -----------------------------------------------------------------------------------------------------------


def range_test() -> str:
    """Draw a real range test of the quickstart."""
    from launcher.evaluation.plots_training import draw_range_test

    alt = "Loss of a range test over the learning rate, with the suggestion"
    return standalone(draw_range_test(measured("lr-find"), write=lambda d: to_svg(d, name="range", alt=alt)))


def total_steps() -> str:
    """Draw what a linear schedule does when its length is counted in rows or micro-batches instead of steps."""
    from launcher.strategies.schedules import schedule_factor

    linear = recipe("quickstart/api-topics")
    steps = plan_of(linear).total_steps
    lines = (
        (f"length in steps: {steps}", steps, GREEN),
        (f"in micro-batches of 8: {steps * 4}", steps * 4, ORANGE),
        (f"in rows: {ROWS * 10:,}", ROWS * 10, VERMILLION),
    )
    with figure(560, 270, margins=(46, 190, 12, 44)) as (drawing, axes):
        for text, length, colour in lines:
            factor = schedule_factor(linear, total_steps=length, warmup_steps=round(0.06 * length))
            axes.plot(range(steps), [factor(step) for step in range(steps)], color=colour, label=text)
        axes.set_xlim(0, steps)
        axes.set_ylim(0, 1.06)
        axes.set_xlabel("step of a run of 180 steps")
        axes.set_ylabel("rate / learning_rate")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return standalone(to_svg(drawing, name="length", alt="A linear schedule whose length is counted wrongly"))
