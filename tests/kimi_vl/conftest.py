"""Makes the helpers of this folder importable under pytest's importlib mode."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # Tiny models lose more to the hand-over between threads than they gain.
    torch.set_num_threads(1)
