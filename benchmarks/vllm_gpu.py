"""vLLM with and without withdrawal on a GPU: published shapes, random weights; see gpu_vllm.sh.

The arms of `vllm_speed.py` (`plain`, `never`, `withdrawn`; m = 16) on Qwen2.5-VL-7B, Qwen3-VL-8B
and Kimi-VL, whose weights vLLM makes up: 1,024 vision tokens an image, 1, 16 and 64 requests, CUDA
graphs, FlashAttention and FlashInfer. First of all `mvw doctor --equivalence` runs the oracle
through each backend in bfloat16, teacher-forced.

Time is a budget: each figure is written as soon as it is there, and what was left out is named.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))  # folders as they lie on the hub

QUESTION = "What is there to see?"
DTYPE = "bfloat16"
CONTEXT, ROOM = 2048, 1536
"""Tokens of the longest request, and those that a pool has room for, for each request."""
STARTING_S, TURN_S = 60, 25
"""What has to be left for engines to be started, and for another turn of all arms."""
OVERHEAD = 5 << 30
"""Bytes of an engine beside its weights and its pool."""


@dataclass(frozen=True)
class Model:
    """A published model, and what it is asked."""

    name: str
    adapter: str
    profile: str
    side: int
    """Of an image of 1,024 vision tokens, px."""
    prompt: str
    backends: tuple[str | None, ...]
    """None: what vLLM chooses."""


_CHATML = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_KIMI = (
    "<|im_user|>user<|im_middle|><|media_start|>image<|media_content|><|media_pad|><|media_end|>{}"
    "<|im_end|><|im_assistant|>assistant<|im_middle|>"
)
FLASH, INFER = "FLASH_ATTN", "FLASHINFER"
MODELS = (
    Model("Qwen2.5-VL-7B", "hf", "qwen2.5-vl-7b", 896, _CHATML, (FLASH, INFER)),
    Model("Qwen3-VL-8B", "hf", "qwen3-vl-8b-thinking", 1024, _CHATML, (FLASH, INFER)),
    Model("Kimi-VL", "kimi-vl", "kimi-vl", 896, _KIMI, (None,)),
)
SMALL_TEXT = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}


# -- folders -------------------------------------------------------------------------------------


def write_folder(model: Model, folder: Path, *, small: bool) -> Any:
    """Write all of a checkpoint but its weights; return its shape."""
    from mvw_cli.adapter import ModelSpec
    from mvw_cli.cost.shape import shape_of
    from mvw_cli.plugins import load_adapter
    from mvw_cli.profiles.resolution import model_spec, resolve

    adapter = load_adapter(model.adapter)
    spec = model_spec(resolve(model.profile, {}).profile)
    config: dict[str, Any] = adapter.published_config(spec)
    write = _write_kimi if model.adapter == "kimi-vl" else _write_qwen
    write(folder, model.profile, config, small=small)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text("{}")
    return shape_of(adapter, adapter.shape(ModelSpec(model=str(folder))))


def _write_qwen(folder: Path, profile: str, config: dict[str, Any], *, small: bool) -> None:
    """Write a small tokenizer; the configuration takes over the ids of its special tokens."""
    from hub_folder import BY_PROFILE, write_hub_folder

    write_hub_folder(BY_PROFILE[profile], folder, weights=False)
    told = json.loads((folder / "config.json").read_text())
    text = told.get("text_config", told)
    config |= {
        key: one for key, one in told.items() if key.endswith(("_token_id", "architectures"))
    }
    config["text_config"] |= {key: text[key] for key in ("bos_token_id", "eos_token_id")}
    if not small:
        return
    # Heads stay as wide as published: RoPE's sections add up to it.
    config["text_config"] |= SMALL_TEXT | {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 512,
    }
    sight = config["vision_config"]
    sight |= {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2}
    sight["out_hidden_size"] = SMALL_TEXT["hidden_size"]
    for key in sight.keys() & {"fullatt_block_indexes", "deepstack_visual_indexes"}:
        sight[key] = [1]


def _write_kimi(folder: Path, profile: str, config: dict[str, Any], *, small: bool) -> None:
    """Write a small tokenizer; the configuration takes over the ids of its special tokens."""
    from kimi_checkpoint import CONFIG, VOCABULARY, write_checkpoint

    write_checkpoint(folder, weights=False, in_token_limit=config.pop("in_token_limit"))
    for key in ("architectures", "media_placeholder_token_id"):
        config[key] = CONFIG[key]
    config["text_config"] |= {
        key: one for key, one in CONFIG["text_config"].items() if key.endswith("_token_id")
    }
    if not small:
        return
    # The latent stays as wide as published: vLLM's kernels know no other.
    config["text_config"] |= SMALL_TEXT | {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 64,
        "n_routed_experts": 8,
        "vocab_size": VOCABULARY,
    }
    config["vision_config"] |= {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
    }


def write_images(folder: Path, count: int, side: int) -> list[Path]:
    """Draw pictures of coloured squares, no two alike."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(side)
    paths = [folder / f"{side}-{number:02}.png" for number in range(count)]
    for path in paths:
        few = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(few).resize((side, side), Image.Resampling.NEAREST).save(path)
    return paths


# -- what is measured ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What is measured with, and until when."""

    small: bool
    counts: tuple[int, ...]
    pairs: int
    end: float
    document: dict[str, Any]

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - monotonic()

    def leave_out(self, what: str) -> None:
        """Note what was not measured."""
        self.document["left_out"].append(what)
        click.echo(f"left out: {what}", err=True)
        self.write()

    def write(self) -> None:
        """Write what there is by now."""
        from measuring import RESULTS, write_result

        folder = ROOT / "out" if self.small else RESULTS
        write_result("vllm_gpu", self.document, "cpu" if self.small else "cuda", folder)


def begin_oracle(backends: Sequence[str | None]) -> dict[str, subprocess.Popen[str]]:
    """Begin to hold vLLM against the oracle through each attention backend."""
    command = [sys.executable, "-m", "mvw_cli", "doctor", "--engine", "vllm", "--equivalence"]
    found = {}
    for backend in backends:
        options = ["--set", f"dtype={DTYPE}", "--json"]
        if backend is not None:  # beside other engines on one GPU
            options += ["--set", "engine_args.gpu_memory_utilization=0.1"]
            options += ["--set", f"engine_args.attention_backend={backend}"]
        found[backend or "vLLM's choice"] = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, text=True
        )
    return found


def hear_oracle(running: dict[str, subprocess.Popen[str]], run: Run) -> None:
    """Wait for what the oracle has to say."""
    while running:
        backend, process = running.popitem()
        try:
            told = json.loads(process.communicate(timeout=max(1, run.left()))[0])
        except (subprocess.TimeoutExpired, ValueError) as error:
            process.kill()
            run.leave_out(f"oracle, {backend}: {type(error).__name__}")
            continue
        [finding] = [one for one in told["findings"] if one["check"] == "equivalence"]
        run.document["oracle"][backend] = {**finding, "figures": told["equivalence"]}
        click.echo(f"oracle, {backend}: {finding['status']}: {finding['found']}")


def groups(model: Model, each: float, *, small: bool) -> Iterator[tuple[str | None, ...]]:
    """Divide a model's backends into those whose engines fit on the GPU at the same time."""
    if small:
        yield (None,)
        return
    import torch

    _, memory = torch.cuda.mem_get_info()
    if 2 * len(model.backends) * each < memory:
        yield model.backends
    else:
        yield from ((backend,) for backend in model.backends)


def measure(model: Model, folder: Path, run: Run, oracle: dict[str, subprocess.Popen[str]]) -> None:
    """Measure a model through each of its backends; plain and own engines start side by side."""
    from mvw_kimi_vl import TOKENIZER_MODE
    from vllm_speed import Engine

    shape = write_folder(model, folder, small=run.small)
    pool = max(run.counts) * ROOM * shape.kv_elements_per_token() * 2
    images = write_images(folder, max(run.counts), model.side // 4 if run.small else model.side)
    options: dict[str, Any] = {
        "prompt": model.prompt.format(QUESTION),
        "model": str(folder),
        "dtype": DTYPE,
        "load_format": "dummy",
        "enforce_eager": run.small,
        "max_model_len": CONTEXT,
        "max_num_seqs": max(run.counts),
        "kv_cache_memory_bytes": pool,
        "gpu_memory_utilization": 0.2,  # looked at before a pool of given size is made
        "limit_mm_per_prompt": {"image": 1},
        "mm_processor_cache_gb": 4,  # pictures come again, and preparing them is not measured
    }
    if model.adapter == "kimi-vl":
        options["tokenizer_mode"] = TOKENIZER_MODE
    # What was never held against the oracle is what this is for.
    withdrawing = {"additional_config": {"mvw": {"allow_untested": True}}}
    each = shape.weights.total.bytes(DTYPE) + pool + OVERHEAD
    for backends in groups(model, each, small=run.small):
        names = {backend: f"{model.name}, {backend or 'vLLM chooses'}" for backend in backends}
        if run.left() < STARTING_S:
            for name in names.values():
                run.leave_out(name)
            continue
        with ExitStack() as held:

            def begin(kind: str, backend: str | None, held: ExitStack = held) -> Engine:
                own = {} if kind == "plain" else withdrawing
                chosen = {} if backend is None else {"attention_backend": backend}
                engine = Engine(kind, **options, **own, **chosen)
                held.callback(engine.close)
                return engine

            with ThreadPoolExecutor() as threads:
                begun = {
                    backend: [threads.submit(begin, kind, backend) for kind in ("plain", "mvw")]
                    for backend in backends
                }
            hear_oracle(oracle, run)
            for backend, name in names.items():
                failed = [error for one in begun[backend] if (error := one.exception())]
                if failed:
                    run.leave_out(f"{name}: does not start: {failed[0]}")
                    continue
                plain, own = (one.result() for one in begun[backend])
                arms = {"plain": (plain, None), "never": (own, -1), "withdrawn": (own, 16)}
                for count in run.counts:
                    measure_rates(f"{name}, {count}", arms, images[:count], run)


def measure_rates(
    name: str, arms: Mapping[str, tuple[Any, int | None]], images: list[Path], run: Run
) -> None:
    """Let the arms take turns, as often as there is time for."""
    from measuring import paired_ratio, say_ratio

    rates: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(1 + run.pairs):
        if run.left() < TURN_S:
            break
        for arm, (engine, m) in arms.items():
            rate = engine.decode(images, m)
            if turn:  # the first warms up
                rates[arm].append(rate)
    if not rates["withdrawn"]:
        run.leave_out(name)
        return
    ratios = {arm: paired_ratio(rates[arm], rates["plain"]) for arm in ("never", "withdrawn")}
    run.document["decode"][name] = {"tokens_per_s": rates, "ratio": ratios}
    run.write()
    for arm, ratio in ratios.items():
        click.echo(say_ratio(f"{name}, {arm} over plain", ratio))


@click.command()
@click.option("--seconds", default=460.0, show_default=True)
@click.option("--pairs", default=2, show_default=True)
@click.option("--small", is_flag=True, help="In miniature, to try it out; writes to out/.")
@click.option("--model", "names", multiple=True, help="Take these only.  [default: all]")
def main(seconds: float, pairs: int, small: bool, names: tuple[str, ...]) -> None:
    """Measure, and write results/vllm_gpu.json."""
    chosen = [model for model in MODELS if not names or model.name in names]
    document = {"dtype": DTYPE, "m": 16, "small": small, "oracle": {}, "decode": {}, "left_out": []}
    counts = (1, 4) if small else (1, 16, 64)
    run = Run(small, counts, pairs, monotonic() + seconds, document)
    oracle = begin_oracle((None,) if small else (FLASH, INFER))
    with tempfile.TemporaryDirectory() as name:
        for model in chosen:
            folder = Path(name) / model.name
            folder.mkdir()
            try:
                measure(model, folder, run, oracle)
            except Exception as error:  # the others may do
                run.leave_out(f"{model.name}: {type(error).__name__}: {error}")
    for process in oracle.values():
        process.kill()
    run.write()


if __name__ == "__main__":
    main()
