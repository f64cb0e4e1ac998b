r"""One plain quantity in a short text: a number, and the unit that it carries.

    read("2 1/2 hours")                    # 5/2, in units of time
    equal(read("1 km"), read("1000 m"))    # True
    equal(read("5 m"), read("5 cm"))       # False: both name a unit
    equal(read("5"), read("5 cm"))         # True: one of them leaves it out

Rules: thousands separators are gone already (`extract.tidy`). A number is decimal, a ratio `a/b` or `\frac`, a mixed
number (`1 1/2` is one and a half), scientific (`3\times 10^5`, `3e5`), or a word up to ninety-nine. A percent sign is
a unit or a factor of 1/100. Where both sides name a unit of the table, they are compared in one unit, and units of
different kinds are unequal; a unit on one side alone, and words that are no unit of the table, are left aside. A unit
of one letter counts only after a space or in `\text`, because `5m` may be a product.

Source: the units' definitions (SI brochure, 9th edition; the international yard and pound). Linear in the text. It
converts no temperature and no currency, and reads no arithmetic (`x`, `\sqrt`, `+` make a text no quantity).
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

ROUNDING = Fraction(1, 2_000_000)
"""Decimals that differ by at most half of the sixth decimal are equal (Math-Verify's `float_rounding=6`)."""

_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NAMED = {name: n for n, name in enumerate(_ONES)} | {name: 10 * (n + 2) for n, name in enumerate(_TENS)}
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
NOT_UNITS = frozenset({
    "sqrt", "root", "log", "sin", "cos", "tan", "exp", "mod", "infinity", "squared", "cubed", "factorial",
    "power", "plus", "minus", "times", "over", "divided", "not", "either", "between", "versus", "maybe", "perhaps",
    "possibly", "but", "else", "and", "than", "except", "without", "halves", *_NAMED, *_PARTS,
    *(f"{p}s" for p in _PARTS),
})  # fmt: skip
"""Words that may be mathematics, another number, or a doubt; never a unit."""
_FILLERS = frozenset({"a", "an", "of", "in"})
_RATES = frozenset({"a", "an", "per", "each", "every"})

_TABLE = """
length 1 m meter metre
length 1000 km kilometer kilometre
length 1/100 cm centimeter centimetre
length 1/1000 mm millimeter millimetre
length 127/5000 in inch inches
length 381/1250 ft foot feet
length 1143/1250 yd yard
length 201168/125 mi mile
time 1 s sec second
time 1/1000 ms millisecond
time 60 min minute
time 3600 h hr hour
time 86400 day
time 604800 wk week
years 1/12 month
years 1 yr year
mass 1/1000 g gram
mass 1 kg kilogram
mass 1/1000000 mg milligram
pounds 1 lb lbs
pounds 1/16 oz ounce
length^3 1/1000 L l liter litre
length^3 1/1000000 ml mL milliliter millilitre
gallons 1 gal gallon
cups 1 cup
dollars 1 $ dollar usd USD
dollars 1/100 cent
euros 1 € euro EUR
sterling 1 £ GBP
yen 1 ¥ JPY
degrees 1 deg degree
radians 1 rad radian
celsius 1 celsius
fahrenheit 1 fahrenheit
length/time 1397/3125 mph
length/time 5/18 kph
"""
"""Kind, size in the kind's first unit, names; a plural `s` is understood. Pounds, gallons and cups differ by country,
and a pound is money too, so the word `pound` and conversions between systems are left out."""


class Unit(NamedTuple):
    """A unit of the table, or a product of such."""

    kind: tuple[tuple[str, int], ...]
    size: Fraction


class Quantity(NamedTuple):
    """A number with what it carries.

    Attributes:
        value: as it is written, in `unit`; a percentage is not divided by 100.
        percent: it has a percent sign.
        unit: None where it names none of the table.
    """

    value: Fraction
    percent: bool = False
    unit: Unit | None = None


def _table() -> dict[str, Unit]:
    found: dict[str, Unit] = {}
    for line in _TABLE.strip().splitlines():
        kind, size, *names = line.split()
        over = kind.split("/")
        powers = {over[0].split("^")[0]: int(kind[-1]) if "^" in kind else 1} | dict.fromkeys(over[1:], -1)
        for name in names:
            unit = Unit(tuple(sorted(powers.items())), Fraction(size))
            found[name] = unit
            if len(name) > 2 and name.islower():
                found[name + "s"] = unit
    return found


_UNITS = _table()
_DIGITS = r"(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?P<money>[$€£¥]?)\s*(?:"
    rf"(?P<base>{_DIGITS})\s*(?:\\times|\\cdot|[×·*x])\s*10\s*\^\s*(?:\{{\s*(?P<power>[-+]?[0-9]{{1,3}})\s*\}}|(?P<bare>[-+]?[0-9]{{1,3}}))"
    r"|(?:(?P<whole>[0-9]{1,20})(?:\s+|\s*(?=\\)))?(?:"
    r"\\[dt]?frac\s*\{\s*(?P<top>[0-9]{1,20})\s*\}\s*\{\s*(?P<under>[0-9]{1,20})\s*\}"
    r"|\\[dt]?frac\s*(?P<top1>[0-9])\s*(?P<under1>[0-9])"
    r"|(?P<top2>[0-9]{1,20})\s*/\s*(?P<under2>[0-9]{1,20}))"
    rf"|(?P<plain>{_DIGITS})(?:[eE](?P<exponent>[-+]?[0-9]{{1,3}}))?"
    r"|(?P<words>[a-zA-Z]{1,9})(?![a-zA-Z])"
    r")(?P<rest>.{0,80})",
    re.DOTALL,
)
_WRAP = re.compile(r"\\(?:text|mathrm|textbf|textit|textrm)\s*\{([^{}]*)\}")
_PLAIN_FORMS = (
    (re.compile(r"~|\\[ ,;:]"), " "),
    (_WRAP, r" \1 "),
    (re.compile(r"(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°)\s*([CF]?)(?![a-zA-Z])"), r" degrees \1"),
    (re.compile(r"degrees\s+(?:C\b|Celsius\b|celsius\b)"), "celsius"),
    (re.compile(r"degrees\s+(?:F\b|Fahrenheit\b|fahrenheit\b)"), "fahrenheit"),
    (re.compile(r"\s*\^\s*\{\s*([23])\s*\}"), r"^\1"),
    (re.compile(r"\s+\^"), "^"),
    (re.compile(r"²"), "^2"),
    (re.compile(r"³"), "^3"),
)


@lru_cache(maxsize=8192)
def read(text: str) -> Quantity | None:
    """The quantity that `text` (at most some hundreds of characters) is, or None where it may be anything else."""
    for form, plain in _PLAIN_FORMS:
        text = form.sub(plain, text)
    text = text.strip()
    if len(text) > 2 and text[0] == "(" and text.endswith(")") and "(" not in text[1:]:
        text = text[1:-1].strip()
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    value, rest, start = _value(found), found["rest"], found.start("words")
    if found["words"]:
        named = _words(text[start:])
        value, rest = (named[0], text[start + named[1] :]) if named else (None, "")
    if value is None:
        return None
    sign = re.match(r"\s*(?:\\?%|percent\b|per cent\b)", rest)
    carried = _carried(rest[sign.end() :] if sign else rest)
    if carried is None:
        return None
    scale, unit = carried
    if found["money"]:
        unit = unit or _UNITS[found["money"]]
    return Quantity((-1 if found["sign"] == "-" else 1) * value * scale, bool(sign), unit)


def equal(gold: Quantity, answer: Quantity) -> bool:
    """Whether two quantities are the same, by the rules above."""
    value = answer.value
    if gold.unit and answer.unit:
        if gold.unit.kind != answer.unit.kind:
            return False
        value *= answer.unit.size / gold.unit.size
    values = [value]
    if gold.percent != answer.percent:
        if gold.unit or answer.unit:
            return False
        values.append(value * 100 if gold.percent else value / 100)
    return any(abs(gold.value - v) <= ROUNDING for v in values)


def _value(found: re.Match[str]) -> Fraction | None:
    """The number itself, sign and scale aside."""
    if found["words"]:
        return None
    if found["base"]:
        return Fraction(found["base"].rstrip(".")) * Fraction(10) ** int(found["power"] or found["bare"])
    if found["plain"]:
        return Fraction(found["plain"].rstrip(".")) * Fraction(10) ** int(found["exponent"] or 0)
    under = int(found["under"] or found["under1"] or found["under2"])
    if not under:
        return None
    return int(found["whole"] or 0) + Fraction(int(found["top"] or found["top1"] or found["top2"]), under)


def _words(text: str) -> tuple[Fraction, int] | None:
    """A number in words at the beginning of `text`, and how many characters it takes; None where there is none."""
    words = re.findall(r"[a-z]+", text.lower())[:3]
    ends = [m.end() for m in re.finditer(r"[a-zA-Z]+", text)][:3]
    if not words or not re.fullmatch(r"[a-zA-Z]+(?:[ -][a-zA-Z]+){0,2}", text[: ends[-1]]):
        return None
    if words[0] == "half":
        return Fraction(1, 2), ends[0]
    if len(words) > 1 and (words[0] in _NAMED or words[0] in ("a", "an")):
        part = words[1].removesuffix("s").replace("halve", "half")
        if part in _PARTS:
            return Fraction(_NAMED.get(words[0], 1), _PARTS[part]), ends[1]
    if words[0] not in _NAMED:
        return None
    if words[0] in _TENS and len(words) > 1 and words[1] in _ONES[1:10]:
        return Fraction(_NAMED[words[0]] + _NAMED[words[1]]), ends[1]
    return Fraction(_NAMED[words[0]]), ends[0]


def _carried(text: str) -> tuple[int, Unit | None] | None:
    """The scale ("thousand") and the unit after a number; None where what follows may be mathematics."""
    scale, spaced = 1, text[:1].isspace()
    text = text.strip()
    while text:
        first, _, rest = text.partition(" ")
        if first.lower() not in _SCALES:
            break
        scale, text, spaced = scale * _SCALES[first.lower()], rest.strip(), True
    if not text:
        return scale, None
    unit, rest = _unit(text, spaced)
    words = rest.lower().replace(",", " ").split()
    if words and unit is None and not spaced and len(words[0]) < 3:
        return None
    for word in words:
        plain = word.rstrip(".'^23") if unit is None else word.rstrip(".'")
        known = plain in _FILLERS or plain in _RATES
        if not known and (not re.fullmatch(r"[a-z]{3,}(?:[-'][a-z]+)*", plain) or plain in NOT_UNITS | set(_SCALES)):
            return None
    if words and words[0] in _FILLERS and unit is None and len(words) == 1:
        return None
    return scale, None if words and words[0] in _RATES else unit


def _unit(text: str, spaced: bool) -> tuple[Unit | None, str]:
    """The unit at the beginning of `text`, and what follows it."""
    kind: dict[str, int] = {}
    size, at, over = Fraction(1), 0, 1
    step = re.compile(r"(?:(square|sq\.?|cubic|cu\.?)\s+)?([a-zA-Z]+|[$€£¥])\.?(?:\^?([23]))?(?![a-zA-Z0-9^])")
    while True:
        found = step.match(text, at)
        unit = _UNITS.get(found[2]) or _UNITS.get(found[2].lower() if len(found[2]) > 2 else "") if found else None
        if found is None or unit is None or (len(found[2]) == 1 and found[2].isalpha() and not spaced):
            return None, text
        power = over * int(found[3] or {"s": 2, "c": 3}.get((found[1] or "-")[0], 1))
        for name, n in unit.kind:
            kind[name] = kind.get(name, 0) + n * power
        size, at = size * unit.size**power, found.end()
        joint = re.match(r"\s*/\s*|\s+(?:per|an?)\s+(?=[a-zA-Z])", text[at:])
        if joint is None or over == -1 or not _is_unit(text[at + joint.end() :]):
            left = tuple(sorted((k, n) for k, n in kind.items() if n))
            return (Unit(left, size) if left else None), text[at:].strip()
        at, over, spaced = at + joint.end(), -1, True


def _is_unit(text: str) -> bool:
    word = re.match(r"[a-zA-Z]+", text)
    return word is not None and (word[0] in _UNITS or word[0].lower() in _UNITS)
