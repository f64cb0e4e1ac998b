"""How often the health monitor cries wolf, and how much it catches: benchmarks/results/health.json.

    python benchmarks/health.py                    # simulated streams
    python benchmarks/health.py runs/a runs/b      # and finished runs that are known to be healthy

Healthy: 500 simulated supervised and 500 simulated policy runs of 200 rows (tests/health_streams.py), and the folders
given, which count by event. Planted: each fault in 500 streams. Nothing here is timed but the monitor itself.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import health_streams  # noqa: E402
import machine  # noqa: E402
from aligntune.utils.health import HealthMonitor, TrainingDiagnostics  # noqa: E402

SEEDS = range(1000, 1500)  # none that the thresholds were tried on


def watched(sampled: bool, rows: list[dict]) -> list[str]:
    """Rules that find something in a stream."""
    return [e.rule for e in HealthMonitor(sampled=sampled, room=256 if sampled else None).replay(rows)]


def main(folders: list[str]) -> None:
    """Measure and write."""
    healthy = {}
    rows, started = 0, time.perf_counter()
    for name, sampled, make in (
        ("supervised", False, health_streams.supervised),
        ("policy", True, health_streams.sampled),
    ):
        alarms: Counter[str] = Counter()
        for seed in SEEDS:
            stream = make(seed)
            rows += len(stream)
            alarms.update(set(watched(sampled, stream)))
        healthy[name] = {"runs": len(SEEDS), "runs_with_event_by_rule": dict(alarms)}
    seconds = time.perf_counter() - started
    caught = {
        rule: sum(rule in watched(sampled, make(seed)) for seed in SEEDS) / len(SEEDS)
        for rule, (sampled, make) in health_streams.PLANTED.items()
    }
    real = []
    for folder in folders:
        found = TrainingDiagnostics.of_folder(folder)
        name = "/".join(Path(folder).parts[-2:])
        real.append({"run": name, "steps": found.steps, "events": [f"{e.rule} at {e.step}" for e in found.events]})
    result = {
        "machine": machine.describe(),
        "healthy_streams": healthy,
        "planted_caught": caught,
        "healthy_runs": real,
        "microseconds_per_row_with_simulation": round(seconds / rows * 1e6, 1),
    }
    (HERE / "results" / "health.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "machine"}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
