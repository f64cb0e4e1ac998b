"""`diff_runs`: what two runs do not have in common, where their curves part, and how they ended.

>>> found = diff_runs("runs/a", "runs/b")
>>> found.verdict
'different'
>>> found.causes[0].what, found.parting.first_step
('train.seed', 1)

It reads the two folders and trains nothing; `aligntune.diagnosis.reproduction` runs one again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from aligntune.diagnosis.curves import TOLERANCE, Parting, compare, finals
from aligntune.diagnosis.differences import Difference, differences, rank
from aligntune.diagnosis.stored import Stored, read_stored

Verdict = Literal["identical", "equal within tolerance", "different", "nothing to compare"]


@dataclass(frozen=True)
class RunDiff:
    """How two runs differ.

    Attributes:
        a: the first folder; `b`: the second.
        causes: differences that can change results, most likely first.
        harmless: differences that cannot.
        parting: how the curves compare.
        order_parts: the first logged step whose data hash differs; None where none does or it was not recorded.
        weights: whether the final weights are equal bit for bit; None where one of the runs has none.
        finals: the last value of each metric of both.
        tolerance: relative difference that counts as rounding.
    """

    a: str
    b: str
    causes: list[Difference]
    harmless: list[Difference]
    parting: Parting
    order_parts: int | None
    weights: bool | None
    finals: list[dict[str, Any]]
    tolerance: float

    @property
    def verdict(self) -> Verdict:
        """identical (all numbers and the weights, to the last bit), equal within tolerance, different, or nothing to
        compare (no step that both have logged)."""
        if not self.parting.steps:
            return "nothing to compare"
        if self.parting.identical and self.weights is not False:
            return "identical"
        close = self.parting.first_step is None and self.parting.complete
        return "equal within tolerance" if close else "different"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "a": self.a,
            "b": self.b,
            "verdict": self.verdict,
            "causes": [d.to_dict() for d in self.causes],
            "harmless": [d.to_dict() for d in self.harmless],
            "curves": self.parting.to_dict(),
            "order_parts_at_step": self.order_parts,
            "weights_equal": self.weights,
            "final_metrics": self.finals,
            "tolerance": self.tolerance,
        }


def diff_runs(a: str | os.PathLike[str], b: str | os.PathLike[str], *, tolerance: float = TOLERANCE) -> RunDiff:
    """Compare two run folders.

    Args:
        a: one run folder.
        b: another one.
        tolerance: relative difference that counts as rounding, from 0.

    Raises:
        ValidationError: one of them is not a run folder.
    """
    return compare_stored(read_stored(a), read_stored(b), tolerance)


def compare_stored(one: Stored, two: Stored, tolerance: float = TOLERANCE) -> RunDiff:
    """`diff_runs` of two folders that are read already."""
    parting = compare(one.metrics, two.metrics, tolerance)
    ranked = rank(differences(one.manifest, two.manifest), parting)
    return RunDiff(
        a=str(one.path),
        b=str(two.path),
        causes=[d for d in ranked if d.likelihood > 1],
        harmless=[d for d in ranked if d.likelihood <= 1],
        parting=parting,
        order_parts=_order_parts(one, two),
        weights=_weights(one, two),
        finals=finals(one.metrics, two.metrics),
        tolerance=tolerance,
    )


def _order_parts(one: Stored, two: Stored) -> int | None:
    left, right = ({row.get("step"): row.get("sha256") for row in run.order} for run in (one, two))
    steps = [s for s in left.keys() & right.keys() if isinstance(s, int) and left[s] != right[s]]
    return min(steps, default=None)


def _weights(one: Stored, two: Stored) -> bool | None:
    hashes = [(run.manifest.get("results") or {}).get("weights_sha256") for run in (one, two)]
    return None if None in hashes else hashes[0] == hashes[1]
