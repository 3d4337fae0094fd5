"""Runs `mvw infer`: as a process with the scripted model, or in this process with a tiny one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from plugin_path import plugin_path as counted_as_installed
from processes import Ran


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path


@pytest.fixture(scope="session")
def plugin_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH on which the scripted plugin counts as installed."""
    return counted_as_installed(tmp_path_factory.mktemp("plugin"), "scripted")


@pytest.fixture
def environment(plugin_path: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a process: nothing of the user's own, no network."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("MVW_", "SCRIPT_", "HF_"))}
    return {
        **mine,
        "PYTHONPATH": plugin_path,
        "MVW_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm",
    }


@pytest.fixture
def command(picture: Path) -> list[str]:
    """The command line of the scripted model, short of further options."""
    mvw = [sys.executable, "-m", "mvw_cli", "infer"]
    return [*mvw, str(picture), "w1 w2", "--adapter", "scripted"]


@pytest.fixture
def scripted(command: list[str], environment: dict[str, str]) -> Callable[..., Ran]:
    """Run the scripted model in a process of its own, without a terminal."""

    def run(*options: str, stdin: bytes = b"", **script: object) -> Ran:
        done = subprocess.run(
            [*command, *options],
            input=stdin,
            env=environment | {f"SCRIPT_{k.upper()}": str(v) for k, v in script.items()},
            capture_output=True,
            timeout=120,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny LLaVA of random weights, as a user would have it."""
    from mvw_hf.tiny import tiny_llava

    folder = str(tmp_path_factory.mktemp("tiny"))
    model, processor = tiny_llava()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def infer(
    picture: Path, tiny: str, monkeypatch: pytest.MonkeyPatch, mvw: Callable[..., Ran]
) -> Callable[..., Ran]:
    """Run `mvw infer` with the tiny model in this process."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the command mutes bars too, but only ahead of transformers' import
    for name in (
        "TRANSFORMERS_VERBOSITY",
        "HF_HUB_VERBOSITY",
        "TORCH_CPP_LOG_LEVEL",
        "HF_HUB_DISABLE_PROGRESS_BARS",
    ):
        # Set, then deleted: so that what the command sets is taken back after the test as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def run(
        *options: str,
        image: Path | str | None = None,
        question: str = "w1 w2",
        stdin: bytes = b"",
        model: bool = True,
    ) -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        chosen = ["--model", tiny, "--max-new-tokens", "12"] if model else []
        return mvw("infer", str(image or picture), question, *chosen, *options)

    return run
