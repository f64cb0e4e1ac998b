"""CISPO: clip the importance weight, not the update (MiniMax 2025, arXiv:2506.13585).

Loss per token -sg[min(r_t, c)] A_i log pi(y_t), with GRPO's advantage, averaged over all tokens of the batch. The
ratio is a constant factor, so every token keeps its gradient, also where PPO's clip would cut it off. c
(`epsilon_high`) is an absolute cap of the ratio, not a distance from 1: 5.0, where DAPO's 0.28 would scale every
gradient down.

    algo: {name: cispo, num_generations: 8, num_iterations: 2}

TRL computes it with `loss_type: cispo`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.group import Reference, Reuse, Scaling


@algorithm("cispo", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class CISPO(Scaling, Reference, Reuse):
    """REINFORCE with a capped importance weight, so that no token loses its gradient."""

    fixed: ClassVar[dict[str, Any]] = {"loss_type": "cispo", "importance_sampling_level": "token"}

    epsilon_high: Annotated[float, Ge(1)] = 5.0
    """Cap c of the ratio, absolute (ScaleRL, arXiv:2510.13786, takes 5; TRL's recommendation)."""

    def notes(self, config: Any) -> list[str]:
        return [*super().notes(config), *self.clip_notes(config, ("epsilon_high",))]
