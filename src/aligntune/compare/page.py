"""A comparison as text for the terminal and as one HTML page: verdicts, curves (seed means), environments, runs.

>>> print(told(comparison))
backend=unsloth against backend=trl
  step_time            0.51 s   0.98 s   x 0.52 [0.48, 0.57]   different (better)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.report.numbers import compact, seconds, size

if TYPE_CHECKING:
    from aligntune.compare.analysis import Comparison, Row
    from aligntune.compare.plan import Plan

FIRST = ("step_time", "tokens_per_second", "peak_memory", "peak_gpu_memory", "wall_time", "final_loss")
"""Values that are told before the others, in this order."""


def told(comparison: Comparison) -> str:
    """The verdicts as lines of text."""
    lines = []
    for arm in comparison.arms[1:]:
        rows = ordered([row for row in comparison.rows if row.arm == arm])
        lines.append(f"{arm} against {comparison.arms[0]}")
        if not rows:
            lines.append("  no run of both finished under the same seed")
        width = max((len(row.value) for row in rows), default=0)
        for row in rows:
            values = "  ".join(f"{quantity(row.value, v):>10}" for v in (row.arm_median, row.base_median))
            lines.append(f"  {row.value:<{width}}  {values}  {change(row)}  {outcome(row)}".rstrip())
    return "\n".join([*lines, *(f"- {note}" for note in comparison.notes)])


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Costs first, then held-out values, then the others."""

    def key(row: Row) -> tuple[int, int]:
        if row.value in FIRST:
            return 0, FIRST.index(row.value)
        return (1 if row.value.startswith(("eval", "items/")) else 2), 0

    return sorted(rows, key=key)


def quantity(name: str, value: float) -> str:
    """A value in its unit."""
    if name.endswith("memory"):
        return size(round(value))
    if name == "wall_time":
        return seconds(value)
    return f"{compact(value)} s" if name == "step_time" else compact(value)


def change(row: Row) -> str:
    """The change with its interval."""
    if row.kind == "ratio":
        bounds = "" if row.low is None or row.high is None else f" [{row.low:.3g}, {row.high:.3g}]"
        return f"x {row.change:.3g}{bounds}"
    bounds = "" if row.low is None or row.high is None else f" [{row.low:+.3g}, {row.high:+.3g}]"
    return f"{row.change:+.3g}{bounds}"


def outcome(row: Row) -> str:
    """The verdict, and whether it is for the better."""
    side = {True: " (better)", False: " (worse)", None: ""}[row.better]
    return row.verdict + (side if row.verdict == "different" else "")


def write_page(path: Path, comparison: Comparison, plan: Plan) -> Path:
    """The HTML page."""
    from aligntune.compare.environments import environments
    from aligntune.report.page import write_page as write

    base = comparison.arms[0]
    arms = [
        {"name": arm, "rows": [_cells(row) for row in ordered([r for r in comparison.rows if r.arm == arm])]}
        for arm in comparison.arms[1:]
    ]
    done = len(comparison.runs) - len(comparison.failed)
    return write(
        path,
        "compare.html.j2",
        title=f"{len(comparison.arms)} arms compared",
        chips=[
            f"{len(plan.seeds)} seeds",
            f"{done} of {len(comparison.runs)} runs finished",
            plan.source if isinstance(plan.source, str) else "a configuration in memory",
        ],
        notes=comparison.notes,
        base=base,
        arms=arms,
        charts=charts(comparison),
        environments=environments(comparison.runs),
        runs=[run.to_dict() for run in comparison.runs],
    )


def _cells(row: Row) -> dict[str, Any]:
    whole, _, bounds = change(row).partition(" [")
    tone = "flat"
    if row.verdict.startswith("equivalent"):
        tone = "up"
    elif row.verdict == "different":
        tone = {True: "up", False: "down", None: "flat"}[row.better]
    return {
        "value": row.value,
        "arm": quantity(row.value, row.arm_median),
        "base": quantity(row.value, row.base_median),
        "change": whole,
        "interval": f"[{bounds}" if bounds else "",
        "p": "" if row.p_adjusted is None else "< 0.001" if row.p_adjusted < 0.001 else f"{row.p_adjusted:.3f}",
        "verdict": outcome(row),
        "tone": tone,
    }


def charts(comparison: Comparison) -> list[Any]:
    """A chart for each curve that a finished run has: the mean over the seeds of each arm."""
    from aligntune.report.curves import Chart
    from aligntune.report.svg import COLOURS, Series, line_chart

    names = list(dict.fromkeys(name for run in comparison.runs for name in run.curves))
    found = []
    for name in names:
        lines = []
        for colour, arm in enumerate(comparison.arms):
            runs = [dict(r.curves[name]) for r in comparison.runs if r.arm == arm and name in r.curves]
            steps = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
            mean = [(step, math.fsum(run[step] for run in runs) / len(runs)) for step in steps]
            if mean:
                lines.append(Series(arm, mean, dots=name.startswith("eval_"), colour=colour % COLOURS))
        if not lines:
            continue
        ends = [[compact(line.points[i][1] or 0.0) for i in (0, -1)] for line in lines]
        words = "; ".join(f"{line.label} from {a} to {b}" for line, (a, b) in zip(lines, ends, strict=True))
        first, last = ends[0]
        svg = line_chart(name, lines, describe=words)
        legend = [((line.colour or 0) + 1, line.label) for line in lines]
        found.append(Chart(name, "mean over the seeds", first, last, legend, svg, []))
    return found
