"""Text of the command line and of variables, which is read as YAML once its type is known."""

from __future__ import annotations

from typing import Any

from mvw_cli.profiles.document import DocumentError, read
from mvw_cli.profiles.schema import takes_text


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
    if not takes_text(annotation) or isinstance(read_as, str):
        return read_as
    is_null = read_as is None and value.strip().lower() in ("", "~", "null")
    return None if is_null else str(value)
