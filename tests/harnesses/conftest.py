"""Tests with the real code of public harnesses, installed apart: `make test-harnesses`.

VLMEVALKIT and LMMS_EVAL name the folders of their packages. Each harness runs in a process of its
own, with these before the packages of this environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from held_out import Scene, write_scenes
from processes import Ran

collect_ignore_glob = [] if "VLMEVALKIT" in os.environ else ["test_*.py"]
SITE = Path(__file__).parents[1] / "vllm" / "site"
"""Lets torchvision be imported, which has no build without CUDA."""


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 6, seed=3)


@pytest.fixture
def infer(mvw: Callable[..., Ran]) -> Callable[..., str]:
    """What `mvw infer` answers."""

    def answer(scene: Scene, *options: str, question: str | None = None) -> str:
        ran = mvw("infer", str(scene.image), question or scene.question, *options)
        assert ran.code == 0, ran.err
        return ran.out.removesuffix("\n")

    return answer


@pytest.fixture
def run_in(tmp_path: Path) -> Callable[..., str]:
    """Run a module with the packages of a harness, in an empty folder; return what it writes."""

    def run(harness: str, *words: str, **env: str) -> str:
        path = os.pathsep.join([os.environ[harness], str(SITE)])
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    return run
