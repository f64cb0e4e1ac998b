"""Statistics of a scored batch for logs, each component under `rewards/<name>/`.

    summary(components, scores, prompts)      # {"rewards/length/mean": 0.4, "rewards/length/share": 0.9, ...}

`mean`, `std` (n - 1), `min`, `max`; `none` (share without a score); `at_min`, `at_max` (share at the bounds, where the
range is finite); `within_group_var` (variance among the answers to one prompt, averaged over prompts, which is all that
group-relative algorithms learn from; needs prompts); `share` of the total's variance, weight x cov(component, total) /
var(total), which adds up to 1 over the components of a plain sum. What is undefined is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligntune.rewards.composite import BatchScores, Component

Score = float | None


def summary(
    components: Sequence[Component], scores: BatchScores, prompts: Sequence[Any] | None, *, shares: bool
) -> dict[str, float]:
    """The statistics of one batch.

    Args:
        components: of the composite that scored it.
        scores: N rows.
        prompts: N prompts, the answers to one of them together.
        shares: whether totals are weighted sums of the components.
    """
    out: dict[str, float] = {}
    totals = scores.composed or scores.total
    groups = None if prompts is None else prompt_groups(prompts)
    for c in components:
        values = scores.components[c.name]
        present = [v for v in values if v is not None]
        stats: dict[str, float | None] = {"none": 1 - len(present) / len(values) if values else None}
        if present:
            low, high = c.bounds
            stats |= {"mean": mean(present), "std": variance(present) ** 0.5, "min": min(present), "max": max(present)}
            stats["at_min"] = mean([float(v == low) for v in present]) if math.isfinite(low) else None
            stats["at_max"] = mean([float(v == high) for v in present]) if math.isfinite(high) else None
            stats["within_group_var"] = within(values, groups) if groups is not None else None
            stats["share"] = share(c.weight, values, totals) if shares else None
        out |= {f"rewards/{c.name}/{k}": v for k, v in stats.items() if v is not None}
        out |= {f"rewards/{c.name}/{k}": v for k, v in c.reward.gauges().items()}
    out |= {f"rewards/{k}": float(v) for k, v in scores.stats.items() if "/" in k and not k.endswith("/none")}
    out["rewards/rows_dropped"] = float(scores.stats.get("rows_dropped", 0))
    composed = [t for t in scores.composed if t is not None]
    if composed and scores.composed != scores.total:
        out["rewards/composed"] = mean(composed)
    return out


def prompt_groups(prompts: Sequence[Any], size: int | None = None) -> list[int]:
    """For each row the number of its group: `size` rows each, or runs of equal prompts where it is None.

    >>> prompt_groups(["p", "p", "q", "p"])
    [0, 0, 1, 2]
    """
    if size is not None and len(prompts) % size == 0:
        return [i // size for i in range(len(prompts))]
    numbers = [0] if len(prompts) else []
    for before, after in pairwise(prompts):
        numbers.append(numbers[-1] + (before != after))
    return numbers


def mean(values: Sequence[float]) -> float:
    """Mean of at least one number."""
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    """Variance (n - 1); 0 below two numbers."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1)


def within(values: Sequence[Score], groups: Sequence[int]) -> float | None:
    """Mean variance within groups; None if no group has two scores."""
    found: dict[int, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        if value is not None:
            found.setdefault(group, []).append(value)
    variances = [variance(group) for group in found.values() if len(group) > 1]
    return mean(variances) if variances else None


def share(weight: float, values: Sequence[Score], totals: Sequence[Score]) -> float | None:
    """weight x cov(component, total) / var(total) over the rows that have both; None where the total does not vary."""
    pairs = [(v, t) for v, t in zip(values, totals, strict=True) if v is not None and t is not None]
    if len(pairs) < 2:
        return None
    mean_v, mean_t = mean([v for v, _ in pairs]), mean([t for _, t in pairs])
    spread = math.fsum((t - mean_t) ** 2 for _, t in pairs)
    covariance = math.fsum((v - mean_v) * (t - mean_t) for v, t in pairs)
    return weight * covariance / spread if spread > 0 else None
