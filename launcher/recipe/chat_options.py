"""The options of tasks on conversations: instruction tuning, preferences between answers, rewards of answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from launcher.recipe.section import Section

# What a row of each format has; a recipe names its own columns for these under data.columns.
CONVERSATION_COLUMNS = {
    "messages": ("messages", "system", "tools"),
    "sharegpt": ("conversations", "system", "tools"),
    "alpaca": ("instruction", "input", "output", "system", "history", "tools"),
    "prompt_completion": ("prompt", "completion", "system", "tools"),
}
PREFERENCE_COLUMNS = ("chosen", "rejected")
CHAT_TEMPLATE_TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "plain": (),
    "raw": (),
}
"""Our templates (data/chat_templates), and the special tokens of each, which are added to a tokenizer that has none of them."""
# In the order in which a reader would write them.
OUR_COLUMNS = tuple(dict.fromkeys(name for names in CONVERSATION_COLUMNS.values() for name in names))


class _ConversationOptions(Section):
    """What tasks on conversations share."""

    format: Literal["messages", "sharegpt", "alpaca", "prompt_completion"] | None = None
    """How a row holds its conversation: ``messages`` (a list of role and content), ``sharegpt`` (a list of from and value), ``alpaca``
    (instruction, input, output), ``prompt_completion`` (two texts, or two lists of messages). null: told by the names of the columns."""
    chat_template: str | None = None
    """What turns messages into text: a template of ours (chatml, llama3, gemma, plain, raw), or a file of Jinja such as ``my_template.jinja``. It is kept
    with the run and with the saved model. null: the tokenizer's own."""
    default_system_message: str | None = Field(None, min_length=1)
    """System message of conversations that have none; null: as the chat template has it."""


class SFTOptions(_ConversationOptions):
    """Instruction tuning: what an assistant answers in conversations (supervised fine-tuning)."""

    type: Literal["sft"]
    assistant_only_loss: bool = True
    """Whether only what the assistant says is learned, up to the token with which its turn ends; false: every token is."""
    learned_answers: Literal["all", "last"] = "all"
    """Which answers of a conversation with several are learned; with ``last`` those before it are read only."""
    packing: bool = False
    """Whether short conversations of train share a row of data.max_length tokens, none of which sees another's."""
    sample_generations: int = Field(4, ge=0)
    """How many validation prompts the model answers at each evaluation, the same ones each time, to be read in the report; 0: none."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest of these answers, in tokens."""


# Those of trl's DPO whose loss of a pair does not depend on the other pairs of a batch.
PREFERENCE_LOSSES = (
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop",
)  # fmt: skip

# Those of trl's CPO and ORPO, which know of no model before training.
REFERENCE_FREE_LOSSES = ("cpo", "simpo", "orpo")

# Those of all that know that a pair may be labelled the wrong way round.
SMOOTHED_LOSSES = ("sigmoid", "exo_pair", "robust", "cpo", "simpo")


class PreferenceOptions(_ConversationOptions):
    """Preference tuning: of two answers the better one (direct preference optimization and its relatives). Names are trl's."""

    type: Literal["preference"]
    loss_type: Literal[
        "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop", "cpo", "simpo", "orpo"
    ] = "sigmoid"  # fmt: skip
    """The loss of a pair. ``sigmoid`` is DPO; the guide says where each of the others comes from. cpo, simpo and orpo do without the model before
    training."""
    beta: float = Field(0.1, gt=0)
    """How strongly the model is held to what it was before: more is closer. Of ``ipo`` the regularisation tau; of cpo and simpo the scale of rewards
    (2 to 2.5 is usual for simpo); of orpo the weight of the odds ratio."""
    simpo_gamma: float = Field(0.5, ge=0)
    """By how much the chosen answer's reward should be larger; for simpo."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Probability that a pair is labelled the wrong way round; for exo_pair and robust, sigmoid (conservative DPO), cpo and simpo."""
    rpo_alpha: float = Field(0.0, ge=0)
    """Weight of the chosen answer's own loss per token, which is added (Pang et al. 2024; trl's cpo_alpha too); 0: none."""


class RewardOptions(_ConversationOptions):
    """A reward model: one number for an answer, larger for the chosen of two (Bradley-Terry). Names are trl's."""

    type: Literal["reward"]
    center_rewards_coefficient: float = Field(0.0, ge=0)
    """Weight of the squared sum of a pair's rewards, which keeps them around 0 (Eisenstein et al. 2023); 0: none."""
