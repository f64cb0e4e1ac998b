"""The baseline of `overhead.py`: the same run written by hand on TRL, as its documentation shows.

    python benchmarks/bare_trl.py settings.json

`settings.json` holds algorithm, model, data file, output folder and the values of the TRL configuration class.
"""

from __future__ import annotations

import json
import re
import sys

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer


def accuracy(completions, answer, **columns):
    """1 where the last `#### number` of the answer is the gold number."""
    found = [re.findall(r"####\s*(-?\d+)", c[0]["content"]) for c in completions]
    return [float(bool(f) and f[-1] == a) for f, a in zip(found, answer, strict=True)]


def main() -> None:
    """Train as the settings say, and save the model."""
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    rows = load_dataset("json", data_files=settings["data"], split="train")
    common = {"model": model, "train_dataset": rows, "processing_class": tokenizer}
    if settings["algorithm"] == "grpo":
        from trl import GRPOConfig, GRPOTrainer

        trainer = GRPOTrainer(args=GRPOConfig(**settings["arguments"]), reward_funcs=[accuracy], **common)
    elif settings["algorithm"] == "dpo":
        from trl import DPOConfig, DPOTrainer

        trainer = DPOTrainer(args=DPOConfig(**settings["arguments"]), **common)
    else:
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(args=SFTConfig(**settings["arguments"]), **common)
    output = trainer.train()
    trainer.save_model()
    print(json.dumps({"train_seconds": output.metrics["train_runtime"], "loss": output.training_loss}))


if __name__ == "__main__":
    main()
