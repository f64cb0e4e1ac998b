"""Parts of totals that are no plain weighted sum: by Shapley values, and by what normalisation made of a component.

    parts, how = composed_values(rollouts, cell)      # name to (N,), whose centred sum is the centred total

- product, min, gated, lexicographic: Shapley values of `aligntune.rewards.composition`'s own total; an absent component
  has its cell's mean. A component without a score in a row is absent there throughout, and gets 0.
- components normalised by group: their z-scores in the group.
- components normalised by running mean and deviation, which are not stored: their scales in each step are found by
  least squares from the totals.

A clip, and normalisation of the total, are left to the factor and the residual (`attribution`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from aligntune.errors import AlignTuneError
from aligntune.rewards.audit.ranks import group_means

if TYPE_CHECKING:
    from aligntune.rewards.audit.table import Floats, Integers, Rollouts


@dataclass(frozen=True)
class Part:
    """What a composition must know of a component."""

    name: str
    weight: float
    threshold: float | None
    bounds: tuple[float, float]


def composed_values(rollouts: Rollouts, cell: Integers) -> tuple[dict[str, Floats], str]:
    """(N,) parts of each component, and a phrase on how they were made.

    Args:
        rollouts: of a run with a section `composition`.
        cell: (N,) the cell whose mean is the baseline.
    """
    from aligntune.rewards.audit.attribution import weighted_values, z_scores

    settings = rollouts.composition
    apart = settings.get("normalise_of", "total") == "components"
    if rollouts.mode == "sum" and not (apart and settings.get("normalise", "none") != "none"):
        return weighted_values(rollouts), "weight x deviation from the mean"
    if rollouts.mode == "sum" and settings.get("normalise") == "group":
        parts = {name: z_scores(rollouts, name) for name in rollouts.names}
        return parts, "each component is normalised within its group and then weighed"
    if rollouts.mode == "sum":
        return _running(rollouts), "running scales of each step, found by least squares"
    return _shapley(rollouts, cell)


def _running(rollouts: Rollouts) -> dict[str, Floats]:
    import numpy as np

    weighted = [n for n in rollouts.names if rollouts.weighted(n)]
    parts = {name: np.zeros(len(rollouts)) for name in rollouts.names}
    places = np.unique(rollouts.step, return_inverse=True)[1]
    for step in range(int(places.max()) + 1 if len(places) else 0):
        rows = np.flatnonzero((places == step) & ~np.isnan(rollouts.total))
        if not len(rows):
            continue
        values = np.nan_to_num(np.stack([rollouts.values(n)[rows] for n in weighted], axis=1))
        values, total = values - values.mean(axis=0), rollouts.total[rows] - rollouts.total[rows].mean()
        scales = np.linalg.lstsq(values, total, rcond=None)[0]
        for i, name in enumerate(weighted):
            parts[name][rows] = scales[i] * values[:, i]
    return parts


def _shapley(rollouts: Rollouts, cell: Integers) -> tuple[dict[str, Floats], str]:
    import numpy as np

    from aligntune.rewards.audit.attribution import shapley
    from aligntune.rewards.composition import Composition, Rules

    facts, given = list(rollouts.components.values()), rollouts.composition
    parts = [Part(f.name, f.weight, f.threshold, f.bounds) for f in facts]
    try:
        composition = Composition(parts, Rules(**{f.name: given[f.name] for f in fields(Rules) if f.name in given}))
    except AlignTuneError as e:  # the range of a user's reward may be unknown here
        zero = {name: np.zeros(len(rollouts)) for name in rollouts.names}
        return zero, f"not split, because the composition cannot be made here ({e.message})"
    values = np.stack([rollouts.values(n) for n in rollouts.names], axis=1)
    baseline = np.stack([group_means(v, cell)[cell] for v in values.T], axis=1)
    baseline = np.where(np.isnan(values), np.nan, baseline)

    def total(rows: Any) -> Any:
        distinct, where = np.unique(rows, axis=0, return_inverse=True, equal_nan=False)
        totals = [composition.total([None if np.isnan(v) else float(v) for v in row]) for row in distinct]
        return np.asarray([np.nan if t is None else t for t in totals])[where.ravel()]

    found = np.nan_to_num(shapley(values, baseline, total))
    return {name: found[:, i] for i, name in enumerate(rollouts.names)}, "Shapley values of the composition's total"
