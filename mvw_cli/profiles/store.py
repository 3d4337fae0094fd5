"""Where profiles lie, and which files a name stands for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mvw_cli.errors import UsageProblem
from mvw_cli.plugins import OWN, load_plugins
from mvw_cli.text import did_you_mean

DEFAULT = "shapes"
"""The packaged profile that answers where nothing is named: it needs no download."""


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """One YAML file, and whose it is."""

    name: str
    path: Path
    kind: Literal["profile", "user", "packaged"]
    distribution: str | None = None
    """The distribution it came with, or None for the user's own."""


def user_folder(env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the user's own profiles; it need not exist."""
    import click

    return Path(env.get("MVW_HOME") or click.get_app_dir("mvw")) / "profiles"


def packaged_folder() -> Path:
    """Return the folder of mvw's own profiles: in the checkout, or in the installed package."""
    package = Path(__file__).resolve().parent.parent
    # Only a checkout has a pyproject.toml there; site-packages may hold someone else's profiles/.
    if (package.parent / "pyproject.toml").is_file():
        return package.parent / "profiles"
    return package / "_profiles"


def known_profiles(env: Mapping[str, str] = os.environ) -> dict[str, list[ProfileFile]]:
    """List every named profile with its files, the user's own first.

    Of two distributions that bring the same name, mvw's own wins, else the first.
    """
    brought = {file.name: file for file in _in_folder(packaged_folder(), "packaged", OWN)}
    for folder, plugin in load_plugins().profiles:
        for file in _in_folder(folder, "packaged", plugin.distribution):
            brought.setdefault(file.name, file)
    known = {name: [file] for name, file in brought.items()}
    for file in _in_folder(user_folder(env), "user", None):
        known[file.name] = [file, *known.get(file.name, ())]
    return dict(sorted(known.items()))


def find(name: str, env: Mapping[str, str] = os.environ) -> list[ProfileFile]:
    """Find the files of a profile by name or path, the highest layer first.

    Raises:
        UsageProblem: unknown.
    """
    if is_path(name):
        return [ProfileFile(name, Path(os.path.expanduser(name)), "profile")]
    known = known_profiles(env)
    if name in known:
        return known[name]
    listing = f"known: {', '.join(known)}; a file is named by its path, as in ./{name}.yaml"
    raise UsageProblem(
        f"there is no profile `{name}`",
        cause=did_you_mean(name, known, otherwise=listing),
        hint="mvw list profiles",
    )


def is_path(name: str) -> bool:
    """Tell a path from a name: by a separator, or by the ending of a YAML file."""
    return os.sep in name or "/" in name or name.endswith((".yaml", ".yml"))


def _in_folder(
    folder: Path, kind: Literal["user", "packaged"], distribution: str | None
) -> Iterator[ProfileFile]:
    for path in sorted(folder.glob("*.yaml")):
        if not path.name.startswith("."):
            yield ProfileFile(path.stem, path, kind, distribution)
