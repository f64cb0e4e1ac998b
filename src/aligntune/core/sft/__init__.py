"""Supervised fine-tuning: the base class of its trainers, the task types and the factory that dispatches on them."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from aligntune.algorithms.base import task_names
from aligntune.core.config.root import SFTConfig
from aligntune.core.merging import Merging
from aligntune.core.state import TrainingState, TrainResult
from aligntune.core.trainer import Trainer
from aligntune.registry import import_attribute

CREATE = "aligntune.core.backend_factory:create_trainer"  # a lazy name, because the factory stands in a higher layer

TaskType = StrEnum("TaskType", {name.upper(): name for name in task_names()})  # type: ignore[misc]
TaskType.__doc__ = "The supervised tasks, derived from `aligntune/algorithms/sft/`."


class SFTTrainerBase(Merging, Trainer):
    """The life of a run with `task`; see `aligntune.core.trainer.Trainer`."""

    kind = "sft"


class SFTTrainerFactory:
    """Makes the trainer of a supervised configuration."""

    @staticmethod
    def create(config: SFTConfig) -> Any:
        """The trainer for `config.task` on `config.backend`.

        Raises:
            ConfigurationError: the configuration is not a supervised one.
            EnvironmentError: the backend is not installed.
        """
        return import_attribute(CREATE)(config, expect="sft")


__all__ = ["SFTConfig", "SFTTrainerBase", "SFTTrainerFactory", "TaskType", "TrainResult", "TrainingState"]
