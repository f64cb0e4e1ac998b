"""Answers to a few fixed prompts over time, for people to read side by side.

>>> samples = SampleLogger(["12+34=?"], max_new_tokens=8)          # shares: 0, 50 and 100% of training
>>> for step in range(201):
...     if (share := samples.due(step, 200)) is not None:
...         samples.log(model, tokenizer, step, share)             # at the steps 0, 100 and 200
>>> samples.side_by_side()
[{'prompt': '12+34=?', 'reference': None, 'answers': {0: '12+', 100: '46', 200: '#### 46'}}]

A share of training is the step `round(share x all steps)`; two shares that fall on one step are one. A run of AlignTune
has one of these (`logging.samples_at`, `core.measuring`), and a loop of one's own can have one. A text is one turn of
the user where the tokenizer has a chat template. Answers are greedy unless a temperature is given, so that a change
between two steps is a change of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligntune.errors import ValidationError
from aligntune.eval.generation import Prompt, generate_texts
from aligntune.utils.files import append_line, read_lines

SHARES = (0.0, 0.5, 1.0)
"""Of training: before the first step, half way, and the model that is saved."""


class SampleLogger:
    """Records answers of a model to fixed prompts.

    Args:
        prompts: strings or message lists; None for a subclass with its own `answers`.
        references: the right answers, shown beside; one per prompt.
        shares: of training, in [0, 1], at which `due` says that answers are wanted.
        path: a JSON-lines file that gets every row too (`samples.jsonl` of a run folder); what it holds already counts
            as answered. None keeps the rows in memory.
        max_new_tokens: most tokens per answer (as `evaluation.max_new_tokens`).
        temperature: 0 decodes greedily.
        batch_size: sequences per forward pass.
        seed: of sampling.

    Attributes:
        rows: all rows, oldest first: step, share (where one was given), prompt, answer, reference (where given).
        answered: the (step, share) of the rows.

    Raises:
        ValidationError: no prompts, another number of references, or a share outside [0, 1].
    """

    def __init__(
        self,
        prompts: Sequence[Prompt] | None,
        *,
        references: Sequence[Any] | None = None,
        shares: Sequence[float] = SHARES,
        path: str | Path | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        batch_size: int = 8,
        seed: int = 42,
    ) -> None:
        given = prompts if references is None else references
        if prompts is not None and (not prompts or len(given or ()) != len(prompts)):
            raise ValidationError(
                f"{len(prompts)} prompts and {len(references or [])} references", hint="give one reference per prompt"
            )
        if bad := [share for share in shares if not 0 <= share <= 1]:
            raise ValidationError(f"{bad[0]:g} is no share of training", hint="shares lie between 0 and 1")
        self.prompts = list(prompts or [])
        self.references = None if references is None else list(references)
        self.shares = sorted(set(shares))
        self.path = Path(path) if path is not None else None
        self.options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "batch_size": batch_size,
            "seed": seed,
        }
        self.rows: list[dict[str, Any]] = read_lines(self.path) if self.path is not None else []
        self.answered = {(row.get("step"), row.get("share")) for row in self.rows}

    def due(self, step: int, total: int) -> float | None:
        """The share of training that falls on this step, the largest if there are several; None if none does."""
        return max((share for share in self.shares if round(share * total) == step), default=None)

    def log(self, model: Any, tokenizer: Any, step: int, share: float | None = None) -> list[dict[str, Any]]:
        """Answer the prompts and keep the rows, unless this share was answered at this step before.

        Args:
            model: a causal language model; it is left in the mode that it was in.
            tokenizer: its tokenizer.
            step: optimizer steps done.
            share: of training, as `due` gives it; without one the answers are always written.

        Returns:
            The new rows.
        """
        if share is not None and (step, share) in self.answered:
            return []
        mark = {"step": step} if share is None else {"step": step, "share": share}
        rows = [{**mark, **row} for row in self.answers(model, tokenizer)]
        self.write(rows)
        self.rows += rows
        self.answered.add((step, share))
        return rows

    def answers(self, model: Any, tokenizer: Any) -> list[dict[str, Any]]:
        """One row for each prompt, with `prompt` and `answer`."""
        asked = [as_turn(prompt, tokenizer) for prompt in self.prompts]
        texts = [text for (text,) in generate_texts(model, tokenizer, asked, **self.options)]
        rows = [{"prompt": prompt, "answer": text} for prompt, text in zip(self.prompts, texts, strict=True)]
        if self.references is None:
            return rows
        return [{**row, "reference": right} for row, right in zip(rows, self.references, strict=True)]

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows to the file, if there is one."""
        for row in rows if self.path is not None else ():
            append_line(self.path, row)  # type: ignore[arg-type]

    def side_by_side(self) -> list[dict[str, Any]]:
        """For each prompt its reference and the answers by step, oldest first."""
        table: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            entry = {"prompt": row["prompt"], "reference": row.get("reference"), "answers": {}}
            table.setdefault(str(row["prompt"]), entry)["answers"][row["step"]] = row["answer"]
        return list(table.values())


def as_turn(prompt: Prompt, tokenizer: Any) -> Prompt:
    """A text as one turn of the user, where the tokenizer has a chat template; message lists stay."""
    if isinstance(prompt, str) and getattr(tokenizer, "chat_template", None):
        return [{"role": "user", "content": prompt}]
    return prompt
