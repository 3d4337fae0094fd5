"""Many images: `mvw batch` against `model.generate`, one at a time and in static batches.

One LLaVA of random weights, 8 layers x 512 wide, one KV head for four, 144 vision tokens an image,
64 image files, answers whose lengths differ as those of reasoning do: log-normal, p90 over 4 times
the median. Every arm starts from the files, so reading and preprocessing are in all of them, and so
is the prefill, which no arm makes faster. Greedy in float32; the arms without withdrawal must write
the same tokens.

- `generate`: one image at a time.
- `static`: left-padded batches of as many images as `mvw` has slots, in order; a batch is over
  when its longest answer is. Rows that are done are stopped by a criterion, not by EOS.
- `mvw`: the scheduler of `mvw batch`, without withdrawal.
- `mvw_withdrawn`: the same, vision tokens withdrawn after 16 tokens.
- `budget`, `budget_withdrawn`: the last two on half as many images of 400 vision tokens, under one
  limit of bytes for the KV cache instead of one of slots: what withdrawal frees goes to further
  images.

Beside the ratios stand bounds by the bytes that the decode steps have to read: the weights, shared
by the rows of a step, and each row's own cache entries. Prefill, arithmetic and the last answers,
which are alone, are not in them.

`--sweep` measures slots alone, for the number that `mvw batch` stops at by itself on a CPU.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from statistics import NormalDist, mean, median, quantiles
from time import perf_counter
from typing import Any

import click
import torch
from llava import PATCH, build_llava
from measuring import interleaved, paired_ratio, say_ratio, summarise, write_result
from mvw_hf.model import HuggingFace
from PIL import Image
from transformers import (
    StoppingCriteria,
    StoppingCriteriaList,
)

from mvw_cli import LoadedModel, ModelSpec
from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.serve.capacity import Limits
from mvw_cli.batch.serve.prefetch import Encoded, Encoder, Prefetcher
from mvw_cli.batch.serve.server import Server
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.types import GenerationSettings
from mvw_cli.images.reading import ImageFile
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.session import Session

M = 16
SIDE, LARGE_SIDE = 168, 280
KV_HEADS = 2
QUESTION = "w1 w2 w3 w4 w5 w6"
SPREAD = 1.15
"""Of the logarithm of the lengths: p90 is e^(1.28 x 1.15) = 4.4 times the median."""


def build(layers: int, width: int, side: int) -> LoadedModel:
    model, processor = build_llava(layers, width, side=side, kv_heads=KV_HEADS)
    processor.tokenizer.padding_side = "left"
    return LoadedModel("bench", "llava", model, processor, ModelSpec())


def vision_tokens(side: int) -> int:
    return (side // PATCH) ** 2


def entry_bytes(text: Any) -> int:
    """Bytes of one entry of the KV cache, all layers, float32."""
    width = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    return int(4 * text.num_hidden_layers * 2 * width)


def draw_lengths(count: int, typical: int, seed: int) -> list[int]:
    """Lengths at the quantiles of a log-normal distribution, in random order."""
    normal = NormalDist(0, SPREAD)
    places = [(number + 0.5) / count for number in range(count)]
    lengths = [max(1, round(typical * exp(normal.inv_cdf(place)))) for place in places]
    random.Random(seed).shuffle(lengths)
    p90 = quantiles(lengths, n=10, method="inclusive")[-1]
    assert p90 > 4 * median(lengths), "the lengths must differ as those of reasoning do"
    return lengths


def write_images(folder: Path, count: int) -> list[Path]:
    rng = random.Random(0)
    paths = [folder / f"{number:03}.png" for number in range(count)]
    for path in paths:
        small = Image.frombytes("RGB", (12, 12), rng.randbytes(3 * 12 * 12))
        small.resize((480, 360), Image.Resampling.BICUBIC).save(path)
    return paths


class Lengths(StoppingCriteria):
    """Stop each row at its own length."""

    def __init__(self, prompt: int, lengths: Sequence[int]) -> None:
        self._ends = torch.tensor([prompt + length for length in lengths])

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return (input_ids.shape[1] >= self._ends).to(input_ids.device)


@dataclass(frozen=True)
class Bench:
    """The work, the same for all arms."""

    loaded: LoadedModel
    paths: list[Path]
    lengths: list[int]
    outputs: dict[str, list[list[int]]]
    """What each arm wrote, in the order of the items."""
    states: dict[str, dict[str, float]]

    def generate(self, name: str, rows: int) -> Callable[[], float]:
        """`model.generate` over so many rows at a time; seconds for all items."""
        model, processor = self.loaded.model, self.loaded.processor
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        )

        def arm() -> float:
            begin, written = perf_counter(), []
            for start in range(0, len(self.paths), rows):
                images = [Image.open(path).convert("RGB") for path in self.paths[start:][:rows]]
                lengths = self.lengths[start:][:rows]
                inputs = processor(
                    images=images, text=[text] * len(images), padding=True, return_tensors="pt"
                ).to(model.device)
                prompt = inputs["input_ids"].shape[1]
                output = model.generate(
                    **inputs,
                    max_new_tokens=max(lengths),
                    do_sample=False,
                    eos_token_id=None,
                    stopping_criteria=StoppingCriteriaList([Lengths(prompt, lengths)]),
                )
                written += [
                    row[prompt : prompt + length].tolist()
                    for row, length in zip(output, lengths, strict=True)
                ]
            self.outputs[name] = written
            return perf_counter() - begin

        return arm

    def mvw(self, name: str, policy: Any, limits: Limits) -> Callable[[], float]:
        """The scheduler of `mvw batch`; seconds for all items."""
        settings = GenerationSettings(max_new_tokens=1, temperature=0, ignore_eos=True)
        session = Session(HuggingFace(), self.loaded, Engine(self.loaded), policy, settings)
        items = [
            Item(str(number), (ImageRef(str(path)),), QUESTION)
            for number, path in enumerate(self.paths)
        ]
        encoder = _OwnLengths(session, lengths=self.lengths)

        def arm() -> float:
            begin = perf_counter()
            tokens: dict[str, list[int]] = {}
            with _noting(session.engine, tokens):
                latency = self._serve(session, items, encoder, limits, name)
            elapsed = perf_counter() - begin
            self.outputs[name] = [tokens[str(number)] for number in range(len(items))]
            self.states[name]["in_flight"] = latency / elapsed  # Little's law
            return elapsed

        return arm

    def _serve(
        self, session: Session, items: list[Item], encoder: Any, limits: Limits, name: str
    ) -> float:
        """Serve all; return the seconds that all items together spent in slots."""
        in_slots, restarts = 0.0, 0
        with Prefetcher(
            iter(items),
            encode=encoder,
            threads=2,
            ahead=16,
            ahead_bytes=2**29,
            timeout_s=60,
            max_pixels=None,
        ) as feed:
            server = Server(session, feed, encoder, lambda _: limits, run="bench")
            for record in server.records():
                assert record["status"] == "ok", record["error"]
                timings = record["timings"]
                in_slots += (timings["ttft_ms"] + timings["decode_ms"]) / 1e3
                restarts += record["attempts"] - 1
        self.states[name] = {
            "kv_allocated_bytes_peak": server.state.kv_allocated_bytes_peak,
            "restarts": restarts,
        }
        return in_slots


@dataclass(frozen=True, slots=True)
class _OwnLengths(Encoder):
    """Encode each item with a length of its own."""

    lengths: Sequence[int] = ()

    def __call__(self, item: Item, images: Sequence[ImageFile]) -> Encoded:
        encoded = Encoder.__call__(self, item, images)
        settings = replace(encoded.request.settings, max_new_tokens=self.lengths[int(item.id)])
        return replace(encoded, request=replace(encoded.request, settings=settings))


class _noting:
    """Note the tokens of each request; the last attempt counts."""

    def __init__(self, engine: Engine, tokens: dict[str, list[int]]) -> None:
        self._engine, self._tokens = engine, tokens

    def __enter__(self) -> None:
        self._serving = self._engine.serving
        tokens = self._tokens

        def serving(*args: Any, **more: Any) -> Any:
            return _Noted(self._serving(*args, **more), tokens)

        self._engine.serving = serving  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del self._engine.serving


class _Noted:
    """A context of slots whose events are looked at."""

    def __init__(self, context: Any, tokens: dict[str, list[int]]) -> None:
        self._context, self._tokens = context, tokens

    def __enter__(self) -> Any:
        from mvw_cli.engine.types import Admitted, Token

        slots = self._context.__enter__()
        admit, step = slots.admit, slots.step

        def note(events: list[Any]) -> list[Any]:
            for event in events:
                if isinstance(event, Admitted):
                    self._tokens[event.request] = []
                elif isinstance(event, Token):
                    self._tokens[event.request].append(event.id)
            return events

        slots.admit = lambda request: note(admit(request))
        slots.step = lambda: note(step())
        return slots

    def __exit__(self, *raised: Any) -> Any:
        return self._context.__exit__(*raised)


@click.command()
@click.option("--layers", default=8, show_default=True)
@click.option("--width", default=512, show_default=True)
@click.option("--items", default=64, show_default=True)
@click.option("--slots", default=16, show_default=True)
@click.option("--typical", default=64, show_default=True, help="Median length in tokens.")
@click.option("--seed", default=1, show_default=True, help="Of the lengths.")
@click.option("--pairs", default=6, show_default=True)
@click.option("--budget-slots", default=8, show_default=True, help="Caches that the budget holds.")
@click.option("--sweep", is_flag=True, help="Measure numbers of slots instead.")
@click.option("--threads", default=0, help="Torch threads; 0 leaves torch's own choice.")
def main(
    layers: int,
    width: int,
    items: int,
    slots: int,
    typical: int,
    seed: int,
    pairs: int,
    budget_slots: int,
    sweep: bool,
    threads: int,
) -> None:
    """Measure items per second against `model.generate`."""
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded, large = (build(layers, width, side) for side in (SIDE, LARGE_SIDE))
    loaded.model.to(device)
    large.model.to(device)
    lengths = draw_lengths(items, typical, seed)
    work = {
        "model": {
            "layers": layers,
            "width": width,
            "kv_heads": KV_HEADS,
            "heads": 8,
            "vision_tokens": vision_tokens(SIDE),
            "dtype": "float32",
        },
        "items": items,
        "new_tokens": {
            "median": median(lengths),
            "p90": quantiles(lengths, n=10, method="inclusive")[-1],
            "mean": mean(lengths),
            "max": max(lengths),
        },
        "m": M,
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), items)
        bench = Bench(loaded, paths, lengths, {}, {})
        half = Bench(large, paths[: items // 2], lengths[: items // 2], {}, {})
        if sweep:
            document = _sweep(bench, pairs)
            print(write_result("batch_slots", {**work, **document}, device))
            return
        entry = entry_bytes(loaded.model.config.text_config)
        budget = budget_slots * entry * (vision_tokens(LARGE_SIDE) + 16 + typical)
        arms = {
            "generate": bench.generate("generate", 1),
            "static": bench.generate("static", slots),
            "mvw": bench.mvw("mvw", NoWithdrawal(), Limits(slots)),
            "mvw_withdrawn": bench.mvw("mvw_withdrawn", Mvw(m=M), Limits(slots)),
            "budget": half.mvw("budget", NoWithdrawal(), Limits(items, budget)),
            "budget_withdrawn": half.mvw("budget_withdrawn", Mvw(m=M), Limits(items, budget)),
        }
        samples = interleaved(arms, pairs=pairs, warm_up=0)
    document = _compare(bench, half, samples, slots, budget)
    print(write_result("batch", {**work, **document}, device))


def _compare(
    bench: Bench, half: Bench, samples: dict[str, list[float]], slots: int, budget: int
) -> dict[str, Any]:
    outputs, states = bench.outputs, {**bench.states, **half.states}
    same = {
        name: sum(a == b for a, b in zip(outputs[name], outputs["generate"], strict=True))
        for name in ("static", "mvw")
    }
    count = {name: len(half.paths if "budget" in name else bench.paths) for name in samples}
    for name, values in samples.items():
        state = states.get(name, {})
        told = ", ".join(f"{key} {value:,.1f}" for key, value in state.items())
        print(f"{name}: {count[name] / summarise(values).median:.2f} items/s  {told}")
    print(f"items with the same tokens as generate: {same}")
    assert same["mvw"] == len(bench.paths), "mvw must write what generate writes"
    ratios = {
        "mvw_over_generate": paired_ratio(samples["generate"], samples["mvw"]),
        "mvw_over_static": paired_ratio(samples["static"], samples["mvw"]),
        "withdrawn_over_mvw": paired_ratio(samples["mvw"], samples["mvw_withdrawn"]),
        "budget_withdrawn_over_budget": paired_ratio(
            samples["budget"], samples["budget_withdrawn"]
        ),
    }
    for name, ratio in ratios.items():
        print(say_ratio(f"{name}, items per second", ratio))
    bounds = _bounds(bench, slots)
    for name, bound in bounds.items():
        print(f"bound of {name} by bytes read: {bound:.2f} x")
    tokens = {name: sum(half.lengths if "budget" in name else bench.lengths) for name in samples}
    return {
        "slots": slots,
        "kv_budget_bytes": budget,
        "budget_vision_tokens": vision_tokens(LARGE_SIDE),
        "arms": {
            name: {
                "seconds": summarise(values),
                "items": count[name],
                "items_per_s": count[name] / summarise(values).median,
                "tokens_per_s": tokens[name] / summarise(values).median,
                **states.get(name, {}),
            }
            for name, values in samples.items()
        },
        "ratios": ratios,
        "bounds": bounds,
        "static_rows_done_already": _idle_rows(bench.lengths, slots),
        "items_with_the_tokens_of_generate": same,
    }


def _bounds(bench: Bench, slots: int) -> dict[str, float]:
    """Largest ratios by bytes, all slots in use at every step."""
    text = bench.loaded.model.config.text_config
    entry = entry_bytes(text)
    language = bench.loaded.model.model.language_model
    weights = 4 * sum(p.numel() for p in language.layers.parameters())
    weights += 4 * bench.loaded.model.lm_head.weight.numel()
    steps = [(place, place <= M) for length in bench.lengths for place in range(1, length + 1)]
    prompt, seen = len(QUESTION.split()) + 1, vision_tokens(SIDE)
    kept = entry * mean(prompt + seen + place for place, _ in steps)
    withdrawn = entry * mean(prompt + seen * sees + place for place, sees in steps)
    shared = weights / slots
    return {
        "mvw_over_generate": (weights + kept) / (shared + kept),
        "withdrawn_over_mvw": (shared + kept) / (shared + withdrawn),
    }


def _idle_rows(lengths: Sequence[int], rows: int) -> float:
    """Part of the rows of all steps of the static batches whose answer was over."""
    batches = [lengths[start : start + rows] for start in range(0, len(lengths), rows)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


def _sweep(bench: Bench, pairs: int) -> dict[str, Any]:
    counts = (1, 4, 8, 16, 32)
    arms = {str(count): bench.mvw(str(count), Mvw(m=M), Limits(count)) for count in counts}
    samples = interleaved(arms, pairs=pairs, warm_up=0)
    rates: Iterator[tuple[str, float]] = (
        (name, len(bench.paths) / summarise(values).median) for name, values in samples.items()
    )
    found = {}
    for name, rate in rates:
        print(f"{name} slots: {rate:.2f} items/s")
        found[name] = rate
    return {"items_per_s": found, "seconds": samples}


if __name__ == "__main__":
    main()
