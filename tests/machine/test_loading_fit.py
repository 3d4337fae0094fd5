"""Whether the weights fit is found out from the configuration, before any weight is read."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from broken import write_checkpoint
from hints import parse_hint
from mvw_hf.model import HuggingFace
from PIL import Image
from processes import Ran

from mvw_cli.adapter import ModelSpec
from mvw_cli.errors import ExitCode, OutOfMemory
from mvw_cli.machine import facts, fit

ADAPTER = HuggingFace()
WEIGHTS = sum(p.numel() for p in ADAPTER.tiny().model.parameters())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_checkpoint(tmp_path / "model")
    # Reading it would end in ModelProblem: so OutOfMemory tells that it was not read.
    (made / "model.safetensors").write_bytes(b"no weights")
    return made


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """Set the free memory by device."""
    known: dict[str, int | None] = {}
    monkeypatch.setattr(fit, "free_memory", known.get)
    return known


def refused(folder: Path, **spec: Any) -> OutOfMemory:
    with pytest.raises(OutOfMemory) as raised:
        fit.check_fit(ADAPTER, ModelSpec(model=str(folder), **spec))
    parse_hint(raised.value.hint or "")
    return raised.value


def test_the_border_is_the_size_of_the_weights(folder: Path, free: dict[str, int | None]) -> None:
    for dtype, size in (("float32", 4), ("bfloat16", 2), ("float16", 2), ("auto", 4)):
        spec = ModelSpec(model=str(folder), device="cpu", dtype=dtype)
        (folder / "model.safetensors").write_bytes(bytes(WEIGHTS * size))
        free["cpu"] = WEIGHTS * size
        fit.check_fit(ADAPTER, spec)
        free["cpu"] = WEIGHTS * size - 1
        with pytest.raises(OutOfMemory):
            fit.check_fit(ADAPTER, spec)


def machine(monkeypatch: pytest.MonkeyPatch, *gpus: int, memory: int) -> None:
    """Make believe that the machine has so many bytes free on its GPUs and in memory."""
    made = replace(
        facts.gather(),
        gpus=tuple(facts.Gpu("GPU", free, free, True) for free in gpus),
        memory_free_bytes=memory,
    )
    monkeypatch.setattr(fit, "gather", lambda: made)


def test_the_hint_is_what_would_help(
    folder: Path, free: dict[str, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hint(*gpus: int, memory: int = 0, **spec: Any) -> str:
        free.update({"cpu": memory, "auto": gpus[0], "cuda:0": gpus[0]})
        machine(monkeypatch, *gpus, memory=memory)
        hint = refused(folder, **spec).hint or ""
        return hint.removeprefix("mvw infer IMAGE QUESTION ")

    wide = {"device": "cuda:0", "dtype": "float32"}
    assert hint(WEIGHTS * 3, **wide) == "--set dtype=bfloat16"
    eight = WEIGHTS * 3 // 2  # of the parameters, a part is quantised
    assert hint(eight, dtype="bfloat16") == "--set quantization=8bit"
    small = WEIGHTS * 9 // 10
    assert hint(small, memory=WEIGHTS * 3, **wide, random_weights=True) == (
        "--set device=cpu --set dtype=bfloat16"
    )
    free["cpu"] = WEIGHTS
    assert refused(folder, device="cpu", dtype="bfloat16").hint == "mvw list profiles"


def test_what_is_not_known_stops_nothing(folder: Path, free: dict[str, int | None]) -> None:
    fit.check_fit(ADAPTER, ModelSpec(model=str(folder), device="cpu"))
    free["cpu"] = 1
    fit.check_fit(ADAPTER, ModelSpec(model="./nowhere", device="cpu"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    fit.check_fit(ADAPTER, ModelSpec(model=str(folder), device="cpu"))


def test_by_the_command(
    folder: Path, free: dict[str, int | None], mvw: Callable[..., Ran], tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    command = ["infer", str(picture), "w1", "--model", str(folder), "--device", "cpu"]
    free["cpu"] = WEIGHTS * 3
    ran = mvw(*command)
    assert ran.code == ExitCode.OUT_OF_MEMORY
    assert ran.out == ""
    lines = ran.err.splitlines()
    assert lines[-3] == f"Error: {folder} does not fit into the free memory on cpu."
    assert "in float32" in lines[-2]
    assert lines[-1] == f"Hint: {shlex.join(['mvw', *command, '--dtype', 'bfloat16'])}"
    more = ["--random-weights", "--json", "--set", "revision=v1", "-m", "3"]
    ran = mvw(*command, "--dtype", "float32", *more)
    changed = shlex.join(["mvw", *command, *more, "--dtype", "bfloat16"])
    assert ran.err.splitlines()[-1] == f"Hint: {changed}"
    free["cpu"] = WEIGHTS * 4
    assert mvw(*command).code == ExitCode.MODEL
