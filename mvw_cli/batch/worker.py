"""A model that serves items: what one process does, wherever it runs.

Every executor runs this one. It does not know where items come from, where records go, nor of
other workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mvw_cli.batch.capacity import Limits, Load, choose_limits, slot_bytes
from mvw_cli.batch.encode import Encoded, Encoder
from mvw_cli.batch.items import Item
from mvw_cli.batch.prefetch import Prefetcher, Ready, Unreadable
from mvw_cli.batch.serve import Record, Server, State
from mvw_cli.cost import DTYPE_BYTES, shape_of
from mvw_cli.doctor.facts import free_memory
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.profiles import Profile
from mvw_cli.session import Session, open_session

_AHEAD = 8
"""Items that are read ahead at least; as many as there are slots, where these are more."""
_AHEAD_BYTES = 512 * 2**20
"""Bytes of decoded images that are held ahead at most."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a process needs to know to serve items; it can be sent to another one."""

    profile: Profile
    allow_pickle: bool = False
    random_weights: bool = False
    slots: int | None = None
    """Requests that decode at the same time; None: as memory allows."""
    kv_bytes: int | None = None
    """Bytes that the KV cache may take; None: as memory allows."""
    readers: int = 2
    """Threads that read images ahead."""
    read_timeout_s: float = 60.0

    def on(self, device: str) -> Job:
        """The same on another device."""
        return replace(self, profile=self.profile.model_copy(update={"device": device}))


class Worker:
    """A loaded model.

    Raises:
        MvwError: as `open_session`.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.session: Session = open_session(
            job.profile, allow_pickle=job.allow_pickle, random_weights=job.random_weights
        )
        self.limits: Limits | None = None
        """Chosen once the first item has been read."""
        self.state = State()

    @property
    def revision(self) -> str | None:
        """The commit that was loaded, where the hub told it."""
        return self.session.loaded.revision

    def records(
        self,
        items: Iterator[Item],
        *,
        run: str,
        draining: Callable[[], bool] = lambda: False,
    ) -> Iterator[Record]:
        """Serve items; yield one record for each, as they end. Arguments as in `Executor`."""
        job = self._job
        encoder = Encoder(self.session, job.profile.images.min_pixels)
        with Prefetcher(
            items,
            encode=encoder,
            threads=job.readers,
            ahead=max(_AHEAD, job.slots or 0),
            ahead_bytes=_AHEAD_BYTES,
            timeout_s=job.read_timeout_s,
            max_pixels=job.profile.images.max_pixels,
        ) as feed:
            first = _First(feed)
            if self.limits is None:
                self.limits = self._choose_limits(first.look(draining))
            server = Server(self.session, first, encoder, self.limits, run=run, draining=draining)
            self.state = server.state
            if self.limits.reason:
                server.state.notes.append(self.limits.reason)
            yield from server.records()

    def _choose_limits(self, first: Ready | None) -> Limits:
        job = self._job
        if job.slots is not None and job.kv_bytes is not None:
            return Limits(job.slots, job.kv_bytes, strict=True)
        chosen = self._fitting(None if first is None else first.value)
        if job.slots is not None:
            return replace(chosen, slots=job.slots, reason="")
        if job.kv_bytes is not None:
            return replace(chosen, kv_bytes=job.kv_bytes, strict=True)
        return chosen

    def _fitting(self, encoded: Encoded | None) -> Limits:
        """Choose by the memory that is free now, and by what the first item is like."""
        session = self.session
        model = session.loaded.model
        free = free_memory(str(model.device)) if self._job.kv_bytes is None else None
        if self._job.kv_bytes is not None:
            free = self._job.kv_bytes
        withdraws = not isinstance(session.policy, NoWithdrawal)
        if encoded is None:
            return choose_limits(None, model.device.type, before=0, after=0, withdraws=withdraws)
        request = encoded.request
        load = Load(
            prompt_tokens=int(request.inputs["input_ids"].shape[1]),
            vision_tokens=request.layout.vision_tokens,
            new_tokens=request.settings.max_new_tokens,
            withdrawn_after=getattr(session.policy, "m", None),
        )
        try:
            shape = shape_of(session.adapter, model.config)
        except Exception:  # of adapters by others, which need not tell it
            return choose_limits(None, model.device.type, before=0, after=0, withdraws=withdraws)
        dtype = str(model.dtype).removeprefix("torch.")
        before, after = slot_bytes(shape, load, dtype if dtype in DTYPE_BYTES else "float32")
        return choose_limits(
            free, model.device.type, before=before, after=after, withdraws=withdraws
        )


class _First:
    """A feed whose first item may be looked at before it is taken."""

    def __init__(self, feed: Prefetcher) -> None:
        self._feed = feed
        self._held: list[Any] = []

    @property
    def exhausted(self) -> bool:
        return self._feed.exhausted and not self._held

    def take(self, wait: bool) -> Ready | Unreadable | None:
        return self._held.pop(0) if self._held else self._feed.take(wait)

    def look(self, draining: Callable[[], bool]) -> Ready | None:
        """Wait for the first item that could be read, and return it; None if there is none."""
        while not (self._feed.exhausted or draining()):
            taken = self._feed.take(True)
            if taken is None:
                continue
            self._held.append(taken)
            if isinstance(taken, Ready):
                return taken
        return None
