"""`mvw`: its triggers and bounds, and a tag for each image; `none`."""

from __future__ import annotations

from typing import Any

import pytest
from walking import kept, walk

from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import Withdraw, WithdrawalPolicy
from mvw_cli.profiles.withdrawal import policy_model

OUTPUT = ["I ", "see", "</CAP", "TION>", " and", " then", "</CAPTION>", "</END>"]
TWO = {"vision_tokens": 5, "images": (2, 3), "layers": (0, 4)}


@pytest.mark.parametrize(
    ("policy", "step"),
    [
        (Mvw(m=1), 1),
        (Mvw(m=5), 5),
        (Mvw(until="</CAPTION>"), 4),
        (Mvw(m=2, until="</CAPTION>"), 2),
        (Mvw(m=6, until="</CAPTION>"), 4),
        (Mvw(until="</CAPTION>", min=3), 4),
        (Mvw(until="</CAPTION>", min=6), 6),
        (Mvw(until="</CAPTION>", max=3), 3),
        (Mvw(until="</CAPTION>", max=5), 4),
        (Mvw(until="</NOWHERE>", min=2, max=5), 5),
        (Mvw(until="</CAPTION>", min=5, max=5), 5),
        (Mvw(m=5, until="</CAPTION>", min=2), 4),
        (Mvw(m=3, max=6), 3),
        (Mvw(m=6, until="</CAPTION>", min=5), 5),
    ],
)
def test_it_withdraws_once_at_the_first_trigger(policy: Mvw, step: int) -> None:
    assert walk(policy, OUTPUT) == {step: [Withdraw()]}
    assert walk(policy, OUTPUT) == {step: [Withdraw()]}  # requests share no state


@pytest.mark.parametrize("policy", [NoWithdrawal(), Mvw(m=9), Mvw(until="</NOWHERE>")])
def test_without_a_trigger_nothing_goes(policy: WithdrawalPolicy) -> None:
    assert walk(policy, OUTPUT) == {}


def test_each_image_goes_at_its_own_tag_and_the_last_takes_the_rest() -> None:
    said = walk(Mvw(until=["</CAPTION>", "</END>"]), OUTPUT, **TWO)
    assert list(said) == [4, 8]
    assert kept(said[4][0]) == {0: [2, 3, 4], 4: [2, 3, 4]}
    assert said[8] == [Withdraw()]


def test_images_go_in_the_order_of_the_tags_not_their_own() -> None:
    said = walk(Mvw(until=["</END>", "</CAPTION>"]), OUTPUT, **TWO)
    assert kept(said[4][0]) == {0: [0, 1], 4: [0, 1]}
    assert said[8] == [Withdraw()]


def test_a_tag_given_twice_means_its_first_and_its_second_occurrence() -> None:
    said = walk(Mvw(until=["</CAPTION>", "</CAPTION>"]), OUTPUT, **TWO)
    assert list(said) == [4, 7]
    assert kept(said[4][0])[0] == [2, 3, 4]
    assert said[7] == [Withdraw()]


def test_images_whose_tags_come_at_once_go_together() -> None:
    three = {"vision_tokens": 6, "images": (1, 2, 3), "layers": (0,)}
    said = walk(Mvw(until=["</CAPTION>", "</END>", "TION>"]), OUTPUT, **three)
    assert kept(said[4][0]) == {0: [1, 2]}
    assert said[8] == [Withdraw()]


def test_an_image_without_a_tag_goes_with_m_or_max() -> None:
    one = ["</CAPTION>"]
    for policy in (Mvw(until=one, m=6), Mvw(until=one, max=6)):
        said = walk(policy, OUTPUT, **TWO)
        assert kept(said[4][0])[0] == [2, 3, 4]
        assert said[6] == [Withdraw()] and list(said) == [4, 6]
    assert list(walk(Mvw(until=one), OUTPUT, **TWO)) == [4]


def test_tags_for_which_there_is_no_image_count_for_nothing() -> None:
    policy = Mvw(until=["</CAPTION>", "see", "</END>"])
    single = {"vision_tokens": 5, "images": (5,), "layers": (0, 1)}
    assert walk(policy, OUTPUT, **single) == {4: [Withdraw()]}
    untold = {"vision_tokens": 5, "layers": (0, 1)}
    assert walk(policy, OUTPUT, **untold) == {4: [Withdraw()]}


def test_the_bounds_hold_for_images_too() -> None:
    said = walk(Mvw(until=["</CAPTION>", "</END>"], min=6, max=7), OUTPUT, **TWO)
    assert list(said) == [6, 7]
    assert kept(said[6][0])[4] == [2, 3, 4]
    assert said[7] == [Withdraw()]
    assert walk(Mvw(until=["I", "see"], min=6), OUTPUT, **TWO) == {6: [Withdraw()]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give m"),
        ({"m": 0}, "m must be 1 or more"),
        ({"m": -3}, "m must be 1 or more"),
        ({"until": ""}, "until must not be empty"),
        ({"min": 2}, "give m"),
        ({"max": 2}, "give m"),
        ({"m": 4, "min": 0}, "min must be 1"),
        ({"m": 4, "max": 0}, "max must be 1"),
        ({"until": "x", "min": 5, "max": 4}, "min must not be above max: 5 > 4"),
        ({"m": 4, "min": 5}, "m must not be below min: 4 < 5"),
        ({"m": 4, "max": 3}, "m must not be above max: 4 > 3"),
        ({"until": []}, "until must not be empty"),
        ({"until": ["x", ""]}, "until must not be empty"),
    ],
)
def test_bad_bounds_and_lists_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mvw(**fields)


def test_a_profile_may_give_one_tag_or_a_list() -> None:
    model: Any = policy_model(Mvw)
    assert model(until="</A>").until == "</A>"
    assert Mvw(until=model(until=["</A>", "</B>"]).until) == Mvw(until=("</A>", "</B>"))
    assert {Mvw(until=["</A>"]): 1}[Mvw(until=("</A>",))] == 1


def test_descriptions() -> None:
    assert Mvw(m=16).describe() == "after 16 tokens"
    assert Mvw(m=16, until="</CAPTION>").describe() == "after 16 tokens or at </CAPTION>"
    assert NoWithdrawal().describe() == "no withdrawal"
    assert Mvw(until="</A>", min=4, max=64).describe() == (
        "at </A>, not before 4 tokens, after 64 tokens at the latest"
    )
    assert Mvw(m=9, until=["</A>", "</B>"]).describe() == (
        "after 9 tokens or image 1 at </A>, image 2 at </B>"
    )
