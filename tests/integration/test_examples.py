"""The scripts in examples/ run: on a tiny model and a few rows of their own."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_unsloth import needs_unsloth

import runs
from aligntune.algorithms.base import ALGORITHMS


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


TINY = ["--output", "run", "--max-steps", "2"]
INSTRUCTIONS = [{"instruction": f"Say {i}.", "input": "", "output": f"It is {i}."} for i in range(40)]
QUESTIONS = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(8)]


def test_reward_model(example: Any, tiny_model: Path, tmp_path: Path) -> None:
    pairs = [{"prompt": f"Say {i}.", "chosen": f"It is {i}.", "rejected": "No!"} for i in range(40)]
    found = example(
        "reward_model", "--model", str(tiny_model), "--pairs", write_rows(tmp_path / "pairs.jsonl", pairs),
        "--held-out", "train[80%:]", "--prompts", write_rows(tmp_path / "rows.jsonl", INSTRUCTIONS), *TINY,
        "--max-completion-length", "8",
    )  # fmt: skip
    assert finished(tmp_path / "run" / "model")
    assert finished(tmp_path / "run" / "policy")
    assert found["pair_accuracy"] in {i / 16 for i in range(17)}  # 8 held-out pairs; a tie counts one half
    assert found["status"] in ("pass", "fail", "undecided")
    manifest = json.loads((tmp_path / "run" / "policy" / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["rewards"]) == {"reward_model", "repetition"}
    assert math.isclose(found["reward"], runs.logged(tmp_path / "run" / "policy", "rewards/reward_model/mean")[-1])


def test_evaluation(example: Any, tiny_model: Path, tmp_path: Path) -> None:
    maths = write_rows(tmp_path / "maths.jsonl", QUESTIONS)
    texts = write_rows(tmp_path / "texts.jsonl", INSTRUCTIONS)
    found = example(
        "evaluation", "--models", str(tiny_model), str(tiny_model), "--maths", maths, "--texts", texts,
        "--max-samples", "6", "--max-new-tokens", "6",
    )  # fmt: skip
    assert {("maths", "accuracy"), ("texts", "rougeL"), ("texts", "bleu")} <= {(c.task, c.metric) for c in found}
    assert {c.difference.difference for c in found} == {0.0}  # a model against itself
    assert {c.difference.n for c in found} == {6}


def test_train_and_evaluate(example: Any, tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", INSTRUCTIONS)
    found = example(
        "train_and_evaluate", "--model", str(tiny_model), "--data", data, *TINY, "--every", "1",
        "--max-samples", "3", "--max-new-tokens", "4",
    )  # fmt: skip
    assert finished(tmp_path / "run")
    assert len(runs.logged(tmp_path / "run", "eval/answers/rougeL")) == 3  # at the start, after each step
    assert [c.metric for c in found][:2] == ["rougeL", "chrf"]
    assert all(c.difference.n == 3 for c in found)


def test_a_task_of_the_user(example: Any, tiny_model: Path, tmp_path: Path) -> None:
    result = example("custom_task", "--model", str(tiny_model), "--max-new-tokens", "8")
    items = result.tasks["brief"].items
    assert [item["sentences"] for item in items] == [1, 2] * 4
    kept = [item["scores"]["keeps_count"] for item in items]
    assert result.tasks["brief"].headline.value == sum(kept) / 8


@pytest.mark.parametrize(("text", "count"), [("", 0), ("One", 1), ("One. Two", 2), ("1.5 is it. Is it?! Yes.", 3)])
def test_the_task_counts_sentences(repo: Path, text: str, count: int) -> None:
    assert runpy.run_path(str(repo / "examples" / "custom_task.py"))["count_sentences"](text) == count


@pytest.fixture
def ranked() -> Iterator[None]:
    """Forget the example's algorithm afterwards."""
    yield
    ALGORITHMS.remove("ranked")


@pytest.mark.usefixtures("ranked")
def test_an_algorithm_of_the_user(example: Any, tiny_model: Path, tmp_path: Path, repo: Path) -> None:
    """The script trains with it, and the file that it writes down finds it again by its place."""
    from aligntune.core.config import load_config

    data = write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    example(
        "custom_algorithm", "--model", str(tiny_model), "--data", data, *TINY, "--max-completion-length", "8"
    )  # fmt: skip
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["status"], manifest["algorithm"]) == ("finished", "ranked")
    ALGORITHMS.remove("ranked")
    again = load_config(tmp_path / "run" / "config.resolved.yaml")
    assert again.algorithm.place == f"{repo / 'examples' / 'custom_algorithm.py'}:Ranked"
    assert again.algorithm.spread == 1.5


@pytest.mark.usefixtures("ranked")
def test_ranks_are_advantages(repo: Path) -> None:
    import torch

    from aligntune.utils.user_code import load_function

    plugin = load_function(f"{repo / 'examples' / 'custom_algorithm.py'}:Ranks", "algorithm")(2.0)
    plugin.total, plugin.local = (lambda rewards: rewards[:, 0]), (lambda values: values)
    plugin.trainer = type("Trainer", (), {"num_generations": 3, "model": torch.nn.Linear(1, 1).train()})
    rewards = torch.tensor([[1.0], [1e6], [2.0], [5.0], [5.0], [4.0]])  # an outlier; a tie
    assert plugin.advantages(rewards, {}).tolist() == [-2.0, 2.0, 0.0, 1.0, 1.0, -2.0]
    assert plugin.advantages(rewards, {}).view(2, 3).sum(1).tolist() == [0.0, 0.0]


@needs_unsloth
@pytest.mark.slow
def test_an_algorithm_of_the_user_on_unsloth(repo: Path, tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    line = [sys.executable, str(repo / "examples" / "custom_algorithm.py"), "--model", str(tiny_model), "--data", data]
    done = subprocess.run(
        [*line, *TINY, "--max-completion-length", "8", "--backend", "unsloth"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["status"], manifest["backend"], manifest["algorithm"]) == ("finished", "unsloth", "ranked")
    assert manifest["patch_fingerprint"]["foreign"]
