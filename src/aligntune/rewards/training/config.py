"""The configuration of a reward model's training: a file with `objective`, as other runs have `algo` or `task`.

    objective: bradley_terry
    model: {name_or_path: Qwen/Qwen3-0.6B, peft: {r: 16}}
    datasets: [{name: answers.jsonl}]
    rewards: [{type: math_correctness}, {type: length, weight: 0.2}]     # leave it out to train on real pairs
    pairs: {threshold: 0.1, per_prompt: 4, label_noise: 0.0}
    output_dir: runs/reward-model

>>> load_reward_config("reward_model.yaml", overrides=["train.max_steps=20"]).objective.key
'bradley_terry'

Sections, precedence, `base:` files and errors are those of every run (`core.config.io`). It does not train with
Unsloth, whose loader makes no classifier on the CPU, nor in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Lt
from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveInt

from aligntune.algorithms.base import Kind
from aligntune.core.config.base import section
from aligntune.core.config.composing import CompositionConfig
from aligntune.core.config.io import (
    ALL_KEYS,
    _coerced,
    _error,
    _leaves,
    _validate,
    effective,
    resolve,
)
from aligntune.core.config.reading import apply_overrides, as_mapping, copy_plain, read_yaml
from aligntune.core.config.root import RunConfig
from aligntune.core.config.sections import Dataset, JudgeConfig, Reward
from aligntune.errors import ConfigurationError
from aligntune.rewards.training.objectives import Objective, foreign, parse_objective

HINT = "docs/reward-models.md lists every key"


def _objective(value: Any) -> Any:
    if isinstance(value, Objective):
        return value
    cls, arguments = parse_objective(value)
    return cls(**arguments)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


@section
class PairConfig:
    """How scored answers to one prompt become pairs, and how labels are disturbed on purpose."""

    threshold: NonNegativeFloat = 0.0
    """Two answers make a pair where their scores differ by more than this (ours: any difference)."""
    per_prompt: PositiveInt | None = 8
    """Most pairs of one prompt, drawn with the seed, so that a prompt with many answers does not outweigh the others
    (ours); None keeps all."""
    label_noise: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """Share of the training pairs whose two answers are swapped, drawn with the seed, to see what a model makes of
    wrong labels (ours: none)."""


@section
class RewardModelConfig(RunConfig):
    """A run that trains a reward model."""

    kind: ClassVar[Kind] = "rl"

    objective: Annotated[Objective, BeforeValidator(_objective)]
    """bradley_terry or distillation, with its parameters; a plain string stands for `{name: string}`."""
    datasets: Annotated[list[Dataset], BeforeValidator(_as_list), Field(min_length=1)]
    """Preference pairs; or, with `rewards`, answers to be scored; several are mixed by `weight`."""
    rewards: Annotated[list[Reward], BeforeValidator(_as_list)] = Field(default_factory=list)
    """The reward functions that label the answers; none where the data are pairs (ours)."""
    composition: CompositionConfig = Field(default_factory=CompositionConfig)
    """How the rewards become one total."""
    judge: JudgeConfig | None = None
    """The language model that judged rewards ask, unless one names another in its `params` (none)."""
    answers: str | None = None
    """With `rewards`: the column that holds a row's answer, or a list of answers; rewards then read every other column.
    None takes the answers that the format names, and rewards read the prompt alone (ours)."""
    pairs: PairConfig = Field(default_factory=PairConfig)
    """From scores to pairs."""
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the prompts that are kept from training, with all their answers, and measured (ours)."""
    backend: Literal["trl"] = "trl"
    """TRL alone trains reward models here."""
    isolation: Literal["auto"] = "auto"
    """A reward model trains in this process."""
    output_dir: Annotated[str, Field(min_length=1)] = "runs/reward-model"
    """The run's folder; a finished run in it is never overwritten."""

    @property
    def labelled(self) -> bool:
        """Whether reward functions label the answers."""
        return bool(self.rewards)

    @property
    def algorithm(self) -> Any:
        """The objective, which stands where other runs have their algorithm."""
        return self.objective


def load_reward_config(
    source: str | Path | Mapping[str, Any] | RewardModelConfig, *, overrides: Iterable[str] = ()
) -> RewardModelConfig:
    """A checked and completed configuration.

    Args:
        source: path of a YAML file, plain values, or a configuration.
        overrides: `key=value` strings; they beat everything else.

    Raises:
        ConfigurationError: with every fault in one message: unknown keys, wrong types, contradictions, keys without
            effect.
    """
    where = str(source) if isinstance(source, (str, Path)) else ""
    if isinstance(source, (str, Path)):
        raw: Any = read_yaml(source)
    else:
        raw = effective(source) if isinstance(source, RewardModelConfig) else as_mapping(source)
    given = apply_overrides(copy_plain(raw), overrides)
    for other, command in (("algo", "aligntune train"), ("task", "aligntune train")):
        if other in given:
            raise ConfigurationError(
                f"{where + ': ' if where else ''}the file has `{other}`, and a reward model's has `objective`",
                hint=f"train it with `{command}`, or write `objective: bradley_terry` in place of `{other}`",
            )
    config, faults = _read(given)
    if faults:
        raise _error(faults, where, HINT)
    try:
        return resolve(config, explicit={path for path, _ in _leaves(given)}, where=where)  # type: ignore[no-any-return]
    except ConfigurationError as e:
        if e.hint != ALL_KEYS:
            raise
        raise ConfigurationError(e.message, hint=HINT, context=e.context) from e  # that schema is of other files


def _read(given: Mapping[str, Any]) -> tuple[Any, list[tuple[str, str]]]:
    """The configuration, or all faults: those of the objective's section, and those of the others."""
    raw = dict(given)
    faults: list[tuple[str, str]] = []
    try:
        cls, arguments = parse_objective(raw.get("objective"))
        for key in [k for k in arguments if foreign(cls, k)]:
            faults.append(
                (f"objective.{key}", f"belongs to {foreign(cls, key)}, and {cls.key} has no pairs; remove it")
            )
            del arguments[key]
        built, more = _validate(cls, arguments, "objective.")
        faults += more
        raw["objective"] = built if built is not None else cls()
    except ConfigurationError as e:
        faults.append(("objective", f"{e.message}; {e.hint}"))
        raw["objective"] = Objective()
    config, more = _validate(RewardModelConfig, raw)
    faults += more
    if config is not None:
        faults += _coerced(given, config)
    return config, faults
