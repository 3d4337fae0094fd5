"""Makes the helper importable that writes a Kimi-VL checkpoint as it lies on the hub."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "kimi_vl"))
