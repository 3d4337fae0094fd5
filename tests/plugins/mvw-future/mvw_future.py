"""A plugin made for a later plugin API."""

from mvw_cli import AdapterInfo, hookimpl


@hookimpl
def mvw_register_adapters(register):
    register(AdapterInfo(name="future", target="mvw_future:Nothing", summary="from 2030", api=2))
