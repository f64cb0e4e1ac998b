"""Self-play fine-tuning (Chen et al. 2024, arXiv:2401.01335).

Round k (1 to `rounds`) learns to tell the data's answers from those that the model of round k-1 gives. For each row
the answer of the data is chosen, and one sampled from the model of round k-1 is rejected; that model is the reference
too, in full fine-tuning and with adapters. Loss of a row (equation 4.7 with the logistic loss):

    -log sigma(beta h),   h = [log pi(y) - log pi_ref(y)] - [log pi(y') - log pi_ref(y')]

so every round begins at log 2. Data: the rows of supervised fine-tuning (prompt and completion); no preferences.

    algo: {name: spin, rounds: 3, beta: 0.1}
    generation: {temperature: 1.0, max_completion_length: 256}

Each round is one run of TRL's DPOTrainer with an optimizer and a schedule of its own: `train.max_steps` and
`train.num_epochs` are those of one round, as `evaluation.every` and `train.save_steps` count within it. The model after
round k is kept in `round-k/` of the run folder, with the sampled pairs. Rows whose sampled answer is that of the data
say nothing, and are counted and left out.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from aligntune.algorithms.base import AlgorithmParams, Schema, algorithm
from aligntune.algorithms.dpo import DPO


@algorithm("spin", trainer="trl:DPOTrainer", args="trl:DPOConfig", data=Schema.PROMPT_COMPLETION)
class SPIN(AlgorithmParams):
    """Learn from supervised rows by preferring their answers to the model's own, round after round."""

    learning_rate: ClassVar[float] = 5e-7  # the paper, appendix A.1 (its first two iterations)
    driver: ClassVar[str] = "aligntune.core.rl.spin:run"
    train_on: ClassVar[str] = "completion"
    fixed: ClassVar[dict[str, Any]] = {"loss_type": "sigmoid"}
    inert: ClassVar[dict[str, str]] = {
        "rewards": "SPIN learns from answers, not from reward functions",
        "generation.max_prompt_length": "`model.max_seq_length` limits prompt and answer together",
        "generation.use_vllm": "SPIN samples between its rounds, with Transformers",
        "train.early_stopping_patience": "each round has its full length",
        "train.keep_best": "each round ends with its last weights, and the next begins with them",
        "train.best_metric": "each round ends with its last weights, and the next begins with them",
        "train.best_mode": "each round ends with its last weights, and the next begins with them",
    }

    rounds: PositiveInt = 3
    """Rounds of sampling and training (the paper runs up to four)."""
    beta: PositiveFloat = 0.1
    """Strength of the pull to the last round's model, lambda in the paper (appendix A.1)."""

    def arguments(self, config: Any) -> dict[str, Any]:
        return DPO(beta=self.beta).arguments(config)

    def bound_to_batch(self, config: Any) -> str | None:
        return "each round is a run of its own, which goes on from its own checkpoints only"

    def inert_keys(self, config: Any) -> dict[str, str]:
        from aligntune.algorithms.group import vllm_arguments

        reason = self.inert["generation.use_vllm"]
        return {**super().inert_keys(config), **{f"generation.{k}": reason for k in vllm_arguments(config.generation)}}
