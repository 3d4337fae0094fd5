"""The world of the embedded model: coloured shapes on a 3x3 grid, and how to draw them.

Every random choice comes from the `random.Random` that the caller hands in, so a seed fixes a scene
and its picture.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (218, 38, 42),
    "green": (42, 160, 70),
    "blue": (42, 86, 220),
    "yellow": (242, 208, 40),
    "purple": (140, 58, 180),
    "orange": (246, 130, 28),
}
KINDS = ("circle", "square", "triangle", "star")
SIDE = 336
CELL = SIDE // 3
HELD_OUT_SHARE = 8  # one layout in so many is never trained on


@dataclass(frozen=True, slots=True)
class Shape:
    """Name one object by its colour and kind."""

    colour: str
    kind: str


@dataclass(frozen=True, slots=True)
class Scene:
    """Hold the nine cells of a grid in reading order; an empty cell is None."""

    cells: tuple[Shape | None, ...]

    @property
    def layout(self) -> str:
        """Write the content as text, the same for two scenes that show the same shapes."""
        return "|".join(f"{c.colour} {c.kind}" if c else "-" for c in self.cells)

    @property
    def held_out(self) -> bool:
        """Whether this layout is kept from training, by its content alone."""
        digest = hashlib.sha256(self.layout.encode()).digest()
        return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


def sample_scene(rng: random.Random, *, held_out: bool) -> Scene:
    """Draw a random layout from the held-out part or from the part that is trained on."""
    while True:
        scene = _sample_layout(rng)
        if scene.held_out == held_out:
            return scene


def _sample_layout(rng: random.Random) -> Scene:
    count = rng.choices(range(1, 10), weights=(2, 3, 4, 5, 5, 5, 4, 4, 4))[0]
    colours, kinds = list(COLOURS), list(KINDS)
    # Nine objects over 24 sorts hardly ever repeat, and then every count is 0 or 1; a short
    # palette in most scenes makes larger counts common.
    if rng.random() < 0.65:
        colours = rng.sample(colours, rng.choice((1, 2, 2, 3)))
    if rng.random() < 0.5:
        kinds = rng.sample(kinds, rng.choice((1, 2, 2, 3)))
    places = set(rng.sample(range(9), count))
    return Scene(
        tuple(
            Shape(rng.choice(colours), rng.choice(kinds)) if place in places else None
            for place in range(9)
        )
    )


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """Paint a scene as an RGB picture of SIDE x SIDE px, with size, place and tone varied."""
    base = rng.randint(240, 254)
    background = tuple(min(255, base + rng.randint(-3, 3)) for _ in range(3))
    image = Image.new("RGB", (SIDE, SIDE), background)
    pen = ImageDraw.Draw(image)
    for place, shape in enumerate(scene.cells):
        if shape is not None:
            _draw_shape(pen, shape, place, rng)
    return image


def _draw_shape(pen: ImageDraw.ImageDraw, shape: Shape, place: int, rng: random.Random) -> None:
    row, column = divmod(place, 3)
    radius = rng.uniform(27, 43)
    slack = CELL / 2 - radius - 3
    x = (column + 0.5) * CELL + rng.uniform(-slack, slack)
    y = (row + 0.5) * CELL + rng.uniform(-slack, slack)
    light = rng.randint(-12, 12)
    fill = tuple(
        max(0, min(255, tone + light + rng.randint(-8, 8))) for tone in COLOURS[shape.colour]
    )
    if shape.kind == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        pen.polygon(_corners(shape.kind, x, y, radius, rng), fill=fill)


def _corners(
    kind: str, x: float, y: float, radius: float, rng: random.Random
) -> list[tuple[float, float]]:
    turn = math.radians(rng.uniform(-9, 9)) - math.pi / 2
    if kind == "star":
        reach = [radius, radius * 0.42] * 5
    elif kind == "triangle":
        reach = [radius] * 3
    else:
        reach = [radius] * 4
        turn += math.pi / 4
    step = 2 * math.pi / len(reach)
    return [
        (x + r * math.cos(turn + i * step), y + r * math.sin(turn + i * step))
        for i, r in enumerate(reach)
    ]
