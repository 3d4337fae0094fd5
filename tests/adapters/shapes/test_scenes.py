"""Scenes are fixed by their seed, split by their content, and drawn as they say."""

from __future__ import annotations

import random

from mvw_shapes.scenes import (
    CELL,
    COLOURS,
    SIDE,
    Scene,
    Shape,
    draw,
    sample_scene,
)


def test_a_seed_fixes_scene_and_picture() -> None:
    def make(seed: str) -> tuple[Scene, bytes]:
        rng = random.Random(seed)
        scene = sample_scene(rng, held_out=False)
        return scene, draw(scene, rng).tobytes()

    assert make("a") == make("a")
    assert make("a")[0] != make("b")[0]
    rng = random.Random(1)
    scene = sample_scene(rng, held_out=False)
    assert draw(scene, rng).tobytes() != draw(scene, rng).tobytes()  # size and tone vary


def test_the_split_goes_by_content_alone() -> None:
    rng = random.Random(2)
    trained = {sample_scene(rng, held_out=False).layout for _ in range(400)}
    held_out = {sample_scene(rng, held_out=True).layout for _ in range(400)}
    assert not trained & held_out
    # The rule must never change: the packaged weights were trained by it.
    assert Scene((Shape("red", "circle"), *[None] * 8)).held_out
    assert not Scene((*[None] * 4, Shape("red", "circle"), *[None] * 4)).held_out


def test_every_number_of_shapes_and_repeats_occur() -> None:
    rng = random.Random(3)
    scenes = [sample_scene(rng, held_out=False) for _ in range(500)]
    counts = {sum(cell is not None for cell in scene.cells) for scene in scenes}
    assert counts == set(range(1, 10))
    repeated = [s for s in scenes if len([c for c in s.cells if c]) > len(set(s.cells) - {None})]
    assert len(repeated) > 250


def test_a_picture_shows_what_the_scene_says() -> None:
    rng = random.Random(4)
    for _ in range(60):
        scene = sample_scene(rng, held_out=True)
        image = draw(scene, rng)
        assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")
        for place, shape in enumerate(scene.cells):
            row, column = divmod(place, 3)
            cell = image.crop((column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL))
            paint = [pixel for pixel in _pixels(cell) if min(pixel) < 225]
            if shape is None:
                assert not paint
                continue
            tone = tuple(sum(channel) / len(paint) for channel in zip(*paint, strict=True))
            nearest = min(COLOURS, key=lambda name: _distance(COLOURS[name], tone))
            assert nearest == shape.colour
            assert _kind_by_area(cell) == shape.kind


def _pixels(image) -> list[tuple[int, int, int]]:
    data = image.tobytes()
    return [tuple(data[i : i + 3]) for i in range(0, len(data), 3)]


def _distance(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def _kind_by_area(cell) -> str:
    """Tell the kinds apart by how much of its bounding box and of its hull's circle one fills."""
    size = cell.width
    spots = [divmod(i, size) for i, pixel in enumerate(_pixels(cell)) if min(pixel) < 225]
    row = sum(r for r, _ in spots) / len(spots)
    column = sum(c for _, c in spots) / len(spots)
    reach = max((r - row) ** 2 + (c - column) ** 2 for r, c in spots)
    fill = len(spots) / (3.14159 * reach)  # circle 1, square 0.64, triangle 0.41, star 0.39
    if fill > 0.85:
        return "circle"
    if fill > 0.53:
        return "square"
    inner = min(
        (r - row) ** 2 + (c - column) ** 2
        for r in range(size)
        for c in range(size)
        if min(cell.getpixel((c, r))) >= 225
    )
    # The inscribed circle of a triangle has half its radius, that of this star less.
    return "triangle" if inner / reach > 0.2 else "star"
