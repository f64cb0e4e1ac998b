"""`TRLDPOTrainer`, `UnslothGRPOTrainer` and the rest: the join of an algorithm and a backend, from one table."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from aligntune.algorithms.base import algorithm_names
from aligntune.core.backend import BACKENDS, get_backend

CLASSIFICATION = "classification"
SPELLING = {
    "dr_grpo": "DRGRPO",
    "counterfactual_grpo": "CounterFactGRPO",
    "meta_es": "MetaES",
    "neural_mirror": "NeuralMirror",
    "reinforce_pp": "ReinforcePP",
}
"""Algorithms whose class name is not their key in capitals."""


def trainer_names(backend: str, kind: str) -> dict[str, str]:
    """Class name to algorithm key, for one backend and kind of run.

    Of the supervised trainers that of texts has the key "", that of labels `CLASSIFICATION`.
    """
    prefix = BACKENDS[backend].prefix
    if kind == "sft":
        return {f"{prefix}SFTTrainer": "", "ClassificationTrainer": CLASSIFICATION}
    return {f"{prefix}{SPELLING.get(key, key.upper())}Trainer": key for key in algorithm_names()}


def trainer_name(config: Any) -> str:
    """The class name of a configuration's trainer."""
    key = _key(config)
    return next(name for name, k in trainer_names(config.backend, config.kind).items() if k == key)


def _key(config: Any) -> str:
    if config.kind == "rl":
        return config.algorithm.key  # type: ignore[no-any-return]
    return "" if config.algorithm.head == "causal_lm" else CLASSIFICATION


@cache
def trainer_type(backend: str, kind: str, name: str) -> type:
    """The trainer class called `name`.

    Raises:
        AttributeError: there is no such trainer.
    """
    names = trainer_names(backend, kind)
    if name not in names:
        raise AttributeError(f"no trainer '{name}'; there are: {', '.join(names)}")
    from aligntune.core.checks import check_config
    from aligntune.core.rl import TrainerBase
    from aligntune.core.sft import SFTTrainerBase
    from aligntune.core.sft.classification import ClassifierRun
    from aligntune.errors import ConfigurationError

    key = names[name]
    base: Any = {"": SFTTrainerBase, CLASSIFICATION: ClassifierRun}.get(key, TrainerBase)

    def init(self: Any, config: Any) -> None:
        check_config(config, name)
        if config.backend != backend or (config.kind == kind and _key(config) != key):
            what = {"": " and a task that trains on text", CLASSIFICATION: " and a classification task"}
            raise ConfigurationError(
                f"{name} takes a configuration with backend {backend}" + what.get(key, f" and algo {key}"),
                hint="use create_trainer(config), which picks the class",
            )
        base.__init__(self, config, backend=get_backend(backend))

    what = {"": "Supervised fine-tuning", CLASSIFICATION: "Classification"}.get(key, key)
    doc = f"{what} on {BACKENDS[backend].name}; see `aligntune.core.trainer.Trainer`."
    return type(
        name,
        (base,),
        {"__init__": init, "__doc__": doc, "__module__": f"aligntune.backends.{backend}.{kind}"},
    )


def exporter(backend: str, kinds: tuple[str, ...]) -> tuple[Callable[[str], type], list[str]]:
    """A module's `__getattr__` and `__all__` for the trainers of these kinds."""
    where = {name: kind for kind in kinds for name in trainer_names(backend, kind)}

    def get(name: str) -> type:
        if name not in where:
            raise AttributeError(f"no trainer '{name}'; there are: {', '.join(where)}")
        return trainer_type(backend, where[name], name)

    return get, list(where)
