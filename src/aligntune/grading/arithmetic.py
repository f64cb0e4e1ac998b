r"""Arithmetic steps in a text, and which of them hold: `6 * 12 = 72` does, `2 + 2 = 5` does not.

    [(s.left, s.right, s.holds) for s in steps("So 6 x 12 = 72, and 72 / 7 = 10.29.")]
    # [('6 x 12', '72', True), ('72 / 7', '10.29', True)]

A step is an equality between two expressions of plain numbers, +, -, *, / and brackets, at least one of them with an
operator; a chain `2 * 3 = 6 = 5 + 1` is two. Both sides are read by a small parser over `Fraction`, so that nothing of
the text is evaluated by Python. It holds where the sides are equal, or equal once the left side is rounded to the
decimals that the right side shows. A percent sign may mean a hundredth, or a unit. Equalities with letters, powers,
units in between (`3 apples + 2 apples`) or an expression that begins in the middle are not steps.

Source: the calculator annotations of GSM8K (Cobbe et al. 2021, arXiv:2110.14168), whose steps all but a few hold here
(`tests/unit/test_grading_arithmetic.py`). Linear in the length of the text. It cannot tell whether a step is of use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_SIDE = 200
"""Characters of one side; longer ones are not read."""
MAX_STEPS = 1000
"""Steps that are read in one text."""
_DIGITS = 40

_LATEX = (
    (re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z])"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])"), "/"),
    (re.compile(r"\\[dt]?frac\s?\{([^{}\\]{1,60})\}\s?\{([^{}\\]{1,60})\}"), r"((\1)/(\2))"),
    (re.compile(r"\\(?:left|right|[,;!:$]|quad)(?![a-zA-Z])"), " "),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\(?:approx|simeq)(?![a-zA-Z])|≈|≃"), "="),
    (re.compile(r"<<[^<>]{0,200}>>"), ""),  # GSM8K's annotation repeats the step that it stands in
    (re.compile(r"[×⋅·∙]"), "*"),
    (re.compile(r"÷"), "/"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"(?<=[0-9)%])(\s?)[xX](\s?)(?=[$(]?[0-9(])"), r"\1*\2"),
    (re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile(r"[$€£¥]"), ""),
)
_SIDE = "0123456789.+*/()% \t-"
_EQUALS = re.compile(r"(?<![<>!=:])=(?![=>])")
_TOKEN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+|[-+*/()%])")


@dataclass(frozen=True)
class Step:
    """An equality of a text.

    Attributes:
        left: its left side as it was read.
        right: its right side.
        holds: whether it is true.
    """

    left: str
    right: str
    holds: bool


def steps(text: str) -> list[Step]:
    """The arithmetic steps of `text` in order, each equality once."""
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    found: dict[tuple[str, str], Step] = {}
    for match in _EQUALS.finditer(text):
        left = _left(text[max(0, match.start() - MAX_SIDE - 1) : match.start()], match.start() > MAX_SIDE)
        right = _right(text[match.end() : match.end() + MAX_SIDE + 1])
        if left is None or right is None or not (_operates(left) or _operates(right)):
            continue
        key = ("".join(left.split()), "".join(right.split()))
        if key in found or key[0] == key[1]:
            continue
        holds = _equal(left, right)
        if holds is not None:
            found[key] = Step(left, right, holds)
        if len(found) >= MAX_STEPS:
            break
    return list(found.values())


def share_that_holds(text: str) -> float | None:
    """Share of the text's distinct steps that hold, in [0, 1]; None where it has none."""
    found = steps(text)
    return sum(s.holds for s in found) / len(found) if found else None


def value(expression: str, percent: Fraction = Fraction(1, 100)) -> Fraction | None:
    """The value of an expression of numbers, + - * / and brackets; None where it is none, or divides by zero.

    Args:
        expression: at most `MAX_SIDE` characters.
        percent: what a percent sign multiplies by.
    """
    tokens, at = [], 0
    expression = expression.rstrip()
    while at < len(expression):
        match = _TOKEN.match(expression, at)
        if match is None or len(match[1]) > _DIGITS:
            return None
        tokens.append(match[1])
        at = match.end()
    if not tokens or len(expression) > MAX_SIDE:
        return None
    try:
        return _Parser(tokens, percent).all()
    except (ZeroDivisionError, ValueError, IndexError):
        return None


class _Parser:
    """Recursive descent; its depth is bounded by `MAX_SIDE`."""

    def __init__(self, tokens: list[str], percent: Fraction) -> None:
        self.tokens, self.at, self.percent = [*tokens, ""], 0, percent

    def all(self) -> Fraction:
        result = self.sum()
        if self.tokens[self.at]:
            raise ValueError("more than an expression")
        return result

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def sum(self) -> Fraction:
        result = self.product()
        while self.tokens[self.at] in ("+", "-"):
            result = result + self.product() if self.take() == "+" else result - self.product()
        return result

    def product(self) -> Fraction:
        result = self.factor()
        while self.tokens[self.at] in ("*", "/", "("):
            if self.tokens[self.at] == "(":  # 2(3 + 4)
                result *= self.factor()
            else:
                result = result * self.factor() if self.take() == "*" else result / self.factor()
        return result

    def factor(self) -> Fraction:
        first = self.take()
        if first == "-":
            return -self.factor()
        if first == "(":
            result = self.sum()
            if self.take() != ")":
                raise ValueError("an open bracket")
        else:
            result = Fraction(first)  # a ValueError for an operator, and at the end
        while self.tokens[self.at] == "%":
            self.take()
            result *= self.percent
        return result


def _left(before: str, cut: bool) -> str | None:
    """The expression that ends `before`; None where it begins in the middle of something."""
    side = before[len(before.rstrip(_SIDE)) :]
    lead = before[: len(before) - len(side.lstrip())]
    side = side.strip()
    while side.startswith((". ", ") ", "- ")):  # the end of a sentence, a list mark
        side = side[2:].lstrip()
    if not side or side[0] in "+*/%.)" or (cut and not lead):
        return None
    if lead[-1:].isalnum() or lead[-1:] in ("^", "_", "}", "]", "√", ",", "\\"):
        return None
    return side if side[0] != "-" or not lead.rstrip()[-1:].isalnum() else None


def _right(after: str) -> str | None:
    """The expression that begins `after`, without what the sentence goes on with."""
    rest = after.lstrip(_SIDE)
    side = after[: len(after) - len(rest)]
    joined = side == side.rstrip() and re.match(r"[a-zA-Z](?![a-zA-Z])", rest)  # 7x, but 7 a week and 7cm
    if len(side) > MAX_SIDE or joined or re.match(r"[\\^_{]", rest):
        return None
    side = re.split(r"\.(?=\s|$)", side, maxsplit=1)[0]
    side = side.rstrip(" \t+-*/(.")
    if side.count("(") < side.count(")"):
        side = side.rstrip(" \t)")
    return side.strip() or None


def _operates(side: str) -> bool:
    return re.search(r"[0-9)%]\s*[-+*/(]", side) is not None


def _equal(left: str, right: str) -> bool | None:
    """Whether the sides agree in one reading of percent signs; None where one of them cannot be read."""
    readings = [Fraction(1, 100), Fraction(1)] if "%" in left + right else [Fraction(1)]
    values = [(value(left, a), value(right, b)) for a in readings for b in readings]
    known = [(a, b) for a, b in values if a is not None and b is not None]
    if not known:
        return None
    places = re.fullmatch(r"-?[0-9]*(?:\.([0-9]+))?\s*%?", right)
    slack = Fraction(1, 2 * 10 ** len(places[1])) if places and places[1] else Fraction(0)
    return any(abs(a - b) <= slack for a, b in known)
