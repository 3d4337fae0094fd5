"""Runs `mvw batch` with the fickle model, as a process of its own, and reads what it leaves."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forking import Forked, Forker
from processes import Ran

HERE = Path(__file__).parent
QUESTION = "w1 w2"


@dataclass(frozen=True)
class Batch:
    """The command, in a folder."""

    folder: Path
    environment: dict[str, str]
    forker: Forker

    def words(self, *arguments: str, question: str | None = QUESTION) -> list[str]:
        """What comes after `mvw`; the first argument is the images."""
        asked = [] if question is None else [question]
        return ["batch", *arguments[:1], *asked, "--adapter", "fickle", *arguments[1:]]

    def __call__(
        self,
        *arguments: str,
        stdin: bytes = b"",
        question: str | None = QUESTION,
        **fickle: Any,
    ) -> Ran:
        process = self.forker.start(
            self.words(*arguments, question=question),
            cwd=self.folder,
            environment=self.environment | {"FICKLE": json.dumps(fickle)},
            stdin=stdin,
        )
        out, err = process.communicate(timeout=120)
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    @contextmanager
    def started(self, *arguments: str, **fickle: Any) -> Iterator[Forked]:
        """Start it, for who wants to interrupt it."""
        process = self.forker.start(
            self.words(*arguments),
            cwd=self.folder,
            environment=self.environment | {"FICKLE": json.dumps(fickle)},
        )
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


def _environment(fickle_path: str) -> dict[str, str]:
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("MVW_", "FICKLE", "HF_"))}
    return {**mine, "PYTHONPATH": fickle_path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def forker(fickle_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    # Not below the tests' own folder: the address of a socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="mvw-") as folder:
        forker = Forker(Path(folder), _environment(fickle_path))
        yield forker
        forker.stop()


@pytest.fixture(scope="session")
def batch_in(fickle_path: str, forker: Forker) -> Callable[[Path], Batch]:
    """Make a `Batch` that runs in a folder."""

    def make(folder: Path) -> Batch:
        environment = _environment(fickle_path) | {"MVW_HOME": str(folder / "home")}
        return Batch(folder, environment, forker)

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
