"""Where the metrics of two runs part: bit for bit, and beyond rounding.

Two numbers differ beyond rounding where |a - b| > tolerance * max(|a|, |b|, 1e-6). The default tolerance of 1e-4 is
about a thousand times the spacing of float32 numbers (2^-23), which is what sums in another order differ by after some
steps; a bf16 run on other hardware can need 1e-2.

>>> parting = compare(a, b)
>>> parting.first_step, parting.first_metric
(7, 'loss')

Clocks, throughput and memory are left out (`aligntune.utils.manifest.VOLATILE`), and so are a run's own file names. It
compares what was logged, so with `logging.steps: 10` a step is known to ten steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from aligntune.utils.files import number
from aligntune.utils.manifest import stable

TOLERANCE = 1e-4
SMALLEST = 1e-6
"""Numbers below this are compared by their difference, because the last bits of a sum near zero mean nothing."""
PLACES = ("step", "epoch")
SETTINGS = ("learning_rate",)
"""Logged values that are settings; where they part says nothing about where the results do."""


@dataclass(frozen=True)
class Parting:
    """How two streams of metrics compare.

    Attributes:
        steps: logged steps that both have.
        values: numbers that were compared.
        only_a: steps that only the first has; `only_b` likewise.
        names: metrics that only one of them has, at steps that both have.
        first_bit: the first step at which any number differs in any bit; None where none does.
        first_step: the first step at which a number differs beyond rounding; None where none does.
        first_metric: which number that is (the loss where it is among them).
        largest: the largest relative difference; `largest_step` and `largest_metric` say where.
        at_start: whether the first logged step of both already differs beyond rounding.
    """

    steps: int = 0
    values: int = 0
    only_a: list[int] = field(default_factory=list)
    only_b: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    first_bit: int | None = None
    first_step: int | None = None
    first_metric: str | None = None
    largest: float = 0.0
    largest_step: int | None = None
    largest_metric: str | None = None
    at_start: bool = False

    @property
    def identical(self) -> bool:
        """Whether both logged the same numbers at the same steps, to the last bit."""
        return bool(self.steps) and self.first_bit is None and self.complete

    @property
    def complete(self) -> bool:
        """Whether both have the same steps and the same metrics."""
        return not (self.only_a or self.only_b or self.names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "identical": self.identical}


def relative(a: float, b: float) -> float:
    """|a - b| / max(|a|, |b|, 1e-6); 0 for equal values and for two NaN, infinite where one is not finite."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b), SMALLEST)


def by_step(rows: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Step to its numbers; where a name was logged twice at a step, the later."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        if not isinstance(row.get("step"), int):
            continue
        values = {k: v for k, raw in stable(row).items() if k not in PLACES and (v := number(raw)) is not None}
        found.setdefault(row["step"], {}).update(values)
    return found


def compare(a: Iterable[Mapping[str, Any]], b: Iterable[Mapping[str, Any]], tolerance: float = TOLERANCE) -> Parting:
    """Compare the rows of two `metrics.jsonl`."""
    left, right = by_step(a), by_step(b)
    common = sorted(left.keys() & right.keys())
    names: set[str] = set()
    found: dict[str, Any] = {"values": 0, "largest": 0.0}
    for step in common:
        one, two = left[step], right[step]
        names |= one.keys() ^ two.keys()
        gaps = {name: relative(one[name], two[name]) for name in sorted(one.keys() & two.keys(), key=_loss_first)}
        found["values"] += len(gaps)
        if any(gaps.values()):
            found.setdefault("first_bit", step)
        beyond = [name for name, gap in gaps.items() if gap > tolerance and name not in SETTINGS]
        if beyond and "first_step" not in found:
            found |= {"first_step": step, "first_metric": beyond[0], "at_start": step == common[0]}
        for name, gap in gaps.items():
            if gap > found["largest"]:
                found |= {"largest": gap, "largest_step": step, "largest_metric": name}
    return Parting(
        steps=len(common),
        only_a=sorted(left.keys() - right.keys()),
        only_b=sorted(right.keys() - left.keys()),
        names=sorted(names),
        **found,
    )


def _loss_first(name: str) -> tuple[bool, str]:
    return name != "loss", name


def finals(a: Iterable[Mapping[str, Any]], b: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The last value of each metric that both have: name, a, b and their relative difference; evaluation, loss and
    reward first."""
    one, two = (_last(rows) for rows in (a, b))
    rows = [{"metric": n, "a": one[n], "b": two[n], "relative": relative(one[n], two[n])} for n in one if n in two]
    return sorted(rows, key=lambda row: _prominence(str(row["metric"])))


def _prominence(name: str) -> tuple[int, str]:
    first = ("eval", "loss", "reward", "rewards/accuracies", "kl", "entropy")
    found = [i for i, start in enumerate(first) if name == start or (i == 0 and name.startswith(start))]
    return (found or [len(first)])[0], name


def _last(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for _, values in sorted(by_step(rows).items()):
        found.update(values)
    return found
