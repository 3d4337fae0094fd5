"""A terminal session with the embedded model, as it really goes, with the timings left out.

Timings differ from run to run and machine to machine; everything else must not.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

_COMMANDS = (
    "mvw samples samples --count 1 --seed 7",
    'mvw infer samples/scene-0001.png "How many red circles are there?" --show-reasoning',
)
_TIMES = (
    (re.compile(r"TTFT [\d.,]+ ms"), "TTFT … ms"),
    (re.compile(r"[\d.,]+ tokens/s"), "… tokens/s"),
)
MISSING = "The weights of the embedded model are not in this checkout.\n"


def terminal() -> str:
    """Run the commands in an empty folder and write down what the terminal shows."""
    from mvw_shapes.checkpoint import WEIGHTS

    if not (WEIGHTS / "model.safetensors").exists():
        return MISSING
    with tempfile.TemporaryDirectory() as folder:
        return "".join(f"$ {command}\n{_run(command, folder)}" for command in _COMMANDS)


def _run(command: str, folder: str) -> str:
    program, *arguments = shlex.split(command)
    assert program == "mvw"
    run = subprocess.run(
        [str(Path(sys.executable).parent / program), *arguments],
        cwd=folder,
        env={**os.environ, "MVW_DEVICE": "cpu", "MVW_HOME": folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    if run.returncode:
        raise SystemExit(f"{command} fails: {run.stdout}")
    text = run.stdout
    for time, mark in _TIMES:
        text = time.sub(mark, text)
    return text
