"""Reward models: data from preferences or from reward functions, training, validation, and their use in training.

    from aligntune.rewards.training import RewardModelTrainer, RewardModelValidator, TRLCompatibleRewardModel
    RewardModelTrainer("reward_model.yaml").train()
    RewardModelValidator("out/reward-model").validate("held_out.jsonl").verdict

| name | what it is |
|---|---|
| `RewardModelDataset` | texts with scores, or pairs; from scores to pairs; label noise; the split by prompt |
| `RewardModelTrainer` | Bradley-Terry on pairs, or distillation of scores, with the life of every run |
| `RewardModelValidator` | the report with intervals and its verdict |
| `RewardModelLoader` | a folder or hub id as a checked model with its tokenizer |
| `TRLCompatibleRewardModel` | a reward model as a reward, as a TRL reward function, and as a module |
| `best_of_n` | the answer that a scorer likes best, for each prompt |

Names are imported on first use; importing this package imports no library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.registry import lazy_names

if TYPE_CHECKING:
    from aligntune.rewards.training.config import RewardModelConfig as RewardModelConfig
    from aligntune.rewards.training.dataset import RewardModelDataset as RewardModelDataset
    from aligntune.rewards.training.loader import RewardModelLoader as RewardModelLoader
    from aligntune.rewards.training.loader import TRLCompatibleRewardModel as TRLCompatibleRewardModel
    from aligntune.rewards.training.loader import best_of_n as best_of_n
    from aligntune.rewards.training.report import ValidationReport as ValidationReport
    from aligntune.rewards.training.trainer import RewardModelTrainer as RewardModelTrainer
    from aligntune.rewards.training.validator import RewardModelValidator as RewardModelValidator

_NAMES = {
    "RewardModelConfig": "config",
    "RewardModelDataset": "dataset",
    "RewardModelLoader": "loader",
    "RewardModelTrainer": "trainer",
    "RewardModelValidator": "validator",
    "TRLCompatibleRewardModel": "loader",
    "ValidationReport": "report",
    "best_of_n": "loader",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, {name: f"{__name__}.{module}:{name}" for name, module in _NAMES.items()})
