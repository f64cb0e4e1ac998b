"""How long the cheap things take: help, import and a refused configuration, beside `trl --help`.

    python benchmarks/startup.py [--rounds 15] [--out benchmarks/results/startup.json]

Each round runs every command once, in a fresh process and in an order that turns by one each round, so that a slow
moment of the machine falls on all of them; the result holds every time, the medians, and the machine. CPU time is
the user and system time of the process and of its children.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REFUSED = "algo: {name: gpro}\nmodel: {name_or_path: m}\ndatasets: [d.jsonl]\n"
PACKAGES = ("aligntune", "click", "pydantic", "trl", "torch")
HERE = Path(__file__).resolve().parent


def commands(folder: Path) -> dict[str, list[str]]:
    """Name to command line; programs of this interpreter's own environment."""
    (folder / "refused.yaml").write_text(REFUSED)
    bin_dir = Path(sys.executable).parent
    found = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import aligntune": [sys.executable, "-c", "import aligntune"],
        "aligntune --help": [str(bin_dir / "aligntune"), "--help"],
        "aligntune train --help": [str(bin_dir / "aligntune"), "train", "--help"],
        "aligntune train refused.yaml": [str(bin_dir / "aligntune"), "train", "refused.yaml"],
        "trl --help": [str(bin_dir / "trl"), "--help"],
    }
    return {name: line for name, line in found.items() if shutil.which(line[0])}


def measure(line: list[str], cwd: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one fresh process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(line, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def machine() -> dict[str, Any]:
    """What the times were taken on."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": os.getloadavg(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("aligntune", "click", "pydantic", "trl", "torch")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "startup.json")
    args = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory() as name:
        lines = commands(Path(name))
        for line in lines.values():  # once without counting, so that caches are the same for all
            measure(line, Path(name))
        times: dict[str, list[tuple[float, float]]] = {key: [] for key in lines}
        order = list(lines)
        for _ in range(args.rounds):
            for key in order:
                times[key].append(measure(lines[key], Path(name)))
            order.append(order.pop(0))
    result = {
        "rounds": args.rounds,
        "median_wall_seconds": {k: round(statistics.median(w for w, _ in v), 4) for k, v in times.items()},
        "median_cpu_seconds": {k: round(statistics.median(c for _, c in v), 4) for k, v in times.items()},
        "wall_seconds": {k: [round(w, 4) for w, _ in v] for k, v in times.items()},
        "machine": about,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for key in times:
        wall, cpu = result["median_wall_seconds"][key], result["median_cpu_seconds"][key]
        print(f"{key:<32}{wall * 1000:8.0f} ms wall {cpu * 1000:8.0f} ms CPU")


if __name__ == "__main__":
    main()
