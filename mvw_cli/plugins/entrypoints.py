"""Find what installed distributions offer under the entry-point group `mvw`.

Works on metadata alone: nothing is imported here, and a distribution whose metadata is damaged
is reported instead of raised. It does not know what a plugin is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions

GROUP = "mvw"


@dataclass(frozen=True, slots=True)
class Offered:
    """One entry point, or a distribution whose entry points can't be read."""

    distribution: str
    version: str
    name: str
    value: str
    entry_point: EntryPoint | None
    problem: str | None = None


def offered() -> Iterator[Offered]:
    """Yield every entry point of the group; the first of several copies of a distribution wins.

    `importlib.metadata.entry_points` parses the files of all distributions and raises if one of
    them is malformed. Looking for the group's name first is both safe and much faster.
    """
    seen: set[str] = set()
    for dist in distributions():
        text = _entry_points_of(dist)
        if f"[{GROUP}]" not in text:
            continue
        name, version = _identity(dist)
        normal = name.lower().replace("_", "-").replace(".", "-")
        if normal in seen:
            continue
        seen.add(normal)
        try:
            entries = [entry for entry in dist.entry_points if entry.group == GROUP]
        except Exception as error:  # malformed lines raise whatever the parser stumbles over
            problem = f"entry_points.txt can't be read ({type(error).__name__}: {error})"
            yield Offered(name, version, "?", "", None, problem)
            continue
        for entry in entries:
            yield Offered(name, version, entry.name, entry.value, entry)


def _entry_points_of(dist: Distribution) -> str:
    try:
        return dist.read_text("entry_points.txt") or ""
    except (OSError, ValueError):  # not UTF-8, or gone since the folder was listed
        return ""


def _identity(dist: Distribution) -> tuple[str, str]:
    """Name and version, from the folder's name where the metadata file is missing."""
    try:
        # The e-mail parser behind `dist.metadata` would read the whole README to get there, and
        # raises on an absent file.
        header = (dist.read_text("METADATA") or "").partition("\n\n")[0]
    except (OSError, ValueError):
        header = ""
    fields = dict(line.split(": ", 1) for line in header.splitlines() if ": " in line)
    if "Name" in fields and "Version" in fields:
        return fields["Name"].strip(), fields["Version"].strip()
    folder = getattr(dist, "_path", None)
    name, _, version = (folder.stem if folder is not None else "unknown").partition("-")
    return name.replace("_", "-"), version or "unknown"
