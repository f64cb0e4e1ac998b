"""Statements about time that a program can check: dates, weekdays, spans of years, lives, the order of named events.

    time_checks("It ran from 1990 to 1985, until Monday, 30 February 2021.")        # [False, False]
    in_order("First the war, then the peace.", ["war", "peace"])                    # [True]

Each check is True where the statement can be so and False where it cannot: a date that the calendar does not have, a
weekday that the date is not (proleptic Gregorian calendar), a span that ends before it begins or lasts another number
of years than it says (one more or less passes, because both ends may count), a death before a birth.

English month and weekday names, and ISO dates. It does not check facts: a wrong date that exists passes.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from itertools import pairwise

MAX_CHARS = 50_000
"""Characters of a text that are read."""
MONTHS = [
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
]  # fmt: skip
WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_MONTH = rf"(?P<month>{'|'.join(f'{m}|{m[:3]}' for m in MONTHS)})\.?"
_DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>[12][0-9]{3})"
_WEEKDAY = rf"(?:(?P<weekday>{'|'.join(WEEKDAYS)}),?[ ](?:the )?)?"
_DATES = tuple(
    re.compile(rf"\b{pattern}\b", re.IGNORECASE)
    for pattern in (
        rf"{_WEEKDAY}{_DAY}[ ](?:of )?{_MONTH},?[ ]{_YEAR}",
        rf"{_WEEKDAY}{_MONTH}[ ]{_DAY},?[ ]{_YEAR}",
        rf"{_WEEKDAY}{_YEAR}-(?P<number>[0-9]{{2}})-(?P<day>[0-9]{{2}})",
    )
)
_SPAN = re.compile(
    r"\b(?:from|between)[ ]([12][0-9]{3})[ ](?:to|until|till|and)[ ]([12][0-9]{3})\b"
    r"(?:,?[ ]\(?(?:a period of |for |lasting |or )?([0-9]{1,4})[ ]years\b)?",
    re.IGNORECASE,
)
_LIFE = re.compile(r"\b(born|died)\b[^.!?\n]{0,60}?\b([12][0-9]{3})\b", re.IGNORECASE)


def time_checks(text: str) -> list[bool]:
    """One entry for each statement that can be checked, in no particular order.

    Args:
        text: of any length; the first 50,000 characters are read.
    """
    text = text[:MAX_CHARS]
    found = [_date_holds(match) for pattern in _DATES for match in pattern.finditer(text)]
    for start, end, years in _SPAN.findall(text):
        length = int(end) - int(start)
        found.append(length >= 0 and (not years or abs(int(years) - length) <= 1))
    lives: dict[str, set[int]] = {"born": set(), "died": set()}
    for what, year in _LIFE.findall(text):
        lives[what.lower()].add(int(year))
    if len(lives["born"]) == len(lives["died"]) == 1:  # of one person, as far as can be seen
        found.append(min(lives["born"]) <= min(lives["died"]))
    return found


def in_order(text: str, events: Sequence[str]) -> list[bool]:
    """For each two neighbours of `events` whether the text names both, the first one first.

    Args:
        events: names in the right order; found without regard to case.
    """
    plain = text.casefold()
    places = [plain.find(event.casefold()) for event in events]
    return [0 <= a < b for a, b in pairwise(places)]


def _date_holds(match: re.Match[str]) -> bool:
    parts = match.groupdict()
    month = parts.get("month")
    number = int(parts["number"]) if month is None else [m[:3] for m in MONTHS].index(month.lower()[:3]) + 1
    try:
        date = datetime.date(int(parts["year"]), number, int(parts["day"]))
    except ValueError:
        return False
    weekday = parts.get("weekday")
    return weekday is None or WEEKDAYS[date.weekday()] == weekday.lower()
