"""Whether two reports measured the same thing, and what else differs between them.

It does not know how figures are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mvw_cli.bench.report.documents import Arm, Cell, Report


def _value(report: Report, key: str) -> object:
    values = report.profile.get("values")
    return values.get(key) if isinstance(values, dict) else None


SAME: dict[str, Callable[[Report], object]] = {
    "other device": lambda r: f"{r.environment.device_name} ({r.model.device.partition(':')[0]})",
    "other model": lambda r: f"{r.model.name} of {r.model.adapter}",
    "other weights": lambda r: "random" if r.model.random_weights else "those of the checkpoint",
    "other dtype": lambda r: r.model.dtype,
    "other quantization": lambda r: _value(r, "quantization"),
    "other mode": lambda r: r.workload.mode,
    "other length of the output": lambda r: r.workload.new_tokens,
    "other number of vision tokens": lambda r: r.workload.vision_tokens,
    "other length of the prompt": lambda r: r.workload.prompt_tokens,
}
"""What has to be the same, and how it is read."""

MAY_DIFFER: dict[str, Callable[[Report], object]] = {
    "mvw": lambda r: r.environment.mvw,
    "Python": lambda r: r.environment.python,
    "torch": lambda r: r.environment.torch,
    "transformers": lambda r: r.environment.transformers,
    "flash-attn": lambda r: r.environment.flash_attn,
    "platform": lambda r: r.environment.platform,
    "CPU threads": lambda r: r.environment.threads,
    "attention": lambda r: r.model.attention,
    "cross_attention": lambda r: _value(r, "cross_attention"),
    "revision": lambda r: r.model.revision,
    "images": lambda r: f"{r.workload.image_width_px} x {r.workload.image_height_px} px",
    "items": lambda r: f"{r.workload.items} ({r.workload.source})",
    "seed": lambda r: r.workload.seed,
}
"""What a comparison may be about; a reader has to know of it."""


def obstacles(a: Report, b: Report) -> Iterator[str]:
    """Name what keeps the figures from being about the same thing."""
    for what, read in SAME.items():
        one, other = read(a), read(b)
        if one != other:
            yield f"{what}: {_word(one)} and {_word(other)}"
    revisions = a.model.revision, b.model.revision
    if None not in revisions and revisions[0] != revisions[1]:
        yield f"other revision of the model: {revisions[0]} and {revisions[1]}"
    bare = [name for name, report in (("first", a), ("second", b)) if not report.cells]
    if bare:
        yield f"nothing was measured in the {' and in the '.join(bare)}"
    elif not any(True for _ in common_cells(a, b)):
        one, other = (", ".join(str(cell.batch) for cell in r.cells) for r in (a, b))
        yield f"no batch size in common: {one} and {other}"
    elif not any(True for pair in common_cells(a, b) for _ in common_arms(*pair)):
        one, other = (", ".join(_names(report)) for report in (a, b))
        yield f"no arm in common: {one} and {other}"


def differences(a: Report, b: Report) -> Iterator[str]:
    """Name what differs and may."""
    for what, read in MAY_DIFFER.items():
        one, other = read(a), read(b)
        if one != other:
            yield f"{what} differs: {_word(one)} and {_word(other)}"
    batches = [{cell.batch for cell in report.cells} for report in (a, b)]
    for batch in sorted(batches[0] ^ batches[1]):
        yield f"batch {batch} is in one of them only"
    for one_cell, other_cell in common_cells(a, b):
        if one_cell.process != other_cell.process:
            yield (
                f"batch {one_cell.batch}: a process that is {one_cell.process} and one that is "
                f"{other_cell.process}"
            )
    arms = [set(_names(report)) for report in (a, b)]
    for name in sorted(arms[0] ^ arms[1]):
        yield f"the arm {name} is in one of them only"


def _word(value: object) -> str:
    return "none" if value is None else str(value)


def _names(report: Report) -> list[str]:
    return list(dict.fromkeys(arm.name for cell in report.cells for arm in cell.arms))


def common_cells(a: Report, b: Report) -> Iterator[tuple[Cell, Cell]]:
    """Pair the cells of the same batch size."""
    others = {cell.batch: cell for cell in b.cells}
    yield from ((cell, others[cell.batch]) for cell in a.cells if cell.batch in others)


def common_arms(one: Cell, other: Cell) -> Iterator[tuple[Arm, Arm]]:
    """Pair the arms of the same name."""
    others = {arm.name: arm for arm in other.arms}
    yield from ((arm, others[arm.name]) for arm in one.arms if arm.name in others)
