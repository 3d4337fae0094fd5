"""`mvw`: run reasoning vision-language models and take their vision tokens away once read.

The public names below are all that a plugin needs. They are resolved lazily, so importing
this package never imports torch, transformers or PIL.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "mvw_cli.adapter",
    "AdapterInfo": "mvw_cli.adapter",
    "Answer": "mvw_cli.adapter",
    "LoadedModel": "mvw_cli.adapter",
    "ModelSpec": "mvw_cli.adapter",
    "Patch": "mvw_cli.adapter",
    "VisionLayout": "mvw_cli.adapter",
    "clipped_patch": "mvw_cli.adapter",
    "ExitCode": "mvw_cli.errors",
    "BadImage": "mvw_cli.errors",
    "ModelProblem": "mvw_cli.errors",
    "MvwError": "mvw_cli.errors",
    "NotFetched": "mvw_cli.errors",
    "OutOfMemory": "mvw_cli.errors",
    "UsageProblem": "mvw_cli.errors",
    "Attend": "mvw_cli.policy",
    "AttendView": "mvw_cli.policy",
    "Decide": "mvw_cli.policy",
    "Decision": "mvw_cli.policy",
    "LayerView": "mvw_cli.policy",
    "PolicyInfo": "mvw_cli.policy",
    "Restore": "mvw_cli.policy",
    "Select": "mvw_cli.policy",
    "Signals": "mvw_cli.policy",
    "StepView": "mvw_cli.policy",
    "Withdraw": "mvw_cli.policy",
    "WithdrawalPolicy": "mvw_cli.policy",
    "hookimpl": "mvw_cli.hookspecs",
    "locate_weights": "mvw_cli.machine.facts",
    "on_the_hub": "mvw_cli.machine.facts",
    "parse_stages": "mvw_cli.adapter",
    "parse_thinking": "mvw_cli.adapter",
}
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
    from mvw_cli.machine.facts import locate_weights as locate_weights
    from mvw_cli.machine.facts import on_the_hub as on_the_hub
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
