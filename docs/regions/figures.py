"""Figures, from the JSON files that the benchmarks write. A file that is missing is said to be.

Nothing is computed here but the rounding, and no ratio is called better or worse whose interval
covers 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from mvw_cli.bench.stats import FEWEST_PAIRS
from regions.reference import table

_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = _ROOT / "benchmarks" / "results"
_DOCS = _ROOT / "docs"

CAPTION_END, NEVER = "</CAPTION>", "never"
COMMANDS = {
    "curve": "make curve",
    "startup": "python benchmarks/startup.py",
    "infer_wall": "python benchmarks/infer_wall.py",
    "decode": "python benchmarks/decode.py",
    "cross_attention": "python benchmarks/cross_attention.py",
    "mla_decode": "python benchmarks/mla_decode.py",
    "batch": "python benchmarks/batch.py",
    "batch_slots": "python benchmarks/batch.py --sweep",
    "batch_memory": "python benchmarks/batch_memory.py",
    "serve": "python benchmarks/serve.py",
    "vllm_speed": "python benchmarks/vllm_speed.py",
    "curve_easy_vqa": "make curve",
    "cross_check": "make cross-check",
    "policies": "python benchmarks/policies.py",
    "calibrate": "python benchmarks/calibrate.py",
}


BATCH_RATIOS = {
    "mvw_over_generate": "`model.generate`, one image at a time",
    "mvw_over_static": "`model.generate` in static batches",
    "withdrawn_over_mvw": "itself without withdrawal, at as many slots",
    "budget_withdrawn_over_budget": "itself without withdrawal, at equal memory",
}


@cache
def result(name: str) -> dict[str, Any] | None:
    """Read a result file, or return None where it has not been written yet."""
    path = (_DOCS if name.startswith("curve") else _RESULTS) / f"{name}.json"
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def curve() -> str:
    """Write the picture of the README, and the sentence that says what it shows."""
    document = result("curve")
    if document is None or not (_DOCS / "curve.svg").exists():
        return missing("curve")
    points = {point["m"]: point for point in document["points"]}
    never, tag, first = points[NEVER], points[CAPTION_END], points[1]
    sentence = (
        f"The embedded model on {never['questions']:,} held-out scenes: {_share(never)} of the "
        f"answers are right without withdrawal, {_share(tag)} with the vision tokens withdrawn at "
        f"the end of the caption, and {_share(first)} with m = 1. Below, the cache entries that a "
        f"generated token attends to at each layer: {never['mean_kv_entries_attended']:.0f} "
        f"without withdrawal, {tag['mean_kv_entries_attended']:.0f} with it at the end of the "
        "caption."
    )
    return f"![Accuracy against the moment of withdrawal](docs/curve.svg)\n\n{sentence}"


def curve_table() -> str:
    """Write the curve as a table."""
    document = result("curve")
    if document is None:
        return missing("curve")
    rows = []
    for point in document["points"]:
        low, high = (100 * bound for bound in point["interval_95"])
        rows.append(
            (
                f"`{point['m']}`",
                f"{100 * point['accuracy']:.1f} %",
                f"{low:.1f} to {high:.1f} %",
                f"{point['withdrawn']:,} of {point['questions']:,}",
                f"{point['mean_tokens']:.1f}",
                f"{point['mean_kv_entries_attended']:.0f}",
            )
        )
    head = (
        "Withdrawn after … tokens",
        "Right answers",
        "95 % interval",
        "Withdrawn before the end",
        "Generated tokens, mean",
        "Entries attended to, mean",
    )
    return f"{table(head, rows)}\n\n{where(document)}"


def curve_easy_vqa() -> str:
    """Write what `mvw eval` says of easy-VQA's test split, with its picture."""
    document = result("curve_easy_vqa")
    if document is None:
        return missing("curve_easy_vqa")
    rows = []
    for arm in document["arms"]:
        low, high = (100 * bound for bound in arm["interval_95"])
        change = "-"
        if arm["change"] is not None:
            below, above = (100 * bound for bound in arm["change"]["interval_95"])
            change = f"{100 * arm['change']['change']:+.1f} [{below:+.1f}, {above:+.1f}]"
        rows.append(
            (
                f"`{arm['name']}`",
                f"{100 * arm['score']:.1f} %",
                f"{low:.1f} to {high:.1f} %",
                change,
                f"{arm['generated_tokens']:.1f}",
                f"{arm['kv_bytes_end'] / 2**20:.2f} MiB",
            )
        )
    head = (
        "Arm",
        "Right answers",
        "95 % interval",
        "Change against never, points",
        "Generated tokens, mean",
        "KV cache at the end, mean",
    )
    picture = "![Accuracy on easy-VQA against the moment of withdrawal](curve_easy_vqa.svg)"
    sentence = f"{document['questions']:,} questions. {where(document)}"
    return f"{picture}\n\n{table(head, rows)}\n\n{sentence}"


def startup() -> str:
    """Write the start-up times as a table."""
    document = result("startup")
    if document is None:
        return missing("startup")
    named = {
        "python_ms": "`python -c pass`",
        "python_click_ms": '`python -c "import click"`',
        "help_ms": "`mvw --help`",
        "infer_help_ms": "`mvw infer --help`",
        "list_adapters_ms": "`mvw list adapters`",
    }
    limits = document["limits_ms"]
    rows = [
        (
            named[key],
            f"{document[key]['median']:.0f} ms",
            f"{document[key]['p90']:.0f} ms",
            f"{limits[key]} ms" if key in limits else "-",
        )
        for key in named
    ]
    return f"{table(('Command', 'Median', 'p90', 'Limit'), rows)}\n\n{where(document)}"


def infer_wall() -> str:
    """Write the wall times of whole processes as a table."""
    document = result("infer_wall")
    if document is None:
        return missing("infer_wall")
    named = {
        "plain_script_s": "`benchmarks/plain_script.py`",
        "mvw_infer_s": "`mvw infer`",
        "mvw_infer_no_withdrawal_s": "`mvw infer --no-withdrawal`",
    }
    rows = [
        (named[key], f"{document[key]['median']:.2f} s", f"{document[key]['p90']:.2f} s")
        for key in named
    ]
    share = f"`mvw infer` takes {ratio(document['infer_over_plain'])} of the plain script's time"
    limit = f"The limit is {document['limit']} times."
    return f"{table(('Process', 'Median', 'p90'), rows)}\n\n{share}. {limit} {where(document)}"


def decode() -> str:
    """Write the decode speeds as a table."""
    document = result("decode")
    if document is None:
        return missing("decode")
    named = {
        "generate": "`model.generate`",
        "engine": "engine, no withdrawal",
        "engine_withdrawn": f"engine, m = {document['m']}",
    }
    model = document["model"]
    sentences = (
        f"{model['layers']} layers × {model['width']}, {model['vision_tokens']:,} vision tokens, "
        f"{document['new_tokens']} new tokens, {model['dtype']}. Tokens per second, engine over "
        f"`generate`: {ratio(document['engine_over_generate_tokens_per_s'])}. With withdrawal "
        f"over without: {ratio(document['withdrawn_over_not_tokens_per_s'])}; the bound, by the "
        f"bytes that a step has to read, is {document['bound_withdrawn_over_not']:.2f} ×."
    )
    return f"{_times(document, named)}\n\n{sentences} {where(document)}"


def cross_attention() -> str:
    """Write what withdrawal gains in a cross-attention model, for both kinds."""
    document = result("cross_attention")
    if document is None:
        return missing("cross_attention")
    named = {
        "generate": "`model.generate`",
        "engine": "engine, no withdrawal",
        "engine_skip": f"engine, m = {document['m']}, `skip`",
        "engine_mlp": f"engine, m = {document['m']}, `mlp`",
    }
    gains = " ".join(
        f"`{kind}` over none: {ratio(gain['tokens_per_s_over_no_withdrawal'])}, by bytes "
        f"{gain['bound']:.2f} ×."
        for kind, gain in document["withdrawal"].items()
    )
    sentences = (
        f"{document['model']['vision_states']:,} vision states in "
        f"{len(document['model']['cross_attention_layers'])} of {document['model']['layers']} "
        f"layers. Engine over `generate`: {ratio(document['engine_over_generate_tokens_per_s'])}."
    )
    return f"{_times(document, named)}\n\n{sentences} {gains} {where(document)}"


def mla_decode() -> str:
    """Write what the absorbed form of latent attention gains."""
    document = result("mla_decode")
    if document is None:
        return missing("mla_decode")
    named = {
        "generate": "`model.generate`",
        "engine_expanded": "engine, expanded",
        "engine_absorbed": "engine, absorbed",
    }
    model = document["model"]
    sentences = (
        f"{model['layers']} layers × {model['width']}, {model['heads']} heads, latents of "
        f"{model['kv_lora_rank']}, {model['vision_tokens']:,} vision tokens. Absorbed over "
        f"expanded: {ratio(document['absorbed_over_expanded_tokens_per_s'])}; multiplications "
        f"alone would allow {document['bound_by_multiplications']:.0f} ×."
    )
    return f"{_times(document, named)}\n\n{sentences} {where(document)}"


_VLLM_ARMS = {
    "never": "the plugin, nothing withdrawn",
    "withdrawn": "the plugin, m = {m}",
    "text": "vLLM alone, asked without an image: the bound",
}


def vllm() -> str:
    """Write how fast vLLM decodes with withdrawal, beside vLLM alone and beside its bound."""
    document = result("vllm_speed")
    if document is None:
        return missing("vllm_speed")
    rows = [
        (
            f"{dtype}, {count} at once",
            _VLLM_ARMS[arm].format(m=document["m"]),
            f"{median(cell['tokens_per_s'][arm]):.0f}",
            ratio(over),
        )
        for name, cell in document["decode"].items()
        for dtype, count in [name.split(", ")]
        for arm, over in cell["ratio"].items()
    ]
    head = ("Requests", "Arm", "Decoded tokens/s", "Over vLLM alone")
    pool, batch = document["pool"], document["batch"]
    flying, images = pool["in_flight"], pool["images_per_s"]
    whole = pool["in_flight_whole_run"]
    sentences = (
        f"A KV pool that holds 8 requests with their vision, 64 images with log-normal answers: "
        f"{flying['never']:.1f} requests in flight without withdrawal and "
        f"{flying['withdrawn']:.1f} with it while others wait, over the whole run with its tail of "
        f"long answers {whole['never']:.1f} and {whole['withdrawn']:.1f}; "
        f"{median(images['never']):.2f} and {median(images['withdrawn']):.2f} images per second, "
        f"{ratio(pool['ratio'])}. "
        f"`mvw batch --engine vllm` against the shortest script around `LLM.generate`, images per "
        f"second: {ratio(batch['ratio'])}. vLLM {document['vllm']}."
    )
    return f"{table(head, rows)}\n\n{sentences} {where(document)}"


def _times(document: dict[str, Any], named: dict[str, str]) -> str:
    """Write the time per token of each arm as a table."""
    tpot = document["tpot_ms"]
    rows = [
        (named[key], f"{tpot[key]['median']:.2f} ms", f"{tpot[key]['p90']:.2f} ms") for key in named
    ]
    return table(("Arm", "Time per token, median", "p90"), rows)


def measured() -> str:
    """Write the README's table: each figure, its value, the command behind it."""
    rows = [
        *_curve_rows(),
        _row(
            "startup",
            "Start of `mvw --help`, median",
            lambda d: f"{d['help_ms']['median']:.0f} ms (limit {d['limits_ms']['help_ms']})",
        ),
        _row(
            "startup",
            "Start of `mvw list adapters`, median",
            lambda d: (
                f"{d['list_adapters_ms']['median']:.0f} ms "
                f"(limit {d['limits_ms']['list_adapters_ms']})"
            ),
        ),
        _row(
            "infer_wall",
            "Wall time of `mvw infer` over the shortest plain script",
            lambda d: ratio(d["infer_over_plain"]),
        ),
        _row(
            "decode",
            "Tokens per second, engine over `model.generate`, no withdrawal",
            lambda d: ratio(d["engine_over_generate_tokens_per_s"]),
        ),
        _row(
            "decode",
            "Tokens per second, with withdrawal over without",
            lambda d: (
                f"{ratio(d['withdrawn_over_not_tokens_per_s'])}, "
                f"bound {d['bound_withdrawn_over_not']:.2f} ×"
            ),
        ),
        *(
            _row("batch", f"Images per second, `mvw batch` over {what}", batch_ratio(name))
            for name, what in BATCH_RATIOS.items()
        ),
        _row(
            "serve",
            "Answers per second, 16 clients of `mvw serve` over `mvw batch` with 16 slots",
            lambda d: f"{ratio(d['ratios']['serve_over_batch'])} (limit {d['limit']})",
        ),
    ]
    shown = ("curve", "startup", "infer_wall", "decode", "batch", "serve")
    known = [document for name in shown if (document := result(name)) is not None]
    places = list(dict.fromkeys(where(document) for document in known))
    return "\n\n".join([table(("Figure", "Value", "Command"), rows), *places])


def batch_ratio(name: str) -> Callable[[dict[str, Any]], str]:
    """Make what reads one ratio of many images off the document, with its bound if it has one."""

    def read(document: dict[str, Any]) -> str:
        bound = document["bounds"].get(name)
        beside = "" if bound is None else f", bound {bound:.2f} ×"
        return f"{ratio(document['ratios'][name])}{beside}"

    return read


def not_run() -> str:
    """List what no result in the repository comes from."""
    devices = {
        str(document["environment"]["device"]).partition(":")[0]
        for name in COMMANDS
        if (document := result(name)) is not None
    }
    lines = ["real checkpoints: everything but the embedded model was run with random weights"]
    if "cuda" not in devices:
        lines.insert(0, "CUDA devices")
    lines.append("flash-attn: the code that calls it is there, and no figure comes from it")
    return "\n".join(f"- {line};" for line in lines[:-1]) + f"\n- {lines[-1]}."


def _curve_rows() -> list[tuple[str, str, str]]:
    document = result("curve")
    points = {point["m"]: point for point in document["points"]} if document else {}
    count = f" on {points[NEVER]['questions']:,} held-out scenes" if points else ""
    named = {NEVER: "without withdrawal", CAPTION_END: "withdrawn at the end of the caption"}
    return [
        (
            f"Right answers of the embedded model{count}, {words}",
            _interval(points[m]) if points else "not measured yet",
            f"`{COMMANDS['curve']}`",
        )
        for m, words in named.items()
    ]


def _row(name: str, figure: str, value: Any) -> tuple[str, str, str]:
    document = result(name)
    return (
        figure,
        "not measured yet" if document is None else value(document),
        f"`{COMMANDS[name]}`",
    )


def missing(name: str) -> str:
    return f"Not measured yet: `{COMMANDS[name]}` measures it, `make docs` writes it here."


def _share(point: dict[str, Any]) -> str:
    return f"{100 * point['accuracy']:.1f} %"


def _interval(point: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in point["interval_95"])
    return f"{_share(point)} [{low:.1f}, {high:.1f}]"


def ratio(one: dict[str, Any]) -> str:
    """A ratio with its interval; over fewer pairs than the reports ask for, without one."""
    if one["pairs"] < FEWEST_PAIRS:
        return f"{one['median']:.2f} × in {one['pairs']} pairs, too few to show a difference"
    low, high = one["interval_95"]
    shown = "" if low > 1 or high < 1 else ", no difference shown"
    return f"{one['median']:.2f} × [{low:.2f}, {high:.2f}]{shown}"


def where(document: dict[str, Any]) -> str:
    env = document["environment"]
    device = "" if env["device"] == "cpu" else f" ({env['device']})"
    threads = "1 thread" if env["threads"] == 1 else f"{env['threads']} threads"
    return (
        f"Measured on {env['device_name']}{device}, {threads}, Python "
        f"{env['python']}, torch {env['torch']}, transformers {env['transformers']}."
    )
