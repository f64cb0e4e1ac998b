"""Reward: generate an answer to each prompt and score it with the rewards of a run (`aligntune.rewards`).

The total is the weighted sum that policy optimisation would train on; each component has a metric of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.errors import ValidationError
from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.metrics.reward import MeanRewardMetric
from aligntune.eval.tasks.base import GENERATION, EvalKind, Row, Subject, answers, generation_faults

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings, EvalTask

PREFIX = "rewards/"
"""Before a component's name (TRL's metric names)."""


class Reward(EvalKind):
    """`reward`, `rewards/<name>`, with the mean length of the answers and the share that ended by themselves."""

    schema = Schema.PROMPT
    options = GENERATION | {"rewards", "composition"}

    @classmethod
    def faults(cls, task: EvalTask) -> list[tuple[str, str]]:
        """Rewards must be given."""
        missing = [] if task.rewards else [("rewards", "is missing: the kind reward needs at least one")]
        return missing + generation_faults(task)

    def check(self, rows: Sequence[Row], rewards: Any = None) -> None:
        """Rewards, and the columns that they read, must be there."""
        super().check(rows, rewards)
        if rewards is None:
            raise ValidationError("the kind reward needs rewards", hint="pass rewards=build_rewards([...])")
        present = {name for row in rows for name in row}
        rewards.check_columns([*present, "prompt", "completion"])

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """Answers, each with its total and component scores."""
        items = answers(rows, ids, settings, subject)
        k = settings.num_samples
        names = {name for row in rows for name in row}
        columns = {name: [row.get(name) for row in rows for _ in range(k)] for name in sorted(names)}
        outputs = [item["output"] for item in items]
        columns["completion_ids"] = subject.tokenizer(outputs, add_special_tokens=False)["input_ids"]
        scores = subject.rewards.score_batch(outputs, columns)
        for i, item in enumerate(items):
            item["reward"] = scores.total[i]
            item.update({PREFIX + name: values[i] for name, values in scores.components.items()})
        return items

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """The total first, then the components."""
        names = [name for name in (items[0] if items else {}) if name.startswith(PREFIX)]
        parts: list[Metric] = [MeanRewardMetric(name) for name in names]
        return [MeanRewardMetric(), *parts, MeanMetric("tokens", higher_is_better=False), MeanMetric("finished")]
