"""8- and 4-bit weights: what transformers is asked for, what is refused, and the bytes.

bitsandbytes is not installed here, so what it makes of the request is not tested.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import write_checkpoint
from hints import parse_hint
from mvw_hf import loading
from mvw_hf.model import HuggingFace
from mvw_hf.tiny import tiny_llava
from PIL import Image
from processes import Ran
from transformers import BitsAndBytesConfig

from mvw_cli.adapter import ModelSpec
from mvw_cli.cost.shape import shape_of, weight_bytes
from mvw_cli.errors import ExitCode, OutOfMemory, UsageProblem
from mvw_cli.machine import fit

ADAPTER = HuggingFace()


class Recorder:
    """Stands where a class of transformers is, and keeps what it is asked for."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def from_pretrained(self, name: str, **options: Any) -> Any:
        self.options = options
        return tiny_llava()[0], {"missing_keys": set(), "mismatched_keys": set()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make believe that there are two GPUs and every package."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(loading, "is_accelerate_available", lambda: True)
    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: True)


def asked(folder: Path, **spec: Any) -> dict[str, Any]:
    recorder = Recorder()
    loading.complete(recorder, ModelSpec(model=str(folder), **spec))
    return recorder.options


def test_nothing_is_asked_for_without_the_key(folder: Path) -> None:
    assert not {"quantization_config", "device_map"} & set(asked(folder))


@pytest.mark.parametrize(
    ("dtype", "compute"),
    [("auto", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)],
)
def test_four_bits(folder: Path, able: None, dtype: str, compute: torch.dtype) -> None:
    options = asked(folder, quantization="4bit", dtype=dtype)
    config = options["quantization_config"]
    assert isinstance(config, BitsAndBytesConfig)
    assert (config.load_in_4bit, config.load_in_8bit) == (True, False)
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_compute_dtype == compute
    assert options["dtype"] == dtype
    assert options["use_safetensors"] is True


def test_eight_bits(folder: Path, able: None) -> None:
    config = asked(folder, quantization="8bit")["quantization_config"]
    assert (config.load_in_4bit, config.load_in_8bit) == (False, True)


@pytest.mark.parametrize(
    ("device", "device_map", "wanted"),
    [
        ("auto", None, {"": torch.device("cuda", 0)}),
        ("cuda", None, {"": torch.device("cuda", 0)}),
        ("cuda:1", None, {"": torch.device("cuda", 1)}),
        ("auto", "auto", "auto"),
    ],
)
def test_the_weights_are_made_where_they_stay(
    folder: Path, able: None, device: str, device_map: str | None, wanted: Any
) -> None:
    options = asked(folder, quantization="8bit", device=device, device_map=device_map)
    assert options["device_map"] == wanted


def test_a_quantised_model_is_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llava()[0].train()
    moved: list[Any] = []
    monkeypatch.setattr(model, "to", moved.append)
    model.quantization_method = "bitsandbytes"
    assert loading.place(model, torch.device("cpu"), "x") is model
    assert not model.training
    assert not moved
    del model.quantization_method
    loading.place(model, torch.device("cpu"), "x")
    assert moved == [torch.device("cpu")]


def refused(folder: Path, **spec: Any) -> UsageProblem:
    with pytest.raises(UsageProblem) as raised:
        ADAPTER.load(ModelSpec(model=str(folder), quantization="4bit", **spec))
    assert raised.value.cause
    parse_hint(raised.value.hint or "")
    return raised.value


def test_without_a_cuda_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused(folder).message == "quantization: 4bit needs a CUDA device."


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        (("is_bitsandbytes_available",), "bitsandbytes"),
        (("is_accelerate_available",), "accelerate"),
        (("is_accelerate_available", "is_bitsandbytes_available"), "accelerate and bitsandbytes"),
    ],
)
def test_without_its_packages(
    folder: Path,
    able: None,
    monkeypatch: pytest.MonkeyPatch,
    missing: tuple[str, ...],
    named: str,
) -> None:
    for name in missing:
        monkeypatch.setattr(loading, name, lambda: False)
    error = refused(folder)
    assert error.message == f"quantization: 4bit needs {named}."
    assert error.hint == 'pip install --upgrade "mvw[quantization]"'


def test_random_weights_are_not_quantised(folder: Path, able: None) -> None:
    assert "Random weights" in refused(folder, random_weights=True).message


def test_the_bytes_are_those_of_the_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = shape_of(ADAPTER, ADAPTER.shape(ModelSpec(model=str(folder)))).weights
    rest = weights.total - weights.quantizable
    assert 0 < weights.quantizable < weights.total
    expected = {
        "8bit": rest * 2 + weights.quantizable,
        "4bit": rest * 2 + weights.quantizable * 9 // 16,
    }
    free: dict[str, int | None] = {}
    monkeypatch.setattr(fit, "free_memory", free.get)
    monkeypatch.setattr(fit, "_small", lambda *arguments: False)
    for quantization, size in expected.items():
        bits = int(quantization[0])
        assert weight_bytes(weights, "bfloat16", bits) == size
        spec = ModelSpec(
            model=str(folder), device="cuda:0", dtype="bfloat16", quantization=quantization
        )
        free["cuda:0"] = size
        fit.check_fit("hf", ADAPTER, spec)
        free["cuda:0"] = size - 1
        with pytest.raises(OutOfMemory) as raised:
            fit.check_fit("hf", ADAPTER, spec)
        assert f"in bfloat16 and {quantization};" in (raised.value.cause or "")


def test_a_checkpoint_that_is_quantised_itself_is_not_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from broken import set_config

    set_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    monkeypatch.setattr(fit, "free_memory", lambda device: 1)
    fit.check_fit("hf", ADAPTER, ModelSpec(model=str(folder), device="cpu"))


def test_by_the_command(folder: Path, mvw: Callable[..., Ran], tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    command = ["infer", str(picture), "w1", "--model", str(folder), "--quantization", "8bit"]
    ran = mvw(*command, "--device", "cpu")
    assert ran.code == ExitCode.USAGE
    assert "contradict each other" in ran.err
    ran = mvw(*command[:-1], "2bit")
    assert ran.code == ExitCode.USAGE
    if not torch.cuda.is_available():
        ran = mvw(*command)
        assert ran.code == ExitCode.USAGE
        assert "Error: quantization: 8bit needs a CUDA device." in ran.err.splitlines()
