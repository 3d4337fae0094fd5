"""Between the event loop, where requests come in, and the thread that runs the model."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.capacity import MARGIN, MAX_SLOTS, Limits
from mvw_cli.batch.serve.prefetch import WAIT_S, Encoded, Encoder, Ready
from mvw_cli.batch.serve.server import Server, State
from mvw_cli.engine.types import Event, Request, Token
from mvw_cli.machine.facts import free_memory
from mvw_cli.session import Session

News = Token | Mapping[str, Any]
"""A token, or the record that ends a request."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that has been handed in."""

    ready: Ready
    streams: bool
    """Whether each token is told, or the record alone."""
    news: asyncio.Queue[News] = field(default_factory=asyncio.Queue)

    @property
    def id(self) -> str:
        return self.ready.item.id


class Desk:
    """Takes requests in, has them served in a thread of its own, and hands out what comes of them.

    It is the server's feed. All but what a feed has is called from the event loop.

    Args:
        limits: what may be in use at the same time.
        broken: called from the thread where nothing more will be served.
    """

    def __init__(
        self, session: Session, limits: Limits, *, broken: Callable[[], None] = lambda: None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._tickets: dict[str, Ticket] = {}
        self._cancelled: list[str] = []
        self._closed = False
        self._broken = broken
        self.fault: BaseException | None = None
        """What has ended the thread, if anything has."""
        self._server = Server(
            session,
            self,
            Encoder(session),
            lambda first: limits,
            run="serve",
            own_policies=True,
            seen=self._see,
            cancelled=self._take_cancelled,
        )
        self._thread = threading.Thread(target=self._serve, name="mvw-engine", daemon=True)
        self._thread.start()

    @property
    def state(self) -> State:
        """How the slots stand."""
        return self._server.state

    @property
    def waiting(self) -> int:
        """Requests that have been handed in and have no slot."""
        return max(0, len(self._tickets) - self.state.slots)

    def submit(self, request: Request, question: str, remarks: list[str], streams: bool) -> Ticket:
        """Hand a request in.

        One that is handed in once nothing is served any more is told so.
        """
        item = Item(request.id, (), question)
        ticket = Ticket(Ready(item, [], Encoded(request, remarks), 0.0, 0.0), streams)
        with self._changed:
            self._tickets[ticket.id] = ticket
            self._waiting.append(ticket)
            self._changed.notify_all()
        if self.fault is not None:
            self._end_all()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Give a request up; its slot is free before the next step. One that has ended is none."""
        with self._changed:
            if self._tickets.pop(ticket.id, None) is not None:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
                else:
                    self._cancelled.append(ticket.id)

    def close(self) -> None:
        """Serve what has been handed in, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    # -- in the thread -------------------------------------------------------------------------

    @property
    def exhausted(self) -> bool:
        """Whether there is nothing more to take."""
        with self._changed:
            return self._closed and not self._waiting

    def take(self, wait: bool) -> Ready | None:
        """Return the next request; None: there is none, with `wait` not within a short time."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._waiting or self._closed, WAIT_S)
            return self._waiting.popleft().ready if self._waiting else None

    def _take_cancelled(self) -> list[str]:
        with self._changed:
            names, self._cancelled = self._cancelled, []
        return names

    def _see(self, event: Event) -> None:
        if isinstance(event, Token):
            ticket = self._tickets.get(event.request)
            if ticket is not None and ticket.streams:
                self._tell(ticket, event)

    def _serve(self) -> None:
        try:
            for record in self._server.records():
                self._end(record["id"], record)
        except BaseException as error:
            with self._changed:
                self.fault = error
            self._end_all()
            self._broken()

    def _end_all(self) -> None:
        told = {"type": "", "message": "the model is not served any more", "cause": None}
        for id in list(self._tickets):
            self._end(id, {"status": "failed", "error": told})

    def _end(self, id: str, record: Mapping[str, Any]) -> None:
        with self._changed:
            ticket = self._tickets.pop(id, None)
        if ticket is not None:
            self._tell(ticket, record)

    def _tell(self, ticket: Ticket, news: News) -> None:
        with suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(ticket.news.put_nowait, news)


def choose_limits(session: Session, slots: int | None, kv_bytes: int | None) -> Limits:
    """Choose from the memory that is free with the weights loaded.

    What requests are like is not known yet: admission goes by the bytes of each.
    """
    device = session.engine.device
    budget = kv_bytes
    if budget is None and (free := free_memory(str(device))) is not None:
        budget = int(free * (1 - MARGIN))
    most = slots or MAX_SLOTS.get(device.type, MAX_SLOTS["cpu"])
    return Limits(most, budget, strict=kv_bytes is not None)
