"""`mvw batch --dry-run`: what would run, and what it would take."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mvw_cli import console
from mvw_cli.batch.serve.capacity import Survey
from mvw_cli.text import readable_bytes


def write_plan(
    survey: Survey,
    *,
    listed: int,
    to_do: int,
    max_new_tokens: int,
    output: str,
    as_json: bool,
) -> None:
    """Write to stdout what a run would take.

    Args:
        survey: of a sample of the items.
        listed: items of the work list; those that are not to do have their record.
    """
    if as_json:
        console.write_json(_document(survey, listed, to_do, max_new_tokens, output))
        return
    rows = [["to do", f"{to_do:,} of {listed:,} items"]]
    if listed > to_do:
        rows.append(["have their record", f"{listed - to_do:,}"])
    if survey.unreadable:
        rows.append(["unreadable", f"{survey.unreadable:,} of {survey.sampled:,} looked at"])
    if survey.vision_tokens is not None:
        median, largest = survey.vision_tokens
        each = f"{median:,} an item (median; {largest:,} at most)"
        rows.append(["vision tokens", f"{each}, {median * to_do:,} in all"])
    rows.append(["generated tokens", f"up to {max_new_tokens:,} an item"])
    if survey.weight_bytes is not None:
        rows.append(["weights", readable_bytes(survey.weight_bytes)])
    if survey.slot_bytes is not None:
        before, after = map(readable_bytes, survey.slot_bytes)
        rows.append(["KV cache of an item", f"up to {before}, {after} once vision is withdrawn"])
    if survey.free_bytes is not None:
        rows.append(["memory free", readable_bytes(survey.free_bytes)])
    if survey.limits is not None:
        rows.append(["slots", survey.limits.reason or f"{survey.limits.slots}, as given"])
    console.table(["DRY RUN", ""], [*rows, ["records to", output]])


def _document(
    survey: Survey, listed: int, to_do: int, max_new_tokens: int, output: str
) -> dict[str, Any]:
    """Serialise, as `--json` writes it; docs/json.md describes it."""
    median, largest = survey.vision_tokens or (None, None)
    before, after = survey.slot_bytes or (None, None)
    return {
        "schema_version": 1,
        "listed": listed,
        "recorded": listed - to_do,
        "to_do": to_do,
        "output": output,
        "images_looked_at": survey.sampled,
        "images_unreadable": survey.unreadable,
        "vision_tokens_median": median,
        "vision_tokens_max": largest,
        "vision_tokens_total": None if median is None else median * to_do,
        "max_new_tokens": max_new_tokens,
        "weight_bytes": survey.weight_bytes,
        "kv_bytes_per_slot_before": before,
        "kv_bytes_per_slot_after": after,
        "memory_free_bytes": survey.free_bytes,
        "limits": None if survey.limits is None else asdict(survey.limits),
    }
