"""One run: a batch of items from their files to the last token, with a mark at each turn.

The sequences of a batch are prefilled one after the other, then decode together; a step gives each
of them a token and is counted once. vLLM reads prompts in its passes, and decodes meanwhile: what
it decodes before the last prompt has been read is no step. The engine's events carry the time at
which tokens were known on the host, so that no mark has to wait for the device while it decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mvw_cli.bench.measure.device import HOST, MOST_STEPS, Clock, Mark, covered, trace, traceable
from mvw_cli.bench.measure.events import Change, note_withdrawn
from mvw_cli.bench.measure.items import ItemSpec, read_images
from mvw_cli.engine.types import (
    Admitted,
    Event,
    Failed,
    Finished,
    GenerationSettings,
    Prefilled,
    Request,
    Token,
)
from mvw_cli.errors import OutOfMemory
from mvw_cli.images.reading import ImageFile
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.session import Session

if TYPE_CHECKING:
    from mvw_cli.session import Slots


class Stopped(Exception):
    """Whoever waits for the run wants no more of it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One decode step of the whole batch."""

    seconds: float
    """From the tokens before to these, withdrawals in between included."""
    withdrawal_s: float
    """What these withdrawals took of it, and what brought vision back; 0 where that is not told."""
    tokens: int
    withdrawn: bool
    """Whether no sequence in it has any vision left."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run showed, all sequences of the batch together; times are of the whole batch."""

    read_s: float
    preprocess_s: float
    """Of the first sequence alone where the engine prepares images: it reads prompts meanwhile."""
    vision_s: float | None
    """None where no vision encoder was found, or none has run."""
    prefill_s: float
    """All prompts, one after the other, or as the engine puts them together."""
    ttft_s: float
    """From the start of the first sequence's prefill to its first token."""
    answer_s: float
    """From the images in memory to the last token."""
    withdrawal_s: float | None
    """All withdrawals, and all that brought vision back; None where there was none, or where the
    engine does not tell."""
    steps: tuple[Step, ...]
    events: tuple[Event, ...]

    @property
    def outputs(self) -> list[tuple[int, ...]]:
        """Tokens of each answer."""
        return [event.token_ids for event in self.events if isinstance(event, Finished)]

    @property
    def decode_s(self) -> float:
        """From the last sequence's first token to the last token of all."""
        return sum(step.seconds for step in self.steps)


@dataclass(frozen=True, slots=True)
class Runner:
    """Makes runs on one loaded model.

    Raises, in each of its methods:
        MvwError: an image can't be read, or the model not run on it.
        Stopped: `stopping` said so.
    """

    session: Session
    settings: GenerationSettings
    stopping: Callable[[], bool]

    def requests(self, items: Sequence[ItemSpec], policy: WithdrawalPolicy) -> list[Request]:
        """Read and encode some items, each with its place in the batch for an id."""
        return self._encode([(item, read_images(self.session, item)) for item in items], policy)

    def _encode(
        self, items: Sequence[tuple[ItemSpec, list[ImageFile]]], policy: WithdrawalPolicy
    ) -> list[Request]:
        requests = []
        for place, (item, files) in enumerate(items):
            self._check()
            pictures = [file.image for file in files]
            request = self.session.request(pictures, item.question, id=str(place))
            requests.append(replace(request, policy=policy, settings=self.settings))
        return requests

    def run(
        self,
        items: Sequence[ItemSpec],
        policy: WithdrawalPolicy,
        watch: Callable[[Slots], None] = lambda slots: None,
    ) -> Run:
        """Make a run.

        Args:
            watch: called after the prefills, and after each step that leaves sequences.

        Raises:
            OutOfMemory: the engine has no room for all sequences at once.
        """
        model, engine = self.session.loaded.model, self.session.engine
        clock = Clock(engine.device if engine.in_process else HOST)
        start = perf_counter()
        read = [(item, read_images(self.session, item)) for item in items]
        read_s = perf_counter() - start
        with self.session.serving() as slots, watched_vision(model) as vision_seconds:
            start = clock.now()
            requests = self._encode(read, policy)
            clock.now()  # admission finds the device at rest
            events = [event for request in requests for event in slots.admit(request)]
            self._prefill(slots, events, len(requests))
            steps, end = self._decode(slots, events, watch)
            vision_s = vision_seconds()
        admitted = {event.request: event.at for event in events if isinstance(event, Admitted)}
        firsts = {event.request: event.at for event in events if isinstance(event, Prefilled)}
        prefills = [(admitted[one], firsts[one]) for one in admitted]
        begun, first = prefills[0]
        took = [event.duration_s for event in events if isinstance(event, Change)]
        return Run(
            read_s=read_s,
            preprocess_s=begun - start,
            vision_s=vision_s,
            prefill_s=covered(prefills),
            ttft_s=first - begun,
            answer_s=end - start,
            withdrawal_s=_withdrawal_s(events) if took and None not in took else None,
            steps=tuple(steps),
            events=tuple(events),
        )

    def kernel_seconds(self, items: Sequence[ItemSpec], policy: WithdrawalPolicy) -> float | None:
        """Measure how long kernels run in a decode step, on average over the first steps of a run.

        Returns:
            None where the device can't be traced, or where nothing was decoded.
        """
        device = self.session.engine.device
        if not (self.session.engine.in_process and traceable(device)):
            return None
        steps = 0
        requests = self.requests(items, policy)
        with self.session.serving() as slots:
            for request in requests:
                slots.admit(request)

            def decode() -> None:
                nonlocal steps
                while slots.active and steps < MOST_STEPS:
                    slots.step()
                    steps += 1

            spans = trace(decode, device)
        return covered(spans) / 1e6 / steps if spans and steps else None

    def _prefill(self, slots: Slots, events: list[Event], sequences: int) -> None:
        """Step until all prompts have been read; add what happens to `events`."""
        while sum(isinstance(event, Prefilled) for event in events) < sequences:
            self._check()
            news = slots.step()
            _raise_failed(news)
            events += news
            if self.settings.ignore_eos and any(isinstance(one, Finished) for one in events):
                raise OutOfMemory(
                    f"{sequences} sequences do not decode together",
                    cause="an answer was complete before the last prompt had been read: the KV "
                    "cache has no room for all, or answers are too short",
                    hint=f"mvw profile --batch {max(1, sequences // 2)}",
                )

    def _decode(
        self, slots: Slots, events: list[Event], watch: Callable[[Slots], None]
    ) -> tuple[list[Step], float]:
        """Decode to the end; add what happens to `events`; return the steps and the last moment."""
        last = max(event.at for event in events if isinstance(event, Prefilled))
        withdrawn: set[str] = set()
        note_withdrawn(withdrawn, events)
        # Withdrawals at the first token of the last sequence; those of the others were earlier.
        took = _withdrawal_s(event for event in events if event.at > last)
        steps: list[Step] = []
        while slots.active:
            watch(slots)
            self._check()
            active = slots.active
            news = slots.step()
            _raise_failed(news)
            events += news
            tokens = {event.request: event for event in news if isinstance(event, Token)}
            # vLLM withdraws as its pass begins, and tells of it with the token that comes of it.
            before = [
                event
                for event in news
                if isinstance(event, Change)
                and event.request in tokens
                and event.step < tokens[event.request].step
            ]
            note_withdrawn(withdrawn, before)
            if tokens:  # a pass may bring none
                at = next(iter(tokens.values())).at  # one moment for all of them
                all_withdrawn = withdrawn.issuperset(active)
                count = sum(isinstance(event, Token) for event in news)
                steps.append(Step(at - last, took, count, all_withdrawn))
                last, took = at, 0.0
            took += _withdrawal_s(news)
            note_withdrawn(withdrawn, news)
        return steps, last

    def _check(self) -> None:
        if self.stopping():
            raise Stopped


def _raise_failed(events: Iterable[Event]) -> None:
    for event in events:
        if isinstance(event, Failed):
            raise event.error


def _withdrawal_s(events: Iterable[Event]) -> float:
    return sum(event.duration_s or 0.0 for event in events if isinstance(event, Change))


# -- the vision encoder, which has no events of its own ---------------------------------------


@contextmanager
def watched_vision(model: Any) -> Iterator[Callable[[], float | None]]:
    """Time the vision encoder for as long as this lasts, by hooks that change nothing.

    What is yielded waits for the device and returns the seconds so far, None where no part of it
    has run. Its parts are summed up; what the model does between them (picking features out of the
    tower's output) is not in it.
    """
    spans: list[tuple[Clock, Mark, Mark]] = []

    def seconds() -> float | None:
        if not spans:
            return None
        return sum(clock.seconds(start, end) for clock, start, end in spans)

    with ExitStack() as stack:
        for part in vision_parts(model):
            _watch(part, model, spans, stack)
        yield seconds


def _watch(part: Any, model: Any, spans: list[tuple[Clock, Mark, Mark]], stack: ExitStack) -> None:
    first = next(part.parameters(), None)
    clock = Clock(model.device if first is None else first.device)
    started: list[Mark] = []

    def begin(*_: object) -> None:
        started.append(clock.mark())

    def end(*_: object) -> None:
        spans.append((clock, started.pop(), clock.mark()))

    stack.callback(part.register_forward_pre_hook(begin, prepend=True).remove)
    stack.callback(part.register_forward_hook(end).remove)


def vision_parts(model: Any) -> list[Any]:
    """List the outermost modules beside the language model and head: vision tower, projector."""
    decoder = model.get_decoder()
    known = {id(decoder), id(model.get_output_embeddings()), id(model.get_input_embeddings())}
    return list(_beside(model, decoder, known))


def _beside(module: Any, decoder: Any, known: set[int]) -> Iterator[Any]:
    for child in module.children():
        if id(child) in known:
            continue
        if any(inner is decoder for inner in child.modules()):
            yield from _beside(child, decoder, known)
        else:
            yield child
