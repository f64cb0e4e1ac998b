"""Memory that training takes, measured, beside what `aligntune.utils.memory` says.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/memory.py [--only NAME] [--out benchmarks/results/memory.json]

Each case trains a model of at least 50M parameters, built from a configuration with random weights, for three steps of
SFT in a fresh process. Measured is the growth of the process: its highest resident memory (VmHWM) less its resident
memory after all libraries are loaded and before the model is. Linux only.
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
    rows = [{"text": f"{i:04d} " + "abcdefgh " * case["length"]} for i in range(16 * case["batch"])]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "task": {"name": "text_generation"},
        "model": {
            "name_or_path": str(folder / "model"),
            "max_seq_length": case["length"],
            "device": "cpu",
            "precision": "fp32",
            **({"peft": case["peft"]} if "peft" in case else {}),
        },
        "dataset": {"name": str(folder / "rows.jsonl")},
        "train": {
            "max_steps": 3,
            "per_device_batch_size": case["batch"],
            "gradient_checkpointing": case.get("checkpointing", False),
        },
        "output_dir": str(folder / "run"),
    }


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"this system does not tell {field}")


def train(values: dict) -> None:
    """In the fresh process: train, and print the growth."""
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
    from aligntune.utils.memory import estimate, read_shape

    config = load_config(values)
    shape = read_shape(config.model.name_or_path)
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
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "memory.json")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.write:
        print(json.dumps(write_case(args.write, CASES[args.only])))
        return
    if args.train:
        train(json.loads(args.train))
        return
    results = {}
    for name in [args.only] if args.only else CASES:
        results[name] = measure(name)
        print(
            f"{name:<40} measured {results[name]['measured']['peak'] / 1e6:6.0f} MB, "
            f"estimated {results[name]['estimated']['peak'] / 1e6:6.0f} MB, ratio {results[name]['ratio']}",
            flush=True,
        )
    if not args.only:
        args.out.write_text(json.dumps({"cases": results, "machine": machine.describe()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
