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
            name="none",
            target="mvw_cli.policies.none:NoWithdrawal",
            summary="keep every vision token to the end",
        )
    )
