"""Makes the helpers of tests/profiling, and the tiny models of tests/engine, importable."""

import sys
from pathlib import Path

import pytest
import torch

for folder in ("explain", "profiling", "engine"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
