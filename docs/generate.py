"""Fill the marked regions of README.md and docs/ from the code and from committed results.

    python docs/generate.py            write what is out of date
    python docs/generate.py --check    name what is out of date instead, and exit 1

A region lies between `<!-- generated: NAME -->` and `<!-- end generated -->`; all text outside is
written by hand. `NAME` is a key of `REGIONS`, `file PATH` for the text of a file, or `new-adapter
PATH` and `new-policy PATH` for files that `mvw new-adapter my-model` and `mvw new-policy early`
write. Nothing is measured here: figures come from the JSON files that the benchmarks write.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import click
from regions import (
    batch,
    calibrate,
    cross_check,
    example,
    families,
    figures,
    policies,
    reference,
    report,
    scaling,
)

from mvw_cli.scaffold import render

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "docs" / "example.txt"
SCENE = ROOT / "docs" / "scene.png"

REGIONS: dict[str, Callable[[], str]] = {
    "commands": reference.commands,
    "exit codes": reference.exit_codes,
    "profiles": reference.profiles,
    "profile keys": reference.profile_keys,
    "policies": reference.policies,
    "control variables": reference.control_variables,
    "families": families.table,
    "families summary": families.summary,
    "families all": families.everything,
    "curve": figures.curve,
    "curve table": figures.curve_table,
    "curve easy-vqa": figures.curve_easy_vqa,
    "vllm": figures.vllm,
    "measured": figures.measured,
    "not run": figures.not_run,
    "startup": figures.startup,
    "infer wall": figures.infer_wall,
    "decode": figures.decode,
    "cross attention": figures.cross_attention,
    "mla decode": figures.mla_decode,
    "report keys": report.report_keys,
    "eval keys": report.eval_keys,
    "batch": batch.batch,
    "batch slots": batch.batch_slots,
    "batch memory": batch.batch_memory,
    "serve": batch.serve,
    "calibrate answers": calibrate.answers,
    "calibrate dyvte": calibrate.dyvte,
    "calibrate vtw": calibrate.vtw,
    "cross check": cross_check.cross_check,
    "policies measured": policies.policies,
    "policies combined": policies.combinations,
    "scaling": scaling.scaling,
    "scaling chunks": scaling.chunks,
    "example": lambda: f"```console\n{EXAMPLE.read_text(encoding='utf-8')}```",
}

_REGION = re.compile(
    r"(?P<open><!-- generated: (?P<name>[^\n]+?) -->\n).*?(?P<close><!-- end generated -->)", re.S
)
_LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".txt": "console"}


def outdated() -> Iterator[tuple[Path, bytes]]:
    """Yield each file that differs from what the code says, with its new content."""
    scene = example.scene()
    if not SCENE.exists() or not example.same_picture(SCENE.read_bytes(), scene):
        yield SCENE, scene
    terminal = example.terminal().encode()
    if not EXAMPLE.exists() or EXAMPLE.read_bytes() != terminal:
        yield EXAMPLE, terminal
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        before = page.read_text(encoding="utf-8")
        after = _REGION.sub(_filled, before)
        if after != before:
            yield page, after.encode()


def _filled(match: re.Match[str]) -> str:
    return f"{match['open']}{_content(match['name'])}\n{match['close']}"


@cache
def _content(name: str) -> str:
    if name.startswith("file "):
        return _file(ROOT / name.removeprefix("file "))
    command, _, path = name.partition(" ")
    if command == "new-adapter":
        return _fenced(render("adapter", "my-model")[path], Path(path).suffix)
    if command == "new-policy":
        return _fenced(render("policy", "early")[path], Path(path).suffix)
    if name not in REGIONS:
        raise click.ClickException(f"there is no region `{name}`; known: {', '.join(REGIONS)}")
    return REGIONS[name]().strip("\n")


def _file(path: Path) -> str:
    return _fenced(path.read_text(encoding="utf-8"), path.suffix)


def _fenced(text: str, suffix: str) -> str:
    return "```{}\n{}\n```".format(_LANGUAGES.get(suffix, ""), text.strip("\n"))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if something is out of date.")
def main(check: bool) -> None:
    """Bring the generated parts of README.md and docs/ up to date."""
    # Pages must not depend on who writes them: no plugins, profiles or settings of this machine.
    for name in [name for name in os.environ if name.startswith("MVW_")]:
        del os.environ[name]
    os.environ |= {"MVW_LOAD_PLUGINS": "", "MVW_HOME": os.devnull, "NO_COLOR": "1"}
    stale = False
    for path, content in outdated():
        stale = True
        click.echo(f"{'out of date: ' if check else 'wrote '}{path.relative_to(ROOT)}")
        if not check:
            path.write_bytes(content)
    if check and stale:
        click.echo("Hint: make docs", err=True)
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
