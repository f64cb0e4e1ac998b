"""The bridge to TRL: one reward function for `GRPOTrainer(reward_funcs=[...])` made of a `CompositeReward`.

    trainer = GRPOTrainer(reward_funcs=[TRLReward(composite)], ...)

TRL sees one function named `total`, so the composite alone decides weights and missing scores; a None in its
list is a row that TRL leaves out of the group's baseline and gives no advantage. The components' statistics
reach the trainer's logs as `rewards/<name>/mean` and so on (`CompositeReward.summary`).

Source: `GRPOTrainer._calculate_rewards` of TRL 1.14.2. It does not import TRL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aligntune.errors import ConfigurationError, RewardError, ValidationError
from aligntune.rewards.composite import TOTAL, BatchScores, CompositeReward

Recorder = Callable[[int, list[Any], list[Any], dict[str, list[Any]], BatchScores], None]
_NOT_COLUMNS = ("trainer_state", "log_extra", "environments")


class TRLReward:
    """A `CompositeReward` in TRL's signature.

    Args:
        composite: what scores.
        recorder: called after each batch with (step, prompts, completions, columns, scores), to store rollouts.
    """

    def __init__(self, composite: CompositeReward, recorder: Recorder | None = None) -> None:
        self.composite = composite
        self.recorder = recorder
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
        scores = self.composite.score_batch([completion_text(c) for c in completions], given, extras=extras)
        self.latest = scores
        if log_metric is not None:
            for name, value in self.composite.summary(scores, given["prompt"]).items():
                log_metric(name, value)
        if self.recorder is not None:
            step = int(getattr(extras.get("trainer_state"), "global_step", 0))
            self.recorder(step, given["prompt"], given["completion"], columns, scores)
        return scores.total


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


def trl_rewards(composite: CompositeReward, recorder: Recorder | None = None, *, split: bool = False) -> list[Any]:
    """The reward functions that TRL gets: the composite as one, or (`split`) one for each of its components.

    Raises:
        ConfigurationError: `split` with a composite whose total is not the plain weighted sum of its components.
    """
    whole = TRLReward(composite, recorder)
    if not split:
        return [whole]
    if type(composite) is not CompositeReward or composite.none != "drop":
        raise ConfigurationError(
            "algo.reward_aggregation: rewards can be normalised apart only where their total is a plain weighted sum",
            hint="set algo.reward_aggregation to sum_then_normalize",
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
        f"a completion is {type(completion).__name__}, neither text nor messages with an assistant turn"
    )
