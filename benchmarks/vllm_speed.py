"""vLLM with and without withdrawal, and `mvw batch` over it against the shortest script.

One LLaVA of random weights, 8 layers x 512 wide, 1,024 vision tokens an image, m = 16. Each engine
has a process of its own and the arms take turns. A decode rate is that of the median pass in which
every request decodes one token and has decoded 32, so that neither prefill nor the passes before
the withdrawal are in it.

- `plain`: vLLM as it is, without the plugin's scheduler and worker.
- `never`: with the plugin, nothing withdrawn.
- `withdrawn`: with the plugin, the vision tokens withdrawn after 16 tokens.
- `text`: vLLM as it is, asked the same without an image: what withdrawal can come to at best.
- `pool`: 64 images with the log-normal answers of `batch.py`, and a KV pool that holds 8 requests
  with their vision: images a second, and how many are in flight.
- `batch`: the same images in a pool that is large enough, `mvw batch`'s own loop against
  `LLM.generate` in a script.

Needs the environment of `make test-vllm`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import click

LAYERS, WIDTH, SIDE, HEADS, KV_HEADS = 8, 512, 448, 8, 8
VISION = (SIDE // 14) ** 2
M = 16
DECODED, TOKENS = 32, 96
BLOCK = 32
QUESTION = "w1 w2 w3 w4"
TYPICAL = 48
IMAGES = 64
FITTING = 8


# -- in the process of an engine -----------------------------------------------------------------


def worker(options: dict[str, Any]) -> None:
    """Do what comes in on stdin, a JSON object a line; answer on what stdout was."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints
    kind = options.pop("kind")
    serve = _mvw_batch(options) if kind == "batch" else _llm(options)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=answers, flush=True)


def _llm(options: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    from PIL import Image
    from vllm import LLM, SamplingParams

    llm = LLM(**options)
    expected = [0]
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    running: list[int] = []
    passes: list[tuple[float, bool]] = []
    schedule = scheduler.schedule

    def counted(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        running.append(len(scheduler.running))
        requests = len(output.num_scheduled_tokens)
        decodes = requests == expected[0] == output.total_num_scheduled_tokens
        passes.append((perf_counter(), decodes))
        return output

    scheduler.schedule = counted

    def serve(order: dict[str, Any]) -> dict[str, Any]:
        running.clear()
        passes.clear()
        expected[0] = len(order["images"])
        begin = perf_counter()
        extra = None if order["m"] is None else {"mvw_m": order["m"]}
        params = [
            SamplingParams(
                temperature=0,
                max_tokens=tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args=extra,
            )
            for tokens in order["tokens"]
        ]
        prompts: list[Any] = [
            {
                "prompt": order["prompt"],
                "multi_modal_data": {"image": Image.open(path).convert("RGB")},
            }
            for path in order["images"]
        ]
        if order["text"]:
            prompts = [QUESTION] * len(prompts)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = perf_counter() - begin
        ids = [list(output.outputs[0].token_ids) for output in outputs]
        steps = [after - at for (at, one), (after, two) in pairwise(passes) if one and two]
        rate = len(prompts) / median(steps[DECODED:]) if len(steps) > DECODED else None
        return {"seconds": seconds, "ids": ids, "in_flight": mean(running), "decode": rate}

    return serve


def _mvw_batch(options: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    from mvw_cli.batch.items import ImageRef, Item
    from mvw_cli.batch.workers.worker import Job, Worker
    from mvw_cli.profiles.resolution import parse_set, resolve

    model = options.pop("model")
    settings = [f"engine_args.{key}={json.dumps(value)}" for key, value in options.items()]
    flags = {"model": model, "engine": "vllm", "withdrawal.m": M, "dtype": options.pop("dtype")}
    settings = [one for one in settings if not one.startswith("engine_args.dtype")]
    profile = resolve(None, {**flags, **parse_set(settings)}, {}).profile
    held = Worker(Job(profile)).__enter__()

    def serve(order: dict[str, Any]) -> dict[str, Any]:
        [tokens] = set(order["tokens"])
        generation = profile.generation.model_copy(update={"max_new_tokens": tokens})
        object.__setattr__(held.session, "settings", _settings(generation))
        items = [Item(Path(path).name, (ImageRef(path),), QUESTION) for path in order["images"]]
        begin = perf_counter()
        records = list(held.records(iter(items), run="bench"))
        seconds = perf_counter() - begin
        assert all(record["status"] == "ok" for record in records), records[0]
        return {"seconds": seconds, "tokens": sum(one["generated_tokens"] for one in records)}

    return serve


def _settings(generation: Any) -> Any:
    from mvw_cli.engine.types import GenerationSettings

    return GenerationSettings(
        max_new_tokens=generation.max_new_tokens, temperature=0.0, ignore_eos=True
    )


# -- in the process that measures ----------------------------------------------------------------


class Engine:
    """A process with an engine.

    Args:
        prompt: what is asked about each image, as the model's template has it.
    """

    def __init__(self, kind: str, prompt: str = f"<image> {QUESTION}", **options: Any) -> None:
        self._prompt = prompt
        common = {
            "enforce_eager": False,
            "max_model_len": 2048,
            "max_num_seqs": 16,
            "block_size": BLOCK,
            "enable_prefix_caching": False,
            "mm_processor_cache_gb": 0,
            "kv_cache_memory_bytes": 2 << 30,
        }
        if kind != "plain":
            common["additional_config"] = {"mvw": {}}
        if kind == "batch":
            del common["additional_config"]
        env = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
        if kind != "batch":
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # to see who is in flight
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps({"kind": kind, **common, **options})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | env,
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "an engine has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def run(
        self, images: list[Path], tokens: list[int], m: int | None, *, text: bool = False
    ) -> dict[str, Any]:
        """Generate so many tokens about each image, or about none of them."""
        assert self._process.stdin is not None
        order = {
            "images": [str(path) for path in images],
            "prompt": self._prompt,
            "tokens": tokens,
            "m": m,
            "text": text,
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def decode(self, images: list[Path], m: int | None, *, text: bool = False) -> float:
        """Measure tokens a second while decoding."""
        rate: float = self.run(images, [TOKENS] * len(images), m, text=text)["decode"]
        return rate

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def write_model(folder: Path) -> None:
    """Write the LLaVA under the names of its weights that vLLM knows."""
    from llava import build_llava
    from safetensors.torch import load_file, save_file

    model, processor = build_llava(LAYERS, WIDTH, side=SIDE, kv_heads=KV_HEADS)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    file = folder / "model.safetensors"
    tower = "vision_tower."
    named = {
        name.replace(tower, f"{tower}vision_model.")
        if tower in name and f"{tower}vision_model." not in name
        else name: value.contiguous()
        for name, value in load_file(file).items()
    }
    save_file(named, file, {"format": "pt"})


@click.command()
@click.option("--pairs", default=6, show_default=True)
@click.option("--dtype", "dtypes", multiple=True, default=("float32", "bfloat16"))
@click.option("--worker", "options", hidden=True)
def main(pairs: int, dtypes: tuple[str, ...], options: str | None) -> None:
    """Measure, and write results/vllm_speed.json."""
    if options is not None:
        worker(json.loads(options))
        return
    from batch import draw_lengths, write_images
    from measuring import interleaved, paired_ratio, say_ratio, write_result

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        (folder / "images").mkdir()
        images = write_images(folder / "images", IMAGES)
        model = {"model": str(folder / "model")}
        document: dict[str, Any] = {"vision_tokens": VISION, "m": M, "decode": {}}
        for dtype in dtypes:
            plain, own = Engine("plain", dtype=dtype, **model), Engine("mvw", dtype=dtype, **model)
            for count in (1, 16):
                some = images[:count]
                arms = {
                    "plain": lambda plain=plain, some=some: plain.decode(some, None),
                    "never": lambda own=own, some=some: own.decode(some, -1),
                    "withdrawn": lambda own=own, some=some: own.decode(some, M),
                    "text": lambda plain=plain, some=some: plain.decode(some, None, text=True),
                }
                rates = interleaved(arms, pairs=pairs)
                found = {
                    arm: paired_ratio(some, rates["plain"])
                    for arm, some in rates.items()
                    if arm != "plain"
                }
                document["decode"][f"{dtype}, {count}"] = {"tokens_per_s": rates, "ratio": found}
                for arm, ratio in found.items():
                    click.echo(say_ratio(f"{dtype}, {count} at once, {arm} over plain", ratio))
            plain.close()
            own.close()
        lengths = draw_lengths(IMAGES, TYPICAL, seed=0)
        # A request with its vision: the prompt, and the longest answer.
        entries = VISION + 16 + max(lengths)
        each = -(-entries // BLOCK) * BLOCK * LAYERS * 2 * (WIDTH // HEADS) * KV_HEADS * 4
        pool = Engine(
            "mvw", dtype="float32", kv_cache_memory_bytes=FITTING * each, max_num_seqs=64, **model
        )
        runs = interleaved(
            {
                "never": lambda: pool.run(images, lengths, -1),
                "withdrawn": lambda: pool.run(images, lengths, M),
            },
            pairs=max(1, pairs // 2),
        )
        pool.close()
        rates = {arm: [IMAGES / one["seconds"] for one in some] for arm, some in runs.items()}
        flying = {arm: mean(one["in_flight"] for one in some) for arm, some in runs.items()}
        ratio = paired_ratio(rates["withdrawn"], rates["never"])
        document["pool"] = {"images_per_s": rates, "in_flight": flying, "ratio": ratio}
        click.echo(say_ratio("images a second in one pool, withdrawn over never", ratio))
        click.echo(f"in flight: {flying['never']:.1f} and {flying['withdrawn']:.1f}")
        script, batch = (
            Engine("mvw", dtype="float32", **model),
            Engine("batch", dtype="float32", **model),
        )
        seconds = interleaved(
            {
                "script": lambda: script.run(images, [64] * IMAGES, M)["seconds"],
                "mvw batch": lambda: batch.run(images, [64] * IMAGES, None)["seconds"],
            },
            pairs=pairs,
        )
        script.close()
        batch.close()
        ratio = paired_ratio(seconds["script"], seconds["mvw batch"])
        document["batch"] = {"seconds": seconds, "ratio": ratio}
        click.echo(say_ratio("`mvw batch` over the shortest script", ratio))
    click.echo(write_result("vllm_speed", document))


if __name__ == "__main__":
    main()
