"""The rewards' part of a run's report: which component moved the advantage, over the run, and what the audit found.

>>> block = reward_block(Path("out/grpo"))
>>> block.rows[0][:2]
('math_correctness', '88%')

The numbers are those of `aligntune rewards audit`, over at most `MOST_ROWS` rollouts. A run without rollouts, or with
one component that is never held against another, has no such part.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from aligntune.errors import AlignTuneError
from aligntune.report.numbers import compact
from aligntune.report.svg import COLOURS, Series, line_chart

if TYPE_CHECKING:
    from aligntune.rewards.audit.attribution import Attribution
    from aligntune.rewards.audit.table import Rollouts

MOST_ROWS = 20_000
"""About two seconds."""
WINDOWS = 20
"""Parts of the run, each of which has a share of its own."""
HEADERS = (
    "reward",
    "share of the advantage",
    "mean, first to last fifth",
    "groups where all are equal",
    "r with length",
)


@dataclass(frozen=True)
class RewardBlock:
    """What the template draws.

    Attributes:
        chart: shares of the advantage over the run; None where there are too few steps.
        legend: (colour, component).
        rows: cells of `HEADERS` for each component.
        findings: (severity, sentence, advice).
        how: how the advantage was split.
        notes: what was missing.
    """

    chart: Markup | None
    legend: list[tuple[int, str]]
    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]
    findings: list[tuple[str, str, str]]
    how: str
    notes: list[str]


def reward_block(folder: Path) -> RewardBlock | None:
    """The part of a run folder; None where there are no rollouts with components, or they cannot be read."""
    from aligntune.rewards.audit import METRICS, audit
    from aligntune.rewards.audit.attribution import attribute
    from aligntune.rewards.audit.table import read
    from aligntune.utils.files import read_lines
    from aligntune.utils.rollouts import parts

    if not parts(folder / "rollouts"):
        return None
    try:
        rollouts = read(folder, most_rows=MOST_ROWS)
    except AlignTuneError:  # rollouts of another shape; the rest of the report does not need them
        return None
    if not rollouts.names:
        return None
    report = audit(rollouts, read_lines(folder / METRICS), str(folder))
    names = [name for name in rollouts.names if rollouts.weighted(name)]
    chart = _chart(rollouts, attribute(rollouts), names)
    return RewardBlock(
        chart=chart,
        legend=[(i % COLOURS + 1, name) for i, name in enumerate(names)] if chart else [],
        headers=HEADERS,
        rows=[_row(report.components[name]) for name in rollouts.names],
        findings=[(f.severity, f.message, f.advice) for f in report.findings],
        how=report.how,
        notes=report.notes,
    )


def _chart(rollouts: Rollouts, attribution: Attribution, names: list[str]) -> Markup | None:
    """Lines of the components' shares, one point for each window of steps."""
    import numpy as np

    from aligntune.rewards.audit.attribution import share

    steps = np.unique(rollouts.step)
    if len(steps) < 3 or len(names) < 2:
        return None
    edges = np.unique(np.linspace(0, len(steps), min(WINDOWS, len(steps)) + 1).astype(int))
    windows = [steps[a:b] for a, b in itertools.pairwise(edges)]
    series = []
    for name in names:
        points = []
        for window in windows:
            at = np.isin(rollouts.step, window)
            points.append((float(window.mean()), share(attribution.parts[name][at], attribution.advantage[at])))
        series.append(Series(name, points))
    shown = [value for one in series for _, value in one.points if value is not None and math.isfinite(value)]
    if not shown:
        return None
    last = ", ".join(f"{one.label} {_percent(one.points[-1][1])}" for one in series)
    return line_chart("Share of the advantage", series, describe=f"at the end: {last}", text=_percent, y_range=(0, 1))


def _row(c: Any) -> tuple[str, ...]:
    change = "" if c.first is None or c.last is None else f"{compact(c.first)} to {compact(c.last)}"
    return (
        c.name,
        _percent(c.share),
        change,
        _percent(c.dead_groups),
        "" if c.length is None else f"{c.length.value:+.2f}",
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{round(100 * value) + 0:d}%"
