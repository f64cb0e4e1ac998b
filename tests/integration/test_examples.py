"""The scripts in examples/ run: on a tiny model and a few rows of their own."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def example(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call `main` of an example, as `example("sft", "--model", ...)`, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> Any:
        main = runpy.run_path(str(repo / "examples" / f"{name}.py"))["main"]
        return main(list(arguments)) if arguments else main()

    return run


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def finished(folder: Path) -> bool:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["status"] == "finished"


def test_sft(example: Any, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {i}.", "input": "", "output": f"It is {i}."} for i in range(40)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    metrics = example("sft", "--model", str(tiny_model), "--data", data, "--output", "run", "--max-steps", "2")
    assert finished(tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert math.isclose(metrics["eval_perplexity"], math.exp(metrics["eval_nll"]), rel_tol=1e-6)
    assert metrics["eval_tokens"] > 0


def test_dpo(example: Any, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}.", "chosen": f"It is {i}.", "rejected": "No."} for i in range(40)]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    metrics = example(
        "dpo", "--model", str(tiny_model), "--data", data, "--eval-split", "train[90%:]",
        "--output", "run", "--max-steps", "2",
    )  # fmt: skip
    assert finished(tmp_path / "run")
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert metrics["eval_rewards/accuracies"] in {i / 4 for i in range(5)}  # 4 held-out pairs


def test_grpo_with_a_reward_of_the_user(example: Any, tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "questions.jsonl", [{"question": f"What is {i} + 1?"} for i in range(8)])
    metrics = example(
        "grpo_custom_reward", "--model", str(tiny_model), "--data", data, "--output", "run", "--max-steps", "2",
        "--max-completion-length", "16",
    )  # fmt: skip
    assert finished(tmp_path / "run")
    weighted = 0.5 * metrics["rewards/length/mean"] + metrics["rewards/digits/mean"]
    assert metrics["reward"] == pytest.approx(weighted, abs=1e-5)


def test_rewards(example: Any) -> None:
    scores = example("rewards")
    assert scores.components == {
        "length": [1.0, 1.0, 1 / 3],
        "no_apology": [1.0, 0.0, 1.0],
        "mentions": [1.0, 0.0, 1.0],
    }
    assert scores.total == pytest.approx([1.0, 0.3, 0.8])
