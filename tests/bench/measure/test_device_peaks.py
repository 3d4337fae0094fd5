"""Measuring a device: what is counted, what is kept, and what is not. No test judges a speed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mvw_cli.bench.measure import device_peaks as calibration
from mvw_cli.bench.measure.device_peaks import UNSTABLE, calibrate
from mvw_cli.bench.stats import summarise
from mvw_cli.errors import ExitCode, MvwError, OutOfMemory

CPU = torch.device("cpu")


class Ticking:
    """A clock on which every look takes a second, or what the test planted."""

    def __init__(self, steps: Callable[[int], float] = lambda look: 1.0) -> None:
        self.looks, self.seconds, self._steps = 0, 0.0, steps

    def now(self) -> float:
        self.looks += 1
        self.seconds += self._steps(self.looks)
        return self.seconds


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure little, and briefly: the figures mean nothing."""
    monkeypatch.setattr(calibration, "_MOST_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(calibration, "_SIDES", (16, 32))
    monkeypatch.setattr(calibration, "_SAMPLE_S", 1e-4)
    monkeypatch.setattr(calibration, "_LAUNCHES", 5)


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no spread count as one: the machine of the tests is never quiet."""
    monkeypatch.setattr("mvw_cli.bench.stats.UNSTABLE", float("inf"))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.exists() else []


def test_what_is_counted(small: None) -> None:
    """A copy reads and writes, a sum of two reads two and writes one, a sum reads."""
    clock: Any = Ticking()
    size = calibration._tensor_bytes(CPU)
    assert size == 1 << 20
    assert [rate.median for rate in calibration._moving(CPU, clock)] == [2 * size, 3 * size, size]
    assert calibration._starting(CPU, clock).median == 5
    quick: Any = Ticking(lambda look: 0.01)
    assert calibration._multiplying(CPU, "float32", quick).median == pytest.approx(2 * 32**3 / 0.01)


def test_no_side_is_tried_that_takes_too_long(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []
    plain = torch.mm

    def noting(a: Any, b: Any, out: Any) -> Any:
        sides.append(a.shape[0])
        return plain(a, b, out=out)

    monkeypatch.setattr(torch, "mm", noting)
    calibration._multiplying(CPU, "float32", Ticking())  # type: ignore[arg-type]
    assert set(sides) == {16}  # at a second each, the next would take eight


def test_a_rate_is_planted_work_over_planted_time() -> None:
    clock, calls = Ticking(lambda look: 0.0), []

    def work() -> None:
        calls.append(1)
        clock.seconds += 0.005

    rate = calibration._rate(clock, 10.0, work)  # type: ignore[arg-type]
    assert rate.median == pytest.approx(10 / 0.005)
    assert len(calls) == 2 + 5 * 4  # a first call that warms, one that is timed, 20 ms each


def test_a_device_is_measured_once(
    small: None, calm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = calibrate("cpu", "float32", cache_dir=tmp_path / "new" / "cache")
    assert found.source == "measured"
    assert found.bandwidth_bytes_per_s > 0 and found.flops_per_s > 0
    assert found.launch_s and found.memory_bytes
    assert found.name and "float32" in found.reference
    assert len(files(tmp_path / "new" / "cache")) == 1
    monkeypatch.setattr(calibration, "_measure", None)
    assert calibrate("cpu", "float32", cache_dir=tmp_path / "new" / "cache") == found


def test_another_dtype_torch_or_number_of_threads_is_another_measurement(
    small: None, calm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    try:
        for dtype, count in (("float32", 1), ("bfloat16", 1), ("float32", 2), ("float32", 1)):
            torch.set_num_threads(count)
            calibrate("cpu", dtype, cache_dir=tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert len(files(tmp_path)) == 3
    monkeypatch.setattr(torch, "__version__", "9.9")
    calibrate("cpu", "float32", cache_dir=tmp_path)
    assert len(files(tmp_path)) == 4


def test_what_is_unstable_is_said_and_not_kept(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def erratic(place: torch.device) -> Ticking:
        return Ticking(lambda look: 1.0 + 3.0 * (look % 3))

    monkeypatch.setattr(calibration, "Clock", erratic)
    found = calibrate("cpu", "float32", cache_dir=tmp_path)
    assert UNSTABLE in found.reference and "spreads by" in found.reference
    assert found.bandwidth_bytes_per_s > 0
    assert files(tmp_path) == []


def test_a_device_that_was_busy_the_first_time_is_unstable(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steady in each pass, and yet not the same."""
    rates = iter([[50.0] * 5, [100.0] * 5])

    def multiplying(*_: Any) -> Any:
        return summarise(next(rates))

    monkeypatch.setattr(calibration, "_multiplying", multiplying)
    found = calibrate("cpu", "float32", cache_dir=tmp_path)
    assert "matrix rate spreads by" in found.reference
    assert found.flops_per_s == 100
    assert files(tmp_path) == []


@pytest.mark.parametrize("text", ["", '{"name": ', "[]", '{"name": "a field alone"}'])
def test_a_file_that_can_not_be_used_is_written_anew(
    small: None, calm: None, tmp_path: Path, text: str
) -> None:
    calibrate("cpu", "float32", cache_dir=tmp_path)
    (file,) = files(tmp_path)
    good = json.loads(file.read_text())
    file.write_text(text)
    calibrate("cpu", "float32", cache_dir=tmp_path)
    assert json.loads(file.read_text()).keys() == good.keys()


def test_a_folder_that_can_not_be_written_is_no_failure(
    small: None, calm: None, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    found = calibrate("cpu", "float32", cache_dir=tmp_path / "file")
    assert found.source == "measured"


def test_it_is_kept_among_the_users_own_settings(small: None, calm: None, tmp_path: Path) -> None:
    calibrate("cpu", "float32")
    assert len(files(tmp_path / "mvw-home" / "cache")) == 1


@pytest.mark.parametrize("device", ["cuda:77", "toaster"])
def test_a_device_that_is_not_there(device: str, tmp_path: Path) -> None:
    with pytest.raises(MvwError, match=f"The device {device} can't be measured") as caught:
        calibrate(device, "float32", cache_dir=tmp_path)
    assert caught.value.cause and caught.value.hint == "mvw doctor"


def test_no_memory_for_it(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(calibration, "_moving", full)
    with pytest.raises(OutOfMemory) as caught:
        calibrate("cpu", "float32", cache_dir=tmp_path)
    assert caught.value.exit_code == ExitCode.OUT_OF_MEMORY


def test_tensors_leave_room_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "free_memory", lambda device: 80 << 20)
    assert calibration._tensor_bytes(CPU) == 10 << 20
    monkeypatch.setattr(calibration, "free_memory", lambda device: 1 << 40)
    assert calibration._tensor_bytes(CPU) == 256 << 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu(tmp_path: Path, dtype: str) -> None:
    found = calibrate("cuda", dtype, cache_dir=tmp_path)
    assert found.name == torch.cuda.get_device_name()
    assert found.bandwidth_bytes_per_s > 50e9
    assert found.flops_per_s > 1e12
    assert found.launch_s and found.launch_s < 1e-3
