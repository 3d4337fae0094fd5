"""`mvw`: run reasoning vision-language models and take their vision tokens away once read.

The public names below are all that a plugin needs. They are resolved lazily, so importing
this package never imports torch, transformers or PIL.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "mvw_cli.adapter": "Adapter AdapterInfo Answer LoadedModel ModelSpec Patch VisionLayout "
    "clipped_patch parse_stages parse_thinking",
    "mvw_cli.errors": "BadImage ExitCode ModelProblem MvwError NotFetched OutOfMemory UsageProblem",
    "mvw_cli.hookspecs": "hookimpl",
    "mvw_cli.machine.checkpoint": "checkpoint_problem locate_weights lora_base on_the_hub",
    "mvw_cli.policy": "Attend AttendView Decide Decision LayerView PolicyInfo Restore Select "
    "Signals StepView Withdraw WithdrawalPolicy",
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from mvw_cli.adapter import Adapter as Adapter
    from mvw_cli.adapter import AdapterInfo as AdapterInfo
    from mvw_cli.adapter import Answer as Answer
    from mvw_cli.adapter import LoadedModel as LoadedModel
    from mvw_cli.adapter import ModelSpec as ModelSpec
    from mvw_cli.adapter import Patch as Patch
    from mvw_cli.adapter import VisionLayout as VisionLayout
    from mvw_cli.adapter import clipped_patch as clipped_patch
    from mvw_cli.adapter import parse_stages as parse_stages
    from mvw_cli.adapter import parse_thinking as parse_thinking
    from mvw_cli.errors import BadImage as BadImage
    from mvw_cli.errors import ExitCode as ExitCode
    from mvw_cli.errors import ModelProblem as ModelProblem
    from mvw_cli.errors import MvwError as MvwError
    from mvw_cli.errors import NotFetched as NotFetched
    from mvw_cli.errors import OutOfMemory as OutOfMemory
    from mvw_cli.errors import UsageProblem as UsageProblem
    from mvw_cli.hookspecs import hookimpl as hookimpl
    from mvw_cli.machine.checkpoint import checkpoint_problem as checkpoint_problem
    from mvw_cli.machine.checkpoint import locate_weights as locate_weights
    from mvw_cli.machine.checkpoint import lora_base as lora_base
    from mvw_cli.machine.checkpoint import on_the_hub as on_the_hub
    from mvw_cli.policy import Attend as Attend
    from mvw_cli.policy import AttendView as AttendView
    from mvw_cli.policy import Decide as Decide
    from mvw_cli.policy import Decision as Decision
    from mvw_cli.policy import LayerView as LayerView
    from mvw_cli.policy import PolicyInfo as PolicyInfo
    from mvw_cli.policy import Restore as Restore
    from mvw_cli.policy import Select as Select
    from mvw_cli.policy import Signals as Signals
    from mvw_cli.policy import StepView as StepView
    from mvw_cli.policy import Withdraw as Withdraw
    from mvw_cli.policy import WithdrawalPolicy as WithdrawalPolicy


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mvw_cli' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
