"""The engine: encoded requests in, events out.

It serves models through transformers' interfaces alone, and never prints.
"""

from typing import TYPE_CHECKING, Any

from mvw_cli.engine.types import (
    Admitted,
    Completion,
    Event,
    Failed,
    Finished,
    GenerationSettings,
    Prefilled,
    Request,
    Restored,
    Token,
    Withdrawn,
    summarise,
)

if TYPE_CHECKING:
    from mvw_cli.engine.engine import Engine as Engine

__all__ = [
    "Admitted",
    "Completion",
    "Engine",
    "Event",
    "Failed",
    "Finished",
    "GenerationSettings",
    "Prefilled",
    "Request",
    "Restored",
    "Token",
    "Withdrawn",
    "summarise",
]


def __getattr__(name: str) -> Any:
    # The engine itself needs torch; events and requests do not.
    if name == "Engine":
        from mvw_cli.engine.engine import Engine

        return Engine
    raise AttributeError(f"module 'mvw_cli.engine' has no attribute {name!r}")
