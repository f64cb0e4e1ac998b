"""Exact match: generate an answer to each prompt and compare it with the reference.

With `match: answer` the final answer is taken out of the text (`aligntune.grading`: a box, `####`, a tag, "the answer
is", the last number) and compared as mathematics; an answer without one is wrong. With `match: text` the whole text,
white space at both ends aside, must equal the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.eval.metrics.accuracy import AccuracyMetric, MathAccuracyMetric
from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.tasks.base import GENERATION, EvalKind, Row, Subject, answers, generation_faults, need_reference

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings, EvalTask


class ExactMatch(EvalKind):
    """`accuracy`, with the mean length of the answers and the share that ended by themselves."""

    schema = Schema.PROMPT
    options = GENERATION | {"match"}

    @classmethod
    def faults(cls, task: EvalTask) -> list[tuple[str, str]]:
        """Contradictory generation settings."""
        return generation_faults(task)

    def check(self, rows: Sequence[Row], rewards: Any = None) -> None:
        """Some row must have a reference."""
        super().check(rows, rewards)
        need_reference(rows, "exact_match")

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """Answers, each with its `prediction`."""
        items = answers(rows, ids, settings, subject)
        if settings.match == "text":
            return [{**item, "prediction": item["output"]} for item in items]
        from aligntune.grading.extract import final_answer
        from aligntune.grading.math import gold_answer

        golds = {ids[i]: gold_answer(row.get("reference")) for i, row in enumerate(rows)}
        return [{**item, "prediction": final_answer(item["output"], golds[item["id"]])} for item in items]

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """Accuracy first."""
        accuracy = AccuracyMetric() if settings.match == "text" else MathAccuracyMetric()
        return [accuracy, MeanMetric("tokens", higher_is_better=False), MeanMetric("finished")]
