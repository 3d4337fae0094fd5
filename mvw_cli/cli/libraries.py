"""The libraries below, kept from talking over mvw on stderr.

Acts through their own environment variables, so it has to be called before they are imported.
"""

from __future__ import annotations

import os
import sys
import warnings


def mute_libraries(*, progress: bool) -> None:
    """Silence log lines, warnings and, unless `progress`, the bars of downloads and loading.

    What the user has set stays as it is.
    """
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_VERBOSITY", "error"),
        ("TORCH_CPP_LOG_LEVEL", "ERROR"),
    ):
        os.environ.setdefault(name, value)
    if not progress:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from mvw_cli.errors import PluginWarning

    warnings.simplefilter("ignore")
    warnings.simplefilter("always", PluginWarning)


def stay_offline() -> None:
    """Keep the hub's library off the network, whichever adapter calls it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    loaded = sys.modules.get("huggingface_hub.constants")
    if loaded is not None:  # a plugin was quicker, and the variable has been read
        loaded.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
