"""A vLLM to each worker: processes of this machine, shards, and Ray."""

from __future__ import annotations

import json
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from vllm_commands import (
    QUESTION,
    check_same,
    command,
    of_vllm,
    over_vllm,
    records,
    run,
    started,
    wait_for_end,
    wait_for_records,
    write_folder,
)

ITEMS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("replicas"), ITEMS)


def batch(log: str, *options: str) -> list[str]:
    asking = ["batch", "pictures", QUESTION, "-o", log, "--slots", "2", "--json"]
    return [*command(*asking), *over_vllm(), *options]


def test_two_replicas_one_of_which_dies(folder: Path) -> None:
    own = run([*command("batch", "pictures", QUESTION, "-o", "own.jsonl")], folder)
    assert own.returncode == 0, own.stderr
    log = folder / "served.jsonl"
    with started(batch(log.name, "--workers", "2"), folder) as process:
        wait_for_records(process, log, 1)
        cores = of_vllm(process.pid, "VLLM::EngineCore")
        assert len(cores) == 2
        cores[0].send_signal(signal.SIGKILL)
        out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    check_same(folder / "own.jsonl", log, ITEMS)
    assert json.loads(out)["answered"] == ITEMS
    wait_for_end(cores)


@pytest.mark.skipif(find_spec("ray") is None, reason="make test-vllm installs Ray")
def test_a_replica_on_ray(folder: Path) -> None:
    """A shard of its own; the other one is left to others."""
    done = run(batch("ray.jsonl", "--executor", "ray", "--workers", "1", "--shard", "1/8"), folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") > 1 and json.loads(done.stdout)["failed"] == 0
    found = records(folder / "ray.jsonl")
    assert 0 < len(found) < ITEMS
    assert {one["status"] for one in found.values()} == {"ok"}
    assert all(one["withdrawal"]["kv_blocks_freed"] is not None for one in found.values())
