"""Several processes on this machine, killed and interrupted: with real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import alive
from waiting import until
from workers import check_death_of_one, items, job, served

from mvw_cli.batch.workers import worker
from mvw_cli.batch.workers.dispatcher import Dispatcher
from mvw_cli.batch.workers.local import LocalProcesses, devices
from mvw_cli.batch.workers.worker import Job, Worker
from mvw_cli.cli.batch.run import make_executor
from mvw_cli.errors import ModelProblem, UsageProblem
from mvw_cli.machine import facts
from mvw_cli.profiles.schema import EngineArgs


def children(pid: int) -> list[int]:
    """All processes that a process has started, the helpers of multiprocessing included."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(one) for task in tasks for one in task.read_text().split()]


def test_a_worker_killed_in_the_middle_changes_no_record(mortal: None, tmp_path: Path) -> None:
    made = items(tmp_path / "images", 24, {5: "kill-once"})
    with Dispatcher(LocalProcesses(job(), 2)) as pool:
        pids = [process.pid for process, _ in pool._launcher._running.values()]
        assert pool.revision == "c0ffee"
        records = list(served(pool, made))
        pids += [process.pid for process, _ in pool._launcher._running.values()]
        notes = list(pool.state.notes)
    until(lambda: not any(map(alive, pids)))
    assert len(set(pids)) == 3
    check_death_of_one(records, made)
    assert any("killed by SIGKILL" in note for note in notes)


def test_the_error_of_loading_is_the_workers_own(mortal: None) -> None:
    with pytest.raises(ModelProblem) as caught, Dispatcher(LocalProcesses(job("refuse"), 1)):
        pass
    error = caught.value
    assert (error.message, error.cause, error.hint) == (
        "It will not load.",
        "It is a test.",
        "mvw doctor",
    )
    assert "fickle.py" in error.__notes__[0]


def test_ctrl_c_is_the_parents_matter_and_its_death_is_everyones(
    mortal: None, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, Path(__file__).parents[2] / "helpers" / "group.py", tmp_path / "images"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FICKLE": '{"kills": ".", "pace_s": 0.03}'},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert process.stdout.readline().endswith(" ok\n")
        os.killpg(process.pid, signal.SIGINT)
        assert all(process.stdout.readline().endswith(" ok\n") for _ in range(5))
        everyone = children(process.pid)
        assert set(workers) <= set(everyone) and len(workers) == 2  # none was started again
        assert all(map(alive, workers))
    finally:
        process.kill()
        _, err = process.communicate()
    until(lambda: not any(map(alive, everyone)))
    assert err == ""


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "expected"),
    [
        ("cpu", 3, 2, ["cpu"] * 3),
        ("auto", 2, 0, ["cpu"] * 2),
        ("auto", 2, 2, ["cuda:0", "cuda:1"]),
        ("cuda", 3, 8, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:1", 1, 2, ["cuda:1"]),
    ],
)
def test_each_worker_has_a_device_of_its_own(
    monkeypatch: pytest.MonkeyPatch, device: str, workers: int, gpus: int, expected: list[str]
) -> None:
    monkeypatch.setattr(facts, "gpu_count", lambda: gpus)
    assert devices(job().on(device), workers) == expected


def over_vllm(**engine_args: object) -> Job:
    """A job in which vLLM may spread the model over several GPUs."""
    changed = {"engine": "vllm", "engine_args": EngineArgs(**engine_args), "device": "auto"}
    return replace(job(), profile=job().profile.model_copy(update=changed))


def test_a_replica_of_vllm_may_take_several_gpus(
    monkeypatch: pytest.MonkeyPatch, check_hint: Callable[[str], None]
) -> None:
    monkeypatch.setattr(facts, "gpu_count", lambda: 8)
    spread = over_vllm(tensor_parallel_size=2)
    assert devices(spread, 4) == ["cuda:0", "cuda:2", "cuda:4", "cuda:6"]
    with pytest.raises(UsageProblem, match="no 10 GPUs for 5 workers") as caught:
        devices(spread, 5)
    assert caught.value.hint == "mvw batch IMAGES QUESTION --workers 4"
    both = over_vllm(tensor_parallel_size=2, pipeline_parallel_size=4)
    assert devices(replace(both, profile=both.profile.model_copy(update={"engine": "auto"})), 1)
    with pytest.raises(UsageProblem, match="no 16 GPUs for 2 workers"):
        devices(both, 2)
    with pytest.raises(UsageProblem, match="no 2 GPUs for 2 workers") as caught:
        devices(over_vllm(distributed_executor_backend="ray"), 2)
    assert "spreads it over a cluster" in (caught.value.cause or "")
    check_hint(caught.value.hint or "")


@pytest.mark.parametrize(
    ("engine_args", "workers"),
    [
        ({}, 8),
        ({"tensor_parallel_size": 4}, 2),
        ({"tensor_parallel_size": 16}, None),
        ({"tensor_parallel_size": 4, "distributed_executor_backend": "ray"}, None),
    ],
)
def test_by_default_there_are_as_many_replicas_as_gpus_hold(
    monkeypatch: pytest.MonkeyPatch, engine_args: dict[str, object], workers: int | None
) -> None:
    monkeypatch.setattr(facts, "gpu_count", lambda: 8)
    task = SimpleNamespace(
        **dict.fromkeys(("slots", "kv_memory", "workers", "ray_address")),
        allow_pickle=False,
        random_weights=False,
        readers=2,
        read_timeout=60.0,
        executor="local",
    )
    made = make_executor(task, over_vllm(**engine_args).profile)  # type: ignore[arg-type]
    if workers is None:
        assert isinstance(made, Worker)
    else:
        assert isinstance(made, Dispatcher) and len(made._launcher.open()) == workers


def test_workers_on_a_cpu_take_a_part_of_the_free_memory_each(
    mortal: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "free_memory", lambda device: 10**6)
    notes = []
    for sharers in (1, 4):
        with Worker(replace(job(), slots=None, sharers=sharers)) as here:
            list(served(here, items(tmp_path, 1)))
            notes += here.state.notes
    assert len(notes) == 2
    assert notes[0].split(": ")[1].startswith("976.6 KiB")
    assert notes[1].split(": ")[1].startswith("244.1 KiB")
    sent = LocalProcesses(job(), 3)._jobs
    assert [one.sharers for one in sent] == [3, 3, 3]


@pytest.mark.parametrize(
    ("device", "workers", "gpus"),
    [("cuda:1", 2, 2), ("cuda", 3, 2), ("mps", 2, 0), ("cuda", 2, 0)],
)
def test_too_few_devices_are_an_error_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch,
    check_hint: Callable[[str], None],
    device: str,
    workers: int,
    gpus: int,
) -> None:
    monkeypatch.setattr(facts, "gpu_count", lambda: gpus)
    with pytest.raises(UsageProblem) as caught:
        LocalProcesses(job().on(device), workers)
    assert caught.value.hint is not None
    check_hint(caught.value.hint)
