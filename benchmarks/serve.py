"""`mvw serve`: its throughput beside `mvw batch`, and its memory over thousands of requests.

The embedded model with its own profile, on scenes and questions that it draws, so that answers have
the lengths and ends of real ones. All arms answer the same items with as many slots, and must write
the same answers:

- `batch`: the worker of `mvw batch`, its model loaded.
- `serve`: a real `mvw serve`, and as many clients as it has slots, each with OpenAI's package, its
  own connection and one request at a time; images go over as data URLs.
- `serve_streamed`: the same, streamed.

The clients run on the same machine, so PyTorch has one thread in each arm: two cores are for the
model and for all else. A server whose clients are elsewhere has more. The limit is 0.9 times the
rate of `batch`.

The second part sends thousands of requests of every kind, also such as are refused and such whose
clients vanish, and samples the resident memory of the server's process. Linux only.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from batch_memory import resident
from measuring import interleaved, paired_ratio, say_ratio, summarise, write_result
from mvw_shapes.samples import write_samples
from openai import BadRequestError, OpenAI

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.workers.worker import Job, Worker
from mvw_cli.profiles.resolution import resolve

LIMIT = 0.9


@contextmanager
def serving(slots: int, threads: int) -> Iterator[tuple[str, int]]:
    """Run a server; yield its address and the id of its process."""
    words = [sys.executable, "-m", "mvw_cli", "serve", "-q", "--port", "0", "--slots", str(slots)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.pid
        process.terminate()


class Asked:
    """Items over HTTP, by so many clients at a time."""

    def __init__(self, url: str, items: Sequence[Item], clients: int) -> None:
        self.items = items
        self.images = [
            "data:image/png;base64,"
            + base64.b64encode(Path(item.images[0].path).read_bytes()).decode()
            for item in items
        ]
        self._clients = [OpenAI(base_url=url, api_key="none", timeout=600) for _ in range(clients)]

    def all(self, do: Callable[[OpenAI, int], Any], count: int) -> list[Any]:
        """Do something for each number below `count`, each client one after the other."""
        numbers, found = iter(range(count)), [None] * count

        def work(client: OpenAI) -> None:
            for number in numbers:
                found[number] = do(client, number)

        with ThreadPoolExecutor(len(self._clients)) as pool:
            for one in [pool.submit(work, client) for client in self._clients]:
                one.result()
        return found

    def ask(self, client: OpenAI, number: int, **more: Any) -> Any:
        place = number % len(self.items)
        image = {"type": "image_url", "image_url": {"url": self.images[place]}}
        content = [image, {"type": "text", "text": self.items[place].question}]
        messages: Any = [{"role": "user", "content": content}]
        return client.chat.completions.create(model="shapes", messages=messages, **more)

    def whole(self, client: OpenAI, number: int) -> str:
        return str(self.ask(client, number).choices[0].message.content)

    def streamed(self, client: OpenAI, number: int) -> str:
        chunks = self.ask(client, number, stream=True)
        return "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)

    def any(self, client: OpenAI, number: int) -> str:
        """One of a soak; return what became of it."""
        if number % 20 == 7:
            try:
                client.chat.completions.create(model="shapes", messages=[], max_tokens=1)
            except BadRequestError:
                return "refused"
        if number % 20 == 13:
            answer = self.ask(client, number, stream=True)
            next(iter(answer))
            answer.close()
            return "vanished"
        if number % 4 == 0:
            more = {"stream": True, "max_tokens": 8}
            assert [*self.ask(client, number, **more)][-1].choices[0].finish_reason == "length"
            return "streamed"
        answer = self.ask(client, number, max_tokens=8, extra_body={"mvw": {"m": 1 + number % 8}})
        assert answer.usage.completion_tokens == 8
        return "whole"


def throughput(items: Sequence[Item], slots: int, threads: int, pairs: int) -> dict[str, Any]:
    outputs: dict[str, list[str]] = {}
    with serving(slots, threads) as (url, _), Worker(_job(slots)) as worker:
        asked = Asked(url, items, slots)

        def batch() -> float:
            begin = time.perf_counter()
            records = {one["id"]: one for one in worker.records(iter(items), run="bench")}
            outputs["batch"] = [records[item.id]["answer"] for item in items]
            return time.perf_counter() - begin

        def serve(name: str, do: Callable[[OpenAI, int], str]) -> Callable[[], float]:
            def arm() -> float:
                begin = time.perf_counter()
                outputs[name] = asked.all(do, len(items))
                return time.perf_counter() - begin

            return arm

        arms = {
            "batch": batch,
            "serve": serve("serve", asked.whole),
            "serve_streamed": serve("serve_streamed", asked.streamed),
        }
        samples = interleaved(arms, pairs=pairs)
    assert outputs["serve"] == outputs["serve_streamed"] == outputs["batch"], "other answers"
    ratios = {
        f"{name}_over_batch": paired_ratio(samples["batch"], samples[name])
        for name in ("serve", "serve_streamed")
    }
    for name, values in samples.items():
        print(f"{name}: {len(items) / summarise(values).median:.2f} items/s")
    for name, ratio in ratios.items():
        print(say_ratio(f"{name}, items per second", ratio))
    return {
        "slots": slots,
        "threads_each": threads,
        "items": len(items),
        "limit": LIMIT,
        "arms": {
            name: {"items_per_s": len(items) / summarise(values).median, "seconds": values}
            for name, values in samples.items()
        },
        "ratios": ratios,
    }


def _job(slots: int) -> Job:
    return Job(resolve(None, {}).profile, slots=slots)


def soak(items: Sequence[Item], requests: int, slots: int, threads: int) -> dict[str, Any]:
    samples: list[tuple[int, int]] = []
    with serving(slots, threads) as (url, pid):
        asked = Asked(url, items, slots)

        def one(client: OpenAI, number: int) -> str:
            became = asked.any(client, number)
            size = resident(pid) if number % 10 == 0 else None
            if size is not None:
                samples.append((number, size))
            return became

        begin = time.perf_counter()
        kinds = Counter(asked.all(one, requests))
        seconds = time.perf_counter() - begin
    early = median(size for number, size in samples if 0.05 <= number / requests <= 0.15)
    late = median(size for number, size in samples if number / requests >= 0.9)
    print(f"{requests:,} requests, {dict(kinds)}: {requests / seconds:.1f} requests/s")
    print(f"{early / 2**20:.0f} MiB after a tenth, {late / 2**20:.0f} MiB at the end")
    print(f"growth: {late / early:.3f} x")
    return {
        "requests": requests,
        "kinds": dict(sorted(kinds.items())),
        "seconds": seconds,
        "rss_bytes": {
            "at_a_tenth": early,
            "at_the_end": late,
            "peak": max(size for _, size in samples),
        },
        "growth": late / early,
        "samples": samples[:: max(1, len(samples) // 100)],
    }


@click.command()
@click.option("--items", default=96, show_default=True)
@click.option("--slots", default=16, show_default=True)
@click.option("--pairs", default=6, show_default=True)
@click.option("--requests", default=5000, show_default=True, help="Of the soak.")
@click.option("--threads", default=1, show_default=True, help="Of PyTorch, in each process.")
def main(items: int, slots: int, pairs: int, requests: int, threads: int) -> None:
    """Measure requests per second against `mvw batch`, and memory over many requests."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        lines = write_samples(Path(name), items, seed=16).read_text().splitlines()
        drawn = [json.loads(line) for line in lines]
        listed = [
            Item(one["id"], (ImageRef(str(Path(name, one["image"]))),), one["question"])
            for one in drawn
        ]
        document = throughput(listed, slots, threads, pairs)
        document["soak"] = soak(listed, requests, slots, threads)
    print(write_result("serve", document))


if __name__ == "__main__":
    main()
