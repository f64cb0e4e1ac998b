"""Exact match: generate an answer to each prompt and compare it with the reference.

With `match: answer` the final answer is taken out of the text (`aligntune.grading`: a box, `####`, a tag, "the answer
is", the last number) and compared as mathematics; an answer without one is wrong. With `match: text` the whole text,
white space at both ends aside, must equal the reference.

Several samples per prompt also give `majority` (is the most frequent answer right?) and `pass@k` (is one of k right?).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.eval.metrics.accuracy import AccuracyMetric, MathAccuracyMetric
from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.metrics.majority import MajorityMetric
from aligntune.eval.metrics.passing import PassAtKMetric
from aligntune.eval.tasks.base import (
    GENERATION,
    EvalKind,
    Row,
    Subject,
    answers,
    generation_faults,
    need_reference,
    pass_k_faults,
)

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings, EvalTask


class ExactMatch(EvalKind):
    """`accuracy`, of several samples also `majority` and `pass@k`; `tokens`, and the share that `finished`."""

    schema = Schema.PROMPT
    options = GENERATION | {"match", "pass_k"}

    @classmethod
    def faults(cls, task: EvalTask) -> list[tuple[str, str]]:
        """Contradictory generation settings."""
        return generation_faults(task) + pass_k_faults(task)

    def check(self, rows: Sequence[Row], rewards: Any = None) -> None:
        """Some row must have a reference."""
        super().check(rows, rewards)
        need_reference(rows, "exact_match")

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """Answers, each with its `prediction`."""
        written = answers(rows, ids, settings, subject)
        items = [
            {**item, "prediction": said, "empty": float(not item["output"].strip())}
            for item, said in zip(written, _said(written, rows, ids, settings), strict=True)
        ]
        if settings.num_samples == 1:
            return items
        grade = self._accuracy(settings).score
        return [{**item, "correct": grade(item)} for item in items]

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """Accuracy first."""
        samples: list[Metric] = []
        if settings.num_samples > 1:
            samples = [MajorityMetric(settings.match), *(PassAtKMetric(k) for k in settings.pass_k)]
        return [
            self._accuracy(settings),
            *samples,
            MeanMetric("empty", higher_is_better=False),
            MeanMetric("tokens", higher_is_better=False),
            MeanMetric("finished"),
        ]

    @staticmethod
    def _accuracy(settings: EvalSettings) -> Metric:
        return AccuracyMetric() if settings.match == "text" else MathAccuracyMetric()


def _said(
    items: Sequence[Mapping[str, Any]], rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings
) -> list[Any]:
    """What each answer says: its whole text, or the final answer in it."""
    if settings.match == "text":
        return [item["output"] for item in items]
    from aligntune.grading.extract import final_answer
    from aligntune.grading.math import gold_answer

    golds = {i: gold_answer(row.get("reference")) for i, row in zip(ids, rows, strict=True)}
    return [final_answer(item["output"], golds[item["id"]]) for item in items]
