"""The sections of a recipe: every key, its unit and its effect.

All sections are frozen and refuse unknown keys. ``training`` also takes every field of transformers'
``TrainingArguments`` that no other section owns; ``recipe.training_fields`` reads those from the installed source,
without importing it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from launcher.recipe.data_section import DataSection
from launcher.recipe.section import Section
from launcher.recipe.strategy_options import FullOptions, StrategyOptions
from launcher.recipe.task_options import TaskOptions

# --- model ---------------------------------------------------------------------------------------------------------


class ModelSection(Section):
    """The pretrained model to start from."""

    name_or_path: str | None = Field(min_length=1)
    """A hub id, a folder, or ``package:IMPORT_NAME/FOLDER`` for a model inside an installed Python package. null: random weights
    of training.seed for the architecture in ``config``, with the tokenizer of ``tokenizer_name_or_path``."""
    revision: str | None = None
    """Branch, tag or commit on the hub; the commit that was used is written down with the run."""
    tokenizer_name_or_path: str | None = None
    """Where the tokenizer lies, if not with the model; ``package:launcher/byte_tokenizer`` has a token for each byte, and an end."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type of the weights as loaded. float32 keeps full-precision weights under mixed precision."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = (
        None
    )
    """Attention kernel; null leaves the choice to transformers."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run on this machine."""
    config: dict[str, Any] | None = None
    """Fields of the model's configuration to set, such as ``hidden_dropout_prob: 0.0``. With ``model_type`` among them they are
    the numbers of a whole architecture: planning then needs no hub, and training refuses a model with other numbers."""


# --- training ------------------------------------------------------------------------------------------------------


class BatchSizeChange(Section):
    """From when on steps have another number of rows."""

    epoch: float = Field(gt=0)
    """Epochs done when it begins; a fraction lies inside an epoch."""
    global_batch_size: int = Field(ge=1)
    """Rows of one optimizer step from then on."""


class TrainingSection(BaseModel):
    """How to train: these keys, and every other field of transformers' TrainingArguments under its own name."""

    model_config = ConfigDict(
        frozen=True, extra="allow", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    num_train_epochs: float = Field(3.0, gt=0)
    """Passes over the training rows. Not used when max_steps is set."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps in all; null: told by num_train_epochs."""
    global_batch_size: int | None = Field(32, ge=1)
    """Rows of one optimizer step over all ranks; accumulation follows from it and the number of ranks. null: tokens_per_batch
    says how large a step is."""
    tokens_per_batch: int | None = Field(None, ge=8)
    """Instead of global_batch_size: tokens of one optimizer step over all ranks at most, padding included. As many rows go together as fit,
    so steps have more rows the shorter these are. null: steps are counted in rows."""
    per_device_train_tokens: int | None = Field(None, ge=8)
    """Cap on the tokens, padding included, that one rank holds at a time with tokens_per_batch; null: its share of the batch."""
    batch_size_schedule: list[BatchSizeChange] | None = None
    """Changes of global_batch_size over the run, in the order of their epochs: larger for less noise, smaller for more."""
    per_device_train_batch_size: int | None = Field(None, ge=1)
    """Cap on the rows that one rank holds at a time; null: its share of the global batch, at most 64."""
    per_device_eval_batch_size: int = Field(64, ge=1)
    """Rows of one evaluation batch on one rank."""
    learning_rate: float = Field(2e-5, gt=0)
    """Peak rate of the optimizer."""
    lr_scheduler_type: str = "linear"
    """Shape of the rate over the run: one factor for all groups. Transformers' names, and step, exponential, cyclic,
    one_cycle, slanted_triangular."""
    lr_scheduler_kwargs: dict[str, Any] | None = None
    """Options of the schedule by name, such as ``{num_cycles: 2}``; the guide to schedules lists them. null: its defaults."""
    warmup_steps: float = Field(0.06, ge=0)
    """Steps over which the rate rises from 0; below 1 a share of all steps. Not for constant, one_cycle and
    slanted_triangular."""
    momentum: float | None = Field(None, ge=0, lt=1)
    """Momentum of ``optim: sgd``; null: 0.9."""
    weight_decay: float | None = Field(None, ge=0)
    """Weight decay, not applied to biases and norms; null: 0.01, and 0 for the strategy ``head``. Decoupled from the gradient
    for AdamW, Adafactor and Lion; added to the gradient for adam, sgd, rmsprop and adagrad."""
    l1_penalty: float = Field(0.0, ge=0)
    """Pulls weights to zero by a constant: l1_penalty * sign(weight) is added to the gradient; not for biases and norms."""
    l2_penalty: float = Field(0.0, ge=0)
    """Pulls weights to zero in proportion: l2_penalty * weight is added to the gradient (weight_decay is decoupled from it)."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this norm; 0: never."""
    max_grad_value: float | None = Field(None, gt=0)
    """Each element of the gradient is clipped to this size, after max_grad_norm; null: never."""
    label_smoothing_factor: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes."""
    eval_strategy: Literal["no", "steps", "epoch"] = "epoch"
    """When to evaluate on the validation rows."""
    eval_steps: float | None = Field(None, gt=0)
    """Steps between evaluations with ``eval_strategy: steps``; below 1 a share of all steps."""
    save_strategy: Literal["no", "steps", "epoch"] = "epoch"
    """When to write a checkpoint."""
    save_steps: float | None = Field(None, gt=0)
    """Steps between checkpoints with ``save_strategy: steps``; below 1 a share of all steps."""
    save_total_limit: int = Field(1, ge=1)
    """Newest checkpoints to keep, beside the best one."""
    async_save: bool = False
    """Whether a thread writes checkpoints while training goes on: a save then costs a copy to the machine's memory. One process
    and ddp; the checkpoint at the end of a phase, or of a stopped run, is waited for."""
    load_best_model_at_end: bool = True
    """Whether the model that is evaluated and saved is the best checkpoint on validation, not the last."""
    metric_for_best_model: str | None = None
    """Validation metric that chooses the best checkpoint; null: the task's own (macro_f1, spearman, loss)."""
    greater_is_better: bool | None = None
    """Whether more of that metric is better; null: known from its name."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations without a better metric; null: never."""
    logging_steps: float = Field(10.0, gt=0)
    """Steps between log lines; below 1 a share of all steps."""
    seed: int = Field(42, ge=0)
    """Seed of initialisation, order and dropout."""
    train_sampling_strategy: Literal["group_by_length", "random", "sequential"] = "group_by_length"
    """Order of rows: texts of like length together (least padding), shuffled, or as they are."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    @property
    def chooses_best(self) -> bool:
        """Whether the model that is kept is the best checkpoint: only where evaluations and checkpoints exist."""
        return self.load_best_model_at_end and "no" not in (self.eval_strategy, self.save_strategy)

    @property
    def step_size(self) -> int:
        """What a step takes of what an epoch is counted in: rows, or one of the batches that ``tokens_per_batch`` bounds."""
        if self.tokens_per_batch is not None:
            return 1
        assert self.global_batch_size is not None, "refused by the recipe's rules"
        return self.global_batch_size

    @property
    def passthrough(self) -> dict[str, Any]:
        """Fields of TrainingArguments that the recipe sets and this class does not name."""
        return dict(self.model_extra or {})


# --- the rest ------------------------------------------------------------------------------------------------------


class DistributedSection(Section):
    """How the run is spread over processes."""

    engine: Literal["auto", "single", "ddp", "deepspeed", "fsdp"] = "auto"
    """``auto``: deepspeed when zero_stage, offload or deepspeed_config is set; else one process alone, ``ddp`` where the
    plan says that several processes fit, and the smallest ZeRO stage that fits where it says that they do not."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """What DeepSpeed shards: 1 optimizer state, 2 also gradients, 3 also weights. Needs engine deepspeed or auto."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What DeepSpeed keeps out of the GPU's memory: the optimizer's state (stages 1 to 3), or also the weights (stage 3)."""
    offload_device: Literal["cpu", "nvme"] = "cpu"
    """Where it keeps them."""
    nvme_path: str | None = None
    """Folder on a local disk for ``offload_device: nvme``."""
    deepspeed_config: str | None = None
    """Your own DeepSpeed file, or the name of a shipped one (zero0 ... zero3, zero2_offload, zero3_offload, zero3_nvme,
    zeropp); null: the one that zero_stage and offload name."""
    sequence_parallel_size: int = Field(1, ge=1)
    """Ranks that share each row's tokens (DeepSpeed's Ulysses); experimental, on GPUs, for causal-lm and sft."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Ranks that share each weight matrix; such a run can be planned, but not started yet."""
    nodes: int = Field(1, ge=1)
    """Machines."""
    processes_per_node: int | None = Field(None, ge=1)
    """Processes on each machine; null: one for each visible GPU, or one on CPU."""
    timeout: float = Field(1800.0, gt=0)
    """Seconds without any rank advancing, or with a rank that is stopped, after which the run ends with the verdict
    ``stalled``. Ranks that wait for each other give up a minute later, also without a launcher that watches them."""
    startup_timeout: float = Field(14400.0, gt=0)
    """The same while ranks may be silent for long: preparing data, loading the model, compiling the first step, the last report."""


class EvaluationSection(Section):
    """What is reported beside the metrics."""

    bootstrap: int = Field(1000, ge=0)
    """Resamples of the test rows for intervals; 0: no intervals."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""
    baselines: (
        list[
            Literal[
                "majority",
                "tfidf",
                "word_tag",
                "overlap",
                "unigram",
                "pixels",
                "copy",
                "nearest",
                "lead",
                "typical_boxes",
                "usual_pixels",
                "longer",
            ]
        ]
        | None
    ) = None
    """Simple models trained on the same rows and shown beside the model; null: majority and tfidf, for token-classification word_tag
    (the most frequent tag of each word), for question-answering overlap (words near those that question and text share), for causal-lm, sft and masked-lm unigram (how often each token occurs in train), for preference and reward longer (the longer answer is the
    better one), for image-classification
    majority and pixels (a linear model on the pixels of small copies), for translation copy (the text as it is read) and nearest (what train has
    for the most similar text), for summarization lead (the first sentences), for
    object-detection typical_boxes (the boxes that are usual in train, the same for every image), for semantic-segmentation
    usual_pixels (the class that each place has most often in train)."""
    label_errors: bool = False
    """Whether to list rows whose label is likely wrong: of train by five linear models on TF-IDF, each judging rows that it has not
    seen, of validation and test by the trained model. For texts with one label a row; it takes about as long as the baseline tfidf."""
    verify_saved: bool = True
    """Whether the saved model is loaded in a process of its own and compared with the trained one; a difference ends the run
    with an error. It needs room for the weights once more, after the trained model has left."""


class WandbSection(Section):
    """Weights & Biases."""

    project: str = Field("launcher", min_length=1)
    """Project of the run."""
    entity: str | None = None
    """User or team; null: the account's default."""
    group: str | None = None
    """Group of runs in the dashboard."""
    tags: list[str] = Field(default_factory=list)
    """Tags of the run."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto``: online with a key and a network, else offline, without waiting."""
    log_predictions: bool = False
    """Whether predictions with their texts are uploaded as a table."""


class TrackingSection(Section):
    """Where metrics go besides the run directory."""

    wandb: WandbSection | None = Field(default_factory=WandbSection)
    """Weights & Biases; null: not used."""
    report_to: list[str] = Field(default_factory=list)
    """Other trackers by transformers' names, such as tensorboard or mlflow."""


class SlurmSection(Section):
    """For jobs on a cluster; read by ``launcher submit``, not by ``launcher run``."""

    profile: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    """Cluster profile to use, by its file's name without ``.yaml``; null: the one called ``default``."""
    time: str | int = "02:00:00"
    """Time limit of one job as Slurm writes it: MINUTES, HH:MM:SS, DAYS-HH or DAYS-HH:MM:SS. A run may take several jobs."""
    preflight: bool = True
    """Whether each attempt first looks at its nodes: processors, versions, network, shared folders, disk (a minute at most)."""
    max_preemptions: int = Field(default=100, ge=0)
    """How often a run goes on after it was preempted, or its time was over."""
    max_crashes: int = Field(default=3, ge=0)
    """How often a run goes on after ranks were killed, hung or failed, or a node was at fault."""
    max_idle_attempts: int = Field(default=10, ge=1)
    """How many attempts in a row may end without a newer checkpoint."""
    chain: int = Field(default=8, ge=1, le=100)
    """How many jobs are submitted one after the other where the profile has ``requeue: false``."""


class Recipe(Section):
    """Everything that defines a run."""

    version: Literal[1]
    """Version of this format."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    """Name of the run; its directories are NAME-001, NAME-002, ..."""
    task: TaskOptions
    """What the model learns: a task's name, or a mapping of ``type`` and that task's options."""
    model: ModelSection
    """The pretrained model."""
    data: DataSection
    """The rows."""
    strategy: StrategyOptions = Field(default_factory=FullOptions)
    """Which parameters train, and how fast."""
    training: TrainingSection = Field(default_factory=TrainingSection)
    """How to train."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "fp8"] = "auto"
    """Number format of the computation. ``auto``: bf16 where the hardware is fast at it (on CPU this is measured once), else
    fp32. ``tf32``: fp32 weights, matrix products in TF32 (NVIDIA Ampere and later). ``fp8``: needs such a GPU and its library."""
    distributed: DistributedSection = Field(default_factory=DistributedSection)
    """Processes and sharding."""
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    """The final evaluation."""
    tracking: TrackingSection = Field(default_factory=TrackingSection)
    """Trackers."""
    slurm: SlurmSection = Field(default_factory=SlurmSection)
    """Cluster jobs."""
