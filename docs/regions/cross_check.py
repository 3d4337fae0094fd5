"""What `mvw profile` and a public harness say of one model, side by side."""

from __future__ import annotations

from typing import Any

from regions.figures import missing, ratio, result, where
from regions.reference import table

_NAMED = {"ttft": "TTFT", "tpot": "TPOT", "tpot_mean": "TPOT by the mean of its steps"}


def cross_check() -> str:
    """Write both instruments' figures, and how far they agree."""
    document = result("cross_check")
    if document is None:
        return missing("cross_check")
    harness = f"{document['harness']['name']} {document['harness']['version']}"
    shown = {
        "profiler": ("`mvw profile`", "the engine"),
        "harness": (harness, "the engine"),
        "harness_generate": (harness, "`model.generate`"),
    }
    rows = [(*words, *_times(document, key)) for key, words in shown.items()]
    head = ("Instrument", "What it timed", "TTFT, median", "p90", "TPOT, median", "p90")
    model = document["model"]
    shape = (
        f"{model['layers']} layers × {model['width']}, {model['vision_tokens']:,} vision tokens, "
        f"{document['new_tokens']} new tokens, {model['dtype']}."
    )
    ratios = document["profiler_over_harness"]
    agreement = "; ".join(f"{_NAMED[key]} {ratio(one)}" for key, one in ratios.items())
    other = "; ".join(
        f"{_NAMED[key]} {ratio(one)}"
        for key, one in document["generate_over_engine_by_harness"].items()
    )
    sentences = (
        f"{shape} `mvw profile` over the harness, both on the engine: {agreement}. "
        f"{_verdict(document)} `generate` over the engine, both by the harness: {other}."
    )
    return f"{table(head, rows)}\n\n{sentences} {where(document)}"


def _times(document: dict[str, Any], key: str) -> tuple[str, str, str, str]:
    ttft, tpot = document["ttft_ms"][key], document["tpot_ms"][key]
    return (
        f"{ttft['median']:.0f} ms",
        f"{ttft['p90']:.0f} ms",
        f"{tpot['median']:.2f} ms",
        f"{tpot['p90']:.2f} ms",
    )


def _verdict(document: dict[str, Any]) -> str:
    limit = f"The limit of {100 * document['limit']:.0f} %"
    missed = [_NAMED[key] for key, met in document["within_limit"].items() if not met]
    if missed:
        return f"{limit} is not met by {' nor by '.join(missed)}."
    wide = [_NAMED[key] for key, met in document["interval_within_limit"].items() if not met]
    if wide:
        return f"{limit} is met by each median, not by the whole interval of {' and '.join(wide)}."
    return f"{limit} is met by each of these, with its whole interval."
