"""A plugin whose hooks raise, one of them half way; what came before is named, but unusable."""

from mvw_cli import AdapterInfo, PolicyInfo, hookimpl


@hookimpl
def mvw_register_adapters(register):
    register(AdapterInfo(name="raising", target="mvw_raising:Nothing", summary="never usable"))
    raise RuntimeError("no licence\nfound")


@hookimpl
def mvw_register_policies(register):
    register(
        PolicyInfo(name="surviving", target="mvw_cli.policies.none:NoWithdrawal", summary="ok")
    )


@hookimpl
def mvw_register_commands(cli):
    raise RuntimeError("no commands either")
