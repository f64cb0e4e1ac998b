"""What a named word list says of a text: `vader` and `blocklist`, behind `sentiment` and `toxicity` with
`backend: lexical`.

    get_reward_function("sentiment", backend="lexical").compute("What a lovely day!")       # 0.62

Source: VADER (Hutto and Gilbert 2014), the package vaderSentiment, of the extra `text`. A lexicon of English social
media: it knows no other language, no irony and no context. It says how positive the words are and nothing about
quality; on human preferences it ranks pairs no better than a coin. A blocklist is an alarm for its own words alone: it
knows no insult without them, and sounds where they are quoted.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from aligntune import errors
from aligntune.errors import ConfigurationError
from aligntune.rewards.base import count


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


def vader(text: str, max_words: int) -> float:
    """VADER's compound score in [-1, 1]; 0 for a text without a word of its list.

    Args:
        max_words: words that are judged, because VADER is quadratic; a longer text is counted as `truncated`.
    """
    parts = text.split(None, max_words)
    if len(parts) > max_words:
        count("truncated")
    kept = " ".join(part[:100] for part in parts[:max_words]).encode("utf-8", "replace").decode()
    return float(_vader().polarity_scores(kept)["compound"])


def read_blocklist(path: str) -> re.Pattern[str]:
    """One pattern of the terms of a file: one term to a line, `#` begins a comment; whole words, any case.

    Raises:
        ConfigurationError: no such file, or no term in it.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigurationError(f"the word list {path} cannot be read: {e}", hint="give a UTF-8 text file") from e
    terms = {" ".join(line.partition("#")[0].split()).casefold() for line in lines} - {""}
    if not terms:
        raise ConfigurationError(f"the word list {path} has no terms", hint="write one term to a line")
    each = "|".join(re.escape(term).replace(r"\ ", r"\s+") for term in sorted(terms, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{each})(?!\w)")


def blocklist(text: str, terms: re.Pattern[str]) -> float:
    """0 if a term stands in the text, else 1."""
    return float(terms.search(text.casefold()) is None)
