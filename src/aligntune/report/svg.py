"""Line charts and interval charts as inline SVG: axes, gaps, titles for screen readers, colours from the style sheet.

>>> line_chart("Loss", [Series("training", [(1, 2.3), (2, None), (3, 1.9)])], describe="falls from 2.3 to 1.9")
Markup('<svg class="chart" role="img" ...')

A point whose value is None or not finite breaks the line. Nothing is interpolated, and no script is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from aligntune.report.numbers import compact, ticks

Point = tuple[float, float | None]

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 30
LABEL, LONG_LABEL = 13, 22
"""Characters of a row's name that fit beside an interval chart, in its two layouts."""
MOST_POINTS = 600
"""Points of a drawn line; longer ones keep the lowest and the highest of each stretch."""
COLOURS = 6
"""Colours that the style sheet has; a seventh line would begin again."""


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        label: what it is, for the legend and the tooltips.
        points: (x, y) in order of x; y None or not finite where a value is missing.
        smooth: a second line over it, drawn strong while `points` are drawn faint; empty for none.
        dots: mark each point, for values that are measured now and then.
        colour: from 0; None takes the line's place among the others.
        band: (x, lower, upper) of an interval or a range around the line, drawn behind it.
        faint: draw the line weakly, as a mark to compare with.
    """

    label: str
    points: Sequence[Point]
    smooth: Sequence[Point] = ()
    dots: bool = False
    colour: int | None = None
    band: Sequence[tuple[float, float, float]] = ()
    faint: bool = False


@dataclass(frozen=True)
class _Scale:
    x: Callable[[float], float]
    y: Callable[[float], float]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    describe: str,
    x_label: str = "step",
    text: Callable[[float], str] = compact,
    y_range: tuple[float | None, float | None] = (None, None),
) -> Markup:
    """A chart of one or more lines over a common x axis.

    Args:
        title: its name, read out by screen readers.
        series: at least one with a finite value.
        describe: what the chart shows, in a sentence, for those who do not see it.
        text: how values are written on the y axis.
        y_range: fixed lower and upper end of the y axis; None takes the data's.
    """
    xs = [x for one in series for x, y in one.points if _finite(y)]
    ys = [y for one in series for _, y in one.points if y is not None and math.isfinite(y)]
    ys += [y for one in series for _, *ends in one.band for y in ends if math.isfinite(y)]
    whole = all(x == round(x) for x in xs)  # there is no step 1.5
    x_ticks = [t for t in ticks(min(xs), max(xs)) if min(xs) <= t <= max(xs) and (t == round(t) or not whole)]
    low = min(ys) if y_range[0] is None else min(y_range[0], min(ys))
    high = max(ys) if y_range[1] is None else max(y_range[1], max(ys))
    y_ticks = ticks(*_wide_enough(low, high), 3)
    x0, x1 = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, max(xs) + 1)
    y0, y1 = y_ticks[0], y_ticks[-1]
    scale = _Scale(
        lambda x: LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
        lambda y: HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM),
    )
    body = Markup("").join(
        [*_axes(scale, x_ticks, y_ticks, x_label, text)]
        + [
            _line(one, (i if one.colour is None else one.colour) % COLOURS + 1, scale, text)
            for i, one in enumerate(series)
        ]
    )
    return _svg(title, describe, WIDTH, HEIGHT, body)


def interval_chart(
    title: str,
    rows: Sequence[tuple[str, float, float, float, int]],
    *,
    describe: str,
    text: Callable[[float], str] = compact,
    tick_text: Callable[[float], str] | None = None,
    x_range: tuple[float, float] | None = None,
    zero: bool = False,
) -> Markup:
    """One row per entry: a dot at the value, a bar over its interval, the number at the right.

    Args:
        rows: (label, value, low, high, colour from 0).
        text: how values are written.
        tick_text: how the axis is written; None writes it as values are.
        x_range: ends of the x axis; None takes the data's.
        zero: draw a line at zero, to see which intervals include it.
    """
    longest = max(len(label) for label, *_ in rows)
    width, left, right, row, top = 560, 124 if longest <= LABEL else 210, 72, 36, 8
    lows, highs = [low for _, _, low, _, _ in rows], [high for _, _, _, high, _ in rows]
    low, high = x_range or (min([*lows, *([0.0] if zero else [])]), max([*highs, *([0.0] if zero else [])]))
    marks = ticks(low, high, 5)
    start, end = marks[0], marks[-1]
    bottom = top + row * len(rows)

    def x(value: float) -> float:
        return left + (value - start) / (end - start) * (width - left - right)

    parts = []
    for mark in marks:
        strong = "grid zero" if zero and mark == 0 else "grid"
        parts.append(
            Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(
                strong, x(mark), x(mark), top, bottom
            )
        )
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                x(mark), bottom + 16, (tick_text or text)(mark)
            )
        )
    for i, (label, value, lower, upper, colour) in enumerate(rows):
        y = top + row * i + row / 2
        colour = colour % COLOURS + 1
        bar = Markup('<line class="bar s{}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
        dot = Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="5.5"/>')
        words = Markup('<text class="{}" x="{}" y="{:.1f}" text-anchor="{}">{}</text>')
        parts += [
            _label(label, left, y + 4.5),
            bar.format(colour, x(lower), x(upper), y, y),
            dot.format(colour, x(value), y),
            words.format("value", width - right + 14, y + 4.5, "start", text(value)),
        ]
    return _svg(title, describe, width, bottom + 24, Markup("").join(parts), "chart wide")


def _label(label: str, left: float, y: float) -> Markup:
    """A row's name: as much as there is room for, and the whole of it for a pointer."""
    most = LABEL if left < 200 else LONG_LABEL
    shown = label if len(label) <= most else f"{label[: most - 1]}…"
    return Markup('<text class="name" x="{}" y="{:.1f}" text-anchor="end">{}<title>{}</title></text>').format(
        left - 12, y, shown, label
    )


def _wide_enough(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    """The range, widened to a twentieth of its size where it is narrower: noise must not fill a chart."""
    lack = share * max(abs(low), abs(high)) - (high - low)
    return (low - lack / 2, high + lack / 2) if lack > 0 and low < high else (low, high)


def _svg(title: str, describe: str, width: float, height: float, body: Markup, kind: str = "chart") -> Markup:
    return Markup(
        '<svg class="{}" role="img" aria-label="{}" viewBox="0 0 {} {}" xmlns="http://www.w3.org/2000/svg">'
        "<title>{}</title><desc>{}</desc>{}</svg>"
    ).format(kind, f"{title}: {describe}", width, height, title, describe, body)


def _axes(
    scale: _Scale, x_ticks: list[float], y_ticks: list[float], x_label: str, text: Callable[[float], str]
) -> Iterator[Markup]:
    for tick in y_ticks:
        y = scale.y(tick)
        yield Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, y, y)
        yield Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            LEFT - 7, y + 3.8, text(tick)
        )
    floor = HEIGHT - BOTTOM
    yield Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, floor, floor)
    for tick in x_ticks:
        x = scale.x(tick)
        yield Markup('<line class="axis" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(x, x, floor, floor + 4)
        if x < WIDTH - RIGHT - 38:  # the axis label stands in the corner
            yield Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                x, floor + 17, compact(tick)
            )
    yield Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
        WIDTH - RIGHT, floor + 17, x_label
    )


def _line(one: Series, colour: int, scale: _Scale, text: Callable[[float], str]) -> Markup:
    faint = " faint" if one.smooth or one.faint else ""
    parts = [_band(one.band, f"band s{colour}", scale)] if len(one.band) > 1 else []
    parts.append(_path(one.points, f"line s{colour}{faint}", scale))
    if one.smooth:
        parts.append(_path(one.smooth, f"line s{colour}", scale))
    if one.dots:
        parts += [
            Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>').format(
                colour, scale.x(x), scale.y(y), f"{one.label}, {compact(x)}: {text(y)}"
            )
            for x, y in one.points
            if y is not None and math.isfinite(y)
        ]
    return Markup("").join(parts)


def _path(points: Sequence[Point], kind: str, scale: _Scale) -> Markup:
    """The line as one path, with a new start after each gap; a lone point becomes a short dash that can be seen."""
    commands: list[str] = []
    for run in runs(points):
        first, *rest = [(scale.x(x), scale.y(y)) for x, y in thin(run)]
        commands.append(f"M{first[0]:.1f} {first[1]:.1f}")
        commands += [f"L{x:.1f} {y:.1f}" for x, y in rest] or ["h0.01"]
    return Markup('<path class="{}" d="{}"/>').format(kind, escape(" ".join(commands)))


def _band(band: Sequence[tuple[float, float, float]], kind: str, scale: _Scale) -> Markup:
    """The area between the lower and the upper ends."""
    found = [row for row in band if all(math.isfinite(v) for v in row)]
    lower, upper = thin([(x, low) for x, low, _ in found]), thin([(x, high) for x, _, high in found])
    corners = [*upper, *reversed(lower)]
    return Markup('<polygon class="{}" points="{}"/>').format(
        kind, " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in corners)
    )


def thin(run: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most about `most` points that look the same: the first, the last, and the extremes of each stretch."""
    if len(run) <= most:
        return list(run)
    size = math.ceil(2 * len(run) / most)
    kept: list[tuple[float, float]] = [run[0]]
    for start in range(1, len(run) - 1, size):
        part = run[start : min(start + size, len(run) - 1)]
        low, high = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept += sorted({low, high})
    return [*kept, run[-1]]


def runs(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """The stretches of points without a gap."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None and math.isfinite(y):
            found[-1].append((x, y))
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
