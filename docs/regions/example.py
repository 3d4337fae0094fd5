"""A terminal session with the embedded model, as it really goes, with the timings left out.

Timings differ from run to run and machine to machine; everything else must not.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

_MAKEFILE = Path(__file__).resolve().parents[2] / "Makefile"
_TIMES = (
    (re.compile(r"TTFT [\d.,]+ ms"), "TTFT … ms"),
    (re.compile(r"[\d.,]+ tokens/s"), "… tokens/s"),
)
MISSING = "The weights of the embedded model are not in this checkout.\n"


def scene() -> bytes:
    """Draw the scene that the session asks about, as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        _run(_commands()[0], folder)
        return Path(folder, "samples", "scene-0001.png").read_bytes()


def same_picture(one: bytes, other: bytes) -> bool:
    """Compare pixels: the bytes of a PNG depend on the library that packed it."""
    from PIL import Image

    first, second = (Image.open(io.BytesIO(data)).convert("RGB") for data in (one, other))
    return first.size == second.size and first.tobytes() == second.tobytes()


def terminal() -> str:
    """Run the commands in an empty folder and write down what the terminal shows."""
    from mvw_shapes.model import WEIGHTS

    if not (WEIGHTS / "model.safetensors").exists():
        return MISSING
    with tempfile.TemporaryDirectory() as folder:
        return "".join(f"$ {command}\n{_run(command, folder)}" for command in _commands())


def _commands() -> tuple[str, str]:
    """The scene and the question are those of `make demo`."""
    demo = _MAKEFILE.read_text(encoding="utf-8")
    seed = re.search(r"mvw samples .*--seed (\d+)", demo)
    question = re.search(r'mvw infer \S+ (".+")', demo)
    assert seed is not None and question is not None
    return (
        f"mvw samples samples --count 1 --seed {seed[1]}",
        f"mvw infer samples/scene-0001.png {question[1]} --show-reasoning",
    )


def _run(command: str, folder: str) -> str:
    program, *arguments = shlex.split(command)
    assert program == "mvw"
    run = subprocess.run(
        [str(Path(sys.executable).parent / program), *arguments],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "MVW_HOME": folder},
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
