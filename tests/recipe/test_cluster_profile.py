"""Cluster profiles: where they are looked for, and the words for what is wrong in them."""

from __future__ import annotations

import pytest

from launcher.errors import RecipeError
from launcher.recipe.cluster_profile import ClusterProfile
from launcher.recipe.profiles import find_profile, list_profiles, load_profile
from launcher.recipe.time_limit import limit_seconds
from launcher.shipped import shipped_folder


def test_the_first_folder_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    users, project = tmp_path / "config/launcher/slurm", tmp_path / "project/slurm"
    for folder, partition in ((users, "users"), (project, "projects")):
        folder.mkdir(parents=True)
        (folder / "default.yaml").write_text(f"partition: {partition}\n")
    (users / "other.yaml").write_text("partition: other\n")
    found = find_profile(None, tmp_path / "project")
    assert (found.profile.partition, found.path) == ("projects", project / "default.yaml")
    assert find_profile(None, tmp_path / "elsewhere").profile.partition == "users"
    assert find_profile("other", tmp_path / "project").profile.partition == "other"
    assert list_profiles(tmp_path / "project")["default"] == project / "default.yaml"


def test_without_any_profile_a_job_asks_for_nothing_special(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert find_profile(None, tmp_path).profile == ClusterProfile()


def test_a_profile_that_is_not_there_names_the_nearest(tmp_path):
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/gpu-long.yaml").write_text("partition: gpu\n")
    with pytest.raises(RecipeError, match="did you mean gpu-long"):
        find_profile("gpu-lang", tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partiton: gpu", "1:1: a cluster profile has no key partiton; did you mean partition?"),
        ("partition: a b", "1:1: partition is 'a b'; it must be a name of letters"),
        ("account: $(id)", "1:1: account is '$(id)'; it must be a name"),
        ("cpus_per_node: many", "1:1: cpus_per_node is 'many'; it must be a whole number"),
        ("cpus_per_node: 0", "cpus_per_node is 0; it must lie in [1, 4096]"),
        ("requeue: nein", "requeue is 'nein'; it must be true or false"),
        ("memory_per_node: 480", "memory_per_node is 480; it must be text or null; write memory_per_node: \"480\""),
        ("environment: {A-B: x}", "must be the name of an environment variable"),
        ("environment: {LD_PRELOAD: x}", "must not be set here"),
        ('environment: {A: "x\\n#SBATCH --account=y"}', "must not hold a line break"),
        ("container: {runtime: docker, image: x}", "container.runtime is 'docker'; it must be one of pyxis, apptainer"),
        ("container: {runtime: pyxis, image: x, mounts: ['/a:/b']}", "must not hold a comma or a colon"),
        ("container: {runtime: pyxis, imag: x}", "a cluster profile has no key container.imag; did you mean image?"),
        ("gpus_per_node: 4", "the profile has gpus_per_node, and needs gpu"),
        ("gpu: h100-80gb", "has gpu, which has no effect without gpus_per_node"),
        ("scratch: tmp", "scratch is 'tmp'; it must be an absolute path"),
        ("- a list", "a cluster profile is a mapping of keys, not a list"),
    ],
)  # fmt: skip
def test_faults_are_told_in_the_recipes_words(tmp_path, text, said):
    path = tmp_path / "site.yaml"
    path.write_text(text + "\n")
    with pytest.raises(RecipeError) as caught:
        load_profile(path)
    assert said in str(caught.value).replace(f"{path}:", ""), str(caught.value)


def test_a_profile_without_a_fact_is_one_too(tmp_path):
    (tmp_path / "site.yaml").write_text("# nothing to say\n")
    assert load_profile(tmp_path / "site.yaml") == ClusterProfile()


def test_every_profile_that_ships_is_sound():
    files = sorted(shipped_folder("slurm").rglob("*.yaml"))
    assert len(files) >= 4
    for path in files:
        load_profile(path)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("02:00:00", 7200), ("2-12", 216000), ("1-00:30", 88200), ("1-00:00:05", 86405),
     ("0", None), ("", None), ("2h", None), ("1:2:3:4", None), ("-5", None), ("1\n#SBATCH", None)],
)  # fmt: skip
def test_time_limits(text, seconds):
    assert limit_seconds(text) == seconds
