"""Calibrating DyVTE: the steps from a loaded model to a report, in order.

Labels of all questions, the images parted in two, the training, and the figures on the images that
were held out. It does not know the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvw_cli.calibrate.dyvte.about import data_of
from mvw_cli.calibrate.dyvte.cost import Prefill, prefill
from mvw_cli.calibrate.dyvte.labelling import Along, label
from mvw_cli.calibrate.dyvte.parts import Parts
from mvw_cli.calibrate.dyvte.report import Report, decisions, evaluate, verdict
from mvw_cli.calibrate.dyvte.store import Store, Table
from mvw_cli.calibrate.dyvte.training import Progress, Training, train
from mvw_cli.environment import describe_environment
from mvw_cli.errors import MvwError, OutOfMemory, UsageProblem

if TYPE_CHECKING:
    from mvw_cli.bench.measure.job import ItemSpec
    from mvw_cli.calibrate.dyvte.gates import Gate
    from mvw_cli.profiles.resolution import Resolved
    from mvw_cli.session import Session

_LOOKS = 1
"""Version of what is stored of a question."""


@dataclass(frozen=True, slots=True)
class Known:
    """All questions labelled, and what is known of the model, which is needed no more."""

    table: Table
    model: dict[str, Any]
    device: str
    dtype: str
    cross_layers: tuple[int, ...]
    """Cross-attention layers."""
    costs: dict[str, Prefill] | None
    """By question; None where they can't be counted."""
    left_out: list[str]
    remarks: list[str]


def label_all(
    session: Session,
    resolved: Resolved,
    items: Sequence[ItemSpec],
    folder: Path,
    *,
    along: Along,
    together: int,
    progress: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> Known | None:
    """Label the questions that a folder does not hold yet; None where `stopping` said so.

    Raises:
        MvwError: as `Store` and `label`; or no question could be read.
    """
    profile = resolved.profile
    facts = session.facts()
    depends = profile.model_dump(
        exclude={"extends", "description", "withdrawal", "device", "device_map", "attention"}
    )
    wanted = {"looks": _LOOKS, **depends, **facts, "along": along}
    del wanted["device"], wanted["attention"]  # a move to another machine changes nothing
    store = Store(folder, wanted)
    try:
        with _enough("labelling"):
            done = label(
                session,
                items,
                store,
                along=along,
                cross_attention=profile.cross_attention,
                together=together,
                progress=progress,
                stopping=stopping,
            )
    finally:
        store.close()
    if not done.complete:
        return None
    if not done.keys:
        raise UsageProblem(
            "No question could be read",
            cause=done.left_out[0] if done.left_out else "there is none",
            hint="mvw calibrate dyvte --help",
        )
    from mvw_cli.engine.cross_attention import cross_attention_layers

    table = store.table(done.keys)
    remarks = [f"Left out: {reason}" for reason in done.left_out[:3]]
    costs, cross_layers = None, cross_attention_layers(session.loaded.model)
    try:
        costs = _costs(session, table, keep_mlp=profile.cross_attention == "mlp")
    except MvwError as error:
        remarks.append(f"FLOPs can't be counted: {error.message}")
    model = session.loaded.model
    dtype = str(model.dtype).removeprefix("torch.")
    return Known(
        table, facts, str(model.device), dtype, cross_layers, costs, done.left_out, remarks
    )


def trained(
    parts: Parts,
    training: Training,
    checkpoint: Path,
    *,
    device: str,
    dtype: str,
    progress: Progress,
    stopping: Callable[[], bool],
) -> list[Gate] | None:
    """Train the gates and round them as the file will hold them; None where `stopping` said so.

    Raises:
        OutOfMemory, UsageProblem: there is no room for the gates, or for the checkpoint.
    """
    import torch

    from mvw_cli.files import unwritable

    try:
        with _enough("training the gates"):
            gates = train(
                parts.table.features[parts.training],
                parts.labels[parts.training],
                training,
                checkpoint,
                device=device,
                progress=progress,
                stopping=stopping,
            )
    except OSError as error:
        cause = error.strerror or str(error)
        raise unwritable(str(checkpoint), cause, "df -h .") from error
    if gates is None:
        return None
    kind = getattr(torch, dtype)
    return [(one[0].to(kind), one[1].to(kind), one[2].to(kind)) for one in gates]


def figures(
    known: Known,
    parts: Parts,
    gates: Sequence[Gate],
    resolved: Resolved,
    *,
    settings: dict[str, Any],
    command: list[str],
    started: str,
    seconds: tuple[float, float],
) -> Report:
    """Judge the gates on the images that were held out.

    Args:
        seconds: of labelling and of training.
    """
    rows, table = parts.held_out, parts.table
    held_out = Table(
        tuple(table.entries[row] for row in rows),
        table.features[rows],
        table.agreement[rows],
        table.loss[rows],
        table.full_loss[rows],
    )
    said = decisions(gates, held_out.features.to(known.device)).cpu()
    costs = None if known.costs is None else [known.costs[one.key] for one in held_out.entries]
    found = evaluate(
        said,
        held_out,
        parts.labels[rows],
        parts.labels[parts.training],
        costs,
        cross_layers=known.cross_layers,
    )
    return Report(
        environment=describe_environment(known.device),
        model={
            **known.model,
            "layers": table.features.shape[1] + 1,
            "hidden_size": table.features.shape[2] // 2,
        },
        profile=resolved.to_dict(),
        settings=settings,
        data=data_of(parts, len(known.left_out)),
        found=found,
        verdict=verdict(found, len(rows)),
        command=command,
        started=started,
        labelling_s=seconds[0],
        training_s=seconds[1],
        remarks=known.remarks,
    )


@contextmanager
def _enough(doing: str) -> Iterator[None]:
    """Turn a lack of memory into an error with a way out."""
    from mvw_cli.engine.memory import ran_out

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(
            f"out of memory while {doing}",
            cause=next(iter(str(error).splitlines()), "") or "the machine has no more to give",
            hint="mvw calibrate dyvte --slots 1 --device cpu --dtype bfloat16",
        ) from error


def _costs(session: Session, table: Table, *, keep_mlp: bool) -> dict[str, Prefill]:
    from mvw_cli.cost.flops import flops_of

    flops = flops_of(session.adapter, session.loaded.model.config)
    return {
        entry.key: prefill(flops, entry.text_tokens, entry.vision_tokens, keep_mlp=keep_mlp)
        for entry in table.entries
    }
