"""The figures in the documentation are those of the result files, worded as they deserve."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs_pages import ROOT, generator, text_of
from hints import parse_hint

from mvw_cli.calibrate.dyvte.gates import HIDDEN
from mvw_cli.calibrate.mass import CANDIDATES
from mvw_cli.calibrate.mvw import _Z_SQUARE

RATIO = {"median": 1.5, "interval_95": [1.25, 1.75], "pairs": 12}
EVEN = {"median": 1.01, "interval_95": [0.97, 1.04], "pairs": 12}
TIME = {"median": 120.4, "p90": 140.0, "samples": []}
WHERE = {
    "device": "cpu",
    "device_name": "Some Processor",
    "threads": 2,
    "python": "3.11.7",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}


class Results:
    """The figures module over a copy of the result files; a test puts in what it asks for."""

    def __init__(self, folder: Path, figures: Any) -> None:
        self._folder, self.figures = folder, figures

    def read(self, name: str) -> Any:
        return json.loads((self._folder / f"{name}.json").read_text(encoding="utf-8"))

    def put(self, name: str, **values: Any) -> None:
        """Change some keys of a result file."""
        known = self.read(name) if (self._folder / f"{name}.json").exists() else {}
        document = {**known, **values, "environment": WHERE}
        (self._folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
        self.figures.result.cache_clear()

    def remove(self, *names: str) -> None:
        for name in names:
            (self._folder / f"{name}.json").unlink(missing_ok=True)
        self.figures.result.cache_clear()


@pytest.fixture
def generate() -> Iterator[Any]:
    with generator() as module:
        yield module


@pytest.fixture
def results(generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    folder = tmp_path / "results"
    shutil.copytree(ROOT / "benchmarks" / "results", folder)
    for name in ("curve.json", "curve.svg"):
        shutil.copy(ROOT / "docs" / name, folder)
    monkeypatch.setattr(generate.figures, "_RESULTS", folder)
    monkeypatch.setattr(generate.figures, "_DOCS", folder)
    return Results(folder, generate.figures)


def test_figures_come_from_the_result_files(results: Results) -> None:
    points = [
        {
            "m": m,
            "right": right,
            "questions": 1000,
            "accuracy": right / 1000,
            "interval_95": [right / 1000 - 0.01, right / 1000 + 0.01],
            "mean_tokens": 80.25,
            "withdrawn": 1000,
            "mean_kv_entries_attended": attended,
        }
        for m, right, attended in ((1, 210, 61.0), ("</CAPTION>", 975, 88.0), ("never", 980, 205.4))
    ]
    results.put("curve", points=points)
    results.put("startup", help_ms=TIME, limits_ms={"help_ms": 200, "list_adapters_ms": 400})
    results.put("infer_wall", mvw_infer_s={"median": 2.5, "p90": 3.0}, infer_over_plain=EVEN)
    results.put("decode", withdrawn_over_not_tokens_per_s=RATIO, bound_withdrawn_over_not=1.6)
    results.put("batch", ratios=dict.fromkeys(results.read("batch")["ratios"], RATIO))
    results.put("serve", ratios={"serve_over_batch": RATIO}, limit=0.9)
    figures = results.figures
    assert "98.0 % of the answers are right without withdrawal, 97.5 %" in figures.curve()
    assert "21.0 % with m = 1" in figures.curve()
    assert "205 without withdrawal, 88 with it" in figures.curve()
    assert "| `</CAPTION>` | 97.5 % | 96.5 to 98.5 % | 1,000 of 1,000 | 80.2 | 88 |" in (
        figures.curve_table()
    )
    assert "| `mvw --help` | 120 ms | 140 ms | 200 ms |" in figures.startup()
    assert "| `mvw infer` | 2.50 s | 3.00 s |" in figures.infer_wall()
    # An interval that covers 1 shows no difference; another does.
    assert "1.01 × [0.97, 1.04], no difference shown" in figures.infer_wall()
    assert "1.50 × [1.25, 1.75]; the bound, by the bytes that a step has to read, is 1.60 ×" in (
        figures.decode()
    )
    measured = figures.measured()
    assert "not measured" not in measured and "[1.25, 1.75], no difference" not in measured
    assert "1.50 × [1.25, 1.75], bound 1.60 × |" in measured
    assert measured.count("Measured on Some Processor, 2 threads") == 1


def test_many_images(results: Results, generate: Any) -> None:
    arm = {"items_per_s": 2.345, "tokens_per_s": 210.4}
    arms = {**results.read("batch")["arms"], "generate": arm}
    arms["mvw"] = {**arm, "in_flight": 7.25, "kv_allocated_bytes_peak": 3 * 2**20}
    ratios = {**results.read("batch")["ratios"], "withdrawn_over_mvw": EVEN}
    results.put("batch", arms=arms, slots=16, ratios=ratios, static_rows_done_already=0.62)
    shown = generate.batch.batch()
    assert "| `mvw batch`, 16 slots, no withdrawal | 2.35 | 210 | 7.2 | 3 MiB |" in shown
    assert "| `model.generate`, one image at a time | 2.35 | 210 | - | - |" in shown
    assert "itself without withdrawal, at as many slots | 1.01 × [0.97, 1.04], no diff" in shown
    assert "62% of the rows" in shown
    results.put("batch", ratios={name: {**RATIO, "pairs": 5} for name in ratios})
    measured = results.figures.measured()
    assert "1.50 × in 5 pairs, too few to show a difference" in measured
    assert "[1.25, 1.75], bound" not in measured


def test_the_profiler_beside_a_public_harness(results: Results, generate: Any) -> None:
    met = {"ttft": True, "tpot": True, "tpot_mean": True}
    results.put(
        "cross_check",
        ttft_ms=dict.fromkeys(("profiler", "harness", "harness_generate"), TIME),
        profiler_over_harness=dict.fromkeys(met, EVEN),
        generate_over_engine_by_harness={"ttft": EVEN, "tpot": RATIO},
        limit=0.05,
        within_limit=met,
        interval_within_limit=met,
    )
    shown = generate.cross_check.cross_check()
    assert "| `mvw profile` | the engine | 120 ms | 140 ms |" in shown
    assert "both on the engine: TTFT 1.01 × [0.97, 1.04], no difference shown; TPOT 1.01" in shown
    assert "The limit of 5 % is met by each of these, with its whole interval." in shown
    assert "both by the harness: TTFT 1.01 × [0.97, 1.04], no difference shown; TPOT 1.50" in shown
    results.put("cross_check", within_limit={"ttft": False, "tpot": True, "tpot_mean": False})
    shown = generate.cross_check.cross_check()
    assert "The limit of 5 % is not met by TTFT nor by TPOT by the mean of its steps." in shown
    assert "is met" not in shown


def test_a_missing_result_is_said_to_be_missing(results: Results, generate: Any) -> None:
    results.remove("curve", "decode", "cross_check", "batch", "serve")
    figures = results.figures
    assert figures.curve().startswith("Not measured yet: `make curve`")
    assert figures.decode().startswith("Not measured yet: `python benchmarks/decode.py`")
    assert generate.cross_check.cross_check().startswith("Not measured yet: `make cross-check`")
    assert "benchmarks/batch.py" in generate.scaling.scaling()
    # Two of curve and decode, four of batch, one of serve.
    assert figures.measured().count("not measured yet") == 9
    assert "CUDA" in figures.not_run()


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


@pytest.fixture
def scaling(results: Results, generate: Any) -> Any:
    arms = {**results.read("batch")["arms"], "mvw": {"items_per_s": 4.0}}
    lengths = {"median": 48, "p90": 201, "max": 760}
    results.put("batch", slots=16, new_tokens=lengths, arms=arms)
    return generate.scaling


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


def test_chunks_leave_slots_empty_and_the_longer_they_are_the_fewer(scaling: Any) -> None:
    shares = [float(share.rstrip("%")) for _, share in cells(scaling.chunks())]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 60 and shares[-1] < 10
    assert scaling._empty([3, 3, 3, 3], 2, 2) == 0
    assert scaling._empty([1, 3, 1, 3], 2, 2) == pytest.approx(4 / 12)


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
