"""Memory that training takes, measured, beside what `aligntune.utils.memory` says.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/memory.py [--only NAME] [--out benchmarks/results/memory.json]

Each case trains a model of at least 50M parameters, built from a configuration with random weights, in a fresh
process: SFT for three steps; DPO, a reward model and GRPO for two. Measured is the growth of the process: its highest
resident memory (VmHWM) less its resident memory after all libraries are loaded and before the model is. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine

HERE = Path(__file__).resolve().parent
LORA = {"r": 16, "alpha": 32}
CASES = {
    "full, Llama 66M, 4 x 256": {
        "family": "llama", "hidden": 640, "layers": 10, "inner": 1728, "vocabulary": 32000, "batch": 4, "length": 256,
    },
    "LoRA, Llama 66M, 4 x 256": {
        "family": "llama", "hidden": 640, "layers": 10, "inner": 1728, "vocabulary": 32000, "batch": 4, "length": 256,
        "peft": LORA,
    },
    "full, Qwen2 59M, 8 x 128": {
        "family": "qwen2", "hidden": 512, "layers": 6, "inner": 1408, "vocabulary": 80000, "batch": 8, "length": 128,
    },
    "LoRA, Qwen2 59M, 8 x 128, checkpointed": {
        "family": "qwen2", "hidden": 512, "layers": 6, "inner": 1408, "vocabulary": 80000, "batch": 8, "length": 128,
        "peft": LORA, "checkpointing": True,
    },
    "full, Qwen2 112M untied, 2 x 512": {
        "family": "qwen2", "hidden": 768, "layers": 4, "inner": 3072, "vocabulary": 50000, "batch": 2, "length": 512,
        "tied": False,
    },
    "DPO full, Llama 52M, 2 pairs x 160": {
        "family": "llama", "hidden": 512, "layers": 12, "inner": 1408, "vocabulary": 32000, "batch": 2, "length": 160,
        "kind": "dpo",
    },
    "DPO LoRA, Llama 52M, 2 pairs x 160": {
        "family": "llama", "hidden": 512, "layers": 12, "inner": 1408, "vocabulary": 32000, "batch": 2, "length": 160,
        "kind": "dpo", "peft": LORA,
    },
    "reward model full, Llama 52M, 2 pairs x 160": {
        "family": "llama", "hidden": 512, "layers": 12, "inner": 1408, "vocabulary": 32000, "batch": 2, "length": 160,
        "kind": "reward",
    },
    "GRPO full, Llama 52M, 8 x (16 + 48)": {
        "family": "llama", "hidden": 512, "layers": 12, "inner": 1408, "vocabulary": 32000, "batch": 8, "length": 64,
        "kind": "grpo", "prompt": 16, "beta": 0.0,
    },
    "GRPO full with a reference, Llama 52M, 8 x (16 + 48)": {
        "family": "llama", "hidden": 512, "layers": 12, "inner": 1408, "vocabulary": 32000, "batch": 8, "length": 64,
        "kind": "grpo", "prompt": 16, "beta": 0.04,
    },
    "GRPO LoRA, Llama 52M, 8 x (16 + 48)": {
        "family": "llama", "hidden": 512, "layers": 12, "inner": 1408, "vocabulary": 32000, "batch": 8, "length": 64,
        "kind": "grpo", "prompt": 16, "beta": 0.04, "peft": LORA,
    },
}  # fmt: skip
"""Name to the model's shape and the batch; with `peft` adapters are trained."""


def write_case(folder: Path, case: dict) -> dict:
    """Model, rows and configuration of a case in `folder`; returns the configuration's plain values."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    sys.path.insert(0, str(HERE.parent / "tests"))
    from helpers import byte_tokenizer

    tokenizer = byte_tokenizer(chat=False)
    torch.manual_seed(0)
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[case["family"]](
        vocab_size=case["vocabulary"],
        hidden_size=case["hidden"],
        intermediate_size=case["inner"],
        num_hidden_layers=case["layers"],
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=case.get("tied", True),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    kind, many = case.get("kind", "sft"), range(16 * case["batch"])
    values: dict = {
        "model": {
            "name_or_path": str(folder / "model"),
            "max_seq_length": case["length"],
            "device": "cpu",
            "precision": "fp32",
            **({"peft": case["peft"]} if "peft" in case else {}),
        },
        "train": {
            "max_steps": 3 if kind == "sft" else 2,
            "per_device_batch_size": case["batch"],
            "gradient_checkpointing": case.get("checkpointing", False),
        },
        "output_dir": str(folder / "run"),
    }
    source = {"name": str(folder / "rows.jsonl")}
    if kind == "sft":
        rows = [{"text": f"{i:04d} " + "abcdefgh " * case["length"]} for i in many]
        values |= {"task": {"name": "text_generation"}, "dataset": source}
    elif kind == "grpo":
        rows = [{"prompt": f"{i:0{case['prompt'] - 1}d}"} for i in many]
        values |= {
            "algo": {"name": "grpo", "beta": case["beta"], "num_generations": case["batch"]},
            "datasets": [source],
            "rewards": ["length"],
            "generation": {
                "max_prompt_length": case["prompt"],
                "max_completion_length": case["length"] - case["prompt"],
            },
        }
    else:
        answers = {side: f" {side[0]}" + "abcdefgh " * case["length"] for side in ("chosen", "rejected")}
        rows = [{"prompt": f"{i:015d}", **answers} for i in many]
        values |= {"datasets": [source]}
        values |= {"algo": {"name": "dpo"}} if kind == "dpo" else {"objective": "bradley_terry", "held_out": 0}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return values


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"this system does not tell {field}")


def train(values: dict) -> None:
    """In the fresh process: train, and print the growth."""
    if "objective" in values:
        from aligntune.rewards.training import RewardModelTrainer
        from aligntune.rewards.training.config import load_reward_config

        trainer: Any = RewardModelTrainer(load_reward_config(values))
    else:
        from aligntune.core.backend_factory import create_trainer

        trainer = create_trainer(values)
    trainer._ready()
    trainer.backend.trainer_class(trainer.config.algorithm)
    trainer.backend.args_class(trainer.config.algorithm)
    import peft  # noqa: F401 - loaded before the model, so that it is not counted

    before = resident("VmRSS")
    trainer._load()
    loaded = resident("VmHWM")
    trainer.train()
    print(json.dumps({"before": before, "loading": loaded - before, "peak": resident("VmHWM") - before}))


def estimated(values: dict) -> dict:
    """What the model of memory says of the same run."""
    from aligntune.core.config import load_config
    from aligntune.preflight.memory import setting_of
    from aligntune.rewards.training.config import load_reward_config
    from aligntune.utils.memory import estimate, read_shape

    config = load_reward_config(values) if "objective" in values else load_config(values)
    shape = read_shape(config.model.name_or_path, scalar="objective" in values)
    setting = setting_of(config, shape, device="cpu", precision="fp32")
    return {"parameters": shape.parameters, **estimate(shape, setting).to_dict()}


def measure(name: str) -> dict:
    """One case: measured and estimated bytes, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        maker = [sys.executable, __file__, "--write", folder, "--only", name]
        values = json.loads(subprocess.run(maker, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, "--train", json.dumps(values)], check=True, capture_output=True, text=True
        )
        seconds = time.perf_counter() - started
        measured = json.loads(done.stdout.splitlines()[-1])
        said = estimated(values)
    return {
        "measured": measured,
        "estimated": said,
        "ratio": round(said["peak"] / measured["peak"], 3),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES))
    parser.add_argument("--add", action="store_true", help="Keep the other cases that the result file has.")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "memory.json")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.write:
        print(json.dumps(write_case(args.write, CASES[args.only[0]])))
        return
    if args.train:
        train(json.loads(args.train))
        return
    results = json.loads(args.out.read_text())["cases"] if args.add and args.out.exists() else {}
    for name in args.only or CASES:
        results[name] = measure(name)
        print(
            f"{name:<40} measured {results[name]['measured']['peak'] / 1e6:6.0f} MB, "
            f"estimated {results[name]['estimated']['peak'] / 1e6:6.0f} MB, ratio {results[name]['ratio']}",
            flush=True,
        )
    if not args.only or args.add:
        args.out.write_text(json.dumps({"cases": results, "machine": machine.describe()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
