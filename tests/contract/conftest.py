"""Makes helpers importable: those of this folder, and the one that writes a Kimi-VL checkpoint."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "kimi_vl"))
sys.path.insert(0, str(Path(__file__).parent))
