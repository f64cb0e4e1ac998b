"""Online direct preference optimisation (Guo et al. 2024, arXiv:2402.04792, direct alignment from AI feedback).

For each prompt two completions are sampled from the policy; the one with the higher reward is chosen, the other is
rejected. Loss of a pair, with D(y) = sum_t [log pi(y_t) - log pi_ref(y_t)] and h = D(chosen) - D(rejected):

    sigmoid: -log sigma(beta h)      hinge: max(0, 1 - beta h)      ipo: (h - 1 / (2 beta))^2

A pair with equal rewards, or with a completion that got none, has no order: it is left out of the loss, and counted
(`pairs/ties`, `pairs/unscored`). The loss is the mean over the pairs that are left, of the whole generation; where none
is left the update is skipped. What orders the pairs is the run's rewards: functions, a `reward_model`, or both.

    algo: {name: online_dpo, beta: 0.1}
    rewards: [{type: reward_model, params: {path: out/reward-model}}]

It stands on TRL's GRPOTrainer (sampling, rewards, stored rollouts, vLLM, checkpoints) with a policy term of zero, and
owns the loss. Log-probabilities are those of the distribution that is sampled from (logits divided by
`generation.temperature`), for the policy and the reference alike. Each batch is used once.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat

from aligntune.algorithms.base import AlgorithmParams, Schema, algorithm
from aligntune.algorithms.group import LAYER, GroupPolicy
from aligntune.algorithms.plugin import Generate, Plugin
from aligntune.errors import TrainingError
from aligntune.registry import import_attribute

PairLoss = Literal["sigmoid", "hinge", "ipo"]


def order(totals: list[float | None]) -> list[int]:
    """For each completion +1 if it is the better of its pair, -1 if the worse, 0 where the pair has no order.

    Args:
        totals: rewards, the two of a pair side by side; None or NaN where there is none.
    """
    signs: list[int] = []
    for a, b in zip(totals[::2], totals[1::2], strict=True):
        known = a is not None and b is not None and not math.isnan(a) and not math.isnan(b)
        first = (a > b) - (a < b) if known else 0  # type: ignore[operator]
        signs += [first, -first]
    return signs


def pair_losses(margins_P: Any, beta: float, loss_type: PairLoss) -> Any:
    """Loss of each pair (arXiv:2402.04792, section 2).

    Args:
        margins_P: h of each pair, D(chosen) - D(rejected), in nats.
        beta: KL strength, above 0.
    """
    from torch.nn.functional import softplus

    if loss_type == "sigmoid":
        return softplus(-beta * margins_P)
    if loss_type == "hinge":
        return (1 - beta * margins_P).clamp(min=0)
    return (margins_P - 1 / (2 * beta)) ** 2


class Pairs(Plugin):
    """Order the two completions of each prompt, keep them together, and compute the loss of the pairs."""

    has_advantages = False
    loss_beta = 0.0  # `args.beta` keeps a reference; its KL term is not in this loss

    def __init__(self, beta: float, loss_type: PairLoss) -> None:
        self.beta, self.loss_type = beta, loss_type
        self.empty = False

    def rollout(self, generate: Generate, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        self.trainer.last_rewards = None
        out = generate(rows)
        rewards = self.trainer.last_rewards
        if rewards is None or "ref_per_token_logps" not in out:
            raise TrainingError(
                f"{type(self.trainer).__mro__[1].__module__} gives no rewards or no reference log-probabilities",
                hint="this training library ignores the algorithm; install the versions of constraints.txt",
            )
        totals = self.total(rewards)
        signs = torch.tensor(order(totals.tolist()), device=totals.device, dtype=torch.float32)
        kept = int(signs.abs().sum()) // 2
        self.empty = kept == 0
        self._count(totals, signs)
        mine = self.local(signs)
        share = signs.numel() / 2 / max(kept, 1)  # so that the mean over all pairs is the mean over those kept
        out = {**out, "advantages": torch.zeros_like(mine), "pair_sign": mine, "pair_weight": mine.abs() * share}
        size = mine.numel()
        return {
            name: value.reshape(size // 2, 2, *value.shape[1:])
            if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == size
            else value
            for name, value in out.items()
        }

    def micro_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A row for each completion again, the two of a pair side by side."""
        pairs = tuple(inputs["pair_sign"].shape)
        return {
            name: value.flatten(0, 1) if hasattr(value, "shape") and tuple(value.shape[:2]) == pairs else value
            for name, value in inputs.items()
        }

    def batch_loss(self, logps: Any, inputs: dict[str, Any]) -> Any:
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        delta_BT = (logps - inputs["ref_per_token_logps"]) * mask
        delta_P2 = delta_BT.sum(-1).reshape(-1, 2)
        sign_P2 = inputs["pair_sign"].reshape(-1, 2)
        margins_P = (delta_P2 * sign_P2).sum(-1)
        losses_P = pair_losses(margins_P, self.beta, self.loss_type)
        self._measure(delta_P2.detach(), sign_P2, delta_BT.detach(), mask)
        return (losses_P * inputs["pair_weight"].reshape(-1, 2)[:, 0]).mean()

    def skip_update(self) -> bool:
        return self.empty

    def rollout_columns(self, totals: list[float | None]) -> dict[str, list[Any]]:
        return {"preference": [float(s) if s else None for s in order(totals)]}

    def _count(self, totals: Any, signs: Any) -> None:
        pairs, unscored = totals.reshape(-1, 2), totals.reshape(-1, 2).isnan().any(1)
        kept = signs.reshape(-1, 2)[:, 0] != 0
        self.log("pairs/unscored", float(unscored.float().mean()))
        self.log("pairs/ties", float((~unscored & ~kept).float().mean()))
        self.log("pairs/kept", float(kept.float().mean()))
        if kept.any():
            gap = pairs[kept]
            self.log("pairs/reward_gap", float((gap[:, 0] - gap[:, 1]).abs().mean()))

    def _measure(self, delta_P2: Any, sign_P2: Any, delta_BT: Any, mask: Any) -> None:
        """Log the implicit rewards beta D of the chosen and the rejected, as preference algorithms do, and the KL."""
        import torch

        chosen, rejected = (delta_P2 * (sign_P2 > 0)).sum(1), (delta_P2 * (sign_P2 < 0)).sum(1)
        kept = sign_P2[:, 0] != 0
        right = (kept & (chosen > rejected)).float()
        sums = [chosen.sum(), rejected.sum(), right.sum(), kept.sum().float(), delta_BT.sum(), mask.sum().float()]
        gathered = self.trainer.accelerator.gather(torch.stack(sums).unsqueeze(0)).sum(0).tolist()
        c, r, right_pairs, n, kl, tokens = gathered
        if n:
            self.log("rewards/chosen", self.beta * c / n)
            self.log("rewards/rejected", self.beta * r / n)
            self.log("rewards/margins", self.beta * (c - r) / n)
            self.log("rewards/accuracies", right_pairs / n)
        if tokens:
            self.log("kl", kl / tokens)


@algorithm("online_dpo", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class OnlineDPO(AlgorithmParams):
    """Learn from pairs that the policy samples and the run's rewards order."""

    learning_rate: ClassVar[float] = 5e-7  # the paper, section 4; TRL's OnlineDPOConfig
    uses_rewards: ClassVar[bool] = True
    fixed: ClassVar[dict[str, Any]] = {
        "num_generations": 2,
        "num_iterations": 1,
        "scale_rewards": "none",
        "disable_dropout": True,
    }

    beta: PositiveFloat = 0.1
    """KL strength (arXiv:2402.04792, section 4; TRL)."""
    loss_type: PairLoss = "sigmoid"
    """The loss of a pair: sigmoid (DPO), hinge (SLiC) or ipo, all three in section 2 of the paper."""

    @property
    def _group(self) -> GroupPolicy:
        """What the trainer below is told about groups of two."""
        return GroupPolicy(num_generations=2, disable_dropout=True)

    @property
    def invariance(self) -> frozenset[str]:
        return frozenset({"shift", "scale", "group shift", "group scale"})  # only the order of two counts

    def arguments(self, config: Any) -> dict[str, Any]:
        return {**self._group.arguments(config), **self.fixed, "beta": self.beta}

    def plugin(self, config: Any) -> Plugin:
        """The loss of pairs in place of the policy term."""
        return Pairs(self.beta, self.loss_type)

    def trainer_type(self, base: type) -> type:
        return import_attribute(LAYER)(base)  # type: ignore[no-any-return]

    def attach(self, hf: Any, trainer: Any) -> None:
        hf.attach(self.plugin(trainer.config), trainer.config, trainer.backend)

    def inert_keys(self, config: Any) -> dict[str, str]:
        keys = self._group.inert_keys(config)
        return {**super().inert_keys(config), **{k: v for k, v in keys.items() if not k.startswith("algo.")}}

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = [f for f in self._group.faults(config) if not f[0].startswith("algo.")]
        size = config.train.per_device_batch_size
        if size % 2:
            found.append(
                (
                    "train.per_device_batch_size",
                    f"counts completions, two for each prompt, and {size} is odd; set it to {size + 1}",
                )
            )
        return found
