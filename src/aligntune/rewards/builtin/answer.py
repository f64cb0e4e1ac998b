"""Rewards that compare an answer in words with the gold answer: `exact_match`, `f1`, `contains`, `choice`.

    get_reward_function("exact_match").compute("the Seine.", reference="Seine")                # 1.0
    get_reward_function("f1").compute("in Paris", reference="Paris, France")                   # 0.5
    get_reward_function("choice").compute("(B)", reference="B", choices=["Rome", "Paris"])      # 1.0

Several gold answers (a list) are alternatives: the best counts. A row without one scores None, counted as
`no_reference`.

Source: SQuAD (arXiv:1606.05250) for normal form and F1. Linear in the length of the text. Mathematical answers belong
to `math_correctness`: here 1/2 and 0.5 are two texts.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import PositiveInt

from aligntune.grading.choice import find_choice, gold_label, read_options
from aligntune.grading.extract import final_answer, strip_reasoning
from aligntune.grading.text import overlap_f1, same, words
from aligntune.rewards.base import count, reward

Where = Literal["whole", "final"]


def golds(reference: Any) -> list[str]:
    """Gold answers as texts: of a value, of a list of values, of SQuAD's `{"text": [...]}`; blank ones left out."""
    if isinstance(reference, dict):
        reference = reference.get("text")
    values = list(reference) if isinstance(reference, (list, tuple)) else [reference]
    found = [str(v) for v in values if v is not None and str(v).strip()]
    if not found:
        count("no_reference")
    return found


def _part(text: str, where: Where, gold: str) -> str | None:
    return strip_reasoning(text).strip() if where == "whole" else final_answer(text, gold)


@reward("exact_match", kind="verifiable")
def exact_match(
    text: str, reference: Any, *, where: Where = "whole", normalize: Literal["squad", "none"] = "squad"
) -> float | None:
    """1 if the answer equals a gold answer in SQuAD's normal form, else 0.

    The normal form has lower case, no punctuation and no English articles (SQuAD, arXiv:1606.05250); the sign and the
    decimal point of a number stay.

    Args:
        reference: the gold answer, or a list of right ones.
        where: the answer is the `whole` text after its thought, or the `final` one that it marks
            (`aligntune.grading.extract`).
        normalize: `none` compares the texts as they are, white space around them aside.

    >>> get_reward_function("exact_match").compute("The Seine.", reference="Seine")
    1.0
    """
    right = golds(reference)
    if not right:
        return None
    for gold in right:
        answer = _part(text, where, gold)
        if answer is not None and (same(answer, gold) if normalize == "squad" else answer.strip() == gold.strip()):
            return 1.0
    return 0.0


@reward("f1", kind="reference")
def f1(text: str, reference: Any, *, where: Where = "whole") -> float | None:
    """Token F1 with the gold answer, the best over several: 2 x shared / (words of the text + words of the gold).

    Words of SQuAD's normal form, counted with multiplicity (arXiv:1606.05250, section 6.1); in scripts without spaces
    each character is one.

    Args:
        reference: the gold answer, or a list of right ones.
        where: as in `exact_match`.

    >>> get_reward_function("f1").compute("in Paris", reference="Paris, France")
    0.5
    """
    right = golds(reference)
    if not right:
        return None
    parts = [(_part(text, where, gold), gold) for gold in right]
    return max(0.0 if part is None else overlap_f1(part, gold) for part, gold in parts)


@reward("contains", kind="verifiable")
def contains(
    text: str,
    reference: Any,
    *,
    mode: Literal["any", "all", "share"] = "any",
    whole_words: bool = True,
    ignore_case: bool = True,
    max_words: PositiveInt | None = None,
) -> float | None:
    """1 if the text after its thought contains the gold text, else 0.

    A text that lists every candidate contains the right one too: set `max_words`, or ask for an answer with a mark and
    take `exact_match`.

    Args:
        reference: what it must contain, a text or a list.
        mode: of a list `any` or `all`, or the `share` that is found.
        whole_words: "art" is not found in "party"; set it to false for scripts without spaces.
        ignore_case: compare without regard to case.
        max_words: a longer text scores 0.

    >>> get_reward_function("contains", mode="share").compute("It is in Paris.", reference=["Paris", "France"])
    0.5
    """
    terms = golds(reference)
    if not terms:
        return None
    body = strip_reasoning(text)
    if max_words is not None and len(words(body)) > max_words:
        return 0.0
    found = [_find(body, term.strip(), whole_words, ignore_case) for term in terms]
    share = sum(found) / len(found)
    return {"any": float(share > 0), "all": float(share == 1), "share": share}[mode]


def _find(text: str, term: str, whole_words: bool, ignore_case: bool) -> bool:
    if ignore_case:
        text, term = text.casefold(), term.casefold()
    if not whole_words:
        return term in text
    return re.search(rf"(?<!\w){re.escape(term)}(?!\w)", text) is not None


@reward("choice", kind="verifiable")
def choice(text: str, reference: Any, choices: Any) -> float | None:
    """1 if the text settles on the gold option, else 0; several options, or none, are wrong.

    It settles by a marked answer, or by a first or last line that is a label, a label with its option's words, or an
    option's words (`aligntune.grading.choice`).

    Args:
        reference: label, index from 0, or words of the right option.
        choices: texts (labelled A, B, ...), a mapping of labels to texts, or ARC's lists of both.

    >>> get_reward_function("choice").compute("The answer is (B).", reference="B", choices=["Rome", "Paris"])
    1.0
    """
    options = read_options(choices)
    gold = gold_label(reference, options)
    if gold is None:
        count("gold_unparseable")
        return None
    found = find_choice(text, options)
    if found is None:
        count("no_choice")
    return float(found == gold)
