"""What a model hub's refusals mean, and what to do: a gated or missing model, a token that is not accepted, no answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from launcher.recipe.model_files import hub_home


def token_state() -> str | None:
    """Return where the hub's token comes from, in words, and never what it is; None: there is none."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return f"{name} is set"
    file = Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").expanduser()
    try:
        return f"a token of `hf auth login` lies in {file}" if file.read_text(encoding="utf-8").strip() else None
    except OSError:
        return None


def hub_words(name: str, error: BaseException) -> tuple[str, str] | None:
    """Return (what is wrong, remedy) where ``error``, or what caused it, is a refusal of the hub; None: it is something else."""
    from huggingface_hub import errors

    for cause in _causes(error):
        if isinstance(cause, errors.GatedRepoError):
            return _gated(name)
        if isinstance(cause, errors.RevisionNotFoundError):
            return (
                "the hub has the model, but not this revision",
                "correct model.revision; the model's page lists its branches and tags",
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return _missing()
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return offline_words()
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status == 401:
            return (
                f"the hub does not accept the token ({token_state() or 'none is set'})",
                "`hf auth login` with a new one, or unset it",
            )
        if status == 403:
            return _gated(name)
    return None


def offline_words() -> tuple[str, str]:
    """Return (what is wrong, remedy) where the hub may not be asked."""
    return (
        "it is not on this machine, and HF_HUB_OFFLINE keeps from asking the hub",
        "unset HF_HUB_OFFLINE, or fetch it where there is a network (`hf download`) and name the folder",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _gated(name: str) -> tuple[str, str]:
    page, token = f"{os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}/{name}", token_state()
    if token is None:
        return (
            "it is gated, and no token is set",
            f"ask for access on {page}, and log in with `hf auth login`, or set HF_TOKEN",
        )
    return (
        f"it is gated, and the account of the token ({token}) has no access",
        f"ask for access on {page}, or log in to another account with `hf auth login`",
    )


def _missing() -> tuple[str, str]:
    token = token_state()
    if token is None:
        return (
            "the hub has no such model, or it is private and no token is set",
            "check the name; for a private model `hf auth login`",
        )
    return (
        f"the hub has no such model, or the account of the token ({token}) may not see it",
        "check the name, or use another account's token",
    )
