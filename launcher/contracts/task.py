"""What a task promises: its data, its model, its loss and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from launcher.contracts.predictions import Baseline, Predictions

if TYPE_CHECKING:
    import numpy as np

TARGETS = ("labels", "shift_labels", "sample_weight", "reference")
"""Names of what a batch has for the loss; what else it has is input of the model."""
LABELS = ("labels", "shift_labels")
"""Those of them that say what is right: a batch without any has no loss."""


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
