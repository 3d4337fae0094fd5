"""The policies' decisions, apart from any model."""

from __future__ import annotations

from typing import Any

import pytest

from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import StepView, Withdraw, WithdrawalPolicy


def decisions(policy: WithdrawalPolicy, texts: list[str]) -> list[int]:
    """Run a policy over an output, token by token; return the steps at which it withdraws."""
    decide, text, steps = policy.begin(), "", []
    for step, piece in enumerate(texts, start=1):
        text += piece
        if decide(StepView(step, list(range(step)), text)) == Withdraw():
            steps.append(step)
    return steps


OUTPUT = ["I ", "see", "</CAP", "TION>", " and", " then", "</CAPTION>"]


@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        (NoWithdrawal(), []),
        (Mvw(m=1), [1]),
        (Mvw(m=5), [5]),
        (Mvw(m=8), []),
        (Mvw(until="</CAPTION>"), [4]),
        (Mvw(until="</NOWHERE>"), []),
        (Mvw(m=2, until="</CAPTION>"), [2]),
        (Mvw(m=6, until="</CAPTION>"), [4]),
    ],
)
def test_withdraws_once_at_the_first_trigger(policy: WithdrawalPolicy, steps: list[int]) -> None:
    assert decisions(policy, OUTPUT) == steps


def test_requests_do_not_share_state() -> None:
    policy = Mvw(m=2)
    assert decisions(policy, OUTPUT) == decisions(policy, OUTPUT) == [2]


@pytest.mark.parametrize("fields", [{}, {"m": 0}, {"m": -3}, {"until": ""}])
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"m |until"):
        Mvw(**fields)


def test_descriptions() -> None:
    assert Mvw(m=16).describe() == "after 16 tokens"
    assert Mvw(m=16, until="</CAPTION>").describe() == "after 16 tokens or at </CAPTION>"
    assert NoWithdrawal().describe() == "no withdrawal"
