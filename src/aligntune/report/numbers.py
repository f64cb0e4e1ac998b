"""Numbers as a reader wants them: percent, points, times, sizes, and axis ticks at round values.

>>> seconds(200), size(2_147_483_648), percent(0.6241), compact(0.000012)
('3 min 20 s', '2.1 GB', '62.4%', '1.2e-5')

Units are SI (1 GB is 10^9 bytes).
"""

from __future__ import annotations

import math

MINUS = "\u2212"


def compact(value: float) -> str:
    """At most three significant digits, powers of ten where the number is very small or very large."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("infinite" if value > 0 else f"{MINUS}infinite")
    if value == 0:
        return "0"
    size_of = abs(value)
    if size_of >= 1e6 or size_of < 1e-3:
        mantissa, _, exponent = f"{value:.2g}".partition("e")
        text = f"{mantissa}e{int(exponent)}" if exponent else _scientific(value)
    elif size_of >= 999.5:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", MINUS, 1) if value < 0 else text


def _scientific(value: float) -> str:
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def percent(value: float) -> str:
    """A share as percent with one decimal."""
    return f"{100 * value:.1f}%".replace("-", MINUS)


def points(value: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    text = f"{100 * value:+.1f}".replace("-", MINUS)
    return "0.0" if text[1:] == "0.0" else text


def whole_points(value: float) -> str:
    """As `points`, for the ticks of an axis: no decimal where it would be zero."""
    text = points(value)
    return text.removesuffix(".0")


def whole_percent(value: float) -> str:
    """As `percent`, for the ticks of an axis: no decimal where it would be zero."""
    return percent(value).replace(".0%", "%")


def fixed(value: float) -> str:
    """Two decimals, for numbers that are compared down a column."""
    return f"{value:.2f}".replace("-", MINUS)


def seconds(value: float) -> str:
    """A duration: `4.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: float) -> str:
    """A number of bytes: `512 MB`, `2.1 GB`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            number = value / factor
            return f"{number:.1f} {unit}" if number < 10 and unit in ("TB", "GB") else f"{number:.0f} {unit}"
    return f"{value:.0f} bytes"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round values (1, 2 or 5 times a power of ten) that cover [low, high], ends included.

    A single value gets an axis from zero to twice the value.
    """
    if high <= low:
        low, high = min(0.0, 2 * low), max(0.0, 2 * low) or 1.0
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if raw <= m * power * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]
