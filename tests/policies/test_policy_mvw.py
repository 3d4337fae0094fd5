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
        (Mvw(until="</CAPTION>"), 4),
        (Mvw(m=2, until="</CAPTION>"), 2),
        (Mvw(m=6, until="</CAPTION>"), 4),
        (Mvw(until="</CAPTION>", min=3), 4),
        (Mvw(until="</CAPTION>", min=6), 6),
        (Mvw(until="</CAPTION>", max=3), 3),
        (Mvw(until="</CAPTION>", max=5), 4),
        (Mvw(until="</NOWHERE>", min=2, max=5), 5),
        (Mvw(m=3, max=6), 3),
        (Mvw(m=6, until="</CAPTION>", min=5), 5),
    ],
)
def test_it_withdraws_once_at_the_first_trigger(policy: Mvw, step: int) -> None:
    assert walk(policy, OUTPUT) == {step: [Withdraw()]}
    assert walk(policy, OUTPUT) == {step: [Withdraw()]}  # requests share no state


@pytest.mark.parametrize("until", ["</CAPTION>", ["</CAPTION>"]])
def test_the_tag_of_a_stage_counts_in_either_form(until: Any) -> None:
    said = walk(Mvw(until=until), ["(Here ends", " the CAPTION", " stage)", " 4"], **TWO)
    assert list(said) == [3]
    assert walk(Mvw(until=until), ["(Here begins the CAPTION stage)"], **TWO) == {}


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


def test_a_profile_may_give_one_tag_or_a_list() -> None:
    model: Any = policy_model(Mvw)
    assert model(until="</A>").until == "</A>"
    assert Mvw(until=model(until=["</A>", "</B>"]).until) == Mvw(until=("</A>", "</B>"))
    assert {Mvw(until=["</A>"]): 1}[Mvw(until=("</A>",))] == 1
