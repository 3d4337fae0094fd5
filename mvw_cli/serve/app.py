"""The HTTP side of the server: who may ask, how much a request may cost, and what it asks."""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from math import ceil
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from mvw_cli import console
from mvw_cli.engine import types as engine
from mvw_cli.errors import MvwError
from mvw_cli.images.reading import LIMITED_BY, open_image
from mvw_cli.serve.answer import Answering, Reply
from mvw_cli.serve.desk import Desk
from mvw_cli.serve.metrics import Metrics
from mvw_cli.serve.pictures import Sources
from mvw_cli.serve.protocol import Asked, ChatRequest, Refused, named, read_request
from mvw_cli.session import Session
from mvw_cli.text import error_line

GONE = 499
"""The status by which a request is counted whose client has gone; nginx's number."""
AHEAD = 8
"""Requests beside those in slots that are read and encoded at the same time."""
READERS = 2
"""Threads that decode images."""
HELD_BYTES = 1 << 30
"""Of the bodies of all requests together; beyond, the server is full."""
MOST_RETRY_S = 60


@dataclass(frozen=True, slots=True)
class Bounds:
    """What requests may cost."""

    queue: int
    """Requests that wait beside those in slots."""
    timeout: float
    """Seconds from a request's arrival to the end of its answer."""
    read_timeout: float
    """Seconds for a request to come whole, and for an image to be fetched."""
    max_body: int
    """Bytes."""
    max_images: int
    max_pixels: int
    """Of all images of a request together, as they are decoded."""


@dataclass(slots=True)
class _Place:
    """What one request takes while it is here."""

    body_bytes: int = 0


class Service:
    """All that requests have in common.

    Args:
        names: by which the model is asked for; the first is the one that is told.
        slots: requests that decode at the same time.
        scaled_to: pixels of an image as the model gets it, at most.
        seed: of requests that bring none; None: another one for each.
        remarks: told with every answer.
        token: that requests have to bring; None: none.
    """

    def __init__(
        self,
        session: Session,
        desk: Desk,
        *,
        names: Sequence[str],
        slots: int,
        sources: Sources,
        bounds: Bounds,
        scaled_to: int | None,
        seed: int | None,
        remarks: Sequence[str] = (),
        token: str | None = None,
    ) -> None:
        self.session, self.desk, self.names = session, desk, names
        self.metrics = Metrics(desk)
        self._slots, self._sources, self._bounds = slots, sources, bounds
        self._scaled_to, self._seed, self._remarks = scaled_to, seed, remarks
        # A digest, so that not even the length of the token shows in the time.
        self._token = None if token is None else sha256(token.encode()).digest()
        self._readers = ThreadPoolExecutor(READERS, "mvw-reader")
        self._encoder = ThreadPoolExecutor(1, "mvw-encoder")  # tokenizers are not to be shared
        self._ahead = asyncio.Semaphore(slots + AHEAD)
        self._here = 0
        """Requests that have come in and have not ended."""
        self._held_bytes = 0
        self._mean_s = 1.0
        """That answers took lately."""

    # -- who may come in ---------------------------------------------------------------------

    async def check_token(self, request: Request) -> None:
        """Refuse a request without the token."""
        if self._token is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(sha256(given.encode("latin-1")).digest(), self._token)
        if not same or kind.lower() != "bearer":
            what, headers = "the token is missing or wrong", {"WWW-Authenticate": "Bearer"}
            raise Refused(401, what, code="invalid_api_key", headers=headers)

    @contextmanager
    def _place(self) -> Iterator[_Place]:
        """Take a place among the requests that are here.

        Raises:
            Refused: there is none.
        """
        if self.desk.fault is not None:
            raise Refused(503, "the model is not served any more")
        if self._here >= self._slots + self._bounds.queue:
            raise self._full()
        self._here += 1
        place = _Place()
        try:
            yield place
        finally:
            self._here -= 1
            self._held_bytes -= place.body_bytes

    def _full(self) -> Refused:
        waiting = max(1, self._here - self._slots)
        seconds = min(max(1, ceil(self._mean_s * waiting / self._slots)), MOST_RETRY_S)
        headers = {"Retry-After": str(seconds)}
        return Refused(429, "the server is full", code="rate_limit_exceeded", headers=headers)

    # -- one request -------------------------------------------------------------------------

    async def answer(self, request: Request, send: Send) -> None:
        """Answer a chat completion, or say why not."""
        begin, reply, status = time.monotonic(), Reply(send), 200
        try:
            with self._place() as place:
                async with asyncio.timeout(self._bounds.timeout):
                    chat = read_request(await self._body(request, place))
                    await _unless_gone(request.receive, self._respond(chat, reply))
        except ClientDisconnect:
            status = GONE
        except Exception as error:
            refused = self._refusal(error)
            status = refused.status
            try:
                async with asyncio.timeout(1):
                    await reply.refuse(refused)
            except TimeoutError:  # a client that does not read what it gets
                request.scope["state"]["abort"]()
        seconds = time.monotonic() - begin
        if status == 200:
            self._mean_s += (seconds - self._mean_s) / 20
        self.metrics.ended(status, seconds)

    async def _body(self, request: Request, place: _Place) -> bytes:
        most, parts = self._bounds.max_body, list[bytes]()
        too_large = Refused(413, f"the body has more than {most:,} bytes")
        if int(request.headers.get("content-length") or 0) > most:
            raise too_large
        try:
            async with asyncio.timeout(self._bounds.read_timeout):
                async for part in request.stream():
                    parts.append(part)
                    place.body_bytes += len(part)
                    self._held_bytes += len(part)
                    if place.body_bytes > most:
                        raise too_large
                    if self._held_bytes > HELD_BYTES:
                        raise self._full()
        except TimeoutError:
            what = f"the body did not come within {self._bounds.read_timeout:g} s"
            raise Refused(408, what, headers={"x-should-retry": "false"}) from None
        return b"".join(parts)

    async def _respond(self, chat: ChatRequest, reply: Reply) -> None:
        if chat.model not in self.names:
            what = f"there is no model {chat.model[:100]!r} here, but {self.names[0]!r}"
            raise Refused(404, what, param="model", code="model_not_found")
        asked = chat.asked()
        async with self._ahead:
            session, request, remarks = await self._encoded(chat, asked)
            ticket = self.desk.submit(request, asked.question, remarks, streams=bool(chat.stream))
            answering = Answering(session, ticket, chat, self.names[0], self.metrics.answered)
            try:
                await (answering.stream(reply) if chat.stream else answering.whole(reply))
            finally:
                self.desk.cancel(ticket)

    async def _encoded(
        self, chat: ChatRequest, asked: Asked
    ) -> tuple[Session, engine.Request, list[str]]:
        """Read a request's images and write its prompt; return the remarks on it, too."""
        session = replace(
            self.session,
            policy=chat.policy(self.session.policy),
            settings=chat.settings(
                self.session.settings, secrets.randbits(32) if self._seed is None else self._seed
            ),
        )
        if len(asked.images) > self._bounds.max_images:
            what = f"there are more than {self._bounds.max_images} images"
            raise Refused(400, what, param="messages")
        loop, files, left = asyncio.get_running_loop(), [], self._bounds.max_pixels
        of_one = session.loaded.spec.max_decoded_pixels
        for number, url in enumerate(asked.images, start=1):
            read = partial(
                open_image,
                await self._sources.read(url),
                max_pixels=self._scaled_to,
                max_decoded_pixels=min(left, of_one),
                name=f"image {number}",
                limited_by="--max-pixels leaves" if left < of_one else LIMITED_BY,
            )
            files.append(await loop.run_in_executor(self._readers, read))
            width, height = files[-1].original_size
            left = max(0, left - width * height)

        def encode() -> tuple[Session, engine.Request, list[str]]:
            asking = session if asked.system is None else session.with_system(asked.system)
            pictures = [file.image for file in files]
            id = f"chatcmpl-{secrets.token_hex(12)}"
            request = asking.request(pictures, asked.question, id=id)
            remarks = [*self._remarks, *(file.remark for file in files if file.remark)]
            remarks += [*asked.remarks, *asking.remarks(pictures, asked.question, request)]
            return asking, request, remarks

        return await loop.run_in_executor(self._encoder, encode)

    def _refusal(self, error: Exception) -> Refused:
        """Say in one sentence what an error means for whoever has asked."""
        if isinstance(error, Refused):
            refused = error
        elif isinstance(error, TimeoutError):
            what = f"the answer took longer than {self._bounds.timeout:g} s"
            refused = Refused(504, what, headers={"x-should-retry": "false"})
        elif isinstance(error, MvwError):
            refused = named(type(error).__name__, error.message, error.cause)
        else:
            refused = Refused(500, "the server has failed at this request")
        if refused.status == 500:
            said = refused.message if refused is error else error_line(error)
            console.warn(f"a request has failed: {said}")
        return refused


def make_app(service: Service) -> FastAPI:
    """Make the ASGI application."""
    created = int(time.time())
    known = {
        name: {"id": name, "object": "model", "created": created, "owned_by": "mvw"}
        for name in service.names
    }

    async def chat() -> Response:
        return _Chat(service)

    async def models() -> Response:
        return _json({"object": "list", "data": [known[service.names[0]]]})

    async def model(name: str) -> Response:
        if name not in known:
            raise Refused(404, f"there is no model {name[:100]!r}", code="model_not_found")
        return _json(known[name])

    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def health() -> Response:
        fault = service.desk.fault
        return _json({"status": "ok" if fault is None else "failed"}, 200 if fault is None else 503)

    app = FastAPI(openapi_url=None, exception_handlers={Refused: _refuse, HTTPException: _refuse})
    token = [Depends(service.check_token)]
    app.add_api_route("/v1/chat/completions", chat, methods=["POST"], dependencies=token)
    app.add_api_route("/v1/models", models, dependencies=token)
    app.add_api_route("/v1/models/{name:path}", model, dependencies=token)
    app.add_api_route("/metrics", metrics, dependencies=token)
    app.add_api_route("/health", health)
    return app


class _Chat(Response):  # type: ignore[misc]
    """A response that is made while it is sent: its request lasts as long."""

    def __init__(self, service: Service) -> None:
        self._service, self.background = service, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._service.answer(Request(scope, receive), send)


async def _unless_gone(receive: Receive, work: Awaitable[None]) -> None:
    """Do something as long as the client is there.

    Raises:
        ClientDisconnect: it is not any more.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    tasks = (working, asyncio.ensure_future(gone()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer in OpenAI's form what is raised outside of a chat completion."""
    if isinstance(error, HTTPException):
        error = Refused(error.status_code, str(error.detail))
    assert isinstance(error, Refused)
    return _json(error.document(), error.status, error.headers)


def _json(
    document: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(json.dumps(document), status, headers, "application/json")
