from __future__ import annotations

import sys
from pathlib import Path

# made_up.py is imported by name; import mode importlib leaves sys.path as it is.
sys.path.insert(0, str(Path(__file__).resolve().parent))
