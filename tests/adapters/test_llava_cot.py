"""LLaVA-CoT's adapter: prompt, tiles, stages, loading. The contract has the rest."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mvw_llava_cot.model import LlavaCot
from PIL import Image
from processes import Ran
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from mvw_cli import LoadedModel, ModelSpec
from mvw_cli.oracle.equivalence import noise

STATES = 5  # of a tile of the tiny model: 2 x 2 patches and a class token
BEGIN, IMAGE = 1, 62


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LlavaCot().tiny()


def test_the_prompt_is_that_of_the_models_script(loaded: LoadedModel) -> None:
    """Template as text, then the processor on it: the begin token stands there twice."""
    image = noise(30, 20)
    inputs = LlavaCot().encode(loaded, [image], "w1 w2")
    processor = loaded.processor
    content = [{"type": "image"}, {"type": "text", "text": "w1 w2"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    expected = processor(image, text, return_tensors="pt")
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], expected[name].to(inputs[name])) for name in expected)
    assert inputs["input_ids"][0, :3].tolist() == [BEGIN, BEGIN, IMAGE]


def test_a_system_prompt_comes_first(loaded: LoadedModel) -> None:
    spec = ModelSpec(model="tiny", system="w9")
    told = LoadedModel("llava-cot", "tiny", loaded.model, loaded.processor, spec)
    ids = LlavaCot().encode(told, [noise(16, 16)], "w1")["input_ids"][0]
    word = loaded.processor.tokenizer.convert_tokens_to_ids
    assert ids.tolist() == [BEGIN, BEGIN, word("w9"), IMAGE, word("w1")]


@pytest.mark.parametrize(
    ("sizes", "tiles"),
    [
        ([(16, 16)], 1),
        ([(40, 20)], 2),
        ([(100, 20)], 4),
        ([(16, 16), (100, 20)], 5),
        ([(40, 20), (20, 70), (10, 10)], 7),
        ([], 0),
    ],
)
def test_vision_is_the_tiles_that_hold_an_image(
    loaded: LoadedModel, sizes: list[tuple[int, int]], tiles: int
) -> None:
    images = [noise(*size) for size in sizes]
    layout = LlavaCot().vision(loaded, LlavaCot().encode(loaded, images, "w7 w30"))
    assert layout.vision_tokens == tiles * STATES
    assert not layout.entries.any()  # <|image|> is a text token here: it stays
    config = loaded.model.config
    counted = sum(LlavaCot().image_tokens(config, *size) for size in sizes)
    assert counted == tiles * STATES


def test_tiles_are_counted_as_the_processor_cuts_them() -> None:
    """At the published sizes, for images of any shape."""
    processor = MllamaImageProcessorPil(size={"height": 560, "width": 560}, max_image_tiles=4)
    config = LlavaCot().shape(ModelSpec())
    draw = random.Random(0)
    for _ in range(25):
        width, height = draw.randint(1, 1800), draw.randint(1, 1800)
        image = Image.new("RGB", (width, height))
        tiles = int(processor(image, return_tensors="pt")["aspect_ratio_mask"].sum())
        assert LlavaCot().image_tokens(config, width, height) == tiles * 1601, (width, height)


def test_the_answer_is_the_conclusion() -> None:
    answer = LlavaCot().parse("<CAPTION> Two cats. </CAPTION>\n<CONCLUSION> 2 </CONCLUSION>")
    assert (answer.answer, answer.stages["CAPTION"]) == ("2", "Two cats.")


def test_the_published_shape_needs_no_network() -> None:
    """6,404 states for an image of four tiles, as transformers counts them, and 10.7 B weights."""
    config = LlavaCot().shape(ModelSpec())
    assert LlavaCot().image_tokens(config, 1120, 1120) == 6404
    with torch.device("meta"):
        model = LlavaCot().build(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 10.6e9 < parameters < 10.8e9
    text = config.text_config
    assert [number for number in range(40) if number % 5 == 3] == text.cross_attention_layers


@pytest.fixture
def checkpoint(loaded: LoadedModel, tmp_path: Path) -> Path:
    """A folder as it lies on the hub: original names, the processor class without a suffix."""
    folder = tmp_path / "checkpoint"
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    merged = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    images = merged.pop("image_processor")
    images |= {"image_processor_type": "MllamaImageProcessor", "processor_class": "MllamaProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return folder


def test_a_checkpoint_as_on_the_hub_answers(
    checkpoint: Path, tmp_path: Path, mvw: Callable[..., Ran]
) -> None:
    from safetensors import safe_open

    with safe_open(checkpoint / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert "language_model.model.layers.1.cross_attn.q_proj.weight" in names
    assert not any(name.startswith("model.") for name in names)
    noise(40, 20).save(tmp_path / "picture.png")
    options = ["--adapter", "llava-cot", "--model", str(checkpoint), "--device", "cpu", "--m", "2"]
    options += ["--temperature", "0", "--max-new-tokens", "6", "--json"]
    done = mvw("infer", str(tmp_path / "picture.png"), "w1 w2", *options)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["withdrawal"]["vision_tokens"] == 2 * STATES
    assert told["withdrawal"]["step"] == 2
    assert told["profile"]["values"]["cross_attention"] == "skip"
