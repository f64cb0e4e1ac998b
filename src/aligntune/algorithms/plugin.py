"""What an algorithm of ours adds to TRL's GRPOTrainer: a few optional methods, called by one thin layer.

    class Halved(Plugin):
        def advantages(self, rewards, out):
            return 0.5 * out["advantages"]

The layer (`aligntune.core.rl.layer`) subclasses the trainer that the backend supplies, calls these methods where
stock TRL and Unsloth's rewritten trainer agree, and stops the run if one of them was never called. Shapes: B
completions of this process, N of all processes, T tokens of the longest completion, F reward functions.

Source of the places: `GRPOTrainer` of TRL 1.14.2 (`_generate_and_score_completions`, `_calculate_rewards`,
`compute_loss`). A plugin holds no configuration of its own: it is made by its algorithm's parameter class.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Generate = Callable[[list[dict[str, Any]]], dict[str, Any]]


class Plugin:
    """Base of every plugin: each method may be overridden, none must be.

    Attributes:
        trainer: the library's trainer, set before any method is called.
        config: the run's configuration.
        backend: the backend of the run.
        loss_beta: the KL strength inside the loss, where it differs from `args.beta` (a reference that is kept, but
            not in the loss, has `args.beta` above 0 and `loss_beta` 0); None leaves it.
        has_advantages: whether the dictionary's advantages are what the algorithm learns from, and not a placeholder.
    """

    trainer: Any = None
    config: Any = None
    backend: Any = None
    loss_beta: float | None = None
    has_advantages: bool = True

    def start(self) -> None:
        """Called once, with `trainer`, `config` and `backend` set."""

    def rollout(self, generate: Generate, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Sample and score completions for `rows` (B rows, each prompt repeated G times).

        Args:
            generate: TRL's own method; it may be called again with other rows.
            rows: data rows of this process.

        Returns:
            TRL's dictionary: prompt_ids, prompt_mask, completion_ids, completion_mask (B, T), advantages (B,),
            num_items_in_batch, and old_per_token_logps, ref_per_token_logps where they were needed. Tensors with
            leading dimension B that a plugin adds are shuffled and split with the rest.
        """
        return generate(rows)

    def advantages(self, rewards: Any, out: dict[str, Any]) -> Any:
        """Advantages of this process, (B,) or (B, T), in place of TRL's; None keeps those.

        Args:
            rewards: (N, F) scores of all processes, NaN where a reward gave none; the rows of this process are
                `self.local(rewards)`.
            out: what `rollout` returned.
        """
        return None

    def token_weights(self, out: dict[str, Any]) -> Any:
        """Factors >= 0 of the policy term, (B, T), which never touch the KL term; None is 1 everywhere."""
        return None

    def micro_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A micro-batch of `rollout`'s dictionary as its loss will see it; called before every loss."""
        return inputs

    def token_loss(self, logps: Any, inputs: dict[str, Any]) -> Any:
        """A loss per token, (B, T), added before aggregation as `loss_type` says; None adds nothing.

        Args:
            logps: (B, T) log-probabilities of the policy, with gradient.
            inputs: one micro-batch of `rollout`'s dictionary.
        """
        return None

    def batch_loss(self, logps: Any, inputs: dict[str, Any]) -> Any:
        """A scalar added to the loss of a micro-batch, divided by the accumulation steps; None adds nothing."""
        return None

    def parameters(self) -> list[Any]:
        """Trained parameters beyond the policy's, as one more group of the optimizer."""
        return []

    def optimizer_options(self) -> dict[str, Any]:
        """Settings of that group which differ from the optimizer's defaults, such as `lr`."""
        return {}

    def skip_update(self) -> bool:
        """Asked after each micro-batch: True drops the gradients that are accumulated so far."""
        return False

    def rollout_columns(self, totals: list[float | None]) -> dict[str, list[Any]]:
        """Further columns of the stored rollouts, one value for each completion that is being scored.

        Args:
            totals: rewards of this process's completions, in groups where no group spans two processes.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold: JSON values and tensors, by name."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""

    def save(self, folder: Path) -> None:
        """Write, beside the trained model in `folder`, what else the run has learned (never pickled)."""

    # ---- for the methods above ------------------------------------------------------------------------------

    def log(self, name: str, value: float) -> None:
        """Log a number under `name`; the numbers of one logging window are averaged."""
        mode = "train" if self.trainer.model.training else "eval"
        self.trainer._metrics[mode][name].append(float(value))

    @property
    def training(self) -> bool:
        """False while the model is evaluated."""
        return bool(self.trainer.model.training)

    def local(self, values: Any) -> Any:
        """The rows of this process out of (N, ...) gathered ones."""
        size = values.shape[0] // self.trainer.accelerator.num_processes
        first = self.trainer.accelerator.process_index * size
        return values[first : first + size]

    def total(self, rewards: Any) -> Any:
        """(N,) weighted sums of (N, F) scores; NaN where no reward gave a score (TRL's rule)."""
        weights = self.trainer.reward_weights.to(rewards.device)
        summed = (rewards * weights).nansum(dim=1)
        summed[rewards.isnan().all(dim=1)] = float("nan")
        return summed
