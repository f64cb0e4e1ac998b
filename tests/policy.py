"""Fixed batches for the losses of policy optimisation: the library's trainer of a run, and rollouts that it did not sample.

`import policy` works in every test, because pytest puts this folder on the path with `conftest.py`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import runs

LENGTHS = (7, 3, 12, 1, 9, 5, 12, 4)
"""Tokens of the eight completions of `rollout`."""
PAD = 99
"""The pad token of `World`."""


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


def exact() -> bool:
    """Whether the library's log-probabilities keep float64; those of its fused head (TRL 1.15 and later) are fp32."""
    import trl.trainer.utils

    return not hasattr(trl.trainer.utils, "add_fused_lm_head")


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


def precision() -> float:
    """Relative error of the library's log-probabilities of a float64 model: newer versions have a fused head in fp32."""
    from trl.trainer import utils

    return 1e-5 if hasattr(utils, "add_fused_lm_head") else 1e-9


def close(left: list[Any], right: list[Any], tolerance: float = 1e-9) -> bool:
    """Whether two lists of gradients are equal, relative to the largest entry of all."""
    scale = max(float(g.abs().max()) for g in right) or 1.0
    return all(float((a - b).abs().max()) <= tolerance * scale for a, b in zip(left, right, strict=True))


class World:
    """Stands for the library's trainer around DAPO's sampling: a prompt's number decides what its completions score.

    Args:
        rewards: for each prompt, the scores of its completions, as many as a group has.
        rounds: most rounds of new prompts.
        accelerator: of several processes; None is one process.

    Attributes:
        asked: the prompts of each generation, in groups, of this process.
    """

    def __init__(self, rewards: list[list[float]], rounds: int, accelerator: Any = None) -> None:
        import torch

        from aligntune.algorithms.dapo import DynamicSampling

        self.rewards, self.group = rewards, len(rewards[0])
        self.asked: list[list[int]] = []
        self.plugin = DynamicSampling(rounds, 0)
        one = SimpleNamespace(num_processes=1, process_index=0, gather=lambda x: x, sync_gradients=True)
        self.plugin.trainer = self.trainer = SimpleNamespace(
            num_generations=self.group,
            accelerator=accelerator or one,
            state=SimpleNamespace(global_step=0),
            _step=0,
            args=SimpleNamespace(gradient_accumulation_steps=1, seed=0),
            train_dataset=[{"prompt": i} for i in range(len(rewards))],
            reward_weights=torch.ones(1),
            max_completion_length=10,
            _tokenizer=SimpleNamespace(pad_token_id=PAD),
            model=SimpleNamespace(training=True),
            _metrics={"train": defaultdict(list)},
            last_rewards=None,
        )

    def generate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's dictionary; ids are the prompt's number, and lengths follow from it."""
        import torch

        accelerator = self.trainer.accelerator
        numbers = [r["prompt"] for r in rows]
        self.asked.append(numbers[:: self.group])
        first = accelerator.process_index * len(rows)
        scores = [self.rewards[n][(first + i) % self.group] for i, n in enumerate(numbers)]
        self.trainer.last_rewards = accelerator.gather(torch.tensor(scores).unsqueeze(1))
        lengths = [1 + n % 3 for n in numbers]
        most = max(lengths)
        mask = torch.tensor([[int(t < n) for t in range(most)] for n in lengths])
        ids = torch.tensor(numbers).unsqueeze(1) * mask + PAD * (1 - mask)
        return {
            "prompt_ids": ids.flip(1), "prompt_mask": mask.flip(1), "completion_ids": ids, "completion_mask": mask,
            "old_per_token_logps": ids.float(), "advantages": torch.zeros(len(rows)), "num_items_in_batch": mask.sum(),
        }  # fmt: skip

    def run(self, prompts: list[int]) -> dict[str, Any]:
        """One batch of these prompts: what the trainer gets on this process."""
        rows = [{"prompt": p} for p in prompts for _ in range(self.group)]
        accelerator = self.trainer.accelerator
        size = len(rows) // accelerator.num_processes
        first = accelerator.process_index * size
        out = self.plugin.rollout(self.generate, rows[first : first + size])
        return {**out, "advantages": self.plugin.advantages(self.trainer.last_rewards, out)}
