"""The report of a run that never ran: a directory with a plan, a log and an importance.json is all that it needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from launcher.atomic import append_json, write_json, write_text
from launcher.launching.launch_plan import plan_launch
from launcher.planning.plan import preview_run
from launcher.plans import Hardware
from launcher.recipe.load import load_recipe, resolved_text
from launcher.rundir import RunDir
from launcher.workflows.plan_view import rate_lines
from launcher.workflows.report import report_facts, write_report, write_report_without_texts

CPU = Hardware((), 2, 2**33, cpu_has_fast_bf16=False)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    tiny.save_bert(folder / "bert")
    tiny.write_data(folder / "data", train=21, validation=9, test=6)
    return folder


def made_up_run(folder: Path, runs: Path, **changes: Any) -> RunDir:
    """A directory as a run leaves it, with rates logged at every second step."""
    path = tiny.write_recipe(runs / "r.yaml", tiny.recipe_values(folder / "bert", folder / "data", **changes))
    recipe = load_recipe(path).recipe
    plan = preview_run(recipe, plan_launch(recipe, CPU), base_folder=runs)
    run = RunDir.create(runs, "made-up", recipe_text=path.read_text(), resolved_text=resolved_text(recipe))
    run.new_attempt()
    write_json(run.plan, plan.to_json())
    lines = rate_lines(plan, recipe)["lines"]
    for step in range(2, plan.total_steps + 1, 2):
        rates = {f"lr/{line['name']}": dict(zip(line["steps"], line["rates"], strict=True)).get(step) for line in lines}
        used = {name: rate for name, rate in rates.items() if rate is not None}
        append_json(run.progress, {"step": step, "loss": 1 / step, **used, "attempt": 1})
    return run


def test_phases_and_rates_are_in_the_report(bert, tmp_path):
    strategy = {"type": "layerwise", "layer_decay": 0.5, "gradual_unfreezing": {"epochs_per_stage": 1}}
    run = made_up_run(bert, tmp_path, strategy=strategy, training={"num_train_epochs": 4})
    facts = report_facts(run)
    assert len(facts.tuning_tables) == 3 and len(facts.rates["bands"]) == 3
    assert {line["name"] for line in facts.rates["used"]} <= {line["name"] for line in facts.rates["lines"]}
    assert facts.rates["used"], "rates were logged"
    text = write_report(run).read_text()
    assert len(re.findall(r"<h3>[^<]*steps", text)) == 3
    assert "as planned" in text and "that were used" in text and 'id="importance"' not in text


def test_importance_is_drawn_from_the_runs_own_file(bert, tmp_path):
    from launcher.contracts import BuiltModel
    from launcher.registry import STRATEGIES, TASKS, load
    from launcher.strategies.adapters import module_of
    from launcher.strategies.discriminative import measured
    from launcher.strategies.layers import list_parameters

    run = made_up_run(
        bert, tmp_path, strategy={"type": "discriminative", "probe_rank": 4, "rank_max": 4, "mean_rank": 2}
    )
    recipe = load_recipe(run.resolved).recipe
    task = load(TASKS, recipe.task.type)(recipe, base_folder=tmp_path)
    built: BuiltModel = task.build_model(task.prepare_data()[1], skeleton=True)
    parameters = list_parameters(built.model, newly_initialized=built.newly_initialized)
    probe = load(STRATEGIES, "discriminative")().probe(parameters, recipe)
    assert probe is not None and probe.phase.adapters is not None
    scores = {name: np.array([1.0, 0.5, 0.2, 0.1]) for name in probe.phase.adapters.ranks}
    assert set(scores) <= {module_of(parameter) for parameter in parameters}
    write_text(run.importance, measured(parameters, recipe, scores, key_parts={}).to_text())
    text = write_report(run).read_text()
    assert 'href="#importance"' in text and ">attention.self.query<" in text
    assert "so all got the same rank" in text and "strategy.uniform_above (82%)" in text
    assert "Rank of each module" in text and "rank 2 everywhere" in text


def test_a_recipe_of_another_version_costs_the_picture_only(bert, tmp_path):
    run = made_up_run(bert, tmp_path)
    write_text(run.resolved, "version: 99\n")
    assert report_facts(run).rates == {}
    assert "What trained" in write_report(run).read_text()


def test_answers_to_the_same_prompts_are_shown_over_the_run_and_not_shared(bert, tmp_path):
    run = made_up_run(bert, tmp_path / "runs", training={"num_train_epochs": 1})
    told = [
        (0, False, "first <i>"),
        (5, False, "lost"),
        (5, False, "halfway"),
        (10, False, "later"),
        (10, True, "at last"),
    ]
    for step, final, answer in told:
        row = {
            "step": step,
            "final": final,
            "row_id": 3,
            "prompt": "Two?",
            "reference": "Dos.",
            "answer": answer,
            "ended": final,
        }
        append_json(run.generations, row)
    (sample,) = report_facts(run).samples
    assert [(a["when"], a["answer"]) for a in sample["answers"]] == [
        ("step 0", "first <i>"),
        ("step 5", "halfway"),
        ("trained", "at last"),
    ]
    page = write_report(run).read_text()
    assert "Answers to the same prompts" in page and "first &lt;i&gt; …" in page and "at last</p>" in page
    assert "Two?" not in write_report_without_texts(run).read_text()
