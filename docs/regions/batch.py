"""Figures of `mvw batch` and `mvw serve`, from the JSON files that the benchmarks write."""

from __future__ import annotations

from regions.figures import BATCH_RATIOS, batch_ratio, missing, ratio, result, where
from regions.reference import table

_ARMS = {
    "generate": "`model.generate`, one image at a time",
    "static": "`model.generate`, static left-padded batches of {slots}",
    "mvw": "`mvw batch`, {slots} slots, no withdrawal",
    "mvw_withdrawn": "`mvw batch`, {slots} slots, withdrawn after {m} tokens",
    "budget": "`mvw batch`, {vision} vision tokens, {budget} for the KV cache, no withdrawal",
    "budget_withdrawn": "the same, withdrawn after {m} tokens",
}


def batch() -> str:
    """Write the arms, and what the ratios between them are."""
    document = result("batch")
    if document is None:
        return missing("batch")
    budget = f"{document['kv_budget_bytes'] / 2**20:.0f} MiB"
    vision = document["budget_vision_tokens"]
    facts = {"slots": document["slots"], "m": document["m"], "budget": budget, "vision": vision}
    rows = []
    for name, words in _ARMS.items():
        arm = document["arms"][name]
        peak = arm.get("kv_allocated_bytes_peak")
        rows.append(
            (
                words.format(**facts),
                f"{arm['items_per_s']:.2f}",
                f"{arm['tokens_per_s']:.0f}",
                f"{arm['in_flight']:.1f}" if "in_flight" in arm else "-",
                f"{peak / 2**20:.0f} MiB" if peak else "-",
            )
        )
    head = ("Arm", "Images/s", "Tokens/s", "In flight, mean", "KV cache, peak")
    ratios = [(what, batch_ratio(name)(document)) for name, what in BATCH_RATIOS.items()]
    pairs = document["ratios"]["mvw_over_generate"]["pairs"]
    lengths, same = document["new_tokens"], document["items_with_the_tokens_of_generate"]
    sentence = (
        f"{document['items']} images of {document['model']['vision_tokens']} vision tokens; "
        f"answers of {lengths['median']:.0f} tokens in the median, {lengths['p90']:.0f} at the "
        f"90th percentile, {lengths['max']} at most. `mvw batch` wrote the same tokens as "
        f"`model.generate` for {same['mvw']} of them. In the static batches "
        f"{document['static_rows_done_already']:.0%} of the rows of all steps were over already. "
        f"Bounds are by the bytes that decode steps read. Ratios are of {pairs} turns, with each "
        "arm once in each."
    )
    parts = [
        table(head, rows),
        table(("Images per second, `mvw batch` over", "Ratio"), ratios),
        f"{sentence} {where(document)}",
    ]
    return "\n\n".join(parts)


def batch_slots() -> str:
    """Write how the rate grows with the slots on this machine."""
    document = result("batch_slots")
    if document is None:
        return missing("batch_slots")
    rows = [(count, f"{rate:.2f}") for count, rate in document["items_per_s"].items()]
    return f"{table(('Slots', 'Images/s'), rows)}\n\n{where(document)}"


def batch_memory() -> str:
    """Write how memory grows over many items."""
    document = result("batch_memory")
    if document is None:
        return missing("batch_memory")
    rss = {name: f"{size / 2**20:.0f} MiB" for name, size in document["rss_bytes"].items()}
    return (
        f"Over {document['items']:,} images the process held {rss['at_a_tenth']} after a tenth of "
        f"them and {rss['at_the_end']} at the end ({document['growth']:.3f} ×), {rss['peak']} at "
        f"most; while the list was made {rss['listing_peak']} at most. Found again that nothing "
        f"was left to do: {document['seconds_of_finding_that_all_is_done']:.0f} s, "
        f"{rss['peak_of_finding_that_all_is_done']} at most. {where(document)}"
    )


_SERVE_ARMS = {
    "batch": "`mvw batch`, {slots} slots",
    "serve": "`mvw serve`, {slots} clients",
    "serve_streamed": "the same, streamed",
}


def serve() -> str:
    """Write the rate of a server beside that of a batch, and its memory over many requests."""
    document = result("serve")
    if document is None:
        return missing("serve")
    rows = []
    for name, words in _SERVE_ARMS.items():
        over = document["ratios"].get(f"{name}_over_batch")
        rate = f"{document['arms'][name]['items_per_s']:.2f}"
        rows.append((words.format(**document), rate, "-" if over is None else ratio(over)))
    soak = document["soak"]
    rss = {name: f"{size / 2**20:.0f} MiB" for name, size in soak["rss_bytes"].items()}
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in soak["kinds"].items())
    sentences = (
        f"{document['items']} scenes and questions, the same answers in every arm. Limit: "
        f"{document['limit']} ×. Threads of PyTorch in each arm: {document['threads_each']}. Over "
        f"{soak['requests']:,} requests ({kinds}), in {soak['seconds']:.0f} s, the server held "
        f"{rss['at_a_tenth']} after a tenth of them and {rss['at_the_end']} at the end "
        f"({soak['growth']:.3f} ×), {rss['peak']} at most."
    )
    head = ("Arm", "Answers/s", "Over `mvw batch`")
    return f"{table(head, rows)}\n\n{sentences} {where(document)}"
