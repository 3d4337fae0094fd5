"""Images prepared without torchvision are those that it prepares, within rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hub_folder import BY_PROFILE, FOLDERS, HubFolder, write_hub_folder
from mvw_hf.loading import without_video
from mvw_hf.model import HuggingFace
from PIL import Image
from transformers import AutoImageProcessor, AutoVideoProcessor

from mvw_cli.adapter import ModelSpec

pytest.importorskip("torchvision")
WITHOUT = [folder for folder in FOLDERS if "torchvision" not in folder.needs]


@pytest.mark.parametrize("size", [(64, 64), (301, 97), (640, 480)])
@pytest.mark.parametrize("published", WITHOUT, ids=lambda one: one.profile)
def test_the_same_tokens_and_pixels(
    published: HubFolder, size: tuple[int, int], tmp_path: Path
) -> None:
    """Tolerances of transformers for its two backends (`_assert_tensors_equivalence`)."""
    write_hub_folder(published, tmp_path, weights=False)
    across = Image.linear_gradient("L").resize(size)
    image = Image.merge("RGB", (across, across.rotate(90).resize(size), across.rotate(180)))
    prepared = [
        AutoImageProcessor.from_pretrained(tmp_path, backend=backend)(
            images=[image], return_tensors="pt"
        )
        for backend in ("torchvision", "pil")
    ]
    assert prepared[0].keys() == prepared[1].keys()
    for name, ours in prepared[1].items():
        if name != "pixel_values":
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(prepared[0][name])), name
            continue
        torch.testing.assert_close(ours, prepared[0][name], atol=1e-1, rtol=1e-3)
        assert (ours - prepared[0][name]).abs().mean() <= 5e-3


def test_a_processor_loads_as_transformers_loads_it(tmp_path: Path) -> None:
    write_hub_folder(BY_PROFILE["qwen3-vl-8b-thinking"], tmp_path, weights=False)
    load = AutoVideoProcessor.from_pretrained
    with without_video():
        assert AutoVideoProcessor.from_pretrained == load
    processor = HuggingFace().load_processor(ModelSpec(model=str(tmp_path)))
    assert type(processor.video_processor).__name__ == "Qwen3VLVideoProcessor"
