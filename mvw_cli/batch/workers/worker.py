"""A model that serves items: what one process does, wherever it runs.

Every executor runs this one. It does not know where items come from, where records go, nor of
other workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.capacity import Limits, Load, choose_limits, slot_bytes, unknown_limits
from mvw_cli.batch.serve.encode import Encoded, Encoder
from mvw_cli.batch.serve.prefetch import Prefetcher, Ready
from mvw_cli.batch.serve.server import Record, Server, State
from mvw_cli.cost.shape import DTYPE_BYTES, shape_of
from mvw_cli.machine.facts import free_memory
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.profiles.schema import Profile
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
    sharers: int = 1
    """Workers that have the free memory of the device in common; each takes its part."""

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
        self._limits: Limits | None = None
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
            server = Server(
                self.session, feed, encoder, self._choose_limits, run=run, draining=draining
            )
            self.state = server.state
            yield from server.records()

    def _choose_limits(self, first: Ready) -> Limits:
        if self._limits is None:
            self._limits = self._limits_for(first)
            return self._limits
        return replace(self._limits, reason="")  # it has been told

    def _limits_for(self, first: Ready) -> Limits:
        job = self._job
        if job.slots is not None and job.kv_bytes is not None:
            return Limits(job.slots, job.kv_bytes, strict=True)
        chosen = self._fitting(first.value)
        if job.slots is not None:
            return replace(chosen, slots=job.slots, reason="")
        if job.kv_bytes is not None:
            return replace(chosen, kv_bytes=job.kv_bytes, strict=True)
        return chosen

    def _fitting(self, encoded: Encoded) -> Limits:
        """Choose by the memory that is free now, and by what the first item is like."""
        session, kv_bytes = self.session, self._job.kv_bytes
        model, request = session.loaded.model, encoded.request
        load = Load(
            text_tokens=request.text_tokens,
            vision_tokens=request.layout.vision_tokens,
            new_tokens=request.settings.max_new_tokens,
            withdrawn_after=session.policy.withdrawal_step(),
        )
        dtype = str(model.dtype).removeprefix("torch.")
        try:
            shape = shape_of(session.adapter, model.config)
        except Exception:  # of adapters by others, which need not tell it
            return unknown_limits(model.device.type)
        before, after = slot_bytes(shape, load, dtype if dtype in DTYPE_BYTES else "float32")
        free = free_memory(str(model.device)) if kv_bytes is None else kv_bytes
        if free is not None and kv_bytes is None:
            free //= self._job.sharers
        return choose_limits(
            free,
            model.device.type,
            before=before,
            after=after,
            withdraws=not isinstance(session.policy, NoWithdrawal),
            given=kv_bytes is not None,
        )
