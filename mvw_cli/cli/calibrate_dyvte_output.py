"""The folder of one `mvw calibrate dyvte`: gates, profile, report and pictures.

It adds no figure.
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
from mvw_cli.files import replacing, unwritable

if TYPE_CHECKING:
    from mvw_cli.calibrate.dyvte_report import Report
    from mvw_cli.policies.dyvte_gates import Gate
    from mvw_cli.profiles import Resolved

GATES, PROFILE, REPORT = "gates.safetensors", "profile.yaml", "report.json"
_HELP = "mvw calibrate dyvte --help"


def check_folder(folder: Path) -> None:
    """Make the folder, or refuse one that could not be written into later.

    Raises:
        UsageProblem: it can't be made or written into, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise unwritable(
            str(folder), "it is no folder", f"ls -l {shlex.quote(str(folder))}"
        ) from None
    except OSError as error:
        raise unwritable(str(folder), error.strerror or str(error), _HELP) from None
    if not os.access(folder, os.W_OK):
        raise unwritable(str(folder), "permission denied", f"ls -ld {shlex.quote(str(folder))}")


def deliver(
    report: Report,
    gates: Sequence[Gate],
    folder: Path,
    resolved: Resolved,
    *,
    as_json: bool,
) -> None:
    """Write all files, and the report to stdout.

    Raises:
        UsageProblem: a file can't be written, or the profile would extend itself.
    """
    from mvw_cli.calibrate.dyvte import about
    from mvw_cli.calibrate.dyvte_words import pictures, sections
    from mvw_cli.policies.dyvte_gates import write_gates
    from mvw_cli.profiling.derived_profile import write_derived
    from mvw_cli.profiling.render import text
    from mvw_cli.profiling.render.svg_file import svg_file

    document = json.dumps(asdict(report), indent=2, ensure_ascii=False)
    drawn = pictures(report)
    try:
        write_gates(gates, about(report), folder / GATES)
        with replacing(folder / REPORT) as file:
            file.write((document + "\n").encode())
        for picture in drawn:
            with replacing(folder / f"{picture.name}.svg") as file:
                file.write(svg_file(picture).encode())
    except OSError as error:
        raise unwritable(str(folder), error.strerror or str(error), "df -h .") from error
    write_derived(
        resolved.to_dict(),
        folder / PROFILE,
        withdrawal={"policy": "dyvte", "gates": os.path.abspath(folder / GATES)},
        description=f"dyvte, by mvw calibrate on {report.data['questions']} questions",
        reason=" ".join(report.verdict),
        hint=elsewhere(folder),
    )
    if as_json:
        console.write(document)
    else:
        text.show(f"Gates of dyvte for {report.model['name']}", sections(report), drawn)
    names = [GATES, PROFILE, REPORT, *(f"{picture.name}.svg" for picture in drawn)]
    console.note(f"wrote {folder}: {', '.join(names)}")


def check_no_cycle(resolved: Resolved, folder: Path) -> None:
    """Refuse, before any work, to write the profile over one that it extends.

    Raises:
        UsageProblem: it would extend itself.
    """
    from mvw_cli.profiling.derived_profile import check_no_part

    check_no_part(resolved.to_dict(), folder / PROFILE, elsewhere(folder))


def elsewhere(folder: Path) -> str:
    """Write a command that names another folder."""
    return shlex.join(["mvw", "calibrate", "dyvte", "--images", "DIR", "-o", f"{folder}-2"])
