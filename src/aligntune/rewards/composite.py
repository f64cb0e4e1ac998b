"""Several rewards as one: the components of a row are scored here, and `composition` makes a total of them.

    composite = build_rewards([RewardConfig(type="math_correctness"), RewardConfig(type="answer_format", weight=0.2)])
    composite.score_batch(["#### 72"], {"reference": ["72"]}).total      # [1.2]

A component is the reward's score after its threshold or normalisation. Rewards that wait for something else than this
process (asynchronous ones, judges) are scored beside the others; results, counts and the error that is raised do not
depend on which is ready first.

Normalisation by group or by running statistics belongs to training: totals of `score_batch(..., train=True)` are
normalised, those of evaluation are not, so that they can be compared over time.

Source: the weighted sum of TRL's GRPOTrainer. It does not train.
"""

from __future__ import annotations

import contextvars
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from aligntune.errors import ConfigurationError, RewardError, ValidationError
from aligntune.rewards.base import RewardFunction, Score, _events
from aligntune.rewards.composition import Composition, NonePolicy, Rules
from aligntune.rewards.deadline import started
from aligntune.rewards.normalise import Normaliser
from aligntune.rewards.summary import prompt_groups, summary
from aligntune.utils.logging import get_logger

if TYPE_CHECKING:
    from aligntune.core.config.composing import CompositionConfig
    from aligntune.core.config.sections import RewardConfig

log = get_logger(__name__)
TOTAL = "total"
"""Name of the sum in logs; a component cannot have it."""
Outcome = tuple[list[Score], Counter[str]]


@dataclass(frozen=True)
class BatchScores:
    """Scores of N texts.

    Attributes:
        total: N totals, as training takes them; None for a dropped row.
        components: name to N scores after threshold or minmax, before the weight.
        raw: name to N scores as the reward gave them, which is what rollouts keep.
        stats: counts for the batch: `<name>/none`, `<name>/errors`, `<name>/<event>` (such as `timeout`),
            `rows`, `rows_dropped`; zero counts are left out, but for `rows` and `rows_dropped`.
        composed: N totals before normalisation and clip.
        weights: name to N weights, where they differ by row.
    """

    total: list[Score]
    components: dict[str, list[Score]]
    raw: dict[str, list[Score]] = field(default_factory=dict)
    stats: dict[str, int] = field(default_factory=dict)
    composed: list[Score] = field(default_factory=list)
    weights: dict[str, list[float]] = field(default_factory=dict)


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
    """Several rewards with their weights and the rules that make a total of them.

    Args:
        components: `Component`s, or bare rewards, which are named after their type.
        weights: one per component, in place of their own (as in `CompositeReward([length, math], [0.3, 0.7])`).
        none: what a missing component does to its row; short for a `composition` with that policy alone.
        composition: a section `composition`, a mapping of its keys, or `composition.Rules`; None is the weighted sum.

    Raises:
        ConfigurationError: no components, two of one name, weights that are all zero or of a wrong number, an unknown
            policy, or a rule that has no meaning for these components.
    """

    def __init__(
        self,
        components: Sequence[Component | RewardFunction],
        weights: Sequence[float] | None = None,
        *,
        none: NonePolicy | None = None,
        composition: CompositionConfig | Mapping[str, Any] | Rules | None = None,
    ) -> None:
        if none is not None and none not in get_args(NonePolicy):
            raise ConfigurationError(f"unknown policy none={none!r}", hint=f"one of {', '.join(get_args(NonePolicy))}")
        if none is not None and composition is not None:
            raise ConfigurationError("both none and composition are given", hint="set composition.none alone")
        if not components:
            raise ConfigurationError("there is no reward", hint="give at least one, as rewards: [math_correctness]")
        if weights is not None and len(weights) != len(components):
            raise ConfigurationError(
                f"{len(weights)} weights for {len(components)} rewards", hint="give one weight for each reward"
            )
        made = [c if isinstance(c, Component) else Component(c.label, c) for c in components]
        if weights is not None:
            made = [replace(c, weight=w) for c, w in zip(made, weights, strict=True)]
        for name, times in Counter(c.name for c in made).items():
            if times > 1 or name == TOTAL:
                raise ConfigurationError(
                    f"two rewards are named '{name}'" if times > 1 else f"a reward is named '{TOTAL}', as their sum is",
                    hint="give one of them another name: rewards.0.name",
                )
        self.components = made
        self._failed: set[str] = set()  # components whose first failure has been told
        self.rules = Rules(none=none) if none is not None else Rules.of(composition)
        self.composition = Composition(made, self.rules)
        apart = self.rules.normalise_of == "components"
        self.normaliser = Normaliser(self.rules, [c.name for c in made if c.weight] if apart else [TOTAL])

    @property
    def none(self) -> NonePolicy:
        """What a missing component does."""
        return self.rules.none

    @property
    def plain(self) -> bool:
        """Whether the total is the plain weighted sum of the components."""
        return self.rules.plain

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest total, by the declared ranges; infinite where a range is."""
        return self.composition.bounds

    def place(self, device: str) -> None:
        """Let every reward that holds a model compute on `device` ("auto", "cpu", "cuda", "mps")."""
        for c in self.components:
            c.reward.place(device)

    def prepare(self) -> None:
        """Let every reward make sure that it can score.

        Raises:
            EnvironmentError: a judge cannot be reached, or has no key.
        """
        for c in self.components:
            c.reward.prepare()

    @property
    def asks_judge(self) -> bool:
        """Whether a component, or a reward inside one, asks a judge."""
        return any(_asks(c.reward) for c in self.components)

    def check_judge(self, judge: Any) -> None:
        """Refuse a run's judge that no reward asks.

        Raises:
            ConfigurationError: `judge` is set, and no component uses it.
        """
        if judge is not None and not self.asks_judge:
            raise ConfigurationError(
                "judge: has no effect, because no reward asks a judge",
                hint="give a reward params: {backend: judge}, or remove the section judge",
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold; empty where nothing runs."""
        return self.normaliser.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.normaliser.load_state(state)

    @property
    def required_columns(self) -> set[str]:
        """Columns that the data must have; `prompt`, `completion` and `completion_ids` come from whoever
        scores."""
        return {column for c in self.components for column in c.reward.columns}

    def read_columns(self, present: Sequence[str]) -> list[str]:
        """Those of `present` that a component reads, sorted; the data's columns alone."""
        return sorted({name for c in self.components for name in c.reward.reads(present)})

    def check_columns(self, present: Sequence[str]) -> None:
        """Raise `ValidationError` naming the reward and the columns it misses; any gold column stands for
        `reference`."""
        for c in self.components:
            missing = c.reward.missing(present)
            if missing:
                raise ValidationError(
                    f"reward '{c.name}' needs the column {', '.join(missing)}",
                    hint=f"the data have: {', '.join(sorted(set(present))) or 'none'}; map one with column_mapping",
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
        train: bool = False,
        group_size: int | None = None,
    ) -> BatchScores:
        """Score N texts under every component.

        Args:
            texts: completions, without their prompts.
            columns: name to N values; `prompt` and `completion_ids` too, where known.
            extras: TRL's further arguments, for batch functions.
            train: the batch is trained on: totals are normalised where the rules say so, and running statistics take
                it in.
            group_size: answers to one prompt, which stand together; None finds groups by equal prompts.

        Raises:
            RewardError: a reward with `on_error: raise` raised, overran or broke its contract.
            ValidationError: a column is missing, or has another length than `texts`.
        """
        columns = dict(columns or {})
        for name, values in columns.items():
            if len(values) != len(texts):
                raise ValidationError(
                    f"column '{name}' has {len(values)} values for {len(texts)} texts",
                    hint="give one value for each text",
                )
        self.check_columns(list(columns))
        raw, stats = self._scored(texts, columns, extras)
        scored = {c.name: [c.transform(s) for s in raw[c.name]] for c in self.components}
        normal = self.rules.normalise if train else "none"
        groups = prompt_groups(columns.get("prompt", [0] * len(texts)), group_size) if normal == "group" else []
        composed = self._composed(self._rows(scored), columns)
        if normal == "none":
            total = composed
        elif self.rules.normalise_of == "total":
            total = self.normaliser(TOTAL, composed, groups)
        else:
            apart = {n: self.normaliser(n, v, groups) for n, v in scored.items() if n in self.normaliser.names}
            total = self._composed(self._rows(scored | apart), columns)
        total = self.composition.clipped(total)
        counts = {k: v for k, v in stats.items() if v}
        counts |= {"rows": len(texts), "rows_dropped": sum(t is None for t in total)}
        return BatchScores(total, scored, raw, counts, composed, self._weights(columns))

    def _rows(self, columns: Mapping[str, Sequence[Score]]) -> list[tuple[Score, ...]]:
        """The values of each row, in the order of the components."""
        return list(zip(*(columns[c.name] for c in self.components), strict=True))

    def _composed(self, rows: Sequence[Sequence[Score]], columns: Mapping[str, Sequence[Any]]) -> list[Score]:
        """One total for each row of component values."""
        return [self.composition.total(row) for row in rows]

    def _weights(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[float]]:
        return {}

    def _scored(
        self, texts: Sequence[str], columns: Mapping[str, Sequence[Any]], extras: Mapping[str, Any] | None
    ) -> tuple[dict[str, list[Score]], Counter[str]]:
        """Raw scores and counts of every component, those that wait beside those that compute."""
        waiting = [c for c in self.components if c.reward.concurrent] if len(self.components) > 1 else []

        def call(c: Component) -> Outcome:
            return contextvars.copy_context().run(self._score_component, c, texts, columns, extras)

        begun = {c.name: started(partial(call, c)) for c in waiting}
        found: dict[str, Outcome] = {}
        errors: dict[str, RewardError] = {}
        for c in self.components:
            if c.name not in begun and not errors:
                try:
                    found[c.name] = call(c)
                except RewardError as e:
                    errors[c.name] = e
        for c in self.components:  # the first error in their order is the one that is told
            if c.name in errors:
                raise errors[c.name]
            if c.name in begun:
                found[c.name] = begun[c.name]()
        stats: Counter[str] = Counter()
        for c in self.components:
            stats.update(found[c.name][1])
        return {c.name: found[c.name][0] for c in self.components}, stats

    def _score_component(
        self,
        c: Component,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        extras: Mapping[str, Any] | None,
    ) -> Outcome:
        failures: list[RewardError] = []
        events: Counter[str] = Counter()
        token = _events.set(events)
        try:
            scores = c.reward.batch(texts, columns, extras=extras, failures=failures if c.on_error == "skip" else None)
        finally:
            _events.reset(token)
        stats = Counter({f"{c.name}/{event}": n for event, n in events.items()})
        stats[f"{c.name}/errors"] += len(failures)
        stats[f"{c.name}/none"] += sum(s is None for s in scores) - len(failures)
        if failures and c.name not in self._failed:
            self._failed.add(c.name)
            log.warning("%s; such rows are left out and counted (rewards/%s/errors)", failures[0].message, c.name)
        return scores, stats

    def summary(self, scores: BatchScores, prompts: Sequence[Any] | None = None) -> dict[str, float]:
        """Statistics of a batch for logs, each component under `rewards/<name>/`; see `rewards.summary`.

        Where totals are normalised or clipped, `rewards/composed` is their mean before that.
        """
        sums = self.rules.mode == "sum" and not (
            self.rules.normalise_of == "components" and self.rules.normalise != "none"
        )
        return summary(self.components, scores, prompts, shares=sums)


def build_rewards(
    configs: Sequence[RewardConfig | Mapping[str, Any] | str],
    *,
    none: NonePolicy | None = None,
    composition: CompositionConfig | Mapping[str, Any] | Rules | None = None,
    judge: Any = None,
) -> CompositeReward:
    """Make the rewards of a run.

    Args:
        configs: `RewardConfig`s, mappings of their keys, or types; resolved in order. A component's name is its type's,
            or the function's of `file.py:function`, unless given.
        none: what a missing component does; short for a `composition` with that policy alone.
        composition: how the components become one total (the section `composition`); None is the weighted sum.
        judge: settings of the run's judge, handed to every reward that has a parameter `judge` and was given none.

    Raises:
        ConfigurationError: an unknown name (the nearest is given), a wrong parameter, two rewards of one
            name, or a setting without effect.
    """
    from aligntune.rewards.registry import as_reward_config, make_reward

    if isinstance(configs, (str, Mapping)):
        raise ConfigurationError("rewards is no list", hint="write rewards: [length], or a list of mappings with type")
    components = []
    for i, given in enumerate(configs):
        config = as_reward_config(given, f"rewards.{i}")
        made = make_reward(config.type, dict(config.params), deadline=config.deadline, judge=judge)
        name = config.name or made.label
        components.append(Component(name, made, config.weight, config.threshold, config.normalization, config.on_error))
    return CompositeReward(components, none=none, composition=composition)


def _asks(reward: RewardFunction) -> bool:
    """Whether a reward, or one inside it, asks a judge."""
    parts: Sequence[RewardFunction] = getattr(reward, "parts", ())
    if parts:
        return any(map(_asks, parts))
    return getattr(reward, "judge", reward.params.get("judge")) is not None
