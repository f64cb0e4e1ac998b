"""What it costs that a run survives: checkpoints, monitoring, stored rollouts and the report, against a run without.

    python benchmarks/survival.py [--pairs 3] [--parts runs checkpoint] [--out benchmarks/results/survival.json]

runs        the quickstart's model and data, SFT and GRPO, in fresh processes and an order that alternates: everything
            on (checkpoints five times in the run, or each --save-steps, health, data order, rollouts, report) against
            everything off. Wall and processor time of the processes, their ratio, and of the run with everything on the
            processor time that each part took, measured inside.
checkpoint  a model of about 50 million parameters, written from memory five times each: by the trainer of TRL, by the
            same with its files synced, and by ours (synced, hashed, renamed); then what a resume reads.

Five checkpoints in 100 seconds are many: in a real run they are minutes or hours apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import machine
import overhead

HERE = Path(__file__).parent
CHECKPOINTS = 5
WATCHED = (
    ("checkpoints", "aligntune.utils.checkpoints", "CheckpointManager.commit"),
    ("checkpoints", "aligntune.utils.checkpoints", "CheckpointManager.begin"),
    ("health", "aligntune.core.following", "Follower.row"),
    ("data order", "aligntune.core.following", "Follower.batch"),
    ("data order", "aligntune.core.following", "Follower.mark"),
    ("rollouts", "aligntune.utils.run_folder", "RunFolder.append_rollouts"),
    ("rollouts and lines to the disk", "aligntune.utils.run_folder", "RunFolder.flush"),
    ("report", "aligntune.core.refreshing", "draw_report"),
    ("report", "aligntune.core.trainer", "draw_report"),
)
"""Part, module and function that are timed; what is called inside another counts for both."""
PARTS = dict.fromkeys(part for part, _, _ in WATCHED)
OFF = ("Follower.row", "Follower.batch", "Follower.mark", "draw_report")
"""Functions that do nothing in a run with everything off."""


def wrapped(function: Callable[..., Any], part: str, spent: dict[str, float]) -> Callable[..., Any]:
    """`function`, with the processor time of its thread booked on `part`."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[part] += time.thread_time() - start

    return timed


def child(mode: str, file: Path, out: Path) -> int:
    """One run in this process, with its parts timed or left out."""
    import importlib

    from aligntune.cli.main import main as program

    spent: dict[str, float] = defaultdict(float)
    for part, module, path in WATCHED:
        owner: Any = importlib.import_module(module)
        *outer, name = path.split(".")
        for step in outer:
            owner = getattr(owner, step)
        real = getattr(owner, name)
        setattr(owner, name, (lambda *a, **k: None) if mode == "off" and path in OFF else wrapped(real, part, spent))
    code = program(["train", str(file), "--no-check"])
    out.write_text(json.dumps({"parts": spent, "process": time.process_time()}))
    return code


def pair(algorithm: str, data: Path, model: str, folder: Path, steps: int, every: int, on_first: bool) -> dict:
    """A run with everything on, with a checkpoint each `every` steps, and one with everything off."""
    found: dict[str, Any] = {"order": ["on", "off"] if on_first else ["off", "on"]}
    for mode in found["order"]:
        output = folder / f"{algorithm}-{mode}"
        shutil.rmtree(output, ignore_errors=True)
        raw = overhead.config_for(algorithm, data, model, output, steps)
        if mode == "on":
            raw["train"] |= {"save_steps": every, "save_total_limit": 2}
        else:
            raw["health"] = {"enabled": False}
            raw["logging"] |= {"rollouts": False} if algorithm == "grpo" else {}
        file, parts = folder / f"{algorithm}-{mode}.yaml", folder / f"{algorithm}-{mode}.json"
        file.write_text(yaml.safe_dump(raw))
        command = [sys.executable, str(HERE / "survival.py"), "--child", mode, str(file), str(parts)]
        found[mode] = overhead.timed(command, folder / f"{algorithm}-{mode}.log")
        found[mode] |= json.loads(parts.read_text())
        found[mode]["training"] = json.loads((output / "manifest.json").read_text())["timings"]
        found[mode]["checkpoints"] = len(list(output.glob("checkpoint-*")))
    return found


def measure_runs(pairs: int, scale: float, algorithms: list[str], save_steps: int | None) -> dict:
    """The algorithms, `pairs` times; a checkpoint each `save_steps`, or five times in a whole run."""
    from aligntune.quickstart import BASE_MODEL

    report = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = overhead.write_data(folder)
        for algorithm in algorithms:
            steps = max(int(overhead.STEPS[algorithm] * scale), CHECKPOINTS)
            every = save_steps or overhead.STEPS[algorithm] // CHECKPOINTS
            rows = []
            for i in range(pairs):
                rows.append(pair(algorithm, data[algorithm], str(BASE_MODEL), folder, steps, every, i % 2 == 0))
                print(
                    algorithm,
                    {k: round(rows[-1]["on"][k] / rows[-1]["off"][k], 4) for k in ("wall", "cpu")},
                    flush=True,
                )
            inside = {
                part: statistics.median(row["on"]["parts"].get(part, 0.0) / row["on"]["cpu"] for row in rows)
                for part in PARTS
            }
            report[algorithm] = {
                "steps": steps,
                "save_steps": every,
                "median_ratio": {
                    key: statistics.median(row["on"][key] / row["off"][key] for row in rows) for key in ("wall", "cpu")
                },
                "share_of_processor_time": inside,
                "share_of_all_parts": sum(inside.values()),
                "pairs": rows,
            }
    return report


# ---- one checkpoint ---------------------------------------------------------------------------------------------


def big_model(folder: Path) -> Path:
    """An untrained Llama of about 50 million parameters with the quickstart's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from aligntune.quickstart import BASE_MODEL

    tokenizer = AutoTokenizer.from_pretrained(str(BASE_MODEL))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=512, intermediate_size=1536, num_hidden_layers=10, num_attention_heads=8,
        num_key_value_heads=8, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def synced(folder: Path) -> None:
    """Put every file of a folder on the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())


def measure_checkpoint(times: int) -> dict:
    """Writing and reading of one checkpoint, ours and TRL's."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from aligntune.core.backend_factory import create_trainer
    from aligntune.utils.checkpoints import CheckpointManager, fault

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, data = big_model(folder / "model"), overhead.write_data(folder)["sft"]
        raw = overhead.config_for("sft", data, str(model), folder / "ours", 1)
        raw["train"] |= {"per_device_batch_size": 1, "save_steps": 1}
        raw["dataset"]["max_samples"] = 32
        run = create_trainer(raw)
        run.train()
        arguments = run.arguments() | {"output_dir": str(folder / "trl")}
        arguments.pop("disable_tqdm")
        plain = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(model),
            args=SFTConfig(**arguments),
            train_dataset=load_dataset("json", data_files=str(data), split="train[:32]"),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        plain.train()
        parameters = sum(p.numel() for p in plain.model.parameters())

        def written(hf: Any, *, sync: bool) -> float:
            start, worked = time.perf_counter(), time.process_time()
            hf._save_checkpoint(hf.model, trial=None)
            if sync:
                synced(Path(hf.args.output_dir) / "checkpoint-1")
            spent[hf is plain, sync].append(time.process_time() - worked)
            return time.perf_counter() - start

        spent: dict[tuple[bool, bool], list[float]] = defaultdict(list)
        os.sync()
        rows: dict[str, list[float]] = {"trl": [], "trl, synced": [], "aligntune": []}
        for _ in range(times):
            for way, hf, sync in (("trl", plain, False), ("trl, synced", plain, True), ("aligntune", run._hf, False)):
                rows[way].append(written(hf, sync=sync))
                os.sync()  # so that none waits for what another has left to write
        ours = folder / "ours" / "checkpoint-1"
        assert fault(ours) is None
        size = sum(f.stat().st_size for f in ours.rglob("*") if f.is_file())
        reading: dict[str, list[float]] = {"trl loads": [], "aligntune verifies": []}
        for _ in range(times):
            start = time.perf_counter()
            plain._load_from_checkpoint(str(folder / "trl" / "checkpoint-1"))
            plain._load_optimizer_and_scheduler(str(folder / "trl" / "checkpoint-1"))
            reading["trl loads"].append(time.perf_counter() - start)
            start = time.perf_counter()
            CheckpointManager(folder / "ours").latest()
            reading["aligntune verifies"].append(time.perf_counter() - start)
    median = {key: statistics.median(values) for key, values in {**rows, **reading}.items()}
    worked = {
        "trl": statistics.median(spent[True, False]),
        "trl, synced": statistics.median(spent[True, True]),
        "aligntune": statistics.median(spent[False, False]),
    }
    return {
        "parameters": parameters,
        "bytes": size,
        "median_seconds": median,
        "median_processor_seconds": worked,
        "seconds": {**rows, **reading},
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=["runs", "checkpoint"], choices=["runs", "checkpoint"])
    parser.add_argument("--algorithms", nargs="+", default=["sft", "grpo"], choices=["sft", "grpo"])
    parser.add_argument(
        "--save-steps", type=int, help="steps from one checkpoint to the next; five in a run without it"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps, to try the script out")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "survival.json")
    options = parser.parse_args()
    report = json.loads(options.out.read_text()) if options.out.exists() else {}
    report |= {"machine": machine.describe(), "threads": os.environ.get("OMP_NUM_THREADS", "default")}
    report["load_average_before"] = round(os.getloadavg()[0], 2)
    if "checkpoint" in options.parts:
        report["checkpoint"] = measure_checkpoint(5)
    for algorithm in options.algorithms if "runs" in options.parts else ():
        report["runs"] = {
            **report.get("runs", {}),
            **measure_runs(options.pairs, options.scale, [algorithm], options.save_steps),
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])))
    main()
