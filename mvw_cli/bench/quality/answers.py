"""Every item answered under every arm, in the natural mode: what withdrawal changes in the answers.

One item after the other, and of each item all arms, in an order that turns from item to item.
Answers are generated one at a time: their seconds are those of one sequence alone, from the start
of its prefill to its last token. Where the settings sample, each arm draws from the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from mvw_cli.bench.documents import BASELINE, NO_IMAGE, Answers
from mvw_cli.bench.measure.items import ItemSpec, ask
from mvw_cli.bench.measure.run import Stopped
from mvw_cli.bench.quality.comparisons import Given, Row, answers_match, compared
from mvw_cli.bench.quality.divergence import divergences
from mvw_cli.engine.memory import lost_device, relieve
from mvw_cli.engine.types import Admitted, Finished, GenerationSettings, Request
from mvw_cli.errors import BadImage, OutOfMemory
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.session import Session
from mvw_cli.text import error_line

Progress = Callable[[int, str], None]
"""Called with the number of the item, from 1, and what comes next: the arm that answers it, or
`ALONG`."""
ALONG = "along the baseline's output"
_WARM_UP = 2
"""Tokens of the answer that is thrown away before anything counts."""
_SHOWN = 3
"""Reasons that a remark gives for items that are left out."""


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
    control: bool = True
    """Whether the question can be asked without an image."""
    warm: bool = False

    def check(self) -> None:
        """Raise `Stopped` where `stopping` says so."""
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

    The baseline is always among the arms, and so is `no image`, the same question without its
    images, which shows how much the answers need them. Where the adapter or the model can't do
    that, a remark says so. An item whose image can't be read, or that the device has too little
    memory for, is left out of all arms, and a remark says so.

    Args:
        arms: policies by name, apart from the two that are always there.
        settings: how tokens are chosen and when an answer ends; the session's own without it. The
            end token always counts: the length of an answer is part of the outcome.
        stopping: asked before every token; what is known by then is returned, without the item
            that was under way.

    Raises:
        ModelProblem: the model turned out not to be servable exactly.
    """
    chosen = replace(settings or session.settings, ignore_eos=False)
    run = Comparing(session, {BASELINE: NoWithdrawal(), **arms}, chosen, progress, stopping)
    rows: list[Row] = []
    left_out: list[str] = []
    try:
        for number, item in enumerate(items):
            run.check()
            try:
                asked = ask(session, item, run.settings)
                rows.append(answer_item(run, number, asked, item))
            except (BadImage, OutOfMemory) as error:
                left_out.append(f"{error.message} ({error.cause})" if error.cause else str(error))
                relieve(session.loaded.model.device)
    except Stopped:
        run.remarks.append(f"Stopped early. Items compared until then: {len(rows)}.")
    names = [*run.policies, NO_IMAGE] if run.control else [*run.policies]
    if left_out:
        shown = "; ".join(left_out[:_SHOWN]) + ("; …" if len(left_out) > _SHOWN else "")
        run.remarks.append(f"Items left out: {len(left_out)}. {shown}.")
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
    requests = {name: replace(asked, policy=policy) for name, policy in run.policies.items()}
    if run.control:
        try:
            requests[NO_IMAGE] = without_image(run.session, item.question, run.settings)
        except Unanswerable as error:
            _leave_out_control(run, str(error))
    if not run.warm:
        first = requests[BASELINE]
        _answer(run, replace(first, settings=replace(first.settings, max_new_tokens=_WARM_UP)))
        run.warm = True
    given: dict[str, Given] = {}
    order = list(requests)
    turn = number % len(order)
    for name in [*order[turn:], *order[:turn]]:
        run.progress(number + 1, name)
        try:
            given[name] = _answer(run, requests[name], item.reference)
        except (Stopped, OutOfMemory):
            raise
        except Exception as error:  # a model may need an image in ways of its own
            if name != NO_IMAGE or lost_device(error):
                raise
            _leave_out_control(run, error_line(error))
            del requests[NO_IMAGE]
    run.progress(number + 1, ALONG)
    baseline = requests.pop(BASELINE)
    output = given[BASELINE].token_ids
    found = divergences(run.session, baseline, [*requests.values()], output, tick=run.check)
    return Row(given, dict(zip(requests, found, strict=True)), item.reference is not None)


def without_image(session: Session, question: str, settings: GenerationSettings) -> Request:
    """Ask the question alone.

    Raises:
        Unanswerable: the adapter can't encode that, or there is vision in it nevertheless.
        OutOfMemory: the device has no room for it.
    """
    adapter = f"adapter `{session.loaded.adapter}`"
    try:
        request = session.request([], question)
    except OutOfMemory:
        raise
    except Exception as error:  # adapters are made for images, and fail in ways of their own
        raise Unanswerable(f"{adapter}: {error_line(error)}") from error
    if request.layout.vision_tokens:
        raise Unanswerable(f"{adapter} puts vision tokens into a question without one")
    return replace(request, policy=NoWithdrawal(), settings=settings)


def _leave_out_control(run: Comparing, reason: str) -> None:
    run.control = False
    run.remarks.append(f"The control without an image is left out: {reason.rstrip('.')}.")


def _answer(run: Comparing, request: Request, reference: str | None = None) -> Given:
    started = 0.0
    for event in run.session.run([request]):
        run.check()
        if isinstance(event, Admitted):
            started = event.at
        if isinstance(event, Finished):
            answer = run.session.adapter.parse(event.text).answer
            correct = None if reference is None else answers_match(answer, reference)
            return Given(event.token_ids, answer, event.at - started, correct)
    raise AssertionError("the engine ended without an answer")
