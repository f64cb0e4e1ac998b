r"""The final answer of a text: where it stands, and whether it is one answer.

    final_answer("<think>12?</think> 6 x 12 = 72, so #### 72")      # '72'
    final_answer(r"\boxed{12} or perhaps \boxed{13}")               # None: two answers are none

The reasoning part (up to the last `</think>`) is dropped; a thought that never ends leaves no answer. Then,
in this order:

1. the last `\boxed{...}` (or `\fbox`); 2. `#### ...` up to the end of its line; 3. `<answer>...</answer>`;
4. the last "answer is ..." or "answer: ..."; 5. the last number.

Marks 1 to 3 are promises of one answer: where several of them differ, the text is refused. A hedge ("12 or
13", `x=13=12`, `12, 13`) is refused too, unless the gold answer has the same form (a pair, an equation). So
is anything over 300 characters.

Source: GSM8K's `####`, MATH's box, the answer tag of DeepSeek-R1 (arXiv:2501.12948), and the attacks on
graders that are listed in `tests/unit/test_grading_extract.py`. Linear in the length of the text. It does not
judge the answer (`math`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from aligntune.grading.forms import align
from aligntune.grading.quantity import read

MAX_ANSWER = 300
"""Longest answer in characters; no answer of GSM8K or MATH has more, and symbolic grading of longer text is
not bounded."""
MAX_MARKS = 64
"""More boxes, `####` or tags than this are refused unread: it is a list of guesses."""

NUMBER = r"[-+]?(?:[$€£¥]\s?)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:\.[0-9]+|(?<=[0-9]))"
_NUMBER = re.compile(NUMBER)
_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
_PROSE = re.compile(r"\banswer\s{0,5}(?:is|was|:|=)\s{0,5}:?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_AFTERTHOUGHT = re.compile(r"[,;]?\s(?:because|since|which|where|given that|as)\b", re.IGNORECASE)
_NAMES = r"(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|max|min|lim|mod)"  # of functions: not words in a sentence
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(rf"\b(?!{_NAMES}\b)[a-zA-Z]{{3,}}\b")
_HEDGES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?:or|either|between|versus|vs)\b|\\(?:lor|vee)\b",
        r"\\(?:pm|mp)\b|±|∓",
        r"[;~→⇒&]|\\(?:to|rightarrow|Rightarrow|implies|quad|qquad|sim)\b|=>|->|\\\\",
        r"\.\.|…|\\(?:l|c|d)?dots\b",
        r"[0-9]\s*[:|?]\s*[0-9]",
        r"[0-9]\s+[0-9]+(?!\s*/|[0-9])",
    )
)
_GROUP = re.compile(r"[(\[][^()\[\]]*[)\]]")
_EQUALS = re.compile(r"(?<![<>!=])=(?!=|>)|≈|\\approx\b|\\equiv\b")


@dataclass(frozen=True)
class Found:
    """What `find_answer` saw.

    Attributes:
        answer: the final answer, or None.
        source: `box`, `hash`, `tag`, `prose`, `number`, or `none`.
        refused: why a text with an answer has None: `differ`, `hedge`, `long` or `marks`; empty otherwise.
    """

    answer: str | None
    source: str
    refused: str = ""


def final_answer(text: str, gold: str | None = None) -> str | None:
    """The final answer of `text`, or None where it has none or hedges.

    Args:
        text: a completion of any length.
        gold: the right answer, which decides what is a hedge: a pair is one answer where the gold is a pair.
    """
    return find_answer(text, gold).answer


def find_answer(text: str, gold: str | None = None) -> Found:
    """As `final_answer`, with where it stood and why it was refused."""
    text = strip_reasoning(text)
    if text.count("####") > MAX_MARKS or text.count("\\boxed") > MAX_MARKS or text.count("<answer>") > MAX_MARKS:
        return Found(None, "none", "marks")
    boxes, hashes = _boxes(text), _hashes(text)
    tags = [_in_tag(t) for t in _tagged(text) if "\\boxed" not in t and "####" not in t]
    marks = [("box", b) for b in boxes] + [("hash", h) for h in hashes] + [("tag", t) for t in tags]
    if marks:
        if len({_key(answer) for _, answer in marks}) > 1:
            return Found(None, marks[0][0], "differ")
        return _accept(marks[0][1], marks[0][0], gold)
    said = _prose(text)
    if said is not None:
        return _accept(said, "prose", gold)
    return _last_number(text)


def strip_reasoning(text: str) -> str:
    """The text after the last `</think>`; empty if a `<think>` is left open after it."""
    answer = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
    return "" if "<think>" in answer else answer


def is_hedge(answer: str, gold: str | None = None) -> bool:
    """True if `answer` offers more than one value in a form that `gold` does not have."""
    answer = tidy(answer)
    if read(answer) is not None:
        return False
    gold, answer = align(tidy(gold or ""), answer)
    if any(h.search(answer) and not h.search(gold) for h in _HEDGES):
        return True
    if "," in _GROUP.sub("", answer) and "," not in gold:  # an interval or a pair in brackets is one object
        return True
    equals, allowed = len(_EQUALS.findall(answer)), len(_EQUALS.findall(gold))
    if equals > max(1, allowed) or (equals == 1 and not allowed and _states_two_numbers(answer)):
        return True
    numbers = set(_NUMBER.findall(answer)) - {""}
    words = _WORD.search(_COMMAND.sub(" ", answer)) is not None
    return words and len(numbers) > 1 and len(set(_NUMBER.findall(gold)) - {""}) < 2


def tidy(answer: str) -> str:
    """Remove what carries no meaning: dollars around, thousands separators, spacing commands, emphasis, a full
    stop."""
    answer = answer.strip().strip("*_`").strip()
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$")):
        if answer.startswith(opening) and answer.endswith(closing) and len(answer) > len(opening) + len(closing):
            answer = answer[len(opening) : -len(closing)].strip()
    answer = answer.replace("{,}", ",").replace("\\!", "").replace("\\,", "").replace("\\$", "$").replace("\\%", "%")
    answer = re.sub(r"(?<![0-9.,])([0-9]{1,3}(?:[, ][0-9]{3})+)(?![0-9,])", lambda m: re.sub("[, ]", "", m[1]), answer)
    answer = re.sub(r"(?<=[^0-9)}!])!+$", "", answer.replace("−", "-").strip())  # after a number it is a factorial
    return re.sub(r"(?<!\.)\.$", "", answer).strip()


def _accept(answer: str, source: str, gold: str | None) -> Found:
    answer = answer.strip()
    if not answer:
        return Found(None, "none")
    if len(answer) > MAX_ANSWER:
        return Found(None, source, "long")
    if is_hedge(answer, gold):
        return Found(None, source, "hedge")
    return Found(answer, source)


def _boxes(text: str) -> list[str]:
    """Contents of the boxes, outermost only. Braces are matched within `MAX_ANSWER` characters; more is cut
    off, one over."""
    found, position = [], 0
    for match in re.finditer(r"\\(?:boxed|fbox)\s{0,3}\{", text):
        if match.start() < position:
            continue
        depth, start = 1, match.end()
        for position in range(start, min(len(text), start + MAX_ANSWER + 2)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                break
        found.append(text[start:position] if depth == 0 else text[start : start + MAX_ANSWER + 1])
    return found


def _hashes(text: str) -> list[str]:
    """What follows `####`: lines that start like an answer, and the last line whatever it is (others are
    headings)."""
    end = len(text.rstrip())
    lines = [(m[1].strip(), m.end() >= end) for m in _HASH.finditer(text)]
    return [line for line, last in lines if line and (last or re.match(r"[-+$€£¥\\(\[{.*]|[0-9]|[a-zA-Z]\s*=", line))]


def _tagged(text: str) -> list[str]:
    """Contents of `<answer>...</answer>`, in linear time."""
    found = []
    for part in text.split("<answer>")[1:]:
        content, closed, _ = part.partition("</answer>")
        if closed:
            found.append(content)
    return found


def _in_tag(content: str) -> str:
    said = _prose(content)
    return (content if said is None else said).strip()


def _prose(text: str) -> str | None:
    """What follows the last "answer is" up to the end of its sentence."""
    end = None
    for match in _PROSE.finditer(text):
        end = match.end()
    if end is None:
        return None
    said = text[end : end + MAX_ANSWER + 1].partition("\n")[0]
    said = _AFTERTHOUGHT.split(_SENTENCE_END.split(said.strip(), maxsplit=1)[0], maxsplit=1)[0]
    return said.strip().strip("*_").strip() or None


def _last_number(text: str) -> Found:
    """The last number, unless its sentence offers another one in its place."""
    last = max((text.rfind(digit) for digit in "0123456789"), default=-1)
    if last < 0:
        return Found(None, "none")
    window = text[max(0, last - 2 * MAX_ANSWER) : last + 1]
    numbers = [m for m in _NUMBER.finditer(window) if m.group()]
    number = numbers[-1]
    if len(number.group()) > MAX_ANSWER or number.end() != len(window):
        return Found(None, "number", "long")
    before = window[numbers[-2].end() : number.start()] if len(numbers) > 1 else ""
    lead = window[: number.start()]
    ratio = re.search(r"(?<![0-9./])[0-9]{1,20}\s?/\s?$", lead)
    if ratio and number.group().isdigit():
        sign = "-" if re.search(r"(?<![0-9)])\s*-$", lead[: ratio.start()]) else ""
        return Found(sign + ratio.group() + number.group(), "number")
    joined = number.group()[0] in "+-" and lead[-1:].isdigit()  # "12-13" is a range or a difference, not minus 13
    offers = re.search(r"\b(?:or|versus|vs)\b|±|\\pm", before, re.IGNORECASE) and not re.search(r"[.!?\n]\s", before)
    range_of = re.search(r"\bbetween\b[^.\n]*$", lead, re.IGNORECASE) or re.fullmatch(r"\s*(?:to|~|–|\.\.+)\s*", before)
    if len(numbers) > 1 and (joined or offers or range_of):
        return Found(None, "number", "hedge")
    return Found(number.group().lstrip("+"), "number")


def _states_two_numbers(answer: str) -> bool:
    """`12=13`: an equation between two different plain numbers."""
    left, _, right = answer.partition("=")
    pair = [_plain(left), _plain(right)]
    return None not in pair and pair[0] != pair[1]


def _plain(text: str) -> Fraction | None:
    text = tidy(text).replace(",", "").replace("$", "").strip()
    return Fraction(text) if re.fullmatch(r"[-+]?[0-9]{1,40}(?:\.[0-9]{1,40})?", text) else None


def _key(answer: str) -> object:
    """What two marks must share to be one answer: the value of a plain number, else the text without spaces."""
    answer = re.sub(r"^[a-zA-Z]\s*=\s*", "", tidy(answer))
    value = _plain(answer)
    return value if value is not None else "".join(answer.split())
