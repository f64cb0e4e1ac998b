"""The folder in which the commands and scripts of the documentation run: small files under the names of the pages.

`prepare(folder, tiny_model)` writes data, run files, rewards, models and finished runs. Names of the hub stand for small
things here: a folder `Qwen/Qwen3-0.6B` holds a tiny model, and `hub_data` answers in the place of `datasets.load_dataset`.
So a command of the documentation runs as it is written; only the sizes are other ones.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

import helpers
import planted
import runs

MODELS = ("Qwen/Qwen3-0.6B", "big")
TASKS = [{"name": "sums", "kind": "exact_match", "dataset": "test.jsonl", "max_new_tokens": 8, "batch_size": 8}]
SMALL = {"max_steps": 2, "per_device_batch_size": 4, "learning_rate": 1e-3}
QUESTIONS = [{"prompt": f"{i} + 1 =", "answer": str(i + 1), "reference": str(i + 1)} for i in range(12)]
PAIRS = [{"prompt": f"Say {i}", "chosen": f"Yes {i % 7}, sir.", "rejected": f"no {i % 5}"} for i in range(24)]
INTENTS = ("open", "close", "card")
HUB: dict[str, list[dict[str, Any]]] = {
    "openai/gsm8k": [{"question": f"{i} + 1 =", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(12)],
    "openai/gsm8k test": [{"question": f"{i} + 2 =", "answer": f"{i} + 2 = {i + 2}\n#### {i + 2}"} for i in range(6)],
    "allenai/ai2_arc": [
        {"question": f"{i} + 1?", "choices": {"text": [str(i + 1), str(i)], "label": ["A", "B"]}, "answerKey": "A"}
        for i in range(6)
    ],
    "Rowan/hellaswag": [
        {"ctx": f"Row {i}", "endings": ["is one.", "is two.", "is three.", "is four."], "label": "0",
         "activity_label": "Rows", "ctx_a": "A row", "ctx_b": "that"} for i in range(6)
    ],
}  # fmt: skip
REWARDS = """
def no_apology(text, *, word="sorry"):
    return float(word not in text.lower())


def close_enough(text, reference, *, tolerance=0.1):
    import re

    found = re.findall(r"-?\\d+", text)
    return float(len(found) == 1 and text.strip() == found[0] and abs(float(found[0]) - float(reference)) <= tolerance)
"""


def hub_data(name: str, subset: str | None = None, *, split: str = "train", **ignored: Any) -> Any:
    """In the place of `datasets.load_dataset` for a name of the hub."""
    import datasets

    if name == "json":  # a file of the user's, by the library's own loader
        return datasets.Dataset.from_json(ignored["data_files"])
    return datasets.Dataset.from_list(HUB.get(f"{name} {split.partition('[')[0]}", HUB[name]))


def prepare(folder: Path, tiny_model: Path) -> Path:
    """Write everything into `folder`, which is the working folder."""
    _data(folder)
    _files(folder)
    for name in MODELS:
        shutil.copytree(tiny_model, folder / name)
    for name in ("runs/base", "runs/sft", "runs/dpo"):
        _trained(folder, name, tiny_model)
    for seed in (3, 4):
        _trained(folder, f"runs/dpo-s{seed - 2}", tiny_model, kind="dpo", train__seed=seed)
    for name, source in (("runs/a", "runs/dpo-s1"), ("runs/b", "runs/dpo-s2"), ("out/sft", "runs/sft")):
        shutil.copytree(folder / source, folder / name)
    _policy_run(folder / "runs/grpo", tiny_model)
    for name in ("runs/reward-model", "runs/rm", "out/reward-model"):
        model = helpers.save_tiny_reward_model(folder / name)
        (model / "reward_model.json").write_text(json.dumps({"scores": {"mean": 0.5, "std": 2.0}}))
        (model / "training_prompts.txt").write_text("")
    return folder


def evaluations(folder: Path) -> None:
    """Evaluations under the names of the pages; apart, because they take seconds."""
    from aligntune.eval import EvalRunner
    from aligntune.eval.config import build_eval_config

    for name in ("base", "sft"):
        raw = {"model": {"name_or_path": str(folder / "runs" / name)}, "tasks": TASKS}
        EvalRunner(build_eval_config({**raw, "output_dir": str(folder / "evals" / name)})).run()
    for number, name in enumerate(("base", "sft")):
        shutil.copytree(folder / "evals" / name, folder / "runs/compared" / f"{number}-{name}")


def _data(folder: Path) -> None:
    (folder / "data").mkdir()
    for name in ("prompts.jsonl", "test.jsonl", "data/test.jsonl", "data/train.jsonl", "data/prompts.jsonl"):
        runs.write_rows(folder / name, [{**row, "gold": row["reference"]} for row in QUESTIONS])
    for name in ("rows.jsonl", "data/held_out.jsonl"):
        runs.write_rows(folder / name, runs.SFT_ROWS)
    runs.write_rows(folder / "train.jsonl", HUB["openai/gsm8k"])
    chats = [{"prompt": [{"role": "user", "content": row["prompt"]}],
              "completion": [{"role": "assistant", "content": row["completion"]}]} for row in runs.SFT_ROWS]  # fmt: skip
    runs.write_rows(folder / "chats.jsonl", chats)
    for name in ("pairs.jsonl", "data/pairs.jsonl", "held_out.jsonl", "test_pairs.jsonl"):
        runs.write_rows(folder / name, PAIRS)
    answers = [
        {"prompt": f"{i} + 1 =", "samples": [str(i + 1), str(i), "one", f"{i + 1}."], "reference": str(i + 1),
         "completion": str(i + 1), "ratings": [3, 1, 0, 2]} for i in range(12)
    ]  # fmt: skip
    runs.write_rows(folder / "answers.jsonl", answers)
    runs.write_rows(folder / "rated.jsonl", answers)
    runs.write_rows(folder / "data/ARC-Challenge-Dev.jsonl", HUB["allenai/ai2_arc"])
    rows = [
        {"instruction": f"Please {w} {i}", "response": f"I {w} it.", "intent": w} for i in range(12) for w in INTENTS
    ]
    banking = [{"text": f"{w} number {i}", "category": w} for i in range(20) for w in INTENTS]
    said = [{"said": f"It is {i}.", "reference": str(i)} for i in range(4)]
    for name, table in (("support.csv", rows), ("banking.csv", banking), ("outputs.csv", said)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    (folder / "texts.txt").write_text("Short.\nA few words more.\n", encoding="utf-8")


def _files(folder: Path) -> None:
    """Run files, rewards and the rest that pages name without showing it."""
    model = {"name_or_path": "Qwen/Qwen3-0.6B", "max_seq_length": 64}
    policy = {
        "algo": {"name": "grpo", "num_generations": 2},
        "model": model,
        "datasets": [{"name": "prompts.jsonl"}],
        "rewards": [{"type": "math_correctness"}, {"type": "brevity", "weight": 0.1}],
        "generation": {"max_prompt_length": 32, "max_completion_length": 8},
        "train": SMALL,
        "output_dir": "out",
    }
    pairs = {"algo": "dpo", "model": model, "datasets": ["pairs.jsonl"], "train": SMALL, "output_dir": "runs/new-dpo"}
    sampling = {"num_samples": 3, "max_new_tokens": 6, "batch_size": 8, "keep_truncated": True}
    select = {"margin": 0.0}
    stages = [
        {"name": "split", "kind": "split", "config": {"dataset": "${values.data}", "test": 6}},
        {
            "name": "sft",
            "kind": "train",
            "config": {
                "task": "instruction_following",
                "model": {"name_or_path": "${values.model}", "max_seq_length": 64},
                "dataset": {"name": "${stages.split.train}", "preset": "bitext"},
                "train": SMALL,
            },
        },
        {"name": "dpo", "kind": "train", "file": "dpo.yaml", "config": {"model": {"name_or_path": "${stages.sft.model}"}}},
    ]  # fmt: skip
    whole: dict[str, Any] = {"output_dir": "runs/assistant", "stages": stages}
    whole["values"] = {"model": "Qwen/Qwen3-0.6B", "data": "support.csv"}
    written: dict[str, Any] = {
        "run.yaml": policy,
        "grpo.yaml": {**policy, "output_dir": "runs/new-grpo"},
        "dpo.yaml": pairs,
        "prefs.yaml": {**pairs, "output_dir": "runs/new-prefs"},
        "stages.yaml": whole,
        "assistant.yaml": whole,
        "eval.yaml": {"model": {"name_or_path": "runs/sft"}, "tasks": TASKS, "output_dir": "runs/sft-eval"},
        "pairs.yaml": {
            "model": {"name_or_path": "runs/sft"},
            "dataset": {"name": "prompts.jsonl"},
            "sampling": sampling,
            "rewards": ["brevity", {"type": "repetition", "weight": 0.3}, {"type": "fluent.py:letters", "weight": 0.1}],
            "select": select,
            "output": "data/new_pairs.jsonl",
        },
        "rewards.yaml": {
            "rewards": [{"type": "exact_match"}],
            "data": {"name": "test.jsonl"},
        },
        "new.yaml": [{"type": "brevity"}],
        "reward_model.yaml": {
            "objective": "bradley_terry",
            "model": model,
            "datasets": ["pairs.jsonl"],
            "train": SMALL,
            "output_dir": "runs/new-reward-model",
        },
    }
    for name, value in written.items():
        (folder / name).write_text(yaml.safe_dump(value), encoding="utf-8")
    (folder / "my_rewards.py").write_text(REWARDS, encoding="utf-8")
    (folder / "fluent.py").write_text("def letters(text):\n    return len(set(text)) / 300\n", encoding="utf-8")


def _trained(folder: Path, name: str, model: Path, kind: str = "sft", **changes: Any) -> None:
    """A finished run of two steps."""
    from aligntune.core.backend_factory import create_trainer

    create_trainer(
        runs.plain(kind, model, folder / "data", train__max_steps=2, output_dir=str(folder / name), **changes)
    ).train()


def _policy_run(folder: Path, model: Path) -> None:
    """A model and the imaginary rollouts of `planted`."""
    from aligntune.utils.rollouts import RolloutWriter

    shutil.copytree(model, folder)
    columns, config = planted.run(0)
    writer = RolloutWriter(folder / "rollouts")
    writer.append([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    writer.flush()
    (folder / "config.resolved.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
