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
    num_layers = 6

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
        write_gates([gate() for _ in range(cls.num_layers - 1)], {}, path)
        dyvte = load_policy("dyvte")
        cls.policies = (
            *(dyvte(gates=str(path)), dyvte(gates=str(path), min_layer=2)),
            dyvte(gates=str(path), min_layer=4),
        )


def test_none_is_left_out() -> None:
    registered = load_plugins().policies
    own = {entry.info.name for entry in registered if entry.plugin.distribution == OWN}
    assert own == {*SAMPLES, "dyvte"}


NAN = float("nan")
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("anneal", {"end": 4, "start": 4}, "^end must be above start"),
    ("anneal", {"end": 4, "start": -1}, "^start must be"),
    ("anneal", {"end": 4, "every": 0}, "^every must be"),
    ("anneal", {"end": 4, "depth": 1.0}, "^depth must be"),
    ("anneal", {"end": 4, "by": "luck"}, "^by must be"),
    ("downsample", {"keep": -0.5}, "^keep must be above 0 and at most 1$"),
    ("dyvte", {"gates": ""}, "must"),
    ("dyvte", {"gates": "x", "min_layer": 0}, "must"),
    ("fastv", {"layer": 0, "keep": 0.5}, "^layer must be 1 or more$"),
    ("look-back", {"steps": 3}, "give entropy, tag or words"),
    ("look-back", {"entropy": NAN}, "entropy must be"),
    ("look-back", {"tag": ""}, "tag must not be empty"),
    ("look-back", {"words": []}, "words must be"),
    ("look-back", {"words": ["wait", " "]}, "words must be"),
    ("look-back", {"words": "wait"}, "words must be"),
    ("look-back", {"tag": "x", "steps": 0}, "steps must be"),
    ("mass", {"threshold": 0.0}, "^threshold must be"),
    ("mass", {"threshold": NAN}, "^threshold must be"),
    ("mass", {"threshold": 0.1, "patience": 0}, "^patience must be"),
    ("mass", {"threshold": 0.1, "smoothing": 1.5}, "^smoothing must be"),
    ("mass", {"threshold": 0.1, "min": 0}, "^min must be"),
    ("mass", {"threshold": 0.1, "layers": []}, "^layers must be"),
    ("mass", {"threshold": 0.1, "layers": [-1]}, "^layers must be"),
    ("mvw", {"min": 2}, "give m"),
    ("mvw", {"m": 0}, "m must be 1 or more"),
    ("mvw", {"m": 4, "max": 0}, "max must be 1"),
    ("mvw", {"until": "x", "min": 5, "max": 4}, "between min and max: min = 5, max = 4"),
    ("mvw", {"m": 4, "min": 5}, "between min and max: min = 5, m = 4"),
    ("mvw", {"m": 4, "max": 3}, "between min and max: m = 4, max = 3"),
    ("mvw", {"until": []}, "until must not be empty"),
    ("mvw", {"until": ["x", ""]}, "until must not be empty"),
    ("pulse", {"layer": -1}, "^layer must be"),
    ("pulse", {"tau": NAN}, "^tau must be"),
    ("pulse", {"max_ratio": 1.5}, "^max_ratio must be"),
    ("pulse", {"min_ratio": 0.2}, "^min_ratio must be"),
    ("random", {"keep": NAN}, "^keep must be above 0 and at most 1$"),
    ("random", {"keep": 0.5, "seed": -1}, "^seed must be 0 or more$"),
    ("vtw", {"layer": 0}, "^layer must be 1 or more$"),
]


@pytest.mark.parametrize(("name", "fields", "message"), BAD)
def test_bad_fields_are_refused(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_policy(name)(**fields)


TOLD: list[tuple[str, dict[str, Any], str]] = [
    ("dyvte", {"gates": "a/b.st", "min_layer": 3}, "exit by the gates of b.st, not before layer 3"),
    (
        "look-back",
        {"entropy": 2, "words": ["wait"], "steps": 8},
        "looks back at an entropy of 2 or “wait” for 8 tokens",
    ),
    (
        "mvw",
        {"until": "</A>", "min": 4, "max": 64},
        "at </A>, not before 4 tokens, after 64 tokens at the latest",
    ),
    (
        "mvw",
        {"m": 9, "until": ["</A>", "</B>"]},
        "after 9 tokens or image 1 at </A>, image 2 at </B>",
    ),
]


@pytest.mark.parametrize(("name", "fields", "description"), TOLD)
def test_descriptions(name: str, fields: dict[str, Any], description: str) -> None:
    assert load_policy(name)(**fields).describe() == description
