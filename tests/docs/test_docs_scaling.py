"""docs/scaling.md: its arithmetic, and the scripts that it gives."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from docs_pages import generator, text_of
from hints import parse_hint

DOCUMENT: dict[str, Any] = {
    "slots": 16,
    "new_tokens": {"median": 48, "p90": 201, "max": 760},
    "arms": {"mvw": {"items_per_s": 4.0}},
    "environment": {
        "device": "cpu",
        "device_name": "Some Processor",
        "threads": 2,
        "python": "3.11.7",
        "torch": "2.13.0",
        "transformers": "5.23.0",
    },
}


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with generator() as module:
        monkeypatch.setattr(module.scaling, "result", lambda name: DOCUMENT)
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
