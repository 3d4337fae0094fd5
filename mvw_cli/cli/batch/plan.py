"""`mvw batch --dry-run`: what would run, and what it would take."""

from __future__ import annotations

from dataclasses import asdict

from mvw_cli import console
from mvw_cli.batch.serve.capacity import Survey
from mvw_cli.text import readable_bytes


def write_plan(survey: Survey, *, listed: int, to_do: int, output: str, as_json: bool) -> None:
    """Write to stdout what a run would take.

    Args:
        survey: of a sample of the items.
        listed: items of the work list; those that are not to do have their record.
    """
    median = survey.vision_tokens_median
    total = None if median is None else median * to_do
    if as_json:
        counts = {"listed": listed, "recorded": listed - to_do, "to_do": to_do, "output": output}
        console.write_json(
            {"schema_version": 1, **counts, "vision_tokens_total": total, **asdict(survey)}
        )
        return
    rows = [["to do", f"{to_do:,} of {listed:,} items"]]
    if listed > to_do:
        rows.append(["have their record", f"{listed - to_do:,}"])
    if survey.images_unreadable:
        unreadable = f"{survey.images_unreadable:,} of {survey.images_looked_at:,} looked at"
        rows.append(["unreadable", unreadable])
    if median is not None:
        each = f"{median:,} an item (median; {survey.vision_tokens_max:,} at most)"
        rows.append(["vision tokens", f"{each}, {total:,} in all"])
    if survey.prompts_too_long:
        fate = "they would fail" if survey.prompts_refused else "the model was not trained for that"
        which = f"{survey.prompts_too_long:,} of {listed:,} items, first {survey.first_too_long}"
        beyond = f"beyond the context of {survey.context_tokens:,} tokens, {fate}"
        rows.append(["prompts too long", f"{which}: {beyond}"])
    rows.append(["generated tokens", f"up to {survey.max_new_tokens:,} an item"])
    if survey.weight_bytes is not None:
        rows.append(["weights", readable_bytes(survey.weight_bytes)])
    if survey.limits is not None:
        rows.append(["slots", survey.limits.reason or f"{survey.limits.slots}, as given"])
    console.table(["DRY RUN", ""], [*rows, ["records to", output]])
