"""The work list: each item once, in order, in little memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from peak_memory import run_measured

from mvw_cli.batch.items import ImageRef, Item, shard_of
from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.source.paths import Source
from mvw_cli.batch.store.record import clean, digest
from mvw_cli.batch.store.worklist import WorkList
from mvw_cli.errors import ExitCode, MvwError, UsageProblem


def item(id: str, path: str | None = None, question: str = "What?") -> Item:
    return Item(id, (ImageRef(path or id),), question)


def holds(worklist: WorkList, id: str) -> bool:
    return worklist.holds(digest(id))


def items(count: int) -> Iterator[Item]:
    return (item(f"{n}.png") for n in range(count))


def test_items_come_back_whole_and_in_order() -> None:
    listed = [
        Item("b", (ImageRef("b.png"), ImageRef("t.parquet", 3, "image")), "Größer?\n", "yes"),
        Item("a", (ImageRef("a.png"),), "What?", None),
        *items(600),  # more than a page
    ]
    worklist = WorkList(iter(listed))
    assert list(worklist) == listed
    assert len(worklist) == len(listed)
    assert list(worklist) == listed  # a second time


def test_names_that_are_no_utf8_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xf0\x9f.png")
    (tmp_path / name).touch()
    [found] = WorkList(list_items(Source((str(tmp_path),), "What?")))
    assert found.id == name and os.path.exists(found.images[0].path)
    odd = Item(name, (ImageRef(name),), "half a pair \ud83d", "\udc80")
    worklist = WorkList([odd])
    assert list(worklist) == [odd]
    assert holds(worklist, name) and not holds(worklist, "caf")
    assert holds(worklist, clean(name))  # as a record has it


def test_a_limit_stops_the_listing() -> None:
    listing = items(100)
    worklist = WorkList(listing, limit=3)
    assert [one.id for one in worklist] == ["0.png", "1.png", "2.png"]
    assert not holds(worklist, "3.png")
    assert next(listing).id == "3.png"
    worklist = WorkList(listing, limit=0)
    assert list(worklist) == []
    assert next(listing).id == "4.png"


@pytest.mark.parametrize("limit", [None, 57])
def test_shards_divide_the_list(limit: int | None) -> None:
    parts = []
    for i in range(3):
        worklist = WorkList(items(100), limit=limit, shard=(i, 3))
        parts.append([one.id for one in worklist])
        assert len(worklist) == len(parts[-1])
        assert holds(worklist, "0.png") and holds(worklist, "56.png")  # whoever does them
    whole = WorkList(items(100), limit=limit)
    assert sorted(id for part in parts for id in part) == sorted(one.id for one in whole)
    assert all(len(part) > 8 for part in parts)


def test_the_shard_of_an_item_is_the_same_everywhere() -> None:
    digest = 0x0F25CC56A5248ACAFF1DEA34989E04C0A94A321DA43E1F806EB49B8551432759  # by sha256sum
    assert shard_of("0.png", 7) == digest % 7
    assert shard_of("anything", 1) == 0


def test_the_same_file_twice_is_one_item(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    one = item("x", str(tmp_path / "x.png"))
    same = item("x", str(tmp_path / "link" / "x.png"))
    worklist = WorkList([one, same, one], limit=2)
    assert list(worklist) == [one]


@pytest.mark.parametrize("shard", [None, (shard_of("7", 4), 4)])
def test_an_id_used_for_two_items_is_refused(shard: tuple[int, int] | None) -> None:
    one = Item("7", (ImageRef("a.parquet", 0, "image"),), "What?")
    other = Item("7", (ImageRef("b.parquet", 5, "image"),), "What?")
    with pytest.raises(UsageProblem) as caught:
        WorkList([one, other], shard=shard)
    assert caught.value.message == "Two items have the id 7"
    assert caught.value.cause == "one is a.parquet#image/0, the other b.parquet#image/5"
    assert caught.value.exit_code == ExitCode.USAGE
    with pytest.raises(UsageProblem):
        WorkList([item("7", "x.png", "What?"), item("7", "x.png", "Why?")])


def test_an_error_of_the_listing_is_the_callers() -> None:
    def broken() -> Iterator[Item]:
        yield item("a")
        raise MvwError("the listing failed")

    with pytest.raises(MvwError, match="the listing failed"):
        WorkList(broken())


_MEMORY = """
from peak_memory import peak_kib
from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.store.record import digest
from mvw_cli.batch.store.worklist import WorkList

def items(count):
    for n in range(count):
        name = f"folder/{n:060}.png"  # 70 bytes, twice, and a question: 25 MB in all as objects
        yield Item(name, (ImageRef("images/" + name),), f"How many circles are there in {n}?")

few = WorkList(items(1000))
assert sum(1 for _ in few) == 1000
before = peak_kib()
many = WorkList(items(100_000))
assert sum(1 for _ in many) == len(many) == 100_000
assert many.holds(digest("folder/" + "0" * 55 + "99999.png"))
print(peak_kib() - before)
"""


def test_memory_over_100_000_items() -> None:
    # A digest of each id in a dict takes 12 MiB; the items themselves are packed.
    assert run_measured(_MEMORY) < 18 * 1024, "KiB more than for 1,000 items"
