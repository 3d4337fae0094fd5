"""Vision tokens of an image, against what the real processors make of images of random sizes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import transformers
from mvw_hf.model import HuggingFace
from narrowed import published
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mvw_cli.errors import BadImage, ModelProblem

SIZES = [(1, 1), (28, 28), (640, 480), (333, 1001), (900, 90), (2048, 1365)]
SIZES += [(random.Random(n).randint(8, 1500), random.Random(-n).randint(8, 1500)) for n in range(4)]


def counted(model: str, width: int, height: int) -> int:
    return HuggingFace().image_tokens(published(model), width, height)


def tokenizer(*tokens: str, **named: str) -> Any:
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", extra_special_tokens=named
    )
    made.add_special_tokens({"additional_special_tokens": list(tokens)})
    return made


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, "teal")


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("model", "patch", "limits"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", 14, (3136, 12845056)),
        ("Qwen/Qwen3-VL-8B-Thinking", 16, (65536, 16777216)),
        ("Qwen/Qwen3.5-9B", 16, (65536, 16777216)),
    ],
)
def test_qwen(model: str, patch: int, limits: tuple[int, int], size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = (size[0] + 27, size[1] + 27)  # thinner ones are refused
    edges = {"shortest_edge": limits[0], "longest_edge": limits[1]}
    processor = Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, size=edges)
    grid = processor(images=[picture(size)], return_tensors="pt")["image_grid_thw"]
    assert counted(model, *size) == int(grid.prod()) // 4


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("zai-org/GLM-4.1V-9B-Thinking", "Glm4vImageProcessorPil"),
        ("zai-org/GLM-4.6V", "Glm46VImageProcessorPil"),
    ],
)
def test_glm4v(model: str, kind: str, size: tuple[int, int]) -> None:
    edges = {"shortest_edge": 12544, "longest_edge": 9633792}
    processor = getattr(transformers, kind)(size=edges)
    grid = processor(images=[picture(size)], return_tensors="pt")["image_grid_thw"]
    assert counted(model, *size) == int(grid.prod()) // 4


def test_limits_on_pixels_hold() -> None:
    assert counted("Qwen/Qwen2.5-VL-7B-Instruct", 9000, 9000) <= 16384
    assert counted("Qwen/Qwen3-VL-8B-Thinking", 9000, 9000) <= 16384
    assert counted("zai-org/GLM-4.1V-9B-Thinking", 9000, 9000) <= 6144
    assert counted("Qwen/Qwen2.5-VL-7B-Instruct", 1, 1) == 4
    assert counted("Qwen/Qwen3-VL-8B-Thinking", 1, 1) == 64


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_internvl(size: tuple[int, int]) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    processor = GotOcr2ImageProcessorPil(
        size={"height": 448, "width": 448}, crop_to_patches=True, min_patches=1, max_patches=12
    )
    tiles = len(processor(images=[picture(size)], return_tensors="pt")["pixel_values"])
    assert counted("OpenGVLab/InternVL3-8B-hf", *size) == tiles * 256


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_smolvlm(size: tuple[int, int]) -> None:
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    edges = {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}}
    processor = SmolVLMImageProcessorPil(**edges)
    tiles = processor(images=[picture(size)], return_tensors="pt")["pixel_values"].shape[1]
    assert counted("HuggingFaceTB/SmolVLM2-2.2B-Instruct", *size) == tiles * 81


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gemma4(size: tuple[int, int]) -> None:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    prepared = Gemma4ImageProcessorPil()(images=[picture(size)], return_tensors="pt")
    assert counted("google/gemma-4-E4B-it", *size) == int(prepared["num_soft_tokens_per_image"][0])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_minicpm(size: tuple[int, int]) -> None:
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
        MiniCPMV4_6ImageProcessorPil,
    )

    prepared = MiniCPMV4_6ImageProcessorPil()(images=[picture(size)], return_tensors="pt")
    tokens = prepared["target_sizes"].prod(-1) // 16  # as its processor writes them
    assert counted("openbmb/MiniCPM-V-4.6", *size) == int(tokens.sum())


def test_molmo2() -> None:
    """A view of 378 px, and 2 x 3 crops of it that overlap by 8 patches; 2 x 2 patches a token."""
    molmo2 = pytest.importorskip("transformers.models.molmo2")
    whole, rows, columns = 14 * 14, (2 * 19 + 8) // 2, (3 * 19 + 8 + 1) // 2
    found = HuggingFace().image_tokens(molmo2.Molmo2Config(), 1024, 768)
    assert found == whole + rows * columns


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_llava_onevision(size: tuple[int, int]) -> None:
    from transformers import LlavaOnevisionProcessor
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    config = published("llava-hf/llava-onevision-qwen2-7b-ov-hf")
    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    processor.image_processor = LlavaOnevisionImageProcessorPil(
        image_grid_pinpoints=config.image_grid_pinpoints
    )
    processor.num_image_tokens = 729
    processor.vision_aspect_ratio = "anyres_max_9"
    width, height = size
    expected = processor._get_number_of_features(height, width, 384, 384)
    assert HuggingFace().image_tokens(config, width, height) == expected


def test_gemma3_takes_one_size() -> None:
    from transformers import Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    names = {"boi_token": "<b>", "image_token": "<i>", "eoi_token": "<e>"}
    processor = Gemma3Processor(Gemma3ImageProcessorPil(), tokenizer(*names.values(), **names))
    encoded = processor(text="<b>", images=[picture((300, 200))], return_tensors="pt")
    image_id = processor.tokenizer.convert_tokens_to_ids("<i>")
    assert counted("google/gemma-3-12b-it", 300, 200) == int(
        (encoded["input_ids"] == image_id).sum()
    )


@pytest.mark.parametrize("adapter", ["hf", "shapes", "kimi-vl"])
def test_a_fixed_size_is_what_the_adapter_encodes(adapter: str) -> None:
    from mvw_cli.plugins import load_adapter

    made = load_adapter(adapter)
    tiny = made.tiny()
    inputs = made.encode(tiny, [picture((50, 40))], "w1 w2")
    expected = made.vision(tiny, inputs).vision_tokens
    assert made.image_tokens(tiny.model.config, 50, 40) == expected


def test_a_family_without_a_rule() -> None:
    from transformers import PaliGemmaConfig

    with pytest.raises(ModelProblem, match="vision tokens paligemma makes"):
        HuggingFace().image_tokens(PaliGemmaConfig(), 10, 10)


def test_an_image_that_the_processor_refuses() -> None:
    with pytest.raises(BadImage, match="takes no image of 30000 x 10 pixels") as caught:
        counted("Qwen/Qwen2.5-VL-7B-Instruct", 30000, 10)
    assert "200" in (caught.value.cause or "")
