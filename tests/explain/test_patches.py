"""Where vision tokens lie: through the image processors as they crop and pad, and by the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from mvw_hf.image_processing import areas_of
from mvw_hf.model import HuggingFace
from PIL import Image
from sessions import tiny
from transformers import CLIPImageProcessorPil, LlavaConfig
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mvw_cli.adapter import LoadedModel, Patch, clipped_patch
from mvw_cli.plugins import load_adapter
from mvw_cli.testing.probes import misplaced

SIDE, GRID = 64, 4
SQUARE = {"height": SIDE, "width": SIDE}
PROCESSORS = {
    "stretched": CLIPImageProcessorPil(size=SQUARE, crop_size=SQUARE),
    "cropped": CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE),
    "cropped smaller": CLIPImageProcessorPil(size={"shortest_edge": 80}, crop_size=SQUARE),
    "padded": LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE, do_pad=True),
    "uncropped": SiglipImageProcessorPil(size=SQUARE),
}


class Holder:
    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor


@pytest.mark.parametrize("size", [(200, 100), (90, 240), (64, 64)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_dot_in_the_picture_lands_in_its_cell(name: str, size: tuple[int, int]) -> None:
    processor = PROCESSORS[name]
    black = Image.new("RGB", size)
    areas = areas_of(LlavaConfig(), Holder(processor), [black])
    assert areas is not None
    [(left, top, right, bottom)] = areas
    pictures, cells = [black], []
    for cell in range(GRID * GRID):
        row, column = divmod(cell, GRID)
        x = (left + (column + 0.5) * (right - left) / GRID) * size[0]
        y = (top + (row + 0.5) * (bottom - top) / GRID) * size[1]
        if not (2 <= x < size[0] - 2 and 2 <= y < size[1] - 2):
            continue  # in the padding
        dotted = black.copy()
        dotted.paste("white", (int(x) - 1, int(y) - 1, int(x) + 2, int(y) + 2))
        pictures.append(dotted)
        cells.append(cell)
    values = processor(images=pictures, return_tensors="pt").pixel_values
    changed = (values[1:] - values[:1]).abs().sum(1)  # (cells, H, W)
    side = SIDE // GRID
    sums = changed.reshape(-1, GRID, side, GRID, side).sum((2, 4)).flatten(1)
    assert sums.argmax(1).tolist() == cells
    assert len(cells) == GRID * GRID or name == "padded"


def test_a_processor_of_unknown_ways_tells_nothing() -> None:
    assert areas_of(LlavaConfig(), Holder(object()), [Image.new("RGB", (9, 9))]) is None


@pytest.mark.parametrize("name", ["hf", "kimi-vl"])
def test_patches_know_their_picture(name: str) -> None:
    session = tiny(name)
    wrong = misplaced(session.adapter, session.loaded, [(64, 48), (96, 40)])
    assert wrong is None


def test_tiles_go_row_by_row() -> None:
    """Mllama: a wide picture, a high one, and one that fills its canvas in part."""
    session = tiny("llava-cot")
    for size in ((130, 40), (40, 130), (90, 80)):
        assert misplaced(session.adapter, session.loaded, [size]) is None


def test_kimi_pads() -> None:
    session = tiny("kimi-vl")
    images = [Image.new("RGB", size) for size in ((28, 28), (70, 30))]
    whole, padded = session.adapter.areas(session.loaded, images)
    assert whole == (0, 0, 1, 1)
    assert padded == pytest.approx((0, 0, 84 / 70, 56 / 30))


def test_the_probe_sees_what_is_misplaced() -> None:
    class Turned(HuggingFace):
        """Takes rows for columns."""

        def patches(
            self, loaded: LoadedModel, inputs: Any, images: Sequence[Any]
        ) -> list[Patch | None]:
            found = super().patches(loaded, inputs, images)
            assert found is not None
            return [
                one and Patch(one.image, one.top, one.left, one.bottom, one.right) for one in found
            ]

    class Short(HuggingFace):
        def patches(self, loaded: LoadedModel, inputs: Any, images: Any) -> list[Patch | None]:
            return [Patch(0, 0, 0, 1, 1)]

    loaded = load_adapter("hf").tiny()
    assert "most, not" in str(misplaced(Turned(), loaded, [(64, 48)]))
    assert "1 vision tokens, vision() of 16" in str(misplaced(Short(), loaded, [(64, 48)]))


def test_what_lies_outside_of_the_picture_has_no_place() -> None:
    assert clipped_patch(0, -0.5, 0, 0.25, 1.5) == Patch(0, 0, 0, 0.25, 1)
    assert clipped_patch(0, 1.0, 0, 1.25, 1) is None


def test_a_prompt_without_pictures_has_no_patches() -> None:
    for name in ("hf", "kimi-vl", "llava-cot"):
        session = tiny(name)
        inputs = session.adapter.encode(session.loaded, [], "w1 w2")
        assert list(session.adapter.patches(session.loaded, inputs, []) or []) == []
        assert session.adapter.vision(session.loaded, inputs).vision_tokens == 0


def test_a_selection_that_leaves_no_grid_is_not_told_of() -> None:
    """With its class token, CLIP's output is no grid."""
    session = tiny("hf")
    inputs = session.adapter.encode(session.loaded, [Image.new("RGB", (40, 40))], "w1")
    session.loaded.model.config.vision_feature_select_strategy = "full"
    layout = session.adapter.vision(session.loaded, inputs)
    assert (layout.grids, layout.images) == (None, None)
    assert torch.equal(layout.entries, inputs["input_ids"][0] == 4)
