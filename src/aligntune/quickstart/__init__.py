"""The quickstart: a small base model of our own, problems with checkable answers, and the story that joins them.

`problems` makes the data, `base/` holds the model (trained by `scripts/train_base_model.py`), `story` runs the stages.
"""

from __future__ import annotations

from pathlib import Path

BASE_MODEL = Path(__file__).parent / "base"
"""Folder of the embedded base model, in the Hugging Face layout."""
