"""Does the quickstart show what it promises? Runs it for several seeds, and holds each against its bars.

    python benchmarks/quickstart.py [--seeds 0 1 2] [--fast] [--out benchmarks/results/quickstart.json]

Bars, for each seed: SFT at least 30 points above the base, and between 40 and 75%; GRPO at least 8 points above SFT,
the paired interval above zero; DPO's preference accuracy at least 0.65 on at least 300 held-out pairs, its interval
above 0.5, and above the SFT model's own ranking; at most 4 minutes and 3 GB for the process on two idle cores.
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

HERE = Path(__file__).parent


def run(seed: int, fast: bool, folder: Path) -> dict:
    """One quickstart in a fresh process: its own summary, wall and CPU seconds, peak memory."""
    command = [sys.executable, "-m", "aligntune", "quickstart", "--out", str(folder), "--seed", str(seed), "--json"]
    start = time.perf_counter()
    with (folder.parent / f"{seed}.json").open("w+") as out:
        process = subprocess.Popen([*command, "--fast"] if fast else command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        text = out.read()
    if status:
        raise SystemExit(f"seed {seed} failed with status {status}: {text[-2000:]}")
    measured = {
        "wall": time.perf_counter() - start,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
    }
    return {"seed": seed, **measured, "summary": json.loads(text)}


def bars(result: dict) -> dict[str, bool]:
    """Each promise and whether this run keeps it."""
    stages = {stage["name"]: stage for stage in result["summary"]["stages"]}
    base, sft, grpo, dpo = (stages[name] for name in ("base", "sft", "grpo", "dpo"))
    ranking = result["summary"]["preference"]
    return {
        "sft_30_points_above_base": sft["accuracy"]["value"] - base["accuracy"]["value"] >= 0.30,
        "sft_between_40_and_75": 0.40 <= sft["accuracy"]["value"] <= 0.75,
        "grpo_8_points_above_sft": grpo["difference"]["value"] >= 0.08,
        "grpo_interval_above_zero": grpo["difference"]["low"] > 0,
        "pairs_at_least_300": ranking["pairs"] >= 300,
        "dpo_preference_at_least_065": dpo["preference_accuracy"]["value"] >= 0.65,
        "dpo_preference_interval_above_half": dpo["preference_accuracy"]["low"] > 0.5,
        "dpo_above_sft_ranking": dpo["preference_accuracy"]["value"] > ranking["sft_ranking"]["value"],
        "at_most_4_minutes": result["wall"] <= 240,
        "at_most_3_gb": result["peak_gb"] <= 3.0,
    }


def main() -> None:
    """Run, compare with the bars, write the result file; exit 1 where a bar is missed (never with --fast)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "quickstart.json")
    options = parser.parse_args()
    report = {"machine": machine.describe(), "fast": options.fast, "runs": []}
    with tempfile.TemporaryDirectory() as name:
        for seed in options.seeds:
            result = run(seed, options.fast, Path(name) / str(seed))
            result["bars"] = bars(result)
            report["runs"].append(result)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
            missed = [bar for bar, kept in result["bars"].items() if not kept]
            cost = f"{result['wall']:.0f} s, {result['peak_gb']:.2f} GB"
            print(f"seed {seed}: {cost}, missed: {', '.join(missed) or 'none'}", flush=True)
    if not options.fast and any(not all(r["bars"].values()) for r in report["runs"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
