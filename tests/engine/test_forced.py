"""An output that is given: its tokens are read in place of any choice."""

from __future__ import annotations

from dataclasses import replace

import torch
from families import BY_NAME, build
from running import request, run

from mvw_cli.oracle.masked import oracle_logits

LLAVA = BY_NAME["llava"]


def test_the_output_is_the_given_one_whatever_the_settings() -> None:
    """Neither sampling, penalty, end token nor length has a say."""
    model, inputs = build(LLAVA), LLAVA.prompt(0)
    tokens = (7, 2, 7, 41)  # 2 is the end token
    asked = request(
        inputs,
        LLAVA.layout(inputs),
        2,
        max_new_tokens=2,
        temperature=1.5,
        repetition_penalty=1.3,
        ignore_eos=False,
    )
    result = run(model, [replace(asked, forced=tokens)])["a"]
    assert result.completion.token_ids == tokens
    assert result.completion.finish_reason == "length"
    assert result.completion.withdrawal is not None and result.completion.withdrawal.step == 2
    expected = oracle_logits(model, inputs, tokens, LLAVA.layout(inputs).entries, 2)
    assert torch.allclose(result.logits, expected, atol=1e-5)


def test_forced_and_free_requests_share_the_slots() -> None:
    model, inputs = build(LLAVA), LLAVA.prompt(1)
    free = request(inputs, LLAVA.layout(inputs), None, name="free", max_new_tokens=6)
    alone = run(model, [free])["free"].completion.token_ids
    forced = replace(free, id="forced", forced=(5, 6, 7))
    both = run(model, [forced, free], slots=2)
    assert both["free"].completion.token_ids == alone
    assert both["forced"].completion.token_ids == (5, 6, 7)
