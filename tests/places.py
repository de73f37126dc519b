"""Where the checkout and the recorded numbers lie."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
PARITY = Path(__file__).parent / "data" / "parity"
