"""Batches that are bounded by tokens: whole epochs, a budget that holds, and the same rows on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from hypothesis import given, settings, strategies as st

from launcher.contracts import Phase, TuningTable
from launcher.data.sampling import PhaseBatches, RankBatches
from launcher.data.token_batches import TokenBatches, padded
from launcher.plans import BatchPlan, PlannedPhase, TokenBudget
from launcher.recipe.schema import Recipe
from launcher.tasks.text_classification import TextClassification

LENGTHS = st.lists(st.integers(1, 120), min_size=1, max_size=150).map(lambda found: np.array(found, dtype=np.int64))
BUDGETS = st.integers(120, 1500)


def phase_of(batches: TokenBatches, *, steps: int, first_step: int = 0, epoch: int = 0, done: int = 0) -> PlannedPhase:
    """A phase whose units are the batches."""
    plan = BatchPlan(1, 1, 1, 1, TokenBudget(batches.tokens, len(batches)))
    return PlannedPhase(Phase("main", TuningTable(())), first_step, steps, plan, len(batches), epoch, done, 1)


@settings(max_examples=200)
@given(lengths=LENGTHS, tokens=BUDGETS, seed=st.integers(0, 99), epoch=st.integers(0, 3))
def test_each_row_is_in_exactly_one_batch_and_no_batch_passes_the_budget(lengths, tokens, seed, epoch):
    batches = TokenBatches(lengths, tokens, seed)
    found = batches.epoch(epoch)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    places = [len(rows) * int(padded(lengths[rows].max())) for rows in found]
    assert max(places) <= tokens and len(found) == len(batches), "as many steps in every epoch"
    assert places[0] == max(places), "the fullest goes first"
    shapes = sorted((len(rows), int(padded(lengths[rows].max()))) for rows in found)
    assert shapes == sorted(map(tuple, batches.shapes.tolist())), "the same shapes in every epoch"


@given(lengths=LENGTHS, tokens=BUDGETS)
def test_a_batch_ends_only_where_one_more_row_would_pass_the_budget(lengths, tokens):
    shapes = TokenBatches(lengths, tokens).shapes
    assert all((rows + 1) * places > tokens for rows, places in shapes[:-1])


@settings(max_examples=100)
@given(
    lengths=LENGTHS, tokens=BUDGETS, world=st.sampled_from([1, 2, 3]), passes=st.integers(1, 4), share=st.floats(0, 1)
)
def test_ranks_and_passes_share_the_same_batches_and_a_resume_goes_on_in_them(lengths, tokens, world, passes, share):
    batches = TokenBatches(lengths, tokens, 5)
    phase = phase_of(batches, steps=2 * len(batches) + 1)
    alone = [rows.tolist() for rows in PhaseBatches(lengths, phase, 5)]
    assert len(alone) == phase.steps
    after = int(share * phase.steps)
    left = PhaseBatches(lengths, phase, 5, after=after)
    ranks = [list(RankBatches(left, accumulation=passes, rank=rank, world_size=world)) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {passes * (phase.steps - after)}, (
        "as many passes in every step, on every rank"
    )
    for step, whole in enumerate(alone[after:]):
        micro = [part for rank in ranks for part in rank[step * passes : (step + 1) * passes]]
        assert sorted(row.number for part in micro for row in part if row.number >= 0) == sorted(whole)
        assert {row.epoch for part in micro for row in part} == {(after + step) // len(batches)}
    assert left.rows_used(after) == sum(map(len, alone[:after]))


@settings(max_examples=150)
@given(lengths=LENGTHS, tokens=BUDGETS, world=st.integers(1, 4), cap=st.integers(120, 600))
def test_the_fewest_passes_with_which_no_rank_holds_more_than_its_cap(lengths, tokens, world, cap):
    batches = TokenBatches(lengths, tokens, 1)

    def most_held(passes: int) -> int:
        phase = phase_of(batches, steps=len(batches))
        parts = [
            RankBatches(PhaseBatches(lengths, phase, 1), accumulation=passes, rank=rank, world_size=world, least_rows=0)
            for rank in range(world)
        ]
        rows = [[row.number for row in part] for rank in parts for part in rank]
        found = max(len(part) * int(padded(lengths[part].max())) for part in rows if part)
        assert max(map(len, rows)) == batches.held(world_size=world, accumulation=passes)[0]
        assert found <= batches.held(world_size=world, accumulation=passes)[1]
        return found

    passes = batches.passes(world_size=world, cap=cap)
    assert most_held(passes) <= cap
    assert passes == 1 or batches.held(world_size=world, accumulation=passes - 1)[1] > cap


def test_what_goes_together_and_in_which_order_is_drawn_for_each_epoch():
    lengths = np.random.default_rng(0).integers(5, 120, 400)
    one, again, other = (TokenBatches(lengths, 960, seed) for seed in (1, 1, 2))

    def sets(batches: TokenBatches, epoch: int) -> list[list[int]]:
        return [rows.tolist() for rows in batches.epoch(epoch)]

    assert sets(one, 0) == sets(again, 0) and sets(one, 0) != sets(other, 0)
    together = [{frozenset(rows) for rows in sets(one, epoch)} for epoch in (0, 1)]
    assert len(together[0] & together[1]) < len(one) / 4, "rows of one padded length change places"
    first = [max(lengths[rows]) for rows in one.epoch(0)][1:]
    assert first != sorted(first) and first != sorted(first, reverse=True)


def test_the_collator_makes_no_batch_of_more_tokens(tmp_path):
    """Counted in the tensors of a task's own collator, on two ranks in two passes together and on one."""
    tiny.save_bert(tmp_path / "bert")
    tiny.write_data(tmp_path / "data", train=120)
    values = tiny.recipe_values(tmp_path / "bert", tmp_path / "data", task={"type": "text-classification"})
    values["data"]["cache_dir"] = str(tmp_path / "cache")
    task = TextClassification(Recipe.model_validate(values), base_folder=tmp_path)
    train = task.prepare_data()[1].train
    lengths, collate = np.asarray(train["length"]), task.collator(training=False)
    batches = TokenBatches(lengths, 200, 1)
    assert len(batches) > 5
    for world, passes in ((1, 1), (2, 2)):
        for rows in batches.epoch(0):
            shares = [
                RankBatches(None, accumulation=passes, rank=rank, world_size=world, least_rows=0).share(rows)  # type: ignore[arg-type]
                for rank in range(world)
            ]
            parts = [collate([train[n] for n in part]) for share in shares for part in share if part]
            assert sum(part["input_ids"].numel() for part in parts) <= 200
            assert sum(len(part["input_ids"]) for part in parts) == len(rows)


@pytest.mark.parametrize("mean", [3.2, 4.5])
def test_less_is_padded_than_in_batches_of_rows_of_like_length(mean):
    from launcher.launching.batch import plan_batch
    from launcher.workflows.data_view import padding_share

    lengths = np.clip(np.random.default_rng(0).lognormal(mean, 0.8, 5000).astype(np.int64), 3, 512)
    rows = padding_share(lengths, batch=plan_batch(global_batch_size=32, world_size=1), seed=1)
    budget = plan_batch(global_batch_size=1, world_size=1, tokens=4096)
    assert padding_share(lengths, batch=budget, seed=1) < rows


def test_a_budget_comes_back_from_json():
    import json
    from dataclasses import asdict

    for plan in (BatchPlan(1, 2, 9, 3, TokenBudget(4096, 7, 8, 90, 512, 4000)), BatchPlan(32, 2, 16, 1)):
        assert BatchPlan.from_json(json.loads(json.dumps(asdict(plan)))) == plan
