r"""Are two mathematical answers equal? Exact comparison first, then Math-Verify in a process of its own.

    math_equal("72", "$72.00")              # True, by comparing numbers
    math_equal(r"\frac{1}{2}", "0.5")       # True, by Math-Verify
    math_equal("72", "70 or 72")            # False: a hedge is wrong
    math_equal("", "72")                    # None: there is no right answer to compare with

Two plain quantities are decided here (`quantity`: thousands separators, mixed numbers, percent signs, units), in
0.06 ms against 1.4 ms: that settles all 1,200 labelled solutions of GSM8K, each with Math-Verify's verdict. Words are
compared as words, because a symbolic reading takes "listen" and "silent" for the same product of letters; a set in
braces is no tuple. Lists and inequalities are brought to the gold answer's form (`forms`). The rest goes to Math-Verify
0.9 in `worker.Worker`: the gold answer is its first argument (the order matters), and an answer that makes it run over
the deadline is wrong.

Source: Math-Verify 0.9 (Kydlicek 2025) for symbolic equality and its rounding to 6 decimals. A model's text
is never evaluated in this process. It does not look for the answer in a text (`extract`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from aligntune.grading import quantity
from aligntune.grading.extract import MAX_ANSWER, find_answer, is_hedge, tidy
from aligntune.grading.forms import align, as_set, as_tuple
from aligntune.grading.worker import Worker, WorkerDied, WorkerTimeout

DEADLINE = 5.0
"""Seconds per comparison (Math-Verify's own default, which it keeps only in a main thread)."""
_WORDS = re.compile(r"[a-zA-Z][a-zA-Z' -]*")
_CHOICE = re.compile(r"\(?\s*[A-Ea-e]\s*\)?\.?")
_GAP = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
_worker = Worker("math")


@dataclass(frozen=True)
class Grade:
    """A verdict.

    Attributes:
        equal: whether the answer is right; None where the gold answer cannot be read.
        how: `exact`, `number`, `words`, `form` (a set for a tuple), `math_verify`, or why it is wrong or None:
            `no_answer`, `hedge`, `long`, `timeout`, `crash`, `gold_unparseable`.
    """

    equal: bool | None
    how: str


def math_equal(gold: str | float, answer: str | float | None, deadline: float = DEADLINE) -> bool | None:
    """True if `answer` equals `gold`; False if it does not, hedges, is missing, or overruns; None if `gold`
    is unreadable.

    Args:
        gold: the right answer, or a solution that ends in it (a box, `####`, "answer is").
        answer: the final answer, as `extract.final_answer` gives it.
        deadline: seconds for Math-Verify.

    Raises:
        errors.EnvironmentError: Math-Verify is needed and not installed.
    """
    return grade(gold, answer, deadline).equal


def grade(gold: str | float, answer: str | float | None, deadline: float = DEADLINE) -> Grade:
    """As `math_equal`, with how it was decided."""
    right = gold_answer(gold)
    if right is None:
        return Grade(None, "gold_unparseable")
    if answer is None or not str(answer).strip():
        return _wrong(right, "no_answer", deadline)
    given = str(answer)
    if len(given) > MAX_ANSWER:
        return _wrong(right, "long", deadline)
    if is_hedge(given, right):
        return _wrong(right, "hedge", deadline)
    a, b = align(_normal(right, right), _normal(given, right))
    return _quick(a, b) or _by_worker(a, b, deadline)


def gold_answer(gold: Any) -> str | None:
    """The answer in a gold value: a number, a short text, or the marked end of a solution; None if there is
    none.

    >>> gold_answer("6 * 12 = <<6*12=72>>72\\n#### 72")
    '72'
    """
    if gold is None or isinstance(gold, bool):
        return None
    text = str(gold).strip()
    if "####" in text or "\\boxed" in text or "<answer>" in text or len(text) > MAX_ANSWER:
        found = find_answer(text, text)
        return found.answer if found.source in ("box", "hash", "tag", "prose") else None
    return text if any(c.isalnum() for c in text) else None


def _wrong(gold: str, how: str, deadline: float) -> Grade:
    """A wrong answer; still None where nothing could have been right, so that the verdict depends on the row
    alone."""
    plain = _normal(gold, gold)
    if quantity.read(plain) is not None or _is_words(plain) or _by_worker(plain, "0", deadline).equal is not None:
        return Grade(False, how)
    return Grade(None, "gold_unparseable")


def _normal(answer: str, gold: str) -> str:
    """`answer` without dress, and without `x =` before it where the gold answer has no equation."""
    answer = tidy(answer)
    if "=" not in gold:
        answer = re.sub(r"^\\?[a-zA-Z]{1,8}\s*=\s*(?=\S)", "", answer)
    return tidy(answer)


def _quick(gold: str, answer: str) -> Grade | None:
    """A verdict without Math-Verify; None where it takes more."""
    a, b = quantity.read(gold), quantity.read(answer)
    if a is not None and b is not None:
        return Grade(quantity.equal(a, b), "number")
    if _CHOICE.fullmatch(_untext(gold)) and _CHOICE.fullmatch(_untext(answer)):
        return Grade(_letter(gold) == _letter(answer), "words")
    if _is_words(gold):
        return Grade(_untext(gold).casefold().split() == _untext(answer).casefold().split(), "words")
    if _GAP.sub("", gold) == _GAP.sub("", answer):
        return Grade(True, "exact")
    if (as_set(gold) and as_tuple(answer)) or (as_tuple(gold) and as_set(answer)):
        return Grade(False, "form")
    return None


def _letter(text: str) -> str:
    return _untext(text).strip("(). ").upper()


def _untext(text: str) -> str:
    return re.sub(r"\\(?:text|mathrm|textbf|textit)\s*\{([^{}]*)\}", r" \1", text).strip()


def _is_words(text: str) -> bool:
    """Words rather than a product of letters: letters only, one of the words with three letters or more, or
    `no`."""
    plain = _untext(text)
    if not _WORDS.fullmatch(plain) or "\\" in plain:
        return False
    return any(len(w) >= 3 and w.lower() not in quantity.NOT_UNITS for w in plain.split()) or plain.lower() == "no"


def _by_worker(gold: str, answer: str, deadline: float) -> Grade:
    try:
        result = _worker.ask({"gold": gold, "answer": answer}, deadline)
    except WorkerTimeout:
        return Grade(False, "timeout")
    except WorkerDied:
        return Grade(False, "crash")
    return Grade(result["equal"], "math_verify" if result["equal"] is not None else "gold_unparseable")
