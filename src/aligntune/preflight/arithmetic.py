"""Batch arithmetic: what one optimizer step and one epoch hold, how each key is called on the backend, what divides.

>>> counts(config, rows=3500, processes=1).steps_per_epoch
438

With b rows per device and forward pass, a accumulated passes and p processes, a step holds b a p sequences. In policy
optimisation a sequence is a completion, and with G completions to a prompt a generation of s passes holds b s p / G
prompts, used i times (`num_iterations`). An epoch of N rows takes ceil(N / (b a p)) steps, in policy optimisation
floor(N G / (b s p)) s i / a.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.core.config.root import RunConfig
from aligntune.preflight.verdict import Verdict

NAMES = {
    "train.per_device_batch_size": "per_device_train_batch_size",
    "train.gradient_accumulation_steps": "gradient_accumulation_steps",
    "algo.num_generations": "num_generations",
    "algo.steps_per_generation": "steps_per_generation",
    "algo.num_iterations": "num_iterations",
    "model.max_seq_length": "max_length",
    "generation.max_completion_length": "max_completion_length",
    "train.max_steps": "max_steps",
    "train.num_epochs": "num_train_epochs",
}
"""Our key to the name that the training library has for it."""


@dataclass(frozen=True)
class Counts:
    """What a step, an epoch and the run hold, over all processes.

    Attributes:
        processes: data-parallel processes (`WORLD_SIZE`).
        sequences: rows, or completions, of one optimizer step.
        prompts: prompts of one generation; None where nothing is sampled.
        steps_per_epoch: optimizer steps; None where the rows are not known.
        total_steps: optimizer steps of the run.
        left_over: rows of an epoch's last step, where they do not fill it.
    """

    processes: int
    sequences: int
    prompts: float | None
    steps_per_epoch: int | None
    total_steps: int | None
    left_over: int


def processes() -> int:
    """How many processes train together, as torchrun and Accelerate say it."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def counts(config: RunConfig, rows: int | None, world: int | None = None) -> Counts:
    """The arithmetic of a configuration over `rows` training rows."""
    t, params = config.train, config.algorithm
    p = world or processes()
    sequences = t.per_device_batch_size * t.gradient_accumulation_steps * p
    prompts, per_epoch, left = None, None, 0
    if params.data is Schema.PROMPT and hasattr(params, "schedule") and hasattr(params, "num_generations"):
        passes, again = params.schedule(config)
        prompts = t.per_device_batch_size * passes * p / params.num_generations
        if rows is not None:
            generations = max(int(rows // prompts), 1)
            left = int(rows % prompts)
            per_epoch = max(math.ceil(generations * passes * again / t.gradient_accumulation_steps), 1)
    elif rows is not None:
        per_epoch = max(math.ceil(rows / sequences), 1)
        left = rows % sequences
    total = t.max_steps or (math.ceil(per_epoch * t.num_epochs) if per_epoch is not None else None)
    return Counts(p, sequences, prompts, per_epoch, total, left)


def batch(config: RunConfig, rows: int | None, tokens: float | None) -> Verdict:
    """The arithmetic as a verdict.

    Args:
        rows: usable training rows; None where they could not be read.
        tokens: mean tokens of a row (of a prompt, in policy optimisation).
    """
    found, t = counts(config, rows), config.train
    evidence = _lines(config, found, rows, tokens)
    data = {**found.__dict__, "rows": rows, "tokens_per_row": tokens}
    if rows is not None and rows < found.sequences and found.prompts is None:
        return Verdict(
            "batch", "batch", "warn", f"there are {rows} rows, and one step takes {found.sequences}", evidence,
            f"set train.per_device_batch_size to at most {max(rows // t.gradient_accumulation_steps, 1)}", data,
        )  # fmt: skip
    if rows is not None and found.prompts is not None and rows < found.prompts:
        return Verdict(
            "batch", "batch", "fail", f"there are {rows} prompts, and one generation takes {found.prompts:g}", evidence,
            "lower train.per_device_batch_size or train.gradient_accumulation_steps, or add prompts", data,
        )  # fmt: skip
    said = f"{found.sequences} {'completions' if found.prompts else 'rows'} per optimizer step"
    if found.prompts:
        said += f", {found.prompts:g} prompts per generation"
    if found.total_steps is not None:
        said += f", {found.total_steps} steps"
    return Verdict("batch", "batch", "pass", said, evidence, data=data)


def _lines(config: RunConfig, found: Counts, rows: int | None, tokens: float | None) -> list[str]:
    t = config.train
    lines = [
        f"step: {t.per_device_batch_size} per device x {t.gradient_accumulation_steps} accumulated x "
        f"{found.processes} process{'es' if found.processes > 1 else ''} = {found.sequences} sequences"
    ]
    if tokens is not None:
        what = "prompt tokens" if found.prompts else "tokens"
        lines.append(f"tokens: about {tokens * found.sequences:,.0f} {what} per step ({tokens:,.0f} per row)")
    if rows is not None:
        left = f", the last step of an epoch with {found.left_over} rows" if found.left_over else ""
        if found.prompts and found.left_over:
            left = f", {found.left_over} prompts of each epoch left out (they fill no generation)"
        lines.append(f"epoch: {rows} rows in {found.steps_per_epoch} steps{left}")
    arguments = _sent(config)
    for key, name in NAMES.items():
        if name in arguments and (key.partition(".")[0] != "algo" or hasattr(config.algorithm, key.partition(".")[2])):
            lines.append(f"{key} is {name}={arguments[name]} on {config.backend}")
    return lines


def _sent(config: RunConfig) -> dict[str, Any]:
    from aligntune.core.arguments import trainer_arguments

    return trainer_arguments(config, device="cpu", precision="fp32", output_dir=config.output_dir)
