"""A server's beginning and its end: what stops it before it starts, SIGTERM, a model that fails."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from processes import Ran
from serving_process import QUESTION, content, serving
from starlette.requests import Request
from waiting import until

from mvw_cli.engine.slots import Slots
from mvw_cli.engine.types import NotExact, Token
from mvw_cli.errors import ModelProblem, UsageProblem
from mvw_cli.profiles.resolution import resolve
from mvw_cli.serve.app import Bounds, Service
from mvw_cli.serve.desk import Desk, choose_limits
from mvw_cli.serve.pictures import Sources
from mvw_cli.session import Session, open_session
from mvw_cli.vllm import start
from mvw_cli.vllm.server import server_command

Run = Callable[..., Ran]


def test_sigterm_answers_what_was_begun_and_ends(tmp_path: Path) -> None:
    more: dict[str, Any] = {"extra_body": {"ignore_eos": True}}
    messages: Any = [{"role": "user", "content": content()}]
    with serving(tmp_path, "--slots", "1") as served, served.client() as client:
        idle = httpx.Client()
        assert idle.get(f"{served.root}/health").status_code == 200  # kept open
        chunks = client.chat.completions.create(
            model="shapes", messages=messages, stream=True, max_tokens=60, **more
        )
        first = next(iter(chunks))
        sent = json.dumps({"model": "shapes", "max_tokens": 3, "messages": messages}).encode()
        with socket.create_connection(served.address) as waiting:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(sent)}"
            waiting.sendall(head.encode() + b"\r\n\r\n" + sent)
            until(lambda: served.metric("mvw_requests_waiting") == 1)
            served.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.ConnectError):
                while True:
                    httpx.get(f"{served.root}/health")
            rest = list(chunks)
            waiting.settimeout(60)
            second = b""
            while piece := waiting.recv(1 << 16):
                second += piece
        assert served.process.wait(60) == 0
    assert first.choices[0].delta.role == "assistant"
    assert rest[-1].choices[0].finish_reason == "length"
    assert second.startswith(b"HTTP/1.1 200 OK") and b'"completion_tokens":3' in second
    told = (tmp_path / "stderr").read_text().splitlines()
    assert len(told) == 2 and re.match(r"shapes, 1 slot, at </CAPTION>\.", told[1]), told


def test_a_profile_that_is_a_file_is_asked_for_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.v2.yaml").write_text("generation:\n  max_new_tokens: 1\n")
    with serving(tmp_path, "--profile", "./mine.v2.yaml") as served, served.client() as client:
        assert [one.id for one in client.models.list()] == ["mine.v2"]
        for name in ("mine.v2", "embedded"):
            messages: Any = [{"role": "user", "content": content()}]
            assert client.chat.completions.create(model=name, messages=messages).model == "mine.v2"


def test_what_stops_it_before_a_model_is_loaded(
    mvw: Run, tmp_path: Path, check_hint: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvw_cli.session.open_session", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = [
            (["--port", port], f"Can't listen on 127.0.0.1, port {port}"),
            (["--port", port], "Hint: mvw serve --port 0"),
            (["--host", "nowhere.invalid"], "Can't listen on nowhere.invalid, port 8000"),
            (["--host", "nowhere.invalid"], "Hint: mvw serve --host 127.0.0.1"),
            (["--host", "192.0.2.1"], "Hint: mvw serve --host 127.0.0.1"),  # nobody's (RFC 5737)
            (["--allow-files", str(tmp_path / "gone")], "--allow-files: there is no folder"),
            (["--profile", "gone"], "gone"),
            (["--api-key", ""], "--api-key: the token is empty"),
            (["--engine", "vllm", "--queue", "3", "--allow-urls"], "have --queue, --allow-urls"),
            (["--engine", "vllm"], "vLLM is not installed"),
        ]
        monkeypatch.setattr(start, "find_spec", lambda name: None)
        for words, said in cases:
            ran = mvw("serve", *words)
            assert (ran.code, ran.out) == (2, ""), ran.err
            assert said in ran.err
            check_hint(ran.err.splitlines()[-1].removeprefix("Hint: "))
    monkeypatch.setattr("mvw_cli.cli.serve.run.find_spec", lambda name: None)
    ran = mvw("serve")
    assert ran.code == 2 and "mvw serve needs fastapi, uvicorn, prometheus_client" in ran.err


def test_the_words_that_start_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "installed", lambda: True)
    options = {"host": "127.0.0.1", "port": 8000, "names": ["qwen2.5-vl-7b", "Qwen/Q"], "slots": 4}
    options |= {"files": str(tmp_path), "allow_pickle": False, "random_weights": False}
    flags = {"engine": "vllm", "withdrawal.m": 9, "engine_args.enforce_eager": True}
    _python, *words = server_command(resolve("qwen2.5-vl-7b", flags), **options)
    assert words[:4] == ["-m", "vllm.entrypoints.cli.main", "serve", "Qwen/Qwen2.5-VL-7B-Instruct"]
    after = dict(pairwise(words))
    assert json.loads(after["--additional-config"]) == {"mvw": {"m": 9}}
    assert json.loads(after["--override-generation-config"]) == {
        "temperature": 0,
        "repetition_penalty": 1.05,
    }
    assert (after["--max-num-seqs"], after["--load-format"]) == ("4", "safetensors")
    assert after["--allowed-media-domains"] == "nowhere.invalid"
    assert after["--allowed-local-media-path"] == str(tmp_path)
    assert words[words.index("--served-model-name") :][1:3] == ["qwen2.5-vl-7b", "Qwen/Q"]
    assert "--enforce-eager" in words and "--disable-log-stats" not in words
    tag = server_command(resolve("qwen2.5-vl-7b", {"withdrawal.until": "</a>"}), **options)
    assert "--no-async-scheduling" in tag
    most = resolve("qwen2.5-vl-7b", {"generation.max_new_tokens": 7})
    assert '"max_new_tokens": 7' in " ".join(server_command(most, **options))
    for key, value in {"prompt.system": "a", "images.max_pixels": 9}.items():
        with pytest.raises(UsageProblem) as refused:
            server_command(resolve("qwen2.5-vl-7b", {key: value}), **options)
        assert key in str(refused.value.cause)


@pytest.fixture(scope="module")
def session() -> Session:
    return open_session(resolve(None, {}).profile)


def test_a_model_that_turns_out_not_to_be_exact_ends_all(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Slots.step

    def failing(self: Slots) -> Any:
        if len(self._sequences) == 2:
            raise NotExact("it was not")
        return step(self)

    monkeypatch.setattr(Slots, "step", failing)

    async def run() -> list[Any]:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        desk = Desk(
            session,
            choose_limits(session, 2, None),
            broken=lambda: loop.call_soon_threadsafe(ended.set),
        )
        requests = [session.request([], QUESTION, id=name) for name in "abc"]
        tickets = [desk.submit(one, QUESTION, [], streams=False) for one in requests]
        await ended.wait()
        tickets.append(desk.submit(session.request([], QUESTION, id="d"), QUESTION, [], False))
        news = [await ticket.news.get() for ticket in tickets]
        assert isinstance(desk.fault, ModelProblem)
        await asyncio.to_thread(desk.close)
        return news

    for record in asyncio.run(run()):
        assert not isinstance(record, Token)
        assert record["error"]["message"] == "the model is not served any more"


Sent = list[dict[str, Any]]


def asked(
    session: Session, sent: dict[str, Any], stuck_after: int = 1000, **bounds: Any
) -> tuple[Sent, Sent, Desk]:
    """Ask a service in this process; return what it sent, what was aborted, and its desk.

    Args:
        stuck_after: messages after which the client reads no more.
    """
    usual = {"queue": 4, "timeout": 60, "read_timeout": 60, "max_body": 1000, "max_images": 1}
    out: Sent = []
    aborted: Sent = []

    async def send(message: dict[str, Any]) -> None:
        if len(out) == stuck_after:
            await asyncio.sleep(1000)
        out.append(message)

    body = iter([json.dumps(sent).encode()])

    async def receive() -> dict[str, Any]:
        for part in body:
            return {"type": "http.request", "body": part}
        await asyncio.sleep(1000)
        return {"type": "http.disconnect"}

    async def run() -> Desk:
        desk = Desk(session, choose_limits(session, 1, None))
        service = Service(
            session,
            desk,
            names=["shapes"],
            slots=1,
            sources=Sources(),
            bounds=Bounds(max_pixels=1, **{**usual, **bounds}),
            scaled_to=None,
            seed=None,
        )
        scope = {"type": "http", "headers": [], "state": {"abort": lambda: aborted.append({})}}
        await service.answer(Request(scope, receive), send)
        await asyncio.to_thread(desk.close)
        assert service._here == service._held_bytes == 0
        return desk

    return out, aborted, asyncio.run(run())


def test_a_client_that_does_not_read_is_cut_off_when_its_time_is_up(session: Session) -> None:
    sent = {"model": "shapes", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    sent |= {"max_tokens": 100_000, "ignore_eos": True}
    out, aborted, _ = asked(session, sent, stuck_after=3, timeout=1)
    assert (len(out), len(aborted)) == (3, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_too_long_is_given_up_and_its_slot_is_free(
    session: Session, stream: bool
) -> None:
    sent = {"model": "shapes", "messages": [{"role": "user", "content": QUESTION}]}
    sent |= {"max_tokens": 100_000, "ignore_eos": True, "stream": stream}
    # The desk closes once no slot is in use: of so long an answer, nothing is left.
    (head, *bodies), aborted, _ = asked(session, sent, timeout=1)
    said = b"".join(one["body"] for one in bodies)
    assert b'"message":"the answer took longer than 1 s","type":"server_error"' in said
    assert head["status"] == (200 if stream else 504)
    assert stream or (b"x-should-retry", b"false") in head["headers"]
    assert aborted == []


def test_bodies_of_all_requests_together_have_a_limit(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvw_cli.serve.app.HELD_BYTES", 50)
    sent = {"model": "shapes", "messages": [{"role": "user", "content": QUESTION}]}
    (head, _), _, _ = asked(session, sent)
    assert head["status"] == 429
    assert int(dict(head["headers"])[b"retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_that_is_no_fault_of_the_client_is_told_to_both(
    session: Session,
    stream: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After the first token: what has begun to stream ends with the error, in OpenAI's form."""

    def failing(self: Slots) -> Any:
        time.sleep(0.3)  # for the first token to go out
        raise RuntimeError("the machine is tired")

    monkeypatch.setattr(Slots, "step", failing)
    sent = {"model": "shapes", "messages": [{"role": "user", "content": QUESTION}]}
    (head, *bodies), _, desk = asked(session, {**sent, "stream": stream})
    assert head["status"] == (200 if stream else 500)
    [error] = re.findall(rb'{"error":.*}', b"".join(one["body"] for one in bodies))
    assert json.loads(error)["error"]["message"] == "the machine is tired"
    assert json.loads(error)["error"]["type"] == "server_error"
    assert "a request has failed: the machine is tired" in capsys.readouterr().err
    assert desk.fault is None
