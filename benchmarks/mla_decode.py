"""Decode speed of latent attention: absorbed against expanded, and against `model.generate`.

A DeepSeek-V3 text stack of random weights below Kimi-VL's vision tower, 6 layers with the published
width of its heads and latents (16 heads, rank 512, rotary 64), without experts, so that attention
is what is measured; one image, one sequence, greedy, fixed length. The bound counts the operations
of a step: those of the weights, and those over the cache, expanded and absorbed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import torch
from decode import Stamps, tpot_ms
from measuring import interleaved, paired_ratio, say_ratio, summarise, write_result
from mvw_hf.loading import read_published
from mvw_kimi_vl.model import CHECKPOINT, KimiVL
from mvw_kimi_vl.modeling import KimiVLForConditionalGeneration, absorbed, config_from_hub

from mvw_cli import LoadedModel, ModelSpec, VisionLayout
from mvw_cli.adapter import unchanged
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.types import GenerationSettings, Request, Token
from mvw_cli.policies.none import NoWithdrawal

FIRST = 4  # tokens that are left out of the time per token
GRID = 64  # patches a side, so 1,024 vision tokens


def build(layers: int, width: int) -> Any:
    torch.manual_seed(0)
    told = read_published(KimiVL.published, CHECKPOINT)
    assert told is not None
    told["torch_dtype"] = "float32"
    told["media_placeholder_token_id"] = 31_999
    told["text_config"] |= {
        "vocab_size": 32_000,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "first_k_dense_replace": layers,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    told["vision_config"] |= {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
    told["vision_config"]["num_attention_heads"] = 2
    model = KimiVLForConditionalGeneration(config_from_hub(told)).eval()
    model.generation_config.suppress_tokens = [31_999]
    return model


def step_operations(model: Any, entries: int, *, folded: bool) -> int:
    """Multiplications of a decode step with so many entries in the cache."""
    text = model.config.text_config
    heads, rank, rotary = text.num_attention_heads, text.kv_lora_rank, text.qk_rope_head_dim
    nope, value = text.qk_nope_head_dim, text.v_head_dim
    expansion = rank * heads * (nope + value)  # kv_b_proj: of one entry, or folded once
    over_cache = heads * (2 * rank + rotary) if folded else heads * (nope + rotary + value)
    attention = entries * over_cache + expansion * (1 if folded else entries)
    weights = sum(
        parameter.numel()
        for name, parameter in model.get_decoder().layers.named_parameters()
        if "kv_b_proj" not in name
    )
    head = model.lm_head.weight.numel()
    return int(weights + head + text.num_hidden_layers * attention)


@click.command()
@click.option("--layers", default=6, show_default=True)
@click.option("--width", default=512, show_default=True)
@click.option("--tokens", default=32, show_default=True, help="New tokens in each run.")
@click.option("--pairs", default=8, show_default=True)
@click.option("--threads", default=0, help="Torch threads; 0 leaves torch's own choice.")
def main(layers: int, width: int, tokens: int, pairs: int, threads: int) -> None:
    """Measure decode speed of MLA in absorbed form."""
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(layers, width).to(device)
    image = model.config.image_token_id
    ids = torch.tensor([[1, 3] + [image] * (GRID * GRID // 4) + list(range(4, 30))], device=device)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(GRID * GRID, 3, 14, 14, device=device),
        "image_grid_thw": torch.tensor([[1, GRID, GRID]], device=device),
    }
    loaded = LoadedModel("bench", "kimi-vl", model, None, ModelSpec())
    layout = VisionLayout(ids[0] == image)
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
        return tpot_ms(stamps.at[1:], FIRST)

    def engine(name: str, serving: Any) -> Callable[[], float]:
        def arm() -> float:
            request = Request(name, inputs, layout, NoWithdrawal(), settings)
            seen = [
                event
                for event in Engine(replace(loaded, serving=serving)).run([request])
                if isinstance(event, Token)
            ]
            outputs[name] = [event.id for event in seen]
            return tpot_ms([event.at for event in seen], FIRST)

        return arm

    arms = {
        "generate": generate,
        "engine_expanded": engine("engine_expanded", unchanged),
        "engine_absorbed": engine("engine_absorbed", absorbed),
    }
    samples = interleaved(arms, pairs=pairs)
    assert outputs["engine_expanded"] == outputs["generate"]
    same = outputs["engine_absorbed"] == outputs["generate"]
    gain = paired_ratio(samples["engine_expanded"], samples["engine_absorbed"])
    entries = ids.shape[1] + tokens // 2
    bound = step_operations(model, entries, folded=False) / step_operations(
        model, entries, folded=True
    )
    for name, values in samples.items():
        print(f"{name}: {summarise(values).median:.2f} ms per token (tokens after the {FIRST}th)")
    print(say_ratio("absorbed against expanded, tokens per second", gain))
    print(f"bound of it by multiplications per step: {bound:.2f} x")
    document = {
        "model": {
            "layers": layers,
            "width": width,
            "heads": model.config.text_config.num_attention_heads,
            "kv_lora_rank": model.config.text_config.kv_lora_rank,
            "vision_tokens": GRID * GRID // 4,
            "dtype": "float32",
        },
        "new_tokens": tokens,
        "tpot_ms": {name: summarise(values) for name, values in samples.items()},
        "absorbed_over_expanded_tokens_per_s": gain,
        "bound_by_multiplications": bound,
        "same_tokens_as_generate": same,
    }
    print(write_result("mla_decode", document, device))


if __name__ == "__main__":
    main()
