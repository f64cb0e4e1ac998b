"""How often the audit finds something in a clean run, and how often it finds what was planted.

    python benchmarks/audit.py --runs 1000

Runs are imaginary (`tests/planted.py`): clean ones of several sizes, and ones with a single planted fault. A false
positive is a clean run with at least one finding of any severity. Written to `benchmarks/results/audit.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import machine

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"small": (10, 4, 4), "usual": (30, 8, 8), "long": (100, 8, 8)}
"""Steps, groups in a step, completions in a group."""
WANDERING = {"usual": 1.0, "long": 1.0}
"""Sizes that are also tried with scores that move slowly from step to step, which no interval over groups knows of."""


def audited(seed: int, size: tuple[int, int, int], fault: str | None, wander: float = 0.0) -> list[str]:
    """Codes of the findings of one imaginary run."""
    import planted
    from aligntune.rewards.audit import audit
    from aligntune.rewards.audit.table import from_columns

    steps, groups, completions = size
    columns, config = planted.run(seed, fault=fault, steps=steps, groups=groups, size=completions, wander=wander)
    report = audit(from_columns(columns, config), planted.metrics(seed))
    return [finding.code for finding in report.findings]


def clean(name: str, runs: int, wander: float = 0.0) -> dict:
    """The share of clean runs with any finding, with its interval, and the findings by code."""
    from aligntune.eval.stats import wilson_interval

    found = [audited(seed, SIZES[name], None, wander) for seed in range(10_000, 10_000 + runs)]
    any_found = wilson_interval(sum(bool(codes) for codes in found), runs)
    by_code = Counter(code for codes in found for code in set(codes))
    size = dict(zip(("steps", "groups", "completions"), SIZES[name], strict=True))
    return {**size, "wander": wander, "runs": runs, "family_wise": any_found.to_dict(), "by_code": dict(by_code)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="Clean runs of each size but the longest.")
    parser.add_argument("--planted", type=int, default=100, help="Runs of each fault.")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "audit.json"))
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    import planted

    start = time.perf_counter()
    result: dict = {"machine": machine.describe(), "clean": {}, "found": {}}
    for name in SIZES:
        result["clean"][name] = clean(name, options.runs if name != "long" else options.runs // 4)
        print(name, result["clean"][name], flush=True)
    for name, wander in WANDERING.items():
        result["clean"][f"{name}, wandering"] = clean(name, options.runs // 4, wander)
        print(name, "wandering", result["clean"][f"{name}, wandering"], flush=True)
    for fault in planted.FAULTS:
        hits = sum(fault in audited(seed, SIZES["usual"], fault) for seed in range(options.planted))
        result["found"][fault] = hits / options.planted
        print(fault, result["found"][fault], flush=True)
    result["seconds"] = round(time.perf_counter() - start, 1)
    Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
