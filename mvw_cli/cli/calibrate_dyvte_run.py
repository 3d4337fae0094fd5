"""One `mvw calibrate dyvte` from the command line to its folder.

Labels, then the training, then the figures. Whatever has been done is on disk when it is
interrupted, and is not done again.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from mvw_cli.cli.calibrate_dyvte_output import check_folder, check_no_cycle, deliver
from mvw_cli.cli.interrupt import Wish, finishing_first, leaving_at_once
from mvw_cli.cli.libraries import mute_libraries
from mvw_cli.cli.profile_view import ProfileView
from mvw_cli.errors import ExitCode, UsageProblem

if TYPE_CHECKING:
    from mvw_cli.batch.items import Item
    from mvw_cli.calibrate.dyvte import Begun
    from mvw_cli.calibrate.dyvte_labelling import Along
    from mvw_cli.calibrate.dyvte_report import Report
    from mvw_cli.policies.dyvte_gates import Gate
    from mvw_cli.profiles import Resolved


@dataclass(frozen=True, slots=True)
class Task:
    """What the command line asks for."""

    words: tuple[str, ...]
    profile: str | None
    flags: Mapping[str, object]
    folder: str | None
    questions: str | None
    question: str | None
    limit: int | None
    output: str
    along: Along
    agreement: float
    loss_ratio: float
    lr: float
    epochs: int
    batch: int
    held_out: float
    gate_dtype: str
    slots: int
    allow_pickle: bool
    as_json: bool


def run(task: Task) -> int:
    """Train, deliver, and return the exit code.

    Raises:
        MvwError: something is missing or wrong; what was done is on disk.
    """
    view = ProfileView()
    with leaving_at_once(view.last_words):
        if (task.folder is None) == (task.questions is None):
            raise UsageProblem(
                "Give --images DIR or --questions FILE",
                cause="images come from one place",
                hint="mvw calibrate dyvte --help",
            )
        folder = Path(task.output)
        check_folder(folder)
        view.progress("Preparing …")
        mute_libraries(progress=False)
        from mvw_cli.profiles import resolve

        resolved = resolve(task.profile, task.flags)
        check_no_cycle(resolved, folder)
        items = _items(task, resolved)
    with finishing_first(view.last_words) as wish:
        found = _calibrated(task, resolved, items, view, wish)
    view.done()
    if found is None:
        view.note(
            f"Interrupted: {shlex.join(['mvw', 'calibrate', *task.words])} goes on from here."
        )
        return ExitCode.INTERRUPTED
    report, gates = found
    deliver(report, gates, folder, resolved, as_json=task.as_json)
    return ExitCode.OK


def _items(task: Task, resolved: Resolved) -> list[Item]:
    from mvw_cli.batch.sources import Source
    from mvw_cli.calibrate.dyvte_labelling import questions

    question = task.question or resolved.profile.prompt.question
    paths = () if task.folder is None else (task.folder,)
    source = Source(paths, question=question, questions=task.questions)
    return questions(source, task.limit, task.along)


def _calibrated(
    task: Task, resolved: Resolved, items: list[Item], view: ProfileView, wish: Wish
) -> tuple[Report, list[Gate]] | None:
    """Do the work; None where the user would not wait for its end."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    clock = perf_counter()
    begun = _labelled(task, resolved, items, view, wish)
    if begun is None:
        return None
    labelling_s = perf_counter() - clock
    from mvw_cli.calibrate.dyvte import figures, trained
    from mvw_cli.calibrate.dyvte_parts import split
    from mvw_cli.calibrate.dyvte_training import Training

    training = Training(task.lr, task.epochs, task.batch, resolved.profile.generation.seed)
    parts = split(begun.table, task.held_out, training.seed, task.agreement, task.loss_ratio)
    view.stage(f"Training on {len(parts.training)} questions")
    clock = perf_counter()
    gates = trained(
        parts,
        training,
        Path(task.output) / "work" / "training.safetensors",
        device=begun.device,
        dtype=begun.dtype if task.gate_dtype == "model" else task.gate_dtype,
        progress=lambda done, total, loss: view.progress(
            f"Training: loss {loss:.3f}, batch", done, total
        ),
        stopping=lambda: wish.to_finish,
    )
    if gates is None:
        return None
    report = figures(
        begun,
        parts,
        gates,
        resolved,
        settings={
            "along": task.along,
            "agreement": task.agreement,
            "loss_ratio": task.loss_ratio,
            "lr": task.lr,
            "epochs": task.epochs,
            "batch": task.batch,
            "held_out": task.held_out,
            "seed": training.seed,
            "gate_dtype": str(gates[0][0].dtype).removeprefix("torch."),
        },
        command=["mvw", "calibrate", *task.words],
        started=started,
        seconds=(labelling_s, perf_counter() - clock),
    )
    return report, gates


def _labelled(
    task: Task, resolved: Resolved, items: list[Item], view: ProfileView, wish: Wish
) -> Begun | None:
    """Load the model and label all questions; the model is gone when this returns."""
    from mvw_cli.calibrate.dyvte import label_all
    from mvw_cli.session import open_session

    profile = resolved.profile
    view.done()
    view.loading(profile.model or profile.adapter)
    with view.making_room():
        session = open_session(profile, slots=task.slots, allow_pickle=task.allow_pickle)
    view.loaded()
    view.stage(f"Labelling {len(items)} questions")
    return label_all(
        session,
        resolved,
        items,
        Path(task.output) / "work",
        along=task.along,
        together=task.slots,
        progress=lambda done, total: view.progress("Labelling: question", done, total),
        stopping=lambda: wish.to_finish,
    )
