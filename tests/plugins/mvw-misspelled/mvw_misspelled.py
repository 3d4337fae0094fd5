"""A plugin with a hook that there is not."""

from mvw_cli import hookimpl


@hookimpl
def mvw_register_adaptors(register):
    raise AssertionError("never called")
