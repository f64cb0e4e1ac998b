"""Reward accuracy: how often does a reward model, or a list of rewards, score the chosen answer of a pair higher?

Without `rewards` the file's model is the reward model (a classifier with one output); with them their composed total
is the score, and the file's model plays no part. `reward_accuracy` counts a tie one half (Lambert et al. 2024,
arXiv:2403.13787, RewardBench, where the score of a pair is 1 if the chosen answer wins); `reward_margin` is the mean
difference, in the reward's units. It generates nothing. `aligntune rewards validate` measures a reward model further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.core.config.sections import RewardConfig
from aligntune.errors import ValidationError
from aligntune.eval.metrics.base import Metric
from aligntune.eval.metrics.preference import RewardAccuracyMetric, RewardMarginMetric
from aligntune.eval.tasks.base import EvalKind, Row, Subject

if TYPE_CHECKING:
    from aligntune.core.config.sections import ModelConfig
    from aligntune.eval.config import EvalSettings, EvalTask

SIDES = ("chosen", "rejected")


class RewardAccuracy(EvalKind):
    """`reward_accuracy` and `reward_margin` of a reward model, or of rewards."""

    schema = Schema.PREFERENCE
    head = None
    options = frozenset({"rewards", "composition", "max_length"})

    @classmethod
    def faults(cls, task: EvalTask) -> list[tuple[str, str]]:
        """A reward has its own limits."""
        if task.rewards and task.max_length is not None:
            return [("max_length", "has no effect with rewards; write it into the params of a reward model")]
        return []

    @classmethod
    def rewards_for(cls, task: EvalTask, model: ModelConfig) -> list[RewardConfig]:
        """Those of the task, else the file's model as a reward model."""
        if task.rewards:
            return task.rewards
        params = {"path": model.name_or_path, "batch_size": task.batch_size}
        optional = {"revision": model.revision, "max_length": task.max_length}
        params |= {key: value for key, value in optional.items() if value is not None}
        if model.trust_remote_code:
            params["trust_remote_code"] = True
        return [RewardConfig(type="reward_model", params=params)]

    def check(self, rows: Sequence[Row], rewards: Any = None) -> None:
        """Rewards, and the columns that they read, must be there."""
        super().check(rows, rewards)
        if rewards is None:
            raise ValidationError("the kind reward_accuracy needs rewards", hint="pass rewards=build_rewards([...])")
        rewards.check_columns([*{name for row in rows for name in row}, "prompt", "completion"])

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """One item per pair, with the scores of its answers."""
        names = sorted({name for row in rows for name in row} - set(SIDES))
        columns = {name: [row.get(name) for row in rows] for name in names}
        texts = {side: [answer_text(row[side]) for row in rows] for side in SIDES}
        scores = {side: subject.rewards.score_batch(texts[side], columns).total for side in SIDES}
        return [
            {
                "id": i,
                "prompt": row["prompt"],
                **{side: texts[side][k] for side in SIDES},
                **{f"{side}_score": scores[side][k] for side in SIDES},
            }
            for k, (i, row) in enumerate(zip(ids, rows, strict=True))
        ]

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """Accuracy first."""
        found: list[Metric] = [RewardAccuracyMetric(), RewardMarginMetric("chosen_score", "rejected_score")]
        for metric in found:
            metric.why_missing = "an answer of the pair has no reward (None), or was skipped after an error"
        return found


def answer_text(answer: Any) -> str:
    """The text of an answer, given as text or messages."""
    return answer if isinstance(answer, str) else "".join(str(m.get("content") or "") for m in answer)
