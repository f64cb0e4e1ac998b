"""Reward models end to end, and honest numbers on people's preferences; writes `results/reward_model.json`.

    python benchmarks/reward_model.py                 # everything, some minutes on one core
    python benchmarks/reward_model.py people          # a single part
    python benchmarks/reward_model.py rules=FOLDER    # keep the folder; validation=FOLDER, policy=FOLDER go on from it

rules: two rules label real stories (TinyStories), a reward model is trained on their pairs, validated on openings that
    it has not seen, and drives GRPO and PPO on the 260,000-parameter story model. Nothing in the labels or in the
    training reads the independent measure, VADER's sentiment of the samples.
people: pair accuracy on HH-RLHF harmless (1,052 pairs) and PandaLM (pairs without a tie), beside "the longer answer"
    or "the shorter answer", whichever is better. `transfer`: trained on other pairs alone (dpo_en_demo). `folds`: three
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
FOLDS = 3


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
    from aligntune.rewards.training import RewardModelTrainer
    from helpers import convert_stories260k

    base = convert_stories260k(SHARED / "models/stories260K", folder / "base")
    (folder / "rules.py").write_text(JOY)
    rows = stories()
    several = [row for row in rows if len(row["samples"]) > 1]
    labels = [{"type": f"{folder / 'rules.py'}:joy"}, {"type": "repetition", "weight": 0.3}]
    RewardModelTrainer(
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
    ).train()
    return {"validation": validation(folder), **policies(folder, seeds=seeds)}


def validation(folder: Path) -> dict[str, Any]:
    """The report of the reward model in `folder`, on the openings that it was not trained on."""
    from aligntune.rewards.training import RewardModelDataset, RewardModelTrainer, RewardModelValidator

    trainer = RewardModelTrainer(folder / "rm/config.resolved.yaml")  # for its data alone
    assert trainer.held_out is not None
    data = RewardModelDataset(trainer.held_out.texts, source="openings that were held out").make_pairs(per_prompt=50)
    report = RewardModelValidator(folder / "rm", batch_size=32).validate(data)
    print(report.text(), flush=True)
    found = {
        "training_seconds": json.loads((folder / "rm/manifest.json").read_text())["summary"]["training_time"],
        "training_pairs": len(trainer.data.pairs),
        "training_prompts": len(trainer.data.keys),
        **compact(report.to_dict()),
    }
    store("validation", found)
    return found


def policies(folder: Path, *, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """GRPO and PPO on the reward model of `folder`, as `rules` leaves it; stored after each run."""
    from aligntune.core.backend_factory import create_trainer

    single = [{"prompt": row["prompt"]} for row in stories() if len(row["samples"]) == 1]
    prompts = write(folder / "prompts.jsonl", single)
    found: dict[str, Any] = {}
    grpo = {"name": "grpo", "num_generations": 8, "beta": 0.02}
    ppo = {"name": "ppo", "kl_coef": 0.02, "num_ppo_epochs": 2, "missing_eos_penalty": 0.0}
    for seed in seeds:
        for name, algo in (("grpo", grpo), ("ppo", {**ppo, "value_learning_rate": 1e-3})):
            out = folder / f"{name}-{seed}"
            run = create_trainer(
                {
                    "algo": algo,
                    "model": {"name_or_path": str(folder / "base"), "max_seq_length": 256},
                    "datasets": [str(prompts)],
                    "rewards": [
                        {"type": "reward_model", "params": {"path": str(folder / "rm"), "batch_size": 64}},
                        {"type": "sentiment", "name": "sentiment", "weight": 0, "params": {"backend": "lexical"}},
                        {"type": f"{folder / 'rules.py'}:joy", "weight": 0},
                        {"type": "repetition", "weight": 0},
                    ],
                    "train": {"max_steps": 30, "seed": seed, "per_device_batch_size": 64, "learning_rate": 5e-4},
                    "generation": {"max_prompt_length": 64, "max_completion_length": 40},
                    "logging": {"steps": 1, "rollouts": False},
                    "output_dir": str(out),
                }
            )
            run.train()
            found.setdefault(name, {})[str(seed)] = values = means(out)
            print(name, seed, values, flush=True)
            store("policy", found)
    return found


def means(out: Path) -> dict[str, Any]:
    """Mean score of the first and of the last five steps, by reward."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "rewards/reward_model/mean" in row]
    values = {}
    for key in ("reward_model", "sentiment", "joy", "repetition"):
        steps = [row[f"rewards/{key}/mean"] for row in rows]
        values[key] = {"before": round(sum(steps[:5]) / 5, 3), "after": round(sum(steps[-5:]) / 5, 3)}
    return {**values, "steps": len(rows)}


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
    """A small untrained Llama (hidden 32, 1 layer) with GPT-2's tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    source = SHARED / "models/gpt2-tokenizer"
    plain = ByteLevelBPETokenizer.from_file(str(source / "vocab.json"), str(source / "merges.txt"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain._tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
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
            "train": {"num_epochs": epochs, "per_device_batch_size": 16, "learning_rate": rate, "warmup_ratio": 0.05},
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


def people(folder: Path) -> None:
    """Both sets of human pairs, judged by models that have not seen their prompts; stored after each model."""
    import hashlib

    from aligntune.rewards.training.dataset import prompt_key
    from helpers import convert_stories260k

    started, found = time.monotonic(), {}
    sets = {"hh": harmless(), "panda": panda()}
    bases = {
        "scratch": (from_scratch(folder / "scratch"), {"epochs": 2, "length": 512, "rate": 3e-3}),
        "stories260K": (
            convert_stories260k(SHARED / "models/stories260K", folder / "stories"),
            {"epochs": 1, "length": 512, "rate": 5e-4},
        ),
    }

    def keep(name: str, values: dict[str, Any]) -> None:
        found[name] = values
        print(name, values, flush=True)
        store("people", {**found, "seconds": round(time.monotonic() - started)})

    for name, rows in sets.items():
        path, options = bases["scratch"]
        folds = [int(hashlib.sha256(prompt_key(row["prompt"]).encode()).hexdigest(), 16) % FOLDS for row in rows]
        pairs: list[Any] = []
        gaps: list[float] = []
        for fold in range(FOLDS):
            train = [row for row, f in zip(rows, folds, strict=True) if f != fold]
            trainer = fit(path, train, folder / f"{name}-{fold}", **options)
            some, differences = judge(trainer, [row for row, f in zip(rows, folds, strict=True) if f == fold])
            pairs, gaps = pairs + some, gaps + differences
        keep(f"{name}/scratch/folds", summary(pairs, gaps))
    for base, (path, options) in bases.items():
        trainer = fit(path, demonstrations(), folder / f"{base}-transfer", **options)
        for name, rows in sets.items():
            keep(f"{name}/{base}/transfer", {**summary(*judge(trainer, rows)), "trained_on": len(trainer.data.pairs)})


def demonstrations() -> list[dict[str, Any]]:
    """The 205 pairs of dpo_en_demo."""
    names = {"human": "user", "gpt": "assistant", "system": "system"}
    return [
        {
            "prompt": [{"role": names[m["from"]], "content": m["value"]} for m in r["conversations"]],
            "chosen": r["chosen"]["value"],
            "rejected": r["rejected"]["value"],
        }
        for r in json.loads((SHARED / "data/dpo_en_demo/dpo_en_demo.json").read_text())
    ]


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


def store(name: str, values: dict[str, Any]) -> None:
    """Put one part of the results into the file; the other parts stay."""
    import machine

    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**before, "machine": machine.describe(), name: values}, indent=1) + "\n")


def main(wanted: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    parts: dict[str, Any] = {"rules": rules, "validation": validation, "policy": policies, "people": people}
    for name in wanted or ["rules", "people"]:
        name, _, kept = name.partition("=")
        folder = Path(kept or tempfile.mkdtemp(prefix=f"reward-model-{name}-"))
        parts[name](folder)
        if not kept:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
