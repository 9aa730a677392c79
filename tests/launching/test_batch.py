from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from launcher.launching.batch import DEFAULT_MICRO_BATCH, plan_batch, share_of_steps, steps_per_epoch

sizes = st.integers(1, 4096)


@given(batch=sizes, world=st.integers(1, 256), cap=st.none() | st.integers(1, 512))
def test_all_rows_have_a_place_and_the_cap_holds(batch, world, cap):
    plan = plan_batch(global_batch_size=batch, world_size=world, cap=cap)
    places = plan.world_size * plan.micro_batch_size * plan.accumulation
    assert places >= batch
    assert plan.micro_batch_size <= (cap or DEFAULT_MICRO_BATCH)
    assert (plan.global_batch_size, plan.world_size) == (batch, world)


@settings(max_examples=60)
@given(batch=st.integers(1, 200), world=st.integers(1, 9), cap=st.integers(1, 40))
def test_passes_are_fewest_and_then_places_are(batch, world, cap):
    plan = plan_batch(global_batch_size=batch, world_size=world, cap=cap)
    fits = [(k, m) for k in range(1, batch + 1) for m in range(1, cap + 1) if world * k * m >= batch]
    fewest = min(k for k, _ in fits)
    assert plan.accumulation == fewest
    assert plan.micro_batch_size == min(m for k, m in fits if k == fewest)


@pytest.mark.parametrize(
    "batch, world, cap, micro, accumulation",
    [
        (32, 1, None, 32, 1),
        (32, 8, None, 4, 1),
        (256, 1, None, 64, 4),
        (32, 1, 8, 8, 4),
        (30, 4, None, 8, 1),
        (3, 8, None, 1, 1),
    ],
)
def test_examples(batch, world, cap, micro, accumulation):
    plan = plan_batch(global_batch_size=batch, world_size=world, cap=cap)
    assert (plan.micro_batch_size, plan.accumulation) == (micro, accumulation)


@given(rows=st.integers(1, 10**6), batch=sizes)
def test_an_epoch_has_every_row(rows, batch):
    steps = steps_per_epoch(rows=rows, global_batch_size=batch)
    assert (steps - 1) * batch < rows <= steps * batch


@given(share=st.floats(0, 0.999), total=st.integers(1, 10**6))
def test_warm_up_equals_transformers(share, total):
    import transformers

    arguments = object.__new__(transformers.TrainingArguments)
    arguments.warmup_steps = share
    # Ours leaves out what floating point adds to a whole number of steps; one step apart at most, and only there.
    theirs, ours = arguments.get_warmup_steps(total), share_of_steps(share, total)
    assert ours == theirs or (theirs - ours == 1 and abs(share * total - ours) < 1e-6)


@given(whole=st.integers(1, 10**5), total=st.integers(1, 10**6))
def test_whole_warm_up_steps_are_taken_as_they_are(whole, total):
    assert share_of_steps(float(whole), total) == whole


def test_a_share_is_exact():
    assert share_of_steps(0.06, 100) == 6 and share_of_steps(0, 100) == 0 and share_of_steps(500, 100) == 500
