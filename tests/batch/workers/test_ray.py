"""Workers on a real Ray of this machine, one of which is killed in the middle."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from workers import check_death_of_one, items, job, served

from mvw_cli.batch.workers.dispatcher import Dispatcher
from mvw_cli.batch.workers.ray import RayActors, connect, import_ray
from mvw_cli.errors import UsageProblem
from mvw_cli.profiles.schema import EngineArgs


@pytest.fixture
def running(mortal: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray that is there already, on which the plugin is installed."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = import_ray()
    connect(ray, "local")
    yield ray
    ray.shutdown()


def test_a_worker_killed_in_the_middle_changes_no_record(
    running: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = items(tmp_path / "images", 24, {5: "kill-once"})
    with Dispatcher(RayActors(job(), 2, None)) as executor:
        assert executor.revision == "c0ffee"
        records = list(served(executor, made))
        notes = list(executor.state.notes)
    assert running.is_initialized()  # what was there is left as it was
    check_death_of_one(records, made)
    assert any("was lost: " in note for note in notes)
    assert capfd.readouterr() == ("", "")


def test_a_ray_of_our_own_ends_with_the_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    before = helpers()
    with (
        pytest.raises(UsageProblem, match="no 1000 GPUs"),
        Dispatcher(RayActors(job().on("cuda"), 1000, None)),
    ):
        pass
    assert not import_ray().is_initialized()
    assert helpers() <= before
    assert signal.getsignal(signal.SIGTERM) is handler
    assert capfd.readouterr() == ("", "")


def test_an_actor_has_the_gpus_of_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def remote(**options: Any) -> Callable[[type], type]:
        asked.append(options)
        return lambda kind: kind

    cluster = SimpleNamespace(
        is_initialized=lambda: True,
        cluster_resources=lambda: {"CPU": 32, "GPU": 8},
        nodes=lambda: [{"Alive": True}],
        remote=remote,
    )
    monkeypatch.setitem(sys.modules, "ray", cluster)
    args = EngineArgs(tensor_parallel_size=2)
    changed = {"engine": "vllm", "engine_args": args, "device": "auto"}
    spread = replace(job(), profile=job().profile.model_copy(update=changed))
    assert len(RayActors(spread, None, None).open()) == 4
    assert asked[0]["num_gpus"] == 2
    changed["engine_args"] = EngineArgs(distributed_executor_backend="ray")
    over_ray = replace(job(), profile=job().profile.model_copy(update=changed))
    with pytest.raises(UsageProblem, match="is not for --executor ray"):
        RayActors(over_ray, None, None).open()


def helpers() -> set[str]:
    """The processes that Ray has started from here."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {one for task in tasks for one in task.read_text().split()}


def test_without_ray_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageProblem) as caught, Dispatcher(RayActors(job(), 2, None)):
        pass
    assert caught.value.hint == 'pip install "mvw[ray]"'


@pytest.mark.parametrize(
    ("device", "address", "gpus"),
    [
        *(("cuda", None, 1), ("auto", None, 1), ("cuda", None, 0)),
        *(("cpu", "127.0.0.1:1", 0), ("cpu", "auto", 0)),
    ],
)
def test_what_ray_has_no_room_for_is_an_error_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch,
    check_hint: Callable[[str], None],
    device: str,
    address: str | None,
    gpus: int,
) -> None:
    left: list[bool] = []

    def init(**options: object) -> None:
        if options["address"] != "local":
            raise ConnectionError("nobody answers\nat all")

    cluster = SimpleNamespace(
        is_initialized=lambda: False,
        init=init,
        cluster_resources=lambda: {"CPU": 4, "GPU": gpus},
        nodes=lambda: [{"Alive": True}],
        shutdown=lambda: left.append(True),
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", cluster)
    with pytest.raises(UsageProblem) as caught, Dispatcher(RayActors(job().on(device), 2, address)):
        pass
    assert caught.value.cause and "\n" not in caught.value.cause
    check_hint(caught.value.hint or "")
    assert left
