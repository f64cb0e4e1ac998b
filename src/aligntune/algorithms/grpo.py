"""Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300).

For each prompt G completions are sampled; A_i = (R_i - mean_g) / (std_g + 1e-4). Loss per token:
-min(r_t A, clip(r_t, 1 - epsilon, 1 + epsilon) A) + beta k3, k3 = exp(-D) + D - 1, D = log pi - log pi_ref; mean over a
completion's tokens, then over completions (`loss_type: grpo`). TRL computes it; its own defaults differ from the paper
(loss_type dapo, beta 0, a bias correction of the KL term), so every value is sent explicitly.

    algo: {name: grpo, num_generations: 8, beta: 0.04}

The algorithms that are more than a value of `loss_type` have keys of their own (dr_grpo, dapo, gspo, cispo ...).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.group import Clip, Reference, Scaling


@algorithm("grpo", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class GRPO(Scaling, Reference, Clip):
    """Learn from rewards of sampled completions, compared within each prompt's group."""

    beta: NonNegativeFloat = 0.04
    """KL strength (DeepSeekMath, section 4.2); 0 keeps no reference model."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo", "vespo"] = "grpo"
    """What is averaged and how (docs/algorithms.md gives the formulas): `grpo` is the paper's, per completion and then
    over completions (TRL's names)."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """The ratio of each token (the paper), or one ratio per completion (GSPO, arXiv:2507.18071)."""
    sapo_temperature_pos: PositiveFloat = 1.0
    """sapo: steepness of the soft gate for positive advantages (SAPO, arXiv:2511.20347; TRL)."""
    sapo_temperature_neg: PositiveFloat = 1.05
    """sapo: steepness of the soft gate for negative advantages (SAPO, arXiv:2511.20347; TRL)."""
    vespo_k_pos: NonNegativeFloat = 2.0
    """vespo: exponent of the ratio's weight for positive advantages (VESPO, arXiv:2602.10693; TRL)."""
    vespo_lambda_pos: NonNegativeFloat = 3.0
    """vespo: decay of the ratio's weight for positive advantages (VESPO, arXiv:2602.10693; TRL)."""
    vespo_k_neg: NonNegativeFloat = 3.0
    """vespo: exponent of the ratio's weight for negative advantages (VESPO, arXiv:2602.10693; TRL)."""
    vespo_lambda_neg: NonNegativeFloat = 2.0
    """vespo: decay of the ratio's weight for negative advantages (VESPO, arXiv:2602.10693; TRL)."""

    def inert_keys(self, config: Any) -> dict[str, str]:
        keys, loss = super().inert_keys(config), f"`algo.loss_type` is {self.loss_type}"
        for name in ("sapo_temperature_pos", "sapo_temperature_neg"):
            if self.loss_type != "sapo":
                keys[f"algo.{name}"] = loss
        for name in ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"):
            if self.loss_type != "vespo":
                keys[f"algo.{name}"] = loss
        if self.loss_type in ("sapo", "vespo"):
            keys |= {f"algo.{n}": f"{loss}, which does not clip" for n in ("epsilon", "epsilon_high", "delta")}
        if self.loss_type == "vespo":
            keys["algo.importance_sampling_level"] = f"{loss}, which weighs whole completions"
        return keys

    def notes(self, config: Any) -> list[str]:
        found = super().notes(config)
        if self.importance_sampling_level == "sequence" and self.loss_type in ("bnpo", "dr_grpo", "dapo"):
            found.append(
                f"with algo.loss_type {self.loss_type} a completion's one ratio counts once for each of its tokens, so "
                "long completions weigh more; GSPO (`algo: gspo`) averages over completions"
            )
        return found

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = super().faults(config)
        if self.loss_type == "luspo" and self.importance_sampling_level != "sequence":
            sentence = "luspo is made of the completions' ratios; set algo.importance_sampling_level to sequence"
            found.append(("algo.loss_type", sentence))
        g = config.generation
        if self.loss_type == "vespo" and g.use_vllm and not g.vllm_importance_sampling_mode.startswith("token"):
            sentence = "vespo with vLLM needs the correction by token: set token_truncate or token_mask"
            found.append(("generation.vllm_importance_sampling_mode", sentence))
        return found
