"""One finished run that many tests look at, started as a user starts it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny

# Values of variables that a user keeps secret; none may turn up in a file of a run.
SECRETS = {
    "WANDB_API_KEY": "a5ec12e7a5ec12e7a5ec12e7a5ec12e7a5ec12e7",
    "HF_TOKEN": "hf_SecretMarkerOfTheHubToken",
    "OPENAI_API_KEY": "sk-SecretMarkerOfAnotherKey",
    "DB_PASSWORD": "SecretMarkerOfADatabase",
    "MY_INNOCENT_VARIABLE": "MarkerOfAnInnocentVariable",
}


@dataclass(frozen=True)
class Place:
    """A folder with a tiny model, tiny data and room for runs."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "bert"

    def recipe(self, name: str = "recipe", /, **changes: object) -> Path:
        """Write a recipe whose data path is relative to the folder."""
        return tiny.write_recipe(self.folder / f"{name}.yaml", tiny.recipe_values("./bert", "./data", **changes))

    def newest(self) -> Path:
        return max((self.folder / "runs").iterdir(), key=lambda path: path.stat().st_ctime_ns)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    # The space and the quote are in the path on purpose: what is not quoted breaks here.
    folder = tmp_path_factory.mktemp("place") / "it's my place"
    tiny.save_bert(folder / "bert", hidden_dropout_prob=0.1)
    tiny.write_data(folder / "data", train=403, validation=18, test=30)
    return Place(folder)


@dataclass(frozen=True)
class Finished:
    path: Path
    done: subprocess.CompletedProcess[str]


# Offline by its own word: with a key set, mode auto would ask the network.
WANDB = {"wandb": {"project": "tests", "group": "g", "tags": ["t"], "mode": "offline"}}


@pytest.fixture(scope="session")
def finished(place: Place) -> Finished:
    """A finished run of 102 steps, started with secrets in its environment."""
    recipe = place.recipe("whole", name="whole", tracking=WANDB)
    done = tiny.launcher("run", recipe, cwd=place.folder, env=SECRETS)
    assert done.returncode == 0, done.stdout + done.stderr
    return Finished(place.folder / "runs" / "whole-001", done)


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    return SECRETS
