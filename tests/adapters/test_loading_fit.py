"""Whether the weights fit is found out from the configuration, before any weight is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from broken import write_checkpoint
from hints import parse_hint
from mvw_hf.model import HuggingFace
from PIL import Image
from processes import Ran

from mvw_cli import fit
from mvw_cli.adapter import ModelSpec
from mvw_cli.doctor import facts
from mvw_cli.errors import ExitCode, OutOfMemory

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


def refused(folder: Path, **spec: str) -> OutOfMemory:
    with pytest.raises(OutOfMemory) as raised:
        fit.check_fit("hf", ADAPTER, ModelSpec(model=str(folder), **spec))
    parse_hint(raised.value.hint or "")
    return raised.value


def test_the_border_is_the_size_of_the_weights(folder: Path, free: dict[str, int | None]) -> None:
    for dtype, size in (("float32", 4), ("bfloat16", 2), ("float16", 2), ("auto", 4)):
        spec = ModelSpec(model=str(folder), device="cpu", dtype=dtype)
        (folder / "model.safetensors").write_bytes(bytes(WEIGHTS * size))
        free["cpu"] = WEIGHTS * size
        fit.check_fit("hf", ADAPTER, spec)
        free["cpu"] = WEIGHTS * size - 1
        with pytest.raises(OutOfMemory):
            fit.check_fit("hf", ADAPTER, spec)


def test_the_hint_is_what_would_help(folder: Path, free: dict[str, int | None]) -> None:
    free.update({"cpu": WEIGHTS * 3, "cuda:0": WEIGHTS * 3})
    error = refused(folder, device="cuda:0", dtype="float32")
    assert "--dtype bfloat16 --device cuda:0" in (error.hint or "")
    free["cuda:0"] = WEIGHTS
    error = refused(folder, device="cuda:0", dtype="float32")
    assert "--dtype bfloat16 --device cpu" in (error.hint or "")
    free["cpu"] = WEIGHTS
    assert refused(folder, device="cuda:0").hint == "mvw list profiles"
    assert refused(folder, device="cpu").hint == "mvw list profiles"


def test_what_is_not_known_stops_nothing(folder: Path, free: dict[str, int | None]) -> None:
    fit.check_fit("hf", ADAPTER, ModelSpec(model=str(folder), device="cpu"))
    free["cpu"] = 1
    fit.check_fit("hf", ADAPTER, ModelSpec(model="./nowhere", device="cpu"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    fit.check_fit("hf", ADAPTER, ModelSpec(model=str(folder), device="cpu"))


def test_the_memory_of_this_machine() -> None:
    free = facts.free_memory("cpu")
    assert free is None or free > 0
    if not torch.cuda.is_available():
        assert facts.free_memory("cuda:3") is None


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
    assert lines[-1].startswith("Hint: mvw infer IMAGE QUESTION --adapter hf --model ")
    free["cpu"] = WEIGHTS * 4
    assert mvw(*command).code == ExitCode.MODEL
