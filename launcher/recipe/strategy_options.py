"""The options of ``strategy``, one class for each type: which parameters train, and how fast."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from launcher.recipe.section import Section


class FullOptions(Section):
    """All parameters train."""

    type: Literal["full"] = "full"
    embedding_lr: float | None = Field(None, gt=0)
    """Peak rate of the embeddings; null: training.learning_rate."""
    head_lr: float | None = Field(None, gt=0)
    """Peak rate of the head; null: training.learning_rate."""


class EncoderOptions(Section):
    """The encoder's blocks train; embeddings and the pretrained task part keep theirs. A new head always trains."""

    type: Literal["encoder"]
    components: list[Literal["attention", "mlp", "norm"]] = Field(default=["attention", "mlp", "norm"], min_length=1)
    """Which parts of each block train."""
    train_embeddings: bool = False
    """Whether the embeddings train too."""
    train_head: bool = True
    """Whether the head trains; a head that is newly initialised must."""
    head_lr: float | None = Field(None, gt=0)
    """Peak rate of the head; null: training.learning_rate."""


class HeadOptions(Section):
    """Feature extraction: only the head trains; the encoder stays as it was."""

    type: Literal["head"]
    train_pooler: bool = False
    """Whether what lies between the last block and the head (a pooler, a final norm) trains too."""
    frozen_eval: bool = True
    """Whether the frozen part is kept in evaluation mode, so that a row always has the same features."""
    prefix_cache: Literal["off", "auto", "memory", "disk"] = "auto"
    """Whether what the frozen part makes of each row is computed once and kept. auto: in memory, or else on disk, where it
    is exact, fits, and should make training at least 1.3 times as fast."""


class GradualUnfreezing(Section):
    """Train the head first, then unfreeze the blocks from the top down, a stage at a time (ULMFiT)."""

    epochs_per_stage: float = Field(1.0, gt=0)
    """How long each stage lasts; the last stage, with everything unfrozen, takes the rest of the run."""
    blocks_per_stage: int = Field(1, ge=1)
    """Blocks that a stage unfreezes; the embeddings go with the last of them."""


class DropoutByDepth(Section):
    """Dropout that is linear in depth."""

    input: float = Field(ge=0, lt=1)
    """Probability in the first block."""
    output: float = Field(ge=0, lt=1)
    """Probability in the last block."""


class LayerwiseOptions(Section):
    """Lower layers train slower, or not at all: freeze the first k, decay the rate with depth, unfreeze gradually."""

    type: Literal["layerwise"]
    freeze_layers: int | None = Field(None, ge=0)
    """Blocks that stay frozen, from the first; with 1 or more the embeddings stay frozen too. null: none."""
    trainable_layers: int | None = Field(None, ge=0)
    """Blocks that train, from the last; the other way to say freeze_layers."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Factor of the rate from one block to the one below: lr * layer_decay^(L+1-l). null: 0.9 for text models, 0.75 for
    vision transformers; 1: the same rate everywhere."""
    min_lr_scale: float = Field(0.0, ge=0, le=1)
    """No block trains at less than this share of learning_rate."""
    head_lr_mult: float = Field(1.0, gt=0)
    """Factor of the head's rate."""
    embeddings: Literal["auto", "train", "freeze"] = "auto"
    """Whether the embeddings train; auto: they do unless blocks are frozen."""
    gradual_unfreezing: GradualUnfreezing | None = None
    """Unfreeze from the top down in stages; null: everything from the start."""
    dropout: DropoutByDepth | None = None
    """Dropout of the blocks by depth; null: the model's own."""
    frozen_eval: bool = False
    """Whether frozen modules are kept in evaluation mode, without dropout and with fixed BatchNorm statistics."""
    batch_norm: Literal["tune", "frozen_statistics", "frozen"] = "tune"
    """BatchNorm layers: tuned, with the pretrained statistics, or with the pretrained statistics and weights."""
    prefix_cache: Literal["off", "auto", "memory", "disk"] = "auto"
    """Whether what the frozen part makes of each row is computed once and kept. auto: in memory, or else on disk, where it
    is exact, fits, and should make training at least 1.3 times as fast."""


class _AdapterOptions(Section):
    """What the strategies with LoRA adapters share, under PEFT's names."""

    target_modules: str | list[str] = "all-linear"
    """Modules that get an adapter: ``all-linear`` (every linear layer of the blocks), names (the end of a module's name,
    such as ``query``), or one regular expression that matches whole module names."""
    exclude_modules: list[str] | None = None
    """Names of modules that get none, the end of their names; null: none are excluded."""
    modules_to_save: list[str] | None = None
    """Modules that train whole beside the adapters, by the end of their names; what is newly initialised always does, and so
    does a task's head."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of an adapter's input."""
    use_rslora: bool = False
    """Scale adapters by alpha / sqrt(rank) instead of alpha / rank."""
    init_lora_weights: bool | Literal["gaussian", "pissa", "olora", "orthogonal"] = True
    """How adapters begin, by PEFT's names. true: A random and B zero, so that the model begins as it was; gaussian: the same with
    a normal distribution; pissa: the weight's largest singular vectors, and olora: its QR decomposition, both taken out of the
    frozen weight; orthogonal: random with B A = 0; false: both random."""
    head_lr: float | None = Field(None, gt=0)
    """Peak rate of what trains whole; null: training.learning_rate."""


class LoraOptions(_AdapterOptions):
    """Low-rank adapters by PEFT: LoRA, rsLoRA, DoRA, LoRA+, QLoRA."""

    type: Literal["lora"]
    r: int = Field(8, ge=1)
    """Rank of the adapters."""
    lora_alpha: float = Field(16, gt=0)
    """Scale of the adapters: their output is multiplied by lora_alpha / r."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Rank by module: the end of a module's name, or a regular expression: rank. The first key that matches decides."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """lora_alpha by module, with keys like rank_pattern's."""
    use_dora: bool = False
    """Learn magnitude and direction apart (DoRA)."""
    loraplus_lr_ratio: float | None = Field(None, gt=0)
    """Rate of the B matrices over the rate of the A matrices (LoRA+); null: the same."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor of the adapters' rate from one block to the one below, as for layerwise."""
    load_in_4bit: bool = False
    """Hold the frozen weights in 4 bits (QLoRA, nf4 with double quantisation); needs bitsandbytes."""
    load_in_8bit: bool = False
    """Hold the frozen weights in 8 bits; needs bitsandbytes."""


class DiscriminativeOptions(_AdapterOptions):
    """Tune modules in proportion to their importance, which a short probe measures. For rates that fall with depth, which are
    also called discriminative, see ``layerwise``.
    """

    type: Literal["discriminative"]
    apply: Literal["ranks", "freeze", "lr"] = "ranks"
    """What importance decides: the ranks of LoRA adapters, which modules train, or (experimental) their rates."""
    score: Literal["sensitivity", "gradient", "eva", "file"] = "sensitivity"
    """How importance is measured: AdaLoRA's sensitivity over a LoRA probe, the weights' gradients, the variance of the
    modules' inputs (EVA), or an importance.json from elsewhere."""
    importance_file: str | None = None
    """The importance.json for ``score: file``."""
    mean_rank: float = Field(8, gt=0)
    """Budget of ``apply: ranks``: the parameters of rank mean_rank everywhere."""
    probe_rank: int = Field(32, ge=1)
    """Rank of the probe's adapters."""
    probe_steps: int = Field(200, ge=1)
    """Optimizer steps of the probe (batches for ``gradient`` and ``eva``)."""
    rank_min: int = Field(1, ge=0)
    """Least rank of a module; 0: it may go without an adapter."""
    rank_max: int = Field(32, ge=1)
    """Greatest rank of a module."""
    uniform_above: float = Field(0.82, gt=0, le=1)
    """When importance is spread this evenly (effective share of the modules), all get the same rank."""
    lora_alpha: float = Field(16, gt=0)
    """Scale of an adapter of rank mean_rank; others scale with their rank."""
    trainable_share: float = Field(0.25, gt=0, le=1)
    """Budget of ``apply: freeze``: share of the target modules' parameters that trains, the most important first."""
    rate_power: float = Field(0.5, gt=0, le=2)
    """For ``apply: lr``: a module's rate is learning_rate times (its importance over the mean) to this power."""


ADAPTER_STRATEGIES = ("lora", "discriminative")
"""Those that train low-rank adapters beside weights that stay."""

StrategyOptions = Annotated[
    FullOptions | EncoderOptions | HeadOptions | LayerwiseOptions | LoraOptions | DiscriminativeOptions,
    Field(discriminator="type"),
]
