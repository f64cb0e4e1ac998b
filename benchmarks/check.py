"""How long `aligntune check` takes on many rows, whole process, cold (an empty data cache) and warm.

    OMP_NUM_THREADS=1 python benchmarks/check.py [--rows 100000] [--out benchmarks/results/check.json]

Supervised rows of some 60 tokens, and preference pairs, in JSON lines, with 1,000 held-out rows; an untrained model of
two layers and a byte-pair tokenizer of 2,000 entries that is trained here. Wall and CPU seconds of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine

HERE = Path(__file__).resolve().parent


def words(count: int, seed: int) -> str:
    """Random words of a vocabulary of 3,000."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=4)) for _ in range(count))


def sentence(draw: random.Random, vocabulary: list[str], count: int) -> str:
    return " ".join(draw.choices(vocabulary, k=count))


def write_model(folder: Path, texts: list[str]) -> None:
    """A tiny Llama with a byte-pair tokenizer and a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    sys.path.insert(0, str(HERE.parent / "tests"))
    from helpers import CHAT_TEMPLATE

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=2000, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_files(folder: Path, count: int) -> dict[str, Path]:
    """Model, rows and configurations; name to configuration file."""
    draw = random.Random(0)
    vocabulary = words(3000, 1).split()
    made = [
        {"prompt": sentence(draw, vocabulary, 15), "completion": sentence(draw, vocabulary, 25)} for _ in range(count)
    ]
    held = [
        {"prompt": sentence(draw, vocabulary, 15), "completion": sentence(draw, vocabulary, 25)} for _ in range(1000)
    ]
    pairs = [
        {"prompt": r["prompt"], "chosen": r["completion"], "rejected": sentence(draw, vocabulary, 25)} for r in made
    ]
    for name, rows in (("train", made), ("test", held), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    write_model(folder / "model", [r["prompt"] for r in made[:2000]])
    model = {"name_or_path": str(folder / "model"), "max_seq_length": 512}
    held_out = {"dataset": str(folder / "test.jsonl")}
    out = {"output_dir": str(folder / "run")}
    runs = {
        "sft": {"task": "instruction_following", "dataset": str(folder / "train.jsonl"), "evaluation": held_out},
        "dpo": {"algo": "dpo", "datasets": [str(folder / "pairs.jsonl")]},
    }
    files = {}
    for name, values in runs.items():
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(json.dumps({**values, "model": model, **out}), encoding="utf-8")
    return files


def measure(file: Path, env: dict[str, str]) -> dict:
    """One run of the command in a fresh process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    line = [sys.executable, "-m", "aligntune", "check", str(file), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = json.loads(done.stdout)
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, 2),
        "exit_code": done.returncode,
        "counts": told["counts"],
        "not_passed": [v["name"] for v in told["verdicts"] if v["status"] != "pass"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "check.json")
    args = parser.parse_args()
    results: dict = {"rows": args.rows, "load_before": os.getloadavg(), "machine": machine.describe()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "XDG_CACHE_HOME": name}
        env |= {"ALIGNTUNE_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hf")}
        for kind, file in write_files(folder, args.rows).items():
            for state in ("cold", "warm"):
                results[f"{kind}, {state}"] = measure(file, env)
                print(f"{kind}, {state}: {results[f'{kind}, {state}']}", flush=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
