"""Losses of pairs: each is trl's, on the same model and rows, and what it says of pairs by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from launcher.recipe.chat_options import PREFERENCE_LOSSES, REFERENCE_FREE_LOSSES, SMOOTHED_LOSSES, PreferenceOptions
from launcher.recipe.schema import Recipe
from launcher.tasks.preference import Preference
from launcher.tasks.preference_losses import LOSSES, PairScores, pair_losses, pair_rewards, reward_losses
from launcher.tasks.reward import Reward

ROWS = {
    "prompt": ["Once upon a time there was", "Tom said", "The cat sat", "Lily went to the park and"],
    "chosen": [" a little girl named Lily.", " hello.", " on the mat and slept.", " played with her friends."],
    "rejected": [" one.", " I do not like this big red ball!", " xq", " she saw a dog. The dog was big."],
}


@pytest.fixture(scope="module")
def story(request: pytest.FixtureRequest) -> Path:
    """A real small language model."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "stories260k-llama"
    request.getfixturevalue("require")(folder.is_dir(), f"needs the model in {folder}")
    return folder


def options(kind: str, **changes: Any) -> Recipe:
    task = {"type": kind, "chat_template": "plain", **changes}
    return Recipe.model_validate(tiny.recipe_values("m", "s", task=task, strategy={"type": "full"}))


# --- the same as trl's -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dpo(story: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """trl's trainer of the model with its reference, and a batch as it sees it."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(str(story))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(str(story))
    arguments = DPOConfig(
        str(tmp_path_factory.mktemp("trl")), precompute_ref_log_probs=True, per_device_train_batch_size=4, max_length=64,
        report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    rows = Dataset.from_dict(ROWS)
    trainer = DPOTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    features = [dict(row) for row in trainer.train_dataset]
    batch = trainer.data_collator(features)
    with torch.no_grad():
        # As after some training: the model is no longer its reference.
        for number, tensor in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            tensor += 0.03 * tensor.abs().mean() * torch.randn(tensor.shape, generator=generator)
    model.eval()
    return SimpleNamespace(trainer=trainer, batch=batch, features=features, model=model, pad=tokenizer.pad_token_id)


def our_rows(features: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            name: value
            for side in ("chosen", "rejected")
            for name, value in {
                f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"],
                f"{side}_learned": [False] * len(row["prompt_ids"]) + [True] * len(row[f"{side}_ids"]),
            }.items()
        }
        for row in features
    ]


def our_batch(dpo: Any, *, only_learned: bool) -> tuple[Any, dict[str, Any]]:
    from launcher.contracts import TARGETS
    from launcher.tasks.preference import PreferenceCollator

    batch = PreferenceCollator(pad_token_id=dpo.pad, only_learned=only_learned)(our_rows(dpo.features))
    columns = [dpo.batch["ref_chosen_logps"], dpo.batch["ref_rejected_logps"]]
    batch["reference"] = torch.stack(columns, dim=1)
    with torch.no_grad():
        outputs = dpo.model(**{name: value for name, value in batch.items() if name not in TARGETS})
    return outputs, batch


@pytest.mark.parametrize("loss_type", PREFERENCE_LOSSES)
def test_each_loss_is_trls(loss_type: str, dpo: Any) -> None:
    smoothing = 0.1 if loss_type in ("exo_pair", "robust") else 0.0
    task = Preference(options("preference", loss_type=loss_type, beta=0.3, label_smoothing=smoothing))
    trainer = dpo.trainer
    trainer.loss_types, trainer.beta, trainer.label_smoothing = [loss_type], 0.3, smoothing
    with torch.no_grad():
        theirs = float(trainer._compute_loss(dpo.model, dict(dpo.batch), return_outputs=False))
    for only_learned in (True, False):
        outputs, batch = our_batch(dpo, only_learned=only_learned)
        ours = float(task.loss(outputs, batch) / task.items(batch))
        assert ours == pytest.approx(theirs, rel=1e-4), only_learned
    assert theirs != pytest.approx(math.log(2), abs=1e-3), "the model is its reference, so the loss says nothing"


def test_the_reference_is_trls(dpo: Any, story: Path) -> None:
    from transformers import AutoModelForCausalLM

    from launcher.tasks.preference import answer_scores

    before = AutoModelForCausalLM.from_pretrained(str(story)).eval()
    _, batch = our_batch(dpo, only_learned=True)
    with torch.no_grad():
        outputs = before(**{name: batch[name] for name in ("input_ids", "attention_mask", "logits_to_keep")})
    chosen, rejected, *tokens = answer_scores(outputs, batch)
    assert torch.allclose(torch.stack([chosen, rejected], dim=1), batch["reference"], rtol=1e-4)
    assert [t.tolist() for t in tokens] == [
        [len(row[f"{side}_ids"]) for row in dpo.features] for side in ("chosen", "rejected")
    ]


@pytest.mark.parametrize("center", [0.0, 0.01])
def test_the_reward_loss_is_trls(center: float, story: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(str(story))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(str(story), num_labels=1)
    arguments = RewardConfig(
        str(tmp_path), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True, max_length=64,
        center_rewards_coefficient=center or None,
    )  # fmt: skip
    rows = {side: [a + b for a, b in zip(ROWS["prompt"], ROWS[side], strict=True)] for side in ("chosen", "rejected")}
    trainer = RewardTrainer(model, args=arguments, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer)
    features = [dict(row) for row in trainer.train_dataset]
    model = trainer.model.eval()
    with torch.no_grad():
        theirs = float(trainer.compute_loss(model, dict(trainer.data_collator(features))))
        task = Reward(options("reward", center_rewards_coefficient=center))
        from launcher.tasks.reward import RewardCollator

        batch = RewardCollator(pad_token_id=model.config.pad_token_id)(features)
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert float(task.loss(outputs, batch) / task.items(batch)) == pytest.approx(theirs, rel=1e-5)
    kept = task.row_outputs(outputs, batch)
    assert kept.shape == (4, 2) and kept[:, 0].tolist() == outputs.logits[:4, 0].tolist()


# --- by hand ---------------------------------------------------------------------------------------------------------


def scores(*columns: list[float]) -> PairScores:
    """Chosen, rejected, their tokens, and the reference of both."""
    return PairScores(*(torch.tensor(column, dtype=torch.float64) for column in columns))


def loss_of(pair: PairScores, loss_type: str, **changes: Any) -> Any:
    return pair_losses(pair, PreferenceOptions(type="preference", loss_type=loss_type, **changes))


def test_the_losses_are_those_of_the_options() -> None:
    assert tuple(LOSSES) == (*PREFERENCE_LOSSES, *REFERENCE_FREE_LOSSES)
    pair = scores([-10.0], [-12.0], [5.0], [3.0], [-11.0], [-11.0])
    for name in LOSSES:
        plain, smoothed = (float(loss_of(pair, name, beta=0.5, label_smoothing=s)) for s in (0.1, 0.2))
        assert (plain != smoothed) == (name in SMOOTHED_LOSSES), name


def test_dpo_by_hand() -> None:
    # The chosen answer has gained 2 nats and the rejected one has lost 1: beta times 3.
    pair = scores([-8.0], [-12.0], [4.0], [6.0], [-10.0], [-11.0])
    found = float(loss_of(pair, "sigmoid", beta=0.1))
    assert found == pytest.approx(-math.log(1 / (1 + math.exp(-0.3))))
    smoothed = float(loss_of(pair, "sigmoid", beta=0.1, label_smoothing=0.25))
    assert smoothed == pytest.approx(0.75 * found - 0.25 * math.log(1 / (1 + math.exp(0.3))))
    with_own = float(loss_of(pair, "sigmoid", beta=0.1, rpo_alpha=0.5))
    assert with_own == pytest.approx(found + 0.5 * 8 / 4)
    per_token = float(loss_of(pair, "ipo", beta=0.1))
    assert per_token == pytest.approx((2 / 4 + 1 / 6 - 5) ** 2)


def test_losses_without_a_reference_by_hand() -> None:
    pair = scores([-8.0], [-12.0], [4.0], [8.0])
    assert float(loss_of(pair, "cpo", beta=0.1)) == pytest.approx(math.log(1 + math.exp(-0.4)))
    # Per token -2 against -1.5: beta times the difference, less the margin.
    assert float(loss_of(pair, "simpo", beta=2.0, simpo_gamma=0.3)) == pytest.approx(math.log(1 + math.exp(1.3)))
    odds = [p / (1 - p) for p in (math.exp(-2.0), math.exp(-1.5))]
    wanted = 2 + 0.1 * math.log(1 + odds[1] / odds[0])
    assert float(loss_of(pair, "orpo", beta=0.1)) == pytest.approx(wanted)
    certain = scores([0.0], [0.0], [1.0], [1.0])
    certain.chosen.requires_grad_()
    loss_of(certain, "orpo").sum().backward()
    assert math.isfinite(loss_of(certain, "orpo").item()) and math.isfinite(float(certain.chosen.grad))


@pytest.mark.parametrize(("loss_type", "smoothing"), [("cpo", 0.0), ("cpo", 0.2), ("simpo", 0.0), ("simpo", 0.2)])
def test_losses_without_a_reference_are_those_of_trls_cpo(loss_type: str, smoothing: float) -> None:
    from trl.experimental.cpo import CPOTrainer

    pair = scores([-8.0, -3.0], [-12.0, -2.5], [4.0, 3.0], [8.0, 1.0])
    trainer = SimpleNamespace(
        alpha=0.0, beta=0.7, simpo_gamma=0.4, label_smoothing=smoothing, accelerator=SimpleNamespace(device="cpu"),
        loss_type={"cpo": "sigmoid"}.get(loss_type, loss_type),
    )  # fmt: skip
    inputs = (pair.chosen, pair.rejected) if loss_type == "cpo" else (pair.chosen_mean, pair.rejected_mean)
    theirs, *rewards = CPOTrainer.cpo_loss(trainer, *inputs)
    changes = {"beta": 0.7, "label_smoothing": smoothing, "simpo_gamma": 0.4}
    assert torch.allclose(loss_of(pair, loss_type, **changes), theirs)
    ours = pair_rewards(pair, PreferenceOptions(type="preference", loss_type=loss_type, **changes))
    assert all(torch.allclose(own, their) for own, their in zip(ours, rewards, strict=True))


def test_the_ratio_of_odds_is_that_of_trls_orpo() -> None:
    from trl.experimental.orpo import ORPOTrainer

    pair = scores([-8.0, -3.0], [-12.0, -2.5], [4.0, 3.0], [8.0, 1.0])
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    gained, *rewards, _, _ = ORPOTrainer.odds_ratio_loss(trainer, pair.chosen_mean, pair.rejected_mean)
    ours = loss_of(pair, "orpo", beta=0.3) + pair.chosen_mean
    assert torch.allclose(ours, -gained.double(), rtol=1e-5)
    found = pair_rewards(pair, PreferenceOptions(type="preference", loss_type="orpo", beta=0.3))
    assert all(torch.allclose(own.float(), their) for own, their in zip(found, rewards, strict=True))


def test_before_training_all_rewards_are_equal() -> None:
    same = scores([-8.0, -3.0], [-12.0, -9.0], [4.0, 1.0], [6.0, 2.0], [-8.0, -3.0], [-12.0, -9.0])
    assert loss_of(same, "sigmoid", beta=7.0).tolist() == pytest.approx([math.log(2)] * 2)


def test_large_numbers_stay_finite() -> None:
    far = scores([-1e4], [-1.0], [9.0], [9.0], [-1.0], [-1e4])
    for name in LOSSES:
        if name != "discopop":  # Its exponential has no bound.
            assert math.isfinite(float(loss_of(far, name, beta=0.1, label_smoothing=0.1))), name
    rewards = torch.tensor([1e4, -1e4])
    assert reward_losses(rewards, -rewards).tolist() == [0.0, 2e4]
