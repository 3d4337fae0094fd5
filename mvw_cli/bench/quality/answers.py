"""Every item answered under every arm, in the natural mode: what withdrawal changes in the answers.

One item after the other, and of each item all arms, in an order that turns from item to item.
Answers are generated one at a time: their seconds are those of one sequence alone, from the start
of its prefill to its last token. Where the settings sample, each arm draws from the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mvw_cli.bench.documents import BASELINE, NO_IMAGE, Answers, Comparison
from mvw_cli.bench.matching import answers_match
from mvw_cli.bench.measure.items import ItemSpec, ask
from mvw_cli.bench.measure.run import Stopped
from mvw_cli.bench.quality.divergence import Divergence, divergences
from mvw_cli.bench.stats import (
    FEWEST_ITEMS,
    bootstrap_interval,
    mcnemar,
    paired_drop,
    summarise,
    wilson,
)
from mvw_cli.engine.memory import lost_device, relieve
from mvw_cli.engine.types import Admitted, Finished, GenerationSettings, Request
from mvw_cli.errors import BadImage, MvwError, OutOfMemory
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.session import Session
from mvw_cli.text import error_line

Progress = Callable[[int, str], None]
"""Called with the number of the item, from 1, and what comes next: the arm that answers it, or
`ALONG`."""
ALONG = "along the baseline's output"
NO_LOGITS = "Same next token and KL divergence are left out: vLLM does not give its logits."
_WARM_UP = 2
"""Tokens of the answer that is thrown away before anything counts."""
_SHOWN = 3
"""Reasons that a remark gives for items that are left out."""


@dataclass(frozen=True, slots=True)
class Given:
    """One answer."""

    token_ids: tuple[int, ...]
    answer: str
    """The answer proper, as the adapter takes it out of the text."""
    seconds: float
    correct: bool | None
    """Whether it is the reference; None where there is none."""


@dataclass(frozen=True, slots=True)
class Row:
    """One item under all arms."""

    given: Mapping[str, Given]
    """By arm."""
    divergence: Mapping[str, Divergence]
    """By arm, along the baseline's output; none of the baseline itself, and none at all where the
    engine does not give its logits."""
    referenced: bool


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
    if not session.engine.in_process:
        run.remarks.append(NO_LOGITS)
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
    if not run.warm:
        first = requests[BASELINE]
        _answer(run, replace(first, settings=replace(first.settings, max_new_tokens=_WARM_UP)))
        run.warm = True
    given: dict[str, Given] = {}
    order = [*requests, NO_IMAGE] if run.control else [*requests]
    turn = number % len(order)
    for name in [*order[turn:], *order[:turn]]:
        run.progress(number + 1, name)
        try:
            if name == NO_IMAGE:
                requests[name] = without_image(run.session, item.question, run.settings)
            given[name] = _answer(run, requests[name], item.reference)
        except (Stopped, OutOfMemory):
            raise
        except Exception as error:  # a model may need an image in ways of its own
            if name != NO_IMAGE or lost_device(error):
                raise
            run.control = False
            requests.pop(NO_IMAGE, None)
            cause = error.cause if isinstance(error, MvwError) else None
            said = str(error) if isinstance(error, Unanswerable) else error_line(error)
            reason = cause or said
            run.remarks.append(f"The control without an image is left out: {reason.rstrip('.')}.")
    if not run.session.engine.in_process:
        return Row(given, {}, item.reference is not None)
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


def _answer(run: Comparing, request: Request, reference: str | None = None) -> Given:
    started = 0.0
    for event in run.session.run([request]):
        run.check()
        if isinstance(event, Admitted):
            started = event.at
        if isinstance(event, Finished):
            answer = run.session.parse(event.text).answer
            correct = None if reference is None else answers_match(answer, reference)
            return Given(event.token_ids, answer, event.at - started, correct)
    raise AssertionError("the engine ended without an answer")


# -- from answers to figures ------------------------------------------------------------------


def compared(name: str, rows: Sequence[Row]) -> Comparison:
    """Sum up one arm over all items.

    Raises:
        ValueError: there are no items.
    """
    own = [row.given[name] for row in rows]
    base = [row.given[BASELINE] for row in rows]
    pairs = list(zip(own, base, strict=True))
    places = [_first_difference(one.token_ids, other.token_ids) for one, other in pairs]
    differing = [float(place) for place in places if place is not None]
    judged = [one.correct for one in own if one.correct is not None]
    summed = Comparison(
        name=name,
        items=len(rows),
        identical=len(rows) - len(differing),
        generated_tokens=summarise([float(len(one.token_ids)) for one in own]),
        seconds=summarise([one.seconds for one in own]),
        first_difference=summarise(differing) if differing else None,
        correct=sum(judged) if judged else None,
        accuracy_interval_95=wilson(sum(judged), len(judged)) if judged else None,
    )
    if name == BASELINE:
        return summed
    same = sum(answers_match(one.answer, other.answer) for one, other in pairs)
    summed = replace(summed, same_answer=same)
    if found := [row.divergence[name] for row in rows if name in row.divergence]:
        summed = replace(
            summed,
            agreement=agreement(found),
            agreement_interval_95=agreement_interval(found),
            kl_nats=summarise([one.mean_kl_nats for one in found]),
        )
    if not judged:
        return summed
    lost = sum(one.correct is False and other.correct is True for one, other in pairs)
    won = sum(one.correct is True and other.correct is False for one, other in pairs)
    return replace(
        summed,
        lost=lost,
        won=won,
        p_value=mcnemar(lost, won),
        drop_interval_95=paired_drop(lost, won, len(judged)),
    )


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Find which token, from 1, is the first that differs; an end counts as one."""
    for place, (left, right) in enumerate(zip(one, other, strict=False), start=1):
        if left != right:
            return place
    return None if len(one) == len(other) else min(len(one), len(other)) + 1


def agreement(found: Sequence[Divergence]) -> float:
    """Part of the next tokens that stay the likeliest, over all tokens of all answers."""
    return sum(sum(one.agrees) for one in found) / sum(len(one.agrees) for one in found)


def agreement_interval(found: Sequence[Divergence]) -> tuple[float, float] | None:
    """Bootstrap the agreement over the answers: tokens of one answer go together."""
    if len(found) < FEWEST_ITEMS:
        return None
    counts = [(sum(one.agrees), len(one.agrees)) for one in found]
    return bootstrap_interval(
        lambda drawn: drawn[..., 0].sum(axis=1) / drawn[..., 1].sum(axis=1), counts
    )
