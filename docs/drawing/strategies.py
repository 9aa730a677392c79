"""What strategies train, and how fast: drawn from their own tables."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from drawing.model import measured, parameters, phases_of, plan_of, quickstart, recipe
from launcher.contracts import Parameter, Phase
from launcher.evaluation.svg import BLUE, COLOURS, FONT_SIZE, GREEN, INK, ORANGE, figure, standalone, to_svg, width_of

WIDE = 720
"""Width of a picture in CSS pixels: about that of a page's text."""

# --- what trains -----------------------------------------------------------------------------------------------------

PLACES = ("head", "tail", "block 6", "block 5", "block 4", "block 3", "block 2", "block 1", "embeddings")
FROZEN = "#8a94a3"


def what_trains() -> str:
    """Draw what each strategy trains: a column for each, a row for each place in the model."""
    columns = {
        "full": phases_of(quickstart("type=full"))[-1],
        "encoder": phases_of(quickstart("type=encoder"))[-1],
        "head": phases_of(quickstart("type=head"))[-1],
        "layerwise": phases_of(quickstart("type=layerwise"))[-1],
        "layerwise,\nfreeze_layers: 3": phases_of(quickstart("type=layerwise", "freeze_layers=3"))[-1],
        "lora": phases_of(quickstart("type=lora"))[-1],
        "discriminative": phases_of(recipe("text-classification/discriminative"), measured("importance"))[-1],
    }
    return _columns(columns, alt="What each strategy trains, by depth, and at which share of the peak rate")


def what_trains_simple() -> str:
    """Draw the same for the strategies of one page."""
    columns = {
        "full": phases_of(quickstart("type=full", "head_lr=1e-3"))[-1],
        "encoder": phases_of(quickstart("type=encoder", "head_lr=1e-3"))[-1],
        "encoder,\ncomponents: [norm]": phases_of(quickstart("type=encoder", "components=[norm]"))[-1],
        "head": phases_of(quickstart("type=head"))[-1],
        "head,\ntrain_pooler: true": phases_of(quickstart("type=head", "train_pooler=true"))[-1],
    }
    return _columns(columns, alt="What full, encoder and head train, by depth")


def _columns(columns: Mapping[str, Phase], *, alt: str) -> str:
    widest = max(width_of(line, size=FONT_SIZE - 1) for name in columns for line in name.split("\n"))
    left, top, wide, high = 84, 40, max(88, round(widest * 1.06)), 25
    size = (left + wide * len(columns) + 6, top + high * (len(PLACES) + 1) + 22)
    with figure(*size, margins=(left, 6, top, 22)) as (drawing, axes):
        _empty(axes, width=len(columns), height=len(PLACES) + 1)
        for x, (name, phase) in enumerate(columns.items()):
            axes.text(x + 0.5, -0.15, name, ha="center", va="bottom", fontsize=FONT_SIZE - 1, linespacing=1.15)
            cells = _cells(phase)
            for y, place in enumerate(PLACES):
                _cell(axes, x, y, *cells[place])
            count = f"{phase.table.trainable_numel:,}"
            axes.text(x + 0.5, len(PLACES) + 0.5, count, ha="center", va="center", fontsize=FONT_SIZE - 1)
        for y, place in enumerate([*PLACES, "parameters"]):
            axes.text(-0.08, y + 0.5, place, ha="right", va="center", fontsize=FONT_SIZE - 1)
        _key(drawing, {kind for phase in columns.values() for _, kind in _cells(phase).values()}, left=left, size=size)
        return standalone(to_svg(drawing, name="trains", alt=alt))


def _empty(axes: Any, *, width: float, height: float) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _cells(phase: Phase) -> dict[str, tuple[str, str]]:
    """Return place -> (what it says, how: whole, part, adapter or frozen)."""
    from launcher.strategies.adapters import PREFIX, part_of, target_of

    group_of = {name: group for group in phase.table.trainable for name in group.parameters}
    adapters = [group for group in phase.table.trainable if group.rank is not None]
    base = adapters[0].lr if adapters else recipe("quickstart/api-topics").training.learning_rate
    trained = {
        name.removeprefix(PREFIX).replace(".modules_to_save.default", ""): group
        for name, group in group_of.items()
        if part_of(name) in (None, "whole")
    }
    ranks: dict[str, list[int]] = {}
    depths = {p.name.removesuffix(".weight"): p for p in parameters()}
    for name, group in group_of.items():
        if part_of(name) == "A":
            ranks.setdefault(_place(depths[target_of(name)]), []).append(int(group.rank or 0))
    found = {}
    for place in PLACES:
        members = [p for p in parameters() if _place(p) == place]
        rates = [trained[p.name].lr for p in members if p.name in trained]
        if place in ranks:
            low, high = min(ranks[place]), max(ranks[place])
            found[place] = (f"rank {low}" if low == high else f"ranks {low}–{high}", "adapter")
        elif rates:
            share = f"{max(rates) / base:.2g}".replace("e+0", "e")
            found[place] = (f"{share} lr" if share != "1" else "lr", "whole" if len(rates) == len(members) else "part")
        else:
            found[place] = ("frozen", "frozen")
    return found


def _place(parameter: Parameter) -> str:
    return f"block {parameter.depth}" if parameter.role == "block" else parameter.role


_FACES = {"whole": (BLUE, 1.0), "part": (BLUE, 0.35), "adapter": (ORANGE, 1.0), "frozen": (FROZEN, 0.18)}
_SAID = {"whole": "trains", "part": "a part of it trains", "adapter": "adapters train", "frozen": "frozen"}


def _cell(axes: Any, x: int, y: int, text: str, kind: str) -> None:
    from matplotlib.patches import Rectangle

    colour, alpha = _FACES[kind]
    axes.add_patch(Rectangle((x + 0.03, y + 0.05), 0.94, 0.9, facecolor=colour, alpha=alpha, linewidth=0))
    ink = {"whole": "#ffffff", "frozen": "#5d6673"}.get(kind, "#1b2028")
    axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=FONT_SIZE - 1, color=ink)


def _key(drawing: Any, kinds: Collection[str], *, left: float, size: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    x = float(left)
    for kind, text in ((kind, text) for kind, text in _SAID.items() if kind in kinds):
        colour, alpha = _FACES[kind]
        box = Rectangle((x / size[0], 8 / size[1]), 12 / size[0], 12 / size[1], transform=drawing.transFigure)
        box.set(facecolor=colour, alpha=alpha, linewidth=0)
        drawing.add_artist(box)
        drawing.text((x + 17) / size[0], 14 / size[1], text, va="center", fontsize=FONT_SIZE - 1)
        x += 17 + width_of(text, size=FONT_SIZE - 1) + 18


# --- layer-wise ------------------------------------------------------------------------------------------------------


def layerwise_rates() -> str:
    """Draw the rate by depth for some decays."""
    width, height = 560, 300
    names = ["embeddings", *(f"block {i}" for i in range(1, 7)), "head, tail"]
    with figure(width, height, margins=(46, 96, 12, 30)) as (drawing, axes):
        for decay, colour in zip(("1", "0.9", "0.75", "0.5"), COLOURS, strict=False):
            table = phases_of(quickstart("type=layerwise", f"layer_decay={decay}"))[-1].table
            rates = {g.depths[0]: g.lr / 3e-4 for g in table.trainable}
            axes.plot(sorted(rates), [rates[depth] for depth in sorted(rates)], color=colour, marker="o", markersize=4)
            axes.annotate(
                f"{rates[0]:.2g}", (0, rates[0]), xytext=(0, 6), textcoords="offset points", ha="center", color=colour,
                fontsize=FONT_SIZE - 1,
            )  # fmt: skip
            axes.plot([], [], color=colour, marker="o", markersize=4, label=f"decay {decay}")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=False)
        axes.set_xticks(range(8), names)
        axes.set_xlim(-0.35, 7.3)
        axes.set_ylim(0, 1.1)
        axes.set_ylabel("rate / learning_rate")
        return standalone(to_svg(drawing, name="decay", alt="Rate by depth for layer_decay 1, 0.9, 0.75 and 0.5"))


def gradual_unfreezing() -> str:
    """Draw the rates of every group over the run of the shipped recipe."""
    from launcher.evaluation.plots_training import draw_rates
    from launcher.workflows.plan_view import rate_lines

    shipped = recipe("text-classification/layerwise")
    drawn = rate_lines(plan_of(shipped), shipped)
    names = ("head, tail", "+ 5, 6", "+ 3, 4", "everything")
    bands = [{**band, "name": name} for band, name in zip(drawn["bands"], names, strict=True)]
    alt = "Learning rate of each group over the steps: the head first, then blocks 5 and 6, 3 and 4, then everything"
    return standalone(draw_rates(drawn["lines"], bands, write=lambda d: to_svg(d, name="gradual", alt=alt), width=WIDE))


# --- adapters --------------------------------------------------------------------------------------------------------


def lora() -> str:
    """Draw an adapter beside its weight, and the trained parameters over the rank."""
    size = (WIDE, 270)
    with figure(*size, margins=(6, size[0] - 290, 10, 10)) as (drawing, axes):
        _empty(axes, width=28.4, height=25)
        _adapter(axes)
        right = drawing.add_axes((370 / size[0], 48 / size[1], 330 / size[0], 190 / size[1]))
        _parameters_by_rank(right)
        return standalone(to_svg(drawing, name="lora", alt="An adapter beside its weight; trained parameters by rank"))


def _adapter(axes: Any) -> None:
    from matplotlib.patches import FancyArrowPatch, Rectangle

    def box(x: float, y: float, w: float, h: float, text: str, kind: str) -> None:
        colour, alpha = _FACES[kind]
        axes.add_patch(Rectangle((x, y), w, h, facecolor=colour, alpha=alpha, linewidth=0))
        axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=FONT_SIZE)

    def arrow(*points: tuple[float, float]) -> None:
        for begin, end in itertools.pairwise(points):
            style = "-|>" if end == points[-1] else "-"
            axes.add_patch(
                FancyArrowPatch(
                    begin, end, arrowstyle=style, mutation_scale=9, color=INK, linewidth=1, shrinkA=0, shrinkB=0
                )
            )

    box(2, 7, 10, 10, "W\nfrozen", "frozen")
    box(15, 14.4, 10, 2.6, "A  [r × inputs]", "adapter")
    box(18.7, 7, 2.6, 5.2, "B", "adapter")
    axes.text(21.8, 9.6, "[outputs × r]", va="center", fontsize=FONT_SIZE)
    axes.text(13.5, 23.6, "x", ha="center", va="center", fontsize=FONT_SIZE + 1)
    axes.text(13.5, 1.0, "y = W x + (alpha / r) B A x", ha="center", va="center", fontsize=FONT_SIZE + 1)
    arrow((13.5, 22.4), (13.5, 20.4), (7, 20.4), (7, 17.2))
    arrow((13.5, 20.4), (20, 20.4), (20, 17.2))
    arrow((20, 14.4), (20, 12.4))
    arrow((7, 7), (7, 4.6), (13.5, 4.6), (13.5, 2.2))
    arrow((20, 7), (20, 4.6), (13.5, 4.6))
    axes.text(13.5, 5.8, "+", ha="center", va="center", fontsize=FONT_SIZE + 3)


def _parameters_by_rank(axes: Any) -> None:
    ranks = [1, 2, 4, 8, 16, 32, 64]
    whole = sum(p.numel for p in parameters())
    head = sum(p.numel for p in parameters() if p.role == "head")
    for targets, colour in (("all-linear", BLUE), ("[query,value]", GREEN)):
        counts = []
        for rank in ranks:
            table = phases_of(quickstart("type=lora", f"r={rank}", f"target_modules={targets}"))[-1].table
            counts.append((table.trainable_numel - head) / whole * 100)
        axes.plot(ranks, counts, color=colour, marker="o", markersize=4, label=targets.replace(",", ", "))
        axes.annotate(f"{counts[3]:.2g} %", (8, counts[3]), xytext=(0, 7), textcoords="offset points", ha="right",
                      color=colour, fontsize=FONT_SIZE - 1)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set_yticks([0.1, 1, 10], ["0.1 %", "1 %", "10 %"])
    axes.minorticks_off()
    axes.set_ylim(0.03, 30)
    axes.set_xlabel("r")
    axes.set_title("adapters, in % of the model's parameters", fontsize=FONT_SIZE, loc="left")
    axes.legend(loc="lower right", title="target_modules", title_fontsize=FONT_SIZE - 1)


# --- importance ------------------------------------------------------------------------------------------------------


def importance_grids() -> Iterator[tuple[str, str]]:
    """Yield what a real probe found, and the ranks that follow."""
    from launcher.evaluation.plots_training import module_grid
    from launcher.workflows.importance_view import importance_facts

    for grid in importance_facts(measured("importance"))["grids"]:
        svg = module_grid(grid["cells"], what=grid["what"], name=grid["name"])
        yield f"importance-{grid['name']}", standalone(svg)
