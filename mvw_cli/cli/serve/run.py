"""One `mvw serve` from the command line to its end."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from mvw_cli import console
from mvw_cli.cli.process import exit_on_interrupt, finish_on_interrupt, mute_libraries
from mvw_cli.cli.stderr_view import StderrView
from mvw_cli.errors import ExitCode, UsageProblem
from mvw_cli.text import plural

if TYPE_CHECKING:  # PyTorch and pydantic come after the first sign of life
    from mvw_cli.profiles.resolution import Resolved
    from mvw_cli.session import Session

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
_SPARE = 128
"""Connections beside those of requests: for `/health`, `/metrics`, and 429."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the command line asks for; None: as usual."""

    profile: str | None
    flags: Mapping[str, object]
    host: str
    port: int
    api_key: str | None
    slots: int | None
    kv_memory: int | None
    bounds: Mapping[str, Any]
    """By the names of `app.Bounds`."""
    own: tuple[str, ...]
    """Options that are given and are for mvw's own engine."""
    allow_files: str | None
    allow_urls: bool
    allow_pickle: bool
    random_weights: bool

    def names(self, resolved: Resolved, model: str) -> list[str]:
        """List the names by which the model may be asked for."""
        name = resolved.name and Path(resolved.name).name.removesuffix(".yaml").removesuffix(".yml")
        return list(dict.fromkeys([name, model] if name else [model]))


def run(task: Task) -> int:
    """Serve until the end is asked for.

    Raises:
        MvwError: what can't be served, or what has ended it.
    """
    view = StderrView()
    with exit_on_interrupt(view.on_interrupt), view.making_room():
        view.loading(str(task.flags.get("model") or task.profile or "the profile"))
        from mvw_cli.profiles.resolution import resolve

        mute_libraries()
        resolved = resolve(task.profile, task.flags)
        if task.api_key == "":
            raise UsageProblem(
                "--api-key: the token is empty",
                cause="everybody would have it",
                hint="mvw serve --help",
            )
        if task.allow_files is not None and not os.path.isdir(task.allow_files):
            raise UsageProblem(
                f"--allow-files: there is no folder {task.allow_files}",
                cause="it is the folder below which file:// URLs are read",
                hint="mvw serve --help",
            )
        if _takes_vllm(resolved, view):
            _hand_over(task, resolved, view)
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            raise UsageProblem(
                f"mvw serve needs {', '.join(missing)}",
                cause="they come with the extra `serve`",
                hint='pip install "mvw[serve]"',
            )
        from mvw_cli.serve.http import listen

        listener = listen(task.host, task.port)
        session = _load(task, resolved, view)
    with finish_on_interrupt(view.on_interrupt) as stop:
        asyncio.run(_serve(task, resolved, session, listener, stop, view))
    return ExitCode.OK


def _takes_vllm(resolved: Resolved, view: StderrView) -> bool:
    if resolved.profile.engine != "auto":
        return resolved.profile.engine == "vllm"
    from mvw_cli.vllm.start import choose

    engine, why, _ = choose(resolved.profile, resolved.policy)
    view.note(f"engine {engine}: {why}")
    return engine == "vllm"


def _hand_over(task: Task, resolved: Resolved, view: StderrView) -> None:
    """Become vLLM's own server: this process is its, and so is what ends it."""
    if task.own:
        raise UsageProblem(
            f"vLLM's own server does not have {', '.join(task.own)}",
            cause="--engine vllm hands over to it",
            hint="mvw serve --help",
        )
    from mvw_cli.vllm.server import server_command
    from mvw_cli.vllm.start import set_environment

    command = server_command(
        resolved,
        host=task.host,
        port=task.port,
        names=task.names(resolved, str(resolved.profile.model)),
        slots=task.slots,
        files=task.allow_files,
        allow_pickle=task.allow_pickle,
        random_weights=task.random_weights,
    )
    set_environment(resolved.profile.device, resolved.profile.engine_args.given)
    if task.api_key is not None:
        os.environ["VLLM_API_KEY"] = task.api_key  # other users see a command's words
    view.clear()
    console.write(_url(task.host, task.port))
    sys.stdout.flush()
    os.dup2(2, 1)  # where its log goes
    os.execv(command[0], command)


def _load(task: Task, resolved: Resolved, view: StderrView) -> Session:
    if resolved.is_default:
        view.note_embedded()
    if resolved.profile.model is not None:
        view.loading_model(resolved.profile.model, resolved.profile.revision)
    from mvw_cli.session import open_session

    return open_session(
        resolved.profile.model_copy(update={"engine": "mvw"}),
        policy=resolved.policy,
        slots=task.slots,
        allow_pickle=task.allow_pickle,
        random_weights=task.random_weights,
    )


async def _serve(
    task: Task,
    resolved: Resolved,
    session: Session,
    listener: socket.socket,
    stop: Event,
    view: StderrView,
) -> None:
    from mvw_cli.serve.app import Bounds, Service, make_app
    from mvw_cli.serve.desk import Desk, choose_limits
    from mvw_cli.serve.http import serve_http
    from mvw_cli.serve.pictures import Sources

    bounds = Bounds(**task.bounds)
    limits = choose_limits(session, task.slots, task.kv_memory)
    desk = Desk(session, limits, broken=stop.set)
    seeded = resolved.origins["generation.seed"].kind != "default"
    noise = "The weights are random: this answer is noise. Time and memory are real."
    service = Service(
        session,
        desk,
        names=task.names(resolved, session.loaded.name),
        slots=limits.slots,
        sources=Sources(task.allow_files, task.allow_urls, bounds.max_body, bounds.read_timeout),
        bounds=bounds,
        scaled_to=resolved.profile.images.max_pixels,
        seed=session.settings.seed if seeded else None,
        remarks=[noise] if task.random_weights else [],
        token=task.api_key,
    )
    host, port = listener.getsockname()[:2]
    view.note(f"{service.names[0]}, {plural(limits.slots, 'slot')}, {session.policy.describe()}.")
    if task.api_key is None and not ip_address(host).is_loopback:
        view.warn("Whoever reaches this address may ask: --api-key TOKEN keeps others out.")
    console.write(_url(host, port))
    sys.stdout.flush()
    await serve_http(
        make_app(service),
        listener,
        ending=stop.is_set,
        read_s=bounds.read_timeout,
        drain_s=bounds.timeout,
        most=limits.slots + bounds.queue + _SPARE,
    )
    await asyncio.to_thread(desk.close)
    if desk.fault is not None:
        raise desk.fault


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
