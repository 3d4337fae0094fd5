"""Every policy on the embedded model: what it costs in right answers, and what it saves.

All arms answer the same questions about held-out scenes, greedily: `none` (full vision), `no image`
(the same question without any, the control that shows how much it needs one), and each policy as
`--policy` takes it. Accuracy has a Wilson interval, and against `none` and against the `mvw` that
is part of a combination McNemar's exact test on the same questions.

What is saved is counted, not timed: vision tokens that a generated token attends to, bytes of the
KV cache along the output, FLOPs of the prefill. `--speed` also times a few of the questions, the
arms in turn, on an otherwise idle machine. The model is far too small for any of these policies to
make it faster: that column shows what a policy itself costs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
from curve import Sample, read_samples
from measuring import RESULTS, interleaved, paired_ratio, say_ratio, write_result

if TYPE_CHECKING:
    from mvw_cli.engine.types import Completion, Event, Request
    from mvw_cli.session import Session

NONE, NO_IMAGE, CAPTION = "none", "no image", "</CAPTION>"
MVW = f"mvw:until={CAPTION}"
WORK = Path("out") / "policies"
GATES = Path(__file__).parent / "gates" / "dyvte.safetensors"
ALONE = (
    "mvw:m=16",
    "mvw:m=32",
    "mvw:m=48",
    "mvw:m=64",
    MVW,
    "vtw:layer=1",
    "vtw:layer=2",
    "vtw:layer=3",
    "dyvte:gates={gates}",
    "fastv:layer=1,keep=0.5",
    "fastv:layer=2,keep=0.5",
    "fastv:layer=2,keep=0.25",
    "random:keep=0.5",
    "random:layer=2,keep=0.5",
    "downsample:keep=0.5",
    "downsample:layer=2,keep=0.5",
    "mass:threshold={mass}",
    "anneal:start=16,end=96",
    "anneal:start=16,end=96,by=even",
    "pulse",
    "pulse:max_ratio=0.25",
    "mvw:m=32+look-back:entropy=0.5,steps=8",
    "mvw:m=32+look-back:words=[REASONING],steps=8",
    "mvw:m=48+look-back:entropy=0.5,steps=8",
)
TOGETHER = (
    f"vtw:layer=3+{MVW}",
    f"dyvte:gates={{gates}}+{MVW}",
    f"fastv:layer=2,keep=0.5+{MVW}",
    f"random:layer=2,keep=0.5+{MVW}",
    f"downsample:layer=2,keep=0.5+{MVW}",
    f"downsample:layer=3,keep=0.5+{MVW}",
    f"mass:threshold={{mass}}+{MVW}",
    f"anneal:start=16,end=96+{MVW}",
    f"pulse:max_ratio=0.25+{MVW}",
)
"""Combinations, which are compared with the `mvw` in them, too, as is what has a look-back."""
PLACES = (1, 16, 32, 64, 96, 128)
"""Generated tokens after which the KV cache is shown."""
SLOTS = 32
NEW_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Answered:
    """What one arm made of one question."""

    right: bool
    tokens: int
    attended: float
    """Vision tokens attended to by a generated token, mean over tokens and layers."""
    kv_bytes: list[int]
    """Of the request's cache entries, after each token."""
    vision_by_layer: tuple[int, ...]
    withdrawn_after: int | None
    restores: int


def main_arms(thresholds: Mapping[str, str]) -> dict[str, str]:
    """Name the policies and say what the command line would be given; without gates no dyvte."""
    arms = {}
    for text in (*ALONE, *TOGETHER):
        if "{gates}" in text and not GATES.exists():
            continue
        arms[text.replace("{gates}", "GATES").format(**thresholds)] = text.format(
            gates=GATES, **thresholds
        )
    return arms


def sessions_for(arms: Mapping[str, str]) -> dict[str, Session]:
    """Open the embedded model once, and serve it as `mvw infer --policy …` would."""
    from mvw_cli.profiles.resolution import resolve
    from mvw_cli.profiles.withdrawal import withdrawal_policy
    from mvw_cli.session import open_session

    flags: dict[str, object] = {
        "device": "cpu",
        "generation.temperature": 0.0,
        "generation.max_new_tokens": NEW_TOKENS,
    }
    plain = open_session(resolve(None, {**flags, "withdrawal.policy": NONE}, env={}).profile)
    sessions = {NONE: plain}
    for name, policy in arms.items():
        profile = resolve(None, {**flags, "withdrawal.policy": policy}, env={}).profile
        sessions[name] = replace(plain, policy=withdrawal_policy(profile))
    return sessions


def requests_of(session: Session, samples: Sequence[Sample], *, blind: bool) -> list[Request]:
    """Encode the questions, with their images or without any."""
    from mvw_cli.images.reading import open_image
    from mvw_cli.policies.none import NoWithdrawal

    requests = []
    for sample in samples:
        images = [] if blind else [open_image(sample.image).image]
        request = session.request(images, sample.question, id=sample.id)
        requests.append(replace(request, policy=NoWithdrawal()) if blind else request)
    return requests


def answer(session: Session, samples: Sequence[Sample], *, blind: bool = False) -> list[Answered]:
    """Answer every question under the session's policy."""
    from mvw_cli.bench.matching import answers_match
    from mvw_cli.engine.engine import Engine
    from mvw_cli.engine.types import Finished, summarise

    known = {sample.id: sample for sample in samples}
    events: dict[str, list[Event]] = {}
    found: dict[str, Answered] = {}
    for event in Engine(session.loaded, slots=SLOTS).run(
        requests_of(session, samples, blind=blind)
    ):
        events.setdefault(event.request, []).append(event)
        if isinstance(event, Finished):
            own = events.pop(event.request)
            completion = summarise(own)
            told = session.adapter.parse(completion.text).answer
            found[event.request] = _answered(
                completion, own, answers_match(told, known[event.request].answer)
            )
    return [found[sample.id] for sample in samples]


def _answered(completion: Completion, events: Sequence[Event], right: bool) -> Answered:
    from mvw_cli.engine.types import Prefilled

    prefilled = next(event for event in events if isinstance(event, Prefilled))
    return Answered(
        right=right,
        tokens=completion.generated_tokens,
        attended=completion.vision.attended_per_token,
        kv_bytes=kv_along(events),
        vision_by_layer=prefilled.vision_by_layer,
        withdrawn_after=None if completion.withdrawal is None else completion.withdrawal.step,
        restores=completion.vision.restores,
    )


def kv_along(events: Sequence[Event]) -> list[int]:
    """Say how many bytes a request's cache entries took after each of its tokens."""
    from mvw_cli.engine.types import Finished, Prefilled, Restored, Token, Withdrawn

    sizes: list[int] = []
    steps = changes = 0
    for event in events:
        match event:
            case Prefilled():
                first = event.kv_bytes
            case Token():
                steps += event.step > 1
            case Withdrawn() | Restored():
                changes += event.kv_bytes_after - event.kv_bytes_before
            case Finished():
                last = event.kv_bytes
    # Each step has added the same: one entry of text at each layer.
    growth = (last - first - changes) // steps if steps else 0
    for event in events:
        match event:
            case Prefilled():
                size = event.kv_bytes
            case Token():
                size += growth if event.step > 1 else 0
                sizes.append(size)
            case Withdrawn() | Restored():
                size = sizes[-1] = event.kv_bytes_after
    return sizes


def summed_up(
    name: str,
    answered: Sequence[Answered],
    others: Mapping[str, Sequence[Answered]],
    prefill_flops: float,
) -> dict[str, Any]:
    """Sum up one arm, and set it against others on the same questions."""
    from mvw_cli.bench.stats import wilson

    right, count = sum(one.right for one in answered), len(answered)
    low, high = wilson(right, count)
    along = [
        mean(one.kv_bytes[place - 1] for one in answered if len(one.kv_bytes) >= place)
        for place in PLACES
        if any(len(one.kv_bytes) >= place for one in answered)
    ]
    moments = [one.withdrawn_after for one in answered if one.withdrawn_after is not None]
    return {
        "policy": name,
        "right": right,
        "questions": count,
        "accuracy": right / count,
        "interval_95": (low, high),
        "tokens_mean": mean(one.tokens for one in answered),
        "tokens_p90": sorted(one.tokens for one in answered)[math.ceil(0.9 * count) - 1],
        "vision_attended_per_token": mean(one.attended for one in answered),
        "vision_entries_after_prefill": mean(sum(one.vision_by_layer) for one in answered),
        "prefill_flops": prefill_flops,
        "kv_bytes_after_token": dict(zip(map(str, PLACES), along, strict=False)),
        "kv_bytes_mean": mean(mean(one.kv_bytes) for one in answered),
        "withdrawn": len(moments),
        "withdrawn_after_mean": mean(moments) if moments else None,
        "restores_mean": mean(one.restores for one in answered),
        "against": {other: against(answered, base) for other, base in others.items()},
    }


def against(answered: Sequence[Answered], base: Sequence[Answered]) -> dict[str, Any]:
    """Compare the right answers of two arms on the same questions."""
    from mvw_cli.bench.stats import mcnemar, paired_drop

    lost = sum(b.right and not a.right for a, b in zip(answered, base, strict=True))
    won = sum(a.right and not b.right for a, b in zip(answered, base, strict=True))
    return {
        "lost": lost,
        "won": won,
        "p_value": mcnemar(lost, won),
        "drop": (lost - won) / len(base),
        "drop_interval_95": paired_drop(lost, won, len(base)),
    }


def timed(sessions: Mapping[str, Session], samples: Sequence[Sample], pairs: int) -> dict[str, Any]:
    """Time the same questions under each arm in turn, one at a time, at natural length."""

    def arm(session: Session) -> float:
        requests = requests_of(session, samples, blind=False)
        start, tokens = perf_counter(), 0
        for event in session.run(requests):
            tokens += type(event).__name__ == "Token"
        return tokens / (perf_counter() - start)

    runs = interleaved(
        {name: lambda session=session: arm(session) for name, session in sessions.items()},
        pairs=pairs,
    )
    found = {}
    for name, rates in runs.items():
        ratio = paired_ratio(rates, runs[NONE])
        print(say_ratio(f"{name}: tokens per second over none", ratio))
        found[name] = {"tokens_per_s": sorted(rates)[len(rates) // 2], "over_none": ratio}
    return found


@click.command()
@click.option("--count", default=1000, show_default=True, help="How many held-out scenes.")
@click.option("--seed", default=2026, show_default=True, help="Seed of scenes and questions.")
@click.option("--mass", default="0.318", show_default=True, help="Threshold of the mass policy.")
@click.option("--part", default="1/1", show_default=True, help="Answer under these arms only.")
@click.option("--speed/--no-speed", default=True, help="Time each arm; wants an idle machine.")
@click.option("--pairs", default=8, show_default=True, help="Turns of the timing.")
@click.option("--write/--no-write", default=True, help="Write the result file.")
def main(count: int, seed: int, mass: str, part: str, speed: bool, pairs: int, write: bool) -> None:
    """Answer the questions of held-out scenes under every policy.

    What an arm has answered stays in out/policies, and is not answered again.
    """
    from mvw_shapes.samples import write_samples

    from mvw_cli.files import replacing

    arms = main_arms({"mass": mass})
    folder = WORK / f"{count}-{seed}"
    number, parts = map(int, part.split("/"))
    scenes = folder / f"samples-{number}"  # parts run beside one another
    samples = read_samples(write_samples(scenes, count, seed, overwrite=True))
    sessions = sessions_for(arms)
    for name in [NONE, NO_IMAGE, *arms][number - 1 :: parts]:
        file = answers_file(folder, name)
        if not file.exists():
            session = sessions[NONE if name == NO_IMAGE else name]
            answered = answer(session, samples, blind=name == NO_IMAGE)
            with replacing(file) as handle:
                handle.write(json.dumps([asdict(one) for one in answered]).encode())
            print(f"{name}: {sum(one.right for one in answered)} right", flush=True)
    if parts > 1:
        return
    document: dict[str, Any] = {"model": "shapes", "seed": seed, "decoding": "greedy, float32"}
    document |= answered_by_all(sessions[NONE], arms, samples, folder)
    result = RESULTS / "policies.json"
    if speed:
        document["speed"] = timed(sessions, samples[:8], pairs)
    elif result.exists():
        document["speed"] = json.loads(result.read_text(encoding="utf-8")).get("speed")
    if write:
        print(write_result("policies", document))


def answers_file(folder: Path, name: str) -> Path:
    """Say where the answers of an arm lie."""
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def read_answers(folder: Path, name: str) -> list[Answered]:
    """Read what an arm has answered."""
    records = json.loads(answers_file(folder, name).read_text(encoding="utf-8"))
    return [
        Answered(**{**one, "vision_by_layer": tuple(one["vision_by_layer"])}) for one in records
    ]


def answered_by_all(
    session: Session, arms: Mapping[str, str], samples: Sequence[Sample], folder: Path
) -> dict[str, Any]:
    """Sum up what all arms have answered."""
    from mvw_cli.cost.flops import flops_of

    flops = flops_of(session.adapter, session.loaded.model.config)
    requests = requests_of(session, samples, blind=False)
    texts = [one.text_tokens for one in requests]
    vision = requests[0].layout.vision_tokens
    found = {name: read_answers(folder, name) for name in (NONE, NO_IMAGE, *arms)}
    rows = []
    for name, answered in found.items():
        others = {} if name == NONE else {NONE: found[NONE]}
        parts = [part for part in name.split("+") if part in found and part != name]
        others |= {part: found[part] for part in parts if part.startswith("mvw:")}
        computed = [
            flops.prefill(text, 0 if name == NO_IMAGE else vision, one.vision_by_layer or None)
            for text, one in zip(texts, answered, strict=True)
        ]
        rows.append(summed_up(name, answered, others, mean(computed)))
    return {"questions": len(samples), "vision_tokens": vision, "arms": rows}


if __name__ == "__main__":
    main()
