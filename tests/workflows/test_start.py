"""From a recipe to the files that start a run, and on which terms a run is resumed; nothing is started here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiny

from launcher.atomic import write_json
from launcher.errors import InstallationError, RecipeError, RunStateError
from launcher.plans import Gpu, Hardware
from launcher.recipe.load import load_recipe
from launcher.rundir import RunDir
from launcher.workflows.init import starter_recipe
from launcher.workflows.resuming import load_for_resume
from launcher.workflows.start import create_run, resume_run

CPU = Hardware((), 8, 2**34, cpu_has_fast_bf16=False)
TWO_CARDS = Hardware((Gpu("card", 2**34, 9.0),) * 2, 8, 2**34, cpu_has_fast_bf16=False)


def load(folder: Path, **changes: object):
    return load_recipe(tiny.write_recipe(folder / "recipe.yaml", tiny.recipe_values("./bert", "./data", **changes)))


def created(folder: Path, hardware: Hardware = CPU, **changes: object) -> RunDir:
    run, attempt = create_run(load(folder, **changes), runs=folder / "runs", hardware=hardware)
    assert attempt == 1
    return run


def test_one_process_needs_no_accelerate_configuration(tmp_path):
    run = created(tmp_path)
    assert sorted(p.name for p in run.attempt(1).iterdir()) == ["launch.json", "logs", "resolved.yaml"]
    assert json.loads(run.launch_plan(1).read_text())["base_folder"] == str(Path.cwd())
    assert load_recipe(run.resolved).recipe == load(tmp_path).recipe
    assert run.recipe.read_text() == (tmp_path / "recipe.yaml").read_text()


def test_several_processes_have_their_configuration_beside_them(tmp_path):
    run = created(tmp_path, distributed={"processes_per_node": 2, "zero_stage": 2})
    config = json.loads((run.attempt(1) / "accelerate.yaml").read_text())
    assert config["num_processes"] == 2 and config["distributed_type"] == "DEEPSPEED"
    file = Path(config["deepspeed_config"]["deepspeed_config_file"])
    assert file == run.attempt(1) / "deepspeed.json" and json.loads(file.read_text())["zero_optimization"]["stage"] == 2


def test_accelerate_reads_our_configuration_as_it_is_meant(tmp_path):
    """`no` in its YAML would be false."""
    import yaml

    run = created(tmp_path, distributed={"processes_per_node": 2})
    config = yaml.safe_load((run.attempt(1) / "accelerate.yaml").read_text())
    assert config["mixed_precision"] == "no" and config["distributed_type"] == "MULTI_GPU"


def test_a_plan_that_fails_leaves_no_directory(tmp_path):
    with pytest.raises(InstallationError):
        created(tmp_path, TWO_CARDS, distributed={"processes_per_node": 4})
    assert not (tmp_path / "runs").exists()


# --- resume ----------------------------------------------------------------------------------------------------------


def give_checkpoint(run: RunDir) -> None:
    (run.checkpoints / "step-1").mkdir(parents=True)
    plan = json.loads(run.launch_plan(run.last_attempt).read_text())["plan"]
    facts = {key: plan[key] for key in ("engine", "zero_stage", "precision")}
    world = plan["nodes"] * plan["processes_per_node"]
    write_json(run.checkpoints / "step-1/MANIFEST.json", {"step": 1, "world_size": world, **facts, "files": {}})


def test_resume_makes_the_next_attempt_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = created(tmp_path)
    run.add_event("interrupted")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    _, attempt = resume_run(run.path, recipe=load_recipe(run.resolved).recipe, hardware=CPU)
    assert attempt == 2
    assert json.loads(run.launch_plan(2).read_text())["base_folder"] == str(tmp_path)


def test_the_verb_resume_works_from_any_folder(tmp_path, monkeypatch):
    """Relative paths count from where the run was started."""
    from typer.testing import CliRunner

    from launcher.backends.local import LocalBackend
    from launcher.cli import app

    tiny.write_data(tmp_path / "data", train=6, validation=3, test=3)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    run = created(tmp_path)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setattr(LocalBackend, "submit", lambda *_, **__: 0)
    result = CliRunner().invoke(app, ["resume", str(run.path)])
    assert result.exit_code == 0, result.exception


def test_what_cannot_be_resumed(tmp_path):
    run = created(tmp_path)
    recipe = load_recipe(run.resolved).recipe
    write_json(run.verdict(1, 0), {"verdict": "running", "pid": os.getpid(), "time": 0})
    # The number belongs to another process by now: its command line names no run.
    assert resume_run(run.path, recipe=recipe, hardware=CPU)[1] == 2
    run.add_event("finished")
    with pytest.raises(RunStateError, match="has finished.*launcher run"):
        resume_run(run.path, recipe=recipe, hardware=CPU)
    with pytest.raises(RunStateError, match="not a run directory"):
        resume_run(tmp_path, recipe=recipe, hardware=CPU)


def test_a_run_that_still_runs_cannot_be_resumed(tmp_path):
    import subprocess
    import sys

    run = created(tmp_path)
    rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(run.path)])
    try:
        write_json(run.verdict(1, 0), {"verdict": "running", "pid": rank.pid, "time": 1e12})
        with pytest.raises(RunStateError, match="still running"):
            resume_run(run.path, recipe=load_recipe(run.resolved).recipe, hardware=CPU)
    finally:
        rank.kill()
        rank.wait()


def test_a_sharded_checkpoint_of_another_world_is_refused(tmp_path):
    run = created(tmp_path, TWO_CARDS, distributed={"processes_per_node": None, "zero_stage": 3})
    recipe = load_recipe(run.resolved).recipe
    assert resume_run(run.path, recipe=recipe, hardware=CPU)[1] == 2, "without a checkpoint it may begin anew anywhere"
    _, attempt = resume_run(run.path, recipe=recipe, hardware=TWO_CARDS)
    give_checkpoint(run)
    with pytest.raises(RunStateError, match=r"ZeRO-3 on 2 processes.*ZeRO-3 on 1 process.*zero_stage 1 or 2"):
        resume_run(run.path, recipe=recipe, hardware=CPU)
    assert run.last_attempt == attempt, "a refusal leaves no attempt"


@pytest.mark.parametrize("distributed", [{"processes_per_node": None}, {"processes_per_node": None, "zero_stage": 2}])
def test_other_checkpoints_go_on_anywhere(tmp_path, distributed):
    run = created(tmp_path, TWO_CARDS, distributed=distributed)
    give_checkpoint(run)
    assert resume_run(run.path, recipe=load_recipe(run.resolved).recipe, hardware=CPU)[1] == 2
    assert json.loads(run.launch_plan(2).read_text())["plan"]["processes_per_node"] == 1


def resume(run: RunDir, *overrides: str, allow: bool = False) -> dict[str, str]:
    """Resume with overrides; return what is noted: key -> verdict."""
    loaded = load_for_resume(run, overrides)
    _, attempt = resume_run(run.path, recipe=loaded.recipe, hardware=CPU, allow_changes=allow)
    note = json.loads(run.resume_note(attempt).read_text())
    return {change["key"]: change["verdict"] for change in note["changes"]}


def test_harmless_changes_are_noted_and_stay(tmp_path):
    run = created(tmp_path)
    assert resume(run, "training.save_total_limit=3") == {"training.save_total_limit": "free"}
    assert load_recipe(run.resolved).recipe.training.save_total_limit == 3
    assert load_recipe(run.attempt_recipe(1)).recipe.training.save_total_limit == 1
    assert resume(run) == {"training.save_total_limit": "free"}, "told again: it is compared with the first attempt"


def test_what_would_be_another_run_is_refused_without_the_flag(tmp_path):
    run = created(tmp_path)
    before = run.resolved.read_text()
    with pytest.raises(RunStateError, match=r"training.learning_rate: 0.001 -> 0.002 \(.*\n.*--allow-changes"):
        resume(run, "training.learning_rate=0.002")
    assert run.resolved.read_text() == before and run.last_attempt == 1
    assert resume(run, "training.learning_rate=0.002", allow=True) == {"training.learning_rate": "flag"}
    with pytest.raises(RunStateError, match="global_batch_size: 8 -> 16"):
        resume(run, "training.global_batch_size=16", allow=True)


def test_a_recipe_that_was_edited_by_hand_is_found_out(tmp_path):
    run = created(tmp_path)
    run.resolved.write_text(run.resolved.read_text().replace("seed: 1", "seed: 2"))
    with pytest.raises(RunStateError, match="training.seed: 1 -> 2"):
        resume(run)


def test_overrides_that_contradict_the_recipe_are_refused(tmp_path):
    run = created(tmp_path)
    with pytest.raises(RecipeError, match="save_steps is not given"):
        resume(run, "training.save_strategy=steps")
    with pytest.raises(RecipeError, match="learning_rat"):
        resume(run, "training.learning_rat=1")


# --- init ------------------------------------------------------------------------------------------------------------


def test_a_starter_recipe_is_sound_and_the_users_own(tmp_path, monkeypatch):
    from launcher.recipe.examine import examine

    tiny.write_data(tmp_path / "data", train=6, validation=3, test=3)
    monkeypatch.chdir(tmp_path)
    starter_recipe(Path("my run.yaml"), source="quickstart/api-topics", data="./data", model="some/model")
    loaded, problems = examine("my run.yaml")
    assert problems == []
    assert (loaded.recipe.name, loaded.recipe.data.source, loaded.recipe.model.name_or_path) == (
        "my-run",
        "./data",
        "some/model",
    )
    with pytest.raises(RunStateError, match="exists"):
        starter_recipe(Path("my run.yaml"), source="quickstart/api-topics", data=None, model=None)


def test_several_machines_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InstallationError, match=r"distributed\.nodes is 2.*accelerate launch"):
        created(tmp_path, distributed={"nodes": 2, "processes_per_node": 1})
    assert not (tmp_path / "runs").exists()


def test_an_attempt_that_was_never_written_to_its_end_does_not_stand_in_the_way(tmp_path):
    """Whoever made its folder was killed before the plan of its launch was there."""
    run = created(tmp_path)
    run.add_event("interrupted", attempt=1)
    run.new_attempt()
    _, following = resume_run(run.path, recipe=load_recipe(run.resolved).recipe, hardware=CPU)
    assert following == 2 and run.launch_plan(2).is_file()
