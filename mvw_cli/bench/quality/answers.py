"""Every item answered under every arm, in the natural mode: what withdrawal changes in the answers.

One item after the other, and of each item all arms, in an order that turns from item to item; so
each arm's figures rest on the same items, wherever it is stopped. Answers are generated one at a
time: their seconds are those of one sequence alone, from the start of its prefill to its last
token. Where the settings sample, each arm draws from the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mvw_cli.bench.documents import BASELINE, NO_IMAGE, Answers
from mvw_cli.bench.measure.items import ask
from mvw_cli.bench.quality.comparisons import Given, Row, answers_match, compared
from mvw_cli.bench.quality.divergence import divergences
from mvw_cli.engine.types import Admitted, Finished, GenerationSettings, Request
from mvw_cli.errors import BadImage, OutOfMemory
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.text import error_line

if TYPE_CHECKING:
    from mvw_cli.bench.measure.items import ItemSpec
    from mvw_cli.session import Session

Progress = Callable[[int, str], None]
"""Called with the number of the item, from 1, and what comes next: the arm that answers it, or
`ALONG`."""
ALONG = "along the baseline's output"
_WARM_UP = 2
"""Tokens of the answer that is thrown away before anything counts."""
_SHOWN = 3
"""Reasons that a remark gives for items that are left out."""


class Stopped(Exception):
    """Whoever watches has had enough."""


class Unanswerable(Exception):
    """Why the control can't be had, as the end of a sentence."""


@dataclass(slots=True)
class Comparing:
    """What goes on through all items: for `answer_item`, one of them after the other."""

    session: Session
    policies: dict[str, WithdrawalPolicy]
    """By arm, the baseline first."""
    settings: GenerationSettings
    """The end token counts: `ignore_eos` is not set."""
    progress: Progress
    stopping: Callable[[], bool]
    remarks: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Why, for each item that could not be answered under all arms."""
    control: bool = True
    """Whether the question can be asked without an image."""
    warm: bool = False

    def check(self) -> None:
        if self.stopping():
            raise Stopped


def compare_answers(
    session: Session,
    items: Iterable[ItemSpec],
    arms: Mapping[str, WithdrawalPolicy],
    *,
    settings: GenerationSettings | None = None,
    progress: Progress = lambda item, doing: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Answers:
    """Answer every item under every arm, and compare with the baseline.

    The baseline is always among the arms, and so is `no image`, the same question asked
    without its images, which shows how much the answers need them; where the adapter or the model
    can't do that, a remark says so. An answer is right where `answers_match` says that it is the
    item's reference.

    Args:
        items: read once; an item's images are opened when its turn comes.
        arms: policies by name, apart from the two that are always there.
        settings: how tokens are chosen and when an answer ends; the session's own without it. The
            end token always counts: the length of an answer is part of the outcome.
        stopping: asked before every token; what is known by then is returned, without the item
            that was under way.

    An item whose image can't be read, or that the device has too little memory for, is left out of
    all arms, and a remark says so.

    Raises:
        ModelProblem: the model turned out not to be servable exactly.
    """
    chosen = replace(settings or session.settings, ignore_eos=False)
    others = {name: policy for name, policy in arms.items() if name not in (BASELINE, NO_IMAGE)}
    policies: dict[str, WithdrawalPolicy] = {BASELINE: NoWithdrawal(), **others}
    run = Comparing(session, policies, chosen, progress, stopping)
    rows: list[Row] = []
    try:
        for number, item in enumerate(items):
            run.check()
            try:
                asked = ask(session, item, run.settings)
                rows.append(answer_item(run, number, asked, item))
            except (BadImage, OutOfMemory) as error:
                run.left_out.append(
                    f"{error.message} ({error.cause})" if error.cause else str(error)
                )
                _relieve(session)
    except Stopped:
        run.remarks.append(f"Stopped early. Items compared until then: {len(rows)}.")
    names = [*run.policies, NO_IMAGE] if run.control else [*run.policies]
    if run.left_out:
        shown = "; ".join(run.left_out[:_SHOWN]) + ("; …" if len(run.left_out) > _SHOWN else "")
        run.remarks.append(f"Items left out: {len(run.left_out)}. {shown}.")
    return Answers(
        items=len(rows),
        references=sum(row.referenced for row in rows),
        arms=[compared(name, rows) for name in names] if rows else [],
        remarks=run.remarks,
    )


def answer_item(run: Comparing, number: int, asked: Request, item: ItemSpec) -> Row:
    """Answer one item under every arm, then read the baseline's answer under every other.

    Args:
        number: of the item, from 0; the order of the arms turns with it.
        asked: the item, encoded, without any withdrawal.

    Raises:
        Stopped: `stopping` said so.
        OutOfMemory: the device has too little memory for the item.
        ModelProblem: the model turned out not to be servable exactly.
    """
    session = run.session
    requests = {name: replace(asked, policy=policy) for name, policy in run.policies.items()}
    if run.control:
        try:
            requests[NO_IMAGE] = without_image(run, item.question)
        except Unanswerable as error:
            _leave_out_control(run, error)
    if not run.warm:
        _warm_up(run, requests[BASELINE])
    given: dict[str, Given] = {}
    order = list(requests)
    first = number % len(order)
    for name in [*order[first:], *order[:first]]:
        run.progress(number + 1, name)
        try:
            given[name] = _answer(run, requests[name], item.reference)
        except (Stopped, OutOfMemory):
            raise
        except Exception as error:  # a model may need an image in ways of its own
            if name != NO_IMAGE or _lost_device(error):
                raise
            _leave_out_control(run, error)
            del requests[NO_IMAGE]
    run.progress(number + 1, ALONG)
    compare = {name: request for name, request in requests.items() if name != BASELINE}
    found = divergences(
        session,
        requests[BASELINE],
        list(compare.values()),
        given[BASELINE].token_ids,
        tick=run.check,
    )
    return Row(given, dict(zip(compare, found, strict=True)), item.reference is not None)


def without_image(run: Comparing, question: str) -> Request:
    """Ask the question alone.

    Raises:
        Unanswerable: the adapter can't encode that, or there is vision in it nevertheless.
        OutOfMemory: the device has no room for it.
    """
    try:
        request = run.session.request([], question)
    except OutOfMemory:
        raise
    except Exception as error:  # adapters are made for images, and fail in ways of their own
        raise Unanswerable(
            f"adapter `{run.session.loaded.adapter}`: {error_line(error)}"
        ) from error
    if request.layout.vision_tokens:
        raise Unanswerable(
            f"adapter `{run.session.loaded.adapter}` puts vision tokens into a question without one"
        )
    return replace(request, policy=NoWithdrawal(), settings=run.settings)


def _leave_out_control(run: Comparing, error: Exception) -> None:
    reason = str(error) if isinstance(error, Unanswerable) else error_line(error)
    run.control = False
    run.remarks.append(f"The control without an image is left out: {reason.rstrip('.')}.")


def _warm_up(run: Comparing, request: Request) -> None:
    settings = replace(request.settings, max_new_tokens=_WARM_UP)
    for _ in run.session.run([replace(request, settings=settings)]):
        run.check()
    run.warm = True


def _answer(run: Comparing, request: Request, reference: str | None) -> Given:
    started = 0.0
    for event in run.session.run([request]):
        run.check()
        if isinstance(event, Admitted):
            started = event.at
        if isinstance(event, Finished):
            answer = run.session.adapter.parse(event.text).answer
            return Given(
                token_ids=event.token_ids,
                answer=answer,
                seconds=event.at - started,
                correct=None if reference is None else answers_match(answer, reference),
            )
    raise AssertionError("the engine ended without an answer")


def _relieve(session: Session) -> None:
    from mvw_cli.engine.memory import relieve

    relieve(session.loaded.model.device)


def _lost_device(error: Exception) -> bool:
    from mvw_cli.engine.memory import lost_device

    return lost_device(error)
