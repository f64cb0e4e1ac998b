"""REINFORCE++ with group baseline (Hu et al. 2025, arXiv:2501.03262).

A_i = R_i - mean_g, then normalised over the whole batch, (A_i - mean A) / std A: the group only centres, so a group of
nearly equal rewards is not blown up as in GRPO. PPO's clipped ratio per token, mean over a completion's tokens, then
over completions; the KL term is a loss of its own with the k2 estimator, beta (log pi - log pi_ref)^2 / 2, whose
gradient is that of the KL divergence to the reference (k3's in the loss is not).

    rewards (1, 0) and (1, 1)  ->  A = (0.5, -0.5, 0, 0) / 0.408

TRL's `scale_rewards: batch` divides by the deviation of the rewards themselves, which is another thing.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import NonNegativeFloat

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.group import Clip
from aligntune.algorithms.plugin import Plugin


@algorithm("reinforce_pp", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class ReinforcePP(Clip):
    """REINFORCE++: advantages centred by group and scaled by batch, with PPO's clip and a k2 KL loss."""

    fixed: ClassVar[dict[str, Any]] = {
        "loss_type": "grpo",
        "scale_rewards": "none",
        "importance_sampling_level": "token",
    }

    beta: NonNegativeFloat = 0.01
    """Strength of the k2 KL loss (OpenRLHF's initial coefficient, 0.01); 0 keeps no reference model."""

    def plugin(self, config: Any) -> Plugin:
        return BaselineWithKL(self.beta) if self.beta else Baseline()


def batch_normalised(rewards: Any, group: int) -> Any:
    """Rewards centred by group, then normalised over the batch.

    Args:
        rewards: (N,), groups of `group` together; NaN for a completion without a score.
        group: completions per prompt.

    Returns:
        (N,); 0 where there is no score, and throughout if all centred rewards are equal.
    """
    grouped = rewards.view(-1, group)
    centred = (grouped - grouped.nanmean(1, keepdim=True)).view(-1)
    known = centred[~centred.isnan()]
    if known.numel() < 2:
        return centred.nan_to_num(nan=0.0) * 0.0
    return ((centred - known.mean()) / (known.std() + 1e-8)).nan_to_num(nan=0.0)


class Baseline(Plugin):
    """The advantages of REINFORCE++."""

    def advantages(self, rewards: Any, out: dict[str, Any]) -> Any:
        return self.local(batch_normalised(self.total(rewards), self.trainer.num_generations))


class BaselineWithKL(Baseline):
    """The same, with the k2 loss.

    Args:
        beta: its strength.
    """

    loss_beta = 0.0  # in place of the library's k3

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def token_loss(self, logps: Any, inputs: dict[str, Any]) -> Any:
        k2 = 0.5 * (logps - inputs["ref_per_token_logps"]) ** 2
        mask = inputs["completion_mask"]
        self.log("kl", ((k2.detach() * mask).sum() / mask.sum().clamp(min=1)).item())
        return self.beta * k2
