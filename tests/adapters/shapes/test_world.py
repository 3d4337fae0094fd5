"""Scenes pass, also worn by JPEG and resizing; what is not of this world is told from them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from unittest.mock import Mock

import pytest
import torch
from mvw_shapes.easy_vqa import load_questions
from mvw_shapes.model import Shapes, looks_like_easy_vqa, looks_like_scene
from mvw_shapes.scenes import COLOURS, SIDE, Scene, Shape, draw, sample_scene
from PIL import Image, ImageDraw, ImageFilter

from mvw_cli.adapter import LoadedModel

PALETTE = list(COLOURS.values())
Rng = random.Random


def _jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return Image.open(buffer)


def _sized(side: int) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((side, side), Image.Resampling.BICUBIC)


WEAR: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as drawn": lambda image: image,
    "jpeg": _jpeg,
    "200 px": _sized(200),
    "800 px": _sized(800),
    "200 px jpeg": lambda image: _jpeg(_sized(200)(image)),
    "alpha": lambda image: image.convert("RGBA"),
    "a little wide": lambda image: image.resize((400, 336)),
}


@pytest.mark.parametrize("wear", WEAR)
def test_no_false_alarm(wear: str) -> None:
    rng = random.Random(f"world/{wear}")
    for _ in range(70):
        scene = sample_scene(rng, held_out=rng.random() < 0.5)
        assert looks_like_scene(WEAR[wear](draw(scene, rng))), scene


def _from(values: torch.Tensor) -> Image.Image:
    data = values.clamp(0, 255).to(torch.uint8)  # (H, W, 3)
    return Image.frombytes("RGB", (data.shape[1], data.shape[0]), bytes(data.flatten().tolist()))


def _clouds(rng: Rng, cells: int, low: int = 0) -> Image.Image:
    tones = bytes(rng.randint(low, 255) for _ in range(3 * cells * cells))
    small = Image.frombytes("RGB", (cells, cells), tones)
    return small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _white(paint: Callable[[ImageDraw.ImageDraw], None]) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    paint(ImageDraw.Draw(image))
    return image


def _noise(rng: Rng) -> Image.Image:
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    return _from(torch.randint(0, 256, (SIDE, SIDE, 3), generator=generator))


def _photo(rng: Rng) -> Image.Image:
    grain = _noise(rng)
    return Image.blend(_clouds(rng, 12), grain, 0.1).filter(ImageFilter.GaussianBlur(1))


def _product(rng: Rng) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), (250, 250, 250))
    image.paste(_clouds(rng, 8).resize((200, 200)), (68, 68))
    return image


def _text(rng: Rng) -> Image.Image:
    ink = rng.choice([(0, 0, 0), *PALETTE])
    lines = ["".join(rng.choice("abcdef ghi ") for _ in range(50)) for _ in range(22)]
    return _white(lambda pen: pen.text((10, 10), "\n".join(lines), fill=ink))


def _scene(rng: Rng) -> Image.Image:
    return draw(sample_scene(rng, held_out=True), rng)


OUTSIDE: dict[str, Callable[[Rng], Image.Image]] = {
    "noise": _noise,
    "bright clouds": lambda rng: _clouds(rng, 5, 150),
    "photo": _photo,
    "product photo": _product,
    "one colour": lambda rng: Image.new("RGB", (SIDE, SIDE), rng.choice(PALETTE)),
    "white": lambda rng: Image.new("RGB", (SIDE, SIDE), "white"),
    "one pixel": lambda rng: Image.new("RGB", (1, 1), "white"),
    "text": _text,
    "a grey scene": lambda rng: _scene(rng).convert("L"),
    "a dark scene": lambda rng: _scene(rng).point(lambda tone: tone * 0.6),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_rest_is_told_from_it(name: str) -> None:
    rng = random.Random(f"outside/{name}")
    for _ in range(12):
        assert not looks_like_scene(OUTSIDE[name](rng))


EASY = list(dict.fromkeys(file for _, _, file in load_questions("test")))


@pytest.mark.parametrize("wear", ["as drawn", "jpeg", "200 px", "alpha"])
def test_pictures_of_easy_vqa_are_known(wear: str) -> None:
    missed = [
        file.name for file in EASY[::8] if not looks_like_easy_vqa(WEAR[wear](Image.open(file)))
    ]
    assert len(missed) <= len(EASY[::8]) * (0.02 if "jpeg" in wear else 0), missed


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_rest_is_told_from_easy_vqa(name: str) -> None:
    rng = random.Random(f"outside/{name}")
    for _ in range(12):
        assert not looks_like_easy_vqa(OUTSIDE[name](rng))


SCENE, SINGLE = "how many red circles are there?", "what shape is in the image?"


@pytest.mark.parametrize("question", [SCENE, SINGLE])
def test_a_question_is_held_against_the_world_of_its_picture(question: str) -> None:
    adapter, loaded = Shapes(), Mock(spec=LoadedModel)
    scene = draw(Scene((Shape("red", "star"),) * 4 + (None,) * 5), Rng(0))
    easy, neither = Image.open(EASY[0]), _noise(Rng(0))
    remarks = {
        name: adapter.remarks(loaded, [image], question)
        for name, image in {"scene": scene, "easy": easy, "neither": neither}.items()
    }
    assert [name for name, told in remarks.items() if not told] == [
        "scene" if question == SCENE else "easy"
    ]
    assert "this is not a question" in remarks["easy" if question == SCENE else "scene"][0]
    assert "this image is neither: do not trust" in remarks["neither"][0]
    assert "neither and this is not" in adapter.remarks(loaded, [neither], "Who is this?")[0]
