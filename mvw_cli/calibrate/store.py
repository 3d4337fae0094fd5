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

FORMAT = 2
"""Of a line; a sample of another one is measured again."""


class SampleStore:
    """The samples of one run; one process at a time writes to a file.

    Args:
        path: made where it is missing.
        run: everything that a sample's figures depend on, apart from the sample.

    Raises:
        UsageProblem: it is a file of something else, can't be opened, or another process has it.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        text = json.dumps({"format": FORMAT, **run}, sort_keys=True, default=str)
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
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what was found for a sample, or None."""
        return self._found.get(key)

    def put(self, key: str, **values: Any) -> dict[str, Any]:
        """Keep a sample; once this returns, it outlives a power cut.

        Returns:
            The same as `get` from now on.

        Raises:
            MvwError: the file can't be written.
        """
        line = json.dumps({"run": self.run, "key": key, **values})
        self._file.append(f"{line}\n".encode(), what="the last sample")
        self._file.flush()
        return self._take(line)

    def _take(self, line: str | bytes) -> dict[str, Any]:
        sample: dict[str, Any] = json.loads(line)
        if sample.pop("run") == self.run:
            self._found[sample["key"]] = sample
        else:
            self.others += 1
        return sample

    def _read(self) -> None:
        content = self._file.path.read_bytes()
        *lines, cut = content.split(b"\n")
        try:
            for line in lines:
                self._take(line)
            if cut and not cut.startswith(b"{"):
                raise ValueError(cut)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UsageProblem(
                f"{self.name} is not a log of samples",
                cause="one of its lines is something else",
                hint=f"head -c 300 {shlex.quote(self.name)}",
            ) from None
        # What a crash has cut is measured again.
        self._file.truncate(len(content) - len(cut))
