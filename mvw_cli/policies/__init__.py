"""The policies that come with mvw, registered through the same hook as anyone else's."""

from collections.abc import Callable

from mvw_cli.hookspecs import hookimpl
from mvw_cli.policy import PolicyInfo

_POLICIES = (
    ("mvw", "policies.mvw:Mvw", "withdraw all vision tokens after m generated tokens, or at a tag"),
    (
        "dyvte",
        "calibrate.dyvte.policy:Dyvte",
        "withdraw in the prefill, at a layer of trained gates",
    ),
    ("vtw", "policies.vtw:Vtw", "withdraw in the prefill, at a given layer"),
    ("fastv", "policies.fastv:FastV", "from a layer on, keep what the question attends to most"),
    ("random", "policies.random:Random", "from a layer on, keep a random part"),
    ("downsample", "policies.downsample:Downsample", "from a layer on, keep a coarser grid"),
    ("mass", "policies.mass:Mass", "withdraw all once little attention goes to them"),
    ("anneal", "policies.anneal:Anneal", "prune the vision tokens by layer and generated length"),
    (
        "pulse",
        "policies.pulse:Pulse",
        "attend to the few that matter in each step; frees no memory",
    ),
    ("look-back", "policies.look_back:LookBack", "restore what others withdraw, on a trigger"),
    ("none", "policies.none:NoWithdrawal", "keep every vision token to the end"),
)
"""Name, class below `mvw_cli`, and summary: a class is imported when its policy is used."""


@hookimpl
def mvw_register_policies(register: Callable[[PolicyInfo], None]) -> None:
    for name, target, summary in _POLICIES:
        register(PolicyInfo(name=name, target=f"mvw_cli.{target}", summary=summary))
