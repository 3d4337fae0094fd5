"""DyVTE from labels to exits on the tiny model of every adapter, held against the engine.

The labels say what an exit would change; the engine, under the policy, shows what it changes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sessions import GREEDY, followed, tiny

from mvw_cli.bench.measure.items import ItemSpec, ask
from mvw_cli.calibrate.dyvte.gates import HIDDEN, write_gates
from mvw_cli.calibrate.dyvte.labels import labels
from mvw_cli.calibrate.dyvte.policy import Dyvte
from mvw_cli.calibrate.dyvte.report import evaluate, vision_share
from mvw_cli.calibrate.dyvte.search import DyvteSearch, read_dataset
from mvw_cli.calibrate.dyvte.training import Dataset
from mvw_cli.calibrate.search import SearchRun, measure_all
from mvw_cli.calibrate.store import SampleStore
from mvw_cli.cost.flops import flops_of
from mvw_cli.engine.layers import cross_attention_layers
from mvw_cli.engine.types import Finished, Prefilled
from mvw_cli.oracle.equivalence import noise
from mvw_cli.session import Session

COUNT = 4


def scenes(folder: Path) -> list[ItemSpec]:
    items = []
    for number in range(COUNT):
        path = folder / f"{number}.png"
        noise(64, 48, seed=number).save(path)
        items.append(ItemSpec((str(path),), f"w{number} w2 red circles"))
    return items


def labelled(session: Session, items: list[ItemSpec], folder: Path) -> Dataset:
    with SampleStore(folder / "samples.jsonl", {}) as store:
        run = SearchRun(session, items, store, folder / "dyvte.yaml")
        return read_dataset(run, measure_all(DyvteSearch(), run))


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("hf", "skip"),
        ("kimi-vl", "skip"),
        ("shapes", "skip"),
        ("llava-cot", "skip"),
        ("llava-cot", "mlp"),
    ],
)
def test_the_engine_shows_what_the_labels_say(name: str, keep: Any, tmp_path: Path) -> None:
    session = tiny(name, cross_attention=keep)
    cross_layers = cross_attention_layers(session.loaded.model)
    items = scenes(tmp_path)
    table = labelled(session, items, tmp_path)
    assert len(table.questions) == COUNT
    said = torch.zeros(table.agreement.shape, dtype=torch.bool)
    gates = table.agreement.shape[1]
    for row in range(COUNT):
        said[row, row % gates] = True
    flops = flops_of(session.adapter, session.loaded.model.config)
    vision_shares = [
        vision_share(flops, one["text_tokens"], one["vision_tokens"], keep_mlp=keep == "mlp")
        for one in table.questions
    ]
    truth = labels(table.agreement, table.loss, table.full_loss[:, None])
    found = evaluate(said, table, truth, truth, vision_shares, cross_layers=cross_layers)
    shares = []
    for row, entry in enumerate(table.questions):
        item = next(one for one in items if Path(one.images[0]).name == entry["images"][0])
        gate = row % gates
        path = tmp_path / f"gates-{gate}.safetensors"
        write_gates([planted(table, number == gate) for number in range(gates)], {}, path)
        agreement, prefilled = seen(session, item, Dyvte(str(path)))
        assert agreement == pytest.approx(float(table.agreement[row, gate]), abs=1e-6)
        reading = cross_layers or tuple(range(gates + 1))
        held = [count > 0 for count in prefilled.vision_by_layer]
        assert held == [layer <= gate for layer in reading]
        shares.append(1 - sum(held) / len(held))
    assert found.exits.layers == {
        str(gate + 1): sum(row % gates == gate for row in range(COUNT))
        for gate in range(min(gates, COUNT))
    }
    assert found.exits.layers_saved == pytest.approx(sum(shares) / COUNT)
    saved = found.exits.prefill_saved
    assert saved is not None and 0 < saved <= found.exits.layers_saved


def planted(table: Dataset, exits: bool) -> Any:
    bias = torch.tensor([0.0, 1.0] if exits else [1.0, 0.0])
    return torch.zeros(HIDDEN, table.features.shape[2]), torch.zeros(2, HIDDEN), bias


def seen(session: Any, item: ItemSpec, policy: Dyvte) -> tuple[float, Prefilled]:
    """Answer with the vision, read the answer again under a policy; compare the likeliest."""
    request = ask(session, item, GREEDY)
    *_, finished = session.run([request])
    assert isinstance(finished, Finished)
    request = replace(request, forced=finished.token_ids)
    whole, _ = followed(session, request)
    under, prefilled = followed(session, replace(request, policy=policy))
    return float((whole.argmax(-1) == under.argmax(-1)).float().mean()), prefilled
