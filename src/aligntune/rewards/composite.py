"""Several rewards in one number: `CompositeReward` holds weights, thresholds, normalisation, the policy for None.

    composite = build_rewards([RewardConfig(type="math_correctness"), RewardConfig(type="answer_format", weight=0.2)])
    scores = composite.score_batch(["#### 72"], {"reference": ["72"]})
    scores.total            # [1.2]
    scores.components       # {"math_correctness": [1.0], "answer_format": [1.0]}

total = sum of weight x component, where a component is the reward's score after its threshold or
normalisation. A component of weight 0 is scored and logged, and never changes a total. A None among the
weighted components is decided by `none`:

- drop (default): the row has no total (None), and takes no part in the update;
- renormalise: the others count, scaled by (sum of all |weights|) / (sum of the present |weights|);
- zero: it counts 0, which is what TRL does by itself (a row without any score has no total all the same).

Source: the weighted sum of TRL's GRPOTrainer. It does not score by group, nor multiply or gate rewards.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

from aligntune.errors import ConfigurationError, RewardError, ValidationError
from aligntune.rewards.base import RewardFunction, Score, _events, missing_columns

if TYPE_CHECKING:
    from aligntune.core.config.sections import RewardConfig

NonePolicy = Literal["drop", "renormalise", "zero"]
TOTAL = "total"
"""Name of the sum in logs; a component cannot have it."""


@dataclass(frozen=True)
class BatchScores:
    """Scores of N texts.

    Attributes:
        total: N weighted sums; None for a dropped row.
        components: name to N scores after threshold or normalisation, before the weight.
        raw: name to N scores as the reward gave them, which is what rollouts keep.
        stats: counts for the batch: `<name>/none`, `<name>/errors`, `<name>/<event>` (such as `timeout`),
            `rows`, `rows_dropped`; zero counts are left out, but for `rows` and `rows_dropped`.
    """

    total: list[Score]
    components: dict[str, list[Score]]
    raw: dict[str, list[Score]] = field(default_factory=dict)
    stats: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Component:
    """One reward of a composite: the fields of `RewardConfig`, with the reward made.

    Raises:
        ConfigurationError: a setting that has no effect or no meaning (see `__post_init__`).
    """

    name: str
    reward: RewardFunction
    weight: float = 1.0
    threshold: float | None = None
    normalization: str = "none"
    on_error: str = "raise"

    def __post_init__(self) -> None:
        low, high = self.reward.range
        if not math.isfinite(self.weight):
            raise ConfigurationError(f"reward '{self.name}' has the weight {self.weight}", hint="give a finite number")
        if self.normalization == "minmax" and not (math.isfinite(low) and math.isfinite(high)):
            raise ConfigurationError(
                f"reward '{self.name}' has normalization minmax, but declares no finite range",
                hint="decorate the function with @reward(name, range=(low, high)), or remove normalization",
            )
        if self.threshold is not None and self.normalization != "none":
            raise ConfigurationError(
                f"reward '{self.name}' has a threshold and a normalization",
                hint="keep one: after a threshold the score is 0 or 1 already",
            )
        if self.threshold is not None and not low < self.threshold <= high:
            raise ConfigurationError(
                f"reward '{self.name}' has the threshold {self.threshold:g}, which all of its range "
                f"[{low:g}, {high:g}] {'reaches' if self.threshold <= low else 'misses'}",
                hint="choose a threshold above the lowest and up to the highest score",
            )

    @property
    def source(self) -> str:
        """The reward's source text, for the manifest."""
        return self.reward.source

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of the component after threshold or normalisation."""
        return self.reward.range if self.threshold is None and self.normalization == "none" else (0.0, 1.0)

    def transform(self, score: Score) -> Score:
        """The component's value for a raw score."""
        if score is None:
            return None
        if self.threshold is not None:
            return float(score >= self.threshold)
        if self.normalization == "minmax":
            low, high = self.reward.range
            return (score - low) / (high - low)
        return score


class CompositeReward:
    """A weighted sum of rewards.

    Args:
        components: `Component`s, or bare rewards, which are named after their type.
        weights: one per component, in place of their own (as in `CompositeReward([length, math], [0.3, 0.7])`).
        none: what a missing component does to its row.

    Raises:
        ConfigurationError: no components, two of one name, a wrong number of weights, or an unknown policy.
    """

    def __init__(
        self,
        components: Sequence[Component | RewardFunction],
        weights: Sequence[float] | None = None,
        *,
        none: NonePolicy = "drop",
    ) -> None:
        if none not in get_args(NonePolicy):
            raise ConfigurationError(f"unknown policy none={none!r}", hint=f"one of {', '.join(get_args(NonePolicy))}")
        if not components:
            raise ConfigurationError("there is no reward", hint="give at least one, as rewards: [math_correctness]")
        if weights is not None and len(weights) != len(components):
            raise ConfigurationError(
                f"{len(weights)} weights for {len(components)} rewards", hint="give one weight for each reward"
            )
        made = [c if isinstance(c, Component) else Component(c.label, c) for c in components]
        if weights is not None:
            made = [
                Component(c.name, c.reward, w, c.threshold, c.normalization, c.on_error)
                for c, w in zip(made, weights, strict=True)
            ]
        for name, times in Counter(c.name for c in made).items():
            if times > 1 or name == TOTAL:
                raise ConfigurationError(
                    f"two rewards are named '{name}'" if times > 1 else f"a reward is named '{TOTAL}', as their sum is",
                    hint="give one of them another name: rewards.0.name",
                )
        self.components = made
        self.none = none

    def place(self, device: str) -> None:
        """Let every reward that holds a model compute on `device` ("auto", "cpu", "cuda", "mps")."""
        for c in self.components:
            c.reward.place(device)

    @property
    def required_columns(self) -> set[str]:
        """Columns that the data must have; `prompt`, `completion` and `completion_ids` come from whoever
        scores."""
        return {column for c in self.components for column in c.reward.columns}

    def check_columns(self, present: Sequence[str]) -> None:
        """Raise `ValidationError` naming the reward and the columns it misses; any gold column stands for
        `reference`."""
        for c in self.components:
            missing = missing_columns(list(c.reward.columns), present)
            if missing:
                raise ValidationError(
                    f"reward '{c.name}' needs the column {', '.join(missing)}",
                    hint=f"the data have: {', '.join(sorted(present)) or 'none'}; map one with column_mapping",
                    context={"reward": c.name, "missing": missing},
                )

    def compute(self, text: str, **columns: Any) -> Score:
        """The total of one text; None if its row is dropped."""
        return self.score_batch([text], {k: [v] for k, v in columns.items()}).total[0]

    def score_batch(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
    ) -> BatchScores:
        """Score N texts under every component.

        Args:
            texts: completions, without their prompts.
            columns: name to N values; `prompt` and `completion_ids` too, where known.
            extras: TRL's further arguments, for batch functions.

        Raises:
            RewardError: a reward with `on_error: raise` raised, overran or broke its contract.
            ValidationError: a column is missing, or has another length than `texts`.
        """
        columns = dict(columns or {})
        for name, values in columns.items():
            if len(values) != len(texts):
                raise ValidationError(f"column '{name}' has {len(values)} values for {len(texts)} texts")
        self.check_columns(list(columns))
        stats: Counter[str] = Counter()
        raw: dict[str, list[Score]] = {
            c.name: self._score_component(c, texts, columns, extras, stats) for c in self.components
        }
        scored = {c.name: [c.transform(s) for s in raw[c.name]] for c in self.components}
        total = [self._total([scored[c.name][i] for c in self.components]) for i in range(len(texts))]
        counts = {k: v for k, v in stats.items() if v}
        counts |= {"rows": len(texts), "rows_dropped": sum(t is None for t in total)}
        return BatchScores(total=total, components=scored, raw=raw, stats=counts)

    def _score_component(
        self,
        c: Component,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        extras: Mapping[str, Any] | None,
        stats: Counter[str],
    ) -> list[Score]:
        failures: list[RewardError] = []
        events: Counter[str] = Counter()
        token = _events.set(events)
        try:
            scores = c.reward.batch(texts, columns, extras=extras, failures=failures if c.on_error == "skip" else None)
        finally:
            _events.reset(token)
        stats.update({f"{c.name}/{event}": n for event, n in events.items()})
        stats[f"{c.name}/errors"] += len(failures)
        stats[f"{c.name}/none"] += sum(s is None for s in scores) - len(failures)
        return scores

    def _total(self, values: Sequence[Score]) -> Score:
        """The weighted sum of one row; `values` in the order of the components."""
        weighted = [(c.weight, v) for c, v in zip(self.components, values, strict=True) if c.weight]
        present = [(w, v) for w, v in weighted if v is not None]
        if len(present) == len(weighted):
            return math.fsum(w * v for w, v in present)
        if self.none == "drop" or not present:
            return None
        total = math.fsum(w * v for w, v in present)
        if self.none == "renormalise":
            total *= math.fsum(abs(w) for w, _ in weighted) / math.fsum(abs(w) for w, _ in present)
        return total

    def summary(self, scores: BatchScores, prompts: Sequence[Any] | None = None) -> dict[str, float]:
        """Statistics of a batch for logs, each component under `rewards/<name>/`.

        Keys: `mean`, `std` (n - 1), `min`, `max`; `none` (share without a score); `at_min`, `at_max` (share
        at the bounds, where the range is finite); `within_group_var` (variance among the answers to one
        prompt, averaged over prompts, which is all that group-relative algorithms learn from; needs
        `prompts`); `share` of the total's variance, weight x cov(component, total) / var(total), which adds
        up to 1 over the components. What is undefined is left out.
        """
        out: dict[str, float] = {}
        for c in self.components:
            values = scores.components[c.name]
            present = [v for v in values if v is not None]
            stats: dict[str, float | None] = {"none": 1 - len(present) / len(values) if values else None}
            if present:
                low, high = c.bounds
                stats |= {
                    "mean": _mean(present),
                    "std": _variance(present) ** 0.5,
                    "min": min(present),
                    "max": max(present),
                }
                stats["at_min"] = _mean([float(v == low) for v in present]) if math.isfinite(low) else None
                stats["at_max"] = _mean([float(v == high) for v in present]) if math.isfinite(high) else None
                stats["within_group_var"] = _within(values, prompts) if prompts is not None else None
                stats["share"] = _share(c.weight, values, scores.total)
            out |= {f"rewards/{c.name}/{k}": v for k, v in stats.items() if v is not None}
        out |= {f"rewards/{k}": float(v) for k, v in scores.stats.items() if k.partition("/")[2] not in ("", "none")}
        out["rewards/rows_dropped"] = float(scores.stats.get("rows_dropped", 0))
        return out


def build_rewards(configs: Sequence[RewardConfig], *, none: NonePolicy = "drop") -> CompositeReward:
    """Make the rewards of a run.

    Args:
        configs: resolved in order; a name is that of the type, or the function's of `file.py:function`.

    Raises:
        ConfigurationError: an unknown name (the nearest is given), a wrong parameter, two rewards of one
            name, or a setting without effect.
    """
    from aligntune.rewards.registry import make_reward

    components = []
    for config in configs:
        made = make_reward(config.type, dict(config.params), deadline=config.deadline)
        name = config.name or made.label
        components.append(Component(name, made, config.weight, config.threshold, config.normalization, config.on_error))
    return CompositeReward(components, none=none)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)


def _within(values: Sequence[Score], prompts: Sequence[Any]) -> float | None:
    """Mean variance within runs of equal prompts (TRL keeps a group together); None if no group has two
    scores."""
    edges = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(prompts)) if a != b), len(prompts)]
    groups = [[v for v in values[a:b] if v is not None] for a, b in pairwise(edges)]
    variances = [_variance(group) for group in groups if len(group) > 1]
    return _mean(variances) if variances else None


def _share(weight: float, values: Sequence[Score], totals: Sequence[Score]) -> float | None:
    pairs = [(v, t) for v, t in zip(values, totals, strict=True) if v is not None and t is not None]
    if len(pairs) < 2:
        return None
    mean_v, mean_t = _mean([v for v, _ in pairs]), _mean([t for _, t in pairs])
    variance = math.fsum((t - mean_t) ** 2 for _, t in pairs)
    covariance = math.fsum((v - mean_v) * (t - mean_t) for v, t in pairs)
    return weight * covariance / variance if variance > 0 else None
