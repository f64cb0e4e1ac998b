"""The two experiments of AlignTune's paper, scaled to what needs no download: DPO and GRPO on TRL against Unsloth.

Three architectures, each a part of its own, through `aligntune compare --backends trl,unsloth` with several seeds:
held-out values with a margin that is stated beforehand, step time, throughput and memory. The model of 0.1B parameters
is trained first on the quickstart's sums (all weights, on TRL), so that preferences and rewards mean something; the
larger ones have random weights and stand for cost, not for what is learned. `--hub llama=meta-llama/Llama-3.2-1B` puts
a published model in the place of the one that is built.
"""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

from gpu import configs, models
from gpu.child import environment, last, run, train
from gpu.record import Case, OutOfTime, Part, Settings, Values

MARGINS = {"dpo": {"eval_rewards/accuracies": 0.03}, "grpo": {"eval_reward": 0.05}}
"""Largest difference of a held-out value that does not matter: three pairs of a hundred, one reward in twenty."""
SHOWN = (
    "step_time", "tokens_per_second", "peak_gpu_memory", "peak_memory", "wall_time", "final_loss", "reward",
    "rewards/accuracies", "rewards/margins", "kl", "eval_reward", "eval_rewards/accuracies",
)  # fmt: skip
LARGER = {"llama": "1b", "qwen": "1b", "phi": "3b"}
STEPS = {"dpo": 60, "grpo": 40}


def small_trained(architecture: str, settings: Settings, seconds: float) -> tuple[Path, Values]:
    """The 0.1B model after supervised training on the quickstart's sums, made once; its folder and its losses."""
    if architecture in settings.hub:
        return Path(settings.hub[architecture]), {"hub": settings.hub[architecture]}
    folder = settings.work / "runs" / "trained" / architecture
    note = folder / "losses.json"
    if not note.is_file():
        start, _ = models.build(architecture, "0.1b", settings, small_vocabulary=True)
        values = configs.config(
            "instruction_following", settings, start, backend="trl", peft=None, steps=8 if settings.tiny else 600,
            batch=16 if settings.tiny else 64,
            train={"learning_rate": 3e-4, "warmup_steps": 2 if settings.tiny else 50, "lr_scheduler": "cosine"},
        )  # fmt: skip
        done = train(values, f"trained/{architecture}", seconds, settings)
        if not done["ok"]:
            raise RuntimeError(f"supervised training of the start failed: {done['error']}")
        note.write_text(json.dumps({k: done[k] for k in ("first_loss", "last_loss", "steps")}), encoding="utf-8")
    return folder / "run", json.loads(note.read_text(encoding="utf-8"))


def cases(algorithm: str, architecture: str, settings: Settings) -> list[Case]:
    """The trained small model, and a larger one with random weights."""
    sizes = ["0.1b"] if settings.tiny or architecture in settings.hub else ["0.1b", LARGER[architecture]]
    return [Case(f"{size}", partial(_compare, algorithm, architecture, size, settings)) for size in sizes]


def _config(algorithm: str, folder: Path, settings: Settings) -> Values:
    """The run of both arms: the same for both, but for the backend."""
    long = {} if settings.tiny else {"max_seq_length": 256}
    batch = 8 if settings.tiny else (32 if algorithm == "dpo" else 64)
    values = configs.config(
        algorithm, settings, folder, backend="trl", batch=batch, steps=4 if settings.tiny else STEPS[algorithm],
        train={"warmup_steps": 0 if settings.tiny else 5, "learning_rate": 1e-4}, model=long,
    )  # fmt: skip
    files = models.data(settings)
    if algorithm == "dpo":
        values["datasets"] = [{"name": str(files["pairs"]), "split": "train[:90%]"}]
        held = {"name": str(files["pairs"]), "split": "train[90%:]"}
    else:
        held = {"name": str(files["test"]), "max_samples": 64 if settings.tiny else 200}
        values["algo"]["num_generations"] = 4 if settings.tiny else 8
    values["evaluation"] = {"dataset": held, "max_new_tokens": 24}
    return values


def _compare(algorithm: str, architecture: str, size: str, settings: Settings, seconds: float) -> Values:
    folder = settings.work / "compare" / f"{algorithm}-{architecture}-{size}"
    if size == "0.1b":
        model, start = small_trained(architecture, settings, seconds)
    else:
        model, start = models.build(architecture, size, settings, small_vocabulary=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f"{folder.name}.yaml")
    file.write_text(json.dumps(_config(algorithm, model, settings)), encoding="utf-8")
    seeds = settings.seeds if size == "0.1b" else min(settings.seeds, 2)
    line = [sys.executable, "-m", "aligntune", "compare", str(file), "--backends", "trl,unsloth", "--json"]
    line += ["--seeds", str(seeds), "--output-dir", str(folder)]
    line += [a for key, margin in MARGINS[algorithm].items() for a in ("--margin", f"{key}={margin}")]
    if (folder / "plan.json").exists():
        line.append("--resume")
    done = run(line, seconds, env=environment(settings))
    try:
        found = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"ok": False, "error": last(done.stderr + done.stdout)}
    failed = [f"{r['arm']}, seed {r['seed']}: {r['error']}" for r in found["runs"] if r["status"] != "finished"]
    keep = ("value", "kind", "arm_median", "base_median", "change", "low", "high", "n", "margin", "verdict", "needed")
    return {
        "ok": not failed,
        "error": "; ".join(failed),
        "start": start,
        "seeds": seeds,
        "margins": MARGINS[algorithm],
        "rows": [{k: row[k] for k in keep} for row in found["rows"] if row["value"] in SHOWN],
        "curves": {
            f"{r['arm']}, seed {r['seed']}": {k: [v for _, v in c] for k, c in r["curves"].items() if k in SHOWN}
            for r in found["runs"]
        },
        "notes": found["notes"],
        "page": str(folder / "comparison.html"),
    }


def forget(settings: Settings, algorithm: str, architecture: str) -> None:
    """Remove the runs of a part that begins anew."""
    for folder in (settings.work / "compare").glob(f"{algorithm}-{architecture}-*"):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


PARTS = [
    Part(f"{algorithm}-{architecture}", f"{algorithm.upper()} with a {architecture} architecture, TRL against Unsloth",
         partial(cases, algorithm, architecture))
    for algorithm in ("dpo", "grpo")
    for architecture in models.ARCHITECTURES
]  # fmt: skip
__all__ = ["PARTS", "OutOfTime", "forget", "small_trained"]
