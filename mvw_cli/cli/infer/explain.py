"""`mvw infer --explain`: what the page about the run whose answer is printed is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from mvw_cli.adapter import Answer
from mvw_cli.cli.infer.view import restored_line, withdrawal_line
from mvw_cli.engine.types import Event, Prefilled, Request, Restored, Token, Withdrawn
from mvw_cli.environment import describe_environment
from mvw_cli.explain.document import Explained, Mark
from mvw_cli.explain.page import page
from mvw_cli.explain.record import Record
from mvw_cli.images.reading import ImageFile
from mvw_cli.profiles.resolution import Resolved
from mvw_cli.session import Session


def page_of(
    question: str,
    resolved: Resolved,
    images: Sequence[ImageFile],
    session: Session,
    request: Request,
    record: Record,
    events: Sequence[Event],
    answer: Answer,
) -> str:
    """Write the page about a run that is over."""
    facts = session.facts()
    return page(
        Explained(
            question=question,
            answer=answer.answer,
            pictures=images,
            tokens=[(event.id, event.text) for event in events if isinstance(event, Token)],
            marks=[mark for event in events if (mark := _mark(event)) is not None],
            patches=session.adapter.patches(
                session.loaded, request.inputs, [file.image for file in images]
            ),
            record=record,
            policy=session.policy.describe(),
            settings={"profile": resolved.name, **resolved.values()},
            model=facts,
            environment=asdict(describe_environment(facts["device"])),
        )
    )


def _mark(event: Event) -> Mark | None:
    match event:
        case Prefilled() if any(one < event.vision_tokens for one in event.vision_by_layer):
            held = event.vision_by_layer
            whole = sum(one == event.vision_tokens for one in held)
            told = (
                f"vision withdrawn in the prefill: {whole} of {len(held)} layers hold all "
                f"{event.vision_tokens} vision tokens, the last one {held[-1]}"
            )
            return Mark(0, "withdrawn", told)
        case Withdrawn():
            return Mark(event.step, "withdrawn", withdrawal_line(event))
        case Restored():
            return Mark(event.step, "restored", restored_line(event))
    return None
