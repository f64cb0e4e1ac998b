"""Values per token between TRL's columns and those of a trainer that moves the padding of each row to its end."""

from __future__ import annotations

import sys
import types
from typing import Any

import torch

from aligntune.core.rl.packed import aligned, packed, repacks

PAD = 0


def batch(seed: int, rows: int = 6, prompt: int = 5, length: int = 4) -> dict[str, Any]:
    """Left-padded prompts, right-padded completions; every token id is unique, so that places can be told."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.arange(1, rows * (prompt + length) + 1).reshape(rows, prompt + length)
    before = torch.randint(0, prompt, (rows,), generator=draw)
    kept = torch.randint(1, length + 1, (rows,), generator=draw)
    prompt_mask = (torch.arange(prompt) >= before.unsqueeze(1)).int()
    mask = (torch.arange(length) < kept.unsqueeze(1)).int()
    return {
        "prompt_ids": ids[:, :prompt] * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": ids[:, prompt:] * mask,
        "completion_mask": mask,
    }


def repacked(rows: dict[str, Any]) -> torch.Tensor:
    """(B, T + m) ids as the trainer keeps them, row by row in plain Python."""
    most = max(int((row == PAD).sum()) for row in rows["prompt_ids"])
    whole = torch.cat([rows["prompt_ids"], rows["completion_ids"]], dim=1).tolist()
    moved = [[i for i in row if i != PAD] + [i for i in row if i == PAD] for row in whole]
    return torch.tensor(moved)[:, -(rows["completion_ids"].shape[1] + most) :]


def test_log_probabilities_are_those_of_the_completions_tokens() -> None:
    for seed in range(20):
        rows = batch(seed)
        wide = repacked(rows).float()  # the log-probability of a token is its id
        out = aligned({**rows, "ref_per_token_logps": wide, "other": wide}, PAD)
        counted = rows["completion_mask"].bool()
        assert out["ref_per_token_logps"].shape == counted.shape
        assert torch.equal(out["ref_per_token_logps"][counted], rows["completion_ids"][counted].float())
        assert out["other"] is wide
        assert "old_per_token_logps" not in out


def test_packing_undoes_aligning() -> None:
    for seed in range(20):
        rows = batch(seed)
        where = repacked(rows)
        values = rows["completion_ids"].float() * rows["completion_mask"]
        given = {**rows, "old_per_token_logps": values, "ref_per_token_logps": 2 * values, "advantages": 3 * values}
        made = packed(given, PAD)
        inside = torch.isin(where, rows["completion_ids"][rows["completion_mask"].bool()])
        for factor, name in enumerate(("old_per_token_logps", "ref_per_token_logps", "advantages"), 1):
            assert torch.equal(made[name], factor * where.float() * inside)
        assert torch.equal(made["tool_mask"], rows["completion_mask"])
        assert torch.equal(aligned(made, PAD)["old_per_token_logps"], values)


def test_advantages_of_completions_and_masks_keep_their_columns() -> None:
    rows = batch(3)
    tools = rows["completion_mask"].clone()
    tools[:, 0] = 0
    made = packed({**rows, "advantages": torch.ones(6), "tool_mask": tools}, PAD)
    assert made["advantages"].shape == (6,)
    assert torch.equal(made["tool_mask"], tools)
    dropped = rows["completion_mask"].clone()
    dropped[1] = 0  # a completion that an algorithm takes out of the loss
    assert torch.equal(packed({**rows, "completion_mask": dropped}, PAD)["tool_mask"], dropped)


def test_padding_sampled_inside_a_completion_stands_behind_its_tokens() -> None:
    rows = {
        "prompt_ids": torch.tensor([[PAD, 1], [2, 3]]),
        "completion_ids": torch.tensor([[4, PAD, 5], [6, 7, PAD]]),
        "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    wide = repacked(rows).float()
    assert wide.tolist() == [[4, 5, 0, 0], [3, 6, 7, 0]]
    assert aligned({**rows, "ref_per_token_logps": wide}, PAD)["ref_per_token_logps"].tolist() == [[4, 0, 5], [6, 7, 0]]


def test_a_class_that_moves_padding_is_told_by_its_module() -> None:
    module = types.ModuleType("rewritten_for_test")
    module.left_pack_padding = lambda tensor, pad: tensor  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        base = type("Rewritten", (), {"__module__": module.__name__})
        assert repacks(type("Ours", (base,), {}))
    finally:
        del sys.modules[module.__name__]
    assert not repacks(torch.nn.Linear)
