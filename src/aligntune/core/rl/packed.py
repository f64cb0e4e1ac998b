"""Values per token, between the place of the completions and that of Unsloth's rewritten GRPO trainer.

TRL pads prompts on the left, so that all completions begin in one column. Unsloth's trainer moves the padding of each
row to its end first, and keeps the last T + m columns, with m the most padding of a prompt in the batch:

    padded to the left    . . p p | c c c .        T = 4, the row's padding 2 of m = 3
    repacked              p p c c c . . .
    kept (T + m = 7)        p c c c . . .          the completion begins in column m - 2 = 1

Its `old_per_token_logps` and `ref_per_token_logps` have T + m columns in that order, and its loss wants them, and
advantages of tokens, so. Everything of AlignTune's has the T columns of `completion_ids`: `aligned` gives them after
sampling, `packed` undoes it before the loss. The columns outside of the completions are 0 there, as the loss itself
sets them; what it counts is told by `tool_mask`, because it draws its own mask from the token ids.

Source: `grpo_accumulated_loss` of unsloth_zoo 2026.10.9. It moves nothing where the trainer does not repack.
"""

from __future__ import annotations

import sys
from typing import Any

LOGPS = ("old_per_token_logps", "ref_per_token_logps")
"""What the trainer gives and takes in its own columns."""


def repacks(trainer_class: type) -> bool:
    """Whether a trainer class is one that moves the padding: Unsloth writes the function into the class's module."""
    return any(hasattr(sys.modules.get(c.__module__), "left_pack_padding") for c in trainer_class.__mro__)


def aligned(out: dict[str, Any], pad: int) -> dict[str, Any]:
    """The output of sampling, with (B, T) log-probabilities of the completions' tokens.

    Args:
        out: prompt_ids (B, P), completion_ids (B, T), and log-probabilities (B, T + m), which are replaced.
        pad: id of the padding token.
    """
    made = {name: out[name].gather(1, _columns(out, pad, out[name].shape[1])) for name in LOGPS if name in out}
    return {**out, **made}


def packed(inputs: dict[str, Any], pad: int) -> dict[str, Any]:
    """The inputs of a loss as the trainer wants them; the reverse of `aligned`.

    Args:
        inputs: prompt_ids (B, P), completion_ids and completion_mask (B, T); of each token, where they are there:
            log-probabilities, `tool_mask` and advantages.
        pad: id of the padding token.
    """
    kept = inputs["completion_ids"].shape[1]
    width = kept + int(_padding(inputs, pad).max())
    columns = _columns(inputs, pad, width)
    names = [name for name in (*LOGPS, "advantages") if name in inputs and inputs[name].shape[1:] == (kept,)]
    made = {name: inputs[name].new_zeros(len(columns), width).scatter(1, columns, inputs[name]) for name in names}
    mask = inputs["completion_mask"]
    return {**inputs, **made, "tool_mask": mask * inputs["tool_mask"] if "tool_mask" in inputs else mask}


def _padding(values: dict[str, Any], pad: int) -> Any:
    """(B,) padding tokens before each prompt, counted as the trainer counts them."""
    return (values["prompt_ids"] == pad).sum(1)


def _columns(values: dict[str, Any], pad: int, width: int) -> Any:
    """(B, T) columns of the completions' tokens among the last `width` of a repacked row.

    Padding inside a completion (a model may sample it) stands behind its other tokens there.
    """
    ids = values["completion_ids"]
    first = width - ids.shape[1] - _padding(values, pad)
    order = (ids != pad).int().argsort(dim=1, descending=True, stable=True)
    return first.unsqueeze(1) + order.argsort(dim=1)
