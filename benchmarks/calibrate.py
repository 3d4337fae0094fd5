"""The calibrations that docs/calibrate.md and docs/policies.md cite, run as a user would.

    python benchmarks/calibrate.py [NAME ...]

Each writes its report to `benchmarks/results/calibrate_NAME.json`; `dyvte_looser` also the gates
that the table of policies uses, `benchmarks/gates/dyvte.safetensors`. About 35 minutes in all.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

HERE = Path(__file__).parent
MVW = str(Path(sys.executable).parent / "mvw")
SCENES = ("--limit", "200", "--seed", "7")
DYVTE = ("dyvte", "--limit", "600", "--seed", "11", "--gate-dtype", "float16")
COMMANDS = {
    "vtw": ("vtw", *SCENES),
    "vtw_64": ("vtw", *SCENES, "--tokens", "64"),
    "mvw": ("mvw", *SCENES, "--tags", "</SUMMARY>,</CAPTION>"),
    "mass": ("mass", *SCENES),
    "dyvte": DYVTE,
    "dyvte_looser": (*DYVTE, "--agreement", "0.92", "--loss-ratio", "1e9"),
}
NO_PROFILE = 1
"""Exit code where no candidate will do, which is an outcome like any other."""


def calibrate(name: str, folder: Path) -> None:
    """Run one calibration and keep its report."""
    profile = folder / f"{name}.yaml"
    done = subprocess.run([MVW, "calibrate", *COMMANDS[name], "-o", str(profile)], check=False)
    if done.returncode not in (0, NO_PROFILE):
        raise click.ClickException(f"mvw calibrate {name} ended with {done.returncode}")
    shutil.copy(profile.with_suffix(".report.json"), HERE / "results" / f"calibrate_{name}.json")
    if name == "dyvte_looser":
        shutil.copy(profile.with_suffix(".safetensors"), HERE / "gates" / "dyvte.safetensors")


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(COMMANDS)))
def main(names: tuple[str, ...]) -> None:
    """Run the calibrations NAMES, or all."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names or COMMANDS:
            calibrate(name, Path(folder))


if __name__ == "__main__":
    main()
