"""What each algorithm costs: seconds per step and peak memory against plain GRPO (or DPO), same model and batch.

    OMP_NUM_THREADS=1 python benchmarks/algorithms.py [--rounds 3] [--steps 24] [--only gbmpo pace] [--out FILE]

Every measurement is a fresh process that trains the quickstart's base model through the ordinary trainer; a round runs
each algorithm once, the baselines among them, and rounds repeat, so that a disturbance hits all alike. Reported: the
median over steps (the first two left out) and over rounds, of a step's wall time and of the time inside `generate`,
the peak resident memory, and the ratios to the baseline of the same data.

Not measured here: meta_es, which trains in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
from overhead import write_data

HERE = Path(__file__).parent
WARM_UP = 2
COMPLETIONS = 64
"""Sequences per step: completions, or pairs x 2."""
BASELINE = {"prompt": "grpo", "preference": "dpo", "unpaired": "dpo", "prompt_completion": "dpo"}
PARAMETERS = {
    "grpo, G = 8": {"name": "grpo"},
    "pace, G = 1": {"name": "pace", "num_generations": 1},
    "counterfactual_grpo": {"name": "counterfactual_grpo", "answer_markers": [" "]},
    "counterfactual_grpo, no spans": {"name": "counterfactual_grpo", "mode": "uniform"},
    "gbmpo prob_l2": {"name": "gbmpo", "divergence": "prob_l2"},
    "gbmpo l2_kl": {"name": "gbmpo", "divergence": "l2_kl"},
    "grpo, 128 prompts": {"name": "grpo"},
    "pace, 128 prompts": {"name": "pace", "num_generations": 1},
}
PROMPTS = {"grpo, 128 prompts": 128, "pace, 128 prompts": 128}
"""Rows with other prompts per step than 8. A small model samples 8 short completions nearly as slowly as 24, so what
single completions save shows only where the batch is large."""
AGAINST = {"pace, 128 prompts": "grpo, 128 prompts"}
"""Rows whose baseline is not the plain algorithm of their data."""
"""Further rows of the table beside each algorithm's defaults, or in their place. The base model writes no `####`; a
space is the marker that its running sums have. The cost of a span is the difference of the two rows of counterfactual
GRPO, divided by `counterfactual/forward_rows`."""
LEFT_OUT = ("meta_es",)


def config_for(
    params: dict, schema: str, files: dict[str, Path], model: str, output: str, steps: int, prompts: int | None = None
) -> dict:
    """The file of one measured run."""
    from aligntune.algorithms.base import get_algorithm

    cls = get_algorithm(params["name"])
    config = {
        "algo": dict(params),
        "model": {"name_or_path": model, "max_seq_length": 128},
        "datasets": [{"name": str(files[schema])}],
        "train": {"max_steps": steps, "seed": 0, "learning_rate": 1e-5, "per_device_batch_size": COMPLETIONS},
        "logging": {"steps": 1},
        "output_dir": output,
    }
    if "teacher" in cls.__dataclass_fields__:
        config["algo"]["teacher"] = model
    if "rounds" in cls.__dataclass_fields__:  # it samples an answer for every row before it trains
        config["algo"]["rounds"] = 1
        config["datasets"][0]["max_samples"] = steps * COMPLETIONS
    if schema == "prompt":
        config["generation"] = {"max_prompt_length": 64, "max_completion_length": 24}
    if schema in ("preference", "unpaired"):
        config["train"]["per_device_batch_size"] = COMPLETIONS // 2
    if cls.uses_rewards:
        config["rewards"] = [{"type": "math_correctness"}]
    if prompts or params.get("num_generations") == 1:  # the same prompts per step as G = 8
        each = params.get("num_generations", 8)
        config["train"]["per_device_batch_size"] = (prompts or COMPLETIONS // 8) * each
    return config


def measure(path: str) -> None:
    """Train one file in this process and print its numbers (the worker)."""
    from transformers import GenerationMixin

    from aligntune.core.backend_factory import create_trainer
    from aligntune.core.config import load_config

    spent = [0.0]
    plain = GenerationMixin.generate

    def timed(self, *args, **kwargs):
        start = time.perf_counter()
        try:
            return plain(self, *args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - start

    GenerationMixin.generate = timed
    config = load_config(path)
    trainer = create_trainer(config)
    trainer.train()
    rows = [json.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()]
    times = {row["step"]: row["time"] for row in rows if "loss" in row}
    steps = [times[s] - times[s - 1] for s in sorted(times) if s > WARM_UP and s - 1 in times]
    numbers = {
        "step_s": statistics.median(steps),
        "generate_s": spent[0] / max(times),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "last": {k: v for k, v in rows[-1].items() if "/" in k},
    }
    print(json.dumps(numbers))


def rows_to_measure(only: list[str] | None) -> dict[str, tuple[dict, str]]:
    """Label to (parameters, data) of every row of the table."""
    from aligntune.algorithms.base import algorithm_names, get_algorithm

    wanted = {name: {"name": name} for name in algorithm_names() if name not in LEFT_OUT} | PARAMETERS
    wanted = {label: p for label, p in wanted.items() if p["name"] in algorithm_names()}
    if only:
        names = {*only, "grpo", "dpo"}
        wanted = {label: p for label, p in wanted.items() if p["name"] in names or label in names}
    return {label: (p, str(get_algorithm(p["name"]).data)) for label, p in wanted.items()}


def data_files(folder: Path) -> dict[str, Path]:
    """Rows of the quickstart's problems for each kind of data."""
    files = write_data(folder)
    unpaired = folder / "unpaired.jsonl"
    with unpaired.open("w") as out:
        for line in files["dpo"].read_text().splitlines():
            pair = json.loads(line)
            for key, label in (("chosen", True), ("rejected", False)):
                out.write(json.dumps({"prompt": pair["prompt"], "completion": pair[key], "label": label}) + "\n")
    return {
        "prompt": files["grpo"],
        "preference": files["dpo"],
        "prompt_completion": files["sft"],
        "unpaired": unpaired,
    }


def summarise(measured: dict[str, list[dict]], rows: dict[str, tuple[dict, str]]) -> dict[str, dict]:
    """Medians over rounds, and ratios to the baseline."""
    keys = ("step_s", "generate_s", "peak_mib")
    table = {
        label: {key: statistics.median(run[key] for run in runs) for key in keys} for label, runs in measured.items()
    }
    for label, values in table.items():
        values["against"] = AGAINST.get(label, BASELINE[rows[label][1]])
        base = table[values["against"]]
        values["ratios"] = {key: round(values[key] / base[key], 3) for key in keys if base[key]}
        values["last"] = measured[label][-1]["last"]
    return table


def main() -> None:
    """Measure all and write the result file after each process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "algorithms.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        measure(options.worker)
        return
    import yaml

    from aligntune.quickstart import BASE_MODEL

    rows = rows_to_measure(options.only)
    measured: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = data_files(folder)
        for number in range(options.rounds):
            for label, (params, schema) in rows.items():
                output = folder / f"{label}-{number}".replace(" ", "-")
                config = config_for(
                    params, schema, files, str(BASE_MODEL), str(output), options.steps, PROMPTS.get(label)
                )
                path = output.with_suffix(".yaml")
                path.write_text(yaml.safe_dump(config))
                environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
                command = [sys.executable, str(HERE / "algorithms.py"), "--worker", str(path)]
                done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
                if done.returncode:
                    raise SystemExit(f"{label} failed:\n{done.stderr[-3000:]}")
                measured.setdefault(label, []).append(json.loads(done.stdout.splitlines()[-1]))
                print(f"round {number + 1} {label}: {measured[label][-1]['step_s']:.3f} s a step", flush=True)
            report = {
                "machine": machine.describe(),
                "threads": os.environ.get("OMP_NUM_THREADS", "default"),
                "settings": {"steps": options.steps, "sequences_per_step": COMPLETIONS, "rounds": number + 1},
                "algorithms": summarise(measured, rows),
            }
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
