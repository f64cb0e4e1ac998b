"""A kind of evaluation from one function: the model writes an answer to each prompt, and the function scores it.

    @EvalRegistry.register("polite")
    def polite(output, row):
        return float("please" in output.lower())

`row` is the prepared row with all its columns. A number is the item's score, a truth value counts as 1 or 0, and None
leaves the item out, counted. Scores of 0 and 1 alone have Wilson's interval, others Student's t. A kind that reads the
model's probabilities, or has several metrics, is a class (`EvalKind`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from aligntune.algorithms.base import Schema
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.tasks.base import GENERATION, EvalKind, Row, Subject, answers, generation_faults

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings, EvalTask

Score = Callable[[str, Mapping[str, Any]], "float | None"]


class FunctionKind(EvalKind):
    """The function's score under its name, `tokens`, and the share that `finished`."""

    schema = Schema.PROMPT
    options = GENERATION
    function: ClassVar[Score]
    name: ClassVar[str]

    @classmethod
    def faults(cls, task: EvalTask) -> list[tuple[str, str]]:
        """Contradictory generation settings."""
        return generation_faults(task)

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """Answers, each with its score under the function's name.

        Raises:
            ValidationError: the function raised, or returned something else than a number or None.
        """
        by_id = dict(zip(ids, rows, strict=True))
        return [
            {**item, self.name: self._score(item["output"], by_id[item["id"]])}
            for item in answers(rows, ids, settings, subject)
        ]

    def _score(self, output: str, row: Row) -> float | None:
        try:
            value = type(self).function(output, row)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
            raise ValidationError(
                f"{self.name} raised {type(e).__name__} on the answer {output[:60]!r}: {e}",
                hint=f"the row has the columns {', '.join(sorted(row))}; return None where there is no score",
            ) from e
        if value is None:
            return None
        if not isinstance(value, (bool, int, float)) or not math.isfinite(value):
            raise ValidationError(
                f"{self.name} returned {value!r} for the answer {output[:60]!r}",
                hint="return a finite number, or None where there is no score",
            )
        return float(value)

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """The function's mean first."""
        return [MeanMetric(self.name), MeanMetric("tokens", higher_is_better=False), MeanMetric("finished")]


def function_kind(function: Score, name: str) -> type[FunctionKind]:
    """The kind that scores by a function of (output, row).

    Args:
        function: see the module.
        name: of the metric, where the function has none of its own.

    Raises:
        ConfigurationError: it does not take two arguments.
    """
    try:
        inspect.signature(function).bind("", {})
    except (TypeError, ValueError) as e:
        raise ConfigurationError(
            f"{name} cannot score an answer: {e}",
            hint="write a function of (output, row) that returns a number or None",
        ) from e
    called = getattr(function, "__name__", name)
    metric = called if called.isidentifier() else name.rpartition(":")[2]  # a lambda has no name
    about = {
        "__module__": getattr(function, "__module__", __name__),
        "__qualname__": called,
        "__doc__": function.__doc__,
    }
    return type(called, (FunctionKind,), {"function": staticmethod(function), "name": metric, **about})
