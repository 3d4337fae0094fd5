"""Random policies, composed at random, in random slots: each output is still the oracle's."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random as Generator
from typing import Any

import pytest
from policy_rules import (
    InPrefill,
    Stepwise,
    after,
    anneal,
    downsample,
    evenly,
    fastv,
    hesitates,
    holding,
    look_back,
    masks_of,
    pulse,
    vtw,
)
from policy_subjects import Served, Subject, asked, serve, subject

from mvw_cli.policies.anneal import Anneal
from mvw_cli.policies.downsample import Downsample
from mvw_cli.policies.fastv import FastV
from mvw_cli.policies.look_back import LookBack
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policies.pulse import Pulse
from mvw_cli.policies.stack import stacked
from mvw_cli.policies.vtw import Vtw
from mvw_cli.policy import WithdrawalPolicy

TOLERANCE = 1e-5
NAMES = (
    *("llava", "qwen2_5_vl", "kimi-vl", "llava-cot", "gemma3", "qwen3_vl", "mistral3"),
    *("internvl", "glm4v"),
)


@dataclass
class Plan:
    """One request's policies, and the rules that say what they come to."""

    policies: list[WithdrawalPolicy] = field(default_factory=list)
    prefill: list[InPrefill] = field(default_factory=list)
    stepwise: Stepwise | None = None
    pulses: Pulse | None = None

    @property
    def policy(self) -> WithdrawalPolicy:
        return stacked(self.policies) if self.policies else NoWithdrawal()

    def expected(self, served: Served) -> Any:
        layer = None
        if self.pulses is not None:
            layers = holding(served, masks_of(served, self.prefill))
            layer = self.pulses.attending_layer(layers) if layers else None
        in_step = None if layer is None else pulse(layer, 1.0, 0.1, 0.7)
        return served.expected(masks_of(served, self.prefill, self.stepwise, in_step))


def plan(chosen: Subject, draw: Generator) -> Plan:
    """Draw policies that make sense together."""
    made = Plan()
    layer = draw.randrange(1, chosen.layers)
    keep = draw.choice([0.3, 0.6, 0.8])
    kind = draw.choice(["vtw", "fastv", "downsample", "", ""])
    if kind == "vtw":
        made.policies.append(Vtw(layer=layer))
        made.prefill.append(vtw(layer))
    elif kind == "fastv" and layer > chosen.vision_layers[0]:
        made.policies.append(FastV(layer=layer, keep=keep))
        made.prefill.append(fastv(layer, keep))
    elif kind == "downsample":
        made.policies.append(Downsample(layer=layer - 1, keep=keep))
        made.prefill.append(downsample(layer - 1, keep))
    kind = draw.choice(["mvw", "attention", "even", ""])
    end, every = draw.randrange(2, 11), draw.randrange(1, 4)
    if kind == "mvw":
        made.policies.append(Mvw(m=end))
        made.stepwise = after(end)
    elif kind == "attention":
        made.policies.append(Anneal(end=end, every=every))
        made.stepwise = anneal(0, end, every, 0.5)
    elif kind == "even":
        made.policies.append(Anneal(end=end, every=every, by="even"))
        made.stepwise = evenly(end, every)
    if made.stepwise is not None and draw.random() < 0.5:
        entropy, steps = draw.choice([0, 0.5, 1, 2, 3]), draw.choice([1, 2, 3, None])
        made.policies.append(LookBack(entropy=entropy, steps=steps))
        made.stepwise = look_back(made.stepwise, hesitates(entropy), steps)
    # Ranking by attention, a layer where some are not attended to in this step has only zeros.
    if draw.random() < 0.3 and kind != "attention":
        # A layer that slides may have nothing left to choose from: Gemma 3's second does not slide.
        first = 1 if chosen.name == "gemma3" else chosen.vision_layers[0]
        made.pulses = Pulse(layer=first, tau=1.0, min_ratio=0.1, max_ratio=0.7)
        made.policies.append(made.pulses)
    return made


@pytest.mark.parametrize("seed", range(24))
def test_random_plans(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Generator(seed)
    monkeypatch.setattr("mvw_cli.engine.rows.CHUNK", draw.choice([2, 128]))
    chosen = subject(NAMES[seed % len(NAMES)])
    plans = [plan(chosen, draw) for _ in range(draw.randrange(3, 8))]
    requests = [
        asked(
            chosen,
            one.policy,
            draw.randrange(5),
            images=1 if chosen.adapter is None else draw.choice([1, 2]),
            name=str(number),
            max_new_tokens=draw.randrange(3, 18),
        )
        for number, one in enumerate(plans)
    ]
    together = serve(
        chosen,
        requests,
        slots=draw.randrange(2, 5),
        attention=draw.choice(["sdpa", "eager"]),
        cross_attention=draw.choice(["skip", "mlp"]),
    )
    for number, one in enumerate(plans):
        served = together[str(number)]
        assert (served.logits - one.expected(served)).abs().max() < TOLERANCE, one.policy.describe()
