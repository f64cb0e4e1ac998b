"""What stands beside the library's loop: a run stops at the first number that is none, and counts stay true.

`watch(hf, trainer)` puts two checks around the loop, both before the optimizer steps, so that the weights stay those of
the last good step: the loss of every micro-batch, and the norm of every gradient. A checkpoint or model is only written
where all trained weights are finite (`refuse_broken_weights`), so the newest checkpoint is always a good one.

`TokenCount` carries `num_tokens`, which TRL's SFT, DPO, KTO and reward trainers start at 0 again in a resumed run, in
the checkpoint's own `trainer_state.json` (`num_input_tokens_seen`, which these trainers leave unused); `tell_counts`
writes the true numbers of rows and sequences into the manifest.

>>> watch(hf, trainer)
>>> hf.train()
TrainingError: the loss of step 7 is nan (the last finite one: 2.31 at step 6)

Source: `Trainer.training_step` and `Accelerator.clip_grad_norm_` (Transformers 5, Accelerate 1). Under fp16 a gradient
that is not finite is part of the method: the loss scaler skips that step (Micikevicius et al. 2018, arXiv:1710.03740),
so gradients are not checked there. It does not judge a loss that is finite.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from aligntune.core.following import follow
from aligntune.core.saving import find_checkpoint
from aligntune.errors import ConfigurationError, TrainingError

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

OWN_COUNT = "_total_train_tokens"
"""Where TRL's trainers count tokens that they do not put into the checkpoint."""


class LossWatch:
    """Remembers the last finite loss, and raises at the first that is not finite.

    Args:
        hf: the library's trainer.
        trainer: the run.
    """

    def __init__(self, hf: Any, trainer: Trainer) -> None:
        self.hf = hf
        self.trainer = trainer
        self.last: tuple[int, float] | None = None

    @property
    def step(self) -> int:
        """The optimizer step that is being computed, from 1."""
        return int(self.hf.state.global_step) + 1

    def loss(self, value: float) -> None:
        """Take the loss of one micro-batch.

        Raises:
            TrainingError: it is NaN or infinite.
        """
        if math.isfinite(value):
            self.last = self.step, value
            return
        self.fail("loss", value)

    def gradient(self, norm: float) -> None:
        """Take the norm of one step's gradient.

        Raises:
            TrainingError: it is NaN or infinite.
        """
        if not math.isfinite(norm):
            self.fail("grad_norm", norm)

    def fail(self, name: str, value: float) -> None:
        """Record what was seen and stop.

        Raises:
            TrainingError: always.
        """
        if self.hf.state.is_world_process_zero:
            self.trainer.record(self.step, {name: value})
        seen = f"; the last finite loss was {self.last[1]:.6g} at step {self.last[0]}" if self.last else ""
        what = "loss" if name == "loss" else "gradient's norm"
        raise TrainingError(
            f"the {what} of step {self.step} is not a finite number ({value}){seen}",
            hint=f"{self.advice}; no weight was changed by that step",
            context={"step": self.step, name: value, "last_finite": self.last},
        )

    @property
    def advice(self) -> str:
        """What to change, and where the last good weights are."""
        try:
            kept = find_checkpoint(self.trainer.config.output_dir, "latest").path
        except ConfigurationError:
            return "lower train.learning_rate or add train.warmup_steps; set train.save_steps to keep good weights"
        return (
            f"lower train.learning_rate or add train.warmup_steps; the last good checkpoint is {kept} "
            "(set model.name_or_path to it to start from there in another output_dir)"
        )


def watch(hf: Any, trainer: Trainer) -> None:
    """Put the checks around the loop of `hf`, on this one object, whatever class a backend has made of it."""
    seen = LossWatch(hf, trainer)
    follower = follow(hf, trainer) if trainer._run is not None else None  # built to be looked at only, as checks do
    train, clip = hf.training_step, hf.accelerator.clip_grad_norm_

    def training_step(*args: Any, **kwargs: Any) -> Any:
        if follower is not None:
            follower.batch(args[1] if len(args) > 1 else kwargs["inputs"])
        loss = train(*args, **kwargs)
        seen.loss(float(loss))
        return loss

    def clip_grad_norm_(*args: Any, **kwargs: Any) -> Any:
        norm = clip(*args, **kwargs)
        if norm is not None and getattr(hf.accelerator, "scaler", None) is None:
            seen.gradient(float(norm))
        return norm

    hf.training_step = training_step
    hf.accelerator.clip_grad_norm_ = clip_grad_norm_


def refuse_broken_weights(model: Any, step: int) -> None:
    """Refuse to write weights that are no numbers, so that the checkpoints that are there stay the last good ones.

    Raises:
        TrainingError: names the first trained weight with a NaN or an infinity.
    """
    import torch

    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise TrainingError(
                f"after step {step} the weight {name} holds a number that is not finite, so it is not written",
                hint="lower train.learning_rate or add train.warmup_steps; older checkpoints stay as they are",
                context={"step": step, "weight": name},
            )


class TokenCount:
    """The trainer's count of tokens, kept in the state that the library writes into each checkpoint.

    Args:
        hf: the library's trainer; one without a count of its own is left alone.
    """

    def __init__(self, hf: Any) -> None:
        self.hf = hf

    def restore(self, state: Any) -> None:
        """Go on from a checkpoint's count."""
        if hasattr(self.hf, OWN_COUNT) and state.num_input_tokens_seen:
            setattr(self.hf, OWN_COUNT, int(state.num_input_tokens_seen))

    def keep(self, state: Any) -> None:
        """Put the present count where the next checkpoint will have it."""
        # GRPO and RLOO have the attribute too, leave it as it is, and count in the state themselves.
        state.num_input_tokens_seen = max(int(getattr(self.hf, OWN_COUNT, 0)), int(state.num_input_tokens_seen))


def tell_counts(trainer: Trainer) -> None:
    """Write into the manifest how many rows the run has, and how many sequences the library has made of them.

    Rows that were left out on the way to the trainer are named in the data set's own notes; one that the library drops
    after that is told here.
    """
    rows, made = trainer._train_rows().dataset, trainer._hf.train_dataset
    if not hasattr(made, "__len__"):  # a stream has no number of rows
        return
    counts = {"rows": len(rows), "sequences": len(made)}
    if getattr(trainer.config.algorithm, "packing", False):
        limit = trainer.config.model.max_seq_length
        trainer._tell([f"{len(rows)} rows are packed into {len(made)} sequences of at most {limit} tokens"])
    elif len(made) < len(rows):
        trainer._tell([f"the training library left out {len(rows) - len(made)} of {len(rows)} rows"])
    trainer._run.update_manifest({"training_data": counts, "notes": trainer.notes})
