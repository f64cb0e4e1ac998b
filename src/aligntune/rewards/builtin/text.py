"""Rewards that a stated statistic or rule of the text decides: `length`.

    get_reward_function("length", min_length=5, max_length=20).compute("one two three")     # 0.6

They say nothing about quality. Source: each docstring gives its formula. They do not read the prompt.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal

from annotated_types import Ge

from aligntune.errors import ConfigurationError
from aligntune.rewards.base import reward

Length = Annotated[int, Ge(0)]


def _check_length(params: dict[str, Any]) -> None:
    low, high, target = params["min_length"], params["max_length"], params["target_length"]
    if target is not None and (low, high) != (10, 500):
        raise ValueError("target_length and a band (min_length, max_length) exclude each other")
    if target == 0 or high == 0:
        raise ValueError("the length aimed at must be at least 1")
    if low > high:
        raise ValueError(f"min_length = {low} is above max_length = {high}")
    if params["tokenizer"] is not None and params["unit"] != "tokens":
        raise ValueError(f"tokenizer has no effect with unit = {params['unit']}")


@reward("length", kind="measured", check=_check_length)
def length(
    text: str,
    completion_ids: Any = None,
    *,
    unit: Literal["words", "characters", "tokens"] = "words",
    min_length: Length = 10,
    max_length: Length = 500,
    target_length: Length | None = None,
    tokenizer: str | None = None,
) -> float:
    """1 inside [min_length, max_length], falling linearly to 0 outside; or 1 at target_length, falling to
    both sides.

    Below the band n / min_length; above it 1 - (n - max_length) / max_length, so 0 from twice the maximum.
    With a target 1 - |n - target| / target. Never below 0. The band's default, 10 to 500 words, is that of
    AlignTune's paper interface.

    Args:
        completion_ids: the text's token ids, given in training; unit `tokens` counts them.
        unit: words (separated by white space), characters, or tokens.
        tokenizer: folder or hub id of the tokenizer that counts tokens where no ids are given.

    >>> get_reward_function("length", min_length=5, max_length=20).compute("one two three")
    0.6
    """
    n = measure(text, unit, completion_ids, tokenizer)
    if target_length is not None:
        return max(0.0, 1 - abs(n - target_length) / target_length)
    if n < min_length:
        return n / min_length
    return max(0.0, 1 - (n - max_length) / max_length) if n > max_length else 1.0


def measure(text: str, unit: str, ids: Any = None, tokenizer: str | None = None) -> int:
    """The length of a text.

    Args:
        unit: words (separated by white space), characters, or tokens.
        ids: the text's token ids, counted for tokens.
        tokenizer: folder or hub id of the tokenizer that counts where there are none.

    Raises:
        ConfigurationError: tokens are to be counted, and there are neither ids nor a tokenizer.
    """
    if unit == "words":
        return len(text.split())
    if unit == "characters" or not text:
        return len(text)
    if ids is not None:
        return len(ids)
    if tokenizer is None:
        raise ConfigurationError(
            "counts tokens, but gets no token ids here",
            hint="name the tokenizer that counts them: params: {unit: tokens, tokenizer: <folder or hub id>}",
        )
    return len(_tokenizer(tokenizer)(text, add_special_tokens=False)["input_ids"])


@lru_cache(maxsize=2)
def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)
