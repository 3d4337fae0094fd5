"""Accuracy of the embedded model against the moment of withdrawal, in both of its worlds.

`make curve` runs it. On held-out scenes it uses the engine as `mvw infer` does, only with more
slots, and writes docs/curve.json and docs/curve.svg; on easy-VQA's test split it lets `mvw eval` do
everything, and writes docs/curve_easy_vqa.json and docs/curve_easy_vqa.svg. It knows nothing of
training.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mvw_cli import WithdrawalPolicy

CAPTION_END = "</CAPTION>"
STEPS: tuple[int | str, ...] = (1, 2, 4, 8, 16, 32, 64, CAPTION_END, "never")
SLOTS = 32


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of the `questions.jsonl` that `mvw samples` writes."""

    id: str
    image: Path
    question: str
    answer: str
    kind: str


@dataclass(frozen=True, slots=True)
class Point:
    """What came of the same questions with withdrawal at one moment."""

    m: int | str
    """Tokens generated before the withdrawal, or the tag that triggers it, or `never`."""
    right: int
    questions: int
    accuracy: float
    interval_95: tuple[float, float]
    """Wilson interval of the accuracy."""
    withdrawn: int
    """Outputs that went on past the withdrawal; the others ended before it."""
    mean_tokens: float
    mean_kv_entries_attended: float
    """Per decode step and layer: how many cache entries the new token attends to."""
    accuracy_by_kind: dict[str, float]


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Compute the Wilson score interval of a share (Wilson 1927)."""
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2)) / (1 + z * z / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def policy_of(m: int | str) -> WithdrawalPolicy:
    """Turn a place on the curve into the policy that `mvw infer` would use for it."""
    from mvw_cli.policies.mvw import Mvw
    from mvw_cli.policies.none import NoWithdrawal

    if m == "never":
        return NoWithdrawal()
    return Mvw(m=m) if isinstance(m, int) else Mvw(until=m)


def read_samples(questions: Path) -> list[Sample]:
    """Read what `mvw samples` wrote."""
    lines = questions.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [Sample(**{**record, "image": questions.parent / record["image"]}) for record in records]


def measure(samples: list[Sample], m: int | str, *, slots: int = SLOTS) -> Point:
    """Answer every sample with withdrawal at `m`, greedily, and count the right answers."""
    from mvw_shapes.model import Shapes

    from mvw_cli import ModelSpec
    from mvw_cli.engine.engine import Engine
    from mvw_cli.engine.types import Event, Finished, GenerationSettings, Request, summarise
    from mvw_cli.images.reading import open_image

    adapter = Shapes()
    loaded = adapter.load(ModelSpec(device="cpu"))

    def requests() -> Iterator[Request]:
        for sample in samples:
            image = open_image(sample.image).image
            inputs = adapter.encode(loaded, [image], sample.question)
            yield Request(
                sample.id,
                inputs,
                adapter.vision(loaded, inputs),
                policy_of(m),
                GenerationSettings(max_new_tokens=256, temperature=0),
            )

    answers = {sample.id: sample for sample in samples}
    events: dict[str, list[Event]] = {}
    kinds: dict[str, list[bool]] = {}
    tokens = withdrawn = attended = steps = 0
    for event in Engine(loaded, slots=slots).run(requests()):
        events.setdefault(event.request, []).append(event)
        if isinstance(event, Finished):
            completion = summarise(events.pop(event.request))
            sample = answers[event.request]
            right = adapter.parse(completion.text).answer.lower() == sample.answer.lower()
            kinds.setdefault(sample.kind, []).append(right)
            tokens += completion.generated_tokens
            at = completion.withdrawal.step if completion.withdrawal else None
            withdrawn += at is not None
            for step in range(1, completion.generated_tokens):
                gone = completion.vision_tokens if at is not None and step >= at else 0
                attended += completion.prompt_tokens + step - gone
                steps += 1
    right = sum(sum(outcomes) for outcomes in kinds.values())
    return Point(
        m=m,
        right=right,
        questions=len(samples),
        accuracy=right / len(samples),
        interval_95=wilson(right, len(samples)),
        withdrawn=withdrawn,
        mean_tokens=tokens / len(samples),
        mean_kv_entries_attended=attended / max(1, steps),
        accuracy_by_kind={kind: sum(o) / len(o) for kind, o in sorted(kinds.items())},
    )


def draw(
    file: Path,
    title: str,
    moments: Sequence[int | str],
    shares: Sequence[float],
    intervals: Sequence[Sequence[float]],
    below: Lower,
) -> None:
    """Draw right answers against the moment of withdrawal, and below what that saves."""
    from mvw_cli.render import chart
    from mvw_cli.render.svg import svg_file

    xs = [float(place) for place in range(len(moments))]
    names = ["end of caption" if m == CAPTION_END else str(m) for m in moments]
    moment = "vision tokens withdrawn after … generated tokens"
    accuracy = [100 * share for share in shares]
    marks = [
        chart.Point(f"{y:.1f}", 1, x, y, y_interval=(100 * low, 100 * high))
        for x, y, (low, high) in zip(xs, accuracy, intervals, strict=True)
    ]
    above = chart.Chart(
        "accuracy",
        title,
        moment,
        "right answers",
        "%",
        "Right answers by the moment of withdrawal, with 95 % intervals.",
        [chart.Line("right answers", 1, xs, accuracy)],
        points=marks,
        x_names=names,
    )
    lower = chart.Chart(
        below.name,
        below.title,
        moment,
        "mean",
        below.unit,
        below.caption,
        [chart.Line(below.unit, 2, xs, list(below.values))],
        x_names=names,
    )
    file.write_text(svg_file(above, lower, height=260), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Lower:
    """What the chart below shows."""

    name: str
    title: str
    unit: str
    caption: str
    values: Sequence[float]


def write_json(document: dict[str, Any], file: Path) -> None:
    """Write a curve with the environment that it was measured in."""
    from mvw_cli.environment import describe_environment

    whole = {**document, "environment": asdict(describe_environment())}
    file.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def draw_scenes(points: Sequence[Point], file: Path) -> None:
    """Draw the curve of the scenes: accuracy, and what each token attends to."""
    below = Lower(
        "attended",
        "KV entries that a generated token attends to at each layer",
        "entries",
        "Cache entries that a generated token attends to, by the moment of withdrawal.",
        [point.mean_kv_entries_attended for point in points],
    )
    draw(
        file,
        f"Embedded model, {points[0].questions:,} held-out scenes: accuracy against withdrawal",
        [point.m for point in points],
        [point.accuracy for point in points],
        [point.interval_95 for point in points],
        below,
    )


def evaluate_easy_vqa(count: int, records: Path) -> dict[str, Any]:
    """Let `mvw eval` answer easy-VQA's test split, and return its figures.

    The answers that `records` holds already are not asked for again.
    """

    def mvw(*words: str) -> str:
        return subprocess.check_output([sys.executable, "-m", "mvw_cli", *words], text=True)

    drawn = ("--world", "easy-vqa", "--count", str(count), "--overwrite")
    listed = mvw("samples", str(records.with_suffix(".samples")), *drawn).strip()
    moments = ",".join(str(m) for m in STEPS if m != CAPTION_END)
    arms = ("--profile", "shapes", "--scorer", "exact", "-m", moments, "--until", CAPTION_END)
    report = json.loads(mvw("eval", listed, *arms, "-o", str(records), "--json"))
    document = {name: report[name] for name in ("schema_version", "kind", "rule", "questions")}
    document["arms"] = [{name: arm[name] for name in _KEPT} for arm in report["arms"]]
    return document


_KEPT = (
    *("name", "items", "failed", "missing", "unread", "cut", "score", "interval_95", "change"),
    *("generated_tokens", "vision_tokens", "kv_bytes_prefill", "kv_bytes_end", "groups"),
)


def draw_easy_vqa(document: dict[str, Any], file: Path) -> None:
    """Draw the curve of easy-VQA: accuracy, and the KV cache at the end."""
    named = {arm["name"].removeprefix("m=").removeprefix("until "): arm for arm in document["arms"]}
    moments = [m for m in STEPS if str(m) in named]
    arms = [named[str(m)] for m in moments]
    below = Lower(
        "held",
        "KV cache at the end of an answer",
        "KiB",
        "Bytes of the KV cache at the end of an answer, by the moment of withdrawal.",
        [arm["kv_bytes_end"] / 2**10 for arm in arms],
    )
    draw(
        file,
        f"Embedded model, {document['questions']:,} questions of easy-VQA: accuracy",
        moments,
        [arm["score"] for arm in arms],
        [arm["interval_95"] for arm in arms],
        below,
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--count", default=1000, show_default=True, help="How many held-out scenes.")
@click.option("--seed", default=2026, show_default=True, help="Seed of scenes and questions.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("docs"),
    show_default=True,
    help="Folder for the JSON and SVG files.",
)
@click.option("--easy-vqa", default=2000, show_default=True, help="Questions of its 9,673.")
@click.option(
    "--records",
    type=click.Path(path_type=Path),
    default=Path("out/easy-vqa.eval"),
    show_default=True,
    help="Folder of the answers on easy-VQA; those that are there are not asked again.",
)
def main(count: int, seed: int, output: Path, easy_vqa: int, records: Path) -> None:
    """Measure the accuracy of the embedded model against the moment of withdrawal."""
    from mvw_shapes.samples import write_samples

    points = []
    with TemporaryDirectory() as folder:
        samples = read_samples(write_samples(Path(folder), count, seed))
        for m in STEPS:
            points.append(measure(samples, m))
            click.echo(f"m = {m}: {100 * points[-1].accuracy:.1f} %", err=True)
    output.mkdir(parents=True, exist_ok=True)
    scenes = {
        "schema_version": 1,
        "model": "shapes",
        "scenes": "held out by content, never drawn in training",
        "seed": seed,
        "decoding": "greedy, float32",
        "points": [asdict(point) for point in points],
    }
    write_json(scenes, output / "curve.json")
    draw_scenes(points, output / "curve.svg")
    document = evaluate_easy_vqa(easy_vqa, records)
    write_json(document, output / "curve_easy_vqa.json")
    draw_easy_vqa(document, output / "curve_easy_vqa.svg")


if __name__ == "__main__":
    main()
