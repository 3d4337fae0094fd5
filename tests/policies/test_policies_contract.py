"""Every policy that comes with mvw is found by its name, and holds the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mvw_cli.plugins import OWN, load_plugins, load_policy
from mvw_cli.policies.look_back import LookBack
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.stack import stacked
from mvw_cli.policies.vtw import Vtw
from mvw_cli.testing import PolicyContract

SAMPLES: dict[str, list[dict[str, Any]]] = {
    "vtw": [{"layer": 1}, {"layer": 12}, {"layer": 39}],
    "fastv": [{"layer": 2, "keep": 0.5}, {"layer": 20, "keep": 0.01}, {"layer": 1, "keep": 1}],
    "random": [{"keep": 0.5}, {"keep": 0.25, "layer": 7, "seed": 3}],
    "downsample": [{"keep": 0.25}, {"keep": 0.5, "layer": 3}],
    "mvw": [
        *({"m": 1}, {"m": 5}, {"m": 6, "until": " two"}, {"until": "</CAPTION>", "min": 6}),
        *({"until": ["</CAPTION>", " cats"], "max": 9}, {"until": ["</CAPTION>"] * 2, "max": 11}),
    ],
    "mass": [
        *({"threshold": 0.02}, {"threshold": 1.0, "patience": 2, "min": 3}),
        {"threshold": 1.0, "patience": 1, "smoothing": 1.0},
        {"threshold": 0.1, "layers": [7, 3], "min": 9},
    ],
    "anneal": [
        *({"end": 9, "every": 2}, {"end": 8, "start": 2, "every": 1, "by": "even"}),
        {"end": 64, "start": 16, "depth": 0.0},
    ],
    "look-back": [
        *({"entropy": 1.5, "steps": 2}, {"tag": "TION>"}, {"words": ["so"], "steps": None}),
        {"tag": "</CAPTION>", "words": ["wait", "look at the image"], "steps": None},
    ],
    "pulse": [
        *({}, {"layer": 0, "max_ratio": 0.5}),
        {"layer": 3, "tau": 0.4, "min_ratio": 0.05, "max_ratio": 0.1},
    ],
    "none": [{}],
}


def contract(name: str) -> type[PolicyContract]:
    policies = tuple(load_policy(name)(**fields) for fields in SAMPLES[name])
    return type(f"Test_{name}", (PolicyContract,), {"policies": policies})


TestVtw = contract("vtw")
TestFastV = contract("fastv")
TestRandom = contract("random")
TestDownsample = contract("downsample")
TestMvw = contract("mvw")
TestMass = contract("mass")
TestAnneal = contract("anneal")
TestLookBack = contract("look-back")
TestPulse = contract("pulse")
TestNone = contract("none")


class TestSeveral(PolicyContract):
    policies = (
        stacked([Mvw(m=2), LookBack(words=["two"], tag="</CAPTION>", steps=2)]),
        stacked([Vtw(layer=12), Mvw(m=3)]),
    )


class TestDyvte(PolicyContract):
    layers = 6

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def gates(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        import torch

        from mvw_cli.calibrate.dyvte.gates import HIDDEN, write_gates

        generator = torch.Generator().manual_seed(0)

        def gate() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            hidden = torch.randn(HIDDEN, 2 * cls.hidden, generator=generator)
            return hidden, torch.randn(2, HIDDEN, generator=generator), torch.zeros(2)

        path: Path = tmp_path_factory.mktemp("gates") / "gates.safetensors"
        write_gates([gate() for _ in range(cls.layers - 1)], {}, path)
        dyvte = load_policy("dyvte")
        cls.policies = (
            *(dyvte(gates=str(path)), dyvte(gates=str(path), min_layer=2)),
            dyvte(gates=str(path), min_layer=4),
        )


def test_none_is_left_out() -> None:
    registered = load_plugins().policies
    own = {entry.info.name for entry in registered if entry.plugin.distribution == OWN}
    assert own == {*SAMPLES, "dyvte"}
