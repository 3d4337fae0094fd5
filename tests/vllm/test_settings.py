"""What a server and a request say of withdrawal: read, or refused with a sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mvw_cli.policies.mvw import Mvw
from mvw_cli.vllm.plugin.plan import Move, asked_of
from mvw_cli.vllm.plugin.settings import request_policy, server_default, server_settings

DEFAULT = Mvw(m=16)


@pytest.mark.parametrize(
    ("extra", "policy"),
    [
        (None, DEFAULT),
        ({}, DEFAULT),
        ({"kv_transfer_params": {}}, DEFAULT),
        ({"mvw_m": -1}, None),
        ({"mvw": {"m": -1}}, None),
        ({"mvw_m": 3}, Mvw(m=3)),
        ({"mvw": {"m": 3, "min": 2}}, Mvw(m=3, min=2)),
        ({"mvw_until": "</CAPTION>"}, Mvw(until="</CAPTION>")),
        ({"mvw_until": "a", "mvw_max": 9}, Mvw(until="a", max=9)),
    ],
)
def test_a_request_overrides_the_server(extra: dict[str, Any] | None, policy: Mvw | None) -> None:
    assert request_policy(extra, DEFAULT) == policy


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"mvw_m": True}, "mvw_m has to be a whole number, not True"),
        ({"mvw_m": -2}, "mvw_m: m must be 1 or more"),
        ({"mvw_min": 3}, "mvw_min: give m"),
        ({"mvw_until": ["a", "b"]}, "mvw_until has to be one text"),
        ({"mvw": 16}, "mvw has to be an object"),
        ({"mvw": {"m": 3}, "mvw_m": 4}, "said twice: by mvw.m, mvw_m"),
        ({"mvw": {"steps": 3}}, "mvw.steps is no setting of withdrawal"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        request_policy(extra, None)


def test_a_server_says_when_or_that_requests_may() -> None:
    assert server_settings({}) is None
    assert server_settings({"mvw": {}}) == {}
    assert server_default({}) is None
    assert server_default({"m": 4, "allow_untested": True}) == Mvw(m=4)
    with pytest.raises(ValueError, match="has to be an object"):
        server_settings({"mvw": 16})


def test_positions_of_a_withdrawal() -> None:
    spans = ((2, 6),)
    assert asked_of(Mvw(m=1), 10, spans).boundary == 10  # token 1 is read at the first position
    assert asked_of(Mvw(m=5), 10, spans).boundary == 14
    tagged = asked_of(Mvw(until="</CAPTION>", min=3, max=9), 10, spans)
    assert (tagged.boundary, tagged.earliest) == (18, 12)
    assert tagged.tags == ("</CAPTION>", "(Here ends the CAPTION stage)")


def test_entries_close_up_in_their_order() -> None:
    """Two spans of a prompt of 11 in blocks of 4; the first kept block has a stand-in."""
    move = Move([7, 3, 5], [9, 3], spans=((1, 3), (6, 9)), length=11)
    source, target = move.slots(4)
    kept = [0, 3, 4, 5, 9, 10]
    slots = [(7, 3, 5)[one // 4] * 4 + one % 4 for one in kept]
    places = [(9, 3)[one // 4] * 4 + one % 4 for one in range(len(kept))]
    assert source.tolist() == slots
    assert target.tolist() == places
    still = Move([7, 3], [7, 3], spans=((6, 8),), length=8).slots(4)
    assert all(np.array_equal(one, []) for one in still)
