"""The options of task, one class for each type: what the model learns."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from launcher.recipe.chat_options import OUR_COLUMNS, PREFERENCE_COLUMNS, PreferenceOptions, RewardOptions, SFTOptions
from launcher.recipe.section import Section

# Our names of columns, by task.
COLUMNS = {
    "text-classification": ("text", "text_pair", "label", "id", "group"),
    "token-classification": ("tokens", "label", "id", "group"),
    "question-answering": ("question", "context", "answers", "id", "group"),
    "causal-lm": ("text", "id", "group"),
    "sft": (*OUR_COLUMNS, "id", "group"),
    "preference": (*OUR_COLUMNS, *PREFERENCE_COLUMNS, "id", "group"),
    "reward": (*OUR_COLUMNS, *PREFERENCE_COLUMNS, "id", "group"),
    "masked-lm": ("text", "id", "group"),
    "translation": ("text", "target", "id", "group"),
    "summarization": ("text", "target", "id", "group"),
    "image-classification": ("image", "label", "id", "group"),
    "object-detection": ("image", "objects", "id", "group"),
    "semantic-segmentation": ("image", "mask", "id", "group"),
}

# The baselines that a task can have, those that it has by default.
BASELINES = {
    "text-classification": ("majority", "tfidf"),
    "token-classification": ("word_tag",),
    "question-answering": ("overlap",),
    "causal-lm": ("unigram",),
    "sft": ("unigram",),
    "preference": ("longer",),
    "reward": ("longer",),
    "masked-lm": ("unigram",),
    "translation": ("copy", "nearest"),
    "summarization": ("lead",),
    "image-classification": ("majority", "pixels"),
    "object-detection": ("typical_boxes",),
    "semantic-segmentation": ("usual_pixels",),
}


# Tasks whose rows are images.
IMAGE_TASKS = ("image-classification", "object-detection", "semantic-segmentation")


# Tasks whose rows have no labels out of a list of names.
TASKS_WITHOUT_LABELS = (
    "causal-lm", "masked-lm", "question-answering", "translation", "summarization", "sft", "preference", "reward",
)  # fmt: skip

# Tasks whose rows are conversations.
CONVERSATION_TASKS = ("sft", "preference", "reward")

# Those of them whose rows are two conversations, which a batch has both.
PAIR_TASKS = ("preference", "reward")

# Tasks whose rows can be read while training.
STREAMED_TASKS = ("text-classification", "causal-lm", "masked-lm")


def counted_in(task: str) -> str:
    """Return what the work of a task is counted in: tokens, or images."""
    return "images" if task in IMAGE_TASKS else "tokens"


class TextAugmentation(Section):
    """Random changes of the texts in training: the same for a seed, an epoch and a row, on any number of processes."""

    token_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of a token to be left out; special ones stay, and so does at least one other of a row."""
    synonyms: str | None = None
    """A text file with groups of words that may stand for each other: a line for each, commas or tabs between the words."""
    synonym_probability: float = Field(0.1, ge=0, le=1)
    """Probability of a word that has synonyms to be replaced by one of them."""


class WordAugmentation(Section):
    """Random changes of the sentences in training: the same for a seed, an epoch and a row, on any number of processes."""

    token_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of a word to be left out, with all of its tokens and its tag; at least one word of a row stays."""


class TextClassificationOptions(Section):
    """One label, several labels, or a number for a text or a pair of texts."""

    type: Literal["text-classification"] = "text-classification"
    problem_type: Literal[
        "auto", "single_label_classification", "multi_label_classification", "binary_classification", "regression"
    ] = "auto"
    """What a label is. ``auto``: lists or delimited labels mean multi-label, numbers with a fraction mean regression,
    anything else single-label. ``binary_classification`` trains one logit for two classes (sigmoid); ``regression``
    trains one output with the mean squared error."""
    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
    """Weight of each class in the loss: ``balanced`` is rows / (classes * rows of the class), a mapping names its own.
    Not for regression."""
    focal_gamma: float = Field(0.0, ge=0)
    """Exponent of the focal loss: a row's loss times (1 - p)^gamma, with p the probability of its label, so that rows that the model
    gets right with ease count little. 0: cross entropy; 2 is common. class_weights are its alpha. Not for regression."""
    class_sampling: Literal["natural", "square_root", "balanced"] = "natural"
    """How often rows are drawn, by label: ``natural`` each once an epoch; ``balanced`` all labels alike; ``square_root`` labels in
    proportion to the root of their rows. An epoch has as many rows as before: rows of rare labels come several times, some of frequent
    ones not at all. For one label a row."""
    label_delimiter: str = Field(",", min_length=1)
    """What separates the labels of one row in a multi-label text column."""
    augmentation: TextAugmentation | None = None
    """Random changes in training; null: none."""
    head_dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout before the classifier (a probability); null keeps the model's own."""


class TokenClassificationOptions(Section):
    """A tag for each word of a sentence: named entities, parts of speech."""

    type: Literal["token-classification"]
    evaluate_as: Literal["auto", "entities", "tags"] = "auto"
    """What scores count. ``entities``: stretches of words, told from prefixes such as B- and I-; one is right where its type and
    both ends are (seqeval). ``tags``: the tag of each word. ``auto``: entities where all tags are O or have such a prefix."""
    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
    """Weight of each tag in the loss: ``balanced`` is words / (tags * words with the tag), a mapping names its own."""
    focal_gamma: float = Field(0.0, ge=0)
    """Exponent of the focal loss: a word's loss times (1 - p)^gamma, with p the probability of its tag. 0: cross entropy; 2 is
    common. class_weights are its alpha."""
    augmentation: WordAugmentation | None = None
    """Random changes in training; null: none."""


class QuestionAnsweringOptions(Section):
    """Extractive question answering: the stretch of a text that answers a question, or that there is none."""

    type: Literal["question-answering"]
    doc_stride: int = Field(128, ge=0)
    """Tokens that a window of a long text shares with the next one."""
    max_answer_length: int = Field(30, ge=1)
    """Longest answer in tokens."""
    n_best_size: int = Field(20, ge=1)
    """How many likely first and last tokens are tried together."""
    null_score_diff_threshold: float = 0.0
    """Where training has questions without an answer: by how much "no answer" has to score above the best answer to be chosen."""


class ImageAugmentation(Section):
    """Random changes of the images in training: the same for a seed, an epoch and a row, on any number of processes."""

    crop_area: float | None = Field(None, gt=0, lt=1)
    """A random crop keeps at least this share of the area, with a ratio of its sides of up to 4/3 more or less; null: no crop."""
    horizontal_flip: float = Field(0.0, ge=0, le=1)
    """Probability of a mirror image. Not for what reads from left to right."""
    vertical_flip: float = Field(0.0, ge=0, le=1)
    """Probability of an image upside down."""
    rotation: float = Field(0.0, ge=0, le=180)
    """Largest rotation, in degrees."""
    shift: float = Field(0.0, ge=0, lt=1)
    """Largest shift, as a share of width and height."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Largest change of the brightness, as a share of it."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Largest change of the contrast, as a share of it."""
    saturation: float = Field(0.0, ge=0, le=1)
    """Largest change of the saturation, as a share of it."""
    erasing: float = Field(0.0, ge=0, le=1)
    """Probability that a rectangle of 2 to 20 % of the area is painted over."""


class ImageClassificationOptions(Section):
    """One label for an image."""

    type: Literal["image-classification"]
    image_size: int | None = Field(None, ge=1)
    """Width and height in pixels that images are resized to; null: what the model's own image processor does."""
    augmentation: ImageAugmentation | None = None
    """Random changes in training; null: none."""
    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
    """Weight of each class in the loss: ``balanced`` is rows / (classes * rows of the class), a mapping names its own."""
    focal_gamma: float = Field(0.0, ge=0)
    """Exponent of the focal loss: an image's loss times (1 - p)^gamma, with p the probability of its label. 0: cross entropy; 2 is
    common. class_weights are its alpha."""
    class_sampling: Literal["natural", "square_root", "balanced"] = "natural"
    """How often images are drawn, by label: ``natural`` each once an epoch; ``balanced`` all labels alike; ``square_root`` labels in
    proportion to the root of their images."""


class GeometricAugmentation(Section):
    """Random changes of the images in training that boxes and masks can follow: the same for a seed, an epoch and a row, on any number of processes."""

    crop_area: float | None = Field(None, gt=0, lt=1)
    """A random crop keeps at least this share of the area, with a ratio of its sides of up to 4/3 more or less; boxes are cut at its edges, and those
    whose centre lies outside are left out. null: no crop."""
    horizontal_flip: float = Field(0.0, ge=0, le=1)
    """Probability of a mirror image. Not for what reads from left to right."""
    vertical_flip: float = Field(0.0, ge=0, le=1)
    """Probability of an image upside down."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Largest change of the brightness, as a share of it."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Largest change of the contrast, as a share of it."""
    saturation: float = Field(0.0, ge=0, le=1)
    """Largest change of the saturation, as a share of it."""


class SemanticSegmentationOptions(Section):
    """A class for each pixel of an image."""

    type: Literal["semantic-segmentation"]
    image_size: int | None = Field(None, ge=1)
    """Width and height in pixels that images are resized to, and masks with them; null: what the model's own image processor does."""
    augmentation: GeometricAugmentation | None = None
    """Random changes in training; null: none."""
    ignore_index: int = Field(255, ge=0)
    """Number in a mask that stands for no class: such pixels are neither learned nor counted."""
    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
    """Weight of each class in the loss: ``balanced`` is pixels / (classes * pixels of the class), a mapping names its own."""


class ObjectDetectionOptions(Section):
    """Boxes around the objects in an image, each with a class."""

    type: Literal["object-detection"]
    image_size: int | None = Field(None, ge=1)
    """Width and height in pixels that images are resized to, and boxes with them; null: what the model's own image processor does."""
    augmentation: GeometricAugmentation | None = None
    """Random changes in training; null: none."""
    threshold: float = Field(0.5, ge=0, le=1)
    """Score from which on predict shows a box. Metrics count all boxes, whatever their score."""


class CausalLMOptions(Section):
    """Language modelling: each token of a text from those before it."""

    type: Literal["causal-lm"]
    append_end: bool = True
    """Whether the tokenizer's end token is appended to each text (where it has one), so that the model learns where texts
    end."""
    packing: bool = False
    """Whether short texts of train share a row of data.max_length tokens, none of which sees another's."""


class MaskedLMOptions(Section):
    """Masked language modelling: tokens that are hidden, from those on both sides of them. Names are those of transformers' collator."""

    type: Literal["masked-lm"]
    mlm_probability: float = Field(0.15, gt=0, lt=1)
    """Share of tokens (of words, with whole_word_mask) that are to be told, drawn anew in each epoch; at least one in each row."""
    mask_replace_prob: float = Field(0.8, ge=0, le=1)
    """Share of those that the mask token stands for."""
    random_replace_prob: float = Field(0.1, ge=0, le=1)
    """Share of those that another token stands for, drawn at random. What is left over stays as it is."""
    whole_word_mask: bool = False
    """Whether all tokens of a word are to be told together."""


class _GeneratedTextOptions(Section):
    """What tasks share whose model reads a text and writes another. Names are those of transformers' examples and generation."""

    source_prefix: str = ""
    """Put before each text, as models such as T5 want it: ``"translate English to German: "``."""
    max_target_length: int = Field(128, ge=2)
    """Longest text to write, in tokens: longer targets are cut in training, counted and reported, and generation ends there."""
    num_beams: int | None = Field(None, ge=1)
    """Beams of the search; 1: the likeliest token each time. null: as the model's generation_config.json has it, 1 without one."""
    length_penalty: float | None = None
    """Above 0 prefers longer texts, below 0 shorter ones, among the beams; null: as the model has it."""
    no_repeat_ngram_size: int | None = Field(None, ge=0)
    """No run of this many tokens is written twice; 0: any may be. null: as the model has it."""
    predict_with_generate: bool = True
    """Whether validation during training generates texts and scores them, which takes time; false: it computes the loss alone. The
    final evaluation always generates."""


class TranslationOptions(_GeneratedTextOptions):
    """A text in one language to the same in another."""

    type: Literal["translation"]
    source_lang: str | None = None
    """Code of the language that is read, for tokenizers of many languages, as they write it: ``en_XX``, ``eng_Latn``."""
    target_lang: str | None = None
    """Code of the language that is written; generation then begins with it, where the model does so."""


class SummarizationOptions(_GeneratedTextOptions):
    """A long text to a short one."""

    type: Literal["summarization"]


def _task_type(value: Any) -> Any:
    """Return the type that a mapping names; one without it is of the first task that there was."""
    return value.get("type", "text-classification") if isinstance(value, dict) else getattr(value, "type", None)


TaskOptions = Annotated[
    Annotated[TextClassificationOptions, Tag("text-classification")]
    | Annotated[TokenClassificationOptions, Tag("token-classification")]
    | Annotated[QuestionAnsweringOptions, Tag("question-answering")]
    | Annotated[CausalLMOptions, Tag("causal-lm")]
    | Annotated[SFTOptions, Tag("sft")]
    | Annotated[PreferenceOptions, Tag("preference")]
    | Annotated[RewardOptions, Tag("reward")]
    | Annotated[MaskedLMOptions, Tag("masked-lm")]
    | Annotated[TranslationOptions, Tag("translation")]
    | Annotated[SummarizationOptions, Tag("summarization")]
    | Annotated[ImageClassificationOptions, Tag("image-classification")]
    | Annotated[ObjectDetectionOptions, Tag("object-detection")]
    | Annotated[SemanticSegmentationOptions, Tag("semantic-segmentation")],
    Discriminator(_task_type),
]
