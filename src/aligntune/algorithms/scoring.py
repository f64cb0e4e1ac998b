"""Log-probabilities of given tokens under the present policy: without gradient, in eval mode, in batches.

    logps = completion_logps(plugin, [(prompt_ids, completion_ids), ...])      # one list of T numbers for each

The forward pass is the backend's (`Backend.per_token_logps`), so it works where the training library shows no
log-probabilities. A batch holds at most `train.per_device_batch_size` sequences. Every process makes the same number
of forward passes, because a sharded model would wait for ever otherwise.

Source: written for this project; used by the algorithms that look at completions again (spans left out, completions
of an earlier visit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from aligntune.algorithms.plugin import Plugin

Job = TypeVar("Job")
Score = TypeVar("Score")


def in_batches(
    plugin: Plugin, jobs: Sequence[Job], score: Callable[[Any, list[Job]], list[Score]], idle: Job
) -> list[Score]:
    """The scores of all jobs of this process, in their order.

    Args:
        plugin: attached, so that it knows trainer and configuration.
        jobs: what to score.
        score: `(model, batch of jobs) -> scores`, with one forward pass.
        idle: a job for the forward passes that this process makes for company only.
    """
    import torch

    size = plugin.config.train.per_device_batch_size
    batches = [list(jobs[i : i + size]) for i in range(0, len(jobs), size)]
    accelerator = plugin.trainer.accelerator
    rounds = int(accelerator.gather(torch.tensor([len(batches)], device=accelerator.device)).max())
    model = plugin.trainer.model  # as TRL scores: the bare module, or the sharded one, which must be entered whole
    scores: list[Score] = []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                scores += score(model, batch)
            for _ in range(rounds - len(batches)):
                score(model, [idle])
    finally:
        model.train(was_training)
    return scores


def completion_logps(plugin: Plugin, jobs: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
    """log pi of each token of each completion, at the sampling temperature.

    Args:
        plugin: attached.
        jobs: (prompt's token ids, completion's token ids), each of at least one token.
    """
    import torch

    trainer = plugin.trainer
    device, padding = trainer.accelerator.device, trainer.processing_class.pad_token_id

    def padded(rows: list[list[int]], left: bool) -> tuple[Any, Any]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), padding, device=device)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, place], mask[i, place] = torch.tensor(row, device=device), 1
        return ids, mask

    def score(model: Any, batch: list[tuple[list[int], list[int]]]) -> list[list[float]]:
        prompt_ids, prompt_mask = padded([p for p, _ in batch], left=True)
        completion_ids, completion_mask = padded([c for _, c in batch], left=False)
        inputs = {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
        }
        logps = plugin.backend.per_token_logps(model, inputs, trainer.temperature).float().tolist()
        return [row[: len(c)] for row, (_, c) in zip(logps, batch, strict=True)]

    return in_batches(plugin, jobs, score, ([padding], [padding]))
