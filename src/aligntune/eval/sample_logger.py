"""Answers to a few fixed prompts over time, for people to read side by side.

>>> samples = SampleLogger(["12+34=?"], max_new_tokens=8)
>>> samples.log(model, tokenizer, step=0); samples.log(model, tokenizer, step=100)
>>> samples.side_by_side()
[{'prompt': '12+34=?', 'reference': None, 'answers': {0: '12+', 100: '#### 46'}}]

Answers are greedy unless a temperature is given, so that a change between two steps is a change of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligntune.errors import ValidationError
from aligntune.eval.generation import Prompt, generate_texts
from aligntune.utils.files import append_line


class SampleLogger:
    """Records answers of a model to fixed prompts.

    Args:
        prompts: strings or message lists.
        references: the right answers, shown beside; one per prompt.
        path: a JSON-lines file that gets every row too (`samples.jsonl` of a run folder); None keeps them in memory.
        max_new_tokens: most tokens per answer (as `evaluation.max_new_tokens`).
        temperature: 0 decodes greedily.
        batch_size: sequences per forward pass.
        seed: of sampling.

    Raises:
        ValidationError: no prompts, or another number of references.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        references: Sequence[Any] | None = None,
        path: str | Path | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        batch_size: int = 8,
        seed: int = 42,
    ) -> None:
        if not prompts or (references is not None and len(references) != len(prompts)):
            raise ValidationError(
                f"{len(prompts)} prompts and {len(references or [])} references", hint="give one reference per prompt"
            )
        self.prompts = list(prompts)
        self.references = list(references) if references is not None else [None] * len(prompts)
        self.path = Path(path) if path is not None else None
        self.options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "batch_size": batch_size,
            "seed": seed,
        }
        self.rows: list[dict[str, Any]] = []

    def log(self, model: Any, tokenizer: Any, step: int) -> list[dict[str, Any]]:
        """Generate the answers at `step` and keep them; returns the rows (step, prompt, answer, reference)."""
        texts = generate_texts(model, tokenizer, self.prompts, **self.options)
        rows = [
            {"step": step, "prompt": prompt, "answer": answer, "reference": reference}
            for prompt, (answer,), reference in zip(self.prompts, texts, self.references, strict=True)
        ]
        self.rows += rows
        if self.path is not None:
            for row in rows:
                append_line(self.path, row)
        return rows

    def side_by_side(self) -> list[dict[str, Any]]:
        """For each prompt its reference and the answers by step."""
        count = len(self.prompts)
        return [
            {
                "prompt": prompt,
                "reference": self.references[i],
                "answers": {row["step"]: row["answer"] for row in self.rows[i::count]},
            }
            for i, prompt in enumerate(self.prompts)
        ]
