"""What was found for each sample, kept as it is found: one JSON line each, beside the output.

A second run with the same model and settings reads it and goes on. Lines of other settings stay
and count for nothing. It does not know what a line's values mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mvw_cli.batch.store.jsonl import open_locked
from mvw_cli.errors import MvwError, UsageProblem

SCHEMA_VERSION = 1


class SampleLog:
    """The samples of one run. Made by `open_log`."""

    def __init__(self, name: str, run: str, descriptor: int) -> None:
        self.name = name
        self.others = 0
        """Lines of other settings."""
        self._run = run
        self._descriptor = descriptor
        self._found: dict[str, dict[str, Any]] = {}
        self._read()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what was found for a sample, or None."""
        return self._found.get(key)

    def put(self, key: str, values: Mapping[str, Any]) -> None:
        """Keep a sample; once this returns, it outlives a power cut.

        Raises:
            MvwError: the file can't be written.
        """
        head = {"schema_version": SCHEMA_VERSION, "run": self._run, "key": key}
        line = json.dumps({**head, **values}, ensure_ascii=True) + "\n"
        size = os.fstat(self._descriptor).st_size
        try:
            rest = memoryview(line.encode())
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise MvwError(
                f"Cannot write {self.name}",
                cause=error.strerror or str(error),
                hint=f"df -h {shlex.quote(os.path.dirname(os.path.abspath(self.name)))}",
            ) from None
        self._found[key] = json.loads(line)

    def _read(self) -> None:
        with open(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            content = file.read()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        for number, line in enumerate(lines, start=1):
            values = self._parsed(line, number)
            if values["run"] == self._run:
                self._found[values["key"]] = values
            else:
                self.others += 1
        if content[whole:] and not content[whole:].startswith(b"{"):
            raise self._foreign(len(lines) + 1)
        # What a crash has cut is written again.
        os.ftruncate(self._descriptor, whole)

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            values = json.loads(line)
        except ValueError:
            raise self._foreign(number) from None
        named = isinstance(values, dict) and all(
            isinstance(values.get(key), str) for key in ("run", "key")
        )
        if not named or values.get("schema_version") != SCHEMA_VERSION:
            raise self._foreign(number)
        checked: dict[str, Any] = values
        return checked

    def _foreign(self, number: int) -> UsageProblem:
        return UsageProblem(
            f"{self.name} is not a log of samples",
            cause=f"line {number} is something else",
            hint=f"head -c 300 {shlex.quote(self.name)}",
        )


@contextmanager
def open_log(path: Path, run: Mapping[str, Any]) -> Iterator[SampleLog]:
    """Open the log of a run, made where it is missing; one process at a time writes to it.

    Args:
        run: everything that a sample's figures depend on, apart from the sample.

    Raises:
        UsageProblem: it is a file of something else, can't be opened, or another process has it.
    """
    text = json.dumps(run, sort_keys=True, default=str)
    descriptor, _ = open_locked(Path(os.path.realpath(path)), str(path))
    try:
        yield SampleLog(str(path), hashlib.sha256(text.encode()).hexdigest()[:12], descriptor)
    finally:
        os.close(descriptor)
