"""Rewards whose weights depend on the row's task, for training on several tasks at once.

    rewards = TaskRewards(composite, column="task", weights={"math": {"math_correctness": 1.0, "length": 0.0}})

The weight of a component in a row's total is the one that the table gives for the row's task, and the component's own
weight where the table names neither the task nor the component. Everything else is the composite's, its rules too: the
mode, gates and clip hold for every task, and running statistics are those of all tasks together.

Source: the weighted sum of `CompositeReward`. It does not switch components off: one of weight 0 is scored and logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.registry import nearest
from aligntune.rewards.composite import BatchScores, CompositeReward
from aligntune.rewards.composition import Score
from aligntune.rewards.normalise import Normaliser


class TaskRewards(CompositeReward):
    """A `CompositeReward` with weights by task.

    Args:
        composite: what scores.
        column: the data column that names each row's task.
        weights: task to component to weight.

    Raises:
        ConfigurationError: a component that the run does not have, or weights that the composite's rules refuse.
    """

    def __init__(self, composite: CompositeReward, *, column: str, weights: Mapping[str, Mapping[str, float]]) -> None:
        super().__init__(composite.components, composition=composite.rules)
        known = [c.name for c in self.components]
        for task, table in weights.items():
            for name in table:
                if name not in known:
                    raise ConfigurationError(
                        f"algo.task_weights.{task}: there is no reward '{name}'", hint=nearest(name, known)
                    )
        self.column = column
        self._tasks = {
            task: CompositeReward(
                [replace(c, weight=t.get(c.name, c.weight)) for c in self.components],
                composition=replace(self.rules, clip=None),  # one clip for all tasks, after their totals
            )
            for task, t in weights.items()
        }
        if self.rules.normalise_of == "components" and self.rules.normalise != "none":
            counted = [
                c.name for c in self.components if any(c.weight for whole in self._all for c in whole.components)
            ]
            self.normaliser = Normaliser(self.rules, counted)

    @property
    def _all(self) -> list[CompositeReward]:
        return [self, *self._tasks.values()]

    @property
    def plain(self) -> bool:
        """False: no one weight belongs to a component."""
        return False

    @property
    def bounds(self) -> tuple[float, float]:
        lows, highs = zip(*(whole.composition.bounds for whole in self._all), strict=True)
        low, high = self.composition.clipped([min(lows), max(highs)])
        return cast("tuple[float, float]", (low, high))

    def check_columns(self, present: Sequence[str]) -> None:
        super().check_columns(present)
        if self.column not in present:
            raise ValidationError(
                f"algo.task_weights needs the column '{self.column}' (algo.task_column), which the data do not have",
                hint=f"the data have: {', '.join(sorted(present)) or 'none'}",
            )

    def check_tasks(self, found: set[str]) -> list[str]:
        """Refuse a table for a task that no row has; one sentence for the tasks without a table.

        Raises:
            ConfigurationError: names the task and what the data have.
        """
        for task in self._tasks:
            if task not in found:
                raise ConfigurationError(
                    f"algo.task_weights: no row has the task '{task}'", hint=nearest(task, sorted(found))
                )
        rest = sorted(found - set(self._tasks))
        return [f"rows of the tasks {', '.join(rest)} take the rewards' own weights"] if rest else []

    def _composed(self, rows: Sequence[Sequence[Score]], columns: Mapping[str, Sequence[Any]]) -> list[Score]:
        return [whole.composition.total(row) for whole, row in zip(self._by_row(columns), rows, strict=True)]

    def _weights(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[float]]:
        tables = [{c.name: c.weight for c in whole.components} for whole in self._by_row(columns)]
        return {c.name: [table[c.name] for table in tables] for c in self.components}

    def _by_row(self, columns: Mapping[str, Sequence[Any]]) -> list[CompositeReward]:
        return [self._tasks.get(str(task), self) for task in columns[self.column]]

    def summary(self, scores: BatchScores, prompts: Sequence[Any] | None = None) -> dict[str, float]:
        """As the composite's, without the shares of the total's variance, which have no one weight here."""
        values = super().summary(scores, prompts)
        return {name: value for name, value in values.items() if not name.endswith("/share")}
