"""`mvw doctor`: will this work here, and if not, what to do."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mvw_cli import console
from mvw_cli.cli.complete import profiles as complete_profiles
from mvw_cli.cli.options import common_options, json_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mvw_cli.doctor import Finding


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
@json_option
@common_options
def doctor(profile: str | None, pairs: tuple[str, ...], as_json: bool) -> int:
    """Check this machine and installation, and whether a profile's model will run here.

    One line for each check, with what to do about it. Nothing is downloaded, changed or loaded.

    \b
    Examples:
      mvw doctor
      mvw doctor --profile qwen2.5-vl-7b
      mvw doctor --profile qwen2.5-vl-7b --set dtype=float16 --json
    """
    from mvw_cli.cli.libraries import mute_libraries
    from mvw_cli.doctor import worst
    from mvw_cli.errors import ExitCode

    mute_libraries(progress=False)
    findings = list(_findings(profile, pairs))
    status = worst(findings)
    if as_json:
        listed = [asdict(finding) for finding in findings]
        console.write_json({"schema_version": 1, "status": status, "findings": listed})
    else:
        rows = [[one.check, one.status, one.found, one.advice or ""] for one in findings]
        console.table(["CHECK", "STATUS", "FOUND", "WHAT TO DO"], rows)
    return ExitCode.CHECKS_FAILED if status == "problem" else ExitCode.OK


def _findings(name: str | None, pairs: tuple[str, ...]) -> Iterator[Finding]:
    from mvw_cli import profiles
    from mvw_cli.doctor import check_machine, facts
    from mvw_cli.errors import MvwError
    from mvw_cli.plugins import load_plugins

    seen = facts.gather()
    yield from check_machine(seen, load_plugins().plugins)
    if name is None and not pairs:
        return
    from mvw_cli.doctor.model import check_model, refused

    try:
        resolved = profiles.resolve(name, profiles.parse_set(pairs))
    except MvwError as error:
        yield refused("profile", error)
        return
    yield from check_model(resolved, seen)
