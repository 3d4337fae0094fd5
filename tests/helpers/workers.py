"""Jobs and items for the tests of executors, and what is the same in every good run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from making import files

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.workers.dispatcher import Dispatcher
from mvw_cli.batch.workers.worker import Job, Worker
from mvw_cli.profiles.schema import Profile

RUN = "0123456789abcdef"
CHANCE = ("timings", "memory", "attempts", "remarks")
"""Keys whose values depend on who served an item, and when."""


def job(model: str = "none", **settings: Any) -> Job:
    profile = Profile(
        adapter="fickle",
        model=model,
        device="cpu",
        withdrawal={"policy": "mvw", "m": 4},
        generation={"max_new_tokens": 12, "temperature": 0},
    )
    return Job(profile, **{"slots": 2, **settings})


def items(folder: Path, count: int, special: dict[int, str] | None = None) -> list[Item]:
    """Items that ask different things, so that their answers differ."""
    words = {number: f"w{number % 50} w{number * 7 % 50}" for number in range(count)}
    for number, word in (special or {}).items():
        words[number] += f" {word}"
    return [
        Item(path.name, (ImageRef(str(path)),), words[number])
        for number, path in enumerate(files(folder, count, size=(32, 32)))
    ]


def essence(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What must not depend on the executor, by id. No id may come twice."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        assert record["id"] not in found, record["id"]
        found[record["id"]] = {key: value for key, value in record.items() if key not in CHANCE}
    return found


def served(
    pool: Dispatcher | Worker, made: Iterable[Item], draining: Callable[[], bool] = lambda: False
) -> Iterator[dict[str, Any]]:
    return pool.records(iter(made), run=RUN, draining=draining)


def check_death_of_one(records: list[dict[str, Any]], made: list[Item]) -> None:
    """See that records are those of one undisturbed worker, but for the attempts of 5.png."""
    with Worker(job()) as here:
        assert essence(records) == essence(served(here, made))
    assert len({record["answer"] for record in records}) > 5  # it could tell them apart
    (killer,) = (record for record in records if record["id"] == "5.png")
    assert (killer["attempts"], killer["status"]) == (2, "ok")
