"""Operations of a token and the time of a run, against the formulas of the papers and against torch's own count."""

from __future__ import annotations

import pytest

from launcher.contracts import TuningGroup, TuningTable
from launcher.planning.throughput import (
    Speed,
    Work,
    duration,
    estimated_speed,
    flops_per_token,
    in_words,
    tokens_of_steps,
    work_of,
)


def group(name: str, depths: tuple[int, int], numel: int, *, trainable: bool = True) -> TuningGroup:
    return TuningGroup(name, depths, (name,), numel, trainable, 1e-3 if trainable else 0.0, 0.0)


def table(*, frozen_below: int = 0, adapters: int = 0) -> TuningTable:
    names = {0: ("embeddings", 1000), 1: ("block.1", 100), 2: ("block.2", 100), 3: ("head", 50)}
    groups = [
        group(name, (depth, depth), numel, trainable=depth >= frozen_below and not adapters)
        for depth, (name, numel) in names.items()
    ]
    groups += [group("adapters", (1, 2), adapters)] if adapters else []
    return TuningTable(tuple(groups))


def work(tuning: TuningTable, *, tied: bool = False) -> Work:
    return work_of(tuning, layers=2, width=8, tied=tied)


def test_a_model_that_trains_whole_costs_six_operations_a_parameter():
    found = work(table())
    assert (found.multiplied, found.passed, found.trained) == (250, 250, 250), "embedding tables are looked up"
    assert flops_per_token(found, length=0) == 6 * 250
    assert work(table(), tied=True).multiplied == 1250, "a tied table is also the output layer"


def test_attention_adds_twelve_times_length_times_width():
    found = work(table())
    assert flops_per_token(found, length=100) - flops_per_token(found, length=0) == 12 * 100 * 2 * 8


def test_checkpointing_repeats_the_forward_pass():
    found = work(table())
    assert flops_per_token(found, length=0, checkpointing=True) == 8 * 250


def test_frozen_layers_below_need_no_backward_pass():
    found = work(table(frozen_below=2))
    assert (found.passed, found.trained) == (150, 150)
    assert flops_per_token(found, length=0) == 2 * 250 + 4 * 150
    assert flops_per_token(work(table(frozen_below=3)), length=0) == 2 * 250 + 4 * 50, "a head alone"


def test_adapters_pass_a_gradient_through_frozen_weights():
    found = work(table(adapters=10))
    assert flops_per_token(found, length=0) == 4 * 250 + 6 * 10


def test_operations_agree_with_torchs_count():
    """A tiny Llama, forward and backward, counted by torch while it runs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    rows, length = 2, 32
    with FlopCounterMode(display=False) as counter:
        tokens = torch.randint(0, 200, (rows, length))
        model(input_ids=tokens).logits.sum().backward()
    total = sum(p.numel() for p in model.parameters())
    embeddings = model.get_input_embeddings().weight.numel()
    found = flops_per_token(Work(total - embeddings, total - embeddings, total - embeddings, 3 * 64), length=length)
    # The lowest layer's input needs no gradient only for token ids; norms are not products.
    assert counter.get_total_flops() / (rows * length) == pytest.approx(found, rel=0.03)


def test_the_time_of_a_run():
    speed = estimated_speed(6e9 * 8, peak=1e15, ranks=8, utilisation=0.4, slowdown=1.25)
    assert speed.tokens_per_second == pytest.approx(8 * 1e15 * 0.32 / 48e9) and speed.source == "estimate"
    found = duration(10**9, Speed(1e6, "stated"), ranks=8)
    assert found.seconds == 1000 and found.device_hours == pytest.approx(8000 / 3600)


def test_tokens_of_a_run():
    assert tokens_of_steps([10, 20, 30], rows=3, longest=64, steps=5, batch_rows=4) == 400
    assert tokens_of_steps(None, rows=0, longest=64, steps=5, batch_rows=4) == 1280


@pytest.mark.parametrize(
    "seconds, text", [(0.2, "under 1 s"), (40, "40 s"), (700, "12 min"), (12240, "3.4 h"), (440640, "5.1 days")]
)
def test_time_spans_in_words(seconds, text):
    assert in_words(seconds) == text
