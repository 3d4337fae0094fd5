"""`mvw batch --dry-run`: what would run, and what it would take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mvw_cli import console
from mvw_cli.batch.serve.capacity import Survey, sample, survey
from mvw_cli.batch.store.tally import Tally
from mvw_cli.batch.store.worklist import WorkList
from mvw_cli.cli.batch.run import Task
from mvw_cli.profiles.resolution import generation_settings
from mvw_cli.profiles.schema import Profile
from mvw_cli.text import readable_bytes


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
        found = self.survey
        median, largest = found.vision_tokens or (None, None)
        before, after = found.slot_bytes or (None, None)
        return {
            "schema_version": 1,
            "listed": self.listed,
            "recorded": self.recorded,
            "to_do": self.to_do,
            "output": self.output,
            "images_looked_at": found.sampled,
            "images_unreadable": found.unreadable,
            "vision_tokens_median": median,
            "vision_tokens_max": largest,
            "vision_tokens_total": None if median is None else median * self.to_do,
            "max_new_tokens": self.max_new_tokens,
            "weight_bytes": found.weight_bytes,
            "kv_bytes_per_slot_before": before,
            "kv_bytes_per_slot_after": after,
            "memory_free_bytes": found.free_bytes,
            "limits": None if found.limits is None else asdict(found.limits),
        }

    def rows(self) -> list[list[str]]:
        """Write it for people."""
        found, rows = self.survey, [["to do", f"{self.to_do:,} of {self.listed:,} items"]]
        if self.recorded:
            rows.append(["have their record", f"{self.recorded:,}"])
        if found.unreadable:
            rows.append(["unreadable", f"{found.unreadable:,} of {found.sampled:,} looked at"])
        if found.vision_tokens is not None:
            median, largest = found.vision_tokens
            each = f"{median:,} an item (median; {largest:,} at most)"
            rows.append(["vision tokens", f"{each}, {median * self.to_do:,} in all"])
        rows.append(["generated tokens", f"up to {self.max_new_tokens:,} an item"])
        if found.weight_bytes is not None:
            rows.append(["weights", readable_bytes(found.weight_bytes)])
        if found.slot_bytes is not None:
            before, after = map(readable_bytes, found.slot_bytes)
            text = f"up to {before}, {after} once vision is withdrawn"
            rows.append(["KV cache of an item", text])
        if found.free_bytes is not None:
            rows.append(["memory free", readable_bytes(found.free_bytes)])
        if found.limits is not None:
            rows.append(["slots", found.limits.reason or f"{found.limits.slots}, as given"])
        return [*rows, ["records to", self.output]]


def write_plan(
    task: Task, profile: Profile, worklist: WorkList, tally: Tally, *, to_do: int, output: str
) -> None:
    """Look at a sample of the items, and write to stdout what a run would take.

    Raises:
        UsageProblem: no model is named.
    """
    plan = Plan(
        listed=tally.listed,
        recorded=tally.listed - to_do,
        to_do=to_do,
        output=output,
        survey=survey(
            sample(iter(worklist), tally.listed),
            profile,
            slots=task.slots,
            kv_bytes=task.kv_memory,
        ),
        max_new_tokens=generation_settings(profile).max_new_tokens,
    )
    if task.as_json:
        console.write_json(plan.to_dict())
    else:
        console.table(["DRY RUN", ""], plan.rows())
