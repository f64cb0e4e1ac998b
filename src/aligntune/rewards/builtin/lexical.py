"""Rewards by a named lexicon: `sentiment`.

    get_reward_function("sentiment", backend="lexical").compute("What a lovely day!")       # 0.62

Source: VADER (Hutto and Gilbert 2014), the package vaderSentiment, of the extra `text`. A lexicon of English social
media: it knows no other language, no irony and no context. It says how positive the words are and nothing about
quality; on human preferences it ranks pairs no better than a coin.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import PositiveInt

from aligntune import errors
from aligntune.grading.extract import strip_reasoning
from aligntune.rewards.base import count, reward


def _check_backend(params: dict[str, Any]) -> None:
    if params["backend"] is None:
        raise ValueError(
            "the method has to be named: backend: lexical (VADER's word list, English); for a classifier of yours take "
            "reward_model"
        )


@cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as e:
        raise errors.EnvironmentError(
            "the reward 'sentiment' needs the package vaderSentiment, which is not installed",
            hint="run: pip install 'aligntune[text]'",
        ) from e
    return SentimentIntensityAnalyzer()


@reward("sentiment", kind="lexical", range=(-1.0, 1.0), check=_check_backend)
def sentiment(text: str, *, backend: Literal["lexical"] | None = None, max_words: PositiveInt = 400) -> float:
    """VADER's compound score of the text after its thought: -1 for negative words, 1 for positive ones.

    Of the first `max_words` words, because VADER is quadratic. A text without a word of its list scores 0, as a text of
    another language does.

    Args:
        backend: `lexical`, which has to be written out.
        max_words: words that are judged; a longer text is counted as `truncated`.

    >>> get_reward_function("sentiment", backend="lexical").compute("It is a table.")
    0.0
    """
    parts = strip_reasoning(text).split(None, max_words)
    if len(parts) > max_words:
        count("truncated")
    kept = " ".join(part[:100] for part in parts[:max_words]).encode("utf-8", "replace").decode()
    return float(_vader().polarity_scores(kept)["compound"])
