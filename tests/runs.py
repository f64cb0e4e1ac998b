"""Small runs for tests: data files, configurations on the tiny model, and the logged values of a finished run.

`import runs` works in every test, because pytest puts this folder on the path with `conftest.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SFT_ROWS = [{"prompt": f"Say {i}", "completion": f"It is {i % 7} and {i % 5}."} for i in range(24)]
PAIRS = [{"prompt": f"Say {i}", "chosen": f"Yes {i % 7}, sir.", "rejected": f"no {i % 5}"} for i in range(24)]
LABELLED = [
    {"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"}
    for r in PAIRS
    for side in ("chosen", "rejected")
]
PAIRED = ("dpo", "orpo", "cpo", "simpo")
"""Algorithms that learn from pairs."""
SHARE = '''
def share_of_a(text: str) -> float:
    """Share of the letter a among the characters, counting an empty text as none."""
    return text.count("a") / len(text) if text else 0.0
'''


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plain(kind: str, model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Plain values of a small run that trains in about a second.

    Args:
        kind: "sft", or an algorithm's name.
        model: the model folder.
        folder: where data and the run's folder (`out`) go; the data are written once.
        changes: dotted keys with `__` for the dot, such as `train__max_steps=3`.
    """
    from aligntune.core.config.reading import set_key

    rows = write_rows(folder / f"{kind}.jsonl", {"kto": LABELLED, **dict.fromkeys(PAIRED, PAIRS)}.get(kind, SFT_ROWS))
    raw: dict[str, Any] = {
        "model": {"name_or_path": str(model), "max_seq_length": 64},
        "train": {"max_steps": 4, "per_device_batch_size": 4, "learning_rate": 1e-3, "seed": 3},
        "logging": {"steps": 1},
        "output_dir": str(folder / "out"),
    }
    if kind == "sft":
        raw |= {"task": {"name": "instruction_following"}, "dataset": {"name": str(rows)}}
    else:
        raw |= {"algo": {"name": kind}, "datasets": [{"name": str(rows)}]}
    if kind == "grpo":
        reward = folder / "share.py"
        reward.write_text(SHARE, encoding="utf-8")
        raw["algo"]["num_generations"] = 4
        raw["rewards"] = [{"type": f"{reward}:share_of_a"}]
        raw["generation"] = {"max_prompt_length": 32, "max_completion_length": 12}
    for key, value in changes.items():
        set_key(raw, key.replace("__", "."), value)
    return raw


def trainer(kind: str, model: Path, folder: Path, **changes: Any) -> Any:
    """The trainer of `plain`."""
    from aligntune.core.backend_factory import create_trainer

    folder.mkdir(parents=True, exist_ok=True)
    return create_trainer(plain(kind, model, folder, **changes))


def logged(run: Path | str, key: str = "loss") -> list[float]:
    """The values of one metric in the order of `metrics.jsonl`."""
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def weights(folder: Path | str) -> dict[str, Any]:
    """The tensors of a saved model or adapter."""
    from safetensors.torch import load_file

    return {k: v for f in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(f).items()}


def same_weights(a: Path | str, b: Path | str) -> bool:
    """Whether two saved models are equal bit for bit."""
    import torch

    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
