"""Durations as people write them: `3h`, `1h30m`, `45m`, `90s`, `1d12h`, or a bare number of seconds.

>>> seconds("1h30m")
5400.0

Source: the units of systemd and Go, largest first. It reads no dates.
"""

from __future__ import annotations

import re

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def seconds(text: str) -> float:
    """Seconds of a duration, above 0.

    Raises:
        ValueError: it is none, or 0.
    """
    match = DURATION.fullmatch(text.replace(" ", ""))
    found = (
        [] if match is None else [float(n or 0) * size for n, size in zip(match.groups(), UNITS.values(), strict=True)]
    )
    if not sum(found):
        raise ValueError(f"{text!r} is no duration; write it as 3h, 1h30m, 45m or 90s")
    return sum(found)
