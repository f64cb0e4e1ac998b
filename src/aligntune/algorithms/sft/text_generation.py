"""Text generation: continue pre-training on plain text; every token counts. Data: a `text` column."""

from __future__ import annotations

from typing import ClassVar

from aligntune.algorithms.base import Schema, task
from aligntune.algorithms.sft.supervised import Supervised


@task("text_generation", data=Schema.TEXT)
class TextGeneration(Supervised):
    """Cross-entropy on all tokens."""

    inert: ClassVar[dict[str, str]] = {
        **Supervised.inert,
        "logging.samples": "plain text has no prompts to answer",
    }
