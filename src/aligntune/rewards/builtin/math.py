"""Rewards for a final answer in mathematics: `math_correctness`, and with its steps `math_reasoning` and its kin.

    get_reward_function("math_correctness").compute("6 x 12 = 72 #### 72", reference="72")              # 1.0
    get_reward_function("math_reasoning").compute("6 + 6 = 13, 13 - 1 = 12 #### 12", reference="12")    # 0.9

Source: `aligntune.grading`. Of the steps only arithmetic is looked at, not whether they lead to the answer.
"""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import PositiveFloat

from aligntune.errors import ValidationError
from aligntune.grading.arithmetic import share_that_holds
from aligntune.grading.extract import find_answer
from aligntune.grading.math import DEADLINE, gold_answer, grade
from aligntune.rewards.base import count, reward

Share = Annotated[float, Ge(0), Le(1)]


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

    >>> get_reward_function("math_correctness").compute("so the answer is 72.0", reference="72")
    1.0
    """
    if not isinstance(reference, (str, int, float, type(None))):
        raise ValidationError(
            f"the reference is {type(reference).__name__}, neither text nor a number",
            hint="map the column with the right answers: column_mapping: {reference: ...}",
        )
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


@reward("math_reasoning", kind="verifiable")
def math_reasoning(
    text: str,
    reference: Any,
    *,
    answer_weight: Share = 0.8,
    needs_answer: bool = True,
    deadline: PositiveFloat = DEADLINE,
) -> float | None:
    """Final answer plus arithmetic: answer_weight x (1 if the answer is right) + (1 - answer_weight) x share of steps
    that hold.

    A step is an equality of plain numbers, such as `6 * 12 = 72` (`aligntune.grading.arithmetic`); each counts once,
    those inside a thought too. A text without steps has the share 0.

    Args:
        reference: the gold answer, as in `math_correctness`.
        answer_weight: the part of the answer (0.8: ours; the answer outweighs any number of steps).
        needs_answer: a wrong answer scores 0. If false, true steps pay beside a wrong answer too, which `1 + 1 = 2`
            collects.
        deadline: seconds for comparing the answer.

    >>> get_reward_function("math_reasoning").compute("6 + 6 = 13, 13 - 1 = 12 #### 12", reference="12")
    0.9
    """
    right = math_correctness(text, reference, deadline=deadline)
    if right is None:
        return None
    share = share_that_holds(text)
    if share is None:
        count("no_steps")
    if needs_answer and not right:
        return 0.0
    return answer_weight * right + (1 - answer_weight) * (share or 0.0)


@reward("counterfactual_math", kind="verifiable")
def counterfactual_math(
    text: str,
    reference: Any,
    original: Any = None,
    *,
    answer_weight: Share = 0.8,
    deadline: PositiveFloat = DEADLINE,
) -> float | None:
    """`math_reasoning` for a problem whose numbers were changed; the answer to the unchanged problem is counted.

    An answer equal to `original`, the answer before the change, scores 0 as any wrong one, and is counted as
    `original_answer`: the text repeats what it remembers. A row whose two answers are equal tests nothing, and is None.

    Args:
        reference: the gold answer of the changed problem.
        original: the gold answer of the unchanged one; None counts nothing.
        answer_weight: as in `math_reasoning`.
        deadline: seconds for comparing the answer.

    >>> get_reward_function("counterfactual_math").compute("6 * 12 = 72 #### 72", reference="84", original="72")
    0.0
    """
    before = gold_answer(original)
    if before is not None and grade(reference, before, deadline).equal:
        count("unchanged")
        return None
    score = math_reasoning(text, reference, answer_weight=answer_weight, deadline=deadline)
    if before is not None and score == 0.0 and grade(before, find_answer(text, before).answer, deadline).equal:
        count("original_answer")
    return score
