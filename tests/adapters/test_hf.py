"""The adapter for any Hugging Face VLM: loading, prompting, reading; errors as three lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import write_checkpoint
from mvw_hf.model import HuggingFace
from PIL import Image
from processes import Ran
from safetensors.torch import load_file, save_file

from mvw_cli.adapter import Adapter, LoadedModel, ModelSpec
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.types import Finished, GenerationSettings, Request
from mvw_cli.errors import ExitCode, ModelProblem, MvwError, UsageProblem
from mvw_cli.policies.mvw import Mvw
from mvw_cli.session import Session

ADAPTER = HuggingFace()
META = {"format": "pt"}
RED = Image.new("RGB", (50, 40), "red")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder as `save_pretrained` writes it."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_a_folder_loads_and_answers_like_the_model_it_was_saved_from(checkpoint: Path) -> None:
    def tokens(loaded: Any) -> tuple[int, ...]:
        inputs = ADAPTER.encode(loaded, [RED], "w1 w2")
        settings = GenerationSettings(max_new_tokens=8, temperature=0)
        request = Request("a", inputs, ADAPTER.vision(loaded, inputs), Mvw(m=3), settings)
        [end] = [e for e in Engine(loaded).run([request]) if isinstance(e, Finished)]
        return end.token_ids

    loaded = ADAPTER.load(ModelSpec(model=str(checkpoint), device="cpu"))
    assert (loaded.adapter, loaded.name) == ("hf", str(checkpoint))
    assert not loaded.model.training
    assert tokens(loaded) == tokens(ADAPTER.tiny())


def test_dtype_is_taken_from_the_spec(checkpoint: Path) -> None:
    loaded = ADAPTER.load(ModelSpec(model=str(checkpoint), device="cpu", dtype="bfloat16"))
    assert loaded.model.dtype == torch.bfloat16
    inputs = ADAPTER.encode(loaded, [RED], "w1")
    assert inputs["pixel_values"].dtype == torch.bfloat16
    assert inputs["input_ids"].dtype == torch.long


def test_template_and_system_prompt_reach_the_model(checkpoint: Path) -> None:
    spec = ModelSpec(
        model=str(checkpoint), device="cpu", system="w9", template="w7 { {question} } w8"
    )
    loaded = ADAPTER.load(spec)
    ids = ADAPTER.encode(loaded, [RED], "w1")["input_ids"][0].tolist()
    words = loaded.processor.tokenizer.convert_ids_to_tokens(ids)
    assert [word for word in words if word.startswith("w")] == ["w9", "w7", "w1", "w8"]


def test_a_model_without_a_chat_template_gets_tokens_and_text() -> None:
    loaded = ADAPTER.tiny()
    loaded.processor.chat_template = None
    inputs = ADAPTER.encode(loaded, [RED], "w1 w2")
    assert int(ADAPTER.vision(loaded, inputs).entries.sum()) == 16
    last = loaded.processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, -2:])
    assert last == ["w1", "w2"]


def problem(kind: type[MvwError], spec: ModelSpec) -> MvwError:
    with pytest.raises(kind) as raised:
        ADAPTER.load(spec)
    error = raised.value
    assert error.cause
    assert "\n" not in error.message + error.cause
    assert error.hint
    return error


def test_a_template_that_opens_thinking_whatever_the_tokenizer_makes_of_it() -> None:
    tiny = ADAPTER.tiny()
    session = Session(ADAPTER, tiny, Engine(tiny), Mvw(m=3), GenerationSettings())
    assert session.parse("cut").answer == "cut"
    tiny.processor.chat_template += "{{ '<think>\\n' }}"
    assert (session.parse("cut").answer, session.parse("cut").reasoning) == ("", "cut")
    assert session.parse("so</think> 4").answer == "4"


def test_the_place_of_the_image_in_a_question_is_taken_off_and_control_tokens_refused() -> None:
    tiny = ADAPTER.tiny()
    session = Session(ADAPTER, tiny, Engine(tiny), Mvw(m=3), GenerationSettings())
    plain = session.request([RED], "w1 w2").inputs["input_ids"]
    for question in ("<image>\nw1 w2", "w1 w2 <image>"):
        assert session.request([RED], question).inputs["input_ids"].equal(plain)
    with pytest.raises(UsageProblem, match="control token"):
        session.request([RED], "w1 <image> w2")


def test_no_model_named() -> None:
    assert problem(UsageProblem, ModelSpec()).exit_code == ExitCode.USAGE


def test_a_checkpoint_that_lacks_a_tensor(tmp_path: Path) -> None:
    """transformers would make the missing weights up at random and only warn."""
    folder = write_checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if "layers.1.mlp" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, folder / "model.safetensors", META)
    error = problem(ModelProblem, ModelSpec(model=str(folder), device="cpu"))
    assert "lacks weights" in error.message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(checkpoint: Path) -> None:
    error = problem(UsageProblem, ModelSpec(model=str(checkpoint), device="cuda:7"))
    assert "cuda:7" in error.message


# -- random weights ----------------------------------------------------------------------------


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


def test_an_adapter_that_can_not_build_is_not_asked_to_load(
    mvw: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reads(HuggingFace):
        build = Adapter.build

        def load(self, spec: ModelSpec) -> LoadedModel:
            raise AssertionError("weights are read")

    monkeypatch.setattr("mvw_cli.session.load_adapter", lambda name: Reads())
    picture = tmp_path / "picture.png"
    RED.save(picture)
    ran = mvw("infer", str(picture), "w1", "--random-weights")
    assert (ran.code, ran.out) == (ExitCode.MODEL, "")
    assert "can't build a model without a checkpoint" in ran.err
    assert "Traceback" not in ran.err
