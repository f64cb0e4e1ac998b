"""How fast rewards are: each built-in one that needs no model, mathematics, programs, and their share of a GRPO step.

    python benchmarks/rewards.py [--texts 1000] [--rounds 5] [--sections rewards math code grpo]
                                 [--out benchmarks/results/rewards.json]

* `rewards`: calls per second over the same texts, one by one (`compute`), as a batch, and as batches in one process for
  each processor; made-up texts of 30 to 250 words, or what the reward reads (programs, JSON, SQL).
* `math`: `math_equal` against Math-Verify called plainly in the same process (no worker, its own timeout off).
* `code`: one program with three asserts at levels `full` and `strong`, against a new interpreter for each program, bare
  and under bubblewrap (`bwrap`; left out where it is not installed). A new interpreter is given its cheapest start
  (`-I -S`). Ways alternate within a round, and the order turns by one each round. A ratio is taken inside a round.
* `grpo`: 40 steps of the quickstart's GRPO with three sets of rewards, and what share of the training time they take.

Reported: every round's value, medians, and the bars (at most 15 ms a program at `full`, 7 ms at `strong`; at least 1.3
and 2 times the rate under bubblewrap). They are meant for an idle machine: the load average is written down.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

import machine

HERE = Path(__file__).parent
BARS = {"full": {"ms": 15.0, "times_bwrap": 1.3}, "strong": {"ms": 7.0, "times_bwrap": 2.0}}
SENTENCE = (
    "the model adds two numbers and then says why it did so because a reader who wants to follow each step should see "
    "it first while seven people from a green city walked home after lunch with small red bicycles along the slow river"
)
WORDS = SENTENCE.split()
SOURCE = "the river is green and seven people walked home after lunch"
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "name": {"type": "string"}},
    "required": ["n", "name"],
}
DATABASE = "CREATE TABLE t(a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (3, 'x');"
TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}
Make = Callable[[int, random.Random], str]
Columns = Callable[[int], dict[str, Any]]


def prose(_: int, rng: random.Random) -> str:
    """Sentences of 8 words, 30 to 250 words in all."""
    said = [" ".join(rng.choices(WORDS, k=8)).capitalize() + "." for _ in range(rng.randint(4, 31))]
    return " ".join(said)


def solved(i: int, rng: random.Random) -> str:
    """A worked answer with two steps, half of them right."""
    wrong = i % 2
    return f"{prose(i, rng)} {i} + 5 = {i + 5}\n{i + 5} * 2 = {2 * i + 10}\n#### {2 * i + 10 + wrong}"


def python(i: int, _: random.Random) -> str:
    """A program, every fourth of them wrong."""
    body = f"    total = 0\n    for n in range(3):\n        total += x + {i}\n    return total + {int(i % 4 == 0)}\n"
    return f"It adds.\n```python\ndef f(x):\n{body}```"


def gold(i: int) -> dict[str, Any]:
    return {"reference": str(2 * i + 10), "original": "7", "prompt": "p"}


def same(i: int) -> dict[str, Any]:
    return {"reference": prose(i, random.Random(i)), "prompt": f"p{i // 4}"}


def asserts(i: int) -> dict[str, Any]:
    return {"test_list": [f"assert f({x}) == {3 * (x + i)}" for x in (1, 5, -3)], "prompt": "Write f."}


PLAIN: tuple[dict[str, Any], Make, Columns] = ({}, prose, same)
CASES: dict[str, tuple[dict[str, Any], Make, Columns]] = {
    **dict.fromkeys(("length", "brevity", "conciseness", "repetition", "compression_ratio", "readability"), PLAIN),
    **dict.fromkeys(("bleu", "chrf", "rouge", "meteor", "f1", "exact_match", "contains", "diversity"), PLAIN),
    **dict.fromkeys(("math_correctness", "math_reasoning", "counterfactual_math"), ({}, solved, gold)),
    **dict.fromkeys(("code_execution", "code_correctness", "mbpp_reward", "code_completeness"), ({}, python, asserts)),
    **dict.fromkeys(("code_syntax", "code_quality"), ({}, python, asserts)),
    "soft_overlong": ({"max_length": 300, "cache": 100}, prose, lambda i: {"completion_ids": list(range(i % 400))}),
    "cosine_length": ({"max_length": 300, "unit": "words"}, solved, gold),
    "answer_format": ({"style": "hash"}, solved, gold),
    "think_format": ({}, lambda i, r: f"<think>{prose(i, r)}</think>\n<answer>{i}</answer>", same),
    "xml_tags": ({}, lambda i, r: f"<think>{prose(i, r)}</think>\n<answer>{i}</answer>", same),
    "choice": (
        {}, lambda i, r: f"{prose(i, r)}\nThe answer is (B).", lambda i: {"reference": "B", "choices": ["a", "b", "c"]}
    ),
    "ifeval": (
        {}, prose,
        lambda i: {
            "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
            "kwargs": [{}, {"keywords": ["river"]}],
        },
    ),
    "language": ({"language": "en"}, prose, same),
    "citation_check": (
        {}, lambda i, r: f"{prose(i, r)} [1] \"{SOURCE}\" [2]", lambda i: {"sources": ["a text", SOURCE]}
    ),
    "json_schema": ({"schema": SCHEMA}, lambda i, r: json.dumps({"n": i, "name": prose(i, r)}), same),
    "tool_call": (
        {}, lambda i, r: json.dumps({"name": "add", "arguments": {"n": i}}),
        lambda i: {"reference": [{"name": "add", "arguments": {"n": i}}], "tools": [TOOL]},
    ),
    "sql_result": (
        {}, lambda i, r: f"SELECT b, count(*) FROM t WHERE a > {i % 3} GROUP BY b",
        lambda i: {"reference": f"SELECT b, count(*) FROM t WHERE a > {i % 3} GROUP BY b", "database": DATABASE},
    ),
    "regex": ({"pattern": "riv[a-z]+"}, prose, same),
    "sentiment": ({"backend": "lexical"}, prose, same),
    "stdio_tests": (
        {}, lambda i, r: f"```python\nn = int(input())\nprint(n + {i})\n```",
        lambda i: {"cases": [["1", str(1 + i)], ["5", str(5 + i)]]},
    ),
}  # fmt: skip


def rates(name: str, count: int, rounds: int) -> dict[str, Any]:
    """Calls per second of one reward, in three ways."""
    from aligntune.errors import AlignTuneError
    from aligntune.rewards import get_reward_function

    params, make, columns = CASES[name]
    rng = random.Random(0)
    texts = [make(i, rng) for i in range(count)]
    rows = [columns(i) for i in range(count)]
    listed = {key: [row[key] for row in rows] for key in rows[0]}
    try:
        reward = get_reward_function(name, **params)
        reward.batch(texts[:4], {key: values[:4] for key, values in listed.items()})  # starts what it starts
    except AlignTuneError as missing:
        return {"left_out": str(missing).splitlines()[0]}
    found: dict[str, list[float]] = {"single": [], "batch": [], "parallel": []}
    some = min(count, 200) if name.startswith(("code", "stdio", "mbpp")) else count
    workers = machine_cores()
    with ProcessPoolExecutor(workers, get_context("spawn"), _own_reward, (name, params)) as pool:
        list(pool.map(_score, [([t], {k: v[:1] for k, v in listed.items()}) for t in texts[:1] * workers * 2]))
        parts = _parts(texts, listed, workers * 4)
        for _ in range(rounds):
            start = time.perf_counter()
            for i in range(some):
                reward.score(texts[i], i, rows[i])
            found["single"].append(some / (time.perf_counter() - start))
            start = time.perf_counter()
            reward.batch(texts, listed)
            found["batch"].append(count / (time.perf_counter() - start))
            start = time.perf_counter()
            list(pool.map(_score, parts))
            found["parallel"].append(count / (time.perf_counter() - start))
    return {way: {"median": statistics.median(all_of), "rounds": all_of} for way, all_of in found.items()}


def machine_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parts(texts: list[str], columns: dict[str, list[Any]], count: int) -> list[tuple[list[str], dict[str, list[Any]]]]:
    size = max(len(texts) // count // 4 * 4, 4)  # groups of four stay together
    return [(texts[i : i + size], {k: v[i : i + size] for k, v in columns.items()}) for i in range(0, len(texts), size)]


_reward: Any = None


def _own_reward(name: str, params: dict[str, Any]) -> None:
    global _reward
    from aligntune.rewards import get_reward_function

    _reward = get_reward_function(name, **params)


def _score(part: tuple[list[str], dict[str, list[Any]]]) -> int:
    return len(_reward.batch(*part))


def measure_rewards(count: int, rounds: int) -> dict[str, Any]:
    """Every reward that needs no model; what is not measured is named."""
    from aligntune.rewards import list_rewards

    found: dict[str, Any] = {}
    for name in CASES:
        found[name] = rates(name, count, rounds)
        shown = {way: round(row["median"]) for way, row in found[name].items() if isinstance(row, dict)}
        print(f"{name:20} {shown or found[name]}", flush=True)
    rest = sorted({str(name) for name in list_rewards()} - set(CASES))
    return {"texts": count, "calls_per_second": found, "not_measured": rest}


def pairs(kind: str, count: int) -> list[tuple[str, str]]:
    """Gold answers and answers: numbers as in GSM8K, or expressions; half of them right."""
    rng = random.Random(0)
    made = []
    for i in range(count):
        n, m, off = rng.randint(2, 5000), rng.randint(2, 30), i % 2
        if kind == "numbers":
            made.append((str(n), rng.choice(["{:,}", "${}.00", "{} apples", "{}"]).format(n + off)))
        else:
            form = i % 3
            made.append([
                (rf"\frac{{{n}}}{{{m}}}", rf"\frac{{{2 * n}}}{{{2 * m + off}}}"),
                (rf"{m}\sqrt{{{n}}}", rf"\sqrt{{{n * m * m + off}}}"),
                (f"x^2-{m * m}", f"(x-{m})(x+{m + off})"),
            ][form])  # fmt: skip
    return made


def measure_math(count: int, rounds: int) -> dict[str, Any]:
    """Comparisons per second: ours, and Math-Verify plainly."""
    from math_verify import parse, verify

    from aligntune.grading.math import math_equal

    def plainly(right: str, given: str) -> bool:
        left = parse("\\boxed{" + right + "}", parsing_timeout=None)
        return bool(verify(left, parse("\\boxed{" + given + "}", parsing_timeout=None), timeout_seconds=None))

    math_equal("x+1", "1+x")
    found: dict[str, Any] = {}
    for kind in ("numbers", "expressions"):
        rows, times = pairs(kind, count), {"aligntune": [], "math_verify": []}
        ways: dict[str, Callable[[str, str], Any]] = {"aligntune": math_equal, "math_verify": plainly}
        verdicts: dict[str, list[bool]] = {}
        for number in range(rounds):
            for name in list(ways)[:: 1 if number % 2 else -1]:
                start = time.perf_counter()
                verdicts[name] = [bool(ways[name](*row)) for row in rows]
                times[name].append(count / (time.perf_counter() - start))
        differ = [row for row, a, b in zip(rows, *verdicts.values(), strict=True) if a != b]
        found[kind] = {
            "pairs_per_second": {name: {"median": statistics.median(t), "rounds": t} for name, t in times.items()},
            "median_ratio": statistics.median(a / b for a, b in zip(*times.values(), strict=True)),
            "verdicts_that_differ": differ[:10],
        }
        print(f"math, {kind}: x{found[kind]['median_ratio']:.2f}, {len(differ)} verdicts differ", flush=True)
    return found


PROGRAM = "def f(x):\n    return 3 * x + 1\n"
ASSERTS = ["assert f(1) == 4", "assert f(7) == 22", "assert f(-2) == -5"]


def bubblewrap(python: str) -> list[str] | None:
    """A bubblewrap command with its own namespaces and a read-only system; None where it is not installed or denied."""
    if shutil.which("bwrap") is None:
        return None
    seen = {sys.base_prefix, "/usr", "/lib", "/lib64"}
    binds = [word for path in sorted(seen) if os.path.exists(path) for word in ("--ro-bind", path, path)]
    command = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        *binds,
        "--proc",
        "/proc",
        "--dev",
        "/dev",
    ]
    command += ["--tmpfs", "/tmp", python]
    tried = subprocess.run([*command, "-I", "-S", "-c", "pass"], capture_output=True, check=False)
    return command if tried.returncode == 0 else None


def measure_code(count: int, rounds: int) -> dict[str, Any]:
    """Milliseconds for a program with three asserts, in each way."""
    from aligntune.grading.sandbox import SafeCodeExecutor, SandboxUnavailable

    python = os.path.realpath(sys.executable)
    plain = PROGRAM + "\n".join(ASSERTS)
    environment = {"LC_ALL": "C.UTF-8"}
    wrap = bubblewrap(python)

    def process(command: list[str]) -> Callable[[], bool]:
        return lambda: subprocess.run([*command, "-c", plain], env=environment, check=False).returncode == 0

    with contextlib.ExitStack() as stack:
        ways: dict[str, Callable[[], bool]] = {}
        boxes: dict[str, SafeCodeExecutor] = {}
        for level in ("strong", "full"):
            box = stack.enter_context(SafeCodeExecutor(level=level, require=level, timeout=60))
            try:
                _ = box.level
            except SandboxUnavailable as missing:
                print(missing)
                continue
            boxes[level] = box
            ways[level] = lambda box=box: box.run_tests(PROGRAM, ASSERTS).verdict == "passed"
        ways["interpreter"] = process([python, "-I", "-S"])
        if wrap:
            ways["bwrap"] = process([*wrap, "-I", "-S"])
            ways["bwrap, site packages read"] = process([*wrap, "-I"])
        times: dict[str, list[float]] = {name: [] for name in ways}
        best: dict[str, float] = dict.fromkeys(ways, 1e9)
        for number in range(rounds):
            names = list(ways)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                each = []
                for _ in range(count):
                    start = time.perf_counter()
                    if not ways[name]():
                        raise SystemExit(f"{name}: a right program did not pass")
                    each.append(1000 * (time.perf_counter() - start))
                times[name].append(statistics.median(each))
                best[name] = min(best[name], *each)
        many = {}
        for level, box in boxes.items():
            jobs = [{"program": PROGRAM, "tests": ASSERTS}] * (count * 4)
            start = time.perf_counter()
            box.run_many(jobs)
            many[level] = len(jobs) / (time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    bars: dict[str, Any] = {}
    for level in boxes:
        bars[level] = {"ms": medians[level], "ms_bar": BARS[level]["ms"], "ms_met": medians[level] <= BARS[level]["ms"]}
        if wrap:
            ratio = statistics.median(b / a for a, b in zip(times[level], times["bwrap"], strict=True))
            met = ratio >= BARS[level]["times_bwrap"]
            bars[level] |= {"times_bwrap": ratio, "times_bar": BARS[level]["times_bwrap"], "times_met": met}
    print("code, ms a program:", {name: round(ms, 2) for name, ms in medians.items()}, bars, flush=True)
    return {
        "programs_a_round": count, "median_ms": medians, "fastest_ms": best, "rounds_ms": times, "bars": bars,
        "side_by_side_programs_per_second": many, "workers": machine_cores(), "bwrap": bool(wrap),
    }  # fmt: skip


SETS: dict[str, list[dict[str, Any]]] = {
    "answer": [{"type": "math_correctness"}],
    "answer, form and length": [
        {"type": "math_correctness"}, {"type": "answer_format", "weight": 0.2, "params": {"style": "hash"}},
        {"type": "repetition", "weight": 0.1}, {"type": "brevity", "weight": 0.1},
    ],
    "program": [{"type": "code_execution"}],
}  # fmt: skip


def measure_grpo(steps: int) -> dict[str, Any]:
    """The share of GRPO's training time that the rewards take, in a process for each set."""
    found: dict[str, Any] = {}
    for name, rewards in SETS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                __file__,
                "--grpo-child",
                json.dumps({"rewards": rewards, "steps": steps}),
                "--out",
                folder,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"GRPO with {name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            found[name] = json.loads((Path(folder) / "share.json").read_text())
        print(f"grpo, {name}: rewards take {found[name]['share']:.1%} of the training time", flush=True)
    return found


def grpo_child(job: dict[str, Any], folder: Path) -> None:
    """One GRPO run of the quickstart's base model, with a clock around the reward."""
    from aligntune.core.backend_factory import create_trainer
    from aligntune.core.config import load_config
    from aligntune.quickstart import BASE_MODEL
    from aligntune.quickstart.problems import write_datasets
    from aligntune.rewards.adapters import TRLReward

    rows = [json.loads(line) for line in write_datasets(folder, seed=0)["rl"].read_text().splitlines()]
    data = folder / "rl.jsonl"
    tests = {"test_list": ["assert f(1) == 4"]}
    data.write_text("".join(json.dumps(row | tests) + "\n" for row in rows))
    spent: list[float] = []
    call = TRLReward.__call__

    def clocked(self: Any, *arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(self, *arguments, **named)
        finally:
            spent.append(time.perf_counter() - start)

    TRLReward.__call__ = clocked  # type: ignore[method-assign]
    raw = {
        "algo": {"name": "grpo", "num_generations": 8},
        "model": {"name_or_path": str(BASE_MODEL), "max_seq_length": 128},
        "datasets": [{"name": str(data)}],
        "train": {"learning_rate": 1e-5, "per_device_batch_size": 64, "max_steps": job["steps"], "seed": 0},
        "generation": {"max_prompt_length": 64, "max_completion_length": 24},
        "rewards": job["rewards"],
        "output_dir": str(folder / "run"),
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(raw))
    with contextlib.redirect_stdout(io.StringIO()):
        create_trainer(load_config(raw)).train()
    total = json.loads((folder / "run" / "manifest.json").read_text())["summary"]["training_time"]
    result = {
        "share": sum(spent) / total,
        "seconds_a_step": total / job["steps"],
        "reward_ms_a_step": 1000 * statistics.median(spent),
        "first_call_ms": 1000 * spent[0],
        "texts_a_step": 64,
    }
    (folder / "share.json").write_text(json.dumps(result))


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--programs", type=int, default=40, help="programs in a round, each way")
    parser.add_argument("--steps", type=int, default=40, help="GRPO steps")
    names = ["rewards", "math", "code", "grpo"]
    parser.add_argument("--sections", nargs="+", default=names, choices=names)
    parser.add_argument("--grpo-child", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "rewards.json")
    options = parser.parse_args()
    if options.grpo_child:
        grpo_child(options.grpo_child, options.out)
        return
    report: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    report |= {"machine": machine.describe(), "threads": os.environ.get("OMP_NUM_THREADS", "default")}
    for section in options.sections:
        load = os.getloadavg()[0]
        if section == "rewards":
            result = measure_rewards(options.texts, options.rounds)
        elif section == "math":
            result = measure_math(options.texts, options.rounds)
        elif section == "code":
            result = measure_code(options.programs, 2 * options.rounds)
        else:
            result = measure_grpo(options.steps)
        report[section] = {"load_average_before": load, **result}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
