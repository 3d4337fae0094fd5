"""`mvw serve --engine vllm`: many requests at once, wrong ones, and the end of a killed one."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from vllm_running import ENVIRONMENT, VLLM_TESTS, Case, Judge

sys.path.insert(0, str(VLLM_TESTS))
from drive import picture

TOKENS = 32
TOKEN = "a-token"
BEARER = {"authorization": f"Bearer {TOKEN}"}
PROFILE = {
    "dtype": "float32",
    "engine": "vllm",
    "withdrawal": {"m": 6},
}
ENGINE_ARGS = {
    "max_model_len": 512,
    "block_size": 32,
    "kv_cache_memory_bytes": 8 << 20,
    "limit_mm_per_prompt": {"image": 2},
    "mm_processor_cache_gb": 0,  # else vLLM answers 500 where another vanishes with the same image
    "enforce_eager": True,
}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge.of("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def server(judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(judge, tmp_path_factory.mktemp("server")) as address:
        yield address


@contextmanager
def serving(judge: Judge, folder: Path) -> Iterator[str]:
    """Run a server that withdraws after 6 tokens; give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, profile = folder / "log", folder / "profiles" / "tiny.yaml"
    profile.parent.mkdir()
    told = {"model": str(judge.folder), "adapter": judge.loaded.adapter}
    backend = {key: one for key, one in judge.engine.items() if key != "tokenizer_mode"}
    told |= PROFILE | {"engine_args": ENGINE_ARGS | backend}
    profile.write_text(json.dumps(told))  # which is YAML
    options = ["--profile", "tiny", "--port", str(port), "--slots", "8"]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "mvw_cli", "serve", *options, "--allow-files", str(folder)],
            env=os.environ | ENVIRONMENT | {"MVW_HOME": str(folder), "MVW_API_KEY": TOKEN},
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 480
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            try:
                if httpx.get(f"{address}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(1)
        yield address
        engines = children(process.pid, "VLLM::EngineCore")
        process.kill()  # with it, none of its processes is left
        process.wait(60)
        assert engines
        while any(Path(f"/proc/{pid}/cmdline").exists() and not gone(pid) for pid in engines):
            assert time.monotonic() < deadline + 600
            time.sleep(0.2)
        assert process.stdout is not None
        assert process.stdout.read() == f"{address}/v1\n"
    finally:
        process.kill()


def children(pid: int, name: str) -> list[str]:
    """List the processes of a name that one has started."""
    words = ["ps", "-o", "pid=,args=", "--ppid", str(pid)]
    listed = subprocess.run(words, capture_output=True, text=True).stdout
    return [line.split()[0] for line in listed.splitlines() if name in line]


def gone(pid: str) -> bool:
    """Whether a process has ended, though nobody has asked how."""
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:4]
    except OSError:
        return True


def body(judge: Judge, case: Case, **more: Any) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    for seed in case.images:
        buffer = io.BytesIO()
        picture(seed).save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": url}})
    content.append({"type": "text", "text": case.question})
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": case.tokens,
        "ignore_eos": True,
        "logit_bias": judge.silent,
        "return_token_ids": True,
        **({"vllm_xargs": case.extra} if case.extra else {}),
        **more,
    }


def ask(server: str, sent: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server}/v1/chat/completions", json=sent, timeout=300, headers=BEARER)


def check(judge: Judge, case: Case, reply: httpx.Response) -> None:
    """Hold an answer against the oracle."""
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    report = (answer["kv_transfer_params"] or {}).get("mvw")
    ids = answer["choices"][0]["token_ids"]
    judge.check(case, {"ids": ids, "prompt": answer["prompt_token_ids"], "report": report})


def metric(server: str, name: str) -> float:
    lines = httpx.get(f"{server}/metrics", timeout=30).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_many_at_once_of_which_some_opt_out_and_some_vanish(judge: Judge, server: str) -> None:
    extras: list[tuple[dict[str, Any], int | None]] = [
        ({}, 6),
        ({"mvw_m": -1}, None),
        ({"mvw_m": 1}, 1),
        ({"mvw_m": 16}, 16),
    ]
    cases = [
        Case((number % 5,), m, tokens=TOKENS, extra=extra)
        for number, (extra, m) in enumerate(extras * 12)
    ]
    before = metric(server, "vllm:mvw_withdrawals_total")
    gone = threading.Event()

    def vanish(number: int) -> None:
        sent = body(judge, Case((number,), tokens=200, extra={"mvw_m": 3}), stream=True)
        url = f"{server}/v1/chat/completions"
        with httpx.stream("POST", url, json=sent, timeout=300, headers=BEARER) as reply:
            for _ in zip(range(2 + number % 9), reply.iter_lines(), strict=False):
                pass
        gone.set()

    with ThreadPoolExecutor(64) as pool:
        leaving = [pool.submit(vanish, number) for number in range(16)]
        replies = list(pool.map(lambda case: ask(server, body(judge, case)), cases))
        for one in leaving:
            one.result()
    for case, reply in zip(cases, replies, strict=True):
        check(judge, case, reply)
    withdrew = sum(case.m is not None for case in cases)
    assert metric(server, "vllm:mvw_withdrawals_total") - before >= withdrew
    deadline = time.monotonic() + 30
    while metric(server, "vllm:kv_cache_usage_perc") > 0:  # those that vanished, too
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"mvw_m": 0}, "the first token comes out of the prefill"),
        ({"mvw_m": "16"}, "mvw_m has to be a whole number, not '16'"),
        ({"mvw_m": 1.5}, "mvw_m has to be a whole number, not 1.5"),
        ({"mvw_tag": "</CAPTION>"}, "mvw_tag is no setting of withdrawal"),
        ({"mvw_until": ""}, "until must not be empty"),
        ({"mvw_m": 8, "mvw_max": 4}, "m must be between min and max"),
    ],
)
def test_a_wrong_request_is_answered_with_400(
    judge: Judge, server: str, extra: dict[str, Any], said: str
) -> None:
    reply = ask(server, body(judge, Case((0,), tokens=4, extra=extra)))
    assert reply.status_code == 400, reply.text
    assert said in reply.json()["error"]["message"]
    assert ask(server, body(judge, Case((0,), tokens=4))).status_code == 200


def test_a_request_may_say_it_as_it_does_to_the_own_engines_server(
    judge: Judge, server: str
) -> None:
    """OpenAI's clients send what is in `extra_body={"mvw": …}` beside the other parameters."""
    for asked, m in (({"m": 9}, 9), ({"m": -1}, None), ({}, 6)):
        case = Case((0,), m, tokens=TOKENS, extra={})
        reply = ask(server, body(judge, case, mvw=asked))
        check(judge, case, reply)
        report = (reply.json()["kv_transfer_params"] or {}).get("mvw")
        assert report is None or "repeated" not in report
    for asked, said in (
        ({"mvw": {"m": 0}}, "the first token comes out of the prefill"),
        ({"mvw": 16}, "mvw has to be an object"),
        ({"mvw": {"m": 3}, "vllm_xargs": {"mvw_m": 4}}, "said twice: by mvw.m, mvw_m"),
    ):
        reply = ask(server, body(judge, Case((0,), tokens=4, extra={}), **asked))
        assert reply.status_code == 400 and said in reply.json()["error"]["message"], reply.text


def test_a_text_without_an_image_has_nothing_to_withdraw(judge: Judge, server: str) -> None:
    reply = ask(server, body(judge, Case((), tokens=12)))
    assert reply.status_code == 200
    assert not (reply.json()["kv_transfer_params"] or {}).get("mvw")


def test_a_stream_of_several_answers(judge: Judge, server: str) -> None:
    """`n` answers to one prompt are requests of their own, each of which withdraws."""
    reply = ask(server, body(judge, Case((0,), tokens=TOKENS), n=3, temperature=1.0, seed=7))
    assert reply.status_code == 200
    assert len(reply.json()["choices"]) == 3
    assert json.loads(reply.text)["usage"]["completion_tokens"] == 3 * TOKENS


def test_what_the_options_of_mvw_serve_come_to(judge: Judge, server: str) -> None:
    """The token, images from where, and what answers the question by whose name."""
    models = f"{server}/v1/models"
    assert httpx.get(models).status_code == 401
    served = [one["id"] for one in httpx.get(models, headers=BEARER).json()["data"]]
    assert served == ["tiny", str(judge.folder)]
    sent = body(judge, Case((0,), tokens=4))
    for url, said in (
        ("http://127.0.0.1:1/a.png", "allowed domains"),
        ("file:///etc/hostname", "allowed-local-media-path"),
    ):
        sent["messages"][0]["content"][0]["image_url"]["url"] = url
        reply = ask(server, sent)
        assert reply.status_code == 400 and said in reply.text


def test_a_model_whose_own_code_is_not_run(tmp_path: Path) -> None:
    """Kimi-VL: tokenizer and images are mvw's, in each of the server's processes."""
    judge = Judge.of("kimi-vl", tmp_path / "model")
    cases = [
        Case((0,), 6, tokens=TOKENS, extra={}),
        Case((1, 2), 9, tokens=TOKENS, extra={"mvw_m": 9}),
        Case((3,), None, tokens=TOKENS, extra={"mvw_m": -1}),
    ]
    with serving(judge, tmp_path) as address, ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda case: ask(address, body(judge, case)), cases))
    for case, reply in zip(cases, replies, strict=True):
        check(judge, case, reply)
