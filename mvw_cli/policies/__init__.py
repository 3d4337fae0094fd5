"""The policies that come with mvw, registered through the same door as anyone else's."""

from collections.abc import Callable

from mvw_cli.hookspecs import hookimpl
from mvw_cli.policy import PolicyInfo


@hookimpl
def mvw_register_policies(register: Callable[[PolicyInfo], None]) -> None:
    register(
        PolicyInfo(
            name="mvw",
            target="mvw_cli.policies.mvw:Mvw",
            summary="withdraw all vision tokens after m generated tokens, or at a tag",
        )
    )
    register(
        PolicyInfo(
            name="dyvte",
            target="mvw_cli.calibrate.dyvte.policy:Dyvte",
            summary="all vision tokens leave in the prefill, at a layer that trained gates choose",
        )
    )
    register(
        PolicyInfo(
            name="vtw",
            target="mvw_cli.policies.vtw:Vtw",
            summary="all vision tokens leave in the prefill, at a given layer",
        )
    )
    register(
        PolicyInfo(
            name="fastv",
            target="mvw_cli.policies.fastv:FastV",
            summary="from a layer on, keep the vision tokens that the question attends to most",
        )
    )
    register(
        PolicyInfo(
            name="random",
            target="mvw_cli.policies.random:Random",
            summary="from a layer on, keep a random part of the vision tokens",
        )
    )
    register(
        PolicyInfo(
            name="downsample",
            target="mvw_cli.policies.downsample:Downsample",
            summary="from a layer on, keep the vision tokens on a coarser grid",
        )
    )
    register(
        PolicyInfo(
            name="mass",
            target="mvw_cli.policies.mass:Mass",
            summary="withdraw all vision tokens once little attention goes to them",
        )
    )
    register(
        PolicyInfo(
            name="anneal",
            target="mvw_cli.policies.anneal:Anneal",
            summary="thin the vision tokens out by layer and by generated length",
        )
    )
    register(
        PolicyInfo(
            name="pulse",
            target="mvw_cli.policies.pulse:Pulse",
            summary="attend to the few vision tokens that matter in each step; frees no memory",
        )
    )
    register(
        PolicyInfo(
            name="look-back",
            target="mvw_cli.policies.look_back:LookBack",
            summary="bring back what the policies before it withdraw, when a trigger fires",
        )
    )
    register(
        PolicyInfo(
            name="none",
            target="mvw_cli.policies.none:NoWithdrawal",
            summary="keep every vision token to the end",
        )
    )
