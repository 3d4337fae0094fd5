"""The files of one `mvw calibrate dyvte`: gates, profile, report and pictures. No figure is added.

All lie beside the profile: `dyvte.yaml` has `dyvte.safetensors`, and `dyvte.work` to go on from.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mvw_cli import console
from mvw_cli.cli.calibrate.output import draw
from mvw_cli.cli.calibrate.task import Task
from mvw_cli.cli.destination import deliver
from mvw_cli.files import unwritable

if TYPE_CHECKING:
    from mvw_cli.calibrate.dyvte.gates import Gate
    from mvw_cli.calibrate.dyvte.report import Report

GATES, REPORT, WORK = ".safetensors", ".report.json", ".work"


def deliver_gates(task: Task, report: Report, gates: Sequence[Gate]) -> None:
    """Write everything; files first.

    Raises:
        MvwError: a file can't be written.
    """
    from mvw_cli.bench.verdict.derived_profile import write_derived
    from mvw_cli.calibrate.dyvte.about import about
    from mvw_cli.calibrate.dyvte.gates import write_gates
    from mvw_cli.calibrate.dyvte.words import pictures, sections
    from mvw_cli.render.terminal import show

    path = task.beside(GATES)
    try:
        write_gates(gates, about(report), Path(os.path.realpath(path)))
    except OSError as error:
        raise unwritable(str(path), error.strerror or str(error), "df -h .") from error
    document = json.dumps(asdict(report), indent=2, ensure_ascii=False)
    deliver(document, str(task.beside(REPORT)))
    drawn = pictures(report)
    written = [task.output, str(path), str(task.beside(REPORT))]
    for picture in drawn:
        written += draw(task, picture)
    write_derived(
        report.profile,
        Path(task.output),
        withdrawal={"policy": "dyvte", "gates": os.path.abspath(path)},
        description=f"dyvte, by mvw calibrate on {report.data['questions']} questions",
        reason=" ".join([f"Found by: {shlex.join(report.command)}.", *report.verdict]),
        hint="mvw calibrate dyvte -o other.yaml",
    )
    if task.as_json:
        console.write(document)
    else:
        show("mvw calibrate dyvte", sections(report))
    for name in written:
        console.note(f"wrote {name}")
    for remark in report.remarks:
        console.warn(remark)
