"""From questions to looks: the answers are written, then read again with every exit at once.

Answers are the model's own, written with the vision to the end, or the references that the user
has. A question that is on disk is not asked again. It does not know what is trained.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from mvw_cli.batch.items import item_key
from mvw_cli.calibrate.dyvte.store import Entry, Store
from mvw_cli.errors import BadImage, ModelProblem

if TYPE_CHECKING:
    from mvw_cli.bench.measure.job import ItemSpec
    from mvw_cli.calibrate.dyvte.looks import Look
    from mvw_cli.engine.cross_attention import CrossAttention
    from mvw_cli.engine.types import Request
    from mvw_cli.images.reading import ImageFile
    from mvw_cli.session import Session

Along = Literal["own", "reference"]
Progress = Callable[[int, int], None]
"""Called with the questions done and those in all."""


@dataclass(slots=True)
class Labelled:
    """What became of the questions."""

    keys: list[str] = field(default_factory=list)
    """Of the questions that have been looked at, each once."""
    left_out: list[str] = field(default_factory=list)
    """Why others have not."""
    complete: bool = True
    """Whether no question is left."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """One question with its images."""

    item: ItemSpec
    key: str
    files: tuple[ImageFile, ...]


def label(
    session: Session,
    items: Sequence[ItemSpec],
    store: Store,
    *,
    along: Along = "own",
    cross_attention: CrossAttention = "skip",
    together: int = 8,
    progress: Progress = lambda done, total: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Labelled:
    """Look at every question that the store lacks.

    Args:
        along: whose answers are read.
        cross_attention: what an exit leaves of a cross-attention layer.
        together: questions that are encoded, and answered, at a time.

    Raises:
        ModelProblem: the model can't be run with branches.
        OutOfMemory: the device has too little memory.
        UsageProblem: the store can't be written.
    """
    labelled = Labelled()
    for first in range(0, len(items), together):
        if stopping():
            labelled.complete = False
            break
        progress(first, len(items))
        fresh: list[_Opened] = []
        for item in items[first : first + together]:
            try:
                opened = _open(session, item, along)
            except BadImage as error:
                labelled.left_out.append(error.message)
                continue
            if opened.key not in {*store.keys, *(one.key for one in fresh)}:
                fresh.append(opened)
            labelled.keys.append(opened.key)
        requests = [_request(session, one) for one in fresh]
        answers = _answers(session, fresh, requests, along)
        for one, request in zip(fresh, requests, strict=True):
            seen = _look(session, request, answers[request.id], cross_attention)
            store.add(_entry(one, request, len(answers[request.id])), seen)
    else:
        progress(len(items), len(items))
    labelled.keys = list(dict.fromkeys(labelled.keys))
    store.flush()
    return labelled


def _open(session: Session, item: ItemSpec, along: Along) -> _Opened:
    from mvw_cli.images.reading import open_image

    limit = session.loaded.spec.max_pixels
    files = tuple(open_image(path, max_pixels=limit) for path in item.images)
    key = item_key([file.sha256 for file in files], item.question)
    if along == "reference":
        key = item_key([key], item.reference or "")
    return _Opened(item, key, files)


def _request(session: Session, opened: _Opened) -> Request:
    from mvw_cli.policies.none import NoWithdrawal

    images = [file.image for file in opened.files]
    request = session.request(images, opened.item.question, id=opened.key)
    return replace(request, policy=NoWithdrawal())


def _entry(opened: _Opened, request: Request, answer_tokens: int) -> Entry:
    return Entry(
        key=opened.key,
        names=tuple(os.path.basename(path) for path in opened.item.images),
        question=opened.item.question,
        images=tuple(file.sha256 for file in opened.files),
        text_tokens=request.text_tokens,
        vision_tokens=request.layout.vision_tokens,
        answer_tokens=answer_tokens,
    )


def _answers(
    session: Session,
    opened: Sequence[_Opened],
    requests: Sequence[Request],
    along: Along,
) -> dict[str, tuple[int, ...]]:
    """Give the tokens to be followed, by the question's key."""
    from mvw_cli.engine.types import Finished

    if along == "own":
        events = session.run(requests)
        return {one.request: one.token_ids for one in events if isinstance(one, Finished)}
    return {
        one.key: _tokens(session, one.item.reference or "")[: session.settings.max_new_tokens]
        for one in opened
    }


def _tokens(session: Session, text: str) -> tuple[int, ...]:
    """Write a reference as the model would: its tokens and the one that ends an answer."""
    processor: Any = session.loaded.processor
    tokenizer = getattr(processor, "tokenizer", processor)
    end = session.loaded.model.generation_config.eos_token_id
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)[:1]
    return (*tokenizer(text, add_special_tokens=False)["input_ids"], *ends)


def _look(
    session: Session, request: Request, answer: Sequence[int], cross_attention: CrossAttention
) -> Look:
    from mvw_cli.calibrate.dyvte.looks import look
    from mvw_cli.engine.exact import NotExact

    model = session.loaded.model
    try:
        return look(model, request.inputs, request.layout, answer, cross_attention=cross_attention)
    except NotExact as error:
        raise ModelProblem(
            f"{type(model).__name__} can't be run with its vision gone from a layer on.",
            cause=f"In {session.loaded.name}: {error}.",
            hint="mvw list adapters",
        ) from error
