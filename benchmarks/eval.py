"""Items per second of evaluation, beside lm-evaluation-harness, and what evaluation in training costs.

    python benchmarks/eval.py [--repeats 5] [--rows 200] [--batch 32] [--model FOLDER] [--only generation]

Both measure the same rows with the same model in memory, the same batch size and the same prompts, in an order that
alternates after one round that is not timed: multiple choice (HellaSwag) and greedy generation (SVAMP, 32 tokens).
Reading the data, scoring, our intervals (2,000 resamples for the calibration error) and all items are included; loading
the model is not. Reported: the median of the rounds' ratios of wall time (on a busy machine read that of
processor time), and every time. lm-eval is called through its own
`simple_evaluate`. That the scores agree is checked, not only timed.

Without `--model` it is a Llama of 8 layers and width 256 with a context of 2,048 tokens, with random weights and the
quickstart's tokenizer: small, so that what surrounds the forward pass weighs much.

Evaluation in training: the same SFT run of the quickstart's model with and without `evaluation.every`, as seconds for
each evaluation.

It needs a folder with the data sets (`--data`, by default `../shared/data`) and the package lm_eval.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import machine

UTILS = """import re
def plain(text):
    return re.sub(r"\\[.*?\\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
def text(doc):
    return plain(doc["activity_label"] + ": " + doc["ctx_a"] + " " + doc["ctx_b"].capitalize())
def choices(doc):
    return [plain(e) for e in doc["endings"]]
def gold(doc):
    return int(doc["label"])
"""
HELLASWAG = """task: bench_hellaswag
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: !function utils.text
doc_to_choice: !function utils.choices
doc_to_target: !function utils.gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
SVAMP = """task: bench_svamp
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{Body}}}} {{{{Question}}}}\\n"
doc_to_target: "{{{{Answer}}}}"
generation_kwargs: {{until: ["<none>"], do_sample: false, max_gen_toks: {tokens}}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
TOKENS = 32
PARTS = ("multiple_choice", "generation", "in_training")


def load(path: str | None) -> tuple[Any, Any]:
    """A causal model in fp32 and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from aligntune.quickstart import BASE_MODEL

    tokenizer = AutoTokenizer.from_pretrained(path or BASE_MODEL)
    if path is None:
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=256,
                intermediate_size=688,
                num_hidden_layers=8,
                num_attention_heads=4,
                max_position_embeddings=2048,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(path)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def first(source: Path, target: Path, count: int) -> Path:
    """The first rows of a file."""
    target.write_text("".join(line + "\n" for line in source.read_text().splitlines()[:count]))
    return target


class Ours:
    """One task through `EvalRunner`."""

    def __init__(self, model: Any, tokenizer: Any, task: dict[str, Any]) -> None:
        from aligntune.eval.config import build_eval_config

        self.model, self.tokenizer = model, tokenizer
        self.config = build_eval_config({"model": {"name_or_path": "bench"}, "tasks": [task]})

    def __call__(self) -> Any:
        from aligntune.eval import EvalRunner

        return next(iter(EvalRunner(self.config, self.model, self.tokenizer).run().tasks.values()))


class Theirs:
    """One task through `lm_eval.simple_evaluate`, with its items, as `lm_eval --log_samples` runs it."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path, name: str, batch: int) -> None:
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        self.known = TaskManager(include_path=str(folder), include_defaults=False)
        device = str(next(model.parameters()).device)
        self.model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, device=device)
        self.name = name

    def __call__(self) -> Any:
        import lm_eval

        return lm_eval.simple_evaluate(model=self.model, tasks=[self.name], task_manager=self.known, log_samples=True)


def alternate(ours: Ours, theirs: Theirs, rows: int, repeats: int, agree: Any) -> dict[str, Any]:
    """Times of both, in turns."""
    agree(ours(), theirs())
    times: dict[str, list[float]] = {"ours": [], "lm_eval": []}
    processor: dict[str, list[float]] = {"ours": [], "lm_eval": []}
    for k in range(repeats):
        pair = [("ours", ours), ("lm_eval", theirs)]
        for name, call in pair if k % 2 == 0 else pair[::-1]:
            started, busy = time.perf_counter(), time.process_time()
            call()
            times[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - busy)
    ratios = [b / a for a, b in zip(times["ours"], times["lm_eval"], strict=True)]
    return {
        "rows": rows,
        "items_per_second": {name: round(rows / statistics.median(values), 2) for name, values in times.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
        "ratio_of_processor_time": round(
            statistics.median(b / a for a, b in zip(processor["ours"], processor["lm_eval"], strict=True)), 3
        ),
        "seconds": {name: [round(v, 3) for v in values] for name, values in times.items()},
    }


def multiple_choice(model: Any, tokenizer: Any, data: Path, folder: Path, a: Any) -> dict[str, Any]:
    """HellaSwag."""
    rows = first(data / "hellaswag" / "hellaswag.jsonl", folder / "hellaswag.jsonl", a.rows)
    (folder / "bench_hellaswag.yaml").write_text(HELLASWAG.format(data=rows))

    def agree(ours: Any, theirs: Any) -> None:
        scores = theirs["results"]["bench_hellaswag"]
        assert abs(ours.values()["accuracy"] - scores["acc,none"]) < 1e-9, (ours.values(), scores)
        assert abs(ours.values()["accuracy_norm"] - scores["acc_norm,none"]) < 1e-9, (ours.values(), scores)

    task = {"use": "hellaswag", "dataset": str(rows), "batch_size": a.batch, "chat_template": False}
    return alternate(
        Ours(model, tokenizer, task),
        Theirs(model, tokenizer, folder, "bench_hellaswag", a.batch),
        a.rows,
        a.repeats,
        agree,
    )


def generation(model: Any, tokenizer: Any, data: Path, folder: Path, a: Any) -> dict[str, Any]:
    """SVAMP, greedy."""
    rows = first(data / "svamp" / "test.jsonl", folder / "svamp.jsonl", a.rows)
    (folder / "bench_svamp.yaml").write_text(SVAMP.format(data=rows, tokens=TOKENS))

    def agree(ours: Any, theirs: Any) -> None:
        said = [sample["resps"][0][0] for sample in theirs["samples"]["bench_svamp"]]
        same = sum(x["output"].strip() == y.strip() for x, y in zip(ours.items, said, strict=True))
        assert same > 0.95 * len(said), f"{same} of {len(said)} answers agree"

    task = {
        "use": "svamp",
        "dataset": str(rows),
        "batch_size": a.batch,
        "max_new_tokens": TOKENS,
        "truncate_prompts": True,
        "chat_template": False,
    }
    return alternate(
        Ours(model, tokenizer, task), Theirs(model, tokenizer, folder, "bench_svamp", a.batch), a.rows, a.repeats, agree
    )


def in_training(folder: Path, a: Any) -> dict[str, Any]:
    """Seconds for each evaluation of 200 held-out rows in a run of 60 steps."""
    from aligntune.core.backend_factory import create_trainer
    from aligntune.quickstart import BASE_MODEL
    from aligntune.quickstart.problems import write_datasets

    files = write_datasets(folder, seed=0)
    lines = files["sft"].read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join(lines[200:]) + "\n")
    (folder / "held.jsonl").write_text("\n".join(lines[:200]) + "\n")
    times: dict[str, list[float]] = {"without": [], "with": []}
    for k in range(a.repeats):
        for name in ("without", "with") if k % 2 == 0 else ("with", "without"):
            evaluation = {"dataset": str(folder / "held.jsonl"), "every": 15, "batch_size": a.batch}
            raw = {
                "task": "instruction_following",
                "model": {"name_or_path": str(BASE_MODEL)},
                "dataset": str(folder / "train.jsonl"),
                "train": {"max_steps": 60, "per_device_batch_size": 16, "save_steps": 60},
                "output_dir": str(folder / f"{name}-{k}"),
                **({"evaluation": evaluation, "logging": {"samples": 0}} if name == "with" else {}),
            }
            trainer = create_trainer(raw)
            started = time.perf_counter()
            trainer.train()
            times[name].append(time.perf_counter() - started)
    gap = statistics.median(times["with"]) - statistics.median(times["without"])
    return {
        "steps": 60,
        "evaluations": 4,
        "rows": 200,
        "seconds": {name: [round(v, 2) for v in values] for name, values in times.items()},
        "seconds_per_evaluation": round(gap / 4, 3),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="The rest stays as the file has it.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "eval.json")
    a = parser.parse_args()
    result: dict[str, Any] = json.loads(a.out.read_text()) if a.out.exists() and set(a.only) != set(PARTS) else {}
    model, tokenizer = load(a.model)
    about = {"model": Path(a.model).name if a.model else "8 x 256", "batch_size": a.batch}
    result |= {"machine": machine.describe(), **about}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "utils.py").write_text(UTILS)
        for name in a.only:
            if name == "in_training":
                result[name] = in_training(folder, a)
            else:
                measure = multiple_choice if name == "multiple_choice" else generation
                result[name] = measure(model, tokenizer, a.data, folder, a)
            print(name, json.dumps(result[name]), flush=True)
            a.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
