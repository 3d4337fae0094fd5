"""A plugin that lists well, and whose classes can't be used."""

from mvw_cli import AdapterInfo, PolicyInfo, hookimpl


@hookimpl
def mvw_register_adapters(register):
    for name, target in (
        ("hollow", "mvw_hollow_model:Hollow"),
        ("classless", "mvw_hollow:hookimpl"),
        ("abstract", "mvw_cli.adapter:Adapter"),
    ):
        register(AdapterInfo(name=name, target=target, summary="can't be used"))


@hookimpl
def mvw_register_policies(register):
    register(PolicyInfo(name="hollow", target="mvw_hollow:Missing", summary="can't be used"))
