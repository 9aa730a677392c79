"""What follows an attempt: budgets that do not touch each other, and nodes that are avoided on evidence."""

from __future__ import annotations

import pytest

from launcher.launching.aftermath import Outcome, decide, suspects
from launcher.recipe.schema import SlurmSection

BUDGETS = SlurmSection(max_preemptions=100, max_crashes=2, max_idle_attempts=4)
NODES = ("n1", "n2", "n3")


def attempts(*kinds: str, progress: bool = True, **facts) -> list[Outcome]:
    step = 10 if progress else 0
    return [
        Outcome(i + 1, kind, nodes=NODES, resumed_from=i * step, saved=(i + 1) * step, **facts)
        for i, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("kind", "goes_on"),
    [
        ("finished", False), ("cancelled", False), ("refused", False), ("diverged", False), ("out_of_memory", False),
        ("stopped", True), ("taken", True), ("crashed", True), ("preflight", True),
    ],
)  # fmt: skip
def test_each_ending_once(kind, goes_on):
    decision = decide(attempts(kind, reason="because"), BUDGETS)
    assert decision.goes_on is goes_on
    assert "because" in decision.reason or kind in ("finished", "cancelled")


def test_ten_preemptions_take_nothing_from_the_budget_of_crashes():
    history = attempts(*["stopped", "taken"] * 5, "crashed", "crashed")
    assert decide(history, BUDGETS).goes_on
    ended = decide([*history, *attempts("crashed")], BUDGETS)
    assert not ended.goes_on and "slurm.max_crashes is 2" in ended.reason


def test_a_preflight_that_fails_is_of_the_budget_of_crashes():
    assert decide(attempts("preflight", "crashed"), BUDGETS).goes_on
    assert not decide(attempts("preflight", "crashed", "preflight"), BUDGETS).goes_on


def test_preemptions_have_a_budget_too():
    few = BUDGETS.model_copy(update={"max_preemptions": 3})
    assert decide(attempts(*["stopped"] * 3), few).goes_on
    ended = decide(attempts(*["stopped"] * 4), few)
    assert not ended.goes_on and "slurm.max_preemptions is 3" in ended.reason
    # A crash after them is of another budget.
    assert decide(attempts(*["stopped"] * 3, "crashed"), few).goes_on


def test_attempts_in_a_row_without_a_newer_checkpoint_end_the_run():
    assert decide(attempts(*["taken"] * 3, progress=False), BUDGETS).goes_on
    ended = decide(attempts(*["taken"] * 4, progress=False), BUDGETS)
    assert not ended.goes_on and "without a newer checkpoint" in ended.reason
    moved = [*attempts(*["taken"] * 3, progress=False), *attempts("stopped"), *attempts("taken", progress=False)]
    assert decide(moved, BUDGETS).goes_on


def crash(node: str, reason: str = "rank 1 killed: killed by SIGKILL", kind: str = "crashed", nodes=NODES) -> Outcome:
    return Outcome(1, kind, reason=reason, node=node, nodes=nodes, saved=1)


def test_one_crash_is_no_evidence_against_a_node_and_two_there_alone_are():
    assert suspects([crash("n2")]) == ()
    assert suspects([crash("n2"), crash("n2")]) == ("n2",)
    assert suspects([crash("n2"), crash("n1"), crash("n2")]) == ()


def test_what_preflight_or_the_hardware_itself_says_is_evidence_at_once():
    assert suspects([crash("n3", "preflight: node n3: 1 GPU(s) can be used", kind="preflight")]) == ("n3",)
    assert suspects([crash("n1", "rank 0 failed: CUDA error: uncorrectable ECC error encountered")]) == ("n1",)
    assert suspects([crash("n1", "rank 0 failed: KeyError: 'recch'")]) == ()


def test_a_job_of_one_node_blames_none():
    assert suspects([crash("n1", nodes=("n1",))] * 2) == ()


def test_the_decision_carries_the_suspects():
    assert decide([crash("n2"), crash("n2")], BUDGETS).exclude == ("n2",)


def test_an_outcome_is_read_back_from_its_event():
    row = {
        "time": 1.0,
        "event": "attempt_ended",
        "attempt": 2,
        "kind": "crashed",
        "nodes": ["n1"],
        "reached": 9,
        "saved": 5,
    }
    found = Outcome.from_row(row)
    assert found.nodes == ("n1",) and found.lost == 4
