"""Decode speed: the engine with and without withdrawal against `model.generate`.

One LLaVA of random weights, 8 layers x 512 wide, 1,024 vision tokens, one sequence, greedy, fixed
length. The prefill is timed apart (each arm's time to its first token) and taken out. Beside the
measured ratio stands its bound: the bytes that a decode step has to read, weights and KV cache,
with the vision entries and without.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import click
import torch
from measuring import interleaved, paired_ratio, say_ratio, summarise, write_result
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from mvw_cli import LoadedModel, ModelSpec, VisionLayout
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.types import GenerationSettings, Request, Token
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal

IMAGE = 31_999
M = 16


def build(layers: int, width: int) -> Any:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=448,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=32_000,
        max_position_embeddings=4096,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.suppress_tokens = [IMAGE]
    return model


class Stamps:
    """A streamer that notes when each token of `generate` arrives."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: Any) -> None:
        self.at.append(perf_counter())

    def end(self) -> None:
        pass


def tpot_ms(stamps: list[float], first: int) -> float:
    """Mean time per output token in ms, over the tokens after the `first`."""
    return (stamps[-1] - stamps[first - 1]) / (len(stamps) - first) * 1e3


@click.command()
@click.option("--layers", default=8, show_default=True)
@click.option("--width", default=512, show_default=True)
@click.option("--tokens", default=128, show_default=True, help="New tokens in each run.")
@click.option("--pairs", default=12, show_default=True)
@click.option("--threads", default=0, help="Torch threads; 0 leaves torch's own choice.")
def main(layers: int, width: int, tokens: int, pairs: int, threads: int) -> None:
    """Measure decode speed against `model.generate`."""
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(layers, width).to(device)
    ids = torch.tensor([[1, 3] + [IMAGE] * 1024 + list(range(4, 30))], device=device)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 448, 448, device=device),
    }
    loaded = LoadedModel("bench", "llava", model, None, ModelSpec())
    layout = VisionLayout(ids[0] == IMAGE)
    settings = GenerationSettings(max_new_tokens=tokens, temperature=0, ignore_eos=True)
    outputs: dict[str, list[int]] = {}

    def generate() -> float:
        stamps = Stamps()
        output = model.generate(
            **inputs,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            streamer=stamps,
        )
        outputs["generate"] = output[0, ids.shape[1] :].tolist()
        return tpot_ms(stamps.at[1:], M)  # the first put is the prompt

    def engine(name: str, policy: Any) -> Callable[[], float]:
        def arm() -> float:
            tokens_seen = [
                event
                for event in Engine(loaded).run([Request(name, inputs, layout, policy, settings)])
                if isinstance(event, Token)
            ]
            outputs[name] = [event.id for event in tokens_seen]
            return tpot_ms([event.at for event in tokens_seen], M)

        return arm

    arms = {
        "generate": generate,
        "engine": engine("engine", NoWithdrawal()),
        "engine_withdrawn": engine("engine_withdrawn", Mvw(m=M)),
    }
    samples = interleaved(arms, pairs=pairs)
    assert outputs["engine"] == outputs["generate"], "the engine must write what generate writes"
    speed = paired_ratio(samples["generate"], samples["engine"])
    gain = paired_ratio(samples["engine"], samples["engine_withdrawn"])
    bound = step_bytes(model, ids.shape[1] + tokens // 2) / step_bytes(
        model, ids.shape[1] + tokens // 2 - 1024
    )
    for name, values in samples.items():
        print(f"{name}: {summarise(values).median:.2f} ms per token (tokens after the {M}th)")
    print(say_ratio("engine against generate, tokens per second", speed))
    print(say_ratio("withdrawal against none, tokens per second", gain))
    print(f"bound of the latter by bytes read per step: {bound:.3f} x")
    document = {
        "model": {"layers": layers, "width": width, "vision_tokens": 1024, "dtype": "float32"},
        "new_tokens": tokens,
        "m": M,
        "tpot_ms": {name: summarise(values) for name, values in samples.items()},
        "engine_over_generate_tokens_per_s": speed,
        "withdrawn_over_not_tokens_per_s": gain,
        "bound_withdrawn_over_not": bound,
        "same_tokens_as_generate": True,
    }
    print(write_result("decode", document, device))


def step_bytes(model: Any, entries: int) -> int:
    """Bytes that a decode step reads: the language model's weights and the KV cache."""
    text = model.config.text_config
    weights = sum(p.numel() * p.element_size() for p in model.model.language_model.parameters())
    head = model.lm_head.weight
    embedding = model.get_input_embeddings().weight  # looked up, not read through
    weights += head.numel() * head.element_size() - embedding.numel() * embedding.element_size()
    width = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    return int(weights + entries * text.num_hidden_layers * 2 * width * head.element_size())


if __name__ == "__main__":
    main()
