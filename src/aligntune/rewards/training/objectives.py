"""What a reward model is trained on: `bradley_terry` on pairs, or `distillation` of the scores of reward functions.

    objective: {name: bradley_terry, margin: true, center_rewards_coefficient: 0.01}

Bradley-Terry (Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, equation 1; the margin m is that of Touvron
et al. 2023, arXiv:2307.09288, equation 2; the centring term that of Eisenstein et al. 2023, arXiv:2312.09244,
equation 2), for the scores s of B pairs:

    loss = mean( -log sigmoid(s_chosen - s_rejected - m) ) + c mean( (s_chosen + s_rejected)^2 )

It is TRL's `RewardTrainer`. Worked example: s = 1 and 0, m = 0.5, c = 0.01: -log sigmoid(0.5) + 0.01 = 0.4841.

Distillation: loss = mean( (s - z)^2 ), z = (y - mean(y)) / std(y) over the training scores y of the composite. The
model then imitates a program that could be called instead, and knows nothing that the program does not: it is no model
of people's preferences, whatever its correlation with its teacher.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

from pydantic import PositiveFloat

from aligntune.algorithms.base import AlgorithmParams, Head, Schema
from aligntune.core.config.base import section
from aligntune.core.config.composing import EVALUATION, composition_faults
from aligntune.errors import ConfigurationError
from aligntune.registry import import_attribute, nearest

PARTS = "aligntune.rewards.training.parts"  # a lazy name, because that module imports torch when it is used
GIVEN_PAIRS = "the pairs are given by the data; it shapes those that are made of `rewards`"


@section
class Objective(AlgorithmParams):
    """What both objectives share."""

    head: ClassVar[Head] = "sequence_classification"
    evaluator: ClassVar[str] = f"{PARTS}:evaluate"
    data: ClassVar[Schema] = Schema.PREFERENCE
    inert: ClassVar[dict[str, str]] = {
        "logging.rollouts": "a reward model samples nothing",
        "logging.samples": "a reward model answers nothing",
        "evaluation.max_new_tokens": "a reward model samples nothing",
        "evaluation.temperature": "a reward model samples nothing",
        "evaluation.tasks": "tasks measure language models, and this trains a reward model",
        "logging.sample_prompts": "a reward model answers nothing",
        "logging.samples_at": "a reward model answers nothing",
    }

    def inert_keys(self, config: Any) -> dict[str, str]:
        keys = dict(self.inert)
        if config.evaluation.dataset is not None:
            keys["held_out"] = "`evaluation.dataset` is the held-out data"
        if not config.rewards:
            keys |= {"answers": "without `rewards` the data are pairs", "pairs.threshold": GIVEN_PAIRS}
            keys["pairs.per_prompt"] = GIVEN_PAIRS
        keys |= dict.fromkeys(
            (f"composition.{key}" for key in EVALUATION), "training scores are standardised as a whole"
        )
        return keys

    def faults(self, config: Any) -> list[tuple[str, str]]:
        return list(composition_faults(config.composition, config.rewards)) if config.rewards else []

    def attach(self, hf: Any, trainer: Any) -> None:
        import_attribute(f"{PARTS}:attach")(hf, trainer)


@section
class BradleyTerry(Objective):
    """Learn from pairs which of two answers to a prompt is preferred."""

    key: ClassVar[str] = "bradley_terry"
    trainer: ClassVar[str] = "trl:RewardTrainer"
    args: ClassVar[str] = "trl:RewardConfig"
    learning_rate: ClassVar[float] = 1e-4  # TRL's RewardConfig

    margin: bool = False
    """Ask for a score difference of at least the pair's difference in training scores, in their standard deviations
    (Touvron et al. 2023, arXiv:2307.09288; off in TRL). Needs `rewards`."""
    center_rewards_coefficient: PositiveFloat | None = None
    """Strength of the term that keeps scores near mean 0 (Eisenstein et al. 2023, arXiv:2312.09244, who take 0.01);
    None is off (TRL)."""
    disable_dropout: bool = True
    """Switch the model's dropout off (TRL)."""

    def arguments(self, config: Any) -> dict[str, Any]:
        return {
            "center_rewards_coefficient": self.center_rewards_coefficient,
            "disable_dropout": self.disable_dropout,
            "max_length": None,  # rows are cut and counted before, as `type: reward_model` cuts them
        }

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = super().faults(config)
        if self.margin and not config.rewards:
            why = "is the difference of scores, and there are no `rewards` that score; remove it"
            found.append(("objective.margin", why))
        return found


@section
class Distillation(Objective):
    """Learn the standardised scores of reward functions by least squares."""

    key: ClassVar[str] = "distillation"
    trainer: ClassVar[str] = "transformers:Trainer"
    args: ClassVar[str] = "transformers:TrainingArguments"
    learning_rate: ClassVar[float] = 1e-4  # as Bradley-Terry's

    def arguments(self, config: Any) -> dict[str, Any]:
        return {"remove_unused_columns": False, "average_tokens_across_devices": True}

    def trainer_kwargs(self, trainer: Any) -> dict[str, Any]:
        return import_attribute(f"{PARTS}:regression_kwargs")(trainer)  # type: ignore[no-any-return]

    def inert_keys(self, config: Any) -> dict[str, str]:
        reason = "distillation trains on scores, not on pairs"
        return {
            **super().inert_keys(config),
            **{f"pairs.{k}": reason for k in ("threshold", "per_prompt", "label_noise")},
        }

    def faults(self, config: Any) -> list[tuple[str, str]]:
        if not config.rewards:
            return [("rewards", "is empty, and distillation learns the scores of reward functions; name at least one")]
        return super().faults(config)


OBJECTIVES: dict[str, type[Objective]] = {c.key: c for c in (BradleyTerry, Distillation)}
ALIASES = {"regression": "distillation", "bt": "bradley_terry", "pairwise": "bradley_terry"}


def foreign(cls: type[Objective], key: str) -> str | None:
    """The other objective that has the parameter `key`; None where there is none, or where `cls` has it itself."""
    having = [o.key for o in OBJECTIVES.values() if key in {f.name for f in fields(o)}]
    return None if not having or cls.key in having else having[0]


def parse_objective(value: Any) -> tuple[type[Objective], dict[str, Any]]:
    """`"bradley_terry"` or `{name: bradley_terry, margin: true}` as (class, keyword arguments).

    Raises:
        ConfigurationError: no name, or an unknown one.
    """
    raw = {"name": value} if isinstance(value, str) else value
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise ConfigurationError(
            "objective needs a name", hint=f"write `objective: {{name: ...}}` with one of {', '.join(OBJECTIVES)}"
        )
    given: str = raw["name"]
    name = ALIASES.get(given, given)
    if name not in OBJECTIVES:
        raise ConfigurationError(f"unknown objective '{name}'", hint=nearest(name, OBJECTIVES))
    return OBJECTIVES[name], {k: v for k, v in raw.items() if k != "name"}
