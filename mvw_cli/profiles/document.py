"""Read YAML as plain data, with the line of every key.

The safe part of YAML and no more: text, numbers, true/false, null, lists and mappings, read by
the rules of YAML 1.2 (`no` is text, `1e-3` is a number) as editors do. No tags that name code,
no key given twice, and bounds on size, depth and aliases.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from yaml.reader import ReaderError

MAX_BYTES = 256 * 1024
_MAX_NODES = 10_000
_MAX_DEPTH = 20
_TAG = "tag:yaml.org,2002:"

KeyPath = tuple[str | int, ...]


class DocumentError(Exception):
    """The text is not what this module reads."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data, and the line (from 1) on which each key or item stands."""

    value: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Compose nodes only; tags are told by the YAML 1.2 core schema."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class' own interface
        None: [
            (_TAG + tag, re.compile(rf"(?:{pattern})\Z"))
            for tag, pattern in (
                ("null", r"~|null|Null|NULL|"),
                ("bool", r"true|True|TRUE|false|False|FALSE"),
                ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
                (
                    "float",
                    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
                    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
                ),
            )
        ]
    }


_CONVERSIONS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": lambda text: int(text, 0 if text[:2] in ("0o", "0x") else 10),
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}


def read(text: str) -> Document:
    """Read one YAML document.

    Raises:
        DocumentError: bad YAML, a key given twice, a tag, or too large.
    """
    try:
        node = _Loader(text).get_single_node()
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError("a character that YAML does not allow", line) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "not YAML"
        raise DocumentError(reason, mark.line + 1 if mark else None) from error
    except RecursionError as error:
        raise DocumentError("nested too deeply") from error
    if node is None:
        return Document(None)
    builder = _Builder()
    return Document(builder.build(node, ()), builder.lines)


class _Builder:
    """Make plain data of nodes. Counts what it makes: aliases can multiply without end."""

    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._made = 0

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._made += 1
        if self._made > _MAX_NODES:
            raise DocumentError("too many values (aliases count each time)", line)
        if len(path) > _MAX_DEPTH:
            raise DocumentError("nested too deeply", line)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, line)
        raise DocumentError(f"tag {node.tag} is not allowed", line)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise DocumentError("a key must be a word", line)
            key = str(key_node.value)
            here = (*path, key)
            if key in values:
                first = self.lines[here]
                raise DocumentError(f"key `{key}` is given twice (first in line {first})", line)
            self.lines[here] = line
            values[key] = self.build(value_node, here)
        return values


def _scalar(node: yaml.ScalarNode, line: int) -> Any:
    text = str(node.value)
    kind = node.tag.removeprefix(_TAG)
    if kind not in _CONVERSIONS:
        raise DocumentError(f"tag {node.tag} is not allowed", line)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DocumentError("half of a surrogate pair is no character", line)
    try:
        return _CONVERSIONS[kind](text)
    except (ValueError, KeyError) as error:
        raise DocumentError(f"`{text[:40]}` is no {kind}", line) from error


class RawText(str):
    """A value as it was typed, to be read as YAML once the type of its key is known."""

    __slots__ = ()


def interpret(value: Any, annotation: Any) -> Any:
    """Read a typed text as YAML, unless the key takes text and YAML would see something else."""
    if not isinstance(value, RawText):
        return value
    try:
        read_as = read(value).value
    except DocumentError:
        return str(value)
    if not _takes_text(annotation) or isinstance(read_as, str):
        return read_as
    is_null = read_as is None and value.strip().lower() in ("", "~", "null")
    return None if is_null else str(value)


def _takes_text(annotation: Any) -> bool:
    """Whether a field of this type is text, so that `--set revision=123` is no number."""
    if get_origin(annotation) in (Union, UnionType):
        return str in get_args(annotation)
    return annotation is str
