"""The adapter `hf` with random weights and no processor: every family of the packaged profiles."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import write_checkpoint
from mvw_hf.fallback import FallbackProcessor
from mvw_hf.model import HuggingFace
from narrowed import PUBLISHED, narrow, published
from PIL import Image
from processes import Ran

from mvw_cli import BadImage, LoadedModel, ModelProblem, ModelSpec
from mvw_cli.errors import ExitCode
from mvw_cli.profiles.resolution import resolve
from mvw_cli.testing.probes import misplaced


def spec_of(folder: Path) -> ModelSpec:
    return ModelSpec(model=str(folder), device="cpu", random_weights=True)


@pytest.fixture(scope="module", params=PUBLISHED)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A folder with nothing but a configuration."""
    folder = tmp_path_factory.mktemp("folder")
    narrow(published(request.param)).save_pretrained(folder)
    loaded = HuggingFace().load(replace(spec_of(folder), dtype="float32"))
    for parameter in loaded.model.parameters():
        if not parameter.any():  # Gemma's projector is made as zeros, which would hide the image
            torch.nn.init.normal_(parameter)
    return loaded


def test_the_model_reads_what_it_is_given(loaded: LoadedModel) -> None:
    """Two images of unlike sizes: transformers compares the tokens with the features."""
    adapter = HuggingFace()
    assert isinstance(loaded.processor, FallbackProcessor)
    assert len(adapter.remarks(loaded, [], "How many?")) == 1
    sizes = [(100, 100), (300, 100)]
    images = [Image.effect_noise(size, 90).convert("RGB") for size in sizes]
    inputs = adapter.encode(loaded, images, "How many?")
    counted = sum(adapter.image_tokens(loaded.model.config, *size) for size in sizes)
    assert adapter.vision(loaded, inputs).vision_tokens == counted
    other = adapter.encode(loaded, [images[0].rotate(180), images[1]], "How many?")
    with torch.inference_mode():
        first, second = (loaded.model(**given).logits[0, -1] for given in (inputs, other))
    assert first.isfinite().all()
    assert not first.equal(second)


def test_questions_without_images(loaded: LoadedModel) -> None:
    adapter = HuggingFace()
    inputs = adapter.encode(loaded, [], "How many?")
    assert adapter.vision(loaded, inputs).vision_tokens == 0
    assert inputs["input_ids"].shape == (1, 3)


@pytest.mark.parametrize("sizes", [[(200, 120)], [(90, 170), (130, 60)]])
def test_vision_tokens_lie_where_it_says(loaded: LoadedModel, sizes: list[tuple[int, int]]) -> None:
    """Of most families; those that cut tiles of their own do not tell."""
    try:
        assert misplaced(HuggingFace(), loaded, sizes) is None
    except LookupError:
        assert loaded.model.config.model_type in ("internvl", "llava_onevision")


def test_an_image_that_the_model_refuses(loaded: LoadedModel) -> None:
    if not loaded.model.config.model_type.startswith(("qwen", "glm")):
        pytest.skip("the family takes images of any shape")
    with pytest.raises(BadImage):
        HuggingFace().encode(loaded, [Image.new("RGB", (9000, 10))], "How many?")


@pytest.mark.parametrize("profile", ["qwen2.5-vl-7b", "gemma-3-12b"])
def test_by_the_command_offline(
    profile: str, mvw: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # `--offline` sets these for the whole process
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    known = HuggingFace().shape(ModelSpec(model=resolve(profile, {}).profile.model))
    whole = HuggingFace.shape
    monkeypatch.setattr(HuggingFace, "shape", lambda self, spec: narrow(whole(self, spec)))
    picture = tmp_path / "picture.png"
    Image.new("RGB", (300, 200), "teal").save(picture)
    ran = mvw(
        *("infer", str(picture), "How many?", "--profile", profile, "--random-weights"),
        *("--offline", "--device", "cpu", "--max-new-tokens", "5", "-m", "2", "--json"),
    )
    assert ran.code == ExitCode.OK, ran.err
    document = json.loads(ran.out)
    assert document["vision_tokens"] == HuggingFace().image_tokens(known, 300, 200)
    assert document["withdrawal"]["vision_tokens"] == document["vision_tokens"]
    assert any("fallback" in remark for remark in document["remarks"])


def test_an_adapter_with_a_prompt_of_its_own_gets_no_fallback_that_it_did_not_make(
    tmp_path: Path,
) -> None:
    class Own(HuggingFace):
        def tokenize(self, loaded: LoadedModel, images: Any, text: str) -> dict[str, Any]:
            return dict(loaded.processor.of_its_own_kind(images, text))

    narrow(published("Qwen/Qwen2.5-VL-7B-Instruct")).save_pretrained(tmp_path)
    with pytest.raises(ModelProblem, match="can't be loaded"):
        Own().load(spec_of(tmp_path))


def test_what_is_missing_is_named_where_no_fallback_is_known(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    told = json.loads((folder / "config.json").read_text())
    told["model_type"] = "vipllava"  # of the same keys
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(ModelProblem, match="can't be loaded") as refusal:
        HuggingFace().load(spec_of(folder))
    assert refusal.value.cause == (
        "There is no preprocessor_config.json or processor_config.json, and no tokenizer.json or "
        "tokenizer.model or tiktoken.model or vocab.json."
    )
