"""One question from the command line to its answer.

Puts the parts together: flags to profile, files to images, events to stderr, result to stdout.
What can be wrong cheaply is found out before the model is loaded.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from mvw_cli.adapter import Answer
from mvw_cli.cli.destination import check_destination, deliver
from mvw_cli.cli.infer.explain import check_page, explained, page_of, write_page
from mvw_cli.cli.infer.retry import retry
from mvw_cli.cli.infer.view import View
from mvw_cli.cli.interrupt import exit_on_interrupt
from mvw_cli.cli.libraries import mute_libraries
from mvw_cli.cli.loading_line import progress
from mvw_cli.engine.completion import Completion, summarise
from mvw_cli.errors import UsageProblem
from mvw_cli.profiles.store import DEFAULT

if TYPE_CHECKING:
    from mvw_cli.images.reading import ImageFile
    from mvw_cli.profiles.resolution import Resolved
    from mvw_cli.session import Session


@dataclass(frozen=True, slots=True)
class Task:
    """What the command line asks for."""

    images: tuple[str, ...]
    question: str
    profile: str | None
    flags: Mapping[str, object]
    show_reasoning: bool | None
    allow_pickle: bool
    random_weights: bool
    as_json: bool
    output: str | None
    explain: str | None
    verbose: bool


@dataclass(slots=True)
class _Phases:
    """Milliseconds from one mark to the next."""

    ms: dict[str, float] = field(default_factory=dict)
    _start: float = field(default_factory=perf_counter)
    _last: float = field(default_factory=perf_counter)

    def mark(self, name: str) -> None:
        now = perf_counter()
        self.ms[name] = (now - self._last) * 1e3
        self._last = now

    def total(self) -> None:
        self.ms["total_ms"] = (perf_counter() - self._start) * 1e3


def run(task: Task) -> None:
    """Answer the question and deliver the answer.

    Raises:
        MvwError: anything that a user can do something about.
    """
    _check(task)
    view = View(show_text=task.show_reasoning, ticking=not task.verbose)
    with exit_on_interrupt(view.on_interrupt), view.making_room():
        try:
            result, page = _answer(task, view)
        finally:
            view.loaded()
    deliver(result, task.output)
    if task.explain is not None:
        write_page(page, task.explain)
        view.note(f"wrote {task.explain}")


def _answer(task: Task, view: View) -> tuple[str, str]:
    """Run the model; return what goes to stdout, and the page that explains it, if asked for."""
    phases = _Phases()
    view.loading(_first_name(task))
    # pydantic, Pillow and PyTorch come after the first sign of life, each where it is needed.
    from mvw_cli.profiles.resolution import resolve

    resolved = resolve(task.profile, task.flags)
    if task.verbose:
        _explain(resolved, view)
    else:
        mute_libraries(progress=False)
    if view.live and resolved.profile.model is not None:
        view.loading_tells(progress(resolved.profile.model, resolved.profile.revision))
    phases.mark("profile_ms")
    images = _images(task.images, resolved.profile.images.max_pixels)
    phases.mark("image_ms")
    if resolved.is_default:
        view.note(
            f"No profile or model is named: the embedded `{DEFAULT}` answers, which reads only "
            "scenes of coloured shapes. A real one: --model ORG/NAME or --profile NAME."
        )
    session = _open(resolved, task)
    phases.mark("load_ms")
    view.loaded()
    pictures = [file.image for file in images]
    remarks = list(session.adapter.remarks(session.loaded, pictures, task.question))
    if task.random_weights:
        remarks.insert(0, "The weights are random: this answer is noise. Time and memory are real.")
    for remark in remarks:
        view.warn(remark)
    request = session.request(pictures, task.question)
    record = None
    if task.explain is not None:
        request, record = explained(request)
    phases.mark("preprocess_ms")
    events = []
    for event in session.run([request]):
        events.append(event)
        view.show(event)
    phases.total()
    completion = summarise(events)
    answer = session.adapter.parse(completion.text)
    _comment(completion, answer, view)
    if task.verbose:
        view.note(", ".join(f"{name[:-3]} {ms:.0f} ms" for name, ms in phases.ms.items()))
    view.figures(completion, session.policy.describe())
    page = ""
    if record is not None:
        page = page_of(task.question, resolved, images, session, request, record, events, answer)
    if not task.as_json:
        return answer.answer, page
    told = _document(task, resolved, images, session, completion, answer, remarks, phases.ms)
    return told, page


def _check(task: Task) -> None:
    if not task.question.strip():
        raise UsageProblem(
            "the question is empty",
            cause="a model needs to be asked something",
            hint=f'mvw infer {shlex.quote(task.images[0])} "What is in the picture?"',
        )
    try:
        task.question.encode()
    except UnicodeEncodeError:
        raise UsageProblem(
            "the question is not valid UTF-8",
            cause="it holds bytes that are no characters",
            hint="mvw infer --help",
        ) from None
    if task.images.count("-") > 1:
        raise UsageProblem(
            "standard input holds one image",
            cause="- is given more than once",
            hint="mvw infer --help",
        )
    for option, written in (("-o", task.output), ("--explain", task.explain)):
        if written and any(_same(path, written) for path in task.images if path != "-"):
            raise UsageProblem(
                f"{option} {written} would overwrite the image",
                cause="input and output are the same file",
                hint="mvw infer --help",
            )
    check_destination(task.output)
    check_page(task.explain, task.output)


def _same(one: str, other: str) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def _first_name(task: Task) -> str:
    """A name for the loading line, which comes before the profile has been read."""
    named = task.flags.get("model") or task.profile or task.flags.get("adapter")
    return str(named or os.environ.get("MVW_PROFILE") or DEFAULT)


def _images(paths: Sequence[str], max_pixels: int | None) -> list[ImageFile]:
    from mvw_cli.images.reading import open_image

    return [open_image(_stdin() if path == "-" else path, max_pixels=max_pixels) for path in paths]


def _stdin() -> bytes:
    from mvw_cli.images.problems import FILE_LIMIT

    if sys.stdin is None or sys.stdin.isatty():
        raise UsageProblem(
            "IMAGE is -, and nothing is piped into standard input",
            cause="it is a terminal" if sys.stdin else "it is closed",
            hint='mvw infer scene.png "What is in the picture?"',
        )
    return sys.stdin.buffer.read(FILE_LIMIT + 1)


def _open(resolved: Resolved, task: Task) -> Session:
    from mvw_cli.machine.fit import DoesNotFit
    from mvw_cli.session import open_session

    try:
        return open_session(
            resolved.profile,
            policy=resolved.policy,
            allow_pickle=task.allow_pickle,
            random_weights=task.random_weights,
        )
    except DoesNotFit as error:
        error.retried(partial(retry, task))
        raise


def _explain(resolved: Resolved, view: View) -> None:
    view.note(f"profile {resolved.name or '(none)'}")
    for key, value, origin in resolved.rows():
        view.note(f"  {key} = {value!r}  ({origin})")


def _comment(completion: Completion, answer: Answer, view: View) -> None:
    """Say what the user would otherwise wonder about."""
    if completion.finish_reason == "length":
        limit = completion.generated_tokens
        view.warn(f"The text was cut at {limit} tokens: --max-new-tokens {2 * limit} allows more.")
    if not answer.answer:
        view.warn("The text holds no answer: --show-reasoning shows what was written.")


def _document(
    task: Task,
    resolved: Resolved,
    images: Sequence[ImageFile],
    session: Session,
    completion: Completion,
    answer: Answer,
    remarks: Sequence[str],
    phases_ms: dict[str, float],
) -> str:
    from mvw_cli.cli.infer.document import document
    from mvw_cli.environment import describe_environment

    model = session.facts()
    return document(
        question=task.question,
        images=images,
        answer=answer,
        completion=completion,
        remarks=remarks,
        phases_ms=phases_ms,
        model=model,
        profile=resolved.to_dict(),
        environment=describe_environment(model["device"]),
    )
