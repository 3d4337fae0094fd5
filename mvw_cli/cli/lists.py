"""Option values that are lists, with commas between what is in them."""

from __future__ import annotations

from typing import Any

import click


class Listed(click.ParamType[Any, Any]):
    """Values with commas between them, each once, in the order given.

    Args:
        of: what each value is.
        word: a value that is taken as it is.
    """

    def __init__(self, of: click.ParamType[Any, Any], name: str, word: str | None = None) -> None:
        self.name = name
        self._of, self._word = of, word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if not parts:
            self.fail("it is empty.", param, ctx)
        found = (
            part if part == self._word else self._of.convert(part, param, ctx) for part in parts
        )
        return tuple(dict.fromkeys(found))
