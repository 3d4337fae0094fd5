"""One question from the command line to its answer.

Puts the parts together: flags to profile, files to images, events to stderr, result to stdout.
What can be wrong cheaply is found out before the model is loaded.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mvw_cli.cli.infer.view import View
from mvw_cli.cli.process import exit_on_interrupt, mute_libraries
from mvw_cli.console import deliver
from mvw_cli.engine.types import Completion, summarise
from mvw_cli.environment import describe_environment
from mvw_cli.errors import UsageProblem
from mvw_cli.files import check_not_input, check_writable, free_name
from mvw_cli.profiles.store import DEFAULT
from mvw_cli.text import as_unicode, check_paths, escaped, is_unicode

if TYPE_CHECKING:
    from mvw_cli.adapter import Answer
    from mvw_cli.images.reading import ImageFile
    from mvw_cli.profiles.schema import Images

SCHEMA_VERSION = 1
"""Of the JSON document, whose keys carry their units and are a promise."""


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


class _Phases:
    """Milliseconds from one mark to the next."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._start = perf_counter()

    def mark(self, name: str) -> None:
        self.ms[name] = self.total_ms() - sum(self.ms.values())

    def total_ms(self) -> float:
        return (perf_counter() - self._start) * 1e3


def run(task: Task) -> None:
    """Answer the question and deliver the answer.

    Raises:
        MvwError: anything that a user can do something about.
    """
    _check(task)
    view = View(show_text=task.show_reasoning, ticking=not task.verbose)
    with exit_on_interrupt(view.on_interrupt), view.making_room():
        result, page = _answer(task, view)
    deliver(result, task.output)
    if task.explain is not None:
        deliver(page, task.explain, or_print=False)
        view.note(f"wrote {task.explain}")


def _answer(task: Task, view: View) -> tuple[str, str]:
    """Run the model; return what goes to stdout, and the page that explains it, if asked for."""
    phases = _Phases()
    view.loading(_first_name(task))
    # pydantic, Pillow and PyTorch come after the first sign of life, each where it is needed.
    from mvw_cli.profiles.resolution import resolve

    resolved = resolve(task.profile, task.flags)
    if task.output is not None or task.explain is not None:
        from mvw_cli.batch.store.fingerprint import files_of

        check_not_input((task.output, task.explain), chain(task.images, files_of(resolved)))
    if task.verbose:
        view.note(f"profile {resolved.name or '(none)'}")
        for key, value, origin in resolved.rows():
            view.note(f"  {key} = {value!r}  ({origin})")
    else:
        mute_libraries()
    if resolved.profile.model is not None:
        view.loading_model(resolved.profile.model, resolved.profile.revision)
    phases.mark("profile_ms")
    images = _images(task.images, resolved.profile.images)
    phases.mark("image_ms")
    if resolved.is_default:
        view.note_embedded()
    from mvw_cli.session import open_session

    session = open_session(
        resolved.profile,
        policy=resolved.policy,
        allow_pickle=task.allow_pickle,
        random_weights=task.random_weights,
        looking_inside=task.explain is not None,
    )
    phases.mark("load_ms")
    view.clear()
    if session.chosen:
        view.note(session.chosen)
    pictures = [file.image for file in images]
    request = session.request(pictures, task.question)
    remarks = [file.remark for file in images if file.remark]
    remarks += session.remarks(pictures, task.question, request)
    if task.random_weights:
        remarks.insert(0, "The weights are random: this answer is noise. Time and memory are real.")
    for remark in remarks:
        view.warn(remark)
    record = None
    if task.explain is not None:
        from mvw_cli.explain.record import recorded

        request, record = recorded(request)
    phases.mark("preprocess_ms")
    events = []
    for event in session.run([request]):
        events.append(event)
        view.show(event)
    total_ms = phases.total_ms()
    completion = summarise(events)
    answer = session.parse(completion.text)
    _comment(completion, answer, view, may_be_longer=request.settings == session.settings)
    if task.verbose:
        spent = {**phases.ms, "total_ms": total_ms}
        view.note(", ".join(f"{name[:-3]} {ms:.0f} ms" for name, ms in spent.items()))
    view.figures(completion, session.policy.describe())
    page = ""
    if record is not None:
        from mvw_cli.cli.infer.explain import page_of

        page = page_of(task.question, resolved, images, session, request, record, events, answer)
    if not task.as_json:
        return answer.answer, page
    model = session.facts()
    document = {
        "schema_version": SCHEMA_VERSION,
        "question": task.question,
        "images": [_image(image) for image in images],
        "answer": answer.answer,
        "reasoning": answer.reasoning,
        "stages": dict(answer.stages),
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "vision_tokens": completion.vision_tokens,
        "generated_tokens": completion.generated_tokens,
        "withdrawal": None if completion.withdrawal is None else asdict(completion.withdrawal),
        "vision": asdict(completion.vision),
        "timings": {**phases.ms, **asdict(completion.timings), "total_ms": total_ms},
        "memory": {
            "kv_bytes_prefill": completion.kv_bytes_prefill,
            "kv_bytes_end": completion.kv_bytes_end,
            "kv_allocated_bytes_end": completion.kv_allocated_bytes_end,
        },
        "remarks": remarks,
        "model": model,
        "profile": resolved.to_dict(),
        "environment": asdict(describe_environment(model["device"])),
    }
    written = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    return escaped(written), page


def _image(file: ImageFile) -> dict[str, Any]:
    return {
        # A file name that is not UTF-8 must not make the document invalid.
        "path": as_unicode(file.path),
        "sha256": file.sha256,
        "width_px": file.size[0],
        "height_px": file.size[1],
        "original_width_px": file.original_size[0],
        "original_height_px": file.original_size[1],
    }


def _check(task: Task) -> None:
    check_paths(task.images)
    if not task.question.strip():
        raise UsageProblem(
            "the question is empty",
            cause="a model needs to be asked something",
            hint=f'mvw infer {shlex.quote(task.images[0])} "What is in the picture?"',
        )
    if not is_unicode(task.question):
        raise UsageProblem(
            "the question is not valid UTF-8",
            cause="it holds bytes that are no characters",
            hint="mvw infer --help",
        )
    if task.images.count("-") > 1:
        raise UsageProblem(
            "standard input holds one image",
            cause="- is given more than once",
            hint="mvw infer --help",
        )
    answer_to = os.path.realpath(task.output or "-")
    if task.explain is not None and os.path.realpath(task.explain) == answer_to:
        raise UsageProblem(
            f"--explain can't write to {task.explain}",
            cause="the answer goes there",
            hint=f"mvw infer IMAGE QUESTION --explain {free_name('looked.html')}",
        )
    for written in (task.output, task.explain):
        if written is not None and written != "-":
            check_writable(written)


def _first_name(task: Task) -> str:
    """Return a name for the loading line, which comes before the profile has been read."""
    named = task.flags.get("model") or task.profile or task.flags.get("adapter")
    return str(named or os.environ.get("MVW_PROFILE") or DEFAULT)


def _images(paths: Sequence[str], limits: Images) -> list[ImageFile]:
    from mvw_cli.images.problems import FILE_LIMIT
    from mvw_cli.images.reading import open_image

    if "-" in paths and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageProblem(
            "IMAGE is -, and nothing is piped into standard input",
            cause="it is a terminal" if sys.stdin else "it is closed",
            hint='mvw infer scene.png "What is in the picture?"',
        )
    sources = (sys.stdin.buffer.read(FILE_LIMIT + 1) if path == "-" else path for path in paths)
    most, limit = limits.max_pixels, limits.max_decoded_pixels
    return [open_image(source, max_pixels=most, max_decoded_pixels=limit) for source in sources]


def _comment(completion: Completion, answer: Answer, view: View, *, may_be_longer: bool) -> None:
    """Note what the user would otherwise wonder about."""
    if completion.finish_reason == "length" and may_be_longer:
        limit = completion.generated_tokens
        view.warn(f"The text was cut at {limit} tokens: --max-new-tokens {2 * limit} allows more.")
    if not answer.answer:
        view.warn("The text holds no answer: --show-reasoning shows what was written.")
