"""Texts that grow, images off the web, and the desk between two threads: without a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mvw_hf.model import HuggingFace

from mvw_cli.adapter import parse_stages, parse_thinking
from mvw_cli.serve import pictures
from mvw_cli.serve.pictures import Sources, is_public
from mvw_cli.serve.protocol import Parts, Refused

STAGES = "<SUMMARY> a < b </SUMMARY> <CAPTION>(Here</CAPTION> <CONCLUSION> 5 (five) </CONCLUSION>"
CHANNEL = "<|channel>thought\nIs 3 < 5? (yes)\n<channel|>5 < 6"
THINKING = "<think>\nIs 3 < 5? (yes)\n</think>\n\n<answer>5</answer>"
PNG = b"\x89PNG\r\n\x1a\n and so on"


@st.composite
def cut(draw: Any, text: str) -> list[str]:
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=20)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def sent(parts: Parts, pieces: list[str]) -> dict[str, str]:
    whole = {"reasoning_content": "", "content": ""}
    for number, piece in enumerate(pieces, start=1):
        for key, text in parts.add(piece, final=number == len(pieces)).items():
            whole[key] += text
    return whole


@given(st.data())
@pytest.mark.parametrize(
    ("text", "parse"),
    [
        (STAGES, parse_stages),
        (THINKING, parse_thinking),
        ("5 < 6 (a", parse_stages),
        (CHANNEL, HuggingFace().parse),
    ],
)
def test_however_a_text_comes_what_is_sent_is_what_it_is(
    text: str, parse: Callable[[str], Any], data: Any
) -> None:
    answer = parse(text)
    got = sent(Parts(parse, ()), data.draw(cut(text)))
    assert got == {"reasoning_content": answer.reasoning, "content": answer.answer}


@pytest.mark.parametrize("stops", [["five"], ["a <"], ["</CAPTION>", "Here"], ["b <", " b"], ["z"]])
def test_however_it_comes_it_ends_before_the_first_stop(stops: list[str]) -> None:
    ends = [STAGES.find(stop) for stop in stops if stop in STAGES]
    answer = parse_stages(STAGES[: min(ends, default=len(STAGES))])
    halves = [[STAGES[:place], STAGES[place:]] for place in range(len(STAGES))]
    for pieces in (*halves, list(STAGES)):
        got = sent(Parts(parse_stages, stops), pieces)
        assert got == {"reasoning_content": answer.reasoning, "content": answer.answer}, pieces


def test_what_turns_out_otherwise_follows_whole() -> None:
    got = sent(Parts(parse_stages, ()), ["It is 4. ", "<CONCLUSION> 5 </CONCLUSION>"])
    assert got["content"] == "It is 4.\n5"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.5.4", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:8.8.8.8", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
        ("2001:0:1::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


Web = Callable[[str], Awaitable[bytes]]


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The internet on this machine: names, and what is answered to paths."""
    world: dict[str, Any] = {"paths": {}, "names": {}, "resolved": []}
    resolve = asyncio.base_events.BaseEventLoop.getaddrinfo

    async def getaddrinfo(self: Any, host: Any, port: Any, **more: Any) -> Any:
        if host not in world["names"]:
            return await resolve(self, host, port, **more)
        world["resolved"].append(host)
        return await resolve(self, world["names"][host].pop(0), port, **more)

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(pictures, "is_public", lambda address: address == "127.0.0.1")
    yield world


@asynccontextmanager
async def answering(paths: dict[str, bytes]) -> AsyncIterator[int]:
    """A web server; what has no answer is never answered."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split()[1].decode()
        if path in paths:
            writer.write(paths[path])
            await writer.drain()
            writer.close()
        else:
            await asyncio.sleep(30)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def fetched(world: dict[str, Any], path: str, host: str = "pictures.test", **limits: Any) -> bytes:
    async def run() -> bytes:
        async with answering(world["paths"]) as port:
            sources = Sources(urls=True, **{"fetch_s": 5, **limits})
            return await sources.read(f"http://{host}:{port}{path}")

    return asyncio.run(run())


def reply(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ELSEWHERE = "Location: http://inside.test/secret.png"


def test_an_image_off_the_web(web: dict[str, Any]) -> None:
    web["names"] = {"pictures.test": ["127.0.0.1"] * 3}
    web["paths"] = {
        "/plain?q=%20x": reply(PNG),
        "/moved": reply(b"", "Location: /plain?q=%20x", status="302 Found"),
        "/chunked": CHUNKED + b"8\r\n" + PNG[:8] + b"\r\n2\r\n12\r\n0\r\n\r\n",
    }
    assert fetched(web, "/plain?q=%20x") == PNG
    assert fetched(web, "/chunked") == PNG[:8] + b"12"
    web["names"] = {"pictures.test": ["127.0.0.1"] * 2}
    assert fetched(web, "/moved") == PNG


def test_a_name_is_resolved_once_and_what_was_checked_is_connected_to(web: dict[str, Any]) -> None:
    """DNS rebinding: a name that is public when it is checked, and private when it is used."""
    web["names"] = {"pictures.test": ["127.0.0.1", "127.0.0.2"]}
    web["paths"] = {"/a": reply(PNG)}
    assert fetched(web, "/a") == PNG
    assert web["resolved"] == ["pictures.test"]


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        ("/inside", reply(b"", ELSEWHERE, status="301 Moved"), "this machine or its own network"),
        ("/file", reply(b"", "Location: file:///etc/passwd", status="302 Found"), "fetched"),
        ("/round", reply(b"", "Location: /round", status="307 Again"), "more than 3 redirects"),
        ("/missing", reply(b"", status="404 Not Found"), "can't be fetched"),
        ("/text", reply(b"<html>"), "neither JPEG nor PNG nor WebP"),
        ("/large", reply(PNG * 100), "more than 1,000 bytes"),
        ("/endless", CHUNKED + b"fff\r\n" + PNG * 300, "more than 1,000 bytes"),
        ("/short", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + PNG, "can't be fetched"),
        ("/noise", b"\0\1\2\3\r\n\r\n", "can't be fetched"),
        ("/closed", b"", "can't be fetched"),
        ("/silent", None, "did not come within 0.5 s"),
    ],
)
def test_what_is_not_fetched(
    web: dict[str, Any], path: str, answer: bytes | None, said: str
) -> None:
    web["names"] = {"pictures.test": ["127.0.0.1"] * 9, "inside.test": ["10.0.0.1"]}
    web["paths"] = {} if answer is None else {path: answer}
    limits = {"most_bytes": 1000, "fetch_s": 0.5 if answer is None else 5}
    with pytest.raises(Refused, match=said) as refused:
        fetched(web, path, **limits)
    assert refused.value.status == 400


def test_a_name_with_one_address_inside_is_refused(web: dict[str, Any]) -> None:
    web["names"] = {"inside.test": ["10.0.0.1"]}
    with pytest.raises(Refused, match="this machine or its own network"):
        fetched(web, "/a", host="inside.test")
