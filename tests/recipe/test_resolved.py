"""A recipe written out with every value loads to the same recipe."""

from __future__ import annotations

from typing import Any

from hypothesis import Phase, given, settings, strategies as st

from launcher.recipe.load import parse_recipe, resolved_text
from launcher.recipe.schema import Recipe
from tests.recipe.conftest import SOUND

_text = st.text(min_size=1, max_size=20) | st.sampled_from(
    ["no", "3e-4", "${x}", "\\${x}", "a: b", "null", "012", "1:30", "-", "\t", "#x", "!y"]
)
_rate = st.floats(min_value=1e-12, max_value=1.0)


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


_recipes = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "task": _some(
            problem_type=st.sampled_from(["auto", "regression"]),
            class_weights=st.dictionaries(_text, _rate, max_size=3),
            label_delimiter=_text,
        ),
        "model": st.fixed_dictionaries(
            {"name_or_path": _text},
            optional={
                "revision": _text,
                "config": st.dictionaries(_text, st.none() | st.booleans() | _text | _rate | st.lists(_text)),
            },
        ),
        "data": _some(
            source=_text,
            train=st.lists(_text, min_size=1),
            columns=st.dictionaries(_text, _text | st.lists(_text)),
            join=st.text(),
            labels=st.lists(_text),
            validation=st.fixed_dictionaries(
                {"source": _text}, optional={"filter": st.dictionaries(_text, st.integers() | st.booleans() | _text)}
            ),
        ),
        "strategy": st.sampled_from(
            [{"type": "head"}, {"type": "full", "head_lr": 1e-3}, {"type": "encoder", "components": ["mlp"]}]
        ),
        "training": _some(
            learning_rate=_rate,
            max_steps=st.integers(1, 10**9),
            optim=st.just("sgd"),
            eval_strategy=st.sampled_from(["no", "epoch"]),
            data_seed=st.integers(0, 2**62),
        ),
        "tracking": _some(wandb=st.none() | _some(tags=st.lists(_text), entity=_text)),
    }
)


@settings(max_examples=50, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate, Phase.shrink))
@given(_recipes)
def test_round_trip(values: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(values, strict=True)
    text = resolved_text(recipe)
    assert parse_recipe(text, "resolved.yaml").recipe == recipe
    assert resolved_text(parse_recipe(text, "resolved.yaml").recipe) == text


def test_every_value_is_written() -> None:
    text = resolved_text(parse_recipe(SOUND, "r.yaml").recipe)
    for key in ("warmup_steps: 0.06", "global_batch_size: 32", "mode: auto", "zero_stage: null", "bootstrap: 1000"):
        assert key in text


def test_defaults_without_effect_are_left_out() -> None:
    text = resolved_text(parse_recipe(SOUND + "training: {max_steps: 3}\n", "r.yaml").recipe)
    assert "num_train_epochs" not in text
