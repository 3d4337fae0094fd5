"""One `mvw calibrate dyvte` from the command line to its files.

Labels, then the training, then the figures. Whatever has been done is on disk when it is
interrupted, and is not done again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING

from mvw_cli.cli.calibrate.dyvte_output import GATES, WORK, deliver_gates
from mvw_cli.cli.calibrate.task import Begun, Task, begin
from mvw_cli.cli.process import ShutdownRequest, exit_on_interrupt, finish_on_interrupt
from mvw_cli.cli.profile.view import ProfileView
from mvw_cli.errors import ExitCode, UsageProblem
from mvw_cli.files import check_writable
from mvw_cli.text import plural

if TYPE_CHECKING:
    from mvw_cli.calibrate.dyvte.gates import Gate
    from mvw_cli.calibrate.dyvte.labelling import Along
    from mvw_cli.calibrate.dyvte.report import Report
    from mvw_cli.calibrate.dyvte.search import Known


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asks for, apart from what every search is asked for."""

    along: Along
    agreement: float
    loss_ratio: float
    lr: float
    epochs: int
    batch: int
    held_out: float
    gate_dtype: str
    slots: int


def run(task: Task, settings: Settings) -> int:
    """Train, deliver, and return the exit code.

    Raises:
        MvwError: something is missing or wrong; what was done is on disk.
    """
    view = ProfileView()
    check_writable(str(task.beside(GATES)), task.help)
    with TemporaryDirectory(prefix="mvw-calibrate-") as scratch:
        with exit_on_interrupt(view.on_interrupt):
            view.progress("Preparing …")
            begun = begin(task, Path(scratch))
            _check(begun, settings)
        with finish_on_interrupt(view.on_interrupt) as shutdown:
            try:
                found = _calibrated(task, settings, begun, view, shutdown)
            finally:
                view.done()
    if found is None:
        view.note("Interrupted: the same command goes on from here.")
        return ExitCode.INTERRUPTED
    report, gates = found
    deliver_gates(task, report, gates)
    return ExitCode.ITEMS_FAILED if report.data["left_out"] else ExitCode.OK


def _check(begun: Begun, settings: Settings) -> None:
    """Refuse to follow references where there are none.

    Raises:
        UsageProblem: an item has none.
    """
    for item in begun.items.items if settings.along == "reference" else ():
        if not item.reference:
            raise UsageProblem(
                f"{', '.join(item.images)} has no reference answer",
                cause="--along reference follows the answers of the questions file",
                hint="mvw calibrate dyvte --along own",
            )


def _calibrated(
    task: Task, settings: Settings, begun: Begun, view: ProfileView, shutdown: ShutdownRequest
) -> tuple[Report, list[Gate]] | None:
    """Do the work; None where the user would not wait for its end."""
    clock = perf_counter()
    known = _labelled(task, settings, begun, view, shutdown)
    if known is None:
        return None
    labelling_s = perf_counter() - clock
    from mvw_cli.calibrate.dyvte.parts import split
    from mvw_cli.calibrate.dyvte.search import figures, trained
    from mvw_cli.calibrate.dyvte.training import Training

    training = Training(settings.lr, settings.epochs, settings.batch, task.seed)
    parts = split(
        known.table, settings.held_out, task.seed, settings.agreement, settings.loss_ratio
    )
    view.stage(f"Training on {len(parts.training)} questions")
    clock = perf_counter()
    gates = trained(
        parts,
        training,
        task.beside(WORK) / "training.safetensors",
        device=known.device,
        dtype=known.dtype if settings.gate_dtype == "model" else settings.gate_dtype,
        progress=lambda done, total, loss: view.progress(
            f"Training: loss {loss:.3f}, batch", done, total
        ),
        stopping=lambda: shutdown.requested,
    )
    if gates is None:
        return None
    held = str(gates[0][0].dtype).removeprefix("torch.")
    report = figures(
        known,
        parts,
        gates,
        begun.resolved,
        settings={**asdict(settings), "gate_dtype": held, "seed": task.seed},
        command=task.command,
        started=begun.started,
        seconds=(labelling_s, perf_counter() - clock),
    )
    return report, gates


def _labelled(
    task: Task, settings: Settings, begun: Begun, view: ProfileView, shutdown: ShutdownRequest
) -> Known | None:
    """Load the model and label all questions; the model is gone when this returns."""
    from mvw_cli.calibrate.dyvte.search import label_all
    from mvw_cli.session import open_session

    profile, items = begun.resolved.profile, begun.items.items
    view.stage(f"Loading {profile.model or profile.adapter}")
    session = open_session(profile, slots=settings.slots, allow_pickle=task.allow_pickle)
    view.stage(f"Labelling {plural(len(items), 'question')}")
    return label_all(
        session,
        begun.resolved,
        items,
        task.beside(WORK),
        along=settings.along,
        together=settings.slots,
        progress=lambda done, total: view.progress("Labelling: question", done, total),
        stopping=lambda: shutdown.requested,
    )
