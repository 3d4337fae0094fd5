"""Runs `mvw batch` with the fickle model, as a process of its own, and reads what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from processes import Ran

HERE = Path(__file__).parent
QUESTION = "w1 w2"


@dataclass(frozen=True)
class Batch:
    """The command, in a folder."""

    folder: Path
    environment: dict[str, str]

    def words(self, *arguments: str, question: str | None = QUESTION) -> list[str]:
        """The command line; the first argument is the images."""
        asked = [] if question is None else [question]
        mvw = [sys.executable, "-m", "mvw_cli", "batch"]
        return [*mvw, *arguments[:1], *asked, "--adapter", "fickle", *arguments[1:]]

    def __call__(
        self,
        *arguments: str,
        stdin: bytes = b"",
        question: str | None = QUESTION,
        **fickle: Any,
    ) -> Ran:
        done = subprocess.run(
            self.words(*arguments, question=question),
            input=stdin,
            cwd=self.folder,
            env=self.environment | {"FICKLE": json.dumps(fickle)},
            capture_output=True,
            timeout=120,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    @contextmanager
    def started(self, *arguments: str, **fickle: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Start it, for who wants to interrupt it."""
        with subprocess.Popen(
            self.words(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env=self.environment | {"FICKLE": json.dumps(fickle)},
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture(scope="session")
def fickle_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH on which the fickle plugin counts as installed."""
    folder = tmp_path_factory.mktemp("plugin")
    info = folder / "mvw_fickle-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mvw-fickle\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mvw]\nfickle = fickle\n")
    return f"{folder}{os.pathsep}{HERE}"


@pytest.fixture(scope="session")
def batch_in(fickle_path: str) -> Callable[[Path], Batch]:
    """Make a `Batch` that runs in a folder."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("MVW_", "FICKLE", "HF_"))}

    def make(folder: Path) -> Batch:
        environment = {
            **mine,
            "PYTHONPATH": fickle_path,
            "MVW_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        return Batch(folder, environment)

    return make


@pytest.fixture
def batch(batch_in: Callable[[Path], Batch], tmp_path: Path) -> Batch:
    return batch_in(tmp_path)


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a log, each line of which has to be whole."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def answers(path: Path) -> dict[str, Any]:
    """What was answered, by id; an id that comes twice is an error."""
    found: dict[str, Any] = {}
    for record in records(path):
        assert record["id"] not in found, f"{record['id']} twice"
        found[record["id"]] = (record["status"], record["text"], record["key"])
    return found
