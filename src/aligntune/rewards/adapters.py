"""The bridge to TRL: one reward function for `GRPOTrainer(reward_funcs=[...])` made of a `CompositeReward`.

    trainer = GRPOTrainer(reward_funcs=[TRLReward(composite)], ...)

TRL sees one function named `total`, so the composite alone decides weights and missing scores; a None in its
list is a row that TRL leaves out of the group's baseline and gives no advantage. The components' statistics
reach the trainer's logs as `rewards/<name>/mean` and so on (`CompositeReward.summary`).

A component that gives one and the same score for `CONSTANT` steps is told of by name, once (`ConstantWatch`); so is the
first batch in which no completion has a total, because nothing is learned from it.

Source: `GRPOTrainer._calculate_rewards` of TRL 1.14.2. It does not import TRL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aligntune.errors import ConfigurationError, RewardError, ValidationError
from aligntune.rewards.base import RewardFunction
from aligntune.rewards.composite import TOTAL, BatchScores, CompositeReward
from aligntune.utils.logging import get_logger

Recorder = Callable[[int, list[Any], list[Any], dict[str, list[Any]], BatchScores, list[int] | None], None]
log = get_logger(__name__)
CONSTANT = 20
"""Steps in a row with one score after which a component is told of. Ours: a reward that is merely rare at the start of
a run shows up within them in most batches."""
_NOT_COLUMNS = ("trainer_state", "log_extra", "environments")


class TRLReward:
    """A `CompositeReward` in TRL's signature.

    Args:
        composite: what scores; a bare reward is a composite of one.
        recorder: called after each batch with (step, prompts, completions, columns, scores, tokens of each completion
            or None), to store rollouts.
        tell: takes a sentence that the user should read; the log's warning where it is None.
        group_size: answers to one prompt, which stand together; None finds groups by equal prompts.
    """

    def __init__(
        self,
        composite: CompositeReward | RewardFunction,
        recorder: Recorder | None = None,
        *,
        tell: Callable[[str], None] | None = None,
        group_size: int | None = None,
    ) -> None:
        composite = composite if isinstance(composite, CompositeReward) else CompositeReward([composite])
        self.composite = composite
        self.recorder = recorder
        self.group_size = group_size
        self.constant = ConstantWatch(composite, tell or log.warning)
        self.latest: BatchScores | None = None
        self.__name__ = TOTAL

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Any] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score a batch.

        Args:
            prompts: N strings or message lists; the answers to one prompt stand together.
            completions: N strings or message lists.
            completion_ids: N token-id lists.
            log_metric: TRL's hook for scalar metrics.
            columns: data columns (N values each), `trainer_state`, and what else TRL passes.
        """
        extras = {k: columns.pop(k) for k in _NOT_COLUMNS if k in columns}
        if log_metric is not None:
            extras["log_metric"] = log_metric
        given: dict[str, list[Any]] = {**columns, "prompt": list(prompts), "completion": list(completions)}
        if completion_ids is not None:
            given["completion_ids"] = list(completion_ids)
        texts = [completion_text(c) for c in completions]
        scores = self.composite.score_batch(texts, given, extras=extras, train=True, group_size=self.group_size)
        self.latest = scores
        if log_metric is not None:
            for name, value in self.composite.summary(scores, given["prompt"]).items():
                log_metric(name, value)
        step = int(getattr(extras.get("trainer_state"), "global_step", 0))
        self.constant.take(step, scores)
        if self.recorder is not None:
            tokens = None if completion_ids is None else [len(ids) for ids in completion_ids]
            self.recorder(step, given["prompt"], given["completion"], columns, scores, tokens)
        return scores.total


def score_as_trl(
    reward: RewardFunction, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
) -> list[float | None]:
    """Scores of one reward for what TRL's trainers pass; the first failure is raised.

    Args:
        reward: any reward.
        prompts: N strings or message lists.
        completions: N strings or message lists.
        columns: data columns (N values each), and TRL's further arguments.
    """
    extras = {k: columns[k] for k in (*_NOT_COLUMNS, "log_metric") if k in columns}
    given = {k: v for k, v in columns.items() if k not in extras and v is not None}
    given |= {"prompt": list(prompts), "completion": list(completions)}
    if missing := reward.missing(given):
        raise ValidationError(
            f"reward '{reward.label}' needs the column {', '.join(missing)}",
            hint=f"the data have: {', '.join(sorted(given))}",
        )
    return reward.batch([completion_text(c) for c in completions], given, extras=extras)


class ConstantWatch:
    """Tells of a component that gives every completion the same score (or none) for `CONSTANT` steps in a row, and of
    the first batch without any total.

    Components without weight are left alone: a metric that stays where it is may be what one hopes for.

    Args:
        composite: whose components.
        tell: takes the sentence.
    """

    def __init__(self, composite: CompositeReward, tell: Callable[[str], None]) -> None:
        rules = composite.rules
        self._watched = [c.name for c in composite.components if c.weight or c.name in rules.gates]
        self._tell = tell
        self._lost = False  # a batch without any total has been told of
        self._since: dict[str, tuple[float | None, int]] = {}  # the one score, and the first step with it

    def take(self, step: int, scores: BatchScores) -> None:
        """Look at the batch that `step` learns from."""
        if not self._lost and scores.total and all(total is None for total in scores.total):
            self._lost = True
            self._tell(_lost(step, scores))
        for name in list(self._watched):
            values = set(scores.raw[name])
            if len(values) != 1:
                self._since.pop(name, None)
                continue
            (value,) = values
            before, first = self._since.get(name, (value, step))
            first = first if before == value else step
            self._since[name] = (value, first)
            if step - first + 1 >= CONSTANT:
                self._watched.remove(name)
                self._tell(_constant(name, value, step - first + 1))


def _lost(step: int, scores: BatchScores) -> str:
    counts = ", ".join(f"{k} {n}" for k, n in scores.stats.items() if "/" in k)
    return (
        f"no completion of the batch for step {step + 1} has a reward, so nothing is learned from it ({counts}); every "
        "later batch like it is counted in rewards/rows_dropped alone"
    )


def _constant(name: str, value: float | None, steps: int) -> str:
    if value is None:
        return (
            f"reward '{name}' gave no score in {steps} steps in a row: it teaches nothing; look at the columns that it "
            f"reads and at rewards/{name}/errors, or remove it"
        )
    return (
        f"reward '{name}' gave every completion of {steps} steps in a row the same score (mean {value:g}): it teaches "
        "nothing; look at the stored rollouts, make it easier or harder (threshold, params), raise "
        "generation.temperature, or remove it"
    )


class ComponentReward:
    """One component of a composite, for a trainer that normalises the rewards apart.

    A row without a total (a missing component under `none: drop`) has no score in any component.

    Args:
        whole: the composite's own function, which scores a batch once for all of its components.
        name: the component.
        first: whether this one is called first for each batch.
    """

    def __init__(self, whole: TRLReward, name: str, *, first: bool) -> None:
        self.whole, self.name, self.first = whole, name, first
        self.__name__ = name

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **arguments: Any) -> list[float | None]:
        """Score a batch; the arguments are those of `TRLReward`."""
        if self.first:
            self.whole(prompts, completions, **arguments)
        scores = self.whole.latest
        if scores is None:
            raise RewardError(f"the component '{self.name}' was asked before the composite", hint="keep their order")
        values = scores.components[self.name]
        return [None if total is None else value for total, value in zip(scores.total, values, strict=True)]


def trl_rewards(
    composite: CompositeReward,
    recorder: Recorder | None = None,
    *,
    split: bool = False,
    tell: Callable[[str], None] | None = None,
    group_size: int | None = None,
) -> list[Any]:
    """The reward functions that TRL gets: the composite as one, or (`split`) one for each of its components.

    Raises:
        ConfigurationError: `split` with a composite whose total is not the plain weighted sum of its components.
    """
    whole = TRLReward(composite, recorder, tell=tell, group_size=group_size)
    if not split:
        return [whole]
    if type(composite) is not CompositeReward or not composite.plain:
        raise ConfigurationError(
            "algo.reward_aggregation: rewards can be normalised apart only where their total is a plain weighted sum",
            hint="set algo.reward_aggregation to sum_then_normalize, or leave the section composition out",
        )
    return [ComponentReward(whole, c.name, first=i == 0) for i, c in enumerate(composite.components)]


def completion_text(completion: Any) -> str:
    """The text of a completion: a string, or the content of the last assistant message of a conversation.

    Raises:
        ValidationError: it is neither.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence):
        for message in reversed(completion):
            if isinstance(message, Mapping) and message.get("role") == "assistant":
                content = message.get("content") or ""
                if isinstance(content, str):
                    return content
                return "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
        if not completion:
            return ""
    raise ValidationError(
        f"a completion is {type(completion).__name__}, neither text nor messages with an assistant turn",
        hint='give a string, or [{"role": "assistant", "content": ...}]',
    )
