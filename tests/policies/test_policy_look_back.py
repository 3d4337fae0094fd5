"""`look-back`: offloading, the triggers, and policies that withdraw step by step before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from walking import kept, walk

from mvw_cli.policies.anneal import Anneal
from mvw_cli.policies.look_back import LookBack
from mvw_cli.policies.mass import Mass
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policies.pulse import Pulse
from mvw_cli.policies.stack import stacked
from mvw_cli.policy import Decision, Restore, Signals, Withdraw, WithdrawalPolicy

OFFLOAD, BACK = Withdraw(offload=True), Restore()


def look(modifier: LookBack, texts: Sequence[str], m: int = 2) -> dict[int, list[Decision]]:
    return walk([Mvw(m=m), modifier], texts)


def unsure(modifier: LookBack, entropies: Sequence[float | None], m: int = 2) -> Any:
    each = [{"entropy": entropy} for entropy in entropies]
    return walk([Mvw(m=m), modifier], ["a "] * len(entropies), each)


def test_without_a_trigger_it_only_offloads() -> None:
    assert unsure(LookBack(entropy=2.0), [0.5] * 6) == {2: [OFFLOAD]}


def test_it_comes_back_for_so_many_tokens_and_goes_again() -> None:
    said = unsure(LookBack(entropy=2.0, steps=3), [9, 0, 0, 2.0, 0, 9, 0, 0, 0, 3, 0, 0, 0])
    assert said == {2: [OFFLOAD], 4: [BACK], 7: [OFFLOAD], 10: [BACK], 13: [OFFLOAD]}
    said = unsure(LookBack(entropy=2.0, steps=1), [0, 0, 3, 0, 3, 0])
    assert said == {2: [OFFLOAD], 3: [BACK], 4: [OFFLOAD], 5: [BACK], 6: [OFFLOAD]}


def test_a_trigger_at_the_token_where_it_would_go_again_starts_the_time_anew() -> None:
    said = unsure(LookBack(entropy=2.0, steps=2), [0, 0, 3, 0, 3, 0, 0, 0])
    assert said == {2: [OFFLOAD], 3: [BACK], 7: [OFFLOAD]}


def test_null_is_for_good() -> None:
    said = unsure(LookBack(entropy=2.0, steps=None), [0, 0, 3, *[0] * 20])
    assert said == {2: [OFFLOAD], 3: [BACK]}


def test_entropy_0_and_null_fire_at_the_withdrawal_itself() -> None:
    never = LookBack(entropy=0, steps=None)
    assert unsure(never, [0.0] * 8) == {2: [OFFLOAD, BACK]}
    assert unsure(never, [-1e-7] * 8) == {2: [OFFLOAD, BACK]}  # rounding
    each = [{"entropy": 0.0}] * 9
    annealed = walk([Anneal(end=8, by="even"), never], ["a"] * 9, each)
    assert annealed == {8: [OFFLOAD, BACK]}


def test_a_tag_fires_at_each_new_occurrence() -> None:
    texts = ["<L>", "a", "b", "<", "L", ">", "c", "d", "<L>", "e", "f"]
    said = look(LookBack(tag="<L>", steps=2), texts)
    assert said == {2: [OFFLOAD], 6: [BACK], 8: [OFFLOAD], 9: [BACK], 11: [OFFLOAD]}
    twice = look(LookBack(tag="<<", steps=1), ["a", "b", "<", "<", "<", "c"])  # they overlap
    assert twice == {2: [OFFLOAD], 4: [BACK], 6: [OFFLOAD]}
    assert look(LookBack(tag="<L>", steps=2), ["a", "<L>", "b", "c"]) == {
        2: [OFFLOAD, BACK],
        4: [OFFLOAD],
    }


@pytest.mark.parametrize(
    ("texts", "steps"),
    [
        (["a ", "b", " Wait", ",", " no", "."], [4]),
        (["a ", "b", " wait", "ing", " no", "."], []),
        (["a ", "b", " a", "wait", ".", "."], []),  # await
        (["a ", "b", " WAIT. wait. ", "x"], [3]),
        (["a ", "b ", "wait\n", "x ", "wait", " x"], [3, 6]),
        (["a ", "wait ", "b", "c"], [2]),
        (["wait ", "a", "b", "c"], []),
        (["a ", "wait", " b", "c"], [3]),
        (["a ", "b", " look", " at", "\nthe", " image", "s", "."], []),
        (["a ", "b", " Look", " at", "\nthe", " image", ".", "."], [7]),
        (["a ", "b", " look  at the image."], []),
        (["a ", "b ", "hm", "m…", "."], [4]),
        (["a ", "b ", "hm", "m", ".", "."], []),
    ],
)
def test_words_fire_once_when_they_have_surely_ended(texts: list[str], steps: list[int]) -> None:
    modifier = LookBack(words=["wait", "look at the image", "hmm…"], steps=1)
    said = look(modifier, texts)
    assert [step for step, one in said.items() if BACK in one] == steps


def test_words_are_found_however_long_the_text_is() -> None:
    texts = ["a ", "b ", *["word "] * 500, "wait", " ", "x"]
    assert look(LookBack(words=["wait"]), texts) == {2: [OFFLOAD], 504: [BACK]}
    assert look(LookBack(words=["word"], steps=None), texts) == {2: [OFFLOAD], 3: [BACK]}


def test_partial_withdrawals_are_offloaded_and_go_again_with_what_was_said_meanwhile() -> None:
    pair = [Anneal(end=8, every=2, depth=0.5, by="even"), LookBack(entropy=2.0, steps=3)]
    entropies = [0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
    each = [{"entropy": entropy} for entropy in entropies]
    said = walk(pair, ["a"] * 10, each, vision_tokens=8, layers=(0, 2))
    assert list(said) == [2, 3, 6, 8]
    assert kept(said[2][0]) == {0: [0, 1, 2, 4, 5, 6], 2: [0, 2, 4, 6]}
    assert said[3] == [BACK]
    # At 4 it thinned again, unseen: what goes at 6 is all of 2, 4 and 6.
    assert kept(said[6][0]) == {0: [0, 4], 2: []}
    assert all(isinstance(one, Withdraw) and one.offload for one in (said[2][0], said[6][0]))
    assert said[8] == [OFFLOAD]


def test_a_whole_withdrawal_during_a_look_back_waits_for_its_end() -> None:
    half = {"vision_tokens": 4, "images": (2, 2), "layers": (0,)}
    tags = Mvw(until=["<A>", "<B>"])
    texts = ["x", "<A>", "<L>", "<B>", "y", "z", "<L>"]
    said = walk([tags, LookBack(tag="<L>", steps=3)], texts, **half)
    assert list(said) == [2, 3, 6, 7]
    assert kept(said[2][0]) == {0: [2, 3]}
    assert (said[3], said[6], said[7]) == ([BACK], [OFFLOAD], [BACK])
    forever = walk([tags, LookBack(tag="<L>", steps=None)], texts, **half)
    assert list(forever) == [2, 3]


def test_masks_of_several_withdrawals_are_joined() -> None:
    class Twice(WithdrawalPolicy):
        name = "twice"

        def begin(self) -> Any:
            masks = {
                1: {0: torch.tensor([True, True, False])},
                2: {0: torch.tensor([False, True, True])},
            }
            masks[3] = {4: torch.tensor([True, False, True])}
            return lambda view: [Withdraw(keep=masks[view.step])] if view.step in masks else None

    each = [{"entropy": entropy, "vision_tokens": 3} for entropy in (0, 0, 0, 5, 0)]
    said = walk([Twice(), LookBack(entropy=1.0, steps=1)], ["a"] * 5, each)
    assert list(said) == [1, 2, 3, 4, 5]
    assert kept(said[5][0]) == {0: [1], 4: [0, 2]}


def test_it_asks_for_the_entropy_only_if_it_looks_at_it() -> None:
    assert LookBack(entropy=1.0).signals((0, 1)) == Signals(entropy=True)
    assert LookBack(tag="x").signals((0, 1)) == Signals()
    both = stacked([Mass(threshold=0.1), LookBack(entropy=1.0)])
    assert both.signals((0, 1)) == Signals(entropy=True, mass=(0, 1))


def test_where_it_makes_no_sense() -> None:
    modifier = LookBack(entropy=1.0)
    needs = "look-back needs a policy before it that withdraws while decoding"
    for before in ([], [NoWithdrawal()], [Pulse()]):
        with pytest.raises(ValueError, match=needs):
            stacked([*before, modifier])
    with pytest.raises(ValueError, match="look-back is given twice"):
        stacked([Mvw(m=2), modifier, LookBack(tag="x")])
    with pytest.raises(ValueError, match="mass must come before look-back"):
        stacked([Mvw(m=2), modifier, Mass(threshold=0.1)])
    stacked([Mvw(m=2), modifier, Pulse()])
