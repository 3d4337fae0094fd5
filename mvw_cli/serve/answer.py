"""One answer on its way out: whole, or as it grows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from starlette.types import Send

from mvw_cli.engine.types import Timings, Token
from mvw_cli.serve.desk import Ticket
from mvw_cli.serve.protocol import ChatRequest, Parts, Refused, named
from mvw_cli.session import Session

Record = Mapping[str, Any]


class Reply:
    """What goes back to one client: a document, or events (SSE)."""

    def __init__(self, send: Send) -> None:
        self._send, self._begun = send, False

    async def document(
        self, document: Record, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        body = _dumps(document)
        length = {"content-length": str(len(body)), **(headers or {})}
        await self._begin(status, "application/json", length)
        await self._send({"type": "http.response.body", "body": body})

    async def event(self, document: Record) -> None:
        if not self._begun:
            await self._begin(200, "text/event-stream", {"cache-control": "no-cache"})
        body = b"data: " + _dumps(document) + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def done(self) -> None:
        await self._send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def refuse(self, refused: Refused) -> None:
        """Say what is wrong; once events have gone out, by one more."""
        if not self._begun:
            await self.document(refused.document(), refused.status, refused.headers)
            return
        await self.event(refused.document())
        await self.done()

    async def _begin(self, status: int, kind: str, headers: Mapping[str, str]) -> None:
        self._begun = True
        told = {"content-type": kind, **headers}.items()
        pairs = [(name.lower().encode(), value.encode()) for name, value in told]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})


class Answering:
    """An answer in OpenAI's form.

    Args:
        name: of the model.
        answered: called with the record, once it is there.
    """

    def __init__(
        self,
        session: Session,
        ticket: Ticket,
        chat: ChatRequest,
        name: str,
        answered: Callable[[Record], None],
    ) -> None:
        self._session, self._ticket, self._name, self._answered = session, ticket, name, answered
        self._usage_wanted = bool(chat.stream_options and chat.stream_options.include_usage)
        self._parts = Parts(session.parse, chat.stops)
        self._created = int(time.time())

    async def whole(self, reply: Reply) -> None:
        """Send it once it is complete.

        Raises:
            Refused: the request has failed.
        """
        record = self._checked(await self._ticket.news.get())
        message = {"role": "assistant", "content": "", "reasoning_content": None}
        message |= self._parts.add(record["text"], final=True)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _end(record)}
        document = self._document("chat.completion", choice)
        await reply.document({**document, "usage": _usage(record), "mvw": self._own(record)})

    async def stream(self, reply: Reply) -> None:
        """Send it as it grows; nothing before the first token, since until then it may fail.

        Raises:
            Refused: the request has failed.
        """
        news, step, record = self._ticket.news, 0, None
        delta: dict[str, str] = {"role": "assistant", "content": ""}
        while record is None:
            text = ""
            # A client that is slower than the model gets several tokens at once.
            for one in (await news.get(), *(news.get_nowait() for _ in range(news.qsize()))):
                if not isinstance(one, Token):
                    record = self._checked(one)
                elif one.step > step:  # one that was preempted begins again
                    step, text = one.step, text + one.text
            delta |= self._parts.add(text, final=record is not None)
            if delta:
                await reply.event(self._chunk(delta, None))
            delta = {}
        own = {"mvw": self._own(record)}
        await reply.event(self._chunk({}, _end(record)) | own)
        if self._usage_wanted:  # then the last chunk is one without choices
            document = self._document("chat.completion.chunk")
            await reply.event(document | {"usage": _usage(record)} | own)
        await reply.done()

    def _checked(self, news: Token | Record) -> Record:
        assert not isinstance(news, Token)
        if news["status"] != "ok":
            error = news["error"]
            raise named(error["type"], error["message"], error["cause"])
        self._answered(news)
        return news

    def _chunk(self, delta: Mapping[str, str], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if self._usage_wanted else {}
        return self._document("chat.completion.chunk", choice) | usage

    def _document(self, kind: str, *choices: Mapping[str, Any]) -> dict[str, Any]:
        document = {"id": self._ticket.id, "object": kind, "created": self._created}
        return document | {"model": self._name, "choices": list(choices)}

    def _own(self, record: Record) -> dict[str, Any]:
        """What only mvw tells of an answer."""
        session, keys = self._session, ("withdrawal", "vision", "stages", "remarks")
        own = {"policy": session.policy.describe(), "seed": session.settings.seed}
        timings = {one.name: record["timings"][one.name] for one in fields(Timings)}
        return own | {key: record[key] for key in keys} | {"timings": timings}


def _end(record: Record) -> str:
    return "length" if record["finish_reason"] == "length" else "stop"


def _usage(record: Record) -> dict[str, int]:
    prompt, completion = record["prompt_tokens"], record["generated_tokens"]
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return counts | {"total_tokens": prompt + completion, "vision_tokens": record["vision_tokens"]}


def _dumps(document: Record) -> bytes:
    # In ASCII: what a client has sent may hold halves of characters.
    return json.dumps(document, separators=(",", ":")).encode()
