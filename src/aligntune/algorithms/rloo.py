"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740).

R_i is the reward of completion i less beta (log pi(y_i) - log pi_ref(y_i)), whole completions; A_i = R_i - mean of the
other completions' R in its group; the loss is -A_i sum_t log pi(y_t), averaged over completions: REINFORCE on the
sequence, one update per generation, no clipping and no division by a standard deviation.

    rewards (1, 0, 0, 1), beta 0  ->  A = (2/3, -2/3, -2/3, 2/3)

It stands on TRL's GRPOTrainer: `loss_type: luspo` sums tokens and averages over completions, and the ratio of the
policy to itself has the gradient of log pi. `loss` in the logs is therefore that of the surrogate, only its gradient
is REINFORCE's.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import NonNegativeFloat

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.group import GroupPolicy
from aligntune.algorithms.plugin import Plugin


@algorithm("rloo", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class RLOO(GroupPolicy):
    """REINFORCE on whole completions, each compared with the mean of the others."""

    fixed: ClassVar[dict[str, Any]] = {
        "loss_type": "luspo",
        "scale_rewards": "none",
        "importance_sampling_level": "token",
        "num_iterations": 1,
    }

    beta: NonNegativeFloat = 0.05
    """KL strength inside the reward (TRL's RLOOConfig); 0 keeps no reference model."""

    def plugin(self, config: Any) -> Plugin:
        return LeaveOneOut(self.beta)


def leave_one_out(rewards: Any, group: int) -> Any:
    """R_i minus the mean of the others in its group.

    Args:
        rewards: (N,), groups of `group` together; NaN for a completion without a score.
        group: completions per prompt.

    Returns:
        (N,); 0 where the completion or all others have no score.
    """
    grouped = rewards.view(-1, group)
    known = ~grouped.isnan()
    values = grouped.nan_to_num(nan=0.0)
    others = known.sum(1, keepdim=True) - known.int()
    mean = (values.sum(1, keepdim=True) - values) / others.clamp(min=1)
    return ((values - mean) * (known & (others > 0))).view(-1)


class LeaveOneOut(Plugin):
    """RLOO's advantages.

    Args:
        beta: KL strength inside the reward.
    """

    loss_beta = 0.0  # the reference is for the reward, not for the loss

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def advantages(self, rewards: Any, out: dict[str, Any]) -> Any:
        totals = self.total(rewards)
        if self.beta:
            totals = totals - self.beta * self._kl(out)
        return self.local(leave_one_out(totals, self.trainer.num_generations))

    def _kl(self, out: dict[str, Any]) -> Any:
        """(N,) log pi - log pi_ref of whole completions, of all processes."""
        import torch

        mask = out["completion_mask"]
        if "tool_mask" in out:
            mask = mask * out["tool_mask"]
        logps = out.get("old_per_token_logps")
        if logps is None:  # the library skips them where every ratio is 1
            size = self.trainer.args.per_device_train_batch_size
            keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
            with torch.no_grad():
                parts = [
                    self.backend.per_token_logps(
                        self.trainer.model, {k: out[k][i : i + size] for k in keys}, self.trainer.temperature
                    )
                    for i in range(0, len(mask), size)
                ]
            logps = torch.cat(parts)
        kl = ((logps - out["ref_per_token_logps"]) * mask).sum(1)
        kl = self.trainer.accelerator.gather(kl)
        self.log("kl", kl.mean().item())
        return kl
