r"""Two spellings of one answer, brought to one form before they are compared; decided by the gold answer's form.

    align(r"\{-3,3\}", r"\pm 3")                        # ('\\{-3,3\\}', '3, -3')
    align("[0,1)", r"0 \le x < 1")                      # ('[0,1)', '[0, 1)')
    align("1, 2", "x = 2 or x = 1")                     # ('1, 2', '2, 1')
    align("12", "12 or 13")                             # unchanged: no list was asked for

Where the gold answer is a list or set, "or", "and" and `\pm` in the answer list values too, and `x =` before each goes.
Where it is an interval, or either side joins inequalities by "or", inequalities in one variable become intervals.
Linear in the text, but for pieces of an answer that is at most 300 characters. It compares nothing.
"""

from __future__ import annotations

import re

_SYMBOLS = (
    (re.compile(r"~(?=\\|[a-zA-Z])"), " "),
    (re.compile(r"\\varnothing(?![a-zA-Z])|∅"), r"\\emptyset"),
    (re.compile(r"√\s*([0-9a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile(r"√\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"≤|\\leqslant(?![a-zA-Z])|\\leq(?![a-zA-Z])"), r"\\le "),
    (re.compile(r"≥|\\geqslant(?![a-zA-Z])|\\geq(?![a-zA-Z])"), r"\\ge "),
    (re.compile(r"∪"), r"\\cup "),
    (re.compile(r"∞"), r"\\infty "),
    (re.compile(r"±"), r"\\pm "),
    (re.compile(r"(?:\\(?:quad|,|;)\s*)?\\text\s*\{\s*(or|and)\s*\}(?:\s*\\(?:quad|,|;))?"), r" \1 "),
)
_JOINT = re.compile(r"\s+(?:or|and)\s+|\\lor(?![a-zA-Z])|\\vee(?![a-zA-Z])", re.IGNORECASE)
_EITHER = re.compile(r"\s+or\s+|\\lor(?![a-zA-Z])|\\vee(?![a-zA-Z])|\\cup(?![a-zA-Z])", re.IGNORECASE)
_BRACKETS = re.compile(r"\\(?:left|right)(?![a-zA-Z])\s*")
_INTERVAL = re.compile(r"[\[(][^\[\]()]*,[^\[\]()]*[\])]")
_NAME = re.compile(r"\s*\\?[a-zA-Z]{1,8}\s*=\s*(?=\S)")
_OPERATOR = re.compile(r"\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|<=|>=|<|>")
_VARIABLE = re.compile(r"\s*(\\?[a-zA-Z]{1,8})\s*")
_NOT_VARIABLES = frozenset({"\\pi", "e", "\\infty", "i"})


def align(gold: str, answer: str) -> tuple[str, str]:
    """Both answers (without dress, `extract.tidy`) in one form, as far as the gold answer's form says how."""
    gold, answer = symbols(gold), symbols(answer)
    if gold == answer:
        return gold, answer
    left, right = intervals(gold), intervals(answer)
    united = "\\cup" in gold or _EITHER.search(gold) or _EITHER.search(answer)
    if right and (_is_interval(gold) or (left and united)):
        return (left[1] if left and left[0] == right[0] else gold), right[1]
    if left and united and _is_interval(answer):
        return left[1], answer
    if is_list(gold):
        return _listed(gold), _listed(answer)
    return gold, answer


def symbols(text: str) -> str:
    """One spelling for symbols that have several."""
    for form, plain in _SYMBOLS:
        text = form.sub(plain, text)
    return text


def is_list(text: str) -> bool:
    """Whether a gold answer lists values: by commas outside brackets, "or", "and", `\\pm`, or as a set."""
    text = _BRACKETS.sub("", text)
    return bool("\\pm" in text or _JOINT.search(text) or as_set(text) or "," in _outside(text))


def as_set(text: str) -> bool:
    """Whether all of the text is one set in braces."""
    text = _BRACKETS.sub("", text).strip()
    return re.fullmatch(r"\\\{.*\\\}|\{[^{}]*\}", text) is not None


def as_tuple(text: str) -> bool:
    """Whether all of the text is one tuple in round brackets."""
    text = _BRACKETS.sub("", text).strip()
    return re.fullmatch(r"\([^(){}]*,[^()]*\)", text) is not None


def intervals(text: str) -> tuple[str, str] | None:
    """The variable and the intervals that inequalities mean; None where the text is not made of such.

    >>> intervals("0 < x < 1")
    ('x', '(0, 1)')
    """
    found = [_interval(piece) for piece in _EITHER.split(text)]
    pieces = [piece for piece in found if piece is not None]
    if len(pieces) != len(found) or len({name for name, _ in pieces}) != 1:
        return None
    return pieces[0][0], "\\cup ".join(span for _, span in pieces)


def _interval(text: str) -> tuple[str, str] | None:
    parts = _OPERATOR.split(text)
    signs = [sign.replace("\\le", "<=").replace("\\ge", ">=") for sign in _OPERATOR.findall(text)]
    if not 1 <= len(signs) <= 2 or len({sign[0] for sign in signs}) != 1 or "," in text or "=" in "".join(parts):
        return None
    if signs[0][0] == ">":
        parts, signs = parts[::-1], signs[::-1]
    at = [n for n, part in enumerate(parts) if _is_variable(part)]
    if len(at) != 1 or (len(parts) == 3 and at != [1]):
        return None
    name = parts[at[0]].strip()
    low, high = (parts[0].strip() if at[0] else "", parts[-1].strip() if at[0] < len(parts) - 1 else "")
    if name in low or name in high or (at[0] and not low) or (at[0] < len(parts) - 1 and not high):
        return None
    opening = "(-\\infty" if not low else f"{'[' if signs[0].endswith('=') else '('}{low}"
    closing = "\\infty)" if not high else f"{high}{']' if signs[-1].endswith('=') else ')'}"
    return name, f"{opening}, {closing}"


def _is_variable(text: str) -> bool:
    found = _VARIABLE.fullmatch(text)
    return found is not None and found[1] not in _NOT_VARIABLES and (len(found[1]) == 1 or found[1][0] == "\\")


def _is_interval(text: str) -> bool:
    pieces = re.split(r"\\cup(?![a-zA-Z])", _BRACKETS.sub("", text))
    return all(_INTERVAL.fullmatch(piece.strip()) for piece in pieces)


def _outside(text: str) -> str:
    """The text without what stands in brackets."""
    depth, kept = 0, ""
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        kept += character if depth == 0 else ""
    return kept


def _listed(text: str) -> str:
    """A list with commas, without names, and with both signs of every `\\pm` written out; a set keeps its braces."""
    joined = _JOINT.sub(",", text)
    if as_set(joined) or ("," in joined and "," not in _outside(_BRACKETS.sub("", joined))):
        return joined
    found: list[str] = []
    start = depth = 0
    for at, character in enumerate([*joined, ","]):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            piece = _NAME.sub("", joined[start:at], count=1).strip()
            both = ("+", "-") if piece.count("\\pm") == 1 else ("",)
            found += [piece.replace("\\pm", sign, 1).strip() if sign else piece for sign in both]
            start = at + 1
    return ", ".join(piece.removeprefix("+").strip() for piece in found if piece)
