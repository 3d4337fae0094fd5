"""Decode speed of a cross-attention model: without withdrawal, with `skip`, with `mlp`.

One Mllama of random weights, 10 layers x 512 wide, two of them cross-attention over one image of
four tiles: the published proportions (8 of 40 layers, 6,404 vision states), narrower. One sequence,
greedy, fixed length. Beside each measured ratio stands its bound: the bytes that a decode step has
to read, weights and KV cache, without withdrawal and with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import torch
from decode import M, Stamps, tpot_ms
from measuring import interleaved, paired_ratio, say_ratio, summarise, write_result
from transformers import MllamaConfig, MllamaForConditionalGeneration

from mvw_cli import LoadedModel, ModelSpec, VisionLayout
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.types import GenerationSettings, Request, Token
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal

VOCABULARY = 32_000
CROSS = (3, 8)
SIDE, PATCH, TILES = 560, 14, 4
STATES = TILES * ((SIDE // PATCH) ** 2 + 1)


def build(width: int) -> Any:
    torch.manual_seed(0)
    model = MllamaForConditionalGeneration(
        MllamaConfig(
            text_config={
                "hidden_size": width,
                "intermediate_size": 7 * width // 2,
                "num_hidden_layers": 10,
                "num_attention_heads": 8,
                "num_key_value_heads": 2,
                "vocab_size": VOCABULARY,
                "cross_attention_layers": list(CROSS),
                "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
            },
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_global_layers": 1,
                "attention_heads": 2,
                "image_size": SIDE,
                "patch_size": PATCH,
                "max_num_tiles": TILES,
                "vision_output_dim": 64,
                "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1], [2, 2]],
            },
            image_token_index=VOCABULARY,
        )
    ).eval()
    for number in CROSS:
        layer = model.get_decoder().layers[number]
        layer.cross_attn_attn_gate.data.fill_(0.5)
        layer.cross_attn_mlp_gate.data.fill_(0.5)
    return model


def prompt(device: str) -> dict[str, torch.Tensor]:
    """One image of four tiles, then 30 tokens of text."""
    ids = torch.tensor([[1, VOCABULARY, *range(4, 34)]], device=device)
    seen = torch.ones(1, ids.shape[1], 1, TILES, dtype=torch.long, device=device)
    seen[:, 0] = 0
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 1, TILES, 3, SIDE, SIDE, device=device),
        "aspect_ratio_ids": torch.tensor([[4]], device=device),
        "aspect_ratio_mask": torch.ones(1, 1, TILES, dtype=torch.long, device=device),
        "cross_attention_mask": seen,
    }


def step_bytes(model: Any, entries: int, *, states: int, mlp: bool) -> int:
    """Bytes that a decode step reads, with the vision states that are still held.

    A layer that is skipped is not read. Without states, of a layer that keeps its MLP only the
    MLP would have to be; that the attention's projections still run is the implementation's.
    """
    text, size = model.config.text_config, model.lm_head.weight.element_size()
    total = model.lm_head.weight.numel() * size
    per_entry = 2 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * size
    for number, layer in enumerate(model.get_decoder().layers):
        if number in CROSS and not states:
            total += sum(p.numel() for p in layer.mlp.parameters()) * size if mlp else 0
            continue
        # Keys and values of the image were projected once, in the prefill.
        idle = ("k_proj", "v_proj") if number in CROSS else ()
        total += size * sum(
            parameter.numel()
            for name, parameter in layer.named_parameters()
            if not any(part in name for part in idle)
        )
        total += per_entry * (states if number in CROSS else entries)
    return int(total)


@click.command()
@click.option("--width", default=512, show_default=True)
@click.option("--tokens", default=96, show_default=True, help="New tokens in each run.")
@click.option("--pairs", default=12, show_default=True)
@click.option("--threads", default=0, help="Torch threads; 0 leaves torch's own choice.")
def main(width: int, tokens: int, pairs: int, threads: int) -> None:
    """Measure what withdrawal gains in a cross-attention model, `skip` and `mlp`."""
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(width).to(device)
    inputs = prompt(device)
    loaded = LoadedModel("bench", "mllama", model, None, ModelSpec())
    layout = VisionLayout(
        torch.zeros_like(inputs["input_ids"][0], dtype=torch.bool),
        torch.ones(STATES, dtype=torch.bool, device=device),
    )
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
        outputs["generate"] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return tpot_ms(stamps.at[1:], M)

    def engine(name: str, policy: Any, kind: Any = "skip") -> Callable[[], float]:
        def arm() -> float:
            request = Request(name, inputs, layout, policy, settings)
            seen = [
                event
                for event in Engine(loaded, cross_attention=kind).run([request])
                if isinstance(event, Token)
            ]
            outputs[name] = [event.id for event in seen]
            return tpot_ms([event.at for event in seen], M)

        return arm

    arms = {
        "generate": generate,
        "engine": engine("engine", NoWithdrawal()),
        "engine_skip": engine("engine_skip", Mvw(m=M)),
        "engine_mlp": engine("engine_mlp", Mvw(m=M), "mlp"),
    }
    samples = interleaved(arms, pairs=pairs)
    assert outputs["engine"] == outputs["generate"], "the engine must write what generate writes"
    entries = inputs["input_ids"].shape[1] + tokens // 2
    whole = step_bytes(model, entries, states=STATES, mlp=True)
    gains = {
        kind: {
            "tokens_per_s_over_no_withdrawal": paired_ratio(
                samples["engine"], samples[f"engine_{kind}"]
            ),
            "bound": whole / step_bytes(model, entries, states=0, mlp=kind == "mlp"),
        }
        for kind in ("skip", "mlp")
    }
    speed = paired_ratio(samples["generate"], samples["engine"])
    for name, values in samples.items():
        print(f"{name}: {summarise(values).median:.2f} ms per token (tokens after the {M}th)")
    print(say_ratio("engine against generate, tokens per second", speed))
    for kind, gain in gains.items():
        print(say_ratio(f"{kind} against none", gain["tokens_per_s_over_no_withdrawal"]))
        print(f"bound of the latter by bytes read per step: {gain['bound']:.3f} x")
    document = {
        "model": {
            "layers": 10,
            "cross_attention_layers": list(CROSS),
            "width": width,
            "vision_states": STATES,
            "dtype": "float32",
        },
        "new_tokens": tokens,
        "m": M,
        "tpot_ms": {name: summarise(values) for name, values in samples.items()},
        "engine_over_generate_tokens_per_s": speed,
        "withdrawal": gains,
        "same_tokens_as_generate": True,
    }
    print(write_result("cross_attention", document, device))


if __name__ == "__main__":
    main()
