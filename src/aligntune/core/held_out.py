"""Values of held-out rows with their 95% intervals: what `evaluate_model` gives, and how it is stored.

A measure gives a number or an `Interval` under each name; `HeldOut` is a mapping of plain numbers that keeps the
intervals beside them.

>>> found = HeldOut.of({"reward": Interval(0.41, 0.37, 0.45, 200, "t"), "rows": 200.0})
>>> found, found.intervals["reward"].low
({'reward': 0.41, 'rows': 200.0}, 0.37)

In `evaluations.jsonl` the held-out rows are the line whose `task` is null. Counts (`rows`, `tokens`, `pairs`) have no
interval, because they are exact; other values without one are listed in docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aligntune.eval.stats import Interval

Values = Mapping[str, float | Interval]
Bounds = dict[str, list[float]]
"""Name in `metrics.jsonl` to the lower and the upper bound."""


class HeldOut(dict[str, float]):
    """Numbers by name.

    Attributes:
        intervals: those of the names that have one.
    """

    def __init__(self, values: Mapping[str, float], intervals: Mapping[str, Interval] | None = None) -> None:
        super().__init__(values)
        self.intervals = dict(intervals or {})

    @classmethod
    def of(cls, values: Values, prefix: str = "") -> HeldOut:
        """From numbers and intervals.

        Args:
            values: by name.
            prefix: before each name.
        """
        named = {f"{prefix}{name}": value for name, value in values.items()}
        intervals = {name: v for name, v in named.items() if isinstance(v, Interval)}
        plain = {name: v.estimate if isinstance(v, Interval) else float(v) for name, v in named.items()}
        return cls(plain, intervals)


def held_out_row(values: HeldOut, step: int, kind: str) -> dict[str, Any]:
    """The line of `evaluations.jsonl`; a value without an interval has null bounds.

    Args:
        values: of the held-out rows.
        step: of the evaluation.
        kind: the schema of the rows.
    """
    metrics = {}
    for name, value in values.items():
        interval = values.intervals.get(name)
        about = {k: v for k, v in (interval.to_dict() if interval else {}).items() if k != "estimate"}
        metrics[name] = {"name": name, "value": value, "low": None, "high": None, **about}
    return {"step": step, "task": None, "kind": kind, "metrics": metrics}


def renew(known: Bounds, rows: Iterable[Mapping[str, Any]], prefix: str) -> None:
    """Put the bounds of an evaluation in the place of older ones; a value without an interval now has none.

    Args:
        known: by the names of `metrics.jsonl`; changed.
        rows: of `evaluations.jsonl`, of tasks and of held-out rows.
        prefix: before a task's name.
    """
    for row in rows:
        start = "" if row["task"] is None else f"{prefix}{row['task']}/"
        for name, metric in row["metrics"].items():
            known.pop(f"{start}{name}", None)
            if metric.get("low") is not None and metric.get("high") is not None:
                known[f"{start}{name}"] = [metric["low"], metric["high"]]
