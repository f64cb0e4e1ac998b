"""Preference and policy optimisation: the base class of its trainers, and their configuration."""

from __future__ import annotations

from aligntune.core.config.root import RLConfig
from aligntune.core.merging import Merging
from aligntune.core.state import TrainingState, TrainResult
from aligntune.core.trainer import Trainer


class TrainerBase(Merging, Trainer):
    """The life of a run with `algo`; see `aligntune.core.trainer.Trainer`."""

    kind = "rl"


__all__ = ["RLConfig", "TrainResult", "TrainerBase", "TrainingState"]
