"""Training from stored states against training through the frozen prefix in evaluation mode: the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset

from launcher.contracts import Phase
from launcher.engine.loading import Rows
from launcher.engine.prefix_cache import build_cache, cache_key
from launcher.errors import InstallationError
from launcher.plans import BatchPlan, LaunchPlan
from launcher.recipe.schema import Recipe
from launcher.strategies.layers import list_parameters
from launcher.strategies.prefix import FAMILIES, CachePlan, Refusal, plan_cache
from launcher.strategies.prefix_facts import cache_facts, free_room
from launcher.strategies.preparing import modules_kept_in_eval
from launcher.strategies.tables import NONE, build_table

HIDDEN, LAYERS, LABELS, PAD = 32, 3, 3, 0
LAUNCH = LaunchPlan("single", None, "fp32", "cpu", 1, 1, BatchPlan(8, 1, 8, 1))
_TEXT = {
    "vocab_size": 60, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40, "pad_token_id": PAD, "num_labels": LABELS,
}  # fmt: skip
_DECODER = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
# Where the name of an option differs, both are given; dropout is on wherever a model has it.
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _TEXT,
    "distilbert": {**_TEXT, "dim": HIDDEN, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 48},
    "electra": {**_TEXT, "embedding_size": 16},
    "gemma": _DECODER,
    "gpt2": {**_TEXT, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 40},
    "llama": _DECODER,
    "mistral": {**_DECODER, "sliding_window": 6},
    "mpnet": _TEXT,
    "qwen2": {**_DECODER, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": _DECODER,
    "roberta": _TEXT,
    "vit": {**_TEXT, "image_size": 16, "patch_size": 4, "num_channels": 3, "hidden_dropout_prob": 0.1},
    "xlm-roberta": _TEXT,
}


def make_model(model_type: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    values = {k: v for k, v in CONFIGS[model_type].items() if model_type != "gpt2" or k not in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "intermediate_size")}  # fmt: skip
    config = transformers.AutoConfig.for_model(model_type, **(values | changes))
    auto = transformers.AutoModelForImageClassification if model_type == "vit" else transformers.AutoModelForSequenceClassification  # fmt: skip
    return auto.from_config(config)


def make_rows(number: int = 20, *, seed: int = 0, last: int | None = None) -> Dataset:
    """Rows of 3 to 14 tokens; ``last``: what every row ends with."""
    rng = np.random.default_rng(seed)
    ids = [[1, *rng.integers(4, 60, int(rng.integers(2, 14))).tolist()] for _ in range(number)]
    ids = [row if last is None else [*row, last] for row in ids]
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "labels": rng.integers(0, LABELS, number).tolist(),
            "length": [len(row) for row in ids],
            "row_id": list(range(100, 100 + number)),
        }
    )


def collate(rows: Any) -> dict[str, Any]:
    """Pad to the right, to a multiple of 8."""
    width = -(-max(len(row["input_ids"]) for row in rows) // 8) * 8
    ids = [row["input_ids"] + [PAD] * (width - len(row["input_ids"])) for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor([row["labels"] for row in rows]),
        "sample_weight": torch.tensor([row["weight"] for row in rows]),
    }


def make_images(number: int = 20) -> Dataset:
    """Rows whose pixels follow from a number, so that they need not be stored; 17 tokens each."""
    rng = np.random.default_rng(0)
    return Dataset.from_dict(
        {
            "input_ids": [[i] for i in range(number)],
            "labels": rng.integers(0, LABELS, number).tolist(),
            "length": [17] * number,
            "row_id": list(range(number)),
        }
    )


def collate_images(rows: Any) -> dict[str, Any]:
    pixels = [torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(row["input_ids"][0])) for row in rows]
    return {"pixel_values": torch.stack(pixels), "labels": torch.tensor([row["labels"] for row in rows])}


def make_phase(model: Any, *, frozen: int | str, **changes: Any) -> Phase:
    """Freeze the embeddings and so many blocks, or, with "head", everything but the head."""

    def rate(parameter: Any) -> float:
        if frozen == "head":
            return 1e-2 if parameter.role == "head" else 0.0
        return 1e-2 if parameter.depth > int(frozen) else 0.0

    table = build_table(list_parameters(model), rate=rate, regularization=NONE)
    names = {name for group in table.trainable for name in group.parameters}
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(name in names)
    return Phase("main", table, **{"frozen_eval": True, **changes})


def make_recipe(*, cache: str = "memory", kind: str = "layerwise", **training: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "version": 1, "name": "x", "task": {"type": "text-classification"}, "model": {"name_or_path": "x"},
            "data": {"source": "x"}, "strategy": {"type": kind, "prefix_cache": cache}, "training": training,
        }
    )  # fmt: skip


def make_plan(model: Any, phase: Phase, rows: Dataset, folder: Path, *, cache: str = "memory", **facts: Any) -> Any:
    found = cache_facts(model, {"train": rows}, launch=LAUNCH, epochs=10, phases=1, free=free_room(folder))
    return plan_cache(list_parameters(model), phase, make_recipe(cache=cache), replace(found, **facts))


def build(model: Any, rows: Dataset, plan: CachePlan, folder: Path, *, collator: Any = collate, **options: Any) -> Any:
    values = {"launch": LAUNCH, "fingerprint": "f", "device": "cpu", "folder": folder, "batch_rows": 8}
    return build_cache(model, {"train": rows}, plan, collate=collator, **(values | options))


def train(model: Any, rows: Dataset, collator: Any, *, phase: Phase, steps: int = 4) -> dict[str, Any]:
    """A few steps of SGD with momentum; the same row in batches of different width."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.05, momentum=0.9)
    data, losses, gradients = Rows(rows), [], []
    order = np.random.default_rng(1).permutation(len(rows))
    torch.manual_seed(5)
    for step in range(steps):
        model.train()
        for module in modules_kept_in_eval(model, phase):
            module.eval()
        numbers = [int(n) for n in np.roll(order, 5 * step)[:8]]
        numbers[-1] = -1 - numbers[-1]
        batch = collator(data.__getitems__(numbers))
        labels = batch.pop("labels")
        batch.pop("sample_weight", None)
        logits = model(**batch).logits
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad.clone() for name, p in trained.items()})
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": losses, "gradients": gradients, "weights": {n: p.detach().clone() for n, p in trained.items()}}


def assert_equal(one: dict[str, Any], other: dict[str, Any], *, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(one["losses"], other["losses"], rtol=tolerance, atol=tolerance)
    for a, b in [*zip(one["gradients"], other["gradients"], strict=True), (one["weights"], other["weights"])]:
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=tolerance * 10, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")  # fmt: skip


def assert_cache_equals_uncached(
    model_type: str, frozen: int | str, folder: Path, *, store: str = "memory"
) -> CachePlan:
    rows, collator = (make_images(), collate_images) if model_type == "vit" else (make_rows(), collate)
    model = make_model(model_type)
    expected = train(model, rows, collator, phase=make_phase(model, frozen=frozen))
    model = make_model(model_type)
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    phase = make_phase(model, frozen=frozen)
    plan = make_plan(model, phase, rows, folder, cache=store)
    assert isinstance(plan, CachePlan)
    cache = build(model, rows, plan, folder, collator=collator)
    cache.unload(model)
    found = train(model, rows, cache.collator(collator, rows), phase=phase)
    assert_equal(found, expected)
    cache.restore(model)
    assert list(model.state_dict()) == list(whole)
    for name, tensor in model.state_dict().items():
        if name not in expected["weights"]:
            assert torch.equal(tensor, whole[name]), name
    return plan


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
class TestEqualsTheUncachedRun:
    def test_head_only(self, model_type: str, tmp_path: Path) -> None:
        plan = assert_cache_equals_uncached(model_type, "head", tmp_path)
        assert plan.whole_backbone and plan.reads == FAMILIES[model_type].reads

    def test_some_blocks(self, model_type: str, tmp_path: Path) -> None:
        plan = assert_cache_equals_uncached(model_type, 2, tmp_path, store="disk")
        assert (plan.blocks, plan.reads) == (2, "tokens")

    def test_all_blocks_but_what_follows_them_trains(self, model_type: str, tmp_path: Path) -> None:
        plan = assert_cache_equals_uncached(model_type, LAYERS, tmp_path)
        has_tail = any(p.role == "tail" for p in list_parameters(make_model(model_type)))
        assert plan.whole_backbone != has_tail


def test_every_family_has_a_configuration_here() -> None:
    assert sorted(CONFIGS) == sorted(FAMILIES)


def cut_model(folder: Path, *, frozen: int | str = "head", model_type: str = "bert", store: str = "memory") -> Any:
    model = make_model(model_type)
    phase, rows = make_phase(model, frozen=frozen), make_rows()
    cache = build(model, rows, make_plan(model, phase, rows, folder, cache=store), folder)
    return model, rows, cache


class TestEntries:
    def test_are_unpadded_and_independent_of_the_batch(self, tmp_path: Path) -> None:
        model, rows, cache = cut_model(tmp_path, frozen=2)
        states = {}
        model.bert.encoder.layer[1].register_forward_hook(lambda module, args, output: states.update(row=output))
        model.eval()
        for number in (0, 7, 19):
            with torch.no_grad():
                model(input_ids=torch.tensor([rows[number]["input_ids"]]))
            entry = cache.entries["train"][number]
            assert entry.shape == (rows[number]["length"], HIDDEN)
            torch.testing.assert_close(entry, states["row"][0], atol=1e-6, rtol=1e-5)

    def test_in_memory_and_on_disk_are_the_same(self, tmp_path: Path) -> None:
        memory = cut_model(tmp_path, frozen=2)[2].entries["train"]
        disk = cut_model(tmp_path, frozen=2, store="disk")[2].entries["train"]
        assert all(torch.equal(memory[row], disk[row]) for row in range(len(memory)))

    def test_last_vector_is_the_one_that_the_head_reads_where_texts_end_with_the_padding_token(
        self, tmp_path: Path
    ) -> None:
        model, rows = make_model("llama"), make_rows(last=PAD)
        phase = make_phase(model, frozen="head")
        cache = build(model, rows, make_plan(model, phase, rows, tmp_path), tmp_path)
        batch = collate(Rows(rows).__getitems__(list(range(8))))
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        model.eval()
        with torch.no_grad():
            expected = model(**inputs).logits
            cache.unload(model)
            states = cache.collator(collate, rows)(Rows(rows).__getitems__(list(range(8))))["prefix_states"]
            torch.testing.assert_close(model(**inputs, prefix_states=states).logits, expected)

    def test_left_padding_of_relative_positions(self, tmp_path: Path) -> None:
        def collate_left(numbered: Any) -> dict[str, Any]:
            batch = collate(numbered)
            for i, row in enumerate(numbered):
                shift = batch["input_ids"].shape[1] - len(row["input_ids"])
                for name in ("input_ids", "attention_mask"):
                    batch[name][i] = batch[name][i].roll(shift)
            return batch

        model, rows = make_model("llama"), make_rows()
        phase = make_phase(model, frozen=2)
        expected = train(model, rows, collate_left, phase=phase)
        model = make_model("llama")
        phase = make_phase(model, frozen=2)
        cache = build(model, rows, make_plan(model, phase, rows, tmp_path, padding_side="left"), tmp_path, collator=collate_left)  # fmt: skip
        cache.unload(model)
        assert_equal(train(model, rows, cache.collator(collate_left, rows), phase=phase), expected, tolerance=1e-4)

    def test_heads_for_every_token(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        config = transformers.BertConfig(**_TEXT)
        model, rows = transformers.BertForTokenClassification(config).eval(), make_rows()
        phase = make_phase(model, frozen="head")
        plan = make_plan(model, phase, rows, tmp_path)
        assert (plan.whole_backbone, plan.reads) == (True, "tokens")
        cache = build(model, rows, plan, tmp_path)
        batch = collate(Rows(rows).__getitems__([3, 4, 5]))
        real = batch["attention_mask"].bool()
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        expected = model(**inputs).logits[real]
        cache.unload(model)
        states = cache.collator(collate, rows)(Rows(rows).__getitems__([3, 4, 5]))["prefix_states"]
        torch.testing.assert_close(model(**inputs, prefix_states=states).logits[real], expected)


class TestPrecision:
    @pytest.mark.parametrize("frozen", ["head", 2])
    @pytest.mark.parametrize("model_type", ["bert", "llama"])
    def test_bf16_by_autocast(self, model_type: str, frozen: int | str, tmp_path: Path) -> None:
        launch, rows = replace(LAUNCH, precision="bf16"), make_rows()

        def run(*, cached: bool) -> dict[str, Any]:
            model = make_model(model_type)
            phase = make_phase(model, frozen=frozen)
            collator: Any = collate
            if cached:
                cache = build(
                    model, rows, make_plan(model, phase, rows, tmp_path, launch=launch), tmp_path, launch=launch
                )
                cache.unload(model)
                collator = cache.collator(collate, rows)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return train(model, rows, collator, phase=phase)

        assert_equal(run(cached=True), run(cached=False), tolerance=1e-2)

    def test_deepspeed_casts_weights_so_states_have_their_dtype(self, tmp_path: Path) -> None:
        launch = replace(LAUNCH, engine="deepspeed", zero_stage=2, precision="bf16")
        model, rows = make_model("llama"), make_rows()
        phase = make_phase(model, frozen=2)
        facts = cache_facts(model, {"train": rows}, launch=launch, epochs=10, phases=1, free=free_room(tmp_path))
        plan = plan_cache(list_parameters(model), phase, make_recipe(), facts)
        cache = build(model, rows, plan, tmp_path, launch=launch)
        entries = cache.entries["train"]
        assert entries[0].dtype == torch.bfloat16
        assert plan.bytes == sum(part.numel() * 2 for part in entries.parts)


class TestKey:
    def test_is_the_same_for_the_same(self, tmp_path: Path) -> None:
        assert cut_model(tmp_path)[2].key == cut_model(tmp_path)[2].key

    def test_does_not_depend_on_what_trains(self, tmp_path: Path) -> None:
        model, _, cache = cut_model(tmp_path, frozen=2)
        with torch.no_grad():
            model.bert.encoder.layer[2].output.dense.weight.add_(1)
            model.classifier.weight.add_(1)
        assert self.key(model, cache) == cache.key

    def test_changes_with_each_of_its_parts(self, tmp_path: Path) -> None:
        model, _, cache = cut_model(tmp_path, frozen=2)
        keys = {cache.key, self.key(model, cache, fingerprint="other"), self.key(model, cache, launch=replace(LAUNCH, precision="bf16"))}  # fmt: skip
        keys.add(self.key(model, cache, plan=replace(cache.plan, blocks=1)))
        model.set_attn_implementation("eager")
        keys.add(self.key(model, cache))
        model.set_attn_implementation("sdpa")
        with torch.no_grad():
            model.bert.encoder.layer[1].output.dense.bias[0] += 1e-3
        keys.add(self.key(model, cache))
        model.bert.embeddings.to(torch.float64)
        keys.add(self.key(model, cache))
        assert len(keys) == 7

    @staticmethod
    def key(model: Any, cache: Any, *, plan: Any = None, **changes: Any) -> str:
        values = {"launch": LAUNCH, "fingerprint": "f", "device": "cpu"} | changes
        return cache_key(model, plan or cache.plan, **values)


class TestDisk:
    def test_a_complete_cache_is_read_and_an_incomplete_one_made_anew(self, tmp_path: Path) -> None:
        model, rows, first = cut_model(tmp_path, store="disk")
        calls: list[int] = []

        def counting(numbered: Any) -> dict[str, Any]:
            calls.append(len(numbered))
            return collate(numbered)

        again = build(model, rows, first.plan, tmp_path, collator=counting)
        assert not calls
        assert all(torch.equal(first.entries["train"][i], again.entries["train"][i]) for i in range(len(rows)))
        (first.folder / "train" / "manifest.json").unlink()
        (first.folder / "train" / "part-0.bin").write_bytes(b"half")
        build(model, rows, first.plan, tmp_path, collator=counting)
        assert sum(calls) == len(rows)

    def test_takes_the_bytes_that_were_planned_and_gives_them_back(self, tmp_path: Path) -> None:
        _, _, cache = cut_model(tmp_path, frozen=2, store="disk")
        assert sum(path.stat().st_size for path in tmp_path.rglob("part-*.bin")) == cache.plan.bytes
        cache.remove()
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_cannot_be_written_is_an_error_for_the_user(self, tmp_path: Path) -> None:
        model, rows, cache = cut_model(tmp_path, store="disk")
        cache.remove()
        (tmp_path / cache.key[:32] / "train" / "part-0.bin").mkdir(parents=True)
        with pytest.raises(InstallationError, match="prefix cache cannot be written"):
            build(model, rows, cache.plan, tmp_path)


class TestCut:
    def test_prefix_is_gone_and_names_stay(self, tmp_path: Path) -> None:
        model, _, cache = cut_model(tmp_path, frozen=2)
        whole = dict(model.named_parameters())
        cache.unload(model)
        left = dict(model.named_parameters())
        assert {
            n for n in whole if "embeddings" in n or "layer.0." in n or "layer.1." in n
        } == whole.keys() - left.keys()
        assert all(left[name] is whole[name] for name in left)
        cache.restore(model)
        cache.restore(model)
        assert [n for n, _ in model.named_parameters()] == list(whole)

    def test_whole_model_evaluates_like_the_cut_one(self, tmp_path: Path) -> None:
        model, rows, cache = cut_model(tmp_path, frozen=2)
        model.eval()
        numbered = Rows(rows).__getitems__([0, 1, 2])
        cache.unload(model)
        stored = cache.collator(collate, rows)(numbered)
        names = ("input_ids", "attention_mask", "prefix_states")
        cut = model(**{name: stored[name] for name in names}).logits
        cache.restore(model)
        batch = cache.collator(collate, rows)(numbered)  # without states again
        torch.testing.assert_close(model(**{name: batch[name] for name in names if name in batch}).logits, cut)

    def test_a_batch_without_states_is_our_mistake(self, tmp_path: Path) -> None:
        model, _, cache = cut_model(tmp_path)
        cache.unload(model)
        with pytest.raises(AssertionError, match="prefix_states"):
            model(input_ids=torch.tensor([[1, 5]]))
        with pytest.raises(AssertionError, match="not cached"):
            cache.collator(collate, make_rows())

    @pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
    @pytest.mark.parametrize("frozen", ["head", 2])
    def test_under_trainer_with_checkpoints_and_the_best_one_loaded(
        self, model_type: str, frozen: int | str, tmp_path: Path
    ) -> None:
        """The cut model is saved and loaded by name; whole again, it has the pretrained prefix and the trained rest."""
        model, rows, cache = cut_model(tmp_path, frozen=frozen, model_type=model_type)
        whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trained = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
        cache.unload(model)
        stored = cache.collator(collate, rows)

        def without_weights(numbered: Any) -> dict[str, Any]:
            return {name: value for name, value in stored(numbered).items() if name != "sample_weight"}

        arguments = transformers.TrainingArguments(
            str(tmp_path / "out"), max_steps=4, per_device_train_batch_size=4, use_cpu=True, report_to="none",
            remove_unused_columns=False, save_steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
            learning_rate=1e-2, disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, without_weights, Rows(rows), Rows(rows))
        trainer.train()
        cache.restore(model)
        model.save_pretrained(tmp_path / "saved")
        loaded = type(model).from_pretrained(tmp_path / "saved")
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
            assert torch.equal(tensor, whole[name]) == (name not in trained), name


def _rank(rank: int, folder: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    for store in ("memory", "disk"):
        for number in (20, 5):  # of 5 rows, one rank has no share
            model, rows = make_model("bert"), make_rows(number)
            plan = make_plan(model, make_phase(model, frozen=2), rows, Path(folder), cache=store)
            cache = build(model, rows, plan, Path(folder), fingerprint=str(number))
            torch.save([cache.entries["train"][i].clone() for i in range(number)], f"{folder}/{store}-{number}-{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_share_the_work_and_both_have_everything(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    for number in (20, 5):
        model, rows = make_model("bert"), make_rows(number)
        plan = make_plan(model, make_phase(model, frozen=2), rows, tmp_path)
        alone = build(model, rows, plan, tmp_path).entries["train"]
        for name in ("memory-{}-0", "memory-{}-1", "disk-{}-0", "disk-{}-1"):
            found = torch.load(tmp_path / name.format(number))
            assert len(found) == number
            for row, states in enumerate(found):
                assert torch.equal(states, alone[row])  # the same batches, whoever computed them


def test_facts_of_a_model_without_dropout(tmp_path: Path) -> None:
    def has_dropout(model: Any) -> bool:
        return cache_facts(model, {"train": make_rows()}, launch=LAUNCH, epochs=1, phases=1, free=free_room(tmp_path / "new")).has_dropout  # fmt: skip

    assert has_dropout(make_model("bert"))
    assert not has_dropout(make_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    assert not has_dropout(make_model("llama"))
    assert has_dropout(make_model("llama", attention_dropout=0.1))


def test_other_models_are_refused_in_words(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.DebertaV2Config(**_TEXT)
    model = transformers.DebertaV2ForSequenceClassification(config)
    phase = make_phase(model, frozen="head")
    refusal = make_plan(model, phase, make_rows(), tmp_path, cache="auto")
    assert isinstance(refusal, Refusal) and "deberta-v2" in refusal.reason
