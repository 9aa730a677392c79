"""The whole plan of a recipe: on machines that are not here, with data that cannot be read, and with what engine: auto takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from fake_memory import GB, FakeMemory

from launcher.errors import DataUnreachable
from launcher.launching.launch_plan import plan_launch
from launcher.planning.fitting import Capacity
from launcher.planning.forecast import capacity_of, decide, gib, is_left_to_us, memory_setting, refusal
from launcher.planning.gpus import find_gpu, hardware_for
from launcher.planning.plan import unknown_rows
from launcher.plans import Hardware, LaunchPlan
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.workflows.forecast import WholePlan, as_error, as_json, plan_whole
from launcher.workflows.forecast_view import forecast_lines, memory_tables

H100 = find_gpu("h100")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("forecast")
    tiny.save_bert(folder / "bert")
    tiny.write_data(folder / "data", train=21, validation=9, test=6)
    return folder


def plan(folder: Path, memory: FakeMemory, *, gpus: int = 1, data: str | None = None, **changes: object) -> WholePlan:
    values = tiny.recipe_values(folder / "bert", data or folder / "data", **{"precision": "bf16", **changes})
    values["distributed"] |= {"processes_per_node": gpus}
    values["training"].setdefault("per_device_eval_batch_size", 8)
    loaded = load_recipe(tiny.write_recipe(folder / "r.yaml", values))
    found = plan_whole(
        loaded,
        hardware_for(H100, gpus),
        gpu=H100,
        base_folder=folder,
        make_estimate=lambda recipe, seen: (memory, memory),
    )
    if found.refused:
        assert as_error(found, loaded).exit_code == 2
    return found


def lines(found: WholePlan) -> dict[str, str]:
    return dict(forecast_lines(found))


# --- fits or not -----------------------------------------------------------------------------------------------------


def test_a_run_that_fits(folder):
    found = plan(folder, FakeMemory(1, row=0.5))
    said = lines(found)
    assert not found.refused and said["fits"].startswith("yes: 19.1 GiB at its most (training)")
    assert "8% head-room" in said["fits"] and said["smallest"].startswith("single, no activation checkpointing, 8 rows")
    assert "GPU-hours" in said["time"] and "estimate" in said[""]
    assert as_json(found)["fits"] is True


def test_one_gpu_that_does_not_suffice_is_refused_with_the_cheapest_change(folder):
    found = plan(folder, FakeMemory(8, row=1))
    assert "on each of 1 h100-80gb" in found.refused and "8% head-room" in found.refused
    assert "distributed.engine=deepspeed distributed.zero_stage=2 distributed.offload=optimizer" in found.refused
    assert "of the machine's memory for each rank" in found.refused and "or 2 h100-80gb with ZeRO-2" in found.refused
    values = as_json(found)
    assert values["fits"] is False and values["forecast"]["memory"]["remedy_keys"][1] == "distributed.zero_stage=2"
    assert lines(found)["fits"].startswith("no: ")


def test_the_change_that_is_named_fits(folder):
    """Written into the recipe, the plan accepts it."""
    found = plan(folder, FakeMemory(8, row=1))
    keys = as_json(found)["forecast"]["memory"]["remedy_keys"]
    sections: dict[str, dict[str, object]] = {}
    for key in keys:
        section, _, rest = key.partition(".")
        name, _, value = rest.partition("=")
        sections.setdefault(section, {})[name] = int(value) if value.isdigit() else {"true": True}.get(value, value)
    again = plan(folder, FakeMemory(8, row=1), **sections)
    assert not again.refused and again.forecast.memory.asked.setting == found.forecast.memory.remedy.setting


def test_nothing_fits(folder):
    found = plan(folder, FakeMemory(0.1, row=9000))
    assert "no sharding, offloading, checkpointing or micro-batch makes it fit" in found.refused
    assert lines(found)["smallest"] == "no setting fits" and "the most that fit: none" in lines(found)["micro-batch"]


def test_a_model_that_cannot_be_estimated_is_planned_all_the_same(folder):
    def fails(recipe, seen):
        raise NotImplementedError("no such operator")

    values = tiny.recipe_values(folder / "bert", folder / "data")
    loaded = load_recipe(tiny.write_recipe(folder / "r.yaml", values))
    found = plan_whole(loaded, hardware_for(H100, 1), gpu=H100, base_folder=folder, make_estimate=fails)
    assert found.forecast is None and not found.refused and found.plan.total_steps == 6
    assert "no such operator" in lines(found)["memory"] and as_json(found)["fits"] is None


def test_a_setting_that_cannot_be_estimated_is_left_out_of_the_search(folder):
    class Stubborn(FakeMemory):
        def __call__(self, setting):
            if setting.offload == "optimizer":
                raise NotImplementedError
            return super().__call__(setting)

    assert plan(folder, Stubborn(8, row=1)).forecast.memory.remedy.setting.offload == "all"


# --- engine: auto ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("billions, stage", [(1, None), (8, 1), (16, 2), (25, 3)])
def test_auto_takes_the_first_stage_that_fits(folder, billions, stage):
    found = plan(folder, FakeMemory(billions, row=0.1), gpus=8)
    assert found.plan.launch.zero_stage == stage and found.plan.launch.engine == ("deepspeed" if stage else "ddp")
    assert bool(found.chosen) == bool(stage)
    if stage:
        assert f"ZeRO-{stage}" in found.chosen and "ddp would need" in found.chosen
        assert found.recipe.distributed.zero_stage == stage


def test_what_the_recipe_says_is_not_changed(folder):
    found = plan(folder, FakeMemory(8, row=0.1), gpus=8, distributed={"engine": "ddp"})
    assert found.plan.launch.engine == "ddp" and "distributed.zero_stage=1" in found.refused


def test_whose_choice_it_is():
    def recipe(**distributed: object) -> Recipe:
        return tiny.recipe(distributed=distributed)

    assert (
        is_left_to_us(recipe()) and not is_left_to_us(recipe(engine="ddp")) and not is_left_to_us(recipe(zero_stage=2))
    )


def test_a_stage_that_cannot_run_here_is_an_error():
    from launcher.errors import InstallationError

    machine = Hardware((), 8, 64 * GB, cpu_has_fast_bf16=False, has_cxx_compiler=False)
    recipe = tiny.recipe(distributed={"processes_per_node": 2})
    launch = plan_launch(recipe, machine)
    setting = memory_setting(recipe, launch, unknown_rows(recipe, reason="r"))
    with pytest.raises(InstallationError, match="compiler"):
        decide(recipe, machine, setting, FakeMemory(2, row=0.001), Capacity(32 * GB))


# --- the setting and the capacity ------------------------------------------------------------------------------------


def test_the_longest_rows_and_the_largest_batch_count(folder):
    found = plan(
        folder, FakeMemory(0.1), training={"batch_size_schedule": [{"epoch": 1, "global_batch_size": 16}]}
    ).forecast.memory.asked.setting
    assert found.micro_batch_size == 16 and found.length % 8 == 0 and 8 <= found.length <= 32


def test_memory_of_a_rank():
    launch = LaunchPlan("ddp", None, "fp32", "cpu", 1, 2, plan_launch(tiny.recipe(), Hardware((), 4, 8, False)).batch)
    machine = Hardware((), 8, 16 * GB, cpu_has_fast_bf16=False)
    assert capacity_of(machine, launch).device_bytes == 8 * GB
    assert capacity_of(machine, launch, available=10 * GB).device_bytes == 5 * GB
    cards = replace(machine, gpus=(H100.as_gpu(),) * 2)
    found = capacity_of(cards, replace(launch, device="cuda"))
    assert found.device_bytes == H100.memory_bytes and found.host_bytes == 8 * GB
    assert capacity_of(hardware_for(H100, 2), replace(launch, device="cuda")).host_bytes is None, "not known"


# --- data that cannot be read ----------------------------------------------------------------------------------------


def test_a_hub_that_cannot_be_reached_leaves_rows_unknown(folder, monkeypatch):
    monkeypatch.setattr("launcher.data.sources_find.hub_has_address", lambda: False)
    found = plan(folder, FakeMemory(1), data="someone/nowhere")
    assert found.plan.unread and not found.plan.knows_steps and found.forecast.time is None
    assert as_json(found)["total_steps"] is None
    assert "unknown without the number of steps" in lines(found)["time"]
    assert found.forecast.memory.asked.setting.length == 32, "rows count as long as they may be"


def test_then_max_steps_decides(folder, monkeypatch):
    monkeypatch.setattr("launcher.data.sources_find.hub_has_address", lambda: False)
    found = plan(folder, FakeMemory(1), data="someone/nowhere", training={"max_steps": 50})
    assert found.plan.total_steps == 50 and found.forecast.time.tokens == 50 * 8 * 32


def test_a_run_still_needs_its_data(folder, monkeypatch):
    from launcher import registry

    monkeypatch.setattr("launcher.data.sources_find.hub_has_address", lambda: False)
    recipe = load_recipe(
        tiny.write_recipe(folder / "r.yaml", tiny.recipe_values(folder / "bert", "someone/nowhere"))
    ).recipe
    with pytest.raises(DataUnreachable):
        registry.load(registry.TASKS, "text-classification")(recipe, base_folder=folder).prepare_data()


# --- words -----------------------------------------------------------------------------------------------------------


def test_the_table_of_memory_adds_up(folder):
    found = plan(folder, FakeMemory(1, row=0.5))
    (table,) = memory_tables(found)
    assert table.head == ["part", "training", "evaluation"] and "h100-80gb" in table.heading
    assert [row[0] for row in table.rows] == ["optimizer", "activations", "gradients", "weights", "base", "total"]
    assert table.rows[-1][1] == gib(found.forecast.memory.asked.needed)


def test_what_is_offloaded_has_its_own_table(folder):
    found = plan(folder, FakeMemory(8, row=1), distributed={"zero_stage": 3, "offload": "all"})
    tables = memory_tables(found)
    assert len(tables) == 2 and tables[1].rows[-1][1] == gib(128 * GB)
    assert "not known" in lines(found)[""] or "not known" in str(forecast_lines(found))


@pytest.mark.parametrize(
    "count, text", [(512, "0 KiB"), (3 * 2**20, "3 MiB"), (1.5 * 2**30, "1.5 GiB"), (2**41, "2,048.0 GiB")]
)
def test_bytes_in_words(count, text):
    assert gib(count) == text


def test_a_machines_memory_that_is_short_is_named(folder):
    found = plan(folder, FakeMemory(8, row=1), distributed={"zero_stage": 3, "offload": "all"})
    asked = replace(found.forecast.memory.asked, capacity=Capacity(80 * GB, host_bytes=64 * GB))
    text = refusal(replace(found.forecast.memory, asked=asked), gpu=H100)
    assert text.startswith("what is offloaded needs 119.2 GiB of the machine's memory for each rank")
