"""Figures on the pages about policies and calibration that follow from the code."""

from __future__ import annotations

from docs_pages import text_of

from mvw_cli.bench.verdict.suggest import _Z_SQUARE
from mvw_cli.calibrate.dyvte.gates import HIDDEN
from mvw_cli.calibrate.mass import CANDIDATES


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
