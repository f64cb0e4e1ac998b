"""Code: write programs for each task, run them against its tests in the sandbox, and give pass@k.

The tests are the columns of the published sets: `test_list` (MBPP), `test` with `entry_point` (HumanEval), `cases`
(input and output). The program is the answer's last fenced block, else the answer; where the prompt is the beginning
of a program (HumanEval), the answer goes on with it. Programs run only in `aligntune.grading.sandbox`.

`pass@k` is the unbiased estimator over `num_samples` answers (Chen et al. 2021, arXiv:2107.03374); `tests_passed` is
the mean share of tests. Each item has the sandbox's verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.errors import ValidationError
from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.metrics.passing import PassAtKMetric
from aligntune.eval.tasks.base import GENERATION, EvalKind, Row, Subject, answers, generation_faults, pass_k_faults

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings, EvalTask

COLUMNS = ("test_list", "test", "entry_point", "test_setup_code", "cases")


class Code(EvalKind):
    """`pass@k` for each k, `tests_passed`, `tokens` and `finished`."""

    options = GENERATION | {"pass_k", "timeout", "require"}

    @classmethod
    def faults(cls, task: EvalTask) -> list[tuple[str, str]]:
        """k samples are needed for pass@k."""
        return generation_faults(task) + pass_k_faults(task)

    def check(self, rows: Sequence[Row], rewards: Any = None) -> None:
        """Every row must have tests."""
        super().check(rows, rewards)
        for i, row in enumerate(rows):
            if not tests_of(row):
                raise ValidationError(
                    f"row {i} has no tests; its columns are {', '.join(sorted(row))}",
                    hint="code needs test_list, test and entry_point, or cases (map your columns)",
                )

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """Answers, each with its program, the share of tests that it passes, and what went wrong."""
        from aligntune.grading.code import judge, program

        by_id = dict(zip(ids, rows, strict=True))
        found = []
        for item in answers(rows, ids, settings, subject):
            row = by_id[item["id"]]
            source = program(item["output"], _begun(row), row.get("entry_point"))
            result = judge(source, tests_of(row), timeout=settings.timeout, require=settings.require)
            share = result.passed / result.total if result.total else 0.0
            found.append({
                **item,
                "program": source,
                "tests_passed": share,
                "correct": float(result.total > 0 and result.passed == result.total),
                "verdict": result.verdict,
            })  # fmt: skip
        return found

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """pass@k in the order of the settings."""
        passed: list[Metric] = [PassAtKMetric(k) for k in settings.pass_k]
        return [
            *passed,
            MeanMetric("tests_passed"),
            MeanMetric("tokens", higher_is_better=False),
            MeanMetric("finished"),
        ]


def tests_of(row: Row) -> Any:
    """The row's tests, as the rewards for code read them."""
    from aligntune.grading.code import read_tests

    return read_tests(**{name: row.get(name) for name in COLUMNS})


def _begun(row: Row) -> str | None:
    """The prompt as the beginning of a program."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return prompt
    return str(prompt[-1]["content"]) if len(prompt) == 1 else None
