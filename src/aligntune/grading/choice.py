r"""Multiple choice: which option a text settles on.

    find_choice("The answer is (B).", {"A": "Rome", "B": "Paris"})           # 'B'
    find_choice("A or B", {"A": "Rome", "B": "Paris"})                       # None: two options are no choice

In this order: a marked answer (`extract.find_answer`: box, `####`, tag, "answer is"); else the first and the last line,
which must not contradict each other. What is found there has to be a label ("B", "(b)", "B."), a label with the words
of its own option ("B) Paris"), or the words of exactly one option. Anything more is no choice.

Source: the answer forms of MMLU and ARC as models write them. Linear in the length of the text. It does not read an
argument: "Rome is wrong, so it is the other one" chooses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aligntune.grading.extract import MAX_ANSWER, find_answer, strip_reasoning, tidy
from aligntune.grading.text import normal

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABEL = re.compile(r"(?:option|choice|answer)?\s*[(\[]?\s*([A-Za-z]|[0-9]{1,2})\s*[)\].:,-]*\s*(.*)", re.DOTALL | re.I)
_LEAD = re.compile(r"(?:final\s+)?answer\s*(?:is|:)\s*", re.IGNORECASE)


def read_options(choices: Any) -> dict[str, str]:
    """Options by label, from a list of texts (labelled A, B, ...), a mapping, or ARC's `{"label": [...], "text":
    [...]}`.

    Raises:
        ValueError: anything else, no option, or more than 26 of them without labels.
    """
    if isinstance(choices, Mapping):
        if set(choices) == {"label", "text"} and not isinstance(choices["text"], str):
            return {str(k).upper(): str(v) for k, v in zip(choices["label"], choices["text"], strict=True)}
        found = {str(k).upper(): str(v) for k, v in choices.items() if v is not None}
    elif isinstance(choices, Sequence) and not isinstance(choices, str) and len(choices) <= len(LETTERS):
        found = {LETTERS[i]: str(v) for i, v in enumerate(choices)}
    else:
        raise ValueError(f"the choices are {type(choices).__name__}: give a list of at most 26 texts, or label to text")
    if not found:
        raise ValueError("there are no choices")
    return found


def gold_label(gold: Any, options: Mapping[str, str]) -> str | None:
    """The label that a gold value means: a label, an index from 0 where the labels are letters, or an option's words;
    None where it is none of them."""
    if isinstance(gold, bool) or gold is None:
        return None
    text = str(gold).strip()
    if text.upper().strip("().") in options:
        return text.upper().strip("().")
    if isinstance(gold, int) or text.isdigit():
        at = int(text)
        if not any(k.isdigit() for k in options) and not _by_words(text, options):
            return list(options)[at] if at < len(options) else None
    return _by_words(text, options)


def find_choice(text: str, options: Mapping[str, str]) -> str | None:
    """The label of the option that `text` settles on, or None.

    Args:
        text: a completion of any length.
        options: label (upper case) to words, `read_options`.
    """
    found = find_answer(text, " ".join(options.values()) + " or , ; 1 = 2 = 3 : 4")  # hedges fail below, by form
    if found.refused:
        return None
    if found.answer is not None and found.source in ("box", "hash", "tag", "prose"):
        return _read(found.answer, options)
    body = strip_reasoning(text).strip()
    first, last = body.partition("\n")[0], body[body.rfind("\n") + 1 :]
    read = {label for line in (first, last) if (label := _read(line, options)) is not None}
    return read.pop() if len(read) == 1 else None


def _read(answer: str, options: Mapping[str, str]) -> str | None:
    if len(answer) > MAX_ANSWER + max(map(len, options.values())):
        return None
    answer = re.sub(r"\\(?:text|mathrm|textbf)\s?\{([^{}]*)\}", r"\1", tidy(_LEAD.sub("", answer, count=1)))
    labelled = _LABEL.fullmatch(answer.strip("*_ "))
    if labelled:
        label, rest = labelled[1].upper(), labelled[2]
        if label in options and (not normal(rest) or normal(rest) == normal(options[label])):
            return label
    return _by_words(answer, options)


def _by_words(text: str, options: Mapping[str, str]) -> str | None:
    plain = normal(text)
    found = [label for label, words in options.items() if plain and normal(words) == plain]
    return found[0] if len(found) == 1 else None
