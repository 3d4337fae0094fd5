"""The pages of the documentation, and what the tests take out of them."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLE = DOCS / "examples" / "mvw-example"
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES += sorted(DOCS.glob("*.md"))

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(name: str) -> str:
    """The text of one page in docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


def first_cells(name: str, *, before: str = "\0") -> list[str]:
    """What stands in backquotes at the start of a table's row, up to some heading."""
    text, *_ = text_of(name).partition(before)
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def section(name: str, heading: str) -> str:
    """The text below a heading of the second level, up to the next one."""
    _, found, rest = text_of(name).partition(f"\n## {heading}\n")
    assert found, heading
    return rest.partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The rows of a text's tables whose first cell stands in backquotes, which are left out."""
    found = re.findall(r"^\| `([^`]+)` \|(.+)\|$", text, re.MULTILINE)
    return [[first, *(cell.strip() for cell in rest.split("|"))] for first, rest in found]


def dotted(value: Any, prefix: str = "", whole: tuple[str, ...] = ()) -> Iterator[str]:
    """The keys of a JSON document down to plain values; lists count by all of their elements.

    Args:
        whole: objects that are not taken apart.
    """
    if isinstance(value, list) and value:
        for inner in value:
            yield from dotted(inner, f"{prefix}[]", whole)
    elif isinstance(value, dict) and prefix not in whole:
        for key, inner in value.items():
            yield from dotted(inner, f"{prefix}.{key}".removeprefix("."), whole)
    else:
        yield prefix


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    found = _FENCED.findall(page.read_text(encoding="utf-8"))
    return [text for kind, text in found if kind == language]


def prose(page: Path) -> str:
    """The text without its code blocks."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def example_path(folder: Path) -> list[str]:
    """Make the example plugin count as installed wherever these folders are on `sys.path`."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    info = folder / f"mvw_example-{project['version']}.dist-info"
    info.mkdir(parents=True)
    header = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(header)
    points = [f"{name} = {module}\n" for name, module in project["entry-points"]["mvw"].items()]
    (info / "entry_points.txt").write_text("[mvw]\n" + "".join(points))
    return [str(folder), str(EXAMPLE)]


@contextmanager
def generator() -> Iterator[Any]:
    """Import docs/generate.py as its own process would, with fresh caches."""
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("generate")
    finally:
        sys.path.remove(str(DOCS))
        for name in [
            name for name in sys.modules if name.partition(".")[0] in ("generate", "regions")
        ]:
            del sys.modules[name]
