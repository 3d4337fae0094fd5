"""The figures in the documentation are those of the result files, worded as they deserve."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs_pages import ROOT, generator, text_of
from hints import parse_hint

from mvw_cli.bench.verdict.suggest import _Z_SQUARE
from mvw_cli.calibrate.dyvte.gates import HIDDEN
from mvw_cli.calibrate.mass import CANDIDATES

RATIO = {"median": 1.5, "interval_95": [1.25, 1.75], "pairs": 12}
EVEN = {"median": 1.01, "interval_95": [0.97, 1.04], "pairs": 12}
MILLISECONDS = {"median": 120.4, "p90": 140.0, "samples": []}
SECONDS = {"median": 2.5, "p90": 3.0, "samples": []}
WHERE = {
    "device": "cpu",
    "device_name": "Some Processor",
    "threads": 2,
    "python": "3.11.7",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}


ARM = {"items_per_s": 2.345, "tokens_per_s": 210.4, "seconds": SECONDS}
SERVED = {**ARM, "in_flight": 7.25, "kv_allocated_bytes_peak": 3 * 2**20}
BATCH: dict[str, Any] = {
    "items": 64,
    "slots": 16,
    "m": 16,
    "kv_budget_bytes": 5 * 2**20,
    "budget_vision_tokens": 400,
    "model": {"vision_tokens": 576},
    "new_tokens": {"median": 48, "p90": 201, "max": 760},
    "items_with_the_tokens_of_generate": {"mvw": 64},
    "static_rows_done_already": 0.62,
    "arms": {
        "generate": ARM,
        "static": ARM,
        **dict.fromkeys(("mvw", "mvw_withdrawn", "budget", "budget_withdrawn"), SERVED),
    },
    "ratios": {
        "mvw_over_generate": RATIO,
        "mvw_over_static": RATIO,
        "withdrawn_over_mvw": EVEN,
        "budget_withdrawn_over_budget": RATIO,
    },
    "bounds": {"mvw_over_generate": 9.0, "withdrawn_over_mvw": 2.0},
}

CROSS_CHECK: dict[str, Any] = {
    "harness": {"name": "some-harness", "version": "1.2"},
    "model": {"layers": 8, "width": 512, "vision_tokens": 1024, "dtype": "float32"},
    "new_tokens": 128,
    "ttft_ms": {
        "profiler": MILLISECONDS,
        "harness": {"median": 130.6, "p90": 150.2},
        "harness_generate": {"median": 160.0, "p90": 170.0},
    },
    "tpot_ms": {
        "profiler": {"median": 14.014, "p90": 15.0},
        "harness": {"median": 14.257, "p90": 16.0},
        "harness_generate": {"median": 17.0, "p90": 18.0},
    },
    "profiler_over_harness": {"ttft": EVEN, "tpot": EVEN, "tpot_mean": EVEN},
    "generate_over_engine_by_harness": {"ttft": EVEN, "tpot": RATIO},
    "limit": 0.05,
    "within_limit": {"ttft": True, "tpot": True, "tpot_mean": True},
    "interval_within_limit": {"ttft": True, "tpot": True, "tpot_mean": True},
}


def _point(m: int | str, right: int, attended: float) -> dict[str, Any]:
    return {
        "m": m,
        "right": right,
        "questions": 1000,
        "accuracy": right / 1000,
        "interval_95": [right / 1000 - 0.01, right / 1000 + 0.01],
        "withdrawn": 0 if m == "never" else 1000,
        "mean_tokens": 80.25,
        "mean_kv_entries_attended": attended,
    }


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The figures module, with result files of known content."""
    points = [_point(1, 210, 61.0), _point("</CAPTION>", 975, 88.0), _point("never", 980, 205.4)]
    names = ("python_ms", "python_click_ms", "help_ms", "infer_help_ms", "list_adapters_ms")
    walls = ("plain_script_s", "mvw_infer_s", "mvw_infer_no_withdrawal_s")
    documents = {
        "curve": {"points": points},
        "startup": {
            **{name: MILLISECONDS for name in names},
            "limits_ms": {"help_ms": 200, "list_adapters_ms": 400},
        },
        "infer_wall": {**{name: SECONDS for name in walls}, "infer_over_plain": EVEN, "limit": 1.3},
        "decode": {
            "model": {"layers": 8, "width": 512, "vision_tokens": 1024, "dtype": "float32"},
            "new_tokens": 128,
            "m": 16,
            "tpot_ms": {n: MILLISECONDS for n in ("generate", "engine", "engine_withdrawn")},
            "engine_over_generate_tokens_per_s": EVEN,
            "withdrawn_over_not_tokens_per_s": RATIO,
            "bound_withdrawn_over_not": 1.6,
        },
        "batch": BATCH,
        "cross_check": CROSS_CHECK,
    }
    for name, document in documents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({**document, "environment": WHERE}))
    (tmp_path / "curve.svg").write_text("<svg/>")
    with generator() as generate:
        figures = generate.figures
        monkeypatch.setattr(figures, "_RESULTS", tmp_path)
        monkeypatch.setattr(figures, "_CURVE", tmp_path / "curve.json")
        monkeypatch.setattr(figures, "_PICTURE", tmp_path / "curve.svg")
        yield figures


def test_figures_come_from_the_result_files(results: Any) -> None:
    assert "98.0 % of the answers are right without withdrawal, 97.5 %" in results.curve()
    assert "21.0 % with m = 1" in results.curve()
    assert "205 without withdrawal, 88 with it" in results.curve()
    assert "| `</CAPTION>` | 97.5 % | 96.5 to 98.5 % | 1,000 of 1,000 | 80.2 | 88 |" in (
        results.curve_table()
    )
    assert "| `mvw --help` | 120 ms | 140 ms | 200 ms |" in results.startup()
    assert "| `mvw infer` | 2.50 s | 3.00 s |" in results.infer_wall()
    assert "1.50 × [1.25, 1.75]; the bound" in results.decode()
    measured = results.measured()
    assert "not measured" not in measured
    assert "one image at a time | 1.50 × [1.25, 1.75], bound 9.00 × |" in measured
    assert measured.count("Measured on Some Processor, 2 threads") == 1


def test_many_images(results: Any) -> None:
    with generator() as generate:
        shown = generate.batch.batch()
    assert "| `mvw batch`, 16 slots, no withdrawal | 2.35 | 210 | 7.2 | 3 MiB |" in shown
    assert "| `model.generate`, one image at a time | 2.35 | 210 | - | - |" in shown
    assert "itself without withdrawal, at as many slots | 1.01 × [0.97, 1.04], no diff" in shown
    assert "the same tokens as `model.generate` for 64 of them" in shown
    assert "62% of the rows" in shown


def test_the_profiler_beside_a_public_harness(results: Any, tmp_path: Path) -> None:
    with generator() as generate:
        shown = generate.cross_check.cross_check()
    assert "| `mvw profile` | the engine | 120 ms | 140 ms | 14.01 ms | 15.00 ms |" in shown
    assert "| some-harness 1.2 | the engine | 131 ms | 150 ms | 14.26 ms | 16.00 ms |" in shown
    assert "| some-harness 1.2 | `model.generate` | 160 ms | 170 ms | 17.00 ms |" in shown
    assert "both on the engine: TTFT 1.01 × [0.97, 1.04], no difference shown; TPOT 1.01" in shown
    assert "The limit of 5 % is met by each of these, with its whole interval." in shown
    assert "both by the harness: TTFT 1.01 × [0.97, 1.04], no difference shown; TPOT 1.50" in shown


def test_a_limit_that_is_not_met_is_said_not_to_be(results: Any, tmp_path: Path) -> None:
    missed = {"ttft": False, "tpot": True, "tpot_mean": False}
    document = {**CROSS_CHECK, "within_limit": missed, "environment": WHERE}
    (tmp_path / "cross_check.json").write_text(json.dumps(document))
    results.result.cache_clear()
    with generator() as generate:
        shown = generate.cross_check.cross_check()
    assert "The limit of 5 % is not met by TTFT nor by TPOT by the mean of its steps." in shown
    assert "is met" not in shown


def test_a_ratio_whose_interval_covers_one_shows_no_difference(results: Any) -> None:
    assert "1.01 × [0.97, 1.04], no difference shown" in results.infer_wall()
    assert "1.01 × [0.97, 1.04], no difference shown" in results.measured()
    assert "[1.25, 1.75], no difference" not in results.measured()


def test_too_few_pairs_print_no_interval(results: Any, tmp_path: Path) -> None:
    document = {**BATCH, "ratios": {n: {**r, "pairs": 5} for n, r in BATCH["ratios"].items()}}
    (tmp_path / "batch.json").write_text(json.dumps({**document, "environment": WHERE}))
    results.result.cache_clear()
    shown = results.measured()
    assert "1.50 × in 5 pairs, too few to show a difference" in shown
    assert "[1.25, 1.75], bound 9" not in shown


def test_a_missing_result_is_said_to_be_missing(results: Any, tmp_path: Path) -> None:
    for name in ("curve", "decode", "cross_check"):
        (tmp_path / f"{name}.json").unlink()
    results.result.cache_clear()
    assert results.curve().startswith("Not measured yet: `make curve`")
    assert results.decode().startswith("Not measured yet: `python benchmarks/decode.py`")
    with generator() as generate:
        assert generate.cross_check.cross_check().startswith("Not measured yet: `make cross-check`")
    assert results.measured().count("not measured yet") == 4  # two of the curve, two of decode
    assert "CUDA" in results.not_run()


@pytest.mark.parametrize("name", ["mass", "entropy", "weights", "pulse"])
def test_the_cost_of_watching_is_that_of_the_result_file(name: str) -> None:
    result = json.loads((ROOT / "benchmarks/results/signals.json").read_text(encoding="utf-8"))
    ratio = result["ratio_to_none"][name]
    low, high = ratio["interval_95"]
    page = text_of("policies.md")
    assert f"| {ratio['median']:.2f} [{low:.2f}, {high:.2f}] |" in page
    assert f"{ratio['pairs']} pairs" in page


def flat(page: str) -> str:
    return " ".join(text_of(page).split())


def test_the_size_of_gates_is_computed() -> None:
    """Of a model with 32 layers of width 4096."""
    numbers, output = 2 * HIDDEN, 2 * HIDDEN + 2
    page = flat("policies.md")
    assert f"A gate has {numbers} H + {output} numbers" in page
    whole = 31 * (numbers * 4096 + output)
    assert (
        f"the 31 gates of a model with 32 layers of width 4096 take {2 * whole / 1e9:.1f} GB"
        in (page)
    )
    assert f"two moments each, {3 * 4 * whole / 1e9:.1f} GB" in page


def test_numbers_of_the_searches_are_those_of_the_code() -> None:
    page = flat("calibrate.md")
    assert f"Thresholds are {CANDIDATES} quantiles" in page
    needed = -(-_Z_SQUARE * (1 - 0.02) // 0.02)
    assert f"within 2 %, it takes {needed:.0f} at least" in page


# -- docs/scaling.md: its arithmetic, and the scripts that it gives ------------------------------

SCALING: dict[str, Any] = {
    "slots": 16,
    "new_tokens": {"median": 48, "p90": 201, "max": 760},
    "arms": {"mvw": {"items_per_s": 4.0}},
    "environment": WHERE,
}


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with generator() as module:
        monkeypatch.setattr(module.scaling, "result", lambda name: SCALING)
        yield module.scaling


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_example_is_computed_from_the_measured_rate(scaling: Any) -> None:
    one, eight, many, thousand = cells(scaling.scaling())
    assert one[2:6] == ["4.0", "2.9 days", "100%", "1,000,000"]  # 250,000 s
    assert eight[2:4] == ["32.0", "8.7 h"]  # 31,250 s + 120 s
    assert (many[1].split()[0], thousand[1].split()[0]) == ("8", "125")
    assert thousand[0] == "1,000" and thousand[6] == "4,000 MB/s"
    # 250 s of answering, 120 s of loading, and a largest shard of 8,000 and a few images.
    assert thousand[3] == "6.3 min"
    assert 8100 < int(thousand[5].replace(",", "")) < 8400
    assert "measured at 4.00 images/s" in scaling.scaling()


def test_the_largest_shard_is_about_as_large_as_those_that_are_made(scaling: Any) -> None:
    from mvw_cli.batch.items import shard_of

    sizes = [0] * 20
    for number in range(20_000):
        sizes[shard_of(f"{number}.png", 20)] += 1
    assert abs(max(sizes) - scaling._largest(20_000, 20)) < 60


def test_chunks_leave_slots_empty_and_the_longer_they_are_the_fewer(scaling: Any) -> None:
    shares = [float(share.rstrip("%")) for _, share in cells(scaling.chunks())]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 60 and shares[-1] < 10
    assert scaling._empty([3, 3, 3, 3], 2, 2) == 0
    assert scaling._empty([1, 3, 1, 3], 2, 2) == pytest.approx(4 / 12)


def test_without_a_result_the_page_says_so(scaling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "result", lambda name: None)
    assert "benchmarks/batch.py" in scaling.scaling() and "benchmarks/batch.py" in scaling.chunks()


def test_the_scripts_of_schedulers_call_commands_that_exist() -> None:
    page = text_of("scaling.md")
    (script,) = re.findall(r"```bash\n(.*?)```", page, re.S)
    (manifest,) = re.findall(r"```yml\n(.*?)```", page, re.S)
    job = yaml.safe_load(manifest)["spec"]
    (container,) = job["template"]["spec"]["containers"]
    count = str(job["completions"])
    commands = [*container["args"], re.sub(r"\\\n", "", script).strip().splitlines()[-1]]
    for written, index, shards in zip(
        commands, ("$JOB_COMPLETION_INDEX", "$SLURM_ARRAY_TASK_ID"), (count, "8"), strict=True
    ):
        words = shlex.split(written.replace(index, "3"))
        words = words[words.index("mvw") :]
        assert f"3/{shards}" in words
        parse_hint(shlex.join(words))
    assert "--array=0-7" in script
