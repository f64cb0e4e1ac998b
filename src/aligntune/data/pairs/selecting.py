"""From the ranked answers to one prompt to pairs: who takes part, which two differ enough, which pairs are kept.

    answers  ->  without cut, blank and repeated ones  ->  scored  ->  candidates  ->  kept pairs

A candidate is a pair (i, j) with score_i - score_j > 0 and at least the margin, and lengths in the allowed ratio; where
a judge compared the two themselves, i must have won in both orders. A prompt that gives no pair has one reason, the
first step after which nothing was left: `truncated`, `empty`, `identical`, `no_score`, `equal_scores`, `below_margin`,
`not_confirmed`, `length_ratio`.

>>> ranked = Ranked("p", [Answer("a", 1, True), Answer("b", 1, True), Answer("c", 1, True)], [0.0, 1.0, 0.5])
>>> choose(ranked, SelectConfig(), seed=0)
([Pair(chosen=1, rejected=0, margin=1.0)], None)

`best_worst` keeps the candidate with the largest margin; with `per_prompt` n, that of the answers that remain, n times.
Among pairs of equal margin, of which rewards of right and wrong give many, it takes the two nearest in length, then
those sampled first. It reads and writes no files.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING

from aligntune.eval.generation import Answer

if TYPE_CHECKING:
    from aligntune.data.pairs.config import SelectConfig

SCORING = 1e-9
"""Differences of sums of rewards below this, relative to the scores, are rounding."""
REASONS = {
    "prompt_too_long": "the prompt leaves no room for an answer in the model's context",
    "truncated": "fewer than two answers ended by themselves",
    "empty": "fewer than two answers have a text",
    "identical": "all answers are the same",
    "no_score": "fewer than two answers have a score",
    "equal_scores": "all scores are equal",
    "below_margin": "no two scores differ by the margin",
    "not_confirmed": "the judge did not prefer the better answer when it compared the two",
    "length_ratio": "no two answers with such a margin have similar lengths",
}
"""Why a prompt gives no pair, in the order in which it is decided."""


@dataclass(frozen=True)
class Ranked:
    """The answers to one prompt that take part, with their scores.

    Attributes:
        id: of the prompt.
        answers: n texts, all different, with tokens.
        scores: n numbers; None where there is none.
        wins: (i, j) where answer i won against j in both orders; None where answers were not compared.
        counts: answers that were left out before: `sampled`, `truncated`, `empty`, `repeated`.
        reason: why fewer than two take part; None where two do.
    """

    id: str
    answers: list[Answer]
    scores: list[float | None] = field(default_factory=list)
    wins: frozenset[tuple[int, int]] | None = None
    counts: Counter[str] = field(default_factory=Counter)
    reason: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two answers by their places in `Ranked.answers`, and the difference of their scores."""

    chosen: int
    rejected: int
    margin: float


def taking_part(prompt_id: str, answers: Sequence[Answer], *, keep_truncated: bool) -> Ranked:
    """The answers to a prompt without cut, blank and repeated ones (equal but for white space at the ends)."""
    counts = Counter(sampled=len(answers))
    kept = [a for a in answers if a.finished or keep_truncated]
    counts["truncated"] = len(answers) - len(kept)
    reason = "truncated" if len(kept) < 2 else None
    full = [a for a in kept if a.text.strip()]
    counts["empty"] = len(kept) - len(full)
    reason = reason or ("empty" if len(full) < 2 else None)
    first: dict[str, Answer] = {}
    for answer in full:
        first.setdefault(answer.text.strip(), answer)
    different = list(first.values())
    counts["repeated"] = len(full) - len(different)
    reason = reason or ("identical" if len(different) < 2 else None)
    return Ranked(prompt_id, different, counts=counts, reason=reason)


def ranks(scores: Sequence[float | None]) -> list[int | None]:
    """1 for the highest score, equal scores sharing the lower number; None for none.

    >>> ranks([0.5, 1.0, None, 0.5, 0.0])
    [2, 1, None, 2, 4]
    """
    present = [s for s in scores if s is not None]
    return [None if s is None else 1 + sum(_above(other, s) for other in present) for s in scores]


def choose(ranked: Ranked, select: SelectConfig, *, seed: int) -> tuple[list[Pair], str | None]:
    """The pairs of a prompt, and why there are none.

    Args:
        ranked: its answers.
        select: the section `select`.
        seed: of the draws of `best_random` and `all`, together with the prompt's id.

    Returns:
        (pairs, None), or ([], a key of `REASONS`).
    """
    found, reason = _candidates(ranked, select)
    if reason is not None:
        return [], reason
    rng = random.Random(f"{seed}:{ranked.id}")
    if select.pairs == "best_worst":
        return _furthest(found, [a.tokens for a in ranked.answers], select.per_prompt or 1), None
    if select.pairs == "best_random":
        top = {i for i, rank in enumerate(ranks(ranked.scores)) if rank == 1}
        best = next((pair.chosen for pair in found if pair.chosen in top), None)
        if best is None:  # a candidate of lower rank alone passes the last step that the best one failed
            return [], "length_ratio" if ranked.wins is None else "not_confirmed"
        return _drawn([pair for pair in found if pair.chosen == best], select.per_prompt or 1, rng), None
    return (found if select.per_prompt is None else _drawn(found, select.per_prompt, rng)), None


def _candidates(ranked: Ranked, select: SelectConfig) -> tuple[list[Pair], str | None]:
    """Every pair that may be kept, in the order of the answers; or why there is none."""
    if ranked.reason is not None:
        return [], ranked.reason
    scores = {i: s for i, s in enumerate(ranked.scores) if s is not None}
    if len(scores) < 2:
        return [], "no_score"
    found = [Pair(i, j, scores[i] - scores[j]) for i, j in permutations(scores, 2) if _above(scores[i], scores[j])]
    if not found:
        return [], "equal_scores"
    found = [p for p in found if p.margin >= select.margin or math.isclose(p.margin, select.margin, rel_tol=SCORING)]
    if not found:
        return [], "below_margin"
    if ranked.wins is not None:
        found = [p for p in found if (p.chosen, p.rejected) in ranked.wins]
    if not found:
        return [], "not_confirmed"
    limit = select.max_length_ratio
    if limit is not None:
        lengths = [a.tokens for a in ranked.answers]
        found = [p for p in found if _ratio(lengths[p.chosen], lengths[p.rejected]) <= limit]
    return found, None if found else "length_ratio"


def _furthest(found: Sequence[Pair], lengths: Sequence[int], count: int) -> list[Pair]:
    """The pair with the largest margin, then that of the other answers, and so on; among equals, alike in length."""

    def order(p: Pair) -> tuple[float, int, int, int]:
        return -round(p.margin, 9), abs(lengths[p.chosen] - lengths[p.rejected]), p.chosen, p.rejected

    kept: list[Pair] = []
    used: set[int] = set()
    for pair in sorted(found, key=order):
        if len(kept) < count and not used & {pair.chosen, pair.rejected}:
            kept.append(pair)
            used |= {pair.chosen, pair.rejected}
    return kept


def _drawn(found: Sequence[Pair], count: int, rng: random.Random) -> list[Pair]:
    places = sorted(rng.sample(range(len(found)), min(count, len(found))))
    return [found[i] for i in places]


def _above(a: float, b: float) -> bool:
    """Whether a is more than b by more than rounding."""
    return a > b and not math.isclose(a, b, rel_tol=SCORING, abs_tol=SCORING)


def _ratio(a: int, b: int) -> float:
    return max(a, b) / max(1, min(a, b))
