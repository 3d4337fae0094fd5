"""What a real `mvw serve` refuses: each time a 4xx in OpenAI's form, and it goes on serving."""

from __future__ import annotations

import io
import json
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest
from openai import AuthenticationError, BadRequestError, RateLimitError
from PIL import Image
from serving_process import QUESTION, Served, body, content, data_url
from waiting import until

Sent = dict[str, Any]


def post(server: Served, sent: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/chat/completions", json=sent, timeout=30)


def check(reply: httpx.Response, status: int, said: str) -> None:
    """That it is OpenAI's form, with a sentence that says what is wrong."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert said in error["message"], error["message"]
    assert error["type"] == "invalid_request_error"


def one(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


@pytest.mark.parametrize(
    ("changed", "status", "said"),
    [
        ({"model": "gpt-4"}, 404, "there is no model 'gpt-4' here, but 'shapes'"),
        ({"messages": []}, 400, "messages: "),
        ({"messages": [one("user", "a"), one("assistant", "b"), one("user", "c")]}, 400, "user, a"),
        ({"messages": [one("system", "a"), one("system", "b"), one("user", "c")]}, 400, "a prompt"),
        ({"messages": [one("system", "a")]}, 400, "a prompt here holds one message of the user"),
        ({"messages": [one("user", " \n")]}, 400, "the question is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "audio"),
        ({"n": 2}, 400, "n: "),
        ({"max_tokens": 0}, 400, "max_tokens: "),
        ({"temperature": -1}, 400, "temperature: "),
        ({"temperature": "warm"}, 400, "temperature: "),
        ({"top_p": 0}, 400, "top_p: "),
        ({"stop": [""]}, 400, "stop"),
        ({"logprobs": True}, 400, "logprobs: this server takes only null or false"),
        ({"top_logprobs": 2}, 400, "top_logprobs: "),
        ({"logit_bias": {"5": 100}}, 400, "logit_bias: this server takes only null or {}"),
        ({"store": True}, 400, "store: "),
        ({"tool_choice": "required"}, 400, 'takes only null or "none" or "auto"'),
        ({"modalities": ["text", "audio"]}, 400, "modalities: "),
        ({"reasoning_effort": "high"}, 400, "reasoning_effort: this server takes only null"),
        ({"stream_options": {"include_obfuscation": True}}, 400, "include_obfuscation"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty: "),
        ({"tools": [{"type": "function"}]}, 400, "tools: "),
        ({"response_format": {"type": "json_object"}}, 400, "response_format: "),
        ({"beams": 4}, 400, "beams: this server has no such parameter"),
        ({"mvw": {"m": 0}}, 400, "the first token comes out of the prefill"),
        ({"mvw": {"m": "16"}}, 400, "mvw.m has to be a whole number, not '16'"),
        ({"mvw": {"gates": "/etc/passwd"}}, 400, "mvw.gates is no setting of withdrawal"),
        ({"vllm_xargs": {"mvw_m": 8, "mvw_max": 4}}, 400, "m must be between min and max"),
        ({"mvw": {"m": 8}, "vllm_xargs": {"mvw_m": 4}}, 400, "mvw and vllm_xargs both say"),
        ({"vllm_xargs": {"other": 8}}, 400, "there is no other here"),
    ],
)
def test_a_wrong_parameter(server: Served, changed: Sent, status: int, said: str) -> None:
    for stream in (False, True):
        check(post(server, body() | {"stream": stream} | changed), status, said)


def test_what_changes_nothing_is_taken(server: Served) -> None:
    neutral = {"n": 1, "frequency_penalty": 0.0, "presence_penalty": 0, "logprobs": False}
    neutral |= {"tools": [], "response_format": {"type": "text"}, "user": "me", "seed": None}
    neutral |= {"logit_bias": {}, "top_logprobs": 0, "modalities": ["text"], "audio": None}
    neutral |= {"tool_choice": "none", "parallel_tool_calls": False, "functions": []}
    neutral |= {"store": False, "service_tier": "auto", "verbosity": "medium", "metadata": {}}
    neutral |= {"function_call": "auto", "reasoning_effort": None, "safety_identifier": "me"}
    neutral |= {"prompt_cache_key": "a", "prompt_cache_retention": "24h"}
    neutral |= {"prediction": {"type": "content", "content": "a"}, "moderation": None}
    neutral |= {"prompt_cache_options": {"mode": "implicit"}, "web_search_options": None}
    reply = post(server, body(max_tokens=1, **neutral))
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "shapes", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "shapes", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "shapes", "temperature": NaN, "messages": [{"role": "user", "content": "a"}]}',
        b"[" * 100_000,
        b'{"model": "shapes", "max_tokens": 1' + b"0" * 5000 + b"}",
    ],
)
def test_a_body_that_is_no_request(server: Served, sent: bytes) -> None:
    check(httpx.post(f"{server.url}/chat/completions", content=sent, timeout=30), 400, "")


def png(width: int, height: int) -> bytes:
    """A PNG of one colour: a few kB for as many pixels as one likes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + end

    squeezer = zlib.compressobj(9)
    row = b"\0" * (1 + width // 8)
    pixels = b"".join(squeezer.compress(row) for _ in range(height)) + squeezer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    ends = chunk(b"IHDR", head), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(ends)


def small(kind: str = "PNG", side: int = 16) -> bytes:
    Image.new("RGB", (side, side), "red").save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        (["data:image/png;base64,AAA*"], "base64 is damaged"),
        (["data:image/png;base64,AAAAA"], "base64 is damaged"),
        (["data:image/png,AAAA"], "not of the form data:image/png;base64"),
        (["data:image/png"], "not of the form data:image/png;base64"),
        ([data_url(b"")], "neither JPEG nor PNG nor WebP"),
        ([data_url(small("GIF"), "gif")], "neither JPEG nor PNG nor WebP"),
        ([data_url(small()[:-30])], "image 1 is cut short or damaged"),
        ([data_url(small()), data_url(small()[:-30])], "image 2 is cut short or damaged"),
        ([data_url(b"\x89PNG\r\n\x1a\n")], "image 1"),
        ([data_url(png(40_000, 40_000))], "image 1"),
        ([data_url(small("JPEG", 800))] * 2, "image 2 is too large to decode"),
        ([data_url(small("JPEG", 800))] * 2, "640,000 pixels, and --max-pixels leaves 360,000"),
        ([data_url(small())] * 4, "there are more than 3 images"),
        (["ftp://example.com/cat.png"], "begins with none of data:, file:, http: and https:"),
        (["\ufffd"], "begins with none of"),
        (["http://127.0.0.1/cat.png"], "leads to this machine or its own network"),
        (["http://localhost:1/cat.png"], "leads to this machine or its own network"),
        (["http://2130706433/cat.png"], "leads to this machine or its own network"),
        (["https://[::1]/cat.png"], "leads to this machine or its own network"),
        (["http://[::ffff:169.254.169.254]/latest/meta-data"], "leads to this machine"),
        (["http://10.1.2.3/cat.png"], "leads to this machine or its own network"),
        (["http://user:word@127.0.0.1/"], "can't be fetched"),
        (["http://nowhere.invalid/cat.png"], "can't be fetched"),
        (["http:///cat.png"], "can't be fetched"),
        (["http://[half/cat.png"], "can't be fetched"),
        (["file:///etc/passwd"], "there is no image file:///etc/passwd below"),
        (["file:///proc/self/environ%00"], "there is no image"),
    ],
)
def test_an_image_that_is_none(server: Served, urls: list[str], said: str) -> None:
    begin = time.monotonic()
    check(post(server, body(*urls)), 400, said)
    assert time.monotonic() - begin < 20


def test_a_body_that_is_too_large(server: Served) -> None:
    large = body("data:image/png;base64," + "A" * (2 << 20))
    check(post(server, large), 413, "more than 1,048,576 bytes")

    def pieces() -> Any:  # chunked, so that no header tells its length
        yield from (b" " * 65536 for _ in range(64))

    reply = httpx.post(f"{server.url}/chat/completions", content=pieces(), timeout=30)
    check(reply, 413, "more than 1,048,576 bytes")


def dawdle(server: Served, sent: bytes) -> tuple[float, bytes]:
    """Send byte by byte, never with a pause worth a timeout; return when it ended, and how."""
    begin, answer = time.monotonic(), b""
    with socket.create_connection(server.address, timeout=0.1) as client:
        client.sendall(sent)
        while time.monotonic() - begin < 30:
            try:
                if sent:
                    client.send(b" " if sent.endswith(b"{") else b"n")
                piece = client.recv(4096)
                if not piece:
                    break
                answer += piece
            except TimeoutError:
                continue
            except ConnectionError:
                break
    return time.monotonic() - begin, answer


def test_clients_that_dawdle_are_cut_off(server: Served) -> None:
    """Slow-loris: a connection alone, headers and bodies that come byte by byte."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Le"
    sent = [b"", head, head + b"ngth: 1000\r\n\r\n{"]
    with ThreadPoolExecutor(3) as pool:
        ends = list(pool.map(lambda one: dawdle(server, one), sent))
    assert all(1 < took < 15 for took, _ in ends), ends  # --read-timeout 1, and another second
    said = [answer for _, answer in ends]
    assert said[:2] == [b"", b""]
    assert said[2].startswith(b"HTTP/1.1 408 ") and b"did not come within 1 s" in said[2]
    assert post(server, body(max_tokens=1)).status_code == 200


def test_what_is_no_http_is_answered_with_400(server: Served) -> None:
    with socket.create_connection(server.address, timeout=30) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_without_the_token_nothing_but_its_health(narrow: Served) -> None:
    for key in ("wrong", narrow.token[:-1], narrow.token + "!", "é"):
        headers = {"authorization": f"Bearer {key}".encode()}
        for path in ("/v1/models", "/metrics", "/v1/chat/completions"):
            method = "POST" if path.endswith("completions") else "GET"
            reply = httpx.request(method, narrow.root + path, headers=headers)
            check(reply, 401, "the token is missing or wrong")
            assert reply.headers["www-authenticate"] == "Bearer"
    with narrow.client(api_key="wrong") as client, pytest.raises(AuthenticationError):
        client.models.list()
    assert httpx.get(f"{narrow.root}/v1/models").status_code == 401
    assert httpx.get(f"{narrow.root}/health").status_code == 200
    with narrow.client() as client:
        assert len(list(client.models.list())) == 1


LONG = {"max_tokens": 100_000, "extra_body": {"ignore_eos": True}}
"""More than is written in the time of any test."""


def long_answer(client: Any, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": content()}]
    options = {"stream": True, **LONG, **more}
    return client.chat.completions.create(model="shapes", messages=messages, **options)


def test_who_vanishes_frees_the_slot_and_who_is_one_too_many_waits(narrow: Served) -> None:
    """One slot, and one place to wait: a third is told to come back, and when."""
    with narrow.client() as client:
        answer = long_answer(client)
        next(iter(answer))  # it has the slot
        waiting = {"authorization": f"Bearer {narrow.token}", "content-type": "application/json"}
        with socket.create_connection(narrow.address) as second:
            sent = json.dumps(body(max_tokens=1)).encode()
            head = "".join(f"{name}: {value}\r\n" for name, value in waiting.items())
            start = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n{head}"
            second.sendall(f"{start}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
            until(lambda: narrow.metric("mvw_requests_waiting") == 1)
            with pytest.raises(RateLimitError) as third:
                long_answer(client)
            assert 1 <= int(third.value.response.headers["retry-after"]) <= 60
        until(lambda: narrow.metric("mvw_requests_waiting") == 0)  # the second has vanished
        assert narrow.metric("mvw_requests_running") == 1
        gone = narrow.metric('mvw_requests_total{status="499"}')
        answer.close()  # and now the first
        short = client.chat.completions.create(
            model="shapes", messages=[{"role": "user", "content": QUESTION}], max_tokens=1
        )
        assert short.usage.completion_tokens == 1
        until(lambda: narrow.metric('mvw_requests_total{status="499"}') == gone + 1)
        assert narrow.metric("mvw_requests_running") == 0


def test_a_wrong_request_is_an_error_of_the_client(server: Served) -> None:
    with server.client() as client, pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(
            model="shapes", messages=[{"role": "user", "content": QUESTION}], n=2
        )
    assert refused.value.param == "n"
