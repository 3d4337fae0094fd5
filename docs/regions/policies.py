"""Every policy on the embedded model: the table, and which combinations beat `mvw` alone."""

from __future__ import annotations

from typing import Any

from regions.figures import missing, ratio, result, where
from regions.reference import table

NONE, NO_IMAGE = "none", "no image"
_HEAD = (
    "Policy",
    "Right [95 %]",
    "Against full vision",
    "Answer, tokens",
    "Vision tokens per token",
    "KV cache: prefill, mean, token 64",
    "Prefill FLOPs",
    "Tokens/s",
)


def policies() -> str:
    """Write the table of all arms."""
    document = result("policies")
    if document is None:
        return missing("policies")
    arms = {one["policy"]: one for one in document["arms"]}
    base = arms[NONE]
    speed = document.get("speed") or {}
    rows = [_row(one, base, speed.get(one["policy"])) for one in document["arms"]]
    return (
        f"{table(_HEAD, rows)}\n\n"
        f"{document['questions']:,} held-out scenes, one question each, "
        f"{document['vision_tokens']} vision tokens, greedy. {where(document)}"
    )


def combinations() -> str:
    """Say of each combination how it does beside the `mvw` in it."""
    document = result("policies")
    if document is None:
        return missing("policies")
    arms = {one["policy"]: one for one in document["arms"]}
    rows = []
    for one in document["arms"]:
        name = one["policy"]
        alone = next((arms[other] for other in one["against"] if other != NONE), None)
        if alone is None:
            continue
        against = one["against"][alone["policy"]]
        rows.append(
            (
                f"`{name}`",
                _shift(against),
                _times(one["vision_attended_per_token"], alone["vision_attended_per_token"]),
                _times(one["kv_bytes_mean"], alone["kv_bytes_mean"]),
                _times(one["prefill_flops"], alone["prefill_flops"]),
                _verdict(against),
            )
        )
    head = ("Combination", "Right answers", "Vision per token", "KV, mean", "Prefill FLOPs", "")
    return table(head, rows)


def _row(
    one: dict[str, Any], base: dict[str, Any], speed: dict[str, Any] | None
) -> tuple[str, ...]:
    name = one["policy"]
    low, high = (100 * bound for bound in one["interval_95"])
    against = one["against"].get(NONE)
    sizes = one["kv_bytes_after_token"]
    kib = [one["kv_bytes_mean"], sizes.get("64")]
    written = ", ".join("-" if size is None else f"{size / 1024:.0f}" for size in kib)
    return (
        {NONE: "`none`: full vision", NO_IMAGE: "the question without any image"}.get(
            name, f"`{name}`"
        ),
        f"{100 * one['accuracy']:.1f} % [{low:.1f}, {high:.1f}]",
        "" if against is None else _shift(against),
        f"{one['tokens_mean']:.0f}",
        f"{one['vision_attended_per_token']:.1f}",
        f"{sizes['1'] / 1024:.0f}, {written} KiB",
        _times(one["prefill_flops"], base["prefill_flops"]),
        "" if speed is None else _speed(name, speed),
    )


def _speed(name: str, speed: dict[str, Any]) -> str:
    if name == NONE:
        return f"{speed['tokens_per_s']:.0f}"
    return ratio(speed["over_none"])


def _shift(against: dict[str, Any]) -> str:
    return f"{_points(against)}, {_p(against['p_value'])}"


def _points(against: dict[str, Any]) -> str:
    low, high = (-100 * bound for bound in reversed(against["drop_interval_95"]))
    return f"{-100 * against['drop']:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _times(figure: float, base: float) -> str:
    return f"{figure / base:.2f} ×"


def _verdict(against: dict[str, Any]) -> str:
    """Beats: saves more than `mvw` alone, and no loss of right answers is shown."""
    if against["p_value"] < 0.05:
        return "loses right answers" if against["drop"] > 0 else "has more right answers"
    return "no loss shown"
