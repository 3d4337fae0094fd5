"""The pictures of a report as SVG and PNG files, drawn by matplotlib (the extra `plot`).

The same report gives the same files: no dates, no random names within. It does not know what the
pictures mean.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mvw_cli.bench.report.documents import Report
from mvw_cli.bench.report.pictures import pictures
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.files import replacing
from mvw_cli.render.axis import ranges
from mvw_cli.render.picture import Line, Picture, Point
from mvw_cli.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["svg", "png"]
FORMATS: tuple[Format, ...] = ("svg", "png")
PALETTE = ("#59616b", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Grey for the baseline, then Okabe and Ito's colours, told apart by most colour-blind people."""
DASHES = ("-", (0, (6, 3)), (0, (1.5, 2)), (0, (7, 2, 1.5, 2)))
"""Neighbours differ in more than their colour."""
_SIZE_INCHES = (7.2, 3.8)
_DPI = 160
_STYLE = {
    "svg.hashsalt": "mvw",  # the same picture from the same figures
    "svg.fonttype": "none",  # text that can be read, searched and copied
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#d9dde3",
    "legend.frameon": False,
    "text.usetex": False,
    "text.parse_math": False,  # names of arms may hold a $
}


def check_library() -> None:
    """Refuse pictures where nothing can draw them.

    Raises:
        UsageProblem: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageProblem(
            "Cannot draw pictures",
            cause="that needs the package matplotlib, which is not installed",
            hint='pip install "mvw[plot]"',
        ) from None


def write_charts(report: Report, folder: Path) -> list[Path]:
    """Write every picture of a report into a folder, which is made if need be.

    Raises:
        UsageProblem: matplotlib is not installed.
        MvwError: a file can't be written.
    """
    check_library()
    written = []
    try:
        folder.mkdir(exist_ok=True)
        for picture in pictures(report):
            for kind in FORMATS:
                path = folder / f"{picture.name}.{kind}"
                with replacing(path) as file:
                    file.write(chart(picture, kind))
                written.append(path)
    except OSError as error:
        raise MvwError(
            f"Cannot write the pictures into {folder}",
            cause=error.strerror or str(error),
            hint=f"ls -ld {shlex.quote(str(folder))}",
        ) from None
    return written


def chart(picture: Picture, kind: Format) -> bytes:
    """Draw one picture; `matplotlib` has to be there."""
    from io import BytesIO

    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    with _drawing(picture) as figure:
        buffer = BytesIO()
        figure.savefig(buffer, format=kind, dpi=_DPI, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


@contextmanager
def _drawing(picture: Picture) -> Iterator[Figure]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):  # restored on leaving: others may use the library too
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        if picture.as_grid:
            _grid(figure, axes, picture)
            yield figure
            return
        for place, line in enumerate(picture.lines):
            _line(axes, line, place)
        if picture.behind and any(line.behind for line in picture.lines):
            axes.plot([], [], color=PALETTE[0], alpha=0.5, linewidth=1, label=picture.behind)
        _marks(axes, picture)
        for point in picture.points:
            _point(axes, point)
        if picture.level is not None:
            _level(axes, *picture.level)
        _finish(axes, picture)
        yield figure


def _colour(place: int) -> str:
    return PALETTE[0 if place == 0 else 1 + (place - 1) % (len(PALETTE) - 1)]


def _line(axes: Axes, line: Line, place: int) -> None:
    shade = _colour(line.colour)
    if line.behind is not None:
        axes.plot(line.xs, line.behind, color=shade, alpha=0.5, linewidth=1)
    marker = "o" if len(line.xs) == 1 else None
    axes.plot(line.xs, line.ys, color=shade, linestyle=DASHES[place % len(DASHES)],
              linewidth=1.8, marker=marker, label=one_line(line.name))  # fmt: skip


def _grid(figure: Figure, axes: Axes, picture: Picture) -> None:
    length = min(len(line.ys) for line in picture.lines)
    shown = axes.imshow(
        [line.ys[:length] for line in picture.lines], aspect="auto", interpolation="nearest",
        cmap="cividis", vmin=0,
        extent=(0.5, length + 0.5, len(picture.lines) - 0.5, -0.5),
    )  # fmt: skip
    axes.set_yticks(range(len(picture.lines)), [one_line(line.name) for line in picture.lines])
    axes.set(title=picture.title, xlabel=picture.x_label)
    axes.grid(False)
    figure.colorbar(shown, ax=axes, label=f"{picture.y_label}, {picture.unit}")


def _marks(axes: Axes, picture: Picture) -> None:
    marked: dict[int, Line] = {}
    for line in picture.lines:
        if line.withdrawn_after is not None:
            marked.setdefault(line.withdrawn_after, line)
    for row, (after, line) in enumerate(sorted(marked.items())):
        (low, high), _ = ranges(picture)
        if not low <= line.mark <= high:
            continue
        axes.axvline(line.mark, color=_colour(line.colour), linewidth=1, linestyle=":")
        axes.annotate(
            f"withdrawn after {after}" if row == 0 else str(after),
            (line.mark, 1.0), (4, -10 - 12 * (row % 4)), xycoords=("data", "axes fraction"),
            textcoords="offset points", color=_colour(line.colour), fontsize=9,
        )  # fmt: skip


def _point(axes: Axes, point: Point) -> None:
    def reach(value: float, ends: tuple[float, float] | None) -> tuple[list[float], list[float]]:
        low, high = ends or (value, value)
        return [max(0.0, value - low)], [max(0.0, high - value)]

    axes.errorbar(
        [point.x], [point.y], xerr=reach(point.x, point.x_interval),
        yerr=reach(point.y, point.y_interval), color=_colour(point.colour), marker="o", capsize=3,
        linestyle="none", label=one_line(point.name),
    )  # fmt: skip


def _level(axes: Axes, name: str, value: float) -> None:
    axes.axhline(value, color=PALETTE[0], linewidth=1, linestyle=":")
    axes.annotate(one_line(name), (1.0, value), (-2, 4), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="right", color=PALETTE[0], fontsize=9)  # fmt: skip


def _finish(axes: Axes, picture: Picture) -> None:
    xs, ys = ranges(picture)
    if picture.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")  # no mathtext
    axes.set(
        title=picture.title,
        xlabel=picture.x_label,
        ylabel=f"{picture.y_label}, {picture.unit}",
        xlim=xs,
        ylim=ys,
    )
    if picture.points:
        axes.axvline(1.0, color=PALETTE[0], linewidth=1, linestyle=":")
    named: list[Line | Point] = [*picture.lines, *picture.points]
    longest = max(len(picture.behind), *(len(item.name) for item in named))
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0, -0.16),
        ncols=max(1, min(4, 80 // (longest + 6))),
        fontsize=9,
        borderaxespad=0,
    )
