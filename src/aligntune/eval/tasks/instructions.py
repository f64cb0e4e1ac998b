"""Instruction following by IFEval's published checks (Zhou et al. 2023, arXiv:2311.07911).

Rows carry `instruction_id_list` and `kwargs` as in IFEval's data. Per answer: the share of its instructions that it
follows, and whether it follows all of them, strictly and loosely (the text may also lose its first line, its last
line or its asterisks; section 2.2 of the paper).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.errors import ValidationError
from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.metrics.corpus import CorpusMetric
from aligntune.eval.tasks.base import GENERATION, EvalKind, Row, Subject, answers, generation_faults

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings, EvalTask


class InstructionShareMetric(CorpusMetric):
    """Share of all instructions that are followed (IFEval's instruction-level accuracy); rows are resampled.

    Args:
        field: of the items, a list of truth values.
        name: of the metric.
    """

    why_missing = "the row has no instructions"

    def __init__(self, field: str, name: str) -> None:
        super().__init__(name)
        self.field, self.requires = field, (field,)

    def statistics(self, item: Mapping[str, Any]) -> list[float] | None:
        """Followed instructions, and instructions."""
        kept = item[self.field]
        return [float(sum(kept)), float(len(kept))] if kept else None

    def combine(self, sums: Sequence[float]) -> float | None:
        """Their ratio."""
        return sums[0] / sums[1] if sums[1] else None


class Instructions(EvalKind):
    """`prompt_strict`, `instruction_strict`, `prompt_loose`, `instruction_loose`, as IFEval reports them."""

    options = GENERATION

    @classmethod
    def faults(cls, task: EvalTask) -> list[tuple[str, str]]:
        """Contradictory generation settings."""
        return generation_faults(task)

    def check(self, rows: Sequence[Row], rewards: Any = None) -> None:
        """Every row must have instructions that are known."""
        super().check(rows, rewards)
        from aligntune.grading.instructions import CHECKS, read_instructions

        for i, row in enumerate(rows):
            given = read_instructions(row.get("instruction_id_list"), row.get("kwargs"))
            unknown = [name for name, _ in given if name not in CHECKS]
            if not given or unknown:
                what = f"the unknown instruction '{unknown[0]}'" if unknown else "no instruction_id_list"
                raise ValidationError(f"row {i} has {what}", hint="the columns are those of IFEval's data")

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """Answers, each with the outcome of every check."""
        from aligntune.grading.extract import strip_reasoning
        from aligntune.grading.instructions import check, read_instructions

        by_id = dict(zip(ids, rows, strict=True))
        found = []
        for item in answers(rows, ids, settings, subject):
            row = by_id[item["id"]]
            given = read_instructions(row["instruction_id_list"], row.get("kwargs"))
            body = strip_reasoning(item["output"])
            strict = [check(name, body, arguments) for name, arguments in given]
            loose = [check(name, body, arguments, loose=True) for name, arguments in given]
            found.append({
                **item,
                "instructions": [name for name, _ in given],
                "strict": strict,
                "loose": loose,
                "all_strict": float(all(strict)),
                "all_loose": float(all(loose)),
            })  # fmt: skip
        return found

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """Strict before loose, prompts before instructions."""
        return [
            MeanMetric("all_strict", "prompt_strict"),
            InstructionShareMetric("strict", "instruction_strict"),
            MeanMetric("all_loose", "prompt_loose"),
            InstructionShareMetric("loose", "instruction_loose"),
            MeanMetric("tokens", higher_is_better=False),
            MeanMetric("finished"),
        ]
