"""`mvw doctor`: will this work here, and if not, what to do."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any

import click

from mvw_cli import console
from mvw_cli.cli.options import common_options, complete_profiles, json_option

if TYPE_CHECKING:
    from mvw_cli.doctor.findings import Finding
    from mvw_cli.oracle.equivalence import Equivalence

_COMPARISONS = {"equivalence": "equivalence", "equivalence_flash": "equivalence, flash"}
"""Keys of the document, and the checks whose figures they have."""


@click.command()
@click.option(
    "--profile",
    metavar="NAME|FILE",
    shell_complete=complete_profiles,
    help="Check the model of this profile, too.",
)
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="With --profile: give a key a value, as in dtype=float16.  [repeatable]",
)
@click.option(
    "--equivalence",
    is_flag=True,
    help="Run the engine against its oracle here, on the adapter's tiny model.",
)
@json_option
@common_options
def doctor(profile: str | None, pairs: tuple[str, ...], equivalence: bool, as_json: bool) -> int:
    """Check this machine and installation, and whether a profile's model will run here.

    One line for each check, with what to do about it. Nothing is downloaded or changed, and no
    weights are read. --equivalence compares the engine, token by token, with one full forward pass
    in which the vision is masked, with the attention kernel of the profile.

    \b
    Examples:
      mvw doctor
      mvw doctor --profile qwen2.5-vl-7b
      mvw doctor --profile qwen2.5-vl-7b --set dtype=float16 --json
      mvw doctor --profile llava-cot --equivalence
    """
    from mvw_cli.cli.process import mute_libraries
    from mvw_cli.errors import ExitCode

    mute_libraries()
    findings, compared = _findings(profile, pairs, equivalence)
    statuses = {finding.status for finding in findings}
    status = next(one for one in ("problem", "warning", "ok") if one in statuses)
    if as_json:
        document = {
            "schema_version": 1,
            "status": status,
            "findings": [asdict(finding) for finding in findings],
            **{key: _figures(compared.get(check)) for key, check in _COMPARISONS.items()},
        }
        console.write_json(document)
    else:
        rows = [[one.check, one.status, one.found, one.advice or ""] for one in findings]
        console.table(["CHECK", "STATUS", "FOUND", "WHAT TO DO"], rows)
    return ExitCode.CHECKS_FAILED if status == "problem" else ExitCode.OK


def _findings(
    name: str | None, pairs: tuple[str, ...], with_equivalence: bool
) -> tuple[list[Finding], dict[str, Equivalence | None]]:
    """Collect what the checks found, and by the check the figures of the comparisons."""
    from mvw_cli.doctor.findings import refused
    from mvw_cli.doctor.installation import check_installation
    from mvw_cli.doctor.profile import check_model
    from mvw_cli.errors import MvwError
    from mvw_cli.machine import facts
    from mvw_cli.plugins import load_plugins
    from mvw_cli.profiles.resolution import parse_set, resolve

    seen = facts.gather()
    findings = [*check_installation(seen, load_plugins().plugins)]
    chosen = name is not None or bool(pairs)
    if not (chosen or with_equivalence):
        return findings, {}
    try:
        resolved = resolve(name, parse_set(pairs))
    except MvwError as error:
        return [*findings, refused("profile", error)], {}
    findings += check_model(resolved, seen) if chosen else ()
    if not with_equivalence:
        return findings, {}
    from mvw_cli.doctor.exactness import check_exactness

    compared = check_exactness(resolved, seen)
    findings += [finding for finding, _ in compared]
    return findings, {finding.check: figures for finding, figures in compared}


def _figures(figures: Equivalence | None) -> dict[str, Any] | None:
    """Serialise; what is no number, as a broken kernel may give, is null in JSON."""
    if figures is None:
        return None
    return {
        key: None if isinstance(value, float) and not isfinite(value) else value
        for key, value in asdict(figures).items()
    }
