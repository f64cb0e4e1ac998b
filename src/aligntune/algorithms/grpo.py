"""Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300).

For each prompt G completions are sampled; A_i = (R_i - mean_g) / (std_g + 1e-4). Loss per token:
-min(r_t A, clip(r_t, 1 - epsilon, 1 + epsilon) A) + beta k3, k3 = exp(-D) + D - 1, D = log pi - log pi_ref; mean over a
completion's tokens, then over completions (`loss_type: grpo`). TRL computes it; its own defaults differ from the paper
(loss_type dapo, beta 0, a bias correction of the KL term), so every value is sent explicitly.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from aligntune.algorithms.base import AlgorithmParams, Schema, algorithm
from aligntune.algorithms.plugin import Plugin
from aligntune.registry import import_attribute

LAYER = "aligntune.core.rl.layer:layered"  # a lazy name, because the layer stands higher


@algorithm("grpo", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class GRPO(AlgorithmParams):
    """Learn from rewards of sampled completions, compared within each prompt's group."""

    learning_rate: ClassVar[float] = 1e-6  # DeepSeekMath, section 4.2; TRL's GRPOConfig
    uses_rewards: ClassVar[bool] = True

    num_generations: Annotated[int, Ge(2)] = 8
    """Completions per prompt, G (TRL; the paper samples 64)."""
    beta: NonNegativeFloat = 0.04
    """KL strength (DeepSeekMath, section 4.2); 0 keeps no reference model."""
    epsilon: PositiveFloat = 0.2
    """Lower clip of the ratio, and the upper one where `epsilon_high` is not set (PPO, Schulman et al. 2017)."""
    epsilon_high: PositiveFloat | None = None
    """Upper clip (DAPO, arXiv:2503.14476, section 3.1); None takes `epsilon`."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "grpo"
    """How token losses are averaged; `grpo` is the paper's, per completion and then over completions (TRL's names)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide the advantage by the standard deviation of its group (the paper), of the batch, or not at all."""
    num_iterations: PositiveInt = 1
    """Updates per batch of completions, mu in the paper's algorithm 1 (TRL)."""
    steps_per_generation: PositiveInt | None = None
    """Micro-batches per generation; None takes `train.gradient_accumulation_steps` (TRL)."""
    mask_truncated_completions: bool = False
    """Leave completions without a terminator out of the loss (DAPO, section 3.4; TRL)."""

    def arguments(self, config: Any) -> dict[str, Any]:
        g = config.generation
        return {
            "num_generations": self.num_generations,
            "num_generations_eval": self.num_generations,
            "beta": self.beta,
            "epsilon": self.epsilon,
            "epsilon_high": self.epsilon_high,
            "delta": None,
            "loss_type": self.loss_type,
            "scale_rewards": self.scale_rewards,
            "importance_sampling_level": "token",
            "num_iterations": self.num_iterations,
            "steps_per_generation": self.steps_per_generation or config.train.gradient_accumulation_steps,
            "mask_truncated_completions": self.mask_truncated_completions,
            "use_bias_correction_kl": False,
            "multi_objective_aggregation": "sum_then_normalize",
            "disable_dropout": False,
            "entropy_coef": 0.0,
            "top_entropy_quantile": 1.0,
            "use_adaptive_entropy": False,
            "off_policy_mask_threshold": None,
            "reward_weights": None,
            "sync_ref_model": False,
            "cast_lm_head_to_fp32": False,
            "generation_kwargs": None,
            "max_completion_length": g.max_completion_length,
            "temperature": g.temperature,
            "top_p": g.top_p,
            "top_k": g.top_k,
            "min_p": g.min_p,
            "repetition_penalty": g.repetition_penalty,
            "use_vllm": False,
            "shuffle_dataset": True,
            "log_completions": False,
        }

    def plugin(self, config: Any) -> Plugin:
        """What this algorithm adds to TRL's trainer; nothing here, and more in its descendants."""
        return Plugin()

    def trainer_type(self, base: type) -> type:
        return import_attribute(LAYER)(base)  # type: ignore[no-any-return]

    def attach(self, hf: Any, trainer: Any) -> None:
        hf.attach(self.plugin(trainer.config), trainer.config, trainer.backend)

    def window(self, config: Any) -> int:
        """Micro-batches between two generations."""
        return (self.steps_per_generation or config.train.gradient_accumulation_steps) * self.num_iterations  # type: ignore[no-any-return]

    def resumable(self, config: Any, step: int) -> bool:
        return step * config.train.gradient_accumulation_steps % self.window(config) == 0  # type: ignore[no-any-return]

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = []
        window = self.steps_per_generation or config.train.gradient_accumulation_steps
        rollout = config.train.per_device_batch_size * window
        if rollout % self.num_generations:
            found.append(
                (
                    "algo.num_generations",
                    f"{self.num_generations} does not divide the completions of one generation: "
                    f"per_device_batch_size {config.train.per_device_batch_size} x steps per generation {window} = "
                    f"{rollout}, and {rollout} / {self.num_generations} = "
                    f"{rollout / self.num_generations:.3g} prompts; "
                    f"set train.per_device_batch_size to a multiple of {self.num_generations}",
                )
            )
        if not config.rewards:
            found.append(("rewards", "is empty; GRPO needs at least one, for example `rewards: [math_correctness]`"))
        elif all(r.weight == 0 for r in config.rewards):
            found.append(("rewards", "have only zero weights, so every advantage would be 0"))
        g = config.generation
        longest = g.max_prompt_length + g.max_completion_length
        if longest > config.model.max_seq_length:
            found.append(
                (
                    "model.max_seq_length",
                    f"{config.model.max_seq_length} is below generation.max_prompt_length {g.max_prompt_length} + "
                    f"generation.max_completion_length {g.max_completion_length} = {longest}",
                )
            )
        window_micro = self.window(config)
        saves = (config.train.save_steps or 0) * config.train.gradient_accumulation_steps
        if not self.resumable(config, config.train.save_steps or 0):
            found.append(
                (
                    "train.save_steps",
                    f"{config.train.save_steps} falls inside a generation window, where a resume is not exact: "
                    f"save_steps x gradient_accumulation_steps ({saves}) must be a multiple of "
                    f"steps_per_generation x num_iterations ({window_micro})",
                )
            )
        return found
