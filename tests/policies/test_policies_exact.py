"""Each policy's output is the oracle's with the masks that its documented rule gives.

On LLaVA, Qwen2.5-VL, Kimi-VL and Mllama, and where a model's attention is of another kind. Scores
that a rule needs are the oracle's own, and so is the choice; `policy_rules.py` has the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from families import MLLAMA_STATES, there
from policy_rules import (
    InPrefill,
    InStep,
    Stepwise,
    after,
    anneal,
    at_tags,
    averages,
    downsample,
    evenly,
    fastv,
    from_layer,
    hesitates,
    holding,
    look_back,
    masks_of,
    mass_step,
    pulse,
    random,
    vtw,
    writes,
)
from policy_subjects import TOKENS, Masks, Served, Subject, asked, serve, subject
from torch import Tensor

from mvw_cli.calibrate.dyvte.gates import HIDDEN, write_gates
from mvw_cli.calibrate.dyvte.policy import Dyvte
from mvw_cli.engine.types import Restored, Token, Withdrawn
from mvw_cli.oracle.masked import extended
from mvw_cli.policies.anneal import Anneal
from mvw_cli.policies.downsample import Downsample
from mvw_cli.policies.fastv import FastV
from mvw_cli.policies.look_back import LookBack
from mvw_cli.policies.mass import Mass
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policies.pulse import Pulse
from mvw_cli.policies.random import Random
from mvw_cli.policies.stack import stacked
from mvw_cli.policies.vtw import Vtw
from mvw_cli.policy import LayerView, WithdrawalPolicy

TOLERANCE = 1e-5
SUBJECTS = ("llava", "qwen2_5_vl", "kimi-vl", "llava-cot")
OTHERS = ("gemma3", "qwen3_vl", "mistral3")
"""Sliding windows and vision that attends to itself both ways; vision added between the layers;
row breaks among the vision tokens."""

WORDS = {"hf": ("w31", "w42"), "kimi-vl": ("y", "z"), "llava-cot": ("w31", "w42")}
"""Subjects that write text, and tokens of theirs."""

each_subject = pytest.mark.parametrize("name", SUBJECTS)
each_with_words = pytest.mark.parametrize("name", list(WORDS))
each_kernel = pytest.mark.parametrize("kernel", ["sdpa", "eager"])


def late(one: Subject) -> int:
    """The last layer that holds vision."""
    return one.vision_layers[-1]


def check(
    served: Served,
    prefill: Sequence[InPrefill] = (),
    stepwise: Stepwise | None = None,
    in_step: InStep | None = None,
) -> Masks:
    """Compare every logit; each rule must matter, or a mistake would not show."""
    masks = masks_of(served, prefill, stepwise, in_step)
    expected = served.expected(masks)
    assert (served.logits - expected).abs().max() < TOLERANCE
    without = [masks_of(served, prefill, stepwise), masks_of(served, prefill, None, in_step)]
    without += [
        masks_of(served, [other for other in prefill if other is not rule], stepwise, in_step)
        for rule in prefill
    ]
    for fewer in without:
        if any(not torch.equal(masks[layer], fewer[layer]) for layer in masks):
            assert (served.expected(fewer) - expected).abs().max() > 100 * TOLERANCE
    effect = (served.expected(served.nothing()) - expected).abs().max()
    assert effect > 100 * TOLERANCE
    return masks


def one(name: str, policy: WithdrawalPolicy, seed: int = 2, **options: Any) -> Served:
    settings = {key: options.pop(key) for key in ("images", "max_new_tokens") if key in options}
    [served] = serve(
        subject(name), [asked(subject(name), policy, seed, **settings)], **options
    ).values()
    return served


def drawn(policy: Random) -> InPrefill:
    return random(policy.layer, policy.keep, policy.seed)


InPrefillCase = Callable[[Subject], tuple[WithdrawalPolicy, InPrefill]]
IN_PREFILL: dict[str, InPrefillCase] = {
    "vtw": lambda one: (Vtw(layer=late(one)), vtw(late(one))),
    "vtw-1": lambda one: (Vtw(layer=1), vtw(1)),
    "fastv": lambda one: (FastV(layer=late(one), keep=0.5), fastv(late(one), 0.5)),
    "fastv-2": lambda one: (FastV(layer=2, keep=0.2), fastv(2, 0.2)),
    "random": lambda one: (Random(keep=0.4), drawn(Random(keep=0.4))),
    "random-late": lambda one: (
        Random(keep=0.5, layer=late(one), seed=3),
        drawn(Random(keep=0.5, layer=late(one), seed=3)),
    ),
    "downsample": lambda one: (Downsample(keep=0.3), downsample(0, 0.3)),
    "downsample-1": lambda one: (Downsample(keep=0.5, layer=1), downsample(1, 0.5)),
}
each_in_prefill = pytest.mark.parametrize("case", IN_PREFILL)


# -- in the prefill -------------------------------------------------------------------------------


@each_in_prefill
@each_subject
def test_in_the_prefill(name: str, case: str) -> None:
    policy, rule = IN_PREFILL[case](subject(name))
    check(one(name, policy), [rule])


@pytest.mark.parametrize("case", ["vtw", "vtw-1", "fastv", "random", "downsample-1"])
@pytest.mark.parametrize("name", OTHERS)
def test_in_the_prefill_of_other_kinds_of_models(name: str, case: str) -> None:
    policy, rule = IN_PREFILL[case](subject(name))
    check(one(name, policy), [rule])


@pytest.mark.parametrize("case", ["vtw-1", "fastv", "random"])
def test_in_the_prefill_with_chunks(case: str) -> None:
    """Each row's temperature is that of its own place, whatever has left before it."""
    policy, rule = IN_PREFILL[case](subject("llama4"))
    check(one("llama4", policy), [rule])


@pytest.mark.parametrize("case", ["vtw", "fastv", "random"])
@each_subject
def test_in_the_prefill_with_the_eager_kernel(name: str, case: str) -> None:
    policy, rule = IN_PREFILL[case](subject(name))
    check(one(name, policy, attention="eager"), [rule])


@pytest.mark.parametrize("case", IN_PREFILL)
@pytest.mark.parametrize("name", ["kimi-vl", "llava-cot"])
def test_in_the_prefill_with_two_images(name: str, case: str) -> None:
    policy, rule = IN_PREFILL[case](subject(name))
    check(one(name, policy, images=2), [rule])


@pytest.mark.parametrize("case", ["vtw", "fastv", "downsample"])
def test_a_cross_attention_layer_may_keep_its_mlp(case: str) -> None:
    policy, rule = IN_PREFILL[case](subject("llava-cot"))
    served = one("llava-cot", policy, cross_attention="mlp")
    check(served, [rule])
    both = stacked([policy, Mvw(m=4)])
    check(one("llava-cot", both, cross_attention="mlp"), [rule], after(4))


@each_subject
def test_dyvte(name: str, tmp_path: Path) -> None:
    """Random gates; the layer at which they let go is foretold from the whole model's states."""
    chosen = subject(name)
    width, exits = chosen.text.hidden_size, set()
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        gates = []
        for layer in range(chosen.layers - 1):
            hidden = torch.randn(HIDDEN, 2 * width, generator=generator)
            output = torch.randn(2, HIDDEN, generator=generator)
            # The exit is likelier the deeper the layer.
            bias = torch.tensor([0.0, 30.0 * layer - 30.0])
            gates.append((hidden, output, bias))
        write_gates(gates, {}, tmp_path / f"{seed}.safetensors")
        served = one(name, Dyvte(gates=str(tmp_path / f"{seed}.safetensors")), seed=seed)
        layer = _exit(served, gates)
        exits.add(layer)
        if layer is None or layer > late(chosen):
            assert (served.logits - served.expected(served.nothing())).abs().max() < TOLERANCE
        else:
            check(served, [vtw(layer)])
    assert len(exits) > 1


@torch.inference_mode()
def _exit(served: Served, gates: Sequence[tuple[Tensor, Tensor, Tensor]]) -> int | None:
    """The first layer before which a gate's second output is the larger one."""
    model, request = served.subject.loaded.model, served.request
    states = model(**extended(model, request.inputs, []), output_hidden_states=True).hidden_states
    places = torch.arange(served.prompt)
    text = places[~request.layout.entries]
    image_end = 0 if served.cross_attention else int(request.layout.entries.nonzero().max()) + 1
    asked_for = text[text >= image_end]
    for layer in range(1, served.subject.layers):
        own = states[layer][0]
        read = torch.cat([own[asked_for[:-1]].mean(dim=0), own[asked_for[-1]]])
        hidden, output, bias = gates[layer - 1]
        keep, leave = output @ torch.nn.GELU()(hidden @ read) + bias
        if leave > keep:
            return layer
    return None


@dataclass(frozen=True)
class _Without(WithdrawalPolicy):
    """The first vision tokens leave before one layer."""

    name: ClassVar[str] = "without"
    layer: int = field(metadata={"description": "At which layer."})
    first: int = field(metadata={"description": "How many leave."})

    def begin_prefill(self) -> Any:
        tokens = torch.arange(1000)

        def select(view: LayerView) -> Tensor | None:
            return tokens[: len(view.present)] >= self.first if view.layer == self.layer else None

        return select


@pytest.mark.parametrize("kind", ["skip", "mlp"])
def test_a_row_all_of_whose_images_are_gone_sees_nothing(kind: Any) -> None:
    """Two images of Mllama: a row between them sees the first alone, which leaves."""
    chosen = subject("mllama")
    request = asked(chosen, _Without(layer=1, first=2 * MLLAMA_STATES), 0)
    seen = request.inputs["cross_attention_mask"][0].flatten(1).sum(dim=1)
    assert sorted(set(seen.tolist())) == [0, 2, 6]
    [served] = serve(chosen, [request], cross_attention=kind).values()
    kept = torch.arange(served.tokens) >= 2 * MLLAMA_STATES
    check(served, [from_layer(1, lambda served, masks: kept)])


# -- after a token --------------------------------------------------------------------------------


def written(name: str, policy: WithdrawalPolicy, tags: dict[int, str], **options: Any) -> Served:
    """Force an output that has words at some steps, and another word elsewhere."""
    chosen, other = subject(name), "n" if name == "kimi-vl" else "w5"
    images, length = options.pop("images", 1), 16
    ids = chosen.loaded.processor.tokenizer.convert_tokens_to_ids
    forced = tuple(ids(tags.get(step, other)) for step in range(1, length + 1))
    reading = replace(asked(chosen, policy, 2, images=images), forced=forced)
    [served] = serve(chosen, [reading], **options).values()
    assert served.ids == forced and other in served.texts[0]
    return served


@each_kernel
@each_with_words
def test_mvw_at_each_images_own_tag(name: str, kernel: str) -> None:
    """The second image goes first; m takes what is left, or the tag of the first has."""
    first, second = WORDS[name]
    for step, steps in ((20, [4, 9]), (7, [4, 7])):
        policy = Mvw(until=(first, second), max=step)
        served = written(name, policy, {4: second, 9: first}, images=2, attention=kernel)
        check(served, stepwise=at_tags((first, second), step))
        assert [event.step for event in served.of(Withdrawn)] == steps
        partial, rest = served.of(Withdrawn)
        layers = len(served.subject.vision_layers)
        assert not partial.complete and rest.complete
        assert partial.entries == served.request.layout.images[1] * layers
        assert rest.entries == served.request.layout.images[0] * layers
        assert rest.vision_tokens == served.tokens


@each_kernel
@each_subject
def test_mass(name: str, kernel: str) -> None:
    """The step of the withdrawal is foretold from the oracle's masses; it comes in the middle."""
    plain = one(name, NoWithdrawal())
    layers, steps = plain.subject.vision_layers, set()
    for patience, smoothing in ((1, 1.0), (2, 0.3)):
        average = averages(plain, plain.nothing(), layers, smoothing)
        threshold, due = threshold_of(average, patience)
        policy = Mass(threshold=threshold, patience=patience, smoothing=smoothing, layers=layers)
        served = one(name, policy, attention=kernel)
        [withdrawn] = served.of(Withdrawn)
        assert withdrawn.step == due and withdrawn.complete
        check(served, stepwise=after(due))
        steps.add(due)
    assert max(steps) > 1


def threshold_of(average: Sequence[float], patience: int) -> tuple[float, int]:
    """A threshold under which the average is long enough in the middle of an output; the step."""
    steps = {one + 1e-4: mass_step(average, one + 1e-4, patience) for one in average}
    due = {threshold: step for threshold, step in steps.items() if step is not None}
    threshold = min(due, key=lambda one: abs(due[one] - len(average) / 2))
    return threshold, due[threshold]


@each_kernel
@each_subject
def test_anneal_by_attention(name: str, kernel: str) -> None:
    served = one(name, Anneal(start=1, end=11, every=2, depth=0.5), attention=kernel)
    masks = check(served, stepwise=anneal(1, 11, 2, 0.5))
    layers = served.subject.vision_layers
    left = [
        [int((~masks[layer][served.prompt + step - 1]).sum()) for layer in layers]
        for step in range(1, TOKENS)
    ]
    assert left[0] == [served.tokens] * len(layers) and left[-1] == [0] * len(layers)
    assert len({tuple(one) for one in left}) > 3 and any(len(set(one)) > 1 for one in left)
    assert [event.complete for event in served.of(Withdrawn)][-1]


@each_subject
def test_anneal_evenly(name: str) -> None:
    check(one(name, Anneal(end=9, every=2, by="even")), stepwise=evenly(9, 2))


# -- looking back ---------------------------------------------------------------------------------


@each_kernel
@each_subject
def test_looking_back_at_once_and_for_ever_is_no_withdrawal(name: str, kernel: str) -> None:
    """Token for token; but it was really offloaded, and has really come back."""
    policy = stacked([Mvw(m=4), LookBack(entropy=0, steps=None)])
    served = one(name, policy, attention=kernel)
    plain = one(name, NoWithdrawal(), attention=kernel)
    assert served.ids == plain.ids
    assert (served.logits - plain.logits).abs().max() < TOLERANCE
    [withdrawn], [restored] = served.of(Withdrawn), served.of(Restored)
    entries = served.tokens * len(served.subject.vision_layers)
    assert (withdrawn.step, restored.step) == (4, 4)
    assert withdrawn.entries == restored.entries == entries
    freed = withdrawn.kv_bytes_before - withdrawn.kv_bytes_after
    assert withdrawn.complete and withdrawn.offloaded_bytes == freed > 0
    assert restored.kv_bytes_before == withdrawn.kv_bytes_after
    assert restored.kv_bytes_after == withdrawn.kv_bytes_before


@pytest.mark.parametrize("steps", [1, 3, None])
@each_subject
def test_looking_back_where_the_model_hesitates(name: str, steps: int | None) -> None:
    threshold = hesitation(name)
    policy = stacked([Mvw(m=3), LookBack(entropy=threshold, steps=steps)])
    served = one(name, policy, max_new_tokens=TOKENS + 8)
    masks = check(served, stepwise=look_back(after(3), hesitates(threshold), steps))
    looks = looked(served, masks, 3)
    assert True in looks and (steps is None or False in looks)
    for_ever = served.expected(masks_of(served, stepwise=after(3)))
    assert (served.logits - for_ever).abs().max() > 100 * TOLERANCE
    changes = [(step, now) for step, now in enumerate(looks, 3) if now != [False, *looks][step - 3]]
    assert [event.step for event in served.of(Restored)] == [step for step, now in changes if now]
    assert [event.step for event in served.of(Withdrawn)] == [
        3,
        *(step for step, now in changes if not now),
    ]


def hesitation(
    name: str,
    before: Sequence[WithdrawalPolicy] = (),
    prefill: Sequence[InPrefill] = (),
    *,
    seed: int = 2,
    kind: Any = "skip",
) -> float:
    """An entropy that some tokens after 3 have, and 3 not if possible, if all is withdrawn then."""
    plain = one(name, stacked([*before, Mvw(m=3)]), seed, cross_attention=kind)
    masks = masks_of(plain, prefill, after(3))
    first, *later = (plain.entropy(masks, step) for step in range(3, TOKENS))
    above = sorted(entropy for entropy in later if entropy > first) or sorted(later)
    return ([first, *above][len(above) // 2] + above[len(above) // 2]) / 2


def looked(served: Served, masks: Masks, m: int) -> list[bool]:
    """Whether the rows after m tokens see the first layer's vision."""
    rows = masks[served.subject.vision_layers[0]]
    return [not rows[served.prompt + step - 1].all() for step in range(m, len(served.ids))]


@each_with_words
def test_looking_back_at_a_tag_more_than_once(name: str) -> None:
    tag, _ = WORDS[name]
    policy = stacked([Mvw(m=3), LookBack(tag=tag, steps=2)])
    served = written(name, policy, {5: tag, 6: tag, 12: tag})
    masks = masks_of(served, stepwise=look_back(after(3), writes(tag), 2))
    assert (served.logits - served.expected(masks)).abs().max() < TOLERANCE
    hidden = masks[late(served.subject)][served.prompt : -1].all(dim=1)
    assert (~hidden).nonzero()[:, 0].tolist() == [0, 1, 4, 5, 11, 12]
    assert [event.step for event in served.of(Restored)] == [5, 12]
    assert [event.step for event in served.of(Withdrawn)] == [3, 7, 14]
    without = served.expected(masks_of(served, stepwise=after(3)))
    assert (served.logits - without).abs().max() > 100 * TOLERANCE


# -- in each step ---------------------------------------------------------------------------------


@each_kernel
@each_subject
def test_pulse(name: str, kernel: str) -> None:
    chosen = subject(name)
    first = chosen.vision_layers[0]
    served = one(name, Pulse(layer=first, tau=1.0, min_ratio=0.1, max_ratio=0.9), attention=kernel)
    masks = check(served, in_step=pulse(first, 1.0, 0.1, 0.9))
    seen = ~masks[late(chosen)][served.prompt : served.prompt + len(served.ids) - 1]
    counts = seen.sum(dim=1)
    assert len({tuple(row.tolist()) for row in seen}) > 2 or name == "llava-cot"
    assert counts.max() < served.tokens and not served.of(Withdrawn)
    attended = [
        event.vision_attended for event in served.events if hasattr(event, "vision_attended")
    ]
    layers = chosen.vision_layers
    expected = [
        sum(int((~masks[layer][served.row(step)]).sum()) for layer in layers) / len(layers)
        for step in range(1, len(served.ids) + 1)
    ]
    assert attended == pytest.approx(expected)


def test_pulse_where_the_window_of_the_layer_that_chooses_cuts_the_image() -> None:
    """What it has let go of, or has behind its window, is there for the layers after it."""
    window = subject("gemma3").text.sliding_window
    policy = Pulse(layer=0, tau=1.0, min_ratio=0.6, max_ratio=0.8)
    for seed, cut in ((4, 2), (8, 4)):
        served = one("gemma3", policy, seed)
        places = served.request.layout.entries.nonzero()[:, 0]
        assert int((places <= served.prompt - window).sum()) == cut and served.tokens == 4
        if cut < served.tokens:
            check(served, in_step=pulse(0, 1.0, 0.6, 0.8))
        else:  # nothing to choose from
            assert (served.logits - served.expected(served.nothing())).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", [*OTHERS, "kimi-vl-expanded"])
def test_after_a_token_in_other_kinds_of_models(name: str) -> None:
    chosen = subject(name)
    first, last = chosen.vision_layers[0], late(chosen)
    plain = one(name, NoWithdrawal())
    average = averages(plain, plain.nothing(), chosen.vision_layers, 0.3)
    threshold, due = threshold_of(average, 2)
    check(one(name, Mass(threshold=threshold, patience=2)), stepwise=after(due))
    check(one(name, Anneal(end=9, every=2)), stepwise=anneal(0, 9, 2, 0.5))
    choice = Pulse(layer=first, tau=1.0, min_ratio=0.1, max_ratio=0.6)
    check(one(name, choice), in_step=pulse(first, 1.0, 0.1, 0.6))
    seed = 1 if name == "gemma3" else 2
    entropy = hesitation(name, [Vtw(layer=last)], [vtw(last)], seed=seed)
    policy = stacked([Vtw(layer=last), Mvw(m=3), LookBack(entropy=entropy, steps=2)])
    served = one(name, policy, seed, max_new_tokens=TOKENS + 8)
    check(served, [vtw(last)], look_back(after(3), hesitates(entropy), 2))
    assert served.of(Restored)


@pytest.mark.parametrize("name", there("qwen3_5", "lfm3_vl", "llama4", "gemma4"))
def test_after_a_token_in_hybrid_caches(name: str) -> None:
    """Recurrent states, chunks, and layers that share what others hold, alone and together."""
    chosen, requests = subject(name), []
    first, entropy = chosen.vision_layers[0], hesitation(name)
    looks = stacked([Mvw(m=3), LookBack(entropy=entropy, steps=2)])
    choice = Pulse(layer=first, tau=1.0, min_ratio=0.1, max_ratio=0.6)
    rules: list[tuple[WithdrawalPolicy, dict[str, Any]]] = [
        (Anneal(start=1, end=11, every=2), {"stepwise": anneal(1, 11, 2, 0.5)}),
        (choice, {"in_step": pulse(first, 1.0, 0.1, 0.6)}),
        (looks, {"stepwise": look_back(after(3), hesitates(entropy), 2)}),
    ]
    if len(chosen.vision_layers) == 1:
        del rules[1]  # it chooses for the layers after the first
    requests = [
        replace(asked(chosen, policy, 2, max_new_tokens=TOKENS + 4), id=str(number))
        for number, (policy, _) in enumerate(rules)
    ]
    layers = (*chosen.vision_layers, *chosen.sharing)
    for number, served in enumerate(serve(chosen, requests, slots=2).values()):
        masks = check(served, **rules[number][1])
        seen = {n: ~(masks[n] | masks[chosen.sharing.get(n, n)]) for n in layers}
        for event in served.of(Token) if chosen.sharing else ():
            row = served.row(event.step)
            behind = row - 12 + 1  # of the layers that slide
            places = served.request.layout.entries.nonzero()[:, 0]
            counts = [
                int((seen[n][row] & ((places >= behind) | (n % 2 == 1))).sum()) for n in layers
            ]
            assert event.vision_attended == pytest.approx(sum(counts) / len(counts))
        assert bool(served.of(Restored)) == (rules[number][0] is looks)


# -- composed -------------------------------------------------------------------------------------


@each_subject
def test_composed(name: str) -> None:
    chosen = subject(name)
    last, first = late(chosen), chosen.vision_layers[0]
    served = one(name, stacked([Vtw(layer=last), Mvw(m=5)]))
    check(served, [vtw(last)], after(5))
    served = one(name, stacked([FastV(layer=last, keep=0.5), Mvw(m=5)]))
    check(served, [fastv(last, 0.5)], after(5))
    policy = Pulse(layer=first, tau=1.0, min_ratio=0.1, max_ratio=0.6)
    served = one(name, stacked([policy, Mvw(m=5)]))
    check(served, stepwise=after(5), in_step=pulse(first, 1.0, 0.1, 0.6))
    served = one(name, stacked([Downsample(keep=0.5), Anneal(end=9, every=2)]))
    check(served, [downsample(0, 0.5)], anneal(0, 9, 2, 0.5))


@each_subject
def test_one_choice_after_the_other(name: str) -> None:
    """The second ranks what the first has left."""
    last = late(subject(name))
    images = {} if subject(name).adapter is None else {"images": 2}
    draw = Random(keep=0.7, seed=5)
    served = one(name, stacked([draw, FastV(layer=last, keep=0.4)]), **images)
    check(served, [drawn(draw), fastv(last, 0.4)])
    served = one(name, stacked([FastV(layer=last, keep=0.4), draw, Mvw(m=6)]), **images)
    check(served, [drawn(draw), fastv(last, 0.4)], after(6))


@each_subject
def test_composed_with_what_watches_the_attention(name: str) -> None:
    """Where another policy has thinned the vision out, only what is left is seen and counted."""
    chosen = subject(name)
    last = late(chosen)
    for before, in_prefill in ((Vtw(layer=last), vtw(last)), (Random(keep=0.5), None)):
        rules = [in_prefill or drawn(Random(keep=0.5))]
        plain = one(name, before)
        masks = masks_of(plain, rules)
        average = averages(plain, masks, holding(plain, masks), 0.3)
        threshold, due = threshold_of(average, 2)
        served = one(name, stacked([before, Mass(threshold=threshold, patience=2)]))
        [withdrawn] = served.of(Withdrawn)
        assert withdrawn.step == due
        check(served, rules, after(due))
        served = one(name, stacked([before, Anneal(end=9, every=2)]))
        check(served, rules, anneal(0, 9, 2, 0.5))


@each_with_words
def test_thinning_out_and_looking_back(name: str) -> None:
    """What would have been thinned out meanwhile goes with the rest when the look is over."""
    tag, _ = WORDS[name]
    policy = stacked([Anneal(end=9, every=2, by="even"), LookBack(tag=tag, steps=3)])
    served = written(name, policy, {3: tag, 11: tag})
    check(served, stepwise=look_back(evenly(9, 2), writes(tag), 3))
    assert [event.step for event in served.of(Restored)] == [3, 11]
    withdrawn = served.of(Withdrawn)
    assert [event.step for event in withdrawn] == [2, 6, 8, 9, 14]
    assert [event.complete for event in withdrawn] == [False, False, False, True, True]


@pytest.mark.parametrize("steps", [2, None])
@each_subject
def test_composed_with_looking_back(name: str, steps: int | None) -> None:
    """What the prefill has dropped does not come back."""
    chosen, looks = subject(name), []
    last = late(chosen)
    for policy, in_prefill in (
        (Vtw(layer=last), vtw(last)),
        (FastV(layer=last, keep=0.5), fastv(last, 0.5)),
    ):
        threshold = hesitation(name, [policy], [in_prefill])
        modified = [Mvw(m=3), LookBack(entropy=threshold, steps=steps)]
        served = one(name, stacked([policy, *modified]), max_new_tokens=TOKENS + 4)
        rule = look_back(after(3), hesitates(threshold), steps)
        looks += looked(served, check(served, [in_prefill], rule), 3)
        assert served.of(Restored)
    assert True in looks and (steps is None or False in looks)


# -- together -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kernel", "kind"),
    [
        *((name, kernel, "skip") for name in SUBJECTS for kernel in ("sdpa", "eager")),
        ("llava-cot", "sdpa", "mlp"),
        ("kimi-vl-expanded", "sdpa", "skip"),
    ],
)
def test_different_policies_share_the_slots(name: str, kernel: str, kind: Any) -> None:
    """Refilled slots, rows that see beside rows that don't, layers of different length."""
    chosen = subject(name)
    last, first = late(chosen), chosen.vision_layers[0]
    hesitant = hesitation(name, seed=6, kind=kind)
    plan: list[tuple[WithdrawalPolicy, int, dict[str, Any]]] = [
        (Vtw(layer=last), 14, {"prefill": [vtw(last)]}),
        (Mvw(m=2), 9, {"stepwise": after(2)}),
        (NoWithdrawal(), 17, {}),
        (
            Pulse(layer=first, tau=1.0, min_ratio=0.1, max_ratio=0.5),
            12,
            {"in_step": pulse(first, 1.0, 0.1, 0.5)},
        ),
        (FastV(layer=last, keep=0.5), 8, {"prefill": [fastv(last, 0.5)]}),
        (Anneal(end=9, every=2), 13, {"stepwise": anneal(0, 9, 2, 0.5)}),
        (
            stacked([Mvw(m=3), LookBack(entropy=hesitant, steps=2)]),
            15,
            {"stepwise": look_back(after(3), hesitates(hesitant), 2)},
        ),
        (
            stacked([Downsample(keep=0.5), Mvw(m=6)]),
            11,
            {"prefill": [downsample(0, 0.5)], "stepwise": after(6)},
        ),
    ]
    requests = [
        asked(chosen, policy, seed, max_new_tokens=length)
        for seed, (policy, length, _) in enumerate(plan)
    ]
    together = serve(chosen, requests, slots=3, attention=kernel, cross_attention=kind)
    for seed, (_, length, rules) in enumerate(plan):
        served = together[str(seed)]
        assert len(served.ids) == length
        expected = served.expected(masks_of(served, **rules))
        assert (served.logits - expected).abs().max() < TOLERANCE
        effect = (served.expected(served.nothing()) - expected).abs().max()
        assert effect > 100 * TOLERANCE or not rules


@each_subject
def test_a_row_without_vision_at_a_layer_comes_and_goes(name: str) -> None:
    """Before and after one that sees everything there, and alone again."""
    chosen = subject(name)
    last = late(chosen)
    for order in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        policies = [(NoWithdrawal(), Vtw(layer=last))[one] for one in order]
        requests = [
            asked(chosen, policy, seed, max_new_tokens=4 + 3 * seed)
            for seed, policy in enumerate(policies)
        ]
        together = serve(chosen, requests, slots=2)
        for number, one_of in enumerate(order):
            served = together[str(number)]
            expected = served.expected(masks_of(served, [vtw(last)] if one_of else []))
            assert (served.logits - expected).abs().max() < TOLERANCE
