"""Where the checkout and the committed files of other libraries lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "tests" / "engine" / "saes" / "checkpoints"
