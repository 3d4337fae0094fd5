"""uvicorn as this server runs it: requests that dawdle are cut off, and an end that drains."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import ceil
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mvw_cli.errors import UsageProblem

_GRACE_S = 1.0
"""Beyond the time for a request, until its connection is closed: it has been told meanwhile."""


class Punctual(H11Protocol):  # type: ignore[misc]
    """A connection that is closed if a request does not come whole in time, its headers included.

    Args:
        read_s: for one request.
        most: connections that are open at the same time.
    """

    def __init__(self, *, read_s: float, most: int, **given: Any) -> None:
        super().__init__(**given)
        self._read_s, self._most = read_s, most
        self._due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.app_state: dict[str, Any] = {**self.app_state, "abort": transport.abort}
        if len(self.connections) > self._most:
            transport.abort()
        else:
            self._follow()

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._stop()  # a request begins
        super().data_received(data)
        self._follow()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _follow(self) -> None:
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop()
        elif self._due is None and not self.transport.is_closing():
            self._due = self.loop.call_later(self._read_s + _GRACE_S, self.transport.abort)

    def _stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None


class _Server(uvicorn.Server):  # type: ignore[misc]
    """A server that ends when it is asked to, and leaves signals to whoever asks."""

    def __init__(self, config: uvicorn.Config, ending: Callable[[], bool]) -> None:
        super().__init__(config)
        self._ending = ending

    def capture_signals(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def on_tick(self, counter: int) -> bool:
        return self._ending() or await super().on_tick(counter)


async def serve_http(
    app: Any,
    listener: socket.socket,
    *,
    ending: Callable[[], bool],
    read_s: float,
    drain_s: float,
    most: int,
) -> None:
    """Serve an ASGI application until the end is asked for, and all that was begun by then.

    Args:
        ending: asked ten times a second; once true, no connection is taken any more.
        read_s: for a request to come whole, in seconds.
        drain_s: for what was begun, in seconds.
        most: connections at the same time.
    """
    for name in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what a client sends is its business
    config = uvicorn.Config(
        app,
        http=partial(Punctual, read_s=read_s, most=most),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=ceil(drain_s),
    )
    await _Server(config, ending).serve(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Take an address, before anything that takes time.

    Raises:
        UsageProblem: it can't be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # who comes while the weights are read waits
    except OSError as error:
        of_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        raise UsageProblem(
            f"Can't listen on {host}, port {port}",
            cause=error.strerror or str(error),
            hint="mvw serve --host 127.0.0.1" if of_host else "mvw serve --port 0",
        ) from None
    return listener
