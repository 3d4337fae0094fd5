"""The loop over the samples that all searches share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from sessions import tiny

from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.bench.measure.run import Stopped
from mvw_cli.calibrate.search import Outcome, Search, SearchRun, cell, measure_all
from mvw_cli.calibrate.store import SampleStore
from mvw_cli.engine.types import Request
from mvw_cli.errors import BadImage, OutOfMemory
from mvw_cli.oracle.equivalence import noise
from mvw_cli.render.chart import Chart
from mvw_cli.render.sections import Sentence, Table
from mvw_cli.session import Session


@dataclass
class Noting(Search):
    """Notes what it is asked for."""

    doing: ClassVar[str] = "Noting"

    groups: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def together(self) -> int:
        return 2

    def prepare(self, run: SearchRun, requests: Sequence[Request]) -> None:
        self.groups.append(len(requests))

    def measure(self, run: SearchRun, item: ItemSpec, request: Request) -> Mapping[str, Any]:
        self.asked.append(item.question)
        if item.question == "too large":
            raise OutOfMemory("no room", cause="too many tokens", hint="mvw --help")
        return {"length": len(item.question)}

    def choose(self, run: SearchRun, samples: list[dict[str, Any]]) -> Outcome:
        return Outcome([], None, "")

    def charts(self, outcome: Outcome) -> list[Chart]:
        return []


@pytest.fixture
def asking(tmp_path: Path) -> Any:
    """Make a run over questions about one image; a question `blind` has no vision."""
    path = tmp_path / "noise.png"
    noise(64, 48).save(path)
    session = tiny("shapes")

    class Blinding(Session):
        __slots__ = ()

        def request(self, images: Any, question: str, *, id: str = "0") -> Request:
            made = session.request(images, question, id=id)
            if question != "blind":
                return made
            nothing = torch.zeros_like(made.layout.entries)
            return replace(made, layout=replace(made.layout, entries=nothing))

    names = ("adapter", "loaded", "engine", "policy", "settings")
    blinding = Blinding(*(getattr(session, name) for name in names))

    def make(store: SampleStore, *questions: str, image: Path = path, **given: Any) -> SearchRun:
        items = [ItemSpec((str(image),), question) for question in questions]
        return SearchRun(blinding, items, store, tmp_path / "found.yaml", **given)

    return make


def test_samples_come_in_groups_and_only_those_that_are_new(asking: Any, tmp_path: Path) -> None:
    first, second = Noting(), Noting()
    with SampleStore(tmp_path / "log", {}) as store:
        measure_all(first, asking(store, "a", "bb", "a"))
        samples = measure_all(second, asking(store, "ccc", "a", "bb", "dddd"))
    assert (first.groups, first.asked) == ([2], ["a", "bb"])
    assert (second.groups, second.asked) == ([1, 1], ["ccc", "dddd"])
    assert [(one["number"], one["length"]) for one in samples] == [(1, 3), (2, 1), (3, 2), (4, 4)]
    assert samples[0]["images"] == ["noise.png"] and "run" not in samples[0]


def test_what_cant_be_measured_is_left_out_and_named(asking: Any, tmp_path: Path) -> None:
    warnings: list[str] = []
    with SampleStore(tmp_path / "log", {}) as store:
        run = asking(store, "blind", "a", "too large", warn=warnings.append)
        assert [one["number"] for one in measure_all(Noting(), run)] == [2]
    assert len(warnings) == 2 and run.left_out[1] == "no room (too many tokens)"
    assert "it holds no vision tokens" in run.left_out[0]


@pytest.mark.parametrize(("question", "error"), [("blind", BadImage), ("too large", OutOfMemory)])
def test_nothing_to_measure_is_an_error(
    asking: Any, tmp_path: Path, question: str, error: type[Exception]
) -> None:
    with SampleStore(tmp_path / "log", {}) as store, pytest.raises(error):
        measure_all(Noting(), asking(store, question))


def test_an_interrupt_keeps_what_is_finished(asking: Any, tmp_path: Path) -> None:
    search = Noting()
    with SampleStore(tmp_path / "log", {}) as store:
        run = asking(store, "a", "bb", "ccc", stopping=lambda: len(search.asked) == 1)
        with pytest.raises(Stopped):
            measure_all(search, run)
        assert len(store) == 1


def test_a_screen_shows_the_first_the_last_and_those_around_the_chosen_one() -> None:
    class Layered(Noting):
        columns = (("K", cell("layer", str)),)

    def shown(layers: int, chosen: int | None) -> list[int]:
        curve = [{"layer": layer, "chosen": layer == chosen} for layer in range(layers)]
        [section] = Layered().tables(Outcome(curve, None, ""), 1)
        table, said = section.parts
        assert isinstance(table, Table) and isinstance(said, Sentence)
        assert (f"16 of {layers} rows" in said.text) == (len(table.rows) < layers)
        assert [row[0] for row in table.rows if row[1]] == ([] if chosen is None else [str(chosen)])
        return [int(row[0]) for row in table.rows]

    for chosen in (1, 12, 39, None):
        found = shown(40, chosen)
        assert len(found) == 16 and found == sorted(set(found))
        assert {0, 39, chosen or 0} <= set(found)
    assert shown(16, 3) == list(range(16))
