"""Mean reward of answers, in the units of the reward.

>>> MeanRewardMetric().compute([{"reward": 1.0}, {"reward": None}]).missing
1

A reward of None means that it does not apply to the item: the item is left out and counted.
"""

from __future__ import annotations

from aligntune.eval.metrics.base import MeanMetric


class MeanRewardMetric(MeanMetric):
    """Mean of the field `reward`, or of a component's.

    Args:
        field: of the items.
        name: None takes the field's.
    """

    why_missing = "the reward does not apply to the item (None), or was skipped after an error"

    def __init__(self, field: str = "reward", name: str | None = None) -> None:
        super().__init__(field, name)
