"""What the parts of launcher promise each other: tasks, strategies, backends, and the plain values that pass between them.

Nothing here imports torch: arrays are numpy's, models and tokenizers are named by protocol only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    from launcher.recipe.schema import Recipe

Role = Literal["embeddings", "block", "tail", "head"]
Component = Literal["attention", "mlp", "norm", "other"]

TARGETS = ("labels", "shift_labels", "sample_weight", "reference")
"""Names of what a batch has for the loss; what else it has is input of the model."""
LABELS = ("labels", "shift_labels")
"""Those of them that say what is right: a batch without any has no loss."""


# --- a model, by names ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One parameter tensor of a model, by name; shapes are those of the whole tensor, also under sharding."""

    name: str
    shape: tuple[int, ...]
    depth: int
    """0: embeddings; 1..L: the blocks in the order of the forward pass; L+1: what comes after (tail and head)."""
    role: Role
    """``tail`` is the pretrained part after the last block (final norm, pooler); ``head`` is the task's own."""
    decays: bool
    """False for biases and norms, told by name and module type, never by the number of dimensions."""
    newly_initialized: bool
    """Not in the checkpoint: it has to train."""
    component: Component = "other"
    """Part of a block that it belongs to."""
    module: str = ""
    """Class name of the module that owns it, such as ``Linear``, ``Conv1D``, ``Embedding``, ``LayerNorm``, ``BatchNorm2d``."""
    also: tuple[Role, ...] = ()
    """Where else the same tensor works: ``head`` for embeddings that are tied to an output layer; ``block`` for a block whose
    weights several layers share."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


# --- what trains ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TuningGroup:
    """Parameters that share a rate and a decay: one row of a tuning table and one group of the optimizer."""

    name: str
    depths: tuple[int, int]
    """Smallest and largest depth of its parameters."""
    parameters: tuple[str, ...]
    numel: int
    trainable: bool
    lr: float
    """Peak rate; 0 for a frozen group."""
    weight_decay: float
    """Decoupled decay: the optimizer's own."""
    rank: int | None = None
    """LoRA rank, where there is one."""
    l1_penalty: float = 0.0
    """Added to the gradient: l1_penalty * sign(p)."""
    l2_penalty: float = 0.0
    """Added to the gradient: l2_penalty * p."""


@dataclass(frozen=True)
class TuningTable:
    """Which parameters train, at which rate: nothing else decides that. Every parameter lies in exactly one group."""

    groups: tuple[TuningGroup, ...]

    @property
    def trainable(self) -> tuple[TuningGroup, ...]:
        """The groups that train."""
        return tuple(group for group in self.groups if group.trainable)

    @property
    def trainable_numel(self) -> int:
        """Number of elements that train."""
        return sum(group.numel for group in self.trainable)

    @property
    def total_numel(self) -> int:
        """Number of elements in all."""
        return sum(group.numel for group in self.groups)


@dataclass(frozen=True)
class AdapterPlan:
    """The LoRA adapters of a phase, with PEFT's meanings; module names are those of the model without adapters."""

    ranks: Mapping[str, int]
    """Module name -> rank. Other modules have no adapter."""
    alphas: Mapping[str, float]
    """Module name -> lora_alpha; the same keys as ``ranks``."""
    modules_to_save: tuple[str, ...] = ()
    """Names of modules that train whole and are saved with the adapters (the head, and what is newly initialised)."""
    dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True


@dataclass(frozen=True)
class Phase:
    """A stretch of a run with one tuning table: everything that decides what trains in it, and nothing else does."""

    name: str
    table: TuningTable
    """Parameter names are those of the model as it trains: with adapters, PEFT's own (``base_model.model. ...``)."""
    epochs: float | None = None
    """How long it lasts, in epochs; None: the rest of the run."""
    carry: Literal["nothing", "weights", "weights_and_adam"] = "weights_and_adam"
    """What the next phase takes over."""
    adapters: AdapterPlan | None = None
    frozen_eval: bool = False
    """Whether frozen modules are kept in evaluation mode (no dropout) while the rest trains."""
    batch_norm: Literal["tune", "frozen_statistics", "frozen"] = "tune"
    """``frozen_statistics`` keeps BatchNorm modules in evaluation mode; ``frozen`` freezes their weights too."""
    dropout: tuple[float, float] | None = None
    """Dropout probability of the first and of the last block, linear in between; None: the model's own."""
    note: str = ""
    """What a reader of the plan has to know, such as that ranks follow from a probe."""


@dataclass(frozen=True)
class Probe:
    """A short training before the run whose gradients say what matters; its weights are discarded."""

    phase: Phase
    steps: int
    score: Literal["sensitivity", "gradient", "eva"]
    weights: tuple[str, ...]
    """Names of the weights whose modules are measured, in the model without adapters."""
    options: Mapping[str, Any]
    """The recipe's options that the result depends on: a part of its key."""


class Strategy(Protocol):
    """Decides what trains: pure functions of a model's parameters and the recipe. Implementations inherit from it."""

    def phases(
        self, parameters: Sequence[Parameter], recipe: Recipe, importance: Mapping[str, Any] | None = None
    ) -> tuple[Phase, ...]:
        """Return the phases of a run. Raises RecipeError or ModelError where the options do not fit the model.

        ``importance``: what the probe found (importance.json); None before it: the phases then carry a ``note``.
        """
        ...

    def probe(self, parameters: Sequence[Parameter], recipe: Recipe) -> Probe | None:
        """Return the probe that has to run first; None: there is none."""
        return None


# --- a task --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Boxes:
    """Boxes around objects in images, one row after the other."""

    counts: np.ndarray
    """Number of each row's boxes, int64 [rows]."""
    places: np.ndarray
    """x and y of the upper left corner, width and height, in pixels of the row's image, float64 [boxes of all rows, 4]."""


@dataclass(frozen=True)
class Predictions:
    """A model's outputs on rows, in the order of the rows.

    ``scores``: float64 [rows, outputs], probabilities for classification (one column per label; two for a one-logit
    binary model), predicted values for regression (one column), and for causal_lm and masked_lm, whose rows are whole texts, the summed negative
    log-likelihood of a text's tokens in nats (one column), and for masked_lm in a second column how many of them were told right.
    ``labels``: int64 [rows], int64 [rows, labels] (0/1) for multi-label, float64 [rows] for regression, the number of predicted
    tokens for causal_lm and masked_lm; None: unlabelled.

    Where each word of a row has a tag (entity_recognition, token_classification), ``words`` are the rows' words, and ``predicted``
    (the tags' numbers), ``scores`` (their probabilities) and ``labels`` are flat: [words of all rows], one row after the other.
    Where a row has an answer (question_answering), ``answers`` are those that were predicted, ``references`` the right ones, ``scores`` float64
    [rows] the answers' probabilities, and ``labels`` int64 [rows] the number of references. Where a text is written (translation,
    summarization), ``answers`` are the texts, ``references`` the right ones, ``scores`` float64 [rows] 1 where a text ended by itself and 0 where it
    reached the greatest length, and ``labels`` int64 [rows] the number of references.
    Where a row has boxes (object_detection), ``boxes`` are those that were found and ``true_boxes`` the right ones; ``predicted`` (classes), ``scores``
    and ``labels`` (classes) are flat: [boxes of all rows], one row after the other. People are shown those with a score from ``threshold`` on.
    Where each pixel has a class (semantic_segmentation), ``scores`` are float64 [rows, classes * 3]: of each class the pixels that are rightly of it, those
    that were said to be, and those that are; ``labels`` int64 [rows] a row's pixels that count. Without labels only what was said is known, [rows, classes],
    and ``maps`` are PNGs of the classes' numbers, as large as the images.
    """

    problem_type: str
    scores: np.ndarray
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    texts: tuple[str, ...]
    row_ids: tuple[int, ...]
    words: tuple[tuple[str, ...], ...] = ()
    predicted: np.ndarray | None = None
    answers: tuple[str, ...] = ()
    references: tuple[tuple[str, ...], ...] = ()
    boxes: Boxes | None = None
    true_boxes: Boxes | None = None
    threshold: float = 0.0
    maps: tuple[bytes, ...] = ()
    fills: tuple[tuple[tuple[tuple[str, float], ...], ...], ...] = ()
    """[rows][mask tokens of the text][likeliest tokens and their probabilities], for masked_lm where texts have mask tokens that are to be
    filled; ``answers`` are then the filled texts, "" for a text without one."""


@dataclass(frozen=True)
class Baseline:
    """A simple model's predictions for the rows of an evaluation, and how it came about.

    ``metrics`` is empty without labels; ``chosen`` holds what validation chose and the score there; ``note`` says in words what a
    reader should know, such as a sample of the training rows.
    """

    name: str
    predictions: Predictions
    metrics: Mapping[str, float]
    chosen: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Prepared:
    """A task's data, ready to train on.

    ``train``, ``validation`` and ``test`` are data sets of features (token ids and so on, ``labels``, ``length``) whose
    rows carry ``row_id``, their number in the source; ``facts`` holds counts and warnings to be shown.
    """

    train: Any
    validation: Any
    test: Any | None
    fingerprint: str
    label_names: tuple[str, ...]
    problem_type: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    draws: np.ndarray | None = None
    """float64 [rows of train]: how often each is drawn in an epoch on average; their sum, a whole number, is the rows of an epoch. None: each once."""
    stream: Any | None = None
    """With ``data.streaming`` the rows of train (launcher.data.streams.Stream), of which ``train`` is a sample; None: ``train`` has all."""

    @property
    def epoch_rows(self) -> int:
        """Rows of an epoch, where that is known: of no stream."""
        assert self.stream is None
        return epoch_rows(len(self.train), self.draws)


def epoch_rows(rows: int, draws: np.ndarray | None) -> int:
    """Return how many rows an epoch has, of ``rows`` that are drawn as in ``Prepared.draws``."""
    return rows if draws is None else round(float(draws.sum()))


@dataclass(frozen=True)
class ShownRow:
    """A row as the model sees it, for a person to read."""

    row_id: int
    tokens: int
    parts: tuple[tuple[str, Literal["special", "read", "learned", "label", "cut"]], ...]
    """Pieces of it in their order, each with what it is to the model: a special token, text that is read, text that is learned (a
    part of the loss), the label of the piece before, or what was cut off and is not seen."""
    label: str
    """The row's label in words; "" where there is none."""
    is_augmented: bool = False
    """Whether it is not the row itself but what the first epoch of a run makes of it (task.augmentation); of a stream, an example."""


class BuiltModel(Protocol):
    """A model and the names of its parameters that no checkpoint gave."""

    @property
    def model(self) -> Any:
        """A torch.nn.Module."""
        ...

    @property
    def newly_initialized(self) -> frozenset[str]:
        """Names of parameters that have to train."""
        ...


class Task(Protocol):
    """What a model learns: its data, its model, its loss and its metrics. Made as ``Task(recipe, base_folder=...)``."""

    @property
    def inputs_vary(self) -> bool:
        """Whether a row's input differs between epochs."""
        ...

    @property
    def read_in_training(self) -> tuple[str, ...]:
        """Names of columns that the collator of training wants beside the features."""
        ...

    @property
    def reference_columns(self) -> tuple[str, ...]:
        """Names of the first columns of ``row_outputs`` that the loss of a row also wants of the model before training: they come as
        ``reference``, float32 [rows, columns], in its batches. (): it wants none.
        """
        ...

    @property
    def processor(self) -> Any:
        """What turns rows into inputs, and is saved with the model: a tokenizer, or an image processor."""
        ...

    @property
    def padding_side(self) -> str:
        """Where shorter rows of a batch are padded: left or right."""
        ...

    @property
    def default_metric(self) -> str:
        """Validation metric that chooses the best checkpoint unless the recipe names one; known once data are loaded."""
        ...

    def prepare_data(self) -> tuple[Path, Prepared]:
        """Read, check, split and tokenize the rows, or find them in the cache; also return their folder. Raises DataError."""
        ...

    def load_data(self, folder: Path) -> Prepared:
        """Return the data that ``prepare_data`` left in ``folder``: what the ranks but the first do."""
        ...

    def build_model(self, prepared: Prepared | None, *, skeleton: bool = False, quantization: Any = None) -> BuiltModel:
        """Return the model with its head; ``skeleton``: on the meta device, without weights. Raises ModelError.

        ``prepared``: None where the data are not known; what depends on them is then as the recipe has it, or usual.
        ``quantization``: transformers' quantisation configuration for its weights.
        """
        ...

    def model_revision(self, model: Any) -> str:
        """Return what identifies the pretrained weights."""
        ...

    def model_facts(self, prepared: Prepared) -> dict[str, Any]:
        """Return what has to be known to use the saved model without its run."""
        ...

    def collator(self, *, training: bool = False) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]:
        """Return a callable: list of rows -> batch of tensors, with ``sample_weight`` float32 [rows].

        Each row has ``row_id``, its number in its split, and in training ``epoch`` and ``copy`` (how often it was drawn in that epoch
        before). What a collator draws by chance in training is a pure function of training.seed and these three; otherwise it is the same at every call.
        """
        ...

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return what is kept of a model's outputs for each row of a batch, a tensor [rows, outputs], or [rows, tokens, outputs], that
        is small enough for all rows of a split to be held at once.
        """
        ...

    @property
    def generates(self) -> bool:
        """Whether predictions are texts that the model writes: ``generate`` then stands for ``row_outputs``."""
        ...

    def writes(self, prepared: Prepared) -> bool:
        """Whether predictions of ``prepared`` are texts that the model writes."""
        ...

    def sample_answers(self, model: Any, prepared: Prepared) -> list[dict[str, Any]]:
        """Return what ``model`` writes for the same few validation rows each time: prompt, reference, answer, ended; all ranks call it."""
        ...

    @property
    def validates_by_loss(self) -> bool:
        """Whether validation during training computes the loss alone."""
        ...

    def generate(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Return the tokens that ``model`` writes for a batch, int64 [rows, tokens]; all ranks call it at the same time."""
        ...

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Return the total weight of a batch, a scalar tensor: what the summed loss is divided by over the global batch."""
        ...

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the weighted sum of the rows' losses, a scalar tensor in float32."""
        ...

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Turn ``row_outputs`` [rows, outputs] for the rows of ``split`` into Predictions."""
        ...

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return the task's metrics. Raises DataError where the rows have no labels."""
        ...

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines, trained on the rows of train, for the rows of ``predictions``, which are those of ``split``."""
        ...

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return a prepared row as the model sees it; its ``place`` is its number in its split."""
        ...

    def augmented_row(self, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return a row of train (with ``place``) as an epoch would have it, to be shown; None: as it is, or there is nothing to be seen."""
        ...

    def prepare_rows(self, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> tuple[Any, Prepared]:
        """Return rows of features for new rows, and what they are to be read with. Raises DataError.

        ``columns``: what ``read_rows`` returns, or ``text`` (and ``text_pair``) that a person has typed.
        """
        ...

    def read_rows(self, source: str) -> dict[str, list[Any]]:
        """Return the columns of a file under our names; labels are not needed. Raises DataError."""
        ...

    def example_row(self) -> Mapping[str, Any] | None:
        """Return a row like the prepared ones, for plans without data; None: a row of tokens does."""
        ...

    def load_trained(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        """Return a saved model in evaluation mode."""
        ...


# --- a backend -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobStatus:
    """Where a run stands."""

    state: Literal["created", "running", "interrupted", "failed", "finished"]
    attempt: int
    step: int | None = None
    total_steps: int | None = None
    reason: str = ""


class Backend(Protocol):
    """Starts runs; knows a run only by its directory."""

    def submit(self, run: Path, *, attempt: int) -> int:
        """Start an attempt; return the exit code where it is waited for."""
        ...

    def status(self, run: Path) -> JobStatus:
        """Return where a run stands."""
        ...

    def logs(self, run: Path, *, rank: int = 0) -> Iterable[str]:
        """Yield the lines of a rank's log."""
        ...

    def cancel(self, run: Path) -> None:
        """Ask a run to stop at its next step, leaving a checkpoint."""
        ...
