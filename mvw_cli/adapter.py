"""The adapter contract: how one family of models is loaded, prompted and read.

Nothing here imports torch, so that adapters can be listed without it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvw_cli.errors import ModelProblem

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """What `mvw list adapters` shows, and where the class is. Registering one imports nothing."""

    name: str
    target: str
    """`"package.module:Class"`, imported only when the adapter is used."""
    summary: str
    checkpoints: tuple[str, ...] = ()
    """Checkpoints that the adapter is made for; the first is used when no model is named."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which weights to load, and how. Made from a resolved profile."""

    model: str | None = None
    """Hub id or folder; None takes the adapter's first checkpoint."""
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    """`auto` spreads the layers over all GPUs, through accelerate; None takes one device."""
    quantization: str | None = None
    """`8bit` or `4bit` holds the weights of linear layers as bitsandbytes does; None holds all of
    them in `dtype`."""
    system: str | None = None
    """System prompt, or None for the model's own default."""
    template: str = "{question}"
    """Text sent with the images; `{question}` stands for the question."""
    special_tokens: bool = False
    """Whether control tokens in system prompt, template and question are such, not plain text."""
    max_pixels: int | None = None
    """Larger images are scaled down to at most this many pixels before the processor."""
    max_decoded_pixels: int = 89_478_485
    """Images that would decode to more are refused: the size at which Pillow warns of a bomb."""
    allow_pickle: bool = False
    """Whether weights may be read from pickles. The user's word, never a profile's."""
    random_weights: bool = False
    """Whether to build the model of `Adapter.shape` with random weights instead of reading any:
    for speed and memory, at the true shape."""


def unchanged(model: Any) -> AbstractContextManager[None]:
    """Serve a model as transformers has it."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and its processor on their device."""

    adapter: str
    name: str
    """Hub id or folder, as the user would write it."""
    model: Any
    """A `transformers.PreTrainedModel` in eval mode."""
    processor: Any
    spec: ModelSpec
    revision: str | None = None
    """The commit that was loaded, where the hub told it."""
    serving: Callable[[Any], AbstractContextManager[None]] = unchanged
    """Patches the model while the engine serves it, and restores it: a faster decode step that
    computes the same. Entered inside the engine's own routing of the attention."""


@dataclass(frozen=True, slots=True)
class VisionLayout:
    """Where the vision of one request lives in the KV cache."""

    entries: Tensor
    """Which prompt entries are vision tokens.  # (P,) bool"""
    cross_entries: Tensor | None = None
    """For models that read vision by cross-attention, next to the sequence instead of in it: which
    vision states the generated tokens may attend to.  # (V,) bool"""
    images: tuple[int, ...] | None = None
    """Vision tokens of each image, in order; None where the adapter does not tell."""
    grids: tuple[tuple[int, int], ...] | None = None
    """Rows and columns of each image's vision tokens, where they lie row by row over the picture
    and nothing else is among them; None where they do not."""

    @property
    def vision_tokens(self) -> int:
        """Vision tokens of the request, wherever they are held."""
        crossed = 0 if self.cross_entries is None else int(self.cross_entries.sum())
        return int(self.entries.sum()) + crossed


@dataclass(frozen=True, slots=True)
class Patch:
    """The part of a picture that one vision token was made from.

    Edges are parts of the picture's width and height, 0 to 1.
    """

    image: int
    """Which of the request's images, from 0."""
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote, taken apart."""

    answer: str
    """The part that answers the question; the whole text where the model has no stages."""
    reasoning: str = ""
    stages: Mapping[str, str] = field(default_factory=dict)
    """Named stages in the order written, for instance SUMMARY, CAPTION, REASONING, CONCLUSION."""


class Adapter(ABC):
    """One family of models. Subclasses hold no state: `LoadedModel` carries it all."""

    @abstractmethod
    def load(self, spec: ModelSpec) -> LoadedModel:
        """Load model and processor onto their device.

        Raises:
            ModelProblem: missing or gated weights, wrong architecture, unknown device or dtype.
            OutOfMemory: the weights do not fit on the device.
        """

    @abstractmethod
    def encode(
        self, loaded: LoadedModel, images: Sequence[Image], question: str
    ) -> dict[str, Tensor]:
        """Turn images and question into model inputs for one sequence, batch axis included.

        `input_ids` is  # (1, P).
        """

    def prompt(
        self, loaded: LoadedModel, images: Sequence[Image], question: str
    ) -> dict[str, Tensor]:
        """Write the prompt alone, one placeholder for each image: `input_ids` # (1, P).

        For engines that prepare the images themselves, as vLLM does.

        Raises:
            ModelProblem: this adapter can't.
        """
        raise _lacking("prompt", "can't write a prompt without preparing its images")

    def processor(self, spec: ModelSpec) -> Any:
        """Load the processor alone, for engines that read the weights themselves.

        Raises:
            ModelProblem: this adapter can't, or as `load`.
        """
        raise _lacking("processor", "can't load a processor without its model")

    def vllm_arguments(self) -> Mapping[str, Any]:
        """Return the arguments of vLLM's engine that these models need, under vLLM's names."""
        return {}

    @abstractmethod
    def vision(self, loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> VisionLayout:
        """Return which entries of the prompt are vision tokens."""

    @abstractmethod
    def parse(self, text: str) -> Answer:
        """Take the generated text apart; must cope with text that was cut or is malformed."""

    def opening(self, loaded: LoadedModel) -> str:
        """Return what prompts have written of the answer already, as `<think>`."""
        return ""

    @abstractmethod
    def tiny(self) -> LoadedModel:
        """Build the same architecture with a few thousand random weights, without any download."""

    def tiny_checkpoint(self, folder: Path) -> None:
        """Write a checkpoint of few random weights, for engines that read the weights themselves.

        Raises:
            ModelProblem: this adapter can't.
        """
        raise _lacking("tiny_checkpoint", "can't write a small checkpoint")

    def shape(self, spec: ModelSpec) -> Any:
        """Return the configuration of the checkpoint that the spec names, without its weights.

        Adapters made for published checkpoints know theirs by heart and need no network for them.

        Raises:
            ModelProblem: this adapter can't tell.
        """
        raise _lacking("shape", "does not tell the shape of its models")

    def missing_packages(self, spec: ModelSpec) -> Sequence[str]:
        """Name the distributions that this checkpoint needs and that are not installed."""
        return ()

    def build(self, config: Any) -> Any:
        """Build the model of a configuration, its weights as the class initialises them.

        Called under `torch.device("meta")` to count, and on a real device for random weights.

        Raises:
            ModelProblem: this adapter can't.
        """
        raise _lacking("build", "can't build a model without a checkpoint")

    def image_tokens(self, config: Any, width: int, height: int) -> int:
        """Count the entries that one image takes in the KV cache, at each layer that holds vision.

        Args:
            config: as `shape` returns it; nothing is loaded.
            width, height: of the image as the processor gets it, in pixels.

        Raises:
            ModelProblem: this adapter can't tell.
            BadImage: the model refuses an image of this size.
        """
        raise _lacking("image_tokens", "does not tell how many vision tokens an image becomes")

    def text_tokens(self, spec: ModelSpec, config: Any) -> Callable[[str, int], int]:
        """Return what counts the tokens of a prompt besides those of its images' vision.

        It takes a question and the number of its images. The tokenizer is loaded, no weights are.

        Args:
            config: as `shape` returns it.

        Raises:
            ModelProblem: this adapter can't tell.
        """
        raise _lacking("text_tokens", "does not tell how many tokens a prompt has")

    def samples(self, folder: Path, count: int, seed: int) -> Path | None:
        """Write pictures that the model can read, with questions and true answers about them.

        Measurements ask these where the user brings no images. The file that is returned is one
        for `mvw batch --questions`; None where a model has no such pictures.
        """
        return None

    def areas(
        self, loaded: LoadedModel, images: Sequence[Image]
    ) -> Sequence[tuple[float, float, float, float]] | None:
        """Return where the grid of each image (`VisionLayout.grids`) lies over the picture.

        Left, top, right and bottom edge, in parts of the picture's width and height: outside of 0
        to 1 where the grid covers padding too, inside where the picture was cropped. None where
        that is not known. Default: each grid covers its whole picture.
        """
        return [(0.0, 0.0, 1.0, 1.0)] * len(images)

    def patches(
        self, loaded: LoadedModel, inputs: Mapping[str, Tensor], images: Sequence[Image]
    ) -> Sequence[Patch | None] | None:
        """Return which part of a picture each vision token was made from, in the tokens' order.

        None stands for a token of no place in particular, as one of padding; and for the whole
        where places are not known. Default: what `VisionLayout.grids` and `areas` tell.
        """
        grids = self.vision(loaded, inputs).grids
        areas = self.areas(loaded, images) if grids is not None else None
        if grids is None or areas is None or not len(grids) == len(areas) == len(images):
            return None
        found: list[Patch | None] = []
        for image, ((rows, columns), area) in enumerate(zip(grids, areas, strict=True)):
            left, top, right, bottom = area
            wide, high = (right - left) / columns, (bottom - top) / rows
            for place in range(rows * columns):
                row, column = divmod(place, columns)
                x, y = left + column * wide, top + row * high
                found.append(clipped_patch(image, x, y, x + wide, y + high))
        return found

    def remarks(self, loaded: LoadedModel, images: Sequence[Image], question: str) -> list[str]:
        """List, one line each, where this question lies outside what the model can answer."""
        return []


def _lacking(method: str, what: str) -> ModelProblem:
    cause = f"It lacks the method `{method}`."
    return ModelProblem(f"This adapter {what}.", cause=cause, hint="mvw list adapters")


def clipped_patch(image: int, left: float, top: float, right: float, bottom: float) -> Patch | None:
    """Make a patch of what lies inside the picture; None where nothing does."""
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)
    if right - left < 1e-6 or bottom - top < 1e-6:
        return None
    return Patch(image, left, top, right, bottom)


STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
"""The stages of LLaVA-CoT (arXiv:2411.10440), the only names that are tags."""
_NAME = "|".join(STAGES)
# The second form is what the released weights were seen to write.
_TAG = re.compile(
    rf"<(?P<closed>/?)(?P<tag>{_NAME})>|\(Here (?P<word>begins|ends) the (?P<stage>{_NAME}) stage\)"
)
_ANSWER = re.compile(r"^<answer>(.*?)(</answer>)?$", re.DOTALL)


def spellings(tag: str) -> tuple[str, ...]:
    """Return the forms in which a stage's tag is written; any other text has one form."""
    found = _TAG.fullmatch(tag)
    if found is None:
        return (tag,)
    name, closing = _read_tag(found)
    word = "ends" if closing else "begins"
    return (f"<{'/' if closing else ''}{name}>", f"(Here {word} the {name} stage)")


def _read_tag(tag: re.Match[str]) -> tuple[str, bool]:
    """Return the stage that a tag names, and whether it closes it."""
    return tag["tag"] or tag["stage"], tag["closed"] == "/" or tag["word"] == "ends"


def _without_half_tag(text: str) -> str:
    """Take off what is left of a tag at the end of text that was cut inside it."""
    tags = [
        form for name in STAGES for tag in (f"<{name}>", f"</{name}>") for form in spellings(tag)
    ]
    for start in range(max(0, len(text) - max(map(len, tags)) + 1), len(text)):
        rest = text[start:]
        # A bracket alone is text; a `<` at the very end is not.
        if rest != "(" and any(tag != rest and tag.startswith(rest) for tag in tags):
            return text[:start]
    return text


def parse_stages(text: str, *, answer: str = "CONCLUSION") -> Answer:
    """Take `<SUMMARY>…</SUMMARY> … <CONCLUSION>…</CONCLUSION>` apart, in either form of the tags.

    A stage that is not closed runs to the next opening tag or the end; one that is closed and was
    never opened runs from the tag before it. Of two stages of one name the later counts. Without
    any stage the whole text is the answer; with stages but without the answering one, the answer
    is empty. A tag that was cut at the end is no part of a stage.
    """
    text = _without_half_tag(text)
    stages: dict[str, str] = {}
    name: str | None = None
    start = 0
    for tag in _TAG.finditer(text):
        tag_name, closing = _read_tag(tag)
        content = text[start : tag.start()]
        if name is not None and (not closing or tag_name == name):
            _put(stages, name, content)
            name, start = None, tag.end()
        elif name is None and closing and tag_name not in stages and content.strip():
            _put(stages, tag_name, content)
            start = tag.end()
        if not closing:
            name, start = tag_name, tag.end()
    if name is not None:
        _put(stages, name, text[start:])
    if not stages:
        return Answer(answer=text.strip())
    reasoning = "\n".join(content for stage, content in stages.items() if stage != answer)
    return Answer(answer=stages.get(answer, ""), reasoning=reasoning, stages=stages)


def parse_thinking(text: str, *, opening: str = "<think>", closing: str = "</think>") -> Answer:
    """Take `<think>…</think>answer` apart.

    The opening tag may be missing, since some chat templates write it into the prompt. Without
    the closing tag an opened block is all reasoning and the answer is empty; with neither tag the
    whole text is the answer. An answer within `<answer>…</answer>`, as GLM-4.1V writes it, is taken
    out of these tags.
    """
    before, closed, after = text.rpartition(closing)
    if closed:
        reasoning = before.replace(opening, "", 1).strip()
        return Answer(answer=_ANSWER.sub(r"\1", after.strip()).strip(), reasoning=reasoning)
    head, opened, rest = text.partition(opening)
    if opened:
        return Answer(answer="", reasoning=(head + rest).strip())
    return Answer(answer=text.strip())


def _put(stages: dict[str, str], name: str, content: str) -> None:
    # Written again at the end, so that the order is that of the text.
    stages.pop(name, None)
    stages[name] = content.strip()
