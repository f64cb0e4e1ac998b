"""Rewards that compare a final answer with the gold answer: `math_correctness`.

    get_reward_function("math_correctness").compute("6 x 12 = 72 #### 72", reference="72")      # 1.0

Source: `aligntune.grading`. They do not look at the steps before the answer.
"""

from __future__ import annotations

from typing import Any

from pydantic import PositiveFloat

from aligntune.errors import ValidationError
from aligntune.grading.extract import find_answer
from aligntune.grading.math import DEADLINE, gold_answer, grade
from aligntune.rewards.base import count, reward


@reward("math_correctness", kind="verifiable")
def math_correctness(text: str, reference: Any, *, deadline: PositiveFloat = DEADLINE) -> float | None:
    """1 if the final answer of the text equals the gold answer, else 0; None where the gold answer cannot be
    read.

    The final answer is the last box, `####`, answer tag, "answer is ..." or number, in this order; several
    different marks, hedges and answers over 300 characters are wrong. Equality is that of numbers, or else
    Math-Verify's, in a process of its own. Counted per batch: `timeout`, `crash`, `hedge`, `no_answer`,
    `gold_unparseable`.

    Args:
        reference: the gold answer, a number or text, or a solution that ends in it (`#### 72`).
        deadline: seconds for one comparison; an answer that takes longer is wrong (5: Math-Verify's default).
    """
    if not isinstance(reference, (str, int, float, type(None))):
        raise ValidationError(f"the reference is {type(reference).__name__}, neither text nor a number")
    gold = gold_answer(reference)
    if gold is None:
        count("gold_unparseable")
        return None
    found = find_answer(text, gold)
    verdict = grade(gold, found.answer, deadline)
    event = "hedge" if found.refused else verdict.how
    if event in ("timeout", "crash", "hedge", "no_answer", "gold_unparseable"):
        count(event)
    return None if verdict.equal is None else float(verdict.equal)
