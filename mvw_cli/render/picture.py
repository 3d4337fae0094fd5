"""What a picture is made of: lines with their marks, and points with their intervals.

It knows neither reports nor how anything is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Line:
    """A curve, and the moment of the withdrawal on it."""

    name: str
    colour: int
    """Place in a palette; 0 is the baseline's."""
    xs: list[float]
    ys: list[float]
    behind: list[float] | None = None
    """A second curve at the same places, drawn more faintly."""
    withdrawn_after: int | None = None
    mark: float = 0.0
    """Where that is on the x axis."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place with its 95 % intervals."""

    name: str
    colour: int
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture. Both axes carry numbers; that of the curves' y starts at 0 or is logarithmic."""

    name: str
    """As a file would be called: `time-per-token-batch-8`."""
    title: str
    x_label: str
    y_label: str
    unit: str
    """Of y."""
    says: str
    """A sentence on what is to be seen, also for those who can't see it."""
    lines: list[Line] = field(default_factory=list)
    behind: str = ""
    """What the faint curves are."""
    points: list[Point] = field(default_factory=list)
    level: tuple[str, float] | None = None
    """A name and the height of a line across the picture."""
    as_grid: bool = False
    """Too many lines to be told apart: each is a row, and its colour stands for y."""
    logarithmic: bool = False
    """Whether equal steps of y are equal factors; there are curves then, all above 0."""
