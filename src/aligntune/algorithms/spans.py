r"""Where a completion reasons and where it answers: the text of its tokens, spans, and their weights.

    text, ranges = align(tokenizer.decode, ids)             # characters of every token
    begin = answer_start(text, ["####"])                    # "12+34 = 46.\n#### 46" -> 12
    spans = candidate_spans(text, begin, most=10)           # [(0, 10)]: the expression
    held = tokens_of(spans, ranges, first_answer_token(ranges, begin))
    importance = span_importance(drops, "counterfactual")   # drops of S(y), one per span
    weights = token_weights(len(ids), held, importance, first_answer_token(ranges, begin), ...)

Source: span deletion of arXiv:2602.09331. Pure functions of text and numbers: nothing here runs a model, and a
tokenizer is seen only through the function that turns ids into text.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Literal

Span = tuple[int, int]
"""Characters [start, end)."""
Mode = Literal["counterfactual", "random", "inverted", "uniform"]
WINDOW = 8
"""Tokens that are turned into text together: enough to keep the number of calls linear in the length."""
REPLACEMENT = "\ufffd"
LONGEST_CHARACTER = 4
"""Tokens of the longest UTF-8 character, if each is one byte."""

_OPERAND = r"[-+]?[$€£]?\d+(?:,\d{3})*(?:\.\d+)?%?"
_OPERATOR = r"\s?(?:[-+*/x×÷^=]|\\times|\\div|\\cdot)\s?"
_EXPRESSION = re.compile(rf"\(?{_OPERAND}\)?(?:{_OPERATOR}\(?{_OPERAND}\)?)+")
_SENTENCE = re.compile(r"\S(?:[^\n]*?[.!?](?=\s|$)|[^\n]*)")


def align(decode: Callable[[list[int]], str], ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The text of generated tokens, and the characters that each token stands for.

    Works for every tokenizer that can decode: a token's characters are what the text of the tokens up to it shares
    with the text of a few more. Tokens that hold parts of one character all stand for that character. A token without
    text of its own (a special one that `decode` leaves out) has an empty range.

    Args:
        decode: token ids to text.
        ids: T token ids, as they were generated.

    Returns:
        The text, and T ranges whose starts never fall.
    """
    ids = list(ids)
    text, ends, before, read = "", [0], 0, 0
    while read < len(ids):
        stop = min(read + WINDOW, len(ids))
        whole = decode(ids[before:stop])
        while whole.endswith(REPLACEMENT) and stop < min(read + WINDOW + LONGEST_CHARACTER, len(ids)):
            stop += 1
            whole = decode(ids[before:stop])
        # The tokens before `read` are decoded again for context: SentencePiece drops a leading space.
        base = len(text) - len(decode(ids[before:read]))
        text = text[:base] + whole
        for i in range(read + 1, stop + 1):
            part = whole if i == stop else decode(ids[before:i])
            ends.append(max(ends[-1], base + _shared(part, whole)))
        before, read = read, stop
    ends = [min(end, len(text)) for end in ends]
    return text, [(start, ends[bisect_right(ends, start)] if start < ends[-1] else start) for start in ends[:-1]]


def _shared(a: str, b: str) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def answer_start(text: str, markers: Sequence[str]) -> int | None:
    """Where the last answer marker begins, capitals aside; None where there is none."""
    found = [m.start() for marker in markers for m in re.finditer(re.escape(marker), text, re.IGNORECASE)]
    return max(found, default=None)


def first_answer_token(ranges: Sequence[Span], begin: int) -> int:
    """Index of the first token with a character at or after `begin`; the number of tokens if there is none."""
    return next((i for i, (start, end) in enumerate(ranges) if end > begin or start >= begin), len(ranges))


def candidate_spans(text: str, end: int, most: int) -> list[Span]:
    """Spans of the reasoning `text[:end]`: arithmetic expressions in reading order, then sentences that touch none.

    A line is a sentence of its own. At most `most` are kept, in that order.
    """
    reasoning = text[:end]
    spans = [m.span() for m in _EXPRESSION.finditer(reasoning)][:most]
    for match in _SENTENCE.finditer(reasoning):
        if len(spans) >= most:
            break
        start, stop = match.start(), match.start() + len(match.group().rstrip())
        if all(stop <= a or b <= start for a, b in spans):
            spans.append((start, stop))
    return spans


def tokens_of(spans: Sequence[Span], ranges: Sequence[Span], before: int) -> list[list[int]]:
    """Indices of the tokens of each span, below `before`; a token that two spans share goes to the first.

    Spans without a token are left out.
    """
    taken: set[int] = set()
    held = []
    starts = [start for start, _ in ranges[:before]]
    for start, end in spans:
        last = bisect_left(starts, end)
        own = []
        for i in range(last - 1, -1, -1):
            if ranges[i][1] <= start and ranges[i][1] > ranges[i][0]:
                break
            if ranges[i][1] > start and i not in taken:
                own.append(i)
        taken.update(own)
        if own:
            held.append(own[::-1])
    return held


def span_importance(drops: Sequence[float], mode: Mode, rng: random.Random | None = None) -> list[float]:
    """Importance in [0, 1] of each span.

    Args:
        drops: S(y) - S(y without the span), in nats; a negative one marks a distractor and counts 0. In `random` mode
            only their number is read.
        mode: `counterfactual` and `inverted` divide max(drop, 0) by the largest (all are 0 where none is positive);
            `random` does so with uniform draws in place of the drops; `uniform` gives 0.
        rng: the source of the draws.

    Raises:
        ValueError: `random` without a source.
    """
    if mode == "uniform":
        return [0.0] * len(drops)
    if mode == "random":
        if rng is None:
            raise ValueError("mode random needs a source of random numbers")
        drops = [rng.random() for _ in drops]
    gains = [max(float(d), 0.0) for d in drops]
    largest = max(gains, default=0.0)
    return [g / largest if largest > 0 else 0.0 for g in gains]


def token_weights(
    length: int,
    held: Sequence[Sequence[int]],
    importance: Sequence[float],
    answer: int,
    *,
    mode: Mode = "counterfactual",
    min_weight: float = 0.5,
    boost_factor: float = 2.0,
    answer_weight: float = 1.5,
    conserve_gradient: bool = True,
) -> list[float]:
    """Weights of a completion's T tokens.

    In the reasoning: min_weight + (boost_factor - min_weight) x importance, which is 0 outside spans; `inverted` takes
    1 - importance of every token. In the answer: answer_weight. Then all are divided by their mean
    (`conserve_gradient`), so that the weights of a completion add up to T. `uniform` gives 1 everywhere.

    Args:
        length: T.
        held: token indices of each span.
        importance: of each span, in [0, 1].
        answer: index of the first token of the answer.
    """
    if mode == "uniform":
        return [1.0] * length
    share = [0.0] * answer
    for tokens, value in zip(held, importance, strict=True):
        for i in tokens:
            share[i] = value
    if mode == "inverted":
        share = [1.0 - s for s in share]
    weights = [min_weight + (boost_factor - min_weight) * s for s in share] + [answer_weight] * (length - answer)
    if not conserve_gradient or not weights:
        return weights
    mean = math.fsum(weights) / length
    return [w / mean for w in weights]
