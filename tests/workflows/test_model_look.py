"""What doctor says of a recipe's models: huggingface_hub's own client against a small server, and machines without a hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny

from launcher.errors import ModelUnreachable
from launcher.recipe.schema import Recipe
from launcher.tasks.hub_words import token_state
from launcher.workflows.doctor import examine_models
from launcher.workflows.model_look import model_findings

SECRET = "hf_SecretMarkerOfAToken"
COMMIT = "c" * 40
FILES = {
    "config.json": {"model_type": "llama"},
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"},
    "tokenizer.json": {},
}


class Hub(BaseHTTPRequestHandler):
    """A hub with models who/open, who/gated, who/own-code and none else; a token that says bad is not accepted."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_GET

    def _answer(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if is_api else parts[:2])
        if "bad" in self.headers.get("Authorization", ""):
            return self._send(401, {}, **{"X-Error-Message": "Invalid credentials in Authorization header"})
        if name not in ("who/open", "who/gated", "who/own-code"):
            return self._send(404 if "Authorization" in self.headers else 401, {}, **{"X-Error-Code": "RepoNotFound"})
        if "no-such-branch" in parts:
            return self._send(404, {}, **{"X-Error-Code": "RevisionNotFound"})
        if is_api:
            return self._send(200, {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in FILES]})
        if name == "who/gated":
            status = 403 if "Authorization" in self.headers else 401
            return self._send(status, {}, **{"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        values = FILES[parts[-1]]
        if name == "who/own-code" and parts[-1] == "config.json":
            values = {"model_type": "mine", "auto_map": {"AutoConfig": "a.B"}}
        return self._send(200, values, **{"ETag": f'"{name}-{parts[-1]}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, values: Any, **headers: str) -> None:
        text = json.dumps(values).encode()
        self.send_response(status)
        for key, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(text))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text)

    def log_message(self, *given: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


ASK = """
import json, sys
from launcher.recipe.schema import Recipe
from launcher.workflows.model_look import model_findings
from launcher.tasks.models import load_config
from launcher.errors import ModelError
found = {}
for name, values in json.loads(sys.argv[1]).items():
    recipe = Recipe.model_validate(values)
    found[name] = [[f.key, f.is_fault, f.found, f.remedy] for f in model_findings(recipe)]
    assert "torch" not in sys.modules or "later" in sys.argv
if "later" in sys.argv:
    for name, values in json.loads(sys.argv[1]).items():
        try:
            load_config(Recipe.model_validate(values).model)
        except ModelError as error:
            found[name].append(str(error))
print(json.dumps(found))
"""


def ask(hub: str, home: Path, *options: str, **models: Any) -> dict[str, list[Any]]:
    """Return what a process of its own finds: the client reads its environment when it is imported."""
    env = {
        **tiny.environment(),
        "HF_ENDPOINT": hub,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        **models.pop("env", {}),
    }
    given = {name: values_of(**model) for name, model in models.items()}
    done = subprocess.run([sys.executable, "-c", ASK, json.dumps(given), *options], env=env, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


def values_of(task: str = "causal-lm", **model: Any) -> dict[str, Any]:
    return {**tiny.recipe_values("m", "s", task={"type": task}), "model": model}


def test_what_the_hub_says_without_a_token(hub: str, tmp_path: Path) -> None:
    found = ask(
        hub, tmp_path, "later", open={"name_or_path": "who/open", "task": "sft"}, gated={"name_or_path": "who/gated"},
        missing={"name_or_path": "who/nobody"}, branch={"name_or_path": "who/open", "revision": "no-such-branch"},
        code={"name_or_path": "who/own-code"},
    )  # fmt: skip
    there, pad, template = found["open"]
    assert there == ["model.name_or_path", False, "who/open can be fetched from the hub without a token", ""]
    assert "</s> stands for it" in pad[2] and template[0] == "task.chat_template" and template[1]
    for name, words, remedy in (
        ("gated", "it is gated, and no token is set", f"ask for access on {hub}/who/gated, and log in with `hf auth login`"),
        ("missing", "the hub has no such model, or it is private", "check the name"),
        ("branch", "not this revision", "correct model.revision"),
    ):  # fmt: skip
        (key, is_fault, text, todo), later = found[name]
        assert key == "model.name_or_path" and is_fault and words in text and remedy in todo
        # A run ends on it with the same words.
        assert words in later and remedy in later
    there, code, _, later = found["code"]
    assert not there[1] and code[:2] == ["model.trust_remote_code", True] and code[3] in later


def test_what_the_hub_says_to_a_token(hub: str, tmp_path: Path) -> None:
    models = {"gated": {"name_or_path": "who/gated"}, "missing": {"name_or_path": "who/nobody"}}
    found = ask(hub, tmp_path, **models, env={"HF_TOKEN": SECRET})
    assert "the account of the token (HF_TOKEN is set) has no access" in found["gated"][0][2]
    assert "may not see it" in found["missing"][0][2]


def test_a_token_that_is_not_accepted(hub: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{SECRET}-bad")
    ((_, is_fault, text, remedy),) = ask(hub, tmp_path, open={"name_or_path": "who/open"})["open"]
    assert is_fault and "does not accept the token" in text and str(tmp_path / "token") in text
    assert "hf auth login" in remedy


def test_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    found = ask("http://127.0.0.1:9", tmp_path, open={"name_or_path": "who/open"})
    assert "it is not on this machine, and the hub does not answer" in found["open"][0][2]


# --- without a hub -----------------------------------------------------------------------------------------------------


def recipe(**values: Any) -> Recipe:
    return Recipe.model_validate(values_of(**values))


def test_offline_the_cache_has_to_have_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    wanted = recipe(name_or_path="who/open")
    (fault,) = model_findings(wanted)
    assert fault.is_fault and "HF_HUB_OFFLINE keeps from asking" in fault.found and "hf download" in fault.remedy
    folder = tmp_path / f"hub/models--who--open/snapshots/{COMMIT}"
    folder.mkdir(parents=True)
    (tmp_path / "hub/models--who--open/refs").mkdir()
    (tmp_path / "hub/models--who--open/refs/main").write_text(COMMIT)
    for name, values in FILES.items():
        (folder / name).write_text(json.dumps(values))
    fault, *others = model_findings(wanted)
    assert fault.is_fault and "no weights of it" in fault.found and not any(one.is_fault for one in others)
    (folder / "model.safetensors").touch()
    assert not any(one.is_fault for one in model_findings(wanted))


def test_a_run_offline_says_the_same() -> None:
    from launcher.tasks.models import load_config

    (fault,) = model_findings(recipe(name_or_path="who/nowhere"))
    with pytest.raises(ModelUnreachable) as told:
        load_config(recipe(name_or_path="who/nowhere").model)
    assert fault.remedy in str(told.value) and fault.found.partition("; ")[2] in str(told.value)


def test_where_a_token_comes_from_and_never_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert token_state() is None
    (tmp_path / "token").write_text(SECRET)
    assert token_state() == f"a token of `hf auth login` lies in {tmp_path / 'token'}"
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert token_state() == "HF_TOKEN is set"


def test_doctor_shows_the_models_of_a_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for name, values in {**FILES, "config.json": {"model_type": "lama"}}.items():
        (folder / name).write_text(json.dumps(values))
    verdicts = [(one.name, one.verdict) for one in examine_models(recipe(name_or_path=str(folder)))]
    assert verdicts == [("model.name_or_path", name) for name in ("ok", "fault", "ok")]
    random = recipe(name_or_path=None, tokenizer_name_or_path="package:launcher/byte_tokenizer", config={"model_type": "gpt2"})  # fmt: skip
    assert [one.verdict for one in examine_models(random)] == ["ok", "ok"]


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    _, fault = model_findings(recipe(name_or_path=str(tmp_path)))
    assert fault.is_fault and "has no config.json" in fault.found
    (gone,) = model_findings(recipe(name_or_path=str(tmp_path / "gone")))
    assert gone.is_fault and "there is no such folder" in gone.found


@pytest.mark.slow
def test_the_verb_ends_with_1_on_a_fault(tmp_path: Path) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", values_of(name_or_path="who/nowhere"))
    done = tiny.launcher("doctor", path, "--json", cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 1 and rows["model.name_or_path"]["verdict"] == "fault"
    assert os.environ["HF_HUB_OFFLINE"] == "1" and "HF_HUB_OFFLINE" in rows["model.name_or_path"]["found"]
