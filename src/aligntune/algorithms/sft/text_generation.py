"""Text generation: continue pre-training on plain text; every token counts. Data: a `text` column."""

from __future__ import annotations

from aligntune.algorithms.base import Schema, task
from aligntune.algorithms.sft.supervised import Supervised


@task("text_generation", data=Schema.TEXT)
class TextGeneration(Supervised):
    """Cross-entropy on all tokens."""
