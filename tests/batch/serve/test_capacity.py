"""How many at a time: bytes of a slot, counted by hand, the limits that follow, and a survey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mvw_hf.model import HuggingFace
from PIL import Image
from serving import Bench, item

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.serve.capacity import (
    MAX_SLOTS,
    Limits,
    choose_limits,
    slot_bytes,
    survey,
)
from mvw_cli.batch.serve.prefetch import Ready
from mvw_cli.batch.workers.worker import Job, Worker
from mvw_cli.cost.shape import CacheLayer, Shape, Weights
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.profiles.resolution import resolve
from mvw_cli.profiles.schema import Profile

MiB = 2**20


def shape(*layers: CacheLayer) -> Shape:
    return Shape(Weights(), layers, "bfloat16")


LOAD = {"text_tokens": 40, "vision_tokens": 1000, "new_tokens": 500}
GQA = [CacheLayer(2 * 4 * 128)] * 28
"""28 layers, 4 key-value heads of 128, as Qwen2.5-VL-7B: keys and values."""
MLA = [CacheLayer(512 + 64)] * 27
"""27 layers of a latent of 512 and a rotary key of 64, as Kimi-VL."""
CROSS = [CacheLayer(2 * 8 * 128)] * 32 + [CacheLayer(2 * 8 * 128, cross=True)] * 8
"""40 layers of 8 heads of 128, 8 of them crossed, as Llama 3.2 Vision."""
SLIDING = [CacheLayer(10), CacheLayer(10, window=101)]


@pytest.mark.parametrize(
    ("layers", "dtype", "before", "after"),
    [
        (GQA, "bfloat16", (40 + 16 + 1000) * 28 * 2048, (40 + 500) * 28 * 2048),
        (GQA, "float32", (40 + 16 + 1000) * 28 * 4096, (40 + 500) * 28 * 4096),
        (MLA, "bfloat16", (40 + 16 + 1000) * 27 * 1152, (40 + 500) * 27 * 1152),
        # Vision lies beside the sequence: the prompt is text alone, none of it is to be taken off.
        (CROSS, "bfloat16", (40 + 16) * 32 * 4096 + 1000 * 8 * 4096, (40 + 500) * 32 * 4096),
        (SLIDING, "float16", (1056 + 100) * 20, (540 + 100) * 20),
    ],
)
def test_bytes_of_a_slot(layers: list[CacheLayer], dtype: str, before: int, after: int) -> None:
    assert slot_bytes(shape(*layers), dtype, **LOAD, withdrawn_after=16) == (before, after)


@pytest.mark.parametrize(("after", "seen"), [(None, 500), (9000, 500), (1, 1)])
def test_vision_is_there_until_it_is_withdrawn_or_the_answer_ends(
    after: int | None, seen: int
) -> None:
    found = slot_bytes(shape(CacheLayer(1)), "float16", **LOAD, withdrawn_after=after)
    assert found[0] == 2 * (1040 + seen)


def untold(kind: str, most: int) -> tuple[dict[str, Any], int, None, str]:
    return {"kind": kind}, most, None, f"{most} slots, the most for {kind}: its memory is not told"


FREE, GIVEN = "100.0 MiB free after the weights, 20% kept back", "100.0 MiB for the KV cache"
EACH = "a slot takes up to 10.0 MiB"


@pytest.mark.parametrize(
    ("given", "slots", "kv_bytes", "reason"),
    [
        (
            *({"free": 100 * MiB}, 20, 80 * MiB),
            f"20 slots: {FREE}; {EACH}, 4.0 MiB once vision is withdrawn",
        ),
        (
            *({"kv_bytes": 100 * MiB}, 25, 100 * MiB),
            f"25 slots: {GIVEN}; {EACH}, 4.0 MiB once vision is withdrawn",
        ),
        ({"free": 100 * MiB, "policy": NoWithdrawal()}, 8, 80 * MiB, f"8 slots: {FREE}; {EACH}"),
        # A long answer may outgrow the image: then the most that a slot takes is not what counts
        # for the number. Bytes admit, not it.
        ({"free": 100 * MiB, "each": (4 * MiB, 10 * MiB)}, 20, 80 * MiB, None),
        ({"free": MiB}, 1, int(0.8 * MiB), None),
        ({"free": 0}, 1, 0, None),
        *[
            ({"free": 2**40, "kind": kind}, most, int(0.8 * 2**40), f"gains nothing beyond {most}")
            for kind, most in MAX_SLOTS.items()
        ],
        untold("mps", MAX_SLOTS["mps"]),
        untold("xpu", MAX_SLOTS["cpu"]),
    ],
)
def test_how_many_at_a_time(
    given: dict[str, Any], slots: int, kv_bytes: int | None, reason: str | None
) -> None:
    options = {"free": None, "kind": "cuda", "each": (10 * MiB, 4 * MiB), "policy": Mvw(m=4)}
    free, kind, each, policy = ({**options, **given}[name] for name in options)
    limits = choose_limits(free, kind, each, policy, kv_bytes=given.get("kv_bytes"))
    assert (limits.slots, limits.kv_bytes) == (slots, kv_bytes)
    assert reason is None or limits.reason.endswith(reason)


# --- a worker's choice, from its first item ---


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Ready:
    """An item of 16 vision tokens and 3 of text; there are 10 MiB."""
    bench = Bench(HuggingFace().tiny(), Mvw(m=4))
    monkeypatch.setattr("mvw_cli.batch.workers.worker.open_session", lambda *_, **__: bench.session)
    monkeypatch.setattr("mvw_cli.batch.workers.worker.free_memory", lambda device: 10 * MiB)
    return bench.ready(item("a", 100))


def chosen(first: Ready, **options: object) -> Limits:
    with Worker(Job(Profile(), **options)) as worker:  # type: ignore[arg-type]
        return worker._choose_limits(first)


TOKEN = 2 * 2 * 8 * 4
"""Bytes of a token of the tiny model: layers, keys and values, head size, float32."""


def test_what_a_worker_chooses_by_itself_it_explains(first: Ready) -> None:
    request = first.encoded.request
    assert (request.text_tokens, request.layout.vision_tokens) == (3, 16)
    limits = chosen(first)
    assert (limits.slots, limits.kv_bytes) == (16, 8 * MiB)
    assert f"a slot takes up to {(3 + 4 + 16) * TOKEN / 1024:.1f} KiB" in limits.reason
    assert f"{(3 + 100) * TOKEN / 1024:.1f} KiB once vision is withdrawn" in limits.reason


def test_what_a_worker_is_told(first: Ready) -> None:
    assert chosen(first, slots=3, kv_bytes=MiB) == Limits(3, MiB, strict=True)
    # Nothing is chosen, so nothing is explained.
    assert chosen(first, slots=3) == Limits(3, 8 * MiB)
    memory = chosen(first, kv_bytes=40_000)
    settled = (3 + 4 + 16) * TOKEN
    assert (memory.slots, memory.kv_bytes) == (40_000 // settled, 40_000)
    assert "39.1 KiB for the KV cache" in memory.reason


def test_a_model_that_can_not_be_counted(first: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no meta kernels")

    monkeypatch.setattr("mvw_cli.batch.workers.worker.shape_of", fail)
    limits = chosen(first)
    assert (limits.slots, limits.kv_bytes) == (MAX_SLOTS["cpu"], None)
    assert limits.reason.endswith("its memory is not told")
    assert chosen(first, slots=2) == Limits(2)
    limits = chosen(first, kv_bytes=MiB)
    assert (limits.slots, limits.kv_bytes) == (MAX_SLOTS["cpu"], MiB)


# --- what `--dry-run` estimates, of items that can't all be answered ---


REFUSED = (7200, 30)
"""In pixels. Kimi-VL reads 511 patches of 14 px a side, Qwen2.5-VL no side 200 times the other."""


def items(folder: Path, *sizes: tuple[int, int]) -> list[Item]:
    made = []
    for number, size in enumerate(sizes):
        path = folder / f"{number}.png"
        Image.new("L", size).save(path)
        made.append(Item(str(number), (ImageRef(str(path)),), "How many?"))
    return made


@pytest.mark.parametrize("name", ["kimi-vl", "qwen2.5-vl-7b"])
def test_an_image_that_the_model_refuses_counts_as_unreadable(name: str, tmp_path: Path) -> None:
    listed = items(tmp_path, (112, 112), REFUSED, (56, 56), (56, 56))
    (tmp_path / "broken.png").write_bytes(b"no image")
    listed.append(Item("broken", (ImageRef(str(tmp_path / "broken.png")),), "How many?"))
    found = survey(listed, resolve(name, {}).profile, slots=2, kv_bytes=None)
    assert (found.images_looked_at, found.images_unreadable) == (5, 2)
    assert (found.vision_tokens_median, found.vision_tokens_max) == (4, 16)  # squares of 28 px
    assert found.limits is not None
    assert found.limits.slots == 2
