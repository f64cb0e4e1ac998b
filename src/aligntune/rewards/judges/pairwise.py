"""Two answers to one prompt, compared by a judge in both orders: `compare`.

    compare(judge, [("2 + 2?", "4", "5")])          # [Comparison(winner='first', problem='')]

Judges favour a place: one kept its verdict in about 65% of swaps (Zheng et al. 2023, arXiv:2306.05685, table 2). So
each pair is asked twice, with the answers swapped, and only a verdict that both orders share counts. Two ties are a
tie; a win in one order and a tie or a loss in the other is `inconsistent`, and no result.

Two equal texts are a tie without a question. It does not rank more than two answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aligntune.errors import ConfigurationError
from aligntune.rewards.judges.base import Judge
from aligntune.rewards.judges.rubric import MAX_CHARS, Rubric, as_text, load_rubric

Winner = Literal["first", "second", "tie"]
_PLACES: dict[str, Winner] = {"A": "first", "B": "second", "tie": "tie"}
_SWAPPED: dict[str, Winner] = {"A": "second", "B": "first", "tie": "tie"}


@dataclass(frozen=True)
class Comparison:
    """What came of one pair.

    Attributes:
        winner: `first`, `second` or `tie`, where both orders agree; else None.
        problem: "" or why there is none: `inconsistent`, `nonsense`, `judge_failed`.
        straight: the verdict with the first answer shown first; None where there is none that can be read.
        swapped: the verdict with the second answer shown first.
    """

    winner: Winner | None
    problem: str = ""
    straight: Winner | None = None
    swapped: Winner | None = None


def compare(
    judge: Judge, pairs: Sequence[tuple[Any, str, str]], rubric: Rubric | None = None, limit: int = MAX_CHARS
) -> list[Comparison]:
    """Compare the two answers of each pair; 2N questions.

    Args:
        judge: who is asked.
        pairs: N triples (prompt, first answer, second answer); the prompt is text or messages.
        rubric: with `form: winner`; None takes the shipped `pairwise`.
        limit: most characters of each text that are shown.

    Raises:
        ConfigurationError: the rubric has no `form: winner`.
        RewardError: the judge answered none of the questions.
    """
    rubric = rubric or load_rubric("pairwise")
    if rubric.form != "winner":
        raise ConfigurationError(f"the rubric '{rubric.name}' scores one answer", hint="write form: winner into it")
    differ = [i for i, (_, first, second) in enumerate(pairs) if first.strip() != second.strip()]
    questions = []
    for i in differ:
        prompt, first, second = pairs[i]
        for a, b in ((first, second), (second, first)):
            texts = {"prompt": as_text(prompt), "answer_a": a, "answer_b": b}
            questions.append(rubric.question(texts, limit))
    answers = judge.ask(questions, version=rubric.tag)
    found = [Comparison("tie", "", "tie", "tie")] * len(pairs)
    for place, i in enumerate(differ):
        found[i] = _agreed(rubric, answers[2 * place], answers[2 * place + 1])
    return found


def _agreed(rubric: Rubric, straight: str | None, swapped: str | None) -> Comparison:
    """What two answers say together; in the second A and B changed places."""
    one = None if straight is None else _PLACES.get(str(rubric.read(straight)))
    two = None if swapped is None else _SWAPPED.get(str(rubric.read(swapped)))
    if one is not None and one == two:
        return Comparison(one, "", one, two)
    problem = "judge_failed" if straight is None or swapped is None else "inconsistent" if one and two else "nonsense"
    return Comparison(None, problem, one, two)
