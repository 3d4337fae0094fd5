"""M-step vision withdrawal for vLLM, without a change to vLLM's files.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). It changes
nothing for engines whose `additional_config` has no `mvw`.
"""

from __future__ import annotations


def register() -> None:
    """Let engines that ask for withdrawal have it; may be called more than once."""
    from mvw_cli.vllm.plugin.touchpoints import install

    install()
