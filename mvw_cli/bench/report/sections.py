"""A report as sections of tables and sentences: what was run, and all that was found out.

It does not know how a section is drawn.
"""

from __future__ import annotations

import shlex

from mvw_cli.bench.report import measured, reasons, seen, words
from mvw_cli.bench.report.documents import Report
from mvw_cli.render.content import Section, Sentence, Table


def sections(report: Report) -> list[Section]:
    """Put a report into words; what was not measured is left out."""
    found = [
        _about(report),
        measured.phases(report),
        measured.speed(report),
        seen.vision(report),
        measured.memory(report),
        reasons.bound(report),
        reasons.answers(report),
    ]
    return [section for section in found if section.parts]


def title(report: Report) -> str:
    """Name the report by its model."""
    return f"Profile of {report.model.name}"


def _about(report: Report) -> Section:
    model, work, env = report.model, report.workload, report.environment
    weights = "random weights" if model.random_weights else f"revision {model.revision or 'local'}"
    length = (
        f"{work.new_tokens:,} tokens each, whatever the model writes"
        if work.mode == "fixed"
        else f"natural, at most {work.new_tokens:,} tokens each"
    )
    rows = [
        ["model", f"{model.name} ({weights}), adapter {model.adapter}"],
        ["held as", f"{model.dtype} on {model.device}, attention {model.attention}"],
        ["device", f"{env.device_name}, {words.plural(env.threads, 'CPU thread')}"],
        ["software", _software(report)],
        ["platform", env.platform],
        [
            "input",
            f"{words.plural(work.items, 'item')} ({work.source}); the first: image of "
            f"{work.image_width_px} x {work.image_height_px} px, "
            f"{words.plural(work.vision_tokens, 'vision token')}, "
            f"prompt of {words.plural(work.prompt_tokens, 'token')}",
        ],
        ["output", length],
    ]
    if report.cells:
        rows.append(
            [
                "measured",
                f"at least {words.plural(work.runs, 'pair')} and "
                f"{words.number(work.min_time_s)} s, after "
                f"{words.plural(work.warm_up, 'warm-up run')}; seed {work.seed}",
            ]
        )
    rows += [
        ["started", f"{report.started}, took {words.seconds(report.seconds)}"],
        ["command", shlex.join(report.command)],
    ]
    parts: list[Table | Sentence] = [Table(["WHAT", "VALUE"], rows)]
    if report.profiler_cost is not None:
        cost = report.profiler_cost
        parts.append(
            Sentence(
                "Decode with the profiler's marks takes "
                f"{words.factor(cost.median, cost.interval_95)} the time of decode without them."
            )
        )
    return Section("environment", "Environment", parts)


def _software(report: Report) -> str:
    env = report.environment
    named = {
        "mvw": env.mvw,
        "Python": env.python,
        "torch": env.torch,
        "transformers": env.transformers,
        "flash-attn": env.flash_attn,
    }
    return ", ".join(f"{name} {version}" for name, version in named.items() if version)
