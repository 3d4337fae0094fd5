"""`mvw profile` held against a public harness: TTFT and TPOT of one model, by two instruments.

The question is whether the profiler's clock and its definitions are right, so both instruments time
the same computation: mvw's engine, without withdrawal, on one request. The profiler does it from
within, by the events that the engine stamps. optimum-benchmark does it from without, by a clock of
its own, which it reads when it calls and whenever a token reaches it: TTFT is the first of them;
TPOT is the time from there to the end of the call, over the tokens after the first, or the median
of the times between tokens. The two share no line of code that reads a clock or divides.

- `profiler`: `measure` of `mvw profile`, the baseline alone, fixed length, batch 1, one run.
- `harness`: optimum-benchmark's inference scenario on the engine (`harness.py`).
- `harness_generate`: the same scenario with its own PyTorch backend, on `model.generate`. That is
  another computation, which writes the same tokens: no limit holds for it. It shows what a user of
  the harness sees, and how the engine and `generate` differ by a clock that is not mvw's.

The report of `mvw profile` shows the median of all steps as TPOT, and tokens per second by the
mean; either is held against the same of the harness. Limit: 5 % for the median of each ratio;
whether its whole interval keeps to it is said beside it.

One LLaVA of random weights, 8 layers x 512 wide, 1,024 vision tokens, saved and loaded by each side
from there, on the CPU in float32. The harness is no dependency of mvw: `make cross-check` installs
it into out/harness.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from llava import PATCH, build_llava
from measuring import Ratio, interleaved, paired_ratio, say_ratio, summarise, write_result
from PIL import Image

from mvw_cli.bench.documents import BASELINE
from mvw_cli.bench.measure.arms import ArmSpec, Job
from mvw_cli.bench.measure.cell import measure
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.profiles.resolution import resolve
from mvw_cli.session import open_session

if TYPE_CHECKING:
    from harness import Times

LIMIT = 0.05
SIDE = 448
VISION_TOKENS = (SIDE // PATCH) ** 2
QUESTION = "w1 w2 w3 w4 w5 w6"


class Shown(NamedTuple):
    """What the profiler's report says of one run, in ms."""

    ttft: float
    tpot: float
    """Mean over the tokens after the first, of the report's tokens per second."""
    tpot_median: float
    """The report's own TPOT."""


def save(folder: Path, layers: int, width: int) -> None:
    """Write a checkpoint that both sides load as any other."""
    model, processor = build_llava(layers, width, side=SIDE, kv_heads=8)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def agrees(ratio: Ratio) -> bool:
    """Whether a ratio is 1 but for the limit, in the median."""
    return bool(abs(ratio.median - 1) <= LIMIT)


def surely_agrees(ratio: Ratio) -> bool:
    """Whether it is, with all of its interval."""
    low, high = ratio.interval_95
    return bool(low >= 1 - LIMIT and high <= 1 + LIMIT)


@click.command()
@click.option("--layers", default=8, show_default=True)
@click.option("--width", default=512, show_default=True)
@click.option("--tokens", default=128, show_default=True, help="New tokens in each run.")
@click.option("--pairs", default=12, show_default=True)
@click.option("--write/--no-write", default=True, help="Write the result file.")
def main(layers: int, width: int, tokens: int, pairs: int, write: bool) -> None:
    """Measure one model by `mvw profile` and by optimum-benchmark, in turn."""
    try:
        import harness
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is not installed: make cross-check") from error
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder / "model", layers, width)
        picture = folder / "picture.png"
        Image.effect_noise((SIDE, SIDE), 64).convert("RGB").save(picture)
        flags: dict[str, object] = {
            "adapter": "hf",
            "model": str(folder / "model"),
            "device": "cpu",
            "dtype": "float32",
            "generation.temperature": 0.0,
            "withdrawal.policy": "none",
        }
        profile = resolve(None, flags, env={}).profile
        job = Job(
            profile=profile,
            arms=(ArmSpec(BASELINE, profile),),
            items=(ItemSpec((str(picture),), QUESTION),),
            new_tokens=tokens,
            runs=1,
            min_time_s=0.0,
            warm_up=0,
        )
        session = open_session(profile)
        request = session.request([Image.open(picture)], QUESTION)
        assert request.layout.vision_tokens == VISION_TOKENS
        request = replace(request, settings=job.settings())
        engine = harness.EngineBackend(folder / "model", session, request)
        generate = harness.GenerateBackend(folder / "model", request)

        def profiler() -> Shown:
            cell = measure(session, job)
            assert cell is not None
            [arm] = cell.arms
            return Shown(arm.ttft_ms.median, 1e3 / arm.tokens_per_s.median, arm.tpot_ms.median)

        samples: dict[str, list[Any]] = interleaved(
            {
                "profiler": profiler,
                "harness": lambda: harness.times(engine, tokens),
                "harness_generate": lambda: harness.times(generate, tokens),
            },
            pairs=pairs,
        )
        assert engine.written == generate.written, "the engine must write what generate writes"
        assert len(engine.written) == tokens
    document = {
        "harness": {"name": "optimum-benchmark", "version": version("optimum-benchmark")},
        "model": {
            "layers": layers,
            "width": width,
            "vision_tokens": VISION_TOKENS,
            "dtype": "float32",
        },
        "new_tokens": tokens,
        **compared(samples["profiler"], samples["harness"], samples["harness_generate"]),
        "same_tokens_as_generate": True,
    }
    for arm in ("profiler", "harness", "harness_generate"):
        ttft, tpot = (document[key][arm].median for key in ("ttft_ms", "tpot_ms"))
        print(f"{arm}: TTFT {ttft:.1f} ms, TPOT {tpot:.2f} ms")
    for what, ratio in document["profiler_over_harness"].items():
        print(say_ratio(f"profiler over harness, {what}", ratio))
    for what, ratio in document["generate_over_engine_by_harness"].items():
        print(say_ratio(f"generate over engine, both by the harness, {what}", ratio))
    for what, met in document["within_limit"].items():
        print(f"{what} within {100 * LIMIT:.0f} %: {'yes' if met else 'NO'}")
    if write:
        print(write_result("cross_check", document))


def compared(profiler: list[Shown], harness: list[Times], generate: list[Times]) -> dict[str, Any]:
    """Sum up what the instruments said in the same turns."""
    engine_ttft, engine_tpot, engine_median = zip(*harness, strict=True)
    generate_ttft, generate_tpot, generate_median = zip(*generate, strict=True)
    ttft, tpot, tpot_median = zip(*profiler, strict=True)
    ratios = {
        "ttft": paired_ratio(ttft, engine_ttft),
        "tpot": paired_ratio(tpot_median, engine_median),
        "tpot_mean": paired_ratio(tpot, engine_tpot),
    }
    return {
        "ttft_ms": {
            "profiler": summarise(ttft),
            "harness": summarise(engine_ttft),
            "harness_generate": summarise(generate_ttft),
        },
        "tpot_ms": {
            "profiler": summarise(tpot_median),
            "harness": summarise(engine_median),
            "harness_generate": summarise(generate_median),
            "profiler_mean": summarise(tpot),
            "harness_mean": summarise(engine_tpot),
        },
        "profiler_over_harness": ratios,
        "generate_over_engine_by_harness": {
            "ttft": paired_ratio(generate_ttft, engine_ttft),
            "tpot": paired_ratio(generate_median, engine_median),
            "tpot_mean": paired_ratio(generate_tpot, engine_tpot),
        },
        "limit": LIMIT,
        "within_limit": {what: agrees(ratio) for what, ratio in ratios.items()},
        "interval_within_limit": {what: surely_agrees(ratio) for what, ratio in ratios.items()},
    }


if __name__ == "__main__":
    main()
