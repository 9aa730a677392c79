"""importance.json: what a probe found, and what follows from it; plain values, the same bytes from the same measurements."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from launcher.errors import DataError
from launcher.strategies.importance import effective_share

FORMAT = 1


@dataclass(frozen=True)
class ModuleImportance:
    """One module: what it costs and how important each further rank of it is."""

    depth: int
    """As in the tuning table: 1..L for the blocks."""
    cost: int
    """Parameters of one rank: inputs + outputs."""
    numel: int
    """Parameters of its weight."""
    scores: tuple[float, ...]
    """Descending; the unit is that of ``score``."""


@dataclass(frozen=True)
class Importance:
    """What importance.json holds."""

    key: str
    """``importance_key(key_parts)``: measurements with the same key are the same and are not repeated."""
    key_parts: Mapping[str, Any]
    """Everything that the measurement depends on."""
    score: str
    """How it was measured: sensitivity, gradient or eva."""
    modules: Mapping[str, ModuleImportance]
    allocation: Mapping[str, Any] = field(default_factory=dict)
    """What the run made of it: ranks, trainable modules or rates. Follows from the scores and the recipe; a reader may ignore it."""

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Module name -> scores, float64, descending."""
        return {name: np.array(module.scores, dtype=np.float64) for name, module in sorted(self.modules.items())}

    @property
    def effective_share(self) -> float:
        """How evenly importance is spread, in (0, 1]; see ``importance.effective_share``."""
        return effective_share(self.scores)

    def to_text(self) -> str:
        """Return the file's text: keys sorted, floats with all their digits, no times."""
        values = {
            "format": FORMAT,
            "key": self.key,
            "key_parts": self.key_parts,
            "score": self.score,
            "effective_share": self.effective_share,
            "modules": {name: vars(module) for name, module in self.modules.items()},
            "allocation": self.allocation,
        }
        return json.dumps(values, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, values: Any, *, source: str = "importance.json") -> Importance:
        """Read back what ``to_text`` wrote and json has parsed.

        ``modules`` with ``scores`` is all that a file from elsewhere needs to have. Raises DataError, naming ``source`` and
        what is wrong.
        """
        modules = values.get("modules") if isinstance(values, Mapping) else None
        if not isinstance(modules, Mapping) or not modules:
            raise DataError(f"{source}: 'modules' is missing or empty; it maps each module's name to its scores")
        if values.get("format", FORMAT) != FORMAT:
            raise DataError(f"{source}: 'format' is {values['format']!r}; this version reads {FORMAT}")
        return cls(
            key=str(values.get("key", "")),
            key_parts=values.get("key_parts", {}),
            score=str(values.get("score", "file")),
            modules={name: _module(name, module, source=source) for name, module in sorted(modules.items())},
            allocation=values.get("allocation", {}),
        )


def importance_key(parts: Mapping[str, Any]) -> str:
    """Return the sha256, in hexadecimal, of everything that a measurement depends on; the order of keys does not count."""
    text = json.dumps(parts, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_importance(path: Path) -> Importance:
    """Read an importance.json. Raises DataError where it cannot be read or does not hold what it has to."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"strategy.importance_file is {str(path)!r}, which cannot be read ({error.strerror}); name the importance.json "
            "of an earlier run"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: this is not JSON ({error}); name the importance.json of an earlier run") from None
    return Importance.from_json(values, source=str(path))


def _module(name: str, values: Any, *, source: str) -> ModuleImportance:
    scores = values.get("scores") if isinstance(values, Mapping) else None
    if not isinstance(scores, list) or not scores or not all(_is_score(score) for score in scores):
        raise DataError(f"{source}: modules[{name!r}] needs 'scores', a list of finite numbers that are not negative")
    return ModuleImportance(
        depth=int(values.get("depth", 0)),
        cost=int(values.get("cost", 0)),
        numel=int(values.get("numel", 0)),
        scores=tuple(sorted((float(score) for score in scores), reverse=True)),
    )


def _is_score(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0
