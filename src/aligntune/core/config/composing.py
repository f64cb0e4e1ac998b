"""The section `composition`: how the rewards of a row become one total, and which of its settings do something.

    composition: {mode: gated, gates: {math_correctness: 1}, clip: [0, 1.2]}

The formulas are those of `aligntune.rewards.composition`. What only the rewards themselves can tell (names, ranges) is
checked there, when they are made; here is what the configuration alone shows. It computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import MaxLen, MinLen
from pydantic import Field

from aligntune.core.config.base import section

if TYPE_CHECKING:
    from aligntune.core.config.sections import RewardConfig

Fault = tuple[str, str]


@section
class CompositionConfig:
    """How the rewards of a completion become its total."""

    mode: Literal["sum", "product", "min", "gated", "lexicographic"] = "sum"
    """sum: of weight x score (TRL). product: of score to the power of its weight. min: the least weighted score. gated:
    the sum, if every gate is passed. lexicographic: the first reward decides, the next one among equals, and so on."""
    gates: dict[str, float] = Field(default_factory=dict)
    """gated. Reward: least score, as `{math_correctness: 1}`; below it only the gates' own parts count (none by
    default)."""
    tolerance: dict[str, float] = Field(default_factory=dict)
    """lexicographic. Reward: the difference that counts; smaller ones are equal. Needed for all but the last."""
    none: Literal["drop", "renormalise", "zero"] = "drop"
    """A reward without a score: the row has no total and is left out, the others count in its place, or it counts 0
    (TRL)."""
    clip: Annotated[list[float], MinLen(2), MaxLen(2)] | None = None
    """[lowest, highest] total, after everything else; None clips nothing (TRL)."""
    normalise: Literal["none", "group", "running"] = "none"
    """In training, subtract the mean and divide by the standard deviation: of the answers to one prompt, or of all
    scores so far (none in TRL, whose trainer does it by group itself)."""
    normalise_of: Literal["total", "components"] = "total"
    """What is normalised: the total, or each reward before its weight (as GDPO, arXiv:2601.05242; TRL: the total)."""
    normalise_scale: bool = True
    """false subtracts the mean alone (Dr. GRPO, arXiv:2503.20783; TRL divides)."""


def inert_composition(composition: CompositionConfig) -> dict[str, str]:
    """Keys that other keys of the section switch off, with the reason."""
    keys = {}
    for name, mode in (("gates", "gated"), ("tolerance", "lexicographic")):
        if composition.mode != mode:
            keys[f"composition.{name}"] = f"`composition.mode` is {composition.mode}"
    if composition.normalise == "none":
        keys |= {f"composition.normalise_{n}": "`composition.normalise` is none" for n in ("of", "scale")}
    return keys


def composition_faults(composition: CompositionConfig, rewards: list[RewardConfig]) -> Iterable[Fault]:
    """Settings that change nothing with these rewards, as (dotted key, sentence)."""
    counted = [r for r in rewards if r.weight]
    if len(rewards) == 1 and composition.mode != "sum":
        yield "composition.mode", f"{composition.mode} needs at least two rewards; add one, or set it to sum"
    if len(counted) == 1 and composition.none != "drop":
        sentence = "a row without any score has no total under any policy, and one reward has a weight; remove it"
        yield "composition.none", sentence
    if len(counted) == 1 and composition.normalise_of == "components":
        yield "composition.normalise_of", "one reward has a weight, so it is the total; set it to total"


def training_faults(config: Any) -> Iterable[Fault]:
    """What the run's algorithm would undo or cannot do, as (dotted key, sentence)."""
    c, algo = config.composition, config.algorithm
    yield from composition_faults(c, config.rewards)
    if algo.splits_rewards and (c.mode, c.none, c.clip, c.normalise) != ("sum", "drop", None, "none"):
        changed = next(k for k in ("mode", "none", "clip", "normalise") if getattr(c, k) != _DEFAULTS[k])
        sentence = "needs algo.reward_aggregation: sum_then_normalize; the other takes plain weighted sums apart itself"
        yield f"composition.{changed}", sentence
    if c.normalise == "none":
        return
    does = {"shift", "scale"} if c.normalise_scale else {"shift"}
    if c.normalise == "group":
        does = {f"group {name}" for name in does}
        if algo.group_size == 1:
            yield "composition.normalise", "group compares the answers to one prompt, and algo.num_generations is 1"
    if algo.bounded_rewards:
        yield (
            "composition.normalise",
            (
                f"{algo.key} compares rewards with an expected value in [0, 1]; remove it, with normalise_of and "
                "normalise_scale"
            ),
        )
    elif c.normalise_of == "total" and does <= algo.invariance:
        sentence = f"{algo.key} compares totals in a way that this does not change; remove it"
        yield "composition.normalise", f"{c.normalise} has no effect here: {sentence}"
    elif c.normalise == "group" and c.normalise_of == "components" and hasattr(algo, "reward_aggregation"):
        sentence = (
            "each reward is normalised by group with algo.reward_aggregation: normalize_then_sum; set that instead"
        )
        yield "composition.normalise_of", sentence


_DEFAULTS = {"mode": "sum", "none": "drop", "clip": None, "normalise": "none"}
EVALUATION = ("normalise", "normalise_of", "normalise_scale")
"""Keys that belong to training alone."""
