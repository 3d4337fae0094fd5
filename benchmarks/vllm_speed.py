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
  with their vision: images a second, and how many are in flight, on the average of the time in
  which others wait for room, and of the whole run with its tail of the longest answers.
- `batch`: the same images in a pool that is large enough, `mvw batch`'s own loop against
  `LLM.generate` in a script.

Needs the environment of `make test-vllm`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import click
from measuring import RESULTS, interleaved, paired_ratio, say_ratio, write_result

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
    serve = _mvw_batch(options) if kind == "batch" else _llm(options, apart=kind == "script")
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=answers, flush=True)


def _llm(options: dict[str, Any], *, apart: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    from vllm import LLM

    llm = LLM(**options)
    if apart:
        return lambda order: {"seconds": _generate(llm, order)[0]}
    expected = [0]
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    flying: list[tuple[int, bool]] = []
    passes: list[tuple[float, bool]] = []
    schedule = scheduler.schedule

    def counted(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        flying.append((len(scheduler.running), len(scheduler.waiting) > 0))
        requests = len(output.num_scheduled_tokens)
        decodes = requests == expected[0] == output.total_num_scheduled_tokens
        passes.append((perf_counter(), decodes))
        return output

    scheduler.schedule = counted

    def serve(order: dict[str, Any]) -> dict[str, Any]:
        flying.clear()
        passes.clear()
        expected[0] = len(order["images"])
        seconds, outputs = _generate(llm, order)
        end = perf_counter()
        ids = [list(output.outputs[0].token_ids) for output in outputs]
        steps = [after - at for (at, one), (after, two) in pairwise(passes) if one and two]
        rate = len(ids) / median(steps[DECODED:]) if len(steps) > DECODED else None
        spent = [after - at for at, after in pairwise([*(at for at, _ in passes), end])]
        shares = [(count, waited, at) for (count, waited), at in zip(flying, spent, strict=True)]
        return {
            "seconds": seconds,
            "ids": ids,
            "in_flight": _mean_over_time((n, at) for n, waited, at in shares if waited),
            "in_flight_whole_run": _mean_over_time((n, at) for n, _, at in shares),
            "decode": rate,
        }

    return serve


def _generate(llm: Any, order: dict[str, Any]) -> tuple[float, list[Any]]:
    """Do what a script does; return the seconds and vLLM's outputs."""
    from PIL import Image
    from vllm import SamplingParams

    begin = perf_counter()
    extra = None if order["m"] is None else {"mvw_m": order["m"]}
    params = [
        SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=extra
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
    return perf_counter() - begin, outputs


def _mean_over_time(shares: Iterable[tuple[int, float]]) -> float | None:
    counts = list(shares)
    seconds = sum(spent for _, spent in counts)
    return sum(count * spent for count, spent in counts) / seconds if seconds else None


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
        if kind not in ("batch", "script"):
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # to see who is in flight
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps({"kind": kind, **common, **options})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | env,
            start_new_session=True,
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
        """End the process, and those that it started."""
        os.killpg(self._process.pid, signal.SIGKILL)
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


def measure_decode(model: Path, images: list[Path], pairs: int, dtype: str) -> dict[str, Any]:
    """Compare the arms by their decode rates, 1 and 16 requests at once."""
    plain, own = (Engine(kind, model=str(model), dtype=dtype) for kind in ("plain", "mvw"))
    cells: dict[str, Any] = {}
    for count in (1, 16):
        some = images[:count]
        arms = {
            "plain": lambda some=some: plain.decode(some, None),
            "never": lambda some=some: own.decode(some, -1),
            "withdrawn": lambda some=some: own.decode(some, M),
            "text": lambda some=some: plain.decode(some, None, text=True),
        }
        rates = interleaved(arms, pairs=pairs)
        found = {
            arm: paired_ratio(some, rates["plain"]) for arm, some in rates.items() if arm != "plain"
        }
        cells[f"{dtype}, {count}"] = {"tokens_per_s": rates, "ratio": found}
        for arm, over in found.items():
            click.echo(say_ratio(f"{dtype}, {count} at once, {arm} over plain", over))
    plain.close()
    own.close()
    return cells


def measure_pool(model: Path, images: list[Path], pairs: int) -> dict[str, Any]:
    """Compare what one small KV pool serves with and without withdrawal."""
    from batch import draw_lengths

    lengths = draw_lengths(IMAGES, TYPICAL, seed=0)
    # A request with its vision: the prompt, and the longest answer.
    entries = VISION + 16 + max(lengths)
    each = -(-entries // BLOCK) * BLOCK * LAYERS * 2 * (WIDTH // HEADS) * KV_HEADS * 4
    pool = Engine(
        "mvw",
        model=str(model),
        dtype="float32",
        kv_cache_memory_bytes=FITTING * each,
        max_num_seqs=64,
    )
    runs = interleaved(
        {
            "never": lambda: pool.run(images, lengths, -1),
            "withdrawn": lambda: pool.run(images, lengths, M),
        },
        pairs=pairs,
    )
    pool.close()
    rates = {arm: [IMAGES / one["seconds"] for one in some] for arm, some in runs.items()}
    over = paired_ratio(rates["withdrawn"], rates["never"])
    document: dict[str, Any] = {"images_per_s": rates, "ratio": over}
    for name in ("in_flight", "in_flight_whole_run"):
        document[name] = {arm: mean(one[name] for one in some) for arm, some in runs.items()}
        click.echo(f"{name}: {document[name]['never']:.1f} and {document[name]['withdrawn']:.1f}")
    click.echo(say_ratio("images a second in one pool, withdrawn over never", over))
    return document


def measure_batch(model: Path, images: list[Path], pairs: int) -> dict[str, Any]:
    """Compare `mvw batch`'s own loop with `LLM.generate` in a script.

    In both the engine is in a process of its own, as vLLM has it by default.
    """
    named = {"model": str(model), "dtype": "float32"}
    script, batch = Engine("script", **named), Engine("batch", **named)
    lengths = [64] * IMAGES
    seconds = interleaved(
        {
            "script": lambda: script.run(images, lengths, M)["seconds"],
            "mvw batch": lambda: batch.run(images, lengths, None)["seconds"],
        },
        pairs=pairs,
    )
    script.close()
    batch.close()
    over = paired_ratio(seconds["script"], seconds["mvw batch"])
    click.echo(say_ratio("`mvw batch` over the shortest script", over))
    return {"seconds": seconds, "ratio": over}


PARTS = ("decode", "pool", "batch")


@click.command()
@click.option("--pairs", default=6, show_default=True)
@click.option("--dtype", "dtypes", multiple=True, default=("float32", "bfloat16"))
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS)
@click.option("--worker", "options", hidden=True)
def main(pairs: int, dtypes: tuple[str, ...], parts: tuple[str, ...], options: str | None) -> None:
    """Measure, and write results/vllm_speed.json; parts that are not asked for stay in it."""
    if options is not None:
        worker(json.loads(options))
        return
    from batch import write_images  # brings torch, which an engine sets up by itself

    from mvw_cli.environment import vllm_version

    file = RESULTS / "vllm_speed.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    document = {name: before[name] for name in PARTS if name in before}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model"
        write_model(model)
        (folder / "images").mkdir()
        images = write_images(folder / "images", IMAGES)
        if "decode" in parts:
            cells = [measure_decode(model, images, pairs, dtype) for dtype in dtypes]
            document["decode"] = {name: cell for some in cells for name, cell in some.items()}
        if "pool" in parts:
            document["pool"] = measure_pool(model, images, pairs)
        if "batch" in parts:
            document["batch"] = measure_batch(model, images, pairs)
    described = {"vllm": vllm_version(), "vision_tokens": VISION, "m": M}
    click.echo(write_result("vllm_speed", described | document))


if __name__ == "__main__":
    main()
