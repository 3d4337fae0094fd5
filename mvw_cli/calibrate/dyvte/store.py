"""What has been learnt of each question, on disk: so that no question is asked twice.

A folder of safetensors shards, each written once and as a whole; `settings.json` beside them says
what all of it depends on. Whatever has been written survives a lost process. It does not know how
a question is looked at, nor what is trained on it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mvw_cli.errors import UsageProblem
from mvw_cli.files import replacing, unwritable

if TYPE_CHECKING:
    from torch import Tensor

    from mvw_cli.calibrate.dyvte.looks import Look

_SHARD = re.compile(r"labels-(\d{5})\.safetensors")
_SHARD_LOOKS = 8
_SHARD_S = 20.0
"""A shard is written when so many looks or so many seconds have come together."""
_HELP = "mvw calibrate dyvte --help"


@dataclass(frozen=True, slots=True)
class Entry:
    """Which question a look is about."""

    key: str
    """Of the images' bytes and the question, as `batch.items.item_key`."""
    names: tuple[str, ...]
    """Names of the image files."""
    question: str
    images: tuple[str, ...]
    """sha256 of each image."""
    text_tokens: int
    """Of the prompt, without vision."""
    vision_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """All looks, in the order of their keys, which no interruption changes; n of them."""

    entries: tuple[Entry, ...]
    features: Tensor
    """# (n, G, 2 H)"""
    agreement: Tensor
    """# (n, G) float32"""
    loss: Tensor
    """# (n, G) float32"""
    full_loss: Tensor
    """# (n,) float32"""


class Store:
    """The folder; made if need be.

    Args:
        settings: whatever a look depends on beside its question, as JSON.

    Raises:
        UsageProblem: the folder can't be written, or holds what was looked at otherwise.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self._waiting: list[tuple[Entry, Look]] = []
        self._locked: TextIO | None = None
        self._written = time.monotonic()
        self.keys: set[str] = set()
        """Of what has been looked at."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            self._settle(dict(settings))
            self._count = 1 + max((int(_number(path)) for path in self._shards()), default=-1)
            for path in self._shards():
                self.keys |= {entry.key for entry in _entries(path)}
        except OSError as error:
            raise unwritable(str(folder), error.strerror or str(error), _HELP) from error

    def add(self, entry: Entry, look: Look) -> None:
        """Take a look in; it is on disk after the next `flush`, at the latest."""
        self._waiting.append((entry, look))
        self.keys.add(entry.key)
        old = time.monotonic() - self._written > _SHARD_S
        if old or len(self._waiting) >= _SHARD_LOOKS:
            self.flush()

    def flush(self) -> None:
        """Write what waits.

        Raises:
            UsageProblem: the folder can't be written.
        """
        import torch
        from safetensors.torch import save

        self._written = time.monotonic()
        if not self._waiting:
            return
        looks = [look for _, look in self._waiting]
        tensors = {
            "features": torch.stack([one.features for one in looks]),
            "agreement": torch.stack([one.agreement for one in looks]),
            "loss": torch.stack([one.loss for one in looks]),
            "full_loss": torch.tensor([one.full_loss for one in looks]),
        }
        entries = json.dumps([asdict(entry) for entry, _ in self._waiting], ensure_ascii=False)
        path = self._folder / f"labels-{self._count:05}.safetensors"
        try:
            with replacing(path) as file:
                file.write(save(tensors, metadata={"entries": entries}))
        except OSError as error:
            raise unwritable(str(path), error.strerror or str(error), "df -h .") from error
        self._count += 1
        self._waiting = []

    def table(self, keys: Sequence[str]) -> Table:
        """Read the looks of some questions, which are all there."""
        import torch
        from safetensors.torch import load_file

        self.flush()
        wanted = set(keys)
        rows: dict[str, tuple[Entry, dict[str, Tensor]]] = {}
        for path in self._shards():
            tensors = load_file(path)
            for number, entry in enumerate(_entries(path)):
                if entry.key in wanted:
                    rows[entry.key] = entry, {name: one[number] for name, one in tensors.items()}
        ordered = [rows[key] for key in sorted(wanted)]
        stacked = {
            name: torch.stack([tensors[name] for _, tensors in ordered])
            for name in ("features", "agreement", "loss", "full_loss")
        }
        return Table(tuple(entry for entry, _ in ordered), **stacked)

    def _shards(self) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if _SHARD.fullmatch(path.name))

    def _lock(self) -> None:
        """Keep other processes out until this one ends."""
        self._locked = (self._folder / "lock").open("a")
        try:
            fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageProblem(
                f"{self._folder} is in use",
                cause="another process calibrates into the same folder",
                hint=_HELP,
            ) from None
        except OSError:  # a file system without locks
            return

    def close(self) -> None:
        """Write what waits, and let others in."""
        self.flush()
        if self._locked is not None:
            self._locked.close()

    def _settle(self, settings: dict[str, Any]) -> None:
        """Write down what the looks depend on, or check that it is the same."""
        path = self._folder / "settings.json"
        if not path.exists():
            with replacing(path) as file:
                file.write(json.dumps(settings, indent=2, ensure_ascii=False).encode())
            return
        try:
            before = json.loads(path.read_text("utf-8"))
        except ValueError:
            before = None
        now = json.loads(json.dumps(settings))
        if before != now:
            keys = before.keys() | now.keys() if isinstance(before, dict) else set()
            changed = sorted(key for key in keys if before.get(key) != now.get(key))
            raise UsageProblem(
                f"{self._folder} holds what another model or other settings have shown",
                cause=f"these differ: {', '.join(changed)}" if changed else f"{path} is damaged",
                hint="mvw calibrate dyvte -o other.yaml",
            )


def _number(path: Path) -> str:
    found = _SHARD.fullmatch(path.name)
    assert found is not None
    return found[1]


def _entries(path: Path) -> list[Entry]:
    from safetensors import safe_open

    with safe_open(os.fspath(path), framework="pt") as file:
        found = json.loads(file.metadata()["entries"])
    return [
        Entry(**{**one, "names": tuple(one["names"]), "images": tuple(one["images"])})
        for one in found
    ]
