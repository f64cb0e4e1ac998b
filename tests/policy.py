"""Fixed batches for the losses of policy optimisation: the library's trainer of a run, and rollouts that it did not sample.

`import policy` works in every test, because pytest puts this folder on the path with `conftest.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import runs

LENGTHS = (7, 3, 12, 1, 9, 5, 12, 4)
"""Tokens of the eight completions of `rollout`."""


def library_trainer(name: str, model: Path, folder: Path, *, double: bool = True, **changes: Any) -> Any:
    """The library's trainer of a small run with the layer around it, ready for `compute_loss`.

    Args:
        name: the algorithm.
        model: the model folder.
        folder: where the data go.
        double: compute in float64.
        changes: as for `runs.plain`.
    """
    from aligntune.core.callbacks import Progress, StopRequest

    algo = {"name": name, "num_generations": 4}
    made = runs.trainer("grpo", model, folder, algo=algo, model__precision="fp32", **changes)
    made._ready()
    hf = made._build(StopRequest(), Progress("x"))
    hf.current_gradient_accumulation_steps = hf.args.gradient_accumulation_steps
    if double:
        hf.model.double()
    hf.model.train()
    return hf


def rollout(hf: Any, seed: int = 0, *, drift: float = 0.3, advantages: Any = None) -> dict[str, Any]:
    """Eight completions with log-probabilities of a policy and a reference that are near the model's own."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    width = max(LENGTHS)
    ids = torch.randint(3, hf.model.config.vocab_size, (8, 5 + width), generator=draw)
    mask = torch.tensor([[int(t < n) for t in range(width)] for n in LENGTHS])
    prompt_mask = torch.tensor([[int(t >= i % 3) for t in range(5)] for i in range(8)])
    inputs = {
        "prompt_ids": ids[:, :5], "prompt_mask": prompt_mask, "completion_ids": ids[:, 5:], "completion_mask": mask,
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    with torch.no_grad():
        logps = logps_of(hf, inputs)
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        inputs[name] = logps + drift * torch.randn(logps.shape, generator=draw, dtype=logps.dtype)
    given = torch.randn(8, generator=draw, dtype=logps.dtype) if advantages is None else advantages
    return {**inputs, "advantages": given}


def logps_of(hf: Any, inputs: dict[str, Any]) -> Any:
    """(B, T) log-probabilities of the completions' tokens, from a plain forward pass."""
    import torch

    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    logits = hf.model(input_ids=ids, attention_mask=mask).logits[:, 4:-1]
    return logits.log_softmax(-1).gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)


def part(inputs: dict[str, Any], rows: slice) -> dict[str, Any]:
    """Some rows of a batch, as one micro-batch of it."""
    return {k: v[rows] if v.dim() else v for k, v in inputs.items()}


def gradients(hf: Any, loss: Any) -> list[Any]:
    """Gradients of the model's parameters."""
    import torch

    parameters = list(hf.model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def close(left: list[Any], right: list[Any], tolerance: float = 1e-9) -> bool:
    """Whether two lists of gradients are equal, relative to the largest entry of all."""
    scale = max(float(g.abs().max()) for g in right) or 1.0
    return all(float((a - b).abs().max()) <= tolerance * scale for a, b in zip(left, right, strict=True))
