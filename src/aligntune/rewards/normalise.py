"""Normalised scores: among the answers to one prompt, or by the mean and deviation of all scores so far.

    Normaliser(Rules(normalise="group"), ["total"])("total", [1.0, 3.0, 5.0, 5.0], [0, 0, 1, 1])
    # [-0.707, 0.707, 0, 0], nearly: (v - mean) / (standard deviation + 1e-4) in each group

It is given totals, or with `normalise_of: components` each component before its weight, as in GDPO (arXiv:2601.05242).
`running` takes the present batch in first, and on several processes those of all, so that each computes the same. The
state is three numbers a column, and a resumed run goes on with them to the last bit.

Source: TRL's GRPOTrainer (1.14.2) for the groups, its 1e-4 too; Welford, Technometrics 4(3), 1962. It does not forget:
the statistics are those of the whole run.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aligntune.rewards.composition import Rules, Score

EPSILON = 1e-4
"""Added to a standard deviation that divides (TRL)."""


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of the numbers so far (Welford 1962, equations I and II)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Take one number in."""
        self.count += 1
        delta = value - self.mean
        self.mean += delta / self.count
        self.squares += delta * (value - self.mean)

    @property
    def std(self) -> float:
        """Standard deviation (n - 1); 0 below two numbers."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    def standard(self, value: float, *, scale: bool) -> float:
        """The distance from the mean, in standard deviations with `scale`."""
        return (value - self.mean) / (self.std + EPSILON) if scale else value - self.mean


class Normaliser:
    """Normalises columns of scores by group, or by all that was seen.

    Args:
        rules: `normalise`, `normalise_scale`.
        names: the columns that it will be given.
    """

    def __init__(self, rules: Rules, names: Sequence[str]) -> None:
        self.kind, self.scale = rules.normalise, rules.normalise_scale
        self.names = frozenset(names)
        self.seen = {name: Moments() for name in names} if self.kind == "running" else {}

    def __call__(self, name: str, values: Sequence[Score], groups: Sequence[int]) -> list[Score]:
        """N normalised values; None stays None.

        Args:
            name: which column.
            values: N scores of this process.
            groups: N numbers, equal for the answers to one prompt.
        """
        if self.kind == "running":
            moments = self.seen[name]
            for number in everywhere([v for v in values if v is not None]):
                moments.add(number)
            return [None if v is None else moments.standard(v, scale=self.scale) for v in values]
        found: dict[int, Moments] = {}
        for group, value in zip(groups, values, strict=True):
            if value is not None:
                found.setdefault(group, Moments()).add(value)
        return [
            None if v is None else found[g].standard(v, scale=self.scale) for g, v in zip(groups, values, strict=True)
        ]

    def state(self) -> dict[str, list[float]]:
        """What a checkpoint must hold: name to count, mean and squares, which JSON keeps to the last bit."""
        return {name: [m.count, m.mean, m.squares] for name, m in self.seen.items()}

    def load_state(self, state: Mapping[str, Sequence[float]]) -> None:
        """Take back what `state` gave; columns that it does not know start anew."""
        for name in self.seen:
            if name in state:
                count, mean, squares = state[name]
                self.seen[name] = Moments(int(count), float(mean), float(squares))


def everywhere(values: list[float]) -> list[float]:
    """The values of all processes of a distributed run, in their order; the values themselves in any other."""
    torch = sys.modules.get("torch")
    if torch is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, values)
    return [value for part in found for value in part]
