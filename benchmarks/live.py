"""What the live view costs: processor time of one drawing, of a step without one, and its share of a run's time.

    python benchmarks/live.py --out benchmarks/results/live.json

A run of many short steps is the worst case: up to 200 steps a second, a row of the log for each, for `--seconds`.
Processor time is measured in the calls alone, so other programs on the machine change the number of steps, and hardly
the time of one. The bar is a share of at most 1%.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from pathlib import Path

import machine
from aligntune.core.live import Progress, frame

STEP_SECONDS = 0.005
BAR = 0.01


class Terminal(io.StringIO):
    """A terminal that nobody looks at."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def row(step: int) -> dict[str, float]:
    """A row of the log of policy optimisation."""
    names = ("reward", "loss", "kl", "entropy", "grad_norm", "learning_rate", "completions/mean_length", "eval_reward")
    return {"step": step, "num_tokens": 100.0 * step, **dict.fromkeys(names, 1 / step), "rewards/a/mean": 0.5}


def measure(seconds: float) -> dict[str, float]:
    """The figures of one process."""
    progress = Progress("grpo on trl", Terminal(), folder="runs/a")
    calls, step, spent = [], 0, 0.0
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        step += 1
        at = time.process_time()
        progress.show(step, 100_000)
        progress.row(row(step))
        progress.sample(step, "What is 3 + 4?", "It is 7.", 1.0)
        calls.append(time.process_time() - at)
        spent += calls[-1]
        time.sleep(STEP_SECONDS)
    wall = time.monotonic() - began
    progress.close()
    drawings = []
    for _ in range(50):
        at = time.process_time()
        frame(progress.seen, Terminal())
        drawings.append(1e3 * (time.process_time() - at))
    return {
        "steps": step,
        "share_of_time": spent / wall,
        "step_without_drawing_us": 1e6 * statistics.median(calls),
        "drawing_ms": statistics.median(drawings),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {"machine": machine.describe(), "bar": BAR, **measure(options.seconds)}
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return int(found["share_of_time"] > BAR)


if __name__ == "__main__":
    raise SystemExit(main())
