"""Makes the helpers of this folder, and those of tests/profiling and tests/engine, importable."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "profiling", HERE.parent / "engine"):
    sys.path.insert(0, str(folder))
