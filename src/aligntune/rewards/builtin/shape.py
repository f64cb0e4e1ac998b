"""Rewards that measure length and repetition: `soft_overlong`, `cosine_length`, `brevity`, `conciseness`, `repetition`,
`compression_ratio`.

    get_reward_function("brevity", budget=2).compute("one two three")                          # 0.5
    get_reward_function("repetition", n=1).compute("so so so so")                              # 0.25
    get_reward_function("soft_overlong", max_length=8, cache=4, unit="words").compute("a " * 6)        # -0.5

Each is the stated statistic and says nothing about quality. An empty text scores 0 where the range is [0, 1].

Source: each docstring gives formula and paper. They do not compare the answers of a group.
"""

from __future__ import annotations

import math
import zlib
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import PositiveFloat, PositiveInt

from aligntune.errors import ConfigurationError
from aligntune.grading.extract import strip_reasoning
from aligntune.grading.math import DEADLINE
from aligntune.grading.text import pieces
from aligntune.rewards.base import reward
from aligntune.rewards.builtin.answer import golds
from aligntune.rewards.builtin.math import math_correctness
from aligntune.rewards.builtin.text import measure

Unit = Literal["words", "characters", "tokens"]
Signed = Annotated[float, Ge(-1), Le(1)]


def _check_overlong(params: dict[str, Any]) -> None:
    if params["cache"] > params["max_length"]:
        raise ValueError(f"cache = {params['cache']} is more than max_length = {params['max_length']}")
    _check_unit(params)


def _check_unit(params: dict[str, Any]) -> None:
    if params["tokenizer"] is not None and params["unit"] != "tokens":
        raise ValueError(f"tokenizer has no effect with unit = {params['unit']}")


@reward("soft_overlong", kind="measured", range=(-1.0, 0.0), check=_check_overlong)
def soft_overlong(
    text: str,
    completion_ids: Any = None,
    *,
    max_length: PositiveInt = 20480,
    cache: PositiveInt = 4096,
    unit: Unit = "tokens",
    tokenizer: str | None = None,
) -> float:
    """DAPO's soft overlong punishment: 0 up to max_length - cache, then falling linearly, -1 from max_length on.

    ((max_length - cache) - n) / cache in between (DAPO, arXiv:2503.14476, equation 13; its lengths are the defaults).
    Set max_length to the run's longest completion: shorter ones never reach the paper's.

    Args:
        completion_ids: the text's token ids, given in training.
        max_length: L_max.
        cache: L_cache, the interval of the punishment.
        unit: what is counted.
        tokenizer: what counts tokens where no ids are given.

    >>> get_reward_function("soft_overlong", max_length=8, cache=4, unit="words").compute("a b c d e f")
    -0.5
    """
    n = measure(text, unit, completion_ids, tokenizer)
    return -min(1.0, max(0.0, (n - (max_length - cache)) / cache))


def _check_cosine(params: dict[str, Any]) -> None:
    _check_unit(params)
    if min(params["right_short"], params["right_long"]) < max(params["wrong_short"], params["wrong_long"]):
        raise ValueError("a wrong answer would score more than a right one")


@reward("cosine_length", kind="verifiable", range=(-1.0, 1.0), check=_check_cosine)
def cosine_length(
    text: str,
    reference: Any,
    completion_ids: Any = None,
    *,
    max_length: PositiveInt = 1000,
    right_short: Signed = 1.0,
    right_long: Signed = 0.5,
    wrong_short: Signed = -1.0,
    wrong_long: Signed = -0.5,
    unit: Unit = "tokens",
    tokenizer: str | None = None,
    deadline: PositiveFloat = DEADLINE,
) -> float | None:
    """A right answer scores more the shorter it is, a wrong one the longer, along half a cosine.

    long + (short - long) (1 + cos(pi n / max_length)) / 2, with n clamped at max_length, and the pair of values that
    `math_correctness` chooses (Yeo et al. 2025, arXiv:2502.03373, appendix C.1; the defaults are Open-R1's).

    Args:
        reference: the gold answer.
        completion_ids: the text's token ids, given in training.
        max_length: the length from which the score no longer changes.
        right_short: a right answer of no length.
        right_long: a right answer of max_length.
        wrong_short: a wrong answer of no length.
        wrong_long: a wrong answer of max_length.
        unit: what is counted.
        tokenizer: what counts tokens where no ids are given.
        deadline: seconds for comparing the answer.

    >>> get_reward_function("cosine_length", max_length=4, unit="words").compute("so #### 5 apples", reference="5")
    0.5
    """
    right = math_correctness(text, reference, deadline=deadline)
    if right is None:
        return None
    short, long = (right_short, right_long) if right else (wrong_short, wrong_long)
    n = min(measure(text, unit, completion_ids, tokenizer), max_length)
    return long + (short - long) * (1 + math.cos(math.pi * n / max_length)) / 2


@reward("brevity", kind="measured", check=_check_unit)
def brevity(
    text: str,
    completion_ids: Any = None,
    *,
    budget: PositiveInt = 100,
    unit: Unit = "words",
    tokenizer: str | None = None,
) -> float:
    """1 up to a budget of words, falling linearly to 0 at twice the budget: 1 - (n - budget) / budget.

    Args:
        completion_ids: the text's token ids, given in training.
        budget: the length that costs nothing (100 words: ours, a short paragraph).
        unit: what is counted.
        tokenizer: what counts tokens where no ids are given.

    >>> get_reward_function("brevity", budget=2).compute("one two three")
    0.5
    """
    n = measure(text, unit, completion_ids, tokenizer)
    return 0.0 if not text.strip() else max(0.0, min(1.0, 1 - (n - budget) / budget))


def _check_concise(params: dict[str, Any]) -> None:
    if params["low"] > params["high"]:
        raise ValueError(f"low = {params['low']:g} is above high = {params['high']:g}")


@reward("conciseness", kind="measured", check=_check_concise)
def conciseness(
    text: str,
    reference: Any,
    *,
    low: Annotated[float, Gt(0)] = 0.5,
    high: Annotated[float, Gt(0)] = 1.2,
    unit: Literal["words", "characters"] = "words",
) -> float | None:
    """1 while the text after its thought is about as long as the reference, falling to 0 for shorter and longer ones.

    With r the ratio of lengths: 1 for low <= r <= high, r / low below, 1 - (r - high) / high above, never below 0. Of
    several references the shortest counts. A row without one is None, counted as `no_reference`.

    Args:
        reference: a text that says it in few words, or a list of such.
        low: the least ratio of full score (0.5: ours).
        high: the greatest (1.2: ours).
        unit: what is counted.

    >>> get_reward_function("conciseness").compute("one", reference="one two three four")
    0.5
    """
    right = golds(reference)
    if not right:
        return None
    ratio = measure(strip_reasoning(text).strip(), unit) / min(max(1, measure(g, unit)) for g in right)
    if ratio < low:
        return ratio / low
    return max(0.0, 1 - (ratio - high) / high) if ratio > high else 1.0


@reward("repetition", kind="measured")
def repetition(
    text: str, completion_ids: Any = None, *, n: PositiveInt = 4, unit: Literal["words", "tokens"] = "words"
) -> float:
    """Share of distinct n-grams among the n-grams of the text: 1 without repetition, near 0 for a loop.

    distinct / all, the distinct-n of Li et al. 2016 (arXiv:1510.03055). A text of fewer than n words is one n-gram. It
    falls a little with length in any text. Runs of letters over 24 characters count as pieces, scripts without spaces
    by character.

    Args:
        completion_ids: the text's token ids, given in training.
        n: words of an n-gram (4: ours; 3 punishes ordinary prose).
        unit: n-grams of words, or of token ids.

    >>> get_reward_function("repetition", n=1).compute("so so so so")
    0.25
    """
    if unit == "tokens" and completion_ids is None:
        raise ConfigurationError("counts tokens, but gets no token ids here", hint="write params: {unit: words}")
    items: list[Any] = pieces(text) if unit == "words" else list(completion_ids)
    if not items:
        return 0.0
    size = min(n, len(items))
    grams = list(zip(*(items[i:] for i in range(size)), strict=False))
    return len(set(grams)) / len(grams)


@reward("compression_ratio", kind="measured")
def compression_ratio(text: str, *, floor: Annotated[float, Gt(0), Le(1)] = 1 / 2.4) -> float:
    """1 while the text compresses to at least `floor` of its size, else the share of that floor: an alarm for loops.

    min(1, (compressed bytes / bytes) / floor) with zlib at level 6. The ratio falls with length in any text, so that
    this compares texts of like length alone; random letters score 1.

    Args:
        floor: the least ratio of full score; 1 / 2.4 is the threshold of Whisper (arXiv:2212.04356, section 4.5).

    >>> get_reward_function("compression_ratio").compute("a short text")
    1.0
    """
    raw = text.encode("utf-8", "surrogatepass")
    if not text.strip():
        return 0.0
    return min(1.0, len(zlib.compress(raw, 6)) / len(raw) / floor)
