"""Runs `mvw batch` with the fickle model, as a process of its own, and reads what it leaves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forking import Forked, start
from processes import Ran

QUESTION = "w1 w2"


@dataclass(frozen=True)
class Batch:
    """The command, in a folder."""

    folder: Path
    environment: dict[str, str]

    def words(self, *arguments: str) -> list[str]:
        """What comes after `mvw`; the first argument is the images."""
        return ["batch", arguments[0], QUESTION, "--adapter", "fickle", *arguments[1:]]

    def __call__(self, *arguments: str, **fickle: Any) -> Ran:
        with self.started(*arguments, **fickle) as process:
            out, err = process.communicate(timeout=120)
            assert process.returncode is not None
            return Ran(process.returncode, out.decode(), err.decode())

    @contextmanager
    def started(self, *arguments: str, **fickle: Any) -> Iterator[Forked]:
        """Start it, for who wants to interrupt it."""
        process = start(
            self.words(*arguments),
            files=Path(tempfile.mkdtemp(dir=self.folder.parent)),
            cwd=self.folder,
            environment=self.environment | {"FICKLE": json.dumps(fickle)},
        )
        try:
            yield process
        finally:
            process.kill()


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
