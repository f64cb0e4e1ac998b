"""How a user's function is called: TRL's batch arguments, what a coroutine gives, and verl's way to return a score.

    batch_arguments(fn, ["7"], {"prompt": ["3 + 4 ="]}, {})      # {"prompts": ["3 + 4 ="], "completions": ["7"]}

Source: `GRPOTrainer._calculate_rewards` of TRL 1.14.2; verl's custom reward functions (documentation of release 0.5).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def batch_arguments(
    fn: Callable[..., Any], texts: Sequence[str], columns: Mapping[str, Sequence[Any]], extras: Mapping[str, Any]
) -> dict[str, Any]:
    """`prompts`, `completions` and what else of TRL's own arguments the function names."""
    prompts = list(columns.get("prompt", [""] * len(texts)))
    completions = columns.get("completion")
    if completions is None:
        completions = [
            [{"role": "assistant", "content": t}] if isinstance(p, list) else t
            for p, t in zip(prompts, texts, strict=True)
        ]
    given = {"prompts": prompts, "completions": list(completions), **extras}
    if "completion_ids" in columns:
        given["completion_ids"] = columns["completion_ids"]
    parameters = inspect.signature(fn).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {k: v for k, v in given.items() if takes_all or k in parameters}


async def begun(call: Callable[[str, Mapping[str, Any]], Any], text: str, row: Mapping[str, Any]) -> Any:
    """One text's coroutine; what its arguments raise is raised in its own place."""
    return await call(text, row)


def source_of(item: Any) -> str:
    """Source text of a function or class; its qualified name where the text is not to be had."""
    try:
        return inspect.getsource(item)
    except (OSError, TypeError):  # defined in an interactive session, or a callable object
        return f"{getattr(item, '__module__', '')}:{getattr(item, '__qualname__', repr(item))}"


def number_of(value: Any) -> float:
    """A number as a float; infinite where it is beyond the largest one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def value_of(outcome: Any) -> Any:
    """A value, or the exception in its place raised."""
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


async def verl_later(result: Any) -> Any:
    """`verl_score` of what a coroutine gives."""
    return verl_score(await result)


def verl_score(result: Any) -> Any:
    """The number of verl's `compute_score`, which may stand in a mapping under `score`."""
    if isinstance(result, Mapping):
        if "score" not in result:
            raise ValueError(f"it returned a mapping without 'score' (keys: {', '.join(map(str, result))})")
        return result["score"]
    return result
