"""Readability by published formulas: `readability`.

    get_reward_function("readability", formula="ari", low=2, high=6).compute("The cat sat on the mat.")     # 0.0, ARI
    -5

The formulas count letters, words and sentences; none looks at sense, and nonsense in short words reads easily. That
is why it is a target band and no maximum.

Source: ARI (Smith and Senter 1967), Coleman-Liau (Coleman and Liau 1975), LIX (Bjoernsson 1968). ARI and Coleman-Liau
are made for English, LIX for languages with an alphabet.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Gt

from aligntune.grading.extract import strip_reasoning
from aligntune.grading.text import sentences, words
from aligntune.rewards.base import reward

BANDS: dict[str, tuple[float, float]] = {"ari": (6, 12), "coleman_liau": (6, 12), "lix": (30, 50)}
"""Bands where none is given: grades 6 to 12 of a US school; LIX 30 (easy) to 50 (difficult)."""


def _check_band(params: dict[str, Any]) -> None:
    low, high = _band(params["formula"], params["low"], params["high"])
    if low > high:
        raise ValueError(f"low = {low:g} is above high = {high:g}")


def _band(formula: str, low: float | None, high: float | None) -> tuple[float, float]:
    own = BANDS[formula]
    return own[0] if low is None else low, own[1] if high is None else high


def index(text: str, formula: str) -> float | None:
    """The index of a text; None without words.

    ARI: 4.71 characters / words + 0.5 words / sentences - 21.43. Coleman-Liau: 5.88 letters / words - 29.6 sentences /
    words - 15.8. LIX: words / sentences + 100 (words over 6 letters) / words.
    """
    found = words(text)
    if not found:
        return None
    n, k = len(found), max(1, len(sentences(text)))
    letters = sum(map(len, found))
    if formula == "ari":
        return 4.71 * letters / n + 0.5 * n / k - 21.43
    if formula == "coleman_liau":
        return 5.88 * letters / n - 29.6 * k / n - 15.8
    return n / k + 100 * sum(len(w) > 6 for w in found) / n


@reward("readability", kind="measured", check=_check_band)
def readability(
    text: str,
    *,
    formula: Literal["ari", "coleman_liau", "lix"] = "ari",
    low: float | None = None,
    high: float | None = None,
    width: Annotated[float, Gt(0)] | None = None,
) -> float:
    """1 while the readability index of the text after its thought is inside a band, falling linearly to 0 outside.

    The formulas stand at `index`. A text without words scores 0.

    Args:
        formula: `ari` and `coleman_liau` give grades of a US school, `lix` a number between about 20 and 60.
        low: least index of full score; None is 6, or 30 for LIX.
        high: greatest; None is 12, or 50 for LIX.
        width: how far outside the score reaches 0; None is half of the band, and 1 at least.

    >>> get_reward_function("readability", low=-8, high=-4).compute("The cat sat on the mat.")
    1.0
    """
    found = index(strip_reasoning(text), formula)
    if found is None:
        return 0.0
    least, most = _band(formula, low, high)
    away = max(least - found, found - most, 0.0)
    return max(0.0, 1 - away / (width or max((most - least) / 2, 1.0)))
