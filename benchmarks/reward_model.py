"""Reward models end to end, and honest numbers on people's preferences; writes `results/reward_model.json`.

    python benchmarks/reward_model.py                 # everything, some minutes on one core
    python benchmarks/reward_model.py rules hh panda  # single parts

rules: two rules label real stories (TinyStories), a reward model is trained on their pairs, validated on openings that
    it has not seen, and drives GRPO and PPO on the 260,000-parameter story model. Nothing in the labels or in the
    training reads the independent measure, VADER's sentiment of the samples.
hh, panda: pair accuracy on HH-RLHF harmless (1,052 pairs) and PandaLM (pairs without a tie), beside "the longer answer"
    or "the shorter answer", whichever is better. `transfer`: trained on other pairs alone (dpo_en_demo). `folds`: five
    folds by prompt, so that each pair is scored by a model that has not seen its prompt.

Needs the folder of data and models beside the checkout (`../shared`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
RESULT = HERE / "results" / "reward_model.json"
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

JOY = '''
import re

WORDS = set("happy happily smiled smile love loved loves fun joy laughed laugh play played friend nice kind".split())


def joy(text: str) -> float:
    """Words of joy for each ten words, at most 1."""
    words = re.findall("[a-z]+", text.lower())
    return min(1.0, 10 * sum(word in WORDS for word in words) / max(len(words), 10))
'''
FOLDS = 5


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- rules to policy -----------------------------------------------------------------------------------------------


def stories() -> list[dict[str, Any]]:
    """Real stories by their first seven words: the opening is the prompt, the next forty words are an answer."""
    groups: dict[str, list[str]] = {}
    for line in (SHARED / "data/tinystories/tinystories.jsonl").read_text().splitlines():
        words = json.loads(line)["text"].split()
        if len(words) >= 47:
            groups.setdefault(" ".join(words[:7]) + " ", []).append(" ".join(words[7:47]))
    return [{"prompt": opening, "samples": found} for opening, found in groups.items()]


def rules(folder: Path, *, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Labels by rules, a reward model of them, its validation, and two policies that it drives."""
    from aligntune.core.backend_factory import create_trainer
    from aligntune.rewards.training import RewardModelTrainer, RewardModelValidator
    from aligntune.rewards.training.dataset import RewardModelDataset
    from helpers import convert_stories260k

    base = convert_stories260k(SHARED / "models/stories260K", folder / "base")
    (folder / "rules.py").write_text(JOY)
    rows = stories()
    several = [row for row in rows if len(row["samples"]) > 1]
    single = [{"prompt": row["prompt"]} for row in rows if len(row["samples"]) == 1]
    labels = [{"type": f"{folder / 'rules.py'}:joy"}, {"type": "repetition", "weight": 0.3}]
    started = time.monotonic()
    trainer = RewardModelTrainer(
        {
            "objective": {"name": "bradley_terry", "center_rewards_coefficient": 0.01},
            "model": {"name_or_path": str(base), "max_seq_length": 256},
            "datasets": [str(write(folder / "stories.jsonl", several))],
            "rewards": labels,
            "answers": "samples",
            "pairs": {"threshold": 0.1, "per_prompt": 1500},
            "held_out": 0.25,
            "train": {"max_steps": 250, "per_device_batch_size": 16, "learning_rate": 1e-3, "warmup_steps": 10},
            "output_dir": str(folder / "rm"),
        }
    )
    trainer.train()
    seconds = time.monotonic() - started
    assert trainer.held_out is not None
    held = trainer.held_out
    scored = RewardModelDataset(held.texts, source="openings that were held out").make_pairs(per_prompt=50)
    report = RewardModelValidator(folder / "rm", batch_size=32).validate(scored)
    print(report.text())
    found: dict[str, Any] = {
        "training_seconds": round(seconds, 1),
        "training_pairs": len(trainer.data.pairs),
        "training_prompts": len(trainer.data.keys),
        "validation": compact(report.to_dict()),
    }
    prompts = write(folder / "prompts.jsonl", single)
    grpo = {"name": "grpo", "num_generations": 8, "beta": 0.02}
    ppo = {"name": "ppo", "kl_coef": 0.02, "num_ppo_epochs": 2, "missing_eos_penalty": 0.0}
    for name, algo in (("grpo", grpo), ("ppo", {**ppo, "value_learning_rate": 1e-3})):
        for seed in seeds:
            run = create_trainer(
                {
                    "algo": algo,
                    "model": {"name_or_path": str(base), "max_seq_length": 256},
                    "datasets": [str(prompts)],
                    "rewards": [
                        {"type": "reward_model", "params": {"path": str(folder / "rm"), "batch_size": 64}},
                        {"type": "sentiment", "weight": 0, "params": {"backend": "lexical"}},
                        {"type": f"{folder / 'rules.py'}:joy", "weight": 0},
                        {"type": "repetition", "weight": 0},
                    ],
                    "train": {"max_steps": 40, "seed": seed, "per_device_batch_size": 64, "learning_rate": 5e-4},
                    "generation": {"max_prompt_length": 64, "max_completion_length": 48},
                    "logging": {"steps": 1, "rollouts": False},
                    "output_dir": str(folder / f"{name}-{seed}"),
                }
            )
            run.train()
            logged = [json.loads(x) for x in (folder / f"{name}-{seed}" / "metrics.jsonl").read_text().splitlines()]
            shown = ("reward_model", "sentiment", "joy", "repetition")
            values = {
                key: [row[f"rewards/{key}/mean"] for row in logged if f"rewards/{key}/mean" in row] for key in shown
            }
            found.setdefault(name, {})[str(seed)] = {
                key: {"before": round(sum(v[:5]) / 5, 3), "after": round(sum(v[-5:]) / 5, 3)}
                for key, v in values.items()
            }
            print(name, seed, found[name][str(seed)])
    return found


# ---- people's preferences ------------------------------------------------------------------------------------------


def dialogue(text: str) -> list[dict[str, str]]:
    turns = []
    for part in text.split("\n\nHuman: ")[1:]:
        asked, *answers = part.split("\n\nAssistant:")
        turns.append({"role": "user", "content": asked.strip()})
        turns += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    return turns


def harmless() -> list[dict[str, Any]]:
    rows = []
    for line in (SHARED / "data/hh_rlhf/harmless-base-test.jsonl").read_text().splitlines():
        raw = json.loads(line)
        chosen, rejected = dialogue(raw["chosen"]), dialogue(raw["rejected"])
        if chosen and rejected and chosen[:-1] == rejected[:-1] and chosen[-1] != rejected[-1]:
            rows.append({"prompt": chosen[:-1], "chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"]})
    return rows


def panda() -> list[dict[str, Any]]:
    rows = []
    for raw in json.loads((SHARED / "data/pandalm/testset-v1.json").read_text()):
        votes = Counter(raw[f"annotator{i}"] for i in (1, 2, 3)).most_common(1)[0]
        if votes[0] in (1, 2) and votes[1] >= 2 and raw["response1"] != raw["response2"]:
            prompt = raw["instruction"] + (f"\n{raw['input']}" if raw["input"] else "")
            best, other = (raw["response1"], raw["response2"])[:: 1 if votes[0] == 1 else -1]
            rows.append({"prompt": prompt, "chosen": best, "rejected": other})
    return rows


def from_scratch(folder: Path) -> Path:
    """A small untrained Llama (hidden 64, 2 layers) with GPT-2's tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    source = SHARED / "models/gpt2-tokenizer"
    plain = ByteLevelBPETokenizer.from_file(str(source / "vocab.json"), str(source / "merges.txt"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain._tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, tie_word_embeddings=True, **sizes)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fit(base: Path, rows: list[dict[str, Any]], folder: Path, *, epochs: float, length: int, rate: float) -> Any:
    from aligntune.rewards.training import RewardModelTrainer

    trainer = RewardModelTrainer(
        {
            "objective": {"name": "bradley_terry", "center_rewards_coefficient": 0.01},
            "model": {"name_or_path": str(base), "max_seq_length": length},
            "datasets": [str(write(folder.with_suffix(".jsonl"), rows))],
            "held_out": 0,
            "train": {"num_epochs": epochs, "per_device_batch_size": 8, "learning_rate": rate, "warmup_ratio": 0.05},
            "output_dir": str(folder),
        }
    )
    trainer.train()
    print([n for n in trainer.notes if "cut there" in n])
    return trainer


def judge(trainer: Any, rows: list[dict[str, Any]]) -> tuple[list[Any], list[float]]:
    """Pairs and score differences, in the rows' order."""
    from aligntune.rewards.training import RewardModelDataset

    pairs = RewardModelDataset.from_pairs(rows).pairs
    scores = trainer.score(
        [t for p in pairs for t in (p.chosen, p.rejected)], [p.prompt for p in pairs for _ in range(2)]
    )
    return pairs, [a - b for a, b in zip(scores[::2], scores[1::2], strict=True)]


def summary(pairs: list[Any], gaps: list[float]) -> dict[str, Any]:
    from aligntune.rewards.training.dataset import prompt_key
    from aligntune.rewards.training.validator import _accuracies

    found = _accuracies(pairs, gaps, [prompt_key(p.prompt) for p in pairs])
    keys = ("pair_accuracy", "pair_accuracy_matched", "length_baseline", "length_baseline_rule", "over_length")
    return compact({key: found[key] for key in keys} | {"pairs": len(pairs)})


def people(name: str, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    import hashlib

    from aligntune.rewards.training.dataset import prompt_key
    from helpers import convert_stories260k

    bases = {
        "scratch": (from_scratch(folder / "scratch"), 512, 1e-3),
        "stories260K": (convert_stories260k(SHARED / "models/stories260K", folder / "stories"), 512, 5e-4),
    }
    demo = json.loads((SHARED / "data/dpo_en_demo/dpo_en_demo.json").read_text())
    names = {"human": "user", "gpt": "assistant", "system": "system"}
    other = [
        {
            "prompt": [{"role": names[m["from"]], "content": m["value"]} for m in r["conversations"]],
            "chosen": r["chosen"]["value"],
            "rejected": r["rejected"]["value"],
        }
        for r in demo
    ]
    folds = [int(hashlib.sha256(prompt_key(row["prompt"]).encode()).hexdigest(), 16) % FOLDS for row in rows]
    found: dict[str, Any] = {"rows": len(rows)}
    for base, (path, length, rate) in bases.items():
        options: dict[str, Any] = {"epochs": 2, "length": length, "rate": rate}
        trainer = fit(path, other, folder / f"{base}-transfer", **options)
        found[f"{base}/transfer"] = {**summary(*judge(trainer, rows)), "trained_on": len(trainer.data.pairs)}
        print(name, base, found[f"{base}/transfer"])
        if base != "scratch":
            continue  # five more trainings of the slower one would tell the same
        pairs: list[Any] = []
        gaps: list[float] = []
        for fold in range(FOLDS):
            train = [row for row, f in zip(rows, folds, strict=True) if f != fold]
            trainer = fit(path, train, folder / f"{base}-{fold}", **options)
            some, differences = judge(trainer, [row for row, f in zip(rows, folds, strict=True) if f == fold])
            pairs, gaps = pairs + some, gaps + differences
        found[f"{base}/folds"] = summary(pairs, gaps)
        print(name, base, found[f"{base}/folds"])
    return found


def compact(value: Any) -> Any:
    """Intervals as {estimate, low, high, n}, numbers to four places."""
    if hasattr(value, "estimate"):
        value = value.to_dict()
    if isinstance(value, dict):
        return {
            k: compact(v) for k, v in value.items() if k not in ("method", "confidence", "verdict", "model", "notes")
        }
    if isinstance(value, list):
        return [compact(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


def main(wanted: list[str]) -> None:
    import machine
    import torch

    torch.set_num_threads(1)
    parts = {
        "rules": rules,
        "hh": lambda folder: people("hh", harmless(), folder),
        "panda": lambda folder: people("panda", panda(), folder),
    }
    for name in wanted or list(parts):
        folder = Path(tempfile.mkdtemp(prefix=f"reward-model-{name}-"))
        started = time.monotonic()
        values = {**parts[name](folder), "seconds": round(time.monotonic() - started)}
        before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        RESULT.write_text(json.dumps({**before, "machine": machine.describe(), name: values}, indent=1) + "\n")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
