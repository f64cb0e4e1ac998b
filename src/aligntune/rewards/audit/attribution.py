"""Which component moved the advantage: a split of each row's advantage that adds up to it.

For a weighted sum with a group baseline, with v_ic = w_c s_ic and the mean over the row's group,

    a_ic = k (v_ic - mean v_c),   k = 1 / std of the group's totals (or 1, or that of the batch),   sum over c = a_i.

Example: totals 1.2 and 0 (accuracy 1 and 0 of weight 1, format 1 and 0 of weight 0.2) have deviations 0.6 and -0.6, of
which accuracy holds 0.5 and format 0.1; divided by the standard deviation 0.849 the advantages are 0.707 and -0.707,
of which accuracy holds 0.589. `share` of a component is cov(a_c, a) / var(a); the shares add up to 1.

- k is found from the stored advantages, by least squares through zero in each group, so that no algorithm's rule is
  assumed. What the components leave unexplained (a tracker's baseline, DAPO's penalty for length) is `residual`.
- A total that is no sum (product, minimum, gated ...) is split by Shapley values over the row's components: the mean,
  over all orders, of what a component changes when it goes from its group's mean to its own value (Shapley 1953; the
  baseline as in Lundberg and Lee 2017, arXiv:1705.07874). Centred on the group, they add up as well.
- Rewards that are normalised one by one and then added (`normalize_then_sum`, arXiv:2601.05242) enter as their z-scores
  in the group, with k found for each step.
- Without groups (PPO, PACE) the baseline is the mean of the step.

It says what moved the advantage, and not whether that was right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aligntune.errors import ConfigurationError
from aligntune.rewards.audit.ranks import centred, group_sums, group_variances
from aligntune.rewards.audit.table import SCALE_EPSILON, Rollouts

if TYPE_CHECKING:
    from aligntune.rewards.audit.table import Floats, Integers

EXACT = 8
"""Components up to which all 2^n subsets are tried; above, `ORDERS` random orders and their reverses."""
ORDERS = 64


@dataclass(frozen=True)
class Attribution:
    """Advantages and their parts.

    Attributes:
        advantage: (N,) what is split; NaN for rows without one.
        parts: component to (N,) its part.
        residual: (N,) what no component explains; parts + residual = advantage.
        baseline: "group" or "step".
        how: one sentence on how it was done.
    """

    advantage: Floats
    parts: dict[str, Floats]
    residual: Floats
    baseline: str
    how: str

    def shares(self) -> dict[str, float | None]:
        """cov(part, advantage) / var(advantage) of each component and the `residual`; None where it never varies."""
        return {name: share(part, self.advantage) for name, part in {**self.parts, "residual": self.residual}.items()}


def share(part: Floats, whole: Floats) -> float | None:
    """cov(part, whole) / var(whole) over the rows that have both; None where `whole` never varies."""
    import numpy as np

    both = ~(np.isnan(part) | np.isnan(whole))
    a, b = part[both], whole[both]
    if len(b) < 2 or float(np.ptp(b)) <= 1e-12:
        return None
    b = b - b.mean()
    return float((a - a.mean()) @ b / (b @ b))


def attribute(rollouts: Rollouts) -> Attribution:
    """Split every advantage (or, where there is none, every centred total) over the components."""
    import numpy as np

    cell, baseline = baseline_cells(rollouts)
    scored = ~np.isnan(rollouts.total)
    apart = _normalised_apart(rollouts)
    if apart:
        values = {name: z_scores(rollouts, name) for name in rollouts.names}
        how = "each component is normalised within its group and then weighed"
    else:
        from aligntune.rewards.audit.composed import composed_values

        values, how = composed_values(rollouts, cell)
    values = {name: np.where(scored, part, np.nan) for name, part in values.items()}
    parts = {name: centred(part, cell) for name, part in values.items()}
    advantage, scale, rule = _advantages(rollouts, parts, cell, rollouts.step if apart else cell)
    parts = {name: scale * part for name, part in parts.items()}
    explained = sum(parts.values()) if parts else np.zeros(len(rollouts))
    return Attribution(
        advantage, parts, advantage - explained, baseline, f"{how}, within the {baseline}; the advantage is {rule}"
    )


def baseline_cells(rollouts: Rollouts) -> tuple[Integers, str]:
    """(N,) the cell whose mean is each row's baseline: its group, or its step where most groups have one row."""
    import numpy as np

    _, counts = group_sums(rollouts.total, rollouts.group)
    if float((counts >= 2).sum()) * 2 >= float((counts >= 1).sum()):
        return rollouts.group, "group"
    return np.unique(rollouts.step, return_inverse=True)[1], "step"


def group_advantages(total: Floats, cell: Integers, scale: str, step: Integers) -> Floats:
    """(N,) what GRPO makes of totals: deviations from the cell's mean, over a standard deviation + 1e-4.

    Args:
        total: (N,) NaN for a row without one.
        cell: (N,) the baseline's cells.
        scale: `group` divides by the cell's standard deviation, `batch` by the step's, `none` by nothing.
        step: (N,) steps.
    """
    import numpy as np

    deviation = centred(total, cell)
    if scale == "none":
        return deviation
    places = cell if scale == "group" else np.unique(step, return_inverse=True)[1]
    spread = np.sqrt(np.nan_to_num(group_variances(total, places)))[places]
    return deviation / (spread + SCALE_EPSILON)


def scaling(config: Mapping[str, Any]) -> str:
    """`group`, `batch` or `none`: how the run's algorithm scales deviations."""
    from aligntune.algorithms.base import get_algorithm

    algo = config.get("algo")
    given = algo if isinstance(algo, Mapping) else {"name": algo}
    try:
        fixed = getattr(get_algorithm(str(given.get("name") or "grpo")), "fixed", {})
    except ConfigurationError:  # an algorithm that this version does not have
        fixed = {}
    return str(given.get("scale_rewards") or fixed.get("scale_rewards", "group"))


def shapley(values: Floats, baseline: Floats, total: Callable[[Floats], Floats], rng: Any = None) -> Floats:
    """(N, C) Shapley values: how much of total(values) - total(baseline) each component brings. Rows add up to it.

    Args:
        values: (N, C).
        baseline: (N, C) what an absent component is replaced by.
        total: (M, C) to (M,).
        rng: numpy generator for the orders, where there are more than `EXACT` components.
    """
    import numpy as np

    rows, size = values.shape
    found = np.zeros((rows, size))
    if size <= EXACT:
        masks = np.asarray(list(itertools.product((False, True), repeat=size)))
        totals = {tuple(mask): total(np.where(mask, values, baseline)) for mask in masks}
        for mask in totals:
            for c in range(size):
                if mask[c]:
                    without = (*mask[:c], False, *mask[c + 1 :])
                    others = sum(mask) - 1
                    weight = 1 / (size * math.comb(size - 1, others))
                    found[:, c] += weight * (totals[mask] - totals[without])
        return found
    rng = rng or np.random.default_rng(0)
    orders = [order for _ in range(ORDERS) for o in [rng.permutation(size)] for order in (o, o[::-1])]
    for order in orders:
        now = baseline.copy()
        before = total(now)
        for c in order:
            now[:, c] = values[:, c]
            after = total(now)
            found[:, c] += (after - before) / len(orders)
            before = after
    return found


def weighted_values(rollouts: Rollouts) -> dict[str, Floats]:
    """(N,) weight x value of each component, which add up to the total under the run's policy for missing scores."""
    import numpy as np

    weights = np.stack([rollouts.weight[n] for n in rollouts.names], axis=1) if rollouts.names else np.zeros((0, 0))
    values = np.stack([rollouts.values(n) for n in rollouts.names], axis=1) if rollouts.names else weights
    parts = np.where(weights == 0, 0.0, weights * np.nan_to_num(values))
    if rollouts.composition.get("none") == "renormalise":
        present = np.abs(weights) * ~np.isnan(values)
        whole, there = np.abs(weights).sum(axis=1), present.sum(axis=1)
        parts = parts * np.divide(whole, there, out=np.ones(len(whole)), where=there > 0)[:, None]
    return {name: parts[:, i] for i, name in enumerate(rollouts.names)}


def z_scores(rollouts: Rollouts, name: str) -> Floats:
    """(N,) weight x (score - mean) / (standard deviation + 1e-4) within the group."""
    return rollouts.weight[name] * group_advantages(rollouts.values(name), rollouts.group, "group", rollouts.step)


def _normalised_apart(rollouts: Rollouts) -> bool:
    algo = rollouts.config.get("algo")
    return isinstance(algo, Mapping) and algo.get("reward_aggregation") == "normalize_then_sum"


def _advantages(
    rollouts: Rollouts, parts: dict[str, Floats], cell: Integers, fit: Integers
) -> tuple[Floats, Floats, str]:
    """(N,) advantages, (N,) the factor of the row's parts, and a phrase on where they come from."""
    import numpy as np

    deviation: Floats = np.sum([np.zeros(len(rollouts)), *parts.values()], axis=0)
    place = np.unique(fit, return_inverse=True)[1]
    stored = rollouts.advantage
    if stored is not None and not np.all(np.nan_to_num(stored) == 0):
        advantage, rule = np.where(np.isnan(rollouts.total), np.nan, stored), "the one that was stored"
    elif _normalised_apart(rollouts):
        spread = np.sqrt(np.nan_to_num(group_variances(deviation, place)))[place]
        advantage, rule = deviation / (spread + SCALE_EPSILON), "computed from the components, scaled by the batch"
    else:
        scale = scaling(rollouts.config) if "advantage" in rollouts.absent and cell is rollouts.group else "none"
        advantage = group_advantages(rollouts.total, cell, scale, rollouts.step)
        rule = f"computed from the stored totals (scaled by: {scale})"
    product, _ = group_sums(deviation * advantage, place)
    square, _ = group_sums(np.where(np.isnan(advantage), np.nan, deviation**2), place)
    k = np.divide(product, square, out=np.zeros(len(square)), where=square > 1e-18)
    return advantage, k[place], rule
