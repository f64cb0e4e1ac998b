"""Rewards made of another reward: `rescaled`, `gated`, `length_controlled`, `metric_only`.

    rewards:
      - {type: rescaled, params: {reward: {type: readability}, to: [0, 0.5]}}
      - {type: gated, params: {reward: judge_rubric, gate: {type: math_correctness}, threshold: 1}}
      - {type: length_controlled, params: {reward: {type: reward_model, params: {path: out/rm}}}}
      - {type: metric_only, params: {reward: repetition}}

The inner reward is a name, or a mapping with `type`, `params` and `deadline`. It keeps its deadline, its columns, its
checks and its device; its errors carry its own name. Weights, thresholds and policies belong to the wrapper's entry.

`length_controlled` removes the straight line between score and length: with scores s_i and lengths L_i, and bars for
the means over the answers to one prompt,

    slope = sum (L_i - L_bar)(s_i - s_bar) / sum (L_i - L_bar)^2,        s_i' = s_i - slope (L_i - L_bar)

one slope for the whole batch, from differences within prompts alone, because hard prompts ask for longer answers. Where
no prompt has two answers, the batch counts as one group. It is ordinary least squares with a mean of its own for each
prompt, computed anew for each batch. Example: scores 1, 2, 3 of lengths 10, 20, 30 all become 2.

Source of the idea: Dubois et al. 2024 (arXiv:2404.04475), who remove length from win rates by regression; the estimator
is ours. It removes a linear effect, not preferences for length that bend; and what is right because it is longer goes
too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from aligntune.errors import ConfigurationError, RewardError
from aligntune.registry import nearest
from aligntune.rewards.base import REWARDS, RewardFunction, Score, count
from aligntune.rewards.builtin.text import measure
from aligntune.rewards.summary import prompt_groups

SPEC = ("type", "params", "deadline")
"""Keys of an inner reward."""
Unit = Literal["words", "characters", "tokens"]


def inner_reward(given: Any, owner: str, judge: Any = None, key: str = "reward") -> RewardFunction:
    """The reward that a wrapper's parameter names.

    Args:
        given: a name, a mapping with `type`, `params` and `deadline`, or a reward.
        owner: the wrapper's name, for messages.
        judge: settings of the run's judge.
        key: the wrapper's parameter.

    Raises:
        ConfigurationError: none is given, a key is unknown, or the reward itself refuses its parameters.
    """
    from aligntune.rewards.registry import make_reward

    if isinstance(given, RewardFunction):
        return given
    if isinstance(given, str):
        given = {"type": given}
    example = f"write {key}: {{type: length, params: {{...}}}}"
    if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
        raise ConfigurationError(f"reward '{owner}' needs an inner reward under `{key}`", hint=example)
    for name in given:
        if name in ("weight", "threshold", "normalization", "on_error", "name"):
            raise ConfigurationError(
                f"reward '{owner}': `{key}.{name}` belongs to the wrapper's own entry",
                hint=f"write it beside `type: {owner}`",
            )
        if name not in SPEC:
            raise ConfigurationError(f"reward '{owner}': `{key}` has no key '{name}'", hint=nearest(str(name), SPEC))
    params, deadline = given.get("params") or {}, given.get("deadline")
    if not isinstance(params, Mapping):
        raise ConfigurationError(f"reward '{owner}': `{key}.params` is no mapping", hint=example)
    if deadline is not None and (isinstance(deadline, bool) or not isinstance(deadline, (int, float)) or deadline <= 0):
        raise ConfigurationError(f"reward '{owner}': `{key}.deadline` is {deadline!r}", hint="write seconds above 0")
    try:
        return make_reward(given["type"], dict(params), deadline=deadline, judge=judge)
    except ConfigurationError as e:
        raise ConfigurationError(f"reward '{owner}', {key}: {e.message}", hint=e.hint) from e


class Wrapper(RewardFunction):
    """Base of the wrappers: everything but the score is the inner reward's.

    Args:
        reward: the inner reward; see `inner_reward`.
        judge: settings of the run's judge, for inner rewards that ask one.
    """

    kind = "measured"
    deadline = None

    def __init__(self, reward: Any = None, *, judge: Any = None) -> None:
        self.inner = inner_reward(reward, self.name, judge)
        self.range = self.inner.range
        self.kind = self.inner.kind

    @property
    def parts(self) -> list[RewardFunction]:
        """The rewards inside."""
        return [self.inner]

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        """What the rewards inside need."""
        return frozenset(c for part in self.parts for c in part.columns)

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """As the rewards inside."""
        return any(part.whole for part in self.parts)

    @property
    def concurrent(self) -> bool:
        return any(part.concurrent for part in self.parts)

    @property
    def source(self) -> str:
        return "\n\n".join([f"{self!r}\n{super().source}", *(part.source for part in self.parts)])

    def missing(self, present: Sequence[str] | Mapping[str, Any]) -> list[str]:
        return sorted({c for part in self.parts for c in part.missing(present)})

    def reads(self, present: Sequence[str] | Mapping[str, Any]) -> frozenset[str]:
        return frozenset(c for part in self.parts for c in part.reads(present))

    def place(self, device: str) -> None:
        for part in self.parts:
            part.place(device)

    def prepare(self) -> None:
        for part in self.parts:
            part.prepare()

    def gauges(self) -> Mapping[str, float]:
        return {name: value for part in self.parts for name, value in part.gauges().items()}

    def compute(self, text: str, **kwargs: Any) -> float | None:
        """The score of one text, as of a batch of one."""
        return self.batch([text], {k: [v] for k, v in kwargs.items()})[0]

    def score(self, text: str, row: int = 0, columns: Mapping[str, Any] | None = None) -> Score:
        return self.batch([text], {k: [v] for k, v in (columns or {}).items()})[0]

    def batch(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        failures: list[RewardError] | None = None,
    ) -> list[Score]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(repr, self.parts))})"


class RescaledReward(Wrapper):
    """An inner reward on another scale: its declared range mapped to `to`, or its z-score by a given mean and std.

    Example: `{reward: {type: sentiment, params: {backend: lexical}}}` maps [-1, 1] to [0, 1]; `to: [1, 0]` turns a
    reward round.

    >>> get_reward_function("rescaled", reward="length", to=[1, 0]).compute("one two three four five")
    0.5

    Args:
        reward: the inner reward.
        to: where its lowest and its highest score go; [0, 1] unless mean and std are given.
        mean: with `std`: the score becomes (score - mean) / std, as with the statistics that a trained reward model has
            in its `reward_model.json`.
        std: standard deviation, above 0.
        judge: settings of the run's judge.

    Raises:
        ConfigurationError: an inner reward without a finite range and no mean; a map that changes nothing.
    """

    name = "rescaled"

    def __init__(
        self,
        reward: Any = None,
        *,
        to: Sequence[float] | None = None,
        mean: float | None = None,
        std: float | None = None,
        judge: Any = None,
    ) -> None:
        super().__init__(reward, judge=judge)
        low, high = self.inner.range
        if (mean is None) != (std is None) or (mean is not None and to is not None):
            raise ConfigurationError(
                "reward 'rescaled' takes `to`, or `mean` and `std` together", hint="give one of the two"
            )
        if mean is not None and std is not None:
            self.factor, self.shift = 1 / _number("std", std, positive=True), -_number("mean", mean) / std
        else:
            bottom, top = _pair([0.0, 1.0] if to is None else to)
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ConfigurationError(
                    f"reward 'rescaled': '{self.inner.label}' declares no finite range to map",
                    hint="give mean and std in place of `to`, or decorate it with @reward(name, range=(low, high))",
                )
            self.factor = (top - bottom) / (high - low)
            self.shift = bottom - low * self.factor
        if (self.factor, self.shift) == (1.0, 0.0):
            raise ConfigurationError(
                f"reward 'rescaled' changes nothing: '{self.inner.label}' has that scale already",
                hint="use it without the wrapper, or give another scale",
            )
        ends = (self._map(low), self._map(high))
        self.range = (min(ends), max(ends))

    def _map(self, score: float) -> float:
        return score * self.factor + self.shift

    def batch(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        failures: list[RewardError] | None = None,
    ) -> list[Score]:
        low, high = self.range
        scores = self.inner.batch(texts, columns, extras=extras, failures=failures)
        return [None if s is None else min(max(self._map(s), low), high) for s in scores]


class GatedReward(Wrapper):
    """An inner reward where a gate is passed, one stated score elsewhere; the inner reward is not asked there.

    The score is None where the gate has none. An inner reward that compares the answers of a batch sees those that
    passed alone.

    >>> gated = get_reward_function("gated", reward="answer_format", gate="math_correctness", below=-1)
    >>> gated.batch(["#### 7", "#### 8"], {"reference": ["7", "7"]})
    [1.0, -1.0]

    Args:
        reward: the inner reward.
        gate: the reward that decides.
        threshold: least score of the gate.
        below: the score where the gate is not passed.
        judge: settings of the run's judge.

    Raises:
        ConfigurationError: a threshold that every score of the gate reaches or misses.
    """

    name = "gated"

    def __init__(
        self, reward: Any = None, *, gate: Any = None, threshold: float = 1.0, below: float = 0.0, judge: Any = None
    ) -> None:
        self.gate = inner_reward(gate, self.name, judge, "gate")
        super().__init__(reward, judge=judge)
        self.threshold, self.below = _number("threshold", threshold), _number("below", below)
        low, high = self.gate.range
        if not low < self.threshold <= high:
            raise ConfigurationError(
                f"reward 'gated' has the threshold {self.threshold:g}, which all of the range [{low:g}, {high:g}] of "
                f"its gate '{self.gate.label}' {'reaches' if self.threshold <= low else 'misses'}",
                hint="choose a threshold above the lowest and up to the highest score",
            )
        self.range = (min(self.inner.range[0], self.below), max(self.inner.range[1], self.below))

    @property
    def parts(self) -> list[RewardFunction]:
        return [self.gate, self.inner]

    def batch(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        failures: list[RewardError] | None = None,
    ) -> list[Score]:
        given = columns or {}
        gates = self.gate.batch(texts, given, extras=extras, failures=failures)
        scores: list[Score] = [None if g is None else self.below for g in gates]
        passed = [i for i, g in enumerate(gates) if g is not None and g >= self.threshold]
        if passed:
            part = {name: [values[i] for i in passed] for name, values in given.items()}
            found = _in_rows(self.inner, [texts[i] for i in passed], part, extras, failures, passed)
            for i, score in zip(passed, found, strict=True):
                scores[i] = score
        return scores


class LengthControlledReward(Wrapper):
    """An inner reward without its straight-line relation to length within the batch, as estimated in this module.

    The mean of each prompt's scores stays. A batch of fewer than `least_rows` scores, or with equal lengths, is left as
    it is and counted (`too_few`, `no_slope`); so the score of one text alone is the inner reward's.

    >>> get_reward_function("length_controlled", reward="length").compute("one two three four five")
    0.5

    Args:
        reward: the inner reward.
        unit: what length is counted in: words, characters, or tokens (the ids that training passes).
        least_rows: fewest scores for a slope. Ours: with 16 the slope of pure noise moves scores by a quarter of their
            deviation.
        tokenizer: for tokens where there are no ids: folder or hub id of the tokenizer that counts.
        judge: settings of the run's judge.

    Raises:
        ConfigurationError: an unknown unit, or fewer than 3 rows.
    """

    name = "length_controlled"

    def __init__(
        self,
        reward: Any = None,
        *,
        unit: Unit = "words",
        least_rows: int = 16,
        tokenizer: str | None = None,
        judge: Any = None,
    ) -> None:
        super().__init__(reward, judge=judge)
        if unit not in get_args(Unit):
            raise ConfigurationError(f"reward '{self.name}': unit is {unit!r}", hint=nearest(str(unit), get_args(Unit)))
        if isinstance(least_rows, bool) or not isinstance(least_rows, int) or least_rows < 3:
            raise ConfigurationError(
                f"reward '{self.name}': least_rows is {least_rows!r}", hint="write a whole number from 3 up"
            )
        self.unit, self.least_rows, self.tokenizer = unit, least_rows, tokenizer
        self.range = (-math.inf, math.inf)

    @property
    def whole(self) -> bool:  # type: ignore[override]
        return True

    def batch(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        failures: list[RewardError] | None = None,
    ) -> list[Score]:
        given = columns or {}
        scores = self.inner.batch(texts, given, extras=extras, failures=failures)
        ids = given.get("completion_ids", [None] * len(texts))
        lengths = [measure(text, self.unit, own, self.tokenizer) for text, own in zip(texts, ids, strict=True)]
        groups = prompt_groups(given.get("prompt", [None] * len(texts)))
        rows = [i for i, s in enumerate(scores) if s is not None]
        if len(rows) < self.least_rows:
            count("too_few")
            return scores
        if len({groups[i] for i in rows}) == len(rows):
            groups = [0] * len(texts)
        away = _centred([float(lengths[i]) for i in rows], [groups[i] for i in rows])
        values = [s for s in scores if s is not None]
        spread = math.fsum(x * x for x in away)
        if spread == 0:
            count("no_slope")
            return scores
        slope = (
            math.fsum(x * y for x, y in zip(away, _centred(values, [groups[i] for i in rows]), strict=True)) / spread
        )
        controlled = list(scores)
        for i, x, y in zip(rows, away, values, strict=True):
            controlled[i] = y - slope * x
        return controlled


class MetricOnlyReward(Wrapper):
    """An inner reward that is scored, logged and stored, and never counts: its weight is 0 whatever is written.

    >>> get_reward_function("metric_only", reward="length").compute("one two three four five")
    0.5

    Args:
        reward: the inner reward; logs have its name.
        judge: settings of the run's judge.
    """

    name = "metric_only"

    @property
    def label(self) -> str:
        return self.inner.label

    def batch(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        failures: list[RewardError] | None = None,
    ) -> list[Score]:
        return self.inner.batch(texts, columns, extras=extras, failures=failures)


def _in_rows(
    reward: RewardFunction,
    texts: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    extras: Mapping[str, Any] | None,
    failures: list[RewardError] | None,
    rows: Sequence[int],
) -> list[Score]:
    """Scores of some rows of a batch, whose errors carry the numbers that the rows have there."""

    def placed(error: RewardError) -> RewardError:
        own = int(error.context.get("row", 0))
        context = {**error.context, "row": rows[own]}
        message = error.message.replace(f"(row {own}", f"(row {rows[own]}")
        return RewardError(message, hint=error.hint, context=context)

    own: list[RewardError] = []
    try:
        scores = reward.batch(texts, columns, extras=extras, failures=None if failures is None else own)
    except RewardError as e:
        raise placed(e) from e
    if failures is not None:
        failures.extend(map(placed, own))
    return scores


def _centred(values: Sequence[float], groups: Sequence[int]) -> list[float]:
    """Distances from the mean of the group."""
    members: dict[int, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        members.setdefault(group, []).append(value)
    means = {group: math.fsum(found) / len(found) for group, found in members.items()}
    return [value - means[group] for group, value in zip(groups, values, strict=True)]


def _number(name: str, value: Any, *, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigurationError(f"`{name}` is {value!r}", hint="write a number")
    if positive and value <= 0:
        raise ConfigurationError(f"`{name}` is {value!r}", hint="write a number above 0")
    return float(value)


def _pair(value: Any) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or value[0] == value[1]:
        raise ConfigurationError(f"`to` is {value!r}", hint="write two different numbers, as to: [0, 1]")
    return _number("to", value[0]), _number("to", value[1])


for _made in (RescaledReward, GatedReward, LengthControlledReward, MetricOnlyReward):
    REWARDS.add(_made.name, _made)
