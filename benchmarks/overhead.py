"""What AlignTune costs over bare TRL: the whole process, same settings, alternating, in fresh processes.

    python benchmarks/overhead.py [--pairs 5] [--algorithms sft dpo grpo] [--out benchmarks/results/overhead.json]

Each pair runs the quickstart's model and data through `aligntune train` (manifest, fingerprint, logging, model card and
report included) and through `bare_trl.py`, about 100 s of training each, in an order that alternates. Reported:
the median of the pairs' ratios of wall and of CPU time, and every single time.

Each process gets an empty data set cache. Where the same rows are trained on again, bare TRL finds its tokenised rows
there and AlignTune tokenises them anew, which costs about 3 s of CPU for the 13,000 rows of the SFT run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

import machine

HERE = Path(__file__).parent
STEPS = {"sft": 1050, "dpo": 380, "grpo": 270}
SETTINGS = {
    "sft": {"task": {"name": "instruction_following"}, "train": {"learning_rate": 1e-4, "per_device_batch_size": 32}},
    "dpo": {"algo": {"name": "dpo"}, "train": {"learning_rate": 1e-5, "per_device_batch_size": 32}},
    "grpo": {
        "algo": {"name": "grpo", "num_generations": 8},
        "train": {"learning_rate": 1e-5, "per_device_batch_size": 64},
        "generation": {"max_prompt_length": 64, "max_completion_length": 24},
        "rewards": [{"type": "math_correctness"}],
    },
}


def write_data(folder: Path) -> dict[str, Path]:
    """Rows for the three algorithms, in the columns that bare TRL takes as they are."""
    from aligntune.quickstart.problems import write_datasets

    files = write_datasets(folder, seed=0)
    rows = [json.loads(line) for line in files["sft"].read_text().splitlines()]
    rng = random.Random(0)
    pairs = folder / "pairs.jsonl"
    with pairs.open("w") as out:
        for row in rows:
            other = rng.choice(rows)["completion"]
            out.write(json.dumps({"prompt": row["prompt"], "chosen": row["completion"], "rejected": other}) + "\n")
    return {"sft": files["sft"], "dpo": pairs, "grpo": files["rl"]}


def config_for(algorithm: str, data: Path, model: str, output: Path, steps: int) -> dict:
    """The AlignTune file of one run."""
    settings = {key: dict(value) if isinstance(value, dict) else value for key, value in SETTINGS[algorithm].items()}
    settings["train"] |= {"max_steps": steps, "seed": 0}
    settings["model"] = {"name_or_path": model, "max_seq_length": 128}
    settings["logging"] = {"steps": 20}
    key = "dataset" if algorithm == "sft" else "datasets"
    settings[key] = {"name": str(data)} if algorithm == "sft" else [{"name": str(data)}]
    return {**settings, "output_dir": str(output)}


def timed(command: list[str], log: Path) -> dict:
    """Run a command; wall seconds, CPU seconds and peak memory of the process."""
    cache = log.with_suffix(".cache")
    shutil.rmtree(cache, ignore_errors=True)
    settings = {"HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **settings}
    start = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}


def run_pair(algorithm: str, data: Path, model: str, folder: Path, steps: int, ours_first: bool) -> dict:
    """One of each, in the given order."""
    from aligntune.core.backend_factory import create_trainer
    from aligntune.core.config import load_config

    outputs = {name: folder / f"{algorithm}-{name}" for name in ("aligntune", "trl")}
    for output in outputs.values():
        shutil.rmtree(output, ignore_errors=True)
    raw = config_for(algorithm, data, model, outputs["aligntune"], steps)
    config_file, settings_file = folder / f"{algorithm}.yaml", folder / f"{algorithm}.json"
    config_file.write_text(yaml.safe_dump(raw))
    arguments = create_trainer(load_config(raw)).arguments() | {"output_dir": str(outputs["trl"])}
    arguments.pop("disable_tqdm")
    settings = {"algorithm": algorithm, "model": model, "data": str(data), "arguments": arguments}
    settings_file.write_text(json.dumps(settings))
    commands = {
        "aligntune": [sys.executable, "-m", "aligntune", "train", str(config_file)],
        "trl": [sys.executable, str(HERE / "bare_trl.py"), str(settings_file)],
    }
    order = ["aligntune", "trl"] if ours_first else ["trl", "aligntune"]
    times = {name: timed(commands[name], folder / f"{algorithm}-{name}.log") for name in order}
    result = json.loads((outputs["aligntune"] / "manifest.json").read_text())["summary"]
    times["aligntune"]["train_seconds"] = result["training_time"]
    times["trl"]["train_seconds"] = json.loads((folder / f"{algorithm}-trl.log").read_text().splitlines()[-1])[
        "train_seconds"
    ]
    return {"order": order, **times}


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--algorithms", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps, to try the script out")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "overhead.json")
    options = parser.parse_args()
    from aligntune.quickstart import BASE_MODEL

    model = str(BASE_MODEL)
    report = {"machine": machine.describe(), "threads": os.environ.get("OMP_NUM_THREADS", "default"), "algorithms": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_data(folder)
        for algorithm in options.algorithms:
            steps = max(int(STEPS[algorithm] * options.scale), 2)
            pairs = []
            for i in range(options.pairs):
                pairs.append(run_pair(algorithm, data[algorithm], model, folder, steps, ours_first=i % 2 == 0))
                ratios = {
                    kind: statistics.median(p["aligntune"][kind] / p["trl"][kind] for p in pairs)
                    for kind in ("wall", "cpu", "peak_mib")
                }
                report["algorithms"][algorithm] = {"steps": steps, "median_ratio": ratios, "pairs": pairs}
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(report, indent=1) + "\n")
                print(f"{algorithm} pair {i + 1}: " + ", ".join(f"{k} x{v:.3f}" for k, v in ratios.items()), flush=True)


if __name__ == "__main__":
    main()
