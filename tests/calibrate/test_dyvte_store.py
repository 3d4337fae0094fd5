"""What has been learnt of each question, on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hints import parse_hint

from mvw_cli.calibrate.dyvte.looks import Look
from mvw_cli.calibrate.dyvte.parts import split
from mvw_cli.calibrate.dyvte.store import Entry, Store
from mvw_cli.errors import UsageProblem

SETTINGS = {"name": "some/model", "prompt": {"system": None}}


def entry(key: str, image: str | None = None) -> Entry:
    return Entry(key, (f"{key}.png",), "What?", (image or key,), 10, 20, 5)


def look(value: float, dtype: torch.dtype = torch.float32) -> Look:
    return Look(
        torch.full((3, 8), value, dtype=dtype),
        torch.full((3,), value),
        torch.full((3,), 2 * value),
        3 * value,
    )


def test_looks_come_back_by_key_whatever_the_order(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    store.add(entry("b"), look(0.25, torch.bfloat16))
    store.flush()
    store.add(entry("a"), look(0.5, torch.bfloat16))
    store.close()
    again = Store(tmp_path, SETTINGS)
    assert again.keys == {"a", "b"}
    table = again.table(["b", "a"])
    assert [one.key for one in table.entries] == ["a", "b"]
    assert table.entries[1] == entry("b")
    assert table.features.dtype == torch.bfloat16
    assert table.features[:, 0, 0].tolist() == [0.5, 0.25]
    assert table.agreement[:, 2].tolist() == [0.5, 0.25]
    assert table.loss[:, 1].tolist() == [1.0, 0.5]
    assert table.full_loss.tolist() == [1.5, 0.75]
    assert [one.key for one in again.table(["b"]).entries] == ["b"]


def test_what_came_together_is_on_disk_without_a_flush(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    for number in range(20):
        store.add(entry(f"{number:02}"), look(number))
    del store  # as a process that dies
    held = Store(tmp_path, SETTINGS)
    assert held.keys == {f"{number:02}" for number in range(16)}


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    Store(tmp_path / "work", SETTINGS).close()
    with pytest.raises(UsageProblem) as caught:
        Store(tmp_path / "work", {**SETTINGS, "prompt": {"system": "Be brief."}})
    assert caught.value.cause == "these differ: prompt"
    assert caught.value.hint is not None
    parse_hint(caught.value.hint)
    (tmp_path / "work" / "settings.json").write_text("{")
    with pytest.raises(UsageProblem) as caught:
        Store(tmp_path / "work", SETTINGS)
    assert "settings.json is damaged" in str(caught.value.cause)


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    first = Store(tmp_path, SETTINGS)
    with pytest.raises(UsageProblem, match="is in use"):
        Store(tmp_path, SETTINGS)
    first.close()
    Store(tmp_path, SETTINGS).close()


def test_no_image_is_in_both_parts(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    for number in range(40):
        store.add(entry(f"{number:02}", image=f"image {number // 2}"), look(number))
    table = store.table(sorted(store.keys))
    parts = split(table, 0.25, 0, 0.99, 1.03)
    held = {table.entries[row].images for row in parts.held_out}
    seen = {table.entries[row].images for row in parts.training}
    assert (len(held), len(seen), len(parts.held_out)) == (5, 15, 10)
    assert not held & seen
    assert split(table, 0.25, 0, 0.99, 1.03).held_out == parts.held_out
    assert split(table, 0.25, 1, 0.99, 1.03).held_out != parts.held_out
    assert len(split(table, 0.999, 0, 0.99, 1.03).training) == 2
    assert parts.labels.shape == (40, 3)


def test_one_image_cant_be_parted(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    for key in ("a", "b"):
        store.add(entry(key, image="the same"), look(1))
    with pytest.raises(UsageProblem, match="one image") as caught:
        split(store.table(["a", "b"]), 0.2, 0, 0.99, 1.03)
    assert caught.value.hint is not None
    parse_hint(caught.value.hint)
