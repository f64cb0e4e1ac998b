"""Dr. GRPO: GRPO without the two biases of its normalisation (Liu et al. 2025, arXiv:2503.20783).

A_i = R_i - mean_g, without division by the standard deviation (which favours questions that are nearly always or
nearly never solved); the loss is the sum over all tokens divided by (number of completions x
`generation.max_completion_length`), a constant, so that long wrong answers are not punished less per token. The
clipped ratio is PPO's, and beta is 0.

    algo: {name: dr_grpo, num_generations: 8}

TRL computes it with `loss_type: dr_grpo` and `scale_rewards: none`; the first without the second is half of it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.group import Clip, Reference


@algorithm("dr_grpo", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class DrGRPO(Reference, Clip):
    """GRPO without division by the standard deviation and with a constant length normaliser."""

    fixed: ClassVar[dict[str, Any]] = {
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "importance_sampling_level": "token",
    }
