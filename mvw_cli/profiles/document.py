"""Read YAML as plain data, with the line of every key.

The safe part of YAML and no more: text, numbers, true/false, null, lists and mappings, read by
the rules of YAML 1.2 (`no` is text, `1e-3` is a number) as editors do. No tags that name code, no
anchors, which can multiply without end, and no key given twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml

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

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem="anchors are not read", problem_mark=mark)
        return super().compose_node(parent, index)


def _int(text: str) -> int:
    number = int(text, 0 if text[:2] in ("0o", "0x") else 10)
    if number.bit_length() > 64:
        raise ValueError(text)
    return number


def _text(text: str) -> str:
    if "\0" in text:  # no file's name holds one
        raise ValueError(text)
    return text.encode().decode()  # half of a surrogate pair is no text


_CONVERSIONS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": _int,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": _text,
}
_KINDS = {"str": "text", "int": "whole number of 64 bits", "float": "number"}
"""What is said of a value that is none of its kind."""


def read(text: str) -> Document:
    """Read one YAML document.

    Raises:
        DocumentError: bad YAML, a key given twice, a tag or an anchor.
    """
    lines: dict[KeyPath, int] = {}
    try:
        node = _Loader(text).get_single_node()
        return Document(None if node is None else _plain(node, (), lines), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "not YAML"
        raise DocumentError(reason, mark.line + 1 if mark else None) from error
    except yaml.YAMLError as error:
        raise DocumentError(str(error).splitlines()[0]) from error
    except (ValueError, OverflowError) as error:  # PyYAML's own, of "\UFFFFFFFF" for one
        raise DocumentError(f"not YAML: {error}") from error
    except RecursionError as error:
        raise DocumentError("nested too deeply") from error


def _plain(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    """Make plain data of a node, and note the line of each key and item."""
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise DocumentError("a key must be a word", line)
            key = _converted(str(key_node.value), "str", line)
            here = (*path, key)
            if key in values:
                raise DocumentError(
                    f"key `{key}` is given twice (first in line {lines[here]})", line
                )
            lines[here] = line
            values[key] = _plain(value_node, here, lines)
        return values
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        lines.update({(*path, n): one.start_mark.line + 1 for n, one in enumerate(node.value)})
        return [_plain(one, (*path, n), lines) for n, one in enumerate(node.value)]
    kind = node.tag.removeprefix(_TAG)
    if kind not in _CONVERSIONS or not isinstance(node, yaml.ScalarNode):
        raise DocumentError(f"tag {node.tag} is not allowed", line)
    return _converted(str(node.value), kind, line)


def _converted(text: str, kind: str, line: int) -> Any:
    try:
        return _CONVERSIONS[kind](text)
    except (ValueError, KeyError) as error:
        raise DocumentError(f"`{text[:40]}` is no {_KINDS.get(kind, kind)}", line) from error


class RawText(str):
    """A value as it was typed, to be read as YAML once the type of its key is known."""

    __slots__ = ()


def interpret(value: Any, annotation: Any) -> Any:
    """Read a typed text as YAML, unless the key takes text and YAML would see something else.

    So `--set revision=123` is no number.
    """
    if not isinstance(value, RawText):
        return value
    try:
        read_as = read(value).value
    except DocumentError:
        return str(value)
    alternatives = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    if isinstance(read_as, str) or str not in (annotation, *alternatives):
        return read_as
    is_null = read_as is None and value.strip().lower() in ("", "~", "null")
    return None if is_null else str(value)
