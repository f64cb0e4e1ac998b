"""Supervised fine-tuning: parameters that every text task shares.

Loss: token cross-entropy -log p(y_t) over the trained tokens, or `dft` (Wu et al. 2025, arXiv:2508.05629):
-sg(p_t) log p_t, which weights each token by the probability that it has already. Both are TRL's `SFTTrainer`, and both
are the mean over the trained tokens of an optimizer step, whatever the batch size.

Packing and padding-free training lay rows end to end in one sequence, and each row's positions begin at 0 again, which
the attention mask follows: no token sees another row. Whether a model does so is asked of the model itself, before the
first step (`check_boundaries`), because some architectures carry a state from row to row.

Rows of 5, 3 and 4 tokens with `model.max_seq_length: 8` are packed as [5, 3] and [4] (best-fit decreasing); the loss is
that of the three rows apart. Longer rows are cut at that length with or without packing, and counted.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import NonNegativeFloat

from aligntune.algorithms.base import AlgorithmParams
from aligntune.core.config.base import section
from aligntune.errors import TrainingError


@section
class Supervised(AlgorithmParams):
    """Parameters of supervised fine-tuning on text."""

    learning_rate: ClassVar[float] = 2e-5  # TRL's SFTConfig
    inert: ClassVar[dict[str, str]] = {"logging.rollouts": "supervised tuning samples nothing in training"}

    loss: Literal["nll", "dft"] = "nll"
    """nll: cross-entropy (TRL). dft: dynamic fine-tuning (arXiv:2508.05629)."""
    packing: bool = False
    """Fill each sequence with several rows, best-fit decreasing, with attention kept inside each row (TRL)."""
    padding_free: bool = False
    """Lay the rows of a batch end to end in place of padding them, with attention kept inside each row (TRL)."""
    neftune_noise_alpha: NonNegativeFloat | None = None
    """Noise on the embeddings in training (Jain et al. 2023, arXiv:2310.05914); None is off (TRL)."""

    def arguments(self, config: Any) -> dict[str, Any]:
        return {
            "loss_type": self.loss,
            "packing": self.packing,
            "eval_packing": False,
            "packing_strategy": "bfd",
            "padding_free": self.padding_free,
            "pad_to_multiple_of": None,
            "activation_offloading": False,
            "neftune_noise_alpha": self.neftune_noise_alpha,
            # TRL takes no limit for padding-free rows; `attach` cuts them.
            "max_length": None if self.padding_free else config.model.max_seq_length,
            "truncation_mode": "keep_start",
            "dataset_text_field": "text",
            "shuffle_dataset": False,
            "completion_only_loss": False,
            "assistant_only_loss": False,
        }

    def faults(self, config: Any) -> list[tuple[str, str]]:
        joined = "packing" if self.packing else "padding_free"
        found = []
        if self.packing and self.padding_free:
            found.append(("task.padding_free", "is part of task.packing, whose rows have no padding; remove it"))
        if self.neftune_noise_alpha and (self.packing or self.padding_free):
            found.append(
                (
                    "task.neftune_noise_alpha",
                    f"would be scaled by the length of all joined rows with task.{joined}, not by the row's own as in "
                    f"the paper; remove one of the two",
                )
            )
        return found

    def attach(self, hf: Any, trainer: Any) -> None:
        if self.padding_free:
            hf.train_dataset = cut_rows(hf.train_dataset, trainer.config.model.max_seq_length)
        if self.packing or self.padding_free:
            check_boundaries(hf.model, "task.packing" if self.packing else "task.padding_free")


def cut_rows(rows: Any, limit: int) -> Any:
    """Tokenised rows (`input_ids`, `labels`) cut to their first `limit` tokens, as TRL cuts padded ones."""

    def cut(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        return {name: [row[:limit] for row in batch[name]] for name in ("input_ids", "labels")}

    return rows.map(cut, batched=True)


def check_boundaries(model: Any, key: str) -> None:
    """Ask the model whether a row sees the one before it in the same sequence.

    Two sequences that differ in their first row only must give the second row the same loss: what is masked out takes
    no part in a sum at all, so this holds to the last digits in every precision.

    Args:
        model: the model to train, on its device.
        key: the setting that joins rows, for the message.

    Raises:
        TrainingError: the second row's loss changes with the first row.
    """
    import torch

    length = 8
    vocabulary, device = model.get_input_embeddings().weight.shape[0], next(model.parameters()).device
    rows = [(torch.arange(length, device=device) * step + step) % vocabulary for step in (1, 2, 3)]
    positions = torch.arange(length, device=device).repeat(2).unsqueeze(0)
    training, losses = model.training, []
    model.eval()
    with torch.no_grad():
        for first in rows[:2]:
            ids = torch.cat([first, rows[2]]).unsqueeze(0)
            labels = ids.clone()
            labels[:, : length + 1] = -100
            losses.append(float(model(input_ids=ids, position_ids=positions, labels=labels, use_cache=False).loss))
    model.train(training)
    if abs(losses[0] - losses[1]) > 1e-4 * abs(losses[0]):
        raise TrainingError(
            f"{type(model).__name__} lets a row see the one before it in the same sequence, so {key} would train on "
            "something else than the rows",
            hint=f"remove {key}",
            context={"losses": losses},
        )
