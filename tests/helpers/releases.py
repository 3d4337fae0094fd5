"""What the transformers that is installed does not serve, of what the newest does."""

from __future__ import annotations

from importlib.util import find_spec

import transformers
from packaging.version import Version
from transformers import cache_utils

RELEASE = Version(transformers.__version__)
NO_CACHE = {"gemma3n", "gemma4"} if not hasattr(cache_utils, "DummyLayer") else set()
"""Model types whose layers share what others hold: caches have no place for these before 5.23."""
UNSERVED = set(NO_CACHE)
"""Model types that are refused, with what they come with."""
if Version("5.18") > RELEASE and find_spec("torchvision") is None:
    UNSERVED |= {"smolvlm"}  # its image processor is torchvision's
