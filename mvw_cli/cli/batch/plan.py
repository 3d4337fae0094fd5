"""`mvw batch --dry-run`: what would run, and what it would take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mvw_cli import console
from mvw_cli.batch.serve.capacity import Survey, sample, survey
from mvw_cli.text import readable_bytes

if TYPE_CHECKING:
    from mvw_cli.cli.batch.task import Begun, Task


@dataclass(frozen=True, slots=True)
class Plan:
    """The figures of a dry run."""

    listed: int
    recorded: int
    """Items of the log that have their record, failed ones included."""
    to_do: int
    output: str
    survey: Survey
    max_new_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Serialise, as `--json` writes it; docs/json.md describes it."""
        seen = self.survey
        total = None
        if seen.vision_tokens is not None:
            total = seen.vision_tokens[0] * self.to_do
        return {
            "schema_version": 1,
            "listed": self.listed,
            "recorded": self.recorded,
            "to_do": self.to_do,
            "output": self.output,
            "images_looked_at": seen.sampled,
            "images_unreadable": seen.unreadable,
            "vision_tokens_median": seen.vision_tokens and seen.vision_tokens[0],
            "vision_tokens_max": seen.vision_tokens and seen.vision_tokens[1],
            "vision_tokens_total": total,
            "max_new_tokens": self.max_new_tokens,
            "weight_bytes": seen.weight_bytes,
            "kv_bytes_per_slot_before": seen.slot_bytes and seen.slot_bytes[0],
            "kv_bytes_per_slot_after": seen.slot_bytes and seen.slot_bytes[1],
            "memory_free_bytes": seen.free_bytes,
            "limits": None if seen.limits is None else asdict(seen.limits),
        }


def plan(task: Task, begun: Begun) -> Plan:
    """Count the items and look at a sample of them.

    Raises:
        UsageProblem: no model is named.
    """
    from mvw_cli.profiles.resolution import generation_settings

    profile = begun.resolved.profile
    to_do = sum(1 for _ in begun.items) + (begun.first is not None)
    return Plan(
        listed=begun.tally.listed,
        recorded=begun.tally.listed - to_do,
        to_do=to_do,
        output=begun.output.name,
        survey=survey(
            sample(iter(begun.worklist), begun.tally.listed),
            profile,
            slots=task.slots,
            kv_bytes=task.kv_memory,
        ),
        max_new_tokens=generation_settings(profile).max_new_tokens,
    )


def write(plan: Plan, *, as_json: bool) -> None:
    """Write it to stdout."""
    if as_json:
        console.write_json(plan.to_dict())
        return
    seen, rows = plan.survey, [["to do", f"{plan.to_do:,} of {plan.listed:,} items"]]
    if plan.recorded:
        rows.append(["have their record", f"{plan.recorded:,}"])
    if seen.unreadable:
        rows.append(["unreadable", f"{seen.unreadable:,} of {seen.sampled:,} looked at"])
    if seen.vision_tokens is not None:
        median, largest = seen.vision_tokens
        total = median * plan.to_do
        rows.append(
            ["vision tokens", f"{median:,} an item (median; {largest:,} at most), {total:,} in all"]
        )
    rows.append(["generated tokens", f"up to {plan.max_new_tokens:,} an item"])
    if seen.weight_bytes is not None:
        rows.append(["weights", readable_bytes(seen.weight_bytes)])
    if seen.slot_bytes is not None:
        before, after = map(readable_bytes, seen.slot_bytes)
        rows.append(["KV cache of an item", f"up to {before}, {after} once vision is withdrawn"])
    if seen.free_bytes is not None:
        rows.append(["memory free", readable_bytes(seen.free_bytes)])
    if seen.limits is not None:
        rows.append(["slots", seen.limits.reason or f"{seen.limits.slots}, as given"])
    rows.append(["records to", plan.output])
    console.table(["DRY RUN", ""], rows)
