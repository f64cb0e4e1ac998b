"""The numbers of an audit: those of each component and of the total, the first fifth of the run against the last.

    case = measure(rollouts)
    case.components["accuracy"].share

The first and the last fifth are of the steps (at least one each). Intervals take a group as one draw. It judges
nothing (`checks`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aligntune.rewards.audit.attribution import Attribution, attribute
from aligntune.rewards.audit.ranks import (
    Estimate,
    correlation,
    difference,
    group_means,
    group_spans,
    group_variances,
    spearman,
)
from aligntune.rewards.audit.repeats import Repeats, repeats
from aligntune.rewards.audit.report import ComponentAudit

if TYPE_CHECKING:
    from aligntune.rewards.audit.table import Floats, Integers, Rollouts

FIFTH = 5
SAME = 1e-9
"""Values nearer than this are equal: far below any score, above the rounding of a sum."""


@dataclass(frozen=True)
class Case:
    """Everything that the checks look at.

    Attributes:
        first, last: row indices of the first and of the last fifth of the steps.
        early, late: repetition among them.
        metrics: rows of `metrics.jsonl`.
    """

    rollouts: Rollouts
    attribution: Attribution
    components: dict[str, ComponentAudit]
    correlations: dict[tuple[str, str], Estimate]
    first: Integers
    last: Integers
    early: Repeats | None
    late: Repeats | None
    metrics: Sequence[dict[str, Any]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of distinct steps."""
        import numpy as np

        return len(np.unique(self.rollouts.step))

    def change(self, values: Floats, confidence: float) -> Estimate | None:
        """Last fifth less first fifth of (N,) values, with a group as one draw."""
        return change(self.rollouts, values, self.first, self.last, confidence)

    def effect(self, values: Floats) -> float | None:
        """The change over the standard deviation of the groups' means in both fifths, pooled (Cohen's d)."""
        a, b = (_group_values(self.rollouts, values, rows) for rows in (self.first, self.last))
        if len(a) < 2 or len(b) < 2:
            return None
        pooled = math.sqrt((float(a.var(ddof=1)) + float(b.var(ddof=1))) / 2)
        delta = float(b.mean() - a.mean())
        return delta / pooled if pooled > SAME else (math.copysign(math.inf, delta) if abs(delta) > SAME else 0.0)


def measure(rollouts: Rollouts, metrics: Sequence[dict[str, Any]] = ()) -> Case:
    """The numbers of a run."""
    first, last = fifths(rollouts.step)
    attribution = attribute(rollouts)
    shares = attribution.shares()
    audits = {}
    for name in rollouts.names:
        facts, values = rollouts.components[name], rollouts.values(name)
        weight = float(rollouts.weight[name].mean()) if len(rollouts) else 0.0
        audits[name] = component(
            rollouts, name, values, first, last, kind=facts.kind, bounds=facts.bounds, weight=weight, share=shares[name]
        )
    audits["total"] = component(rollouts, "total", rollouts.total, first, last)
    pairs = {}
    for a, b in itertools.combinations(rollouts.names, 2):
        found = correlation(rollouts.values(a), rollouts.values(b), rollouts.group)
        if found is not None:
            pairs[a, b] = found
    early = repeats(rollouts, first)
    return Case(rollouts, attribution, audits, pairs, first, last, early, repeats(rollouts, last), metrics)


def fifths(step: Integers) -> tuple[Integers, Integers]:
    """Row indices of the first and of the last fifth of the steps; both empty where there is one step."""
    import numpy as np

    steps = np.unique(step)
    if len(steps) < 2:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    count = max(1, len(steps) // FIFTH)
    return np.flatnonzero(step <= steps[count - 1]), np.flatnonzero(step >= steps[-count])


def component(
    rollouts: Rollouts,
    name: str,
    values: Floats,
    first: Integers,
    last: Integers,
    *,
    kind: str = "",
    bounds: tuple[float, float] = (-math.inf, math.inf),
    weight: float = 1.0,
    share: float | None = None,
) -> ComponentAudit:
    """The numbers of one column of scores."""
    import numpy as np

    there = values[~np.isnan(values)]
    spans, variances = group_spans(values, rollouts.group), group_variances(values, rollouts.group)
    several = ~np.isnan(spans)
    low, high = bounds
    by_step = group_means(values, np.unique(rollouts.step, return_inverse=True)[1])
    seen = ~np.isnan(by_step)
    return ComponentAudit(
        name=name,
        kind=kind,
        weight=weight,
        range=bounds,
        mean=float(there.mean()) if len(there) else None,
        std=float(there.std(ddof=1)) if len(there) > 1 else None,
        none=float(np.isnan(values).mean()) if len(values) else 0.0,
        within_variance=float(variances[several].mean()) if several.any() else None,
        dead_groups=float((spans[several] <= SAME).mean()) if several.any() else None,
        at_min=float((there <= low + SAME).mean()) if len(there) and math.isfinite(low) else None,
        at_max=float((there >= high - SAME).mean()) if len(there) and math.isfinite(high) else None,
        length=correlation(values, rollouts.length, rollouts.group),
        share=share,
        first=_mean(values[first]),
        last=_mean(values[last]),
        change=change(rollouts, values, first, last, 0.95),
        trend=spearman(by_step[seen], np.flatnonzero(seen)) if seen.sum() > 2 else None,
    )


def change(rollouts: Rollouts, values: Floats, first: Integers, last: Integers, confidence: float) -> Estimate | None:
    """Mean of the last rows less that of the first, with Welch's interval over the groups' means."""
    a, b = (_group_values(rollouts, values, rows) for rows in (first, last))
    return difference(a, b, confidence)


def _group_values(rollouts: Rollouts, values: Floats, rows: Integers) -> Floats:
    import numpy as np

    if not len(rows):
        return np.zeros(0)
    means = group_means(values[rows], np.unique(rollouts.group[rows], return_inverse=True)[1])
    return np.asarray(means[~np.isnan(means)])


def _mean(values: Floats) -> float | None:
    import numpy as np

    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else None
