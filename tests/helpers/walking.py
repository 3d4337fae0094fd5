"""Outputs token by token, as a decode-time policy sees them, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mvw_cli.policies.stack import stacked
from mvw_cli.policy import Decision, StepView, WithdrawalPolicy, decisions


def walk(
    policy: WithdrawalPolicy | Sequence[WithdrawalPolicy],
    texts: Sequence[str],
    each: Sequence[dict[str, Any]] | None = None,
    **always: Any,
) -> dict[int, list[Decision]]:
    """Run a policy over an output; return what it says, by step, where it says anything.

    each: further fields of the view of each token; always: of all of them.
    """
    whole = policy if isinstance(policy, WithdrawalPolicy) else stacked(policy)
    decide, text, said = whole.begin(), "", {}
    for step, piece in enumerate(texts, start=1):
        text += piece
        more = {**always, **({} if each is None else each[step - 1])}
        found = decisions(decide(StepView(step, list(range(step)), text, **more)))
        if found:
            said[step] = found
    return said


def kept(decision: Decision) -> dict[int, list[int]]:
    """Say which vision tokens a partial withdrawal keeps, by layer."""
    masks = getattr(decision, "keep", None)
    assert masks is not None, f"{decision} is not partial"
    return {layer: mask.nonzero()[:, 0].tolist() for layer, mask in masks.items()}
