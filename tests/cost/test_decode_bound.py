"""The bound of the speed-up: bytes of a step, and from how many sequences it matters."""

from __future__ import annotations

import pytest

from mvw_cli.cost import CacheLayer, Shape, Weights
from mvw_cli.cost.decode_bound import DecodeBound, Workload


def weights(step: int, *, cross: int = 0, attention: int = 0, experts: int = 0) -> Weights:
    return Weights(step + experts, 0, 0, step, cross, attention, experts, 8 if experts else 1,
                   2 if experts else 1)  # fmt: skip


def bound(
    model: Weights, vision: int, text: int, *layers: CacheLayer, keep_mlp: bool = False
) -> DecodeBound:
    shape = Shape(model, layers, "bfloat16")
    return DecodeBound(shape, Workload(vision, text), "bfloat16", keep_mlp)


def test_bytes_of_a_step() -> None:
    step = bound(weights(1000), 60, 40, CacheLayer(10), CacheLayer(5, window=51)).step(3)
    assert step.weight_bytes_before == step.weight_bytes_after == 2000
    assert step.kv_bytes_before == 3 * 2 * (100 * 10 + 50 * 5)
    assert step.kv_bytes_after == 3 * 2 * (40 * 10 + 40 * 5)
    assert step.speedup == (2000 + 7500) / (2000 + 3600)


def test_skipped_layers_leave_the_weights_too_unless_their_mlp_is_kept() -> None:
    layers = (CacheLayer(10), CacheLayer(10, cross=True))
    model = weights(1000, cross=300, attention=100)
    skip = bound(model, 60, 40, *layers).step(1)
    assert (skip.weight_bytes_before, skip.weight_bytes_after) == (2000, 1400)
    assert (skip.kv_bytes_before, skip.kv_bytes_after) == (2000, 800)
    mlp = bound(model, 60, 40, *layers, keep_mlp=True).step(1)
    assert mlp.weight_bytes_after == 1800
    nothing = bound(model, 0, 40, *layers).step(1)
    assert nothing.speedup == 1


@pytest.mark.parametrize("experts", [0, 5_000_000])
@pytest.mark.parametrize("vision", [30, 100, 1000, 9000])
def test_it_matters_from_the_first_count_that_reaches_the_line(vision: int, experts: int) -> None:
    one = bound(weights(1_000_000, experts=experts), vision, 300, CacheLayer(64))
    first = next((n for n in range(1, 3000) if one.step(n).speedup >= 1.1), None)
    assert one.matters_from() == first
    assert one.limit == (vision + 300) / 300
    assert one.step(10**9).speedup == pytest.approx(one.limit, rel=1e-3)


def test_too_little_vision_never_matters() -> None:
    assert bound(weights(1000), 20, 300, CacheLayer(64)).matters_from() is None


def test_more_sequences_read_more_experts() -> None:
    model = weights(1000, experts=8000)
    one = bound(model, 10, 10, CacheLayer(1))
    assert one.step(1).weight_bytes_before == 2 * (1000 + 2000)
    assert one.step(2).weight_bytes_before == 2 * (1000 + 3500)
    assert one.step(100).weight_bytes_before == 2 * (1000 + 8000)


def test_quantised_weights_move_fewer_bytes() -> None:
    layers = (CacheLayer(10), CacheLayer(10, cross=True))
    held = Weights(1000, 0, 0, 1000, 300, 100, 800, 8, 2, 900, 280, 90, 400)
    shape = Shape(held, layers, "bfloat16")
    for bits, each in ((8, 1.0), (4, 4.5 / 8)):
        for keep, gone, linear in ((False, 300, 280), (True, 100, 90)):
            one = DecodeBound(shape, Workload(60, 40), "bfloat16", keep, bits=bits)
            step = one.step(1)
            read = (1000 - 900 + 200 - 100) * 2 + (900 + 100) * each  # a quarter of the experts
            assert step.weight_bytes_before == round(read)
            assert step.weight_bytes_after == round(read - (gone - linear) * 2 - linear * each)
            assert step.kv_bytes_before == 2 * 10 * (40 + 60)


def test_a_sequence_without_an_image_skips_its_cross_attention_layers() -> None:
    layers = (CacheLayer(10), CacheLayer(10, cross=True))
    for keep in (False, True):
        step = bound(weights(1000, cross=300, attention=100), 0, 40, *layers, keep_mlp=keep).step(1)
        assert step.weight_bytes_before == step.weight_bytes_after == 1400


def test_entries_that_are_expanded_are_written_and_read_again() -> None:
    shape = Shape(weights(1000), (CacheLayer(10),), "bfloat16")
    plain = DecodeBound(shape, Workload(60, 40), "bfloat16").step(2)
    step = DecodeBound(shape, Workload(60, 40), "bfloat16", expanded=30).step(2)
    assert step.kv_bytes_before - plain.kv_bytes_before == 2 * 2 * 2 * 30 * 100
    assert step.kv_bytes_after - plain.kv_bytes_after == 2 * 2 * 2 * 30 * 40
