"""The order in which a run saw its data, as one hash that grows with each batch.

    digest_0 = ""        digest_n = SHA-256(digest_(n-1) + SHA-256(batch n))

`order.jsonl` of the run folder has a line for each line of the log and each checkpoint:

    {"step": 10, "epoch": 0.5, "batches": 20, "sha256": "5e1c..."}

Two runs with the same hash at a step have trained on the same batches, in the same order, up to there; the first line
that differs says where their orders part. A resumed run goes on from the last line that its checkpoint keeps.

Source: a hash chain over SHA-256 (FIPS 180-4). A batch is its token ids and labels where it has any, else its rows as
JSON. Of several processes the first one's batches count. It says nothing about what was sampled by the model.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from aligntune.utils.files import append_line, jsonable, read_lines
from aligntune.utils.run_folder import ORDER

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

ROUNDED = 6
"""Digits of an epoch, as `metrics.jsonl` has it."""


def batch_sha256(inputs: Any) -> str:
    """SHA-256 of one batch as the library hands it to its training step.

    Args:
        inputs: name to tensors, of which integer ones named `...input_ids`, `labels` or `...labels` count; or rows.
    """
    import torch

    found = hashlib.sha256()
    if not isinstance(inputs, dict):
        found.update(json.dumps(jsonable(inputs), sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
        return found.hexdigest()
    for name in sorted(inputs):
        value = inputs[name]
        if not name.endswith(("input_ids", "labels")) or not isinstance(value, torch.Tensor):
            continue
        found.update(f"{name}{tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


class DataOrder:
    """The running hash of a run's batches.

    Args:
        trainer: the run, whose folder is claimed.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.batches, self.digest, self._written = 0, "", 0
        for row in read_lines(trainer._run.path / ORDER)[-1:]:
            self.batches, self.digest = int(row["batches"]), str(row["sha256"])
            self._written = self.batches

    def see(self, inputs: Any) -> None:
        """Take one batch."""
        self.batches += 1
        self.digest = hashlib.sha256(f"{self.digest}{batch_sha256(inputs)}".encode()).hexdigest()

    def write(self) -> None:
        """Append a line to `order.jsonl`, where batches were seen since the last one."""
        if self._written == self.batches:
            return
        self._written, state = self.batches, self._trainer.state
        first = getattr(self._trainer, "first_step", 0)  # a round's steps follow those of the rounds before
        row = {"step": first + state.step, "epoch": round(state.epoch, ROUNDED)}
        append_line(self._trainer._run.path / ORDER, {**row, "batches": self.batches, "sha256": self.digest})
