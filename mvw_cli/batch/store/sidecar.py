"""`<log>.run.json`: what a log's records were made with, and which part of the work they are.

It does not know what is in the log.
"""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import asdict, dataclass
from pathlib import Path

from mvw_cli.batch.store.fingerprint import Fingerprint, describe_difference
from mvw_cli.files import replacing

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Part:
    """What one run had to do."""

    shard: tuple[int, int] | None
    """`(i, n)` with 0 ≤ i < n; None for the whole."""
    listed: int
    """Items of its work list."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The content of the file."""

    fingerprint: Fingerprint
    parts: tuple[Part, ...] = ()
    """One for a log that `mvw batch` wrote, several for a merged one."""


def sidecar_path(log: Path) -> Path:
    """Name the file that goes with a log."""
    return log.with_name(f"{log.name}.run.json")


def read_sidecar(log: Path) -> Sidecar | None:
    """Read the file that goes with a log; None where it is missing or can't be read."""
    try:
        content = json.loads(sidecar_path(log).read_bytes())
        if content["schema_version"] != SCHEMA_VERSION:
            return None
        parts = [
            Part(
                None if one["shard"] is None else (one["shard"][0], one["shard"][1]), one["listed"]
            )
            for one in content["parts"]
        ]
        return Sidecar(Fingerprint.from_dict(content["fingerprint"]), tuple(parts))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _part(shard: list[int] | None, listed: int) -> Part:
    return Part(None if shard is None else (shard[0], shard[1]), listed)


def write_sidecar(log: Path, sidecar: Sidecar) -> None:
    """Write the file that goes with a log, whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "run": sidecar.fingerprint.short,
        "fingerprint": sidecar.fingerprint.to_dict(),
        "parts": [asdict(part) for part in sidecar.parts],
    }
    with replacing(sidecar_path(log)) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def mismatch(sidecar: Sidecar | None, runs: Set[str], fingerprint: Fingerprint) -> str | None:
    """Say why records can't stand in one log with those of a run; None where they can.

    Args:
        sidecar: of the records' log.
        runs: short hashes that the records carry; without records there is nothing to contradict.
        fingerprint: of the run.
    """
    if not runs:
        return None
    known = fingerprint
    if sidecar is not None:
        known = sidecar.fingerprint
        difference = known.difference(fingerprint)
        if difference:
            return describe_difference(difference)
    elif not fingerprint.settled:
        return None  # told once the model is loaded
    strange = sorted(runs - {known.short})
    if not strange:
        return None
    missing = "" if sidecar else "; the .run.json file that would tell the difference is missing"
    return f"records of run {strange[0]} are in it, this is run {known.short}{missing}"
