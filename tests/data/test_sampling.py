from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from launcher.contracts import Phase, TuningTable
from launcher.data.sampling import Drawn, GlobalBatches, PhaseBatches, RankBatches, evaluation_batches
from launcher.plans import BatchPlan, PlannedPhase

ORDERS = ("group_by_length", "random", "sequential")


def lengths_of(rows: int, seed: int = 0) -> np.ndarray:
    """Lengths of texts as they are: many short ones, few long ones."""
    return np.clip(np.random.default_rng(seed).lognormal(3.2, 0.7, rows).astype(np.int64), 3, 256)


def make(rows: int, batch: int, order: str = "group_by_length", seed: int = 0) -> GlobalBatches:
    return GlobalBatches(lengths_of(rows), batch, seed, order)  # type: ignore[arg-type]


def phase(rows: int, batch: int, steps: int, **place: int) -> PlannedPhase:
    batch_plan = BatchPlan(batch, 1, batch, 1)
    place = {"first_step": 0, "epoch_batch_size": batch, **place}
    return PlannedPhase(Phase("main", TuningTable(())), steps=steps, batch=batch_plan, rows=rows, **place)


def epochs_of(batches: GlobalBatches, epochs: int = 3) -> PhaseBatches:
    """The batches of some epochs as a phase."""
    rows, size = len(batches.lengths), batches.global_batch_size
    return PhaseBatches(batches.lengths, phase(rows, size, epochs * len(batches)), batches.seed, batches.order)


@settings(max_examples=150)
@given(
    rows=st.integers(1, 300), batch=st.integers(1, 40), order=st.sampled_from(ORDERS), epoch=st.integers(0, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_each_row_is_in_exactly_one_batch_of_an_epoch(rows, batch, order, epoch, seed):
    batches = make(rows, batch, order, seed)
    found = batches.epoch(epoch)
    assert sorted(np.concatenate(found).tolist()) == list(range(rows))
    assert len(found) == len(batches) and all(len(b) == batch for b in found[:-1]) and 0 < len(found[-1]) <= batch


@settings(max_examples=200)
@given(
    rows=st.integers(1, 120), batch=st.integers(1, 24), world=st.integers(1, 4), accumulation=st.integers(1, 3),
    order=st.sampled_from(ORDERS),
)  # fmt: skip
def test_the_ranks_together_have_one_ranks_global_batch_at_every_step(rows, batch, world, accumulation, order):
    batches = epochs_of(make(rows, batch, order))
    ranks = [RankBatches(batches, accumulation=accumulation, rank=r, world_size=world) for r in range(world)]
    one = RankBatches(batches, accumulation=1, rank=0, world_size=1)
    drawn_by = [list(rank) for rank in ranks]
    shares = [[[row.number for row in micro] for micro in rank] for rank in drawn_by]
    assert all(
        len(share) == len(rank) == len(batches) * accumulation for share, rank in zip(shares, ranks, strict=True)
    )
    assert all(micro for share in shares for micro in share), "an empty list would end a collator"
    widest = -(-(-(-batch // world)) // accumulation) + 1
    for step, drawn in enumerate(one):
        whole = [row.number for row in drawn]
        micro_batches = [
            rank[number] for rank in drawn_by for number in range(step * accumulation, (step + 1) * accumulation)
        ]
        assert {row.epoch for micro in [drawn, *micro_batches] for row in micro} == {step // -(-rows // batch)}
        parts = [micro for share in shares for micro in share[step * accumulation : (step + 1) * accumulation]]
        real = [row for micro in parts for row in micro if row >= 0]
        assert sorted(real) == sorted(whole), "each row once, padding rows not counted"
        padding = [row for micro in parts for row in micro if row < 0]
        assert all(-1 - row in whole for row in padding)
        # A padding row stands alone: where a rank has rows of its own it needs none.
        assert all(len(micro) == 1 for micro in parts if micro[0] < 0)
        assert max(map(len, parts)) <= widest


@settings(max_examples=100)
@given(batch=st.integers(1, 300), world=st.integers(1, 8), cap=st.integers(1, 64), rows=st.integers(1, 300))
def test_no_rank_holds_more_rows_than_planned(batch, world, cap, rows):
    from launcher.launching.batch import plan_batch

    plan = plan_batch(global_batch_size=batch, world_size=world, cap=cap)
    whole = np.arange(min(rows, batch))
    for rank in range(world):
        sampler = RankBatches(epochs_of(make(rows, batch)), accumulation=plan.accumulation, rank=rank, world_size=world)
        assert max(map(len, sampler.share(whole))) <= plan.micro_batch_size


@given(
    rows=st.integers(1, 60), size=st.integers(1, 20), epochs=st.integers(1, 4), share=st.floats(0, 1),
    order=st.sampled_from(ORDERS),
)  # fmt: skip
def test_a_phase_goes_on_where_it_was_left(rows, size, epochs, share, order):
    lengths = lengths_of(rows)
    planned = phase(rows, size, epochs * -(-rows // size))
    whole = [b.tolist() for b in PhaseBatches(lengths, planned, 3, order)]
    after = int(share * planned.steps)
    assert [b.tolist() for b in PhaseBatches(lengths, planned, 3, order, after=after)] == whole[after:]
    epochs = [epoch for epoch, _ in PhaseBatches(lengths, planned, 3, order, after=after).with_epochs()]
    assert epochs == [step // -(-rows // size) for step in range(after, planned.steps)]


@given(
    rows=st.integers(1, 60), sizes=st.lists(st.integers(1, 20), min_size=2, max_size=4), data=st.data(),
    order=st.sampled_from(ORDERS),
)  # fmt: skip
def test_each_row_once_an_epoch_though_the_batch_size_changes_inside(rows, sizes, data, order):
    lengths, used, place = lengths_of(rows), [], {"first_step": 0, "epoch": 0, "rows_done": 0}
    began = sizes[0]
    for size in sizes:
        steps = data.draw(st.integers(1, 3 * -(-rows // size)))
        planned = phase(rows, size, steps, **place, epoch_batch_size=began if place["rows_done"] else size)
        used += [
            (row, at) for at, batch in PhaseBatches(lengths, planned, 3, order).with_epochs() for row in batch.tolist()
        ]
        epoch, done = planned.position(planned.last_step)
        began = planned.epoch_batch_size if epoch == place["epoch"] else size
        place = {"first_step": planned.last_step, "epoch": epoch, "rows_done": done}
    assert len(used) == place["epoch"] * rows + place["rows_done"]
    for start in range(0, len(used), rows):
        part = [row for row, epoch in used[start : start + rows]]
        assert {epoch for _, epoch in used[start : start + rows]} == {start // rows}
        assert sorted(part) == list(range(rows)) or (len(part) < rows and len(set(part)) == len(part))


def test_equal_seeds_give_equal_orders_and_epochs_differ():
    first, again, other = make(200, 8, seed=1), make(200, 8, seed=1), make(200, 8, seed=2)

    def rows(batches: GlobalBatches, epoch: int) -> list[list[int]]:
        return [b.tolist() for b in batches.epoch(epoch)]

    assert rows(first, 0) == rows(again, 0) and rows(first, 5) == rows(again, 5)
    assert rows(first, 0) != rows(first, 1) and rows(first, 0) != rows(other, 0)
    # Not only the order of the batches: rows meet others.
    assert {tuple(sorted(b)) for b in rows(first, 0)} != {tuple(sorted(b)) for b in rows(first, 1)}


def test_sequential_keeps_the_order_and_random_is_a_shuffle():
    assert np.concatenate(make(50, 8, "sequential").epoch(3)).tolist() == list(range(50))
    assert np.concatenate(make(50, 8, "random").epoch(3)).tolist() != list(range(50))


# A small set is sorted in small chunks, so that its batches still vary from epoch to epoch.
@pytest.mark.parametrize("rows, share", [(300, 0.9), (2000, 0.5), (20000, 0.25)])
def test_grouping_pads_far_less_than_a_shuffle(rows, share):
    def padding(order: str) -> float:
        lengths = lengths_of(rows)
        batches = GlobalBatches(lengths, 32, 0, order).epoch(0)  # type: ignore[arg-type]
        places = sum(int(lengths[b].max()) * len(b) for b in batches)
        return 1 - int(lengths.sum()) / places

    assert padding("group_by_length") < share * padding("random")


@given(rows=st.integers(1, 300), batch=st.integers(1, 40), epoch=st.integers(0, 3))
def test_the_longest_batch_comes_first(rows, batch, epoch):
    lengths = lengths_of(rows)
    found = make(rows, batch).epoch(epoch)
    full = [int(lengths[b].max()) for b in found if len(b) == len(found[0])]
    assert full[0] == max(full)


def test_length_says_nothing_about_when_a_row_comes():
    """Batches are shuffled: a run would otherwise see the long texts first."""
    lengths = lengths_of(4000)
    means = [lengths[b].mean() for b in GlobalBatches(lengths, 16, 0).epoch(0)][1:]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


@given(rows=st.integers(1, 200), batch=st.integers(1, 64))
def test_evaluation_batches_hold_every_row_once_longest_first(rows, batch):
    lengths = lengths_of(rows)
    found = evaluation_batches(lengths, batch_size=batch)
    assert sorted(np.concatenate(found).tolist()) == list(range(rows))
    assert all(np.diff(lengths[np.concatenate(found)]) <= 0)


# --- rows that are drawn by their class -------------------------------------------------------------------------------


def imbalanced(sizes: list[int], shares: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes of shuffled rows, and draws with which an epoch has these shares of the classes."""
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = np.asarray(shares) * len(classes)
    return classes, (rows / np.asarray(sizes))[classes]


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=4, unique=True), batch=st.integers(1, 24),
    order=st.sampled_from(("group_by_length", "random")), epoch=st.integers(0, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_an_epoch_has_the_shares_that_were_asked_for(sizes, batch, order, epoch, seed):
    classes, draws = imbalanced(sizes, [1 / len(sizes)] * len(sizes))
    found = GlobalBatches(lengths_of(len(classes)), batch, seed, order, draws).epoch(epoch)
    rows = np.concatenate(found)
    assert len(rows) == len(classes) and [len(b) for b in found[:-1]] == [batch] * (len(found) - 1)
    copies = np.bincount(rows, minlength=len(classes))
    assert (np.floor(draws - 1e-9) <= copies).all() and (copies <= np.ceil(draws + 1e-9)).all()
    of_class = np.bincount(classes[rows], minlength=len(sizes))
    assert np.abs(of_class - len(classes) / len(sizes)).max() <= 1 + 1e-9


def test_draws_of_one_are_each_row_once():
    rows = np.concatenate(GlobalBatches(lengths_of(500), 8, 1, "random", np.ones(500)).epoch(2))
    assert sorted(rows.tolist()) == list(range(500))


def test_other_epochs_and_seeds_draw_other_rows():
    _, draws = imbalanced([90, 10], [0.5, 0.5])

    def drawn(seed: int, epoch: int) -> list[int]:
        found = GlobalBatches(lengths_of(100), 8, seed, "random", draws).epoch(epoch)
        return sorted(np.concatenate(found).tolist())

    assert drawn(1, 0) == drawn(1, 0) and drawn(1, 0) != drawn(1, 1) and drawn(1, 0) != drawn(2, 0)
    used = {row for epoch in range(20) for row in drawn(1, epoch)}
    assert used == set(range(100)), "a row that one epoch leaves out has its turn in another"


def test_a_row_that_is_drawn_often_does_not_fill_batches():
    """Sorted by length in large chunks, the copies of a row would lie side by side."""
    classes, draws = imbalanced([3980, 20], [0.5, 0.5])
    lengths = lengths_of(4000)
    most = {
        order: max(int(np.bincount(b).max()) for b in GlobalBatches(lengths, 32, 0, order, draws).epoch(0)[1:])
        for order in ("group_by_length", "random")
    }
    assert draws.max() == 100 and most["group_by_length"] <= most["random"] + 2
    shares = [classes[b].mean() for b in GlobalBatches(lengths, 32, 0, "group_by_length", draws).epoch(0)]
    assert min(shares) > 0.2 and max(shares) < 0.8, "each batch has rows of both classes"


@given(sizes=st.lists(st.integers(1, 20), min_size=2, max_size=4), order=st.sampled_from(ORDERS[:2]), data=st.data())
def test_phases_and_resumes_use_an_epochs_draw_to_its_end(sizes, order, data):
    """Whatever batch size a phase has, and wherever one begins or goes on: the rows of an epoch are the draw made for it."""
    classes, draws = imbalanced([50, 7], [0.5, 0.5])
    lengths, used, place = lengths_of(57), [], {"first_step": 0, "epoch": 0, "rows_done": 0}
    began = sizes[0]
    for size in sizes:
        planned = phase(
            57, size, data.draw(st.integers(1, 12)), **place, epoch_batch_size=began if place["rows_done"] else size
        )
        whole = [b.tolist() for b in PhaseBatches(lengths, planned, 3, order, draws=draws)]
        after = planned.first_step + data.draw(st.integers(0, planned.steps))
        again = PhaseBatches(lengths, planned, 3, order, after=after, draws=draws)
        assert [b.tolist() for b in again] == whole[after - planned.first_step :]
        used += [row for batch in whole for row in batch]
        epoch, done = planned.position(planned.last_step)
        began = planned.epoch_batch_size if epoch == place["epoch"] else size
        place = {"first_step": planned.last_step, "epoch": epoch, "rows_done": done}
    assert len(used) == place["epoch"] * 57 + place["rows_done"]
    for epoch in range(place["epoch"]):
        part = used[epoch * 57 : (epoch + 1) * 57]
        assert abs(int((classes[part] == 1).sum()) - 28.5) <= 1


def test_ranks_share_what_is_drawn():
    _, draws = imbalanced([90, 11], [0.5, 0.5])
    planned = phase(101, 8, 26)
    batches = PhaseBatches(lengths_of(101), planned, 3, draws=draws)
    ranks = [list(RankBatches(batches, accumulation=2, rank=rank, world_size=3)) for rank in range(3)]
    for step, whole in enumerate(batches):
        drawn = [row.number for rank in ranks for micro in rank[2 * step : 2 * step + 2] for row in micro]
        assert sorted(number for number in drawn if number >= 0) == sorted(whole.tolist())


def _copies(sampler_of: Any, ranks: int) -> list[tuple[int, int, int]]:
    """(epoch, row, copy) of all that is drawn, padding left out, in no order."""
    found = [row for rank in range(ranks) for micro in sampler_of(rank) for row in micro if row.number >= 0]
    return sorted((row.epoch, row.number, row.copy) for row in found)


def test_each_copy_of_a_row_has_its_number_wherever_it_is_drawn():
    """The same on any number of ranks, at another batch size, and for what a resume has left."""
    _, draws = imbalanced([90, 11], [0.5, 0.5])
    lengths = lengths_of(101)

    def drawn(size: int, *, world: int, accumulation: int, after: int = 0) -> list[tuple[int, int, int]]:
        batches = PhaseBatches(lengths, phase(101, size, 2 * -(-101 // size)), 3, after=after, draws=draws)
        return _copies(lambda rank: RankBatches(batches, accumulation=accumulation, rank=rank, world_size=world), world)

    one = drawn(8, world=1, accumulation=1)
    assert len(set(one)) == len(one) == 202, "no two of an epoch are the same copy"
    highest = {(epoch, row): copy for epoch, row, copy in one}
    assert len(one) == sum(copy + 1 for copy in highest.values()) and max(highest.values()) >= 4
    assert drawn(8, world=3, accumulation=2) == one
    late = drawn(8, world=2, accumulation=1, after=5)
    assert set(late) < set(one) and len(late) == 202 - 40
    assert drawn(5, world=2, accumulation=2) == one


def test_without_draws_there_is_one_copy_of_each_row():
    batches = PhaseBatches(lengths_of(20), phase(20, 8, 6), 3)
    found = _copies(lambda rank: RankBatches(batches, accumulation=1, rank=rank, world_size=1), 1)
    assert {copy for _, _, copy in found} == {0}


# --- padding rows weigh nothing --------------------------------------------------------------------------------------


def test_a_padding_row_is_a_copy_of_weight_0():
    from datasets import Dataset

    from launcher.engine.loading import Rows, WithRowIds

    split = Dataset.from_dict(
        {"input_ids": [[1], [2, 3]], "labels": [0, 1], "length": [1, 2], "row_id": [70, 71], "text": ["a", "b"]}
    )
    rows = Rows(split)
    real, padding = rows.__getitems__([1, -2])
    assert real == {"input_ids": [2, 3], "labels": 1, "row_id": 1, "weight": 1.0}
    assert padding == {**real, "weight": 0.0}
    assert rows[-1] == {"input_ids": [1], "labels": 0, "row_id": 0, "weight": 0.0}
    assert rows[Drawn(-2, 3, 1)] == {**padding, "epoch": 3, "copy": 1}, "what is drawn for training says when"
    batch = WithRowIds(lambda found: {"weights": [row["weight"] for row in found]})([real, padding])
    assert batch == {"weights": [1.0, 0.0], "row_numbers": [1]}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_of_a_row_reaches_the_collator_also_in_a_worker(workers):
    from datasets import Dataset
    from torch.utils.data import DataLoader

    from launcher.engine.loading import Rows

    split = Dataset.from_dict({"input_ids": [[n] for n in range(5)], "length": [1] * 5, "row_id": list(range(5))})
    batches = PhaseBatches(np.ones(5, dtype=np.int64), phase(5, 2, 9), 0)
    sampler = RankBatches(batches, accumulation=1, rank=0, world_size=1)
    loader = DataLoader(Rows(split), batch_sampler=sampler, collate_fn=_epochs_and_rows, num_workers=workers)
    found = list(loader)
    assert [{epoch for epoch, _ in batch} for batch in found] == [{0}] * 3 + [{1}] * 3 + [{2}] * 3
    assert [[row for _, row in batch] for batch in found] == [rows.tolist() for rows in batches]


def _epochs_and_rows(rows):
    return [(row["epoch"], row["row_id"]) for row in rows]
