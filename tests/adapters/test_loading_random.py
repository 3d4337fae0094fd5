"""`--random-weights`: the true shape, on the device, without any weights to read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from broken import write_checkpoint
from mvw_hf.model import HuggingFace
from mvw_llava_cot.model import LlavaCot
from mvw_shapes.model import Shapes
from PIL import Image
from processes import Ran

from mvw_cli.adapter import Adapter, LoadedModel, ModelSpec
from mvw_cli.errors import ExitCode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Configuration and processor, and no weights."""
    made = write_checkpoint(tmp_path / "model")
    (made / "model.safetensors").unlink()
    return made


def spec_of(folder: Path, dtype: str = "auto") -> ModelSpec:
    return ModelSpec(model=str(folder), device="cpu", dtype=dtype, random_weights=True)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_shape_and_type_are_those_of_the_checkpoint(
    folder: Path, dtype: str, wanted: torch.dtype
) -> None:
    state = torch.random.get_rng_state()
    loaded = HuggingFace().load(spec_of(folder, dtype))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert not loaded.model.training
    shapes = {name: p.shape for name, p in HuggingFace().tiny().model.named_parameters()}
    assert {name: p.shape for name, p in loaded.model.named_parameters()} == shapes
    assert {p.dtype for p in loaded.model.parameters()} == {wanted}
    again = HuggingFace().load(spec_of(folder, dtype))
    for one, other in zip(loaded.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_adapter(tmp_path: Path) -> None:
    tiny = LlavaCot().tiny()
    tiny.model.config.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    loaded = LlavaCot().load(spec_of(tmp_path, "bfloat16"))
    assert type(loaded.model) is type(tiny.model)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_weights_that_are_there_are_not_read() -> None:
    real = Shapes().load(ModelSpec(model="embedded", device="cpu")).model.get_output_embeddings()
    made = Shapes().load(ModelSpec(model="embedded", device="cpu", random_weights=True)).model
    assert not torch.equal(real.weight, made.get_output_embeddings().weight)


def test_an_adapter_that_can_not_build_is_not_asked_to_load(
    mvw: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reads(HuggingFace):
        build = Adapter.build

        def load(self, spec: ModelSpec) -> LoadedModel:
            raise AssertionError("weights are read")

    monkeypatch.setattr("mvw_cli.session.load_adapter", lambda name: Reads())
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    ran = mvw("infer", str(picture), "w1", "--random-weights")
    assert (ran.code, ran.out) == (ExitCode.MODEL, "")
    assert "can't build a model without a checkpoint" in ran.err
    assert "Traceback" not in ran.err


def test_by_the_command(folder: Path, mvw: Callable[..., Ran], tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    command = ["infer", str(picture), "w1", "--model", str(folder), "--device", "cpu"]
    command += ["--max-new-tokens", "6", "-m", "2", "--json"]
    assert mvw(*command).code == ExitCode.MODEL
    ran = mvw(*command, "--random-weights")
    assert ran.code == ExitCode.OK, ran.err
    assert "this answer is noise" in ran.err
    assert any("noise" in remark for remark in json.loads(ran.out)["remarks"])
