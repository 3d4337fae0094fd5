"""`mvw doctor`: will this work here, and if not, what to do."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import isfinite
from typing import Any

import click

from mvw_cli import console
from mvw_cli.cli.options import (
    ARGUMENTS,
    Remembering,
    common_options,
    complete_profiles,
    json_option,
)


@click.command(cls=Remembering)
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
    "--engine",
    metavar="mvw|vllm|auto",
    help="Check vLLM, too, where it is to run the model.",
)
@click.option(
    "--equivalence",
    is_flag=True,
    help="Run the engine against its oracle here, on the adapter's tiny model.",
)
@json_option
@common_options
@click.pass_context
def doctor(
    context: click.Context,
    profile: str | None,
    pairs: tuple[str, ...],
    engine: str | None,
    equivalence: bool,
    as_json: bool,
) -> int:
    """Check this machine and installation, and whether a profile's model will run here.

    One line for each check, with what to do about it. Nothing is downloaded or changed, and no
    weights are read. --equivalence compares the engine, token by token, with one full forward pass
    in which the vision is masked, with the attention kernel of the profile. With --engine vllm it
    starts vLLM on a small checkpoint, and compares that.

    \b
    Examples:
      mvw doctor
      mvw doctor --profile qwen2.5-vl-7b
      mvw doctor --profile qwen2.5-vl-7b --set dtype=float16 --json
      mvw doctor --profile llava-cot --equivalence
      mvw doctor --engine vllm --equivalence
    """
    from mvw_cli.cli.command_line import as_typed
    from mvw_cli.cli.process import mute_libraries
    from mvw_cli.doctor.findings import refused
    from mvw_cli.doctor.installation import check_installation
    from mvw_cli.doctor.profile import check_model
    from mvw_cli.errors import ExitCode, MvwError, UsageProblem
    from mvw_cli.machine import facts
    from mvw_cli.plugins import load_plugins
    from mvw_cli.profiles.resolution import parse_set, resolve

    mute_libraries()
    seen = facts.gather()
    findings = [*check_installation(seen, load_plugins().plugins)]
    figures: dict[str, dict[str, Any] | None] = {}
    try:
        chosen = profile is not None or bool(pairs)
        given: dict[str, object] = {**parse_set(pairs)}
        if engine is not None:
            if "engine" in given:
                raise UsageProblem(
                    "--set engine and --engine contradict each other",
                    cause="give one of them",
                    hint="mvw doctor --help",
                )
            given["engine"] = engine
        resolved = resolve(profile, given) if chosen or equivalence or engine else None
        if resolved is not None and chosen:
            findings += check_model(resolved, seen)
        if resolved is not None and resolved.profile.engine != "mvw":
            from mvw_cli.doctor.vllm import check_vllm  # imports torch

            findings += check_vllm(resolved, seen, with_model=chosen)
        if resolved is not None and equivalence:
            # PyTorch may be broken here, and the other checks have to say so.
            from mvw_cli.doctor.exactness import check_exactness

            for finding, compared in check_exactness(resolved, seen):
                findings.append(finding)
                figures[finding.check] = None if compared is None else _finite(asdict(compared))
    except MvwError as error:
        findings.append(refused("profile", error))
    words, root = ["doctor", *context.meta[ARGUMENTS]], context.find_root().command
    assert isinstance(root, click.Group)
    findings = [
        replace(one, advice=one.advice and as_typed(one.advice, words, root)) for one in findings
    ]
    statuses = {finding.status for finding in findings}
    status = next(one for one in ("problem", "warning", "ok") if one in statuses)
    if as_json:
        document = {
            "schema_version": 1,
            "status": status,
            "findings": [asdict(finding) for finding in findings],
            "equivalence": figures.get("equivalence"),
            "equivalence_flash": figures.get("equivalence, flash"),
        }
        console.write_json(document)
    else:
        rows = [[one.check, one.status, one.found, one.advice or ""] for one in findings]
        console.table(["CHECK", "STATUS", "FOUND", "WHAT TO DO"], rows)
    return ExitCode.CHECKS_FAILED if status == "problem" else ExitCode.OK


def _finite(figures: dict[str, Any]) -> dict[str, Any]:
    """Make null of what is no number, as a broken kernel may give."""
    return {
        key: None if isinstance(value, float) and not isfinite(value) else value
        for key, value in figures.items()
    }
