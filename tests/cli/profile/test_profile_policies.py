"""`mvw profile --policy …` from its command line: arms that are more than a withdrawal at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Ran

from mvw_cli.bench.documents import read_report
from mvw_cli.cost.case import Device

SHORT = ("--new-tokens", "8", "--runs", "2", "--min-time", "0", "--warmup", "0",
         "--no-answers", "--no-attention-mass", "--limit", "1")  # fmt: skip


def test_a_report_on_policies_of_every_kind(
    mvw: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(device: str, dtype: str, **_: Any) -> Device:
        return Device("Some Device", "measured", 2e10, 1e11, 1e-5, 2**34, "known")

    monkeypatch.setattr("mvw_cli.bench.measure.device_peaks.calibrate", known)
    monkeypatch.chdir(tmp_path)
    names = ["vtw:layer=2", "vtw:layer=2+mvw:m=4", "anneal:end=6,every=1", "pulse"]
    options = [word for name in names for word in ("--policy", name)]
    ran = mvw("profile", *options, *SHORT, "-o", "report.json", "--html", "report.html")
    assert ran.code == 0, ran.err
    report = read_report("report.json")
    [cell] = report.cells
    arms = {arm.name: arm for arm in cell.arms}
    assert list(arms) == ["baseline", *names]
    assert [arm.withdrawn_after for arm in cell.arms] == [None, None, 4, 6, None]
    for arm in cell.arms:
        assert arm.vision is not None and arm.bound is not None and arm.bound.prefill is not None
        assert len(arm.vision.attended_along) == 8
    seen = {name: arm.vision.entries_held for name, arm in arms.items() if arm.vision}
    assert seen["vtw:layer=2"] == seen["baseline"] / 2 == 2 * 144  # 4 layers
    speedups = {name: arm.bound.speedup for name, arm in arms.items() if arm.bound}
    assert speedups["baseline"] == 1 and min(speedups[name] for name in names) > 1
    assert speedups["vtw:layer=2+mvw:m=4"] > speedups["vtw:layer=2"]
    said = "\n".join(report.verdicts)
    for name in names:
        assert f"{name} at batch 1" in said and f"{name} at batch 1 withdrew nothing" not in said
    assert "suspect the bound" not in said
    assert "vtw:layer=2 at batch 1: the prefill reads 50 % fewer vision entries" in said
    assert "pulse at batch 1 attends to" in said and "frees nothing" in said
    page = Path("report.html").read_text("utf-8")
    assert "What is read of the image" in page and "Vision tokens that each token" in page
    shown = mvw("profile", "--from", "report.json", "-v").out
    assert "Prefill: bound and measurement" in shown and "WHAT IS READ OF THE IMAGE" in shown
