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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from aligntune.errors import AlignTuneError
from aligntune.report.curves import Chart, Panel, draw, joined
from aligntune.report.numbers import compact
from aligntune.report.svg import COLOURS, Point, Series, line_chart

if TYPE_CHECKING:
    from aligntune.rewards.audit.attribution import Attribution
    from aligntune.rewards.audit.table import Rollouts

MOST_ROWS = 20_000
"""About two seconds."""
TITLE = "Share of the advantage"
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
        shares: the points of these lines by component; empty where there is no chart.
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
    shares: Mapping[str, Sequence[Point]] = field(default_factory=dict)


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
    shares = _shares(rollouts, attribute(rollouts), names)
    chart = _chart(shares)
    return RewardBlock(
        chart=chart,
        legend=[(i % COLOURS + 1, name) for i, name in enumerate(names)] if chart else [],
        headers=HEADERS,
        rows=[_row(report.components[name]) for name in rollouts.names],
        findings=[(f.severity, f.message, f.advice) for f in report.findings],
        how=report.how,
        notes=report.notes,
        shares=shares if chart else {},
    )


def _shares(rollouts: Rollouts, attribution: Attribution, names: list[str]) -> dict[str, list[Point]]:
    """The components' shares of the advantage, one point for each window of steps; empty where there are too few."""
    import numpy as np

    from aligntune.rewards.audit.attribution import share

    steps = np.unique(rollouts.step)
    if len(steps) < 3 or len(names) < 2:
        return {}
    edges = np.unique(np.linspace(0, len(steps), min(WINDOWS, len(steps)) + 1).astype(int))
    windows = [steps[a:b] for a, b in itertools.pairwise(edges)]
    inside = [np.isin(rollouts.step, window) for window in windows]
    return {
        name: [
            (float(window.mean()), _finite(share(attribution.parts[name][at], attribution.advantage[at])))
            for window, at in zip(windows, inside, strict=True)
        ]
        for name in names
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _chart(shares: Mapping[str, Sequence[Point]]) -> Markup | None:
    """A line for each component."""
    if all(value is None for points in shares.values() for _, value in points):
        return None
    last = ", ".join(f"{name} {_percent(points[-1][1])}" for name, points in shares.items())
    series = [Series(name, points) for name, points in shares.items()]
    return line_chart(TITLE, series, describe=f"at the end: {last}", text=_percent, y_range=(0, 1))


@dataclass(frozen=True)
class RewardsBeside:
    """The rewards of several runs.

    Attributes:
        labels: of the runs that have rollouts with components.
        rows: each component with, per run, its share of the advantage and its mean from the first to the last fifth of
            the run; None where the run does not have it.
        charts: the share of each component along the runs, one line per run or per group of seeds.
        blocks: (label, the run's own part).
    """

    labels: list[str]
    rows: list[tuple[str, list[tuple[str, str] | None]]]
    charts: list[Chart]
    blocks: list[tuple[str, RewardBlock]]


def rewards_beside(folders: Mapping[str, Path], groups: Sequence[tuple[str, Sequence[str]]]) -> RewardsBeside | None:
    """The rewards of several runs; None where none has rollouts with components.

    Args:
        folders: label to run folder, in the page's order.
        groups: (name, labels of the runs) of what is one line, as `curves.seed_groups` puts them together.
    """
    found = {label: block for label, folder in folders.items() if (block := reward_block(folder)) is not None}
    if not found:
        return None
    cells = [{row[0]: (row[1], row[2]) for row in block.rows} for block in found.values()]
    names = list(dict.fromkeys(name for one in cells for name in one))
    drawn: list[Chart] = []
    for name in names:
        panel = Panel(f"{TITLE}, {name}", "share of the advantage", text=_percent, y_range=(0, 1), smoothed=False)
        lines = []
        for colour, (group, labels) in enumerate(groups):
            had = [found[label].shares.get(name, []) for label in labels if label in found]
            logged = [points for points in had if any(value is not None for _, value in points)]
            lines.append(joined(logged or [[]], group, colour))
        drawn += [replace(chart, title=name) for chart in draw(panel, lines, "not drawn")]
    rows = [(name, [one.get(name) for one in cells]) for name in names]
    return RewardsBeside(list(found), rows, drawn, list(found.items()))


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
