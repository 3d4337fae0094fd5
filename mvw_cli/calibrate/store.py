"""What a search has measured, kept as it is measured: one JSON line for each sample.

The same command reads the file and goes on, after Ctrl-C or a crash. Lines of another model or of
other settings stay in it and count for nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from mvw_cli.batch.store.jsonl import JsonlFile
from mvw_cli.errors import UsageProblem

SCHEMA_VERSION = 1


class SampleStore:
    """The samples of one run; one process at a time writes to a file.

    Args:
        path: made where it is missing.
        run: everything that a sample's figures depend on, apart from the sample.

    Raises:
        UsageProblem: it is a file of something else, can't be opened, or another process has it.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        text = json.dumps(run, sort_keys=True, default=str)
        self.name = str(path)
        self.run = hashlib.sha256(text.encode()).hexdigest()[:12]
        """Names the settings, in every line."""
        self.others = 0
        """Lines of other settings."""
        self._found: dict[str, dict[str, Any]] = {}
        self._file = JsonlFile(Path(os.path.realpath(path)), self.name)
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._found)

    def close(self) -> None:
        """Let other processes in."""
        self._file.close()

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what was found for a sample, or None."""
        return self._found.get(key)

    def put(self, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a sample; once this returns, it outlives a power cut.

        Returns:
            The same as `get` from now on.

        Raises:
            MvwError: the file can't be written.
        """
        head = {"schema_version": SCHEMA_VERSION, "run": self.run, "key": key}
        line = json.dumps({**head, **values}, ensure_ascii=True) + "\n"
        self._file.append(line.encode(), what="the last sample")
        self._file.flush()
        found: dict[str, Any] = json.loads(line)
        self._found[key] = found
        return found

    def _read(self) -> None:
        content = self._file.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                values = json.loads(line)
                run, key, version = (values[name] for name in ("run", "key", "schema_version"))
            except (ValueError, TypeError, KeyError):
                raise self._foreign(number) from None
            if version != SCHEMA_VERSION:
                raise self._foreign(number)
            if run == self.run:
                self._found[key] = values
            else:
                self.others += 1
        if content[whole:] and not content[whole:].startswith(b"{"):
            raise self._foreign(len(lines) + 1)
        # What a crash has cut is measured again.
        self._file.truncate(whole)

    def _foreign(self, number: int) -> UsageProblem:
        return UsageProblem(
            f"{self.name} is not a log of samples",
            cause=f"line {number} is something else",
            hint=f"head -c 300 {shlex.quote(self.name)}",
        )
