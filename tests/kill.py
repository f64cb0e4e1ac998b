"""Runs that are killed with SIGKILL at a chosen moment, resumed, and compared bit for bit with the run never killed.

    python tests/kill.py sft grpo --kills 20 --seed 1        # prints one JSON document

The libraries are imported once, and every run is a forked child that calls the command line (`aligntune train FILE
[--resume]`). A moment is the n-th file event (open for writing, rename, remove, mkdir) inside the run's folder, drawn
from those that the straight run made, so that kills fall inside checkpoint writing too; or a time after the start. A
child that is killed leaves what a killed process leaves: nothing of Python runs any more.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

TIMED = ("time", "runtime", "per_second", "memory", "seconds", "tokens_per")
"""Parts of metric names that tell of time, throughput and memory."""
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {"train__gradient_accumulation_steps": 2, "logging__steps": 3}),
    "dpo": ("dpo", {"logging__steps": 3}),
    "grpo": ("grpo", {"datasets__0__max_samples": 5}),
    "ppo": ("grpo", {"algo": {"name": "ppo", "num_ppo_epochs": 1}}),
    "pace": ("grpo", {"algo": {"name": "pace", "refresh": 2}, "rewards__0__threshold": 0.02}),
    "dapo": ("grpo", {"algo": {"name": "dapo", "num_generations": 4, "mask_truncated_completions": False}}),
    "sft-best": ("sft", {"train__keep_best": "model"}),
    "sft-lora": ("sft", {"model__peft": {"r": 4}, "logging__steps": 3}),
    "dpo-lora": ("dpo", {"model__peft": {"r": 4}}),
    "grpo-lora": ("grpo", {"model__peft": {"r": 4}}),
}
"""Name of a case to the kind of `runs.plain` and its changes."""
STEPS, EVERY = 8, 2


@dataclass
class Outcome:
    """What was found about one case."""

    name: str
    kills: int = 0
    killed: int = 0
    inside_saving: int = 0
    before_first: int = 0
    resumes: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def in_child(work: Callable[[], int], *, log: Path) -> int:
    """Run `work` in a forked child; its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            code = work()
        except BaseException:  # the child must never come back into the parent's code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def train(file: Path, *extra: str) -> int:
    """The command line, in this process."""
    from aligntune.cli.main import main

    return main(["train", str(file), "--no-check", *extra])


def watched(folder: Path, act: Callable[[int, str], None]) -> None:
    """Call `act(number, path)` at every file event inside `folder`, for the rest of this process."""
    count, prefix = 0, str(folder)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in EVENTS or not given or not isinstance(given[0], (str, bytes, os.PathLike)):
            return
        path = os.fsdecode(given[0])
        if not path.startswith(prefix):
            return
        if event == "open":
            mode, flags = (*given[1:], None, 0)[:2]
            if not (isinstance(mode, str) and set(mode) & set("wax+")) and not (flags or 0) & (os.O_WRONLY | os.O_RDWR):
                return
        count += 1
        act(count, path)

    sys.addaudithook(hook)


def counted(file: Path, folder: Path, events: Path) -> int:
    """The straight run, which writes down the path of each file event."""
    seen: list[str] = []
    watched(folder, lambda number, path: seen.append(path))
    code = train(file)
    events.write_text(json.dumps(seen), encoding="utf-8")
    return code


def killed_at(file: Path, folder: Path, number: int, *extra: str) -> int:
    """A run that is killed at its `number`-th file event."""

    def act(count: int, path: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    watched(folder, act)
    return train(file, *extra)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` without time, throughput and memory."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not any(part in k for part in TIMED)} for row in rows]


def differences(straight: Path, other: Path) -> list[str]:
    """What of a finished run is not equal, bit for bit: metrics, model, and everything in the last checkpoint."""
    import torch
    from safetensors.torch import load_file

    found = []
    if metrics(straight) != metrics(other):
        pairs = list(zip(metrics(straight), metrics(other), strict=False))
        first = next(((a, b) for a, b in pairs if a != b), (len(metrics(straight)), len(metrics(other))))
        found.append(f"metrics: {first}"[:600])
    last = f"checkpoint-{STEPS}"
    for part in ("", last):
        a, b = straight / part, other / part
        names = {f.relative_to(a).as_posix() for f in a.rglob("*.safetensors") if part or "checkpoint-" not in str(f)}
        for name in sorted(names):
            left, right = load_file(a / name), load_file(b / name)
            if left.keys() != right.keys() or not all(torch.equal(left[k], right[k]) for k in left):
                found.append(f"{part}/{name}")
    for name in sorted(f.name for f in (straight / last).glob("*.pt*")):
        if not same(*(torch.load(f / last / name, weights_only=False) for f in (straight, other))):
            found.append(name)
    for pattern in ("window-*.json", "aligntune_state.json"):
        for file in (straight / last).glob(pattern):
            a, b = (timeless(json.loads((f / last / file.name).read_text())) for f in (straight, other))
            if a != b:
                found.append(file.name)
    from aligntune.utils.rollouts import read_rollouts

    if not same(*(read_rollouts(f).to_pylist() for f in (straight, other))):
        found.append("rollouts")
    ends = [json.loads((f / "manifest.json").read_text())["summary"]["final_loss"] for f in (straight, other)]
    if ends[0] != ends[1]:
        found.append(f"final_loss {ends}")
    return found


def timeless(state: dict[str, Any]) -> dict[str, Any]:
    """A window or plugin state without its measures of time."""
    if "metrics" not in state:
        return state
    kept = {k: v for k, v in state["metrics"].items() if not any(part in k for part in TIMED)}
    return {**state, "metrics": kept}


def same(a: Any, b: Any) -> bool:
    """Equality of nested values with tensors and arrays."""
    import numpy as np
    import torch

    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def whole(folder: Path) -> set[int]:
    """Steps of the whole checkpoints of a run."""
    from aligntune.utils.checkpoints import fault, step_of

    return {step_of(p) or 0 for p in folder.glob("checkpoint-*") if fault(p) is None}


def prove(name: str, model: Path, work: Path, *, kills: int, seed: int, saving: bool = True) -> Outcome:
    """Kill one case `kills` times, each in a run of its own, resume each, and compare.

    Args:
        name: a key of `KINDS`.
        model: the model folder.
        work: an empty folder.
        kills: runs to kill.
        seed: of the moments.
        saving: whether every second kill falls inside checkpoint writing.
    """
    import yaml

    import runs

    kind, changes = KINDS[name]
    started, outcome, draw = time.monotonic(), Outcome(name, kills), random.Random(f"{seed}:{name}")

    def config(folder: Path) -> tuple[Path, Path]:
        folder.mkdir(parents=True)
        raw = runs.plain(kind, model, work, train__max_steps=STEPS, train__save_steps=EVERY, **changes)
        raw |= {"output_dir": str(folder / "out")}
        if name.endswith("-best"):
            raw["evaluation"] = {"dataset": {**raw["dataset"], "max_samples": 6}, "every": 3}
        file = folder / "run.yaml"
        file.write_text(yaml.safe_dump(raw), encoding="utf-8")
        return file, folder / "out"

    file, straight = config(work / "straight")
    events = work / "events.json"
    code = in_child(lambda: counted(file, straight, events), log=work / "straight.log")
    if code:
        outcome.faults.append(f"the straight run ended with {code}: {(work / 'straight.log').read_text()[-800:]}")
        return outcome
    seen = json.loads(events.read_text())
    inside = [i for i, path in enumerate(seen, 1) if ".saving/" in path]
    for i in range(kills):
        file, folder = config(work / f"kill-{i}")
        number = draw.choice(inside) if saving and i % 2 == 0 else draw.randint(1, len(seen))
        log = work / f"kill-{i}.log"
        code = in_child(lambda: killed_at(file, folder, number), log=log)  # noqa: B023  the child runs at once
        outcome.killed += code == -signal.SIGKILL
        outcome.inside_saving += code == -signal.SIGKILL and ".saving/" in seen[number - 1]
        before = whole(folder)
        outcome.before_first += not before
        manifest = folder / "manifest.json"
        status = json.loads(manifest.read_text())["status"] if manifest.exists() else "missing"
        if status == "finished":  # killed while it drew its report
            code = 0
        else:
            extra = [] if status == "missing" else ["--resume"]
            code = in_child(lambda: train(file, *extra), log=log)  # noqa: B023
            outcome.resumes += 1
        lost = before - whole(folder)
        found = [f"resume ended with {code}: {log.read_text()[-1500:]}"] if code else differences(straight, folder)
        found += [f"checkpoints {sorted(lost)} are gone"] if lost else []
        outcome.faults += [f"kill {i} at event {number} ({seen[number - 1]}): {fault}" for fault in found]
        if not found:
            shutil.rmtree(work / f"kill-{i}")
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def differences_of_two(kind: str, model: Path, work: Path) -> list[str]:
    """The same over two processes (DDP on the CPU): both are killed after their fourth step, and started again."""
    import socket
    import subprocess

    import yaml

    import runs

    def start(file: Path, *extra: str) -> list[subprocess.Popen[bytes]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, "-m", "aligntune", "train", str(file), "--no-check", *extra]
        logs = [open(file.with_suffix(f".{rank}.log"), "ab") for rank in range(2)]  # noqa: SIM115
        return [
            subprocess.Popen(
                command, env={**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)}, stdout=log, stderr=log
            )
            for r, log in enumerate(logs)
        ]

    folders = []
    for name in ("straight", "killed"):
        folder = work / name
        folder.mkdir()
        raw = runs.plain(kind, model, work, train__max_steps=STEPS, train__save_steps=EVERY, logging__steps=3)
        (folder / "run.yaml").write_text(yaml.safe_dump({**raw, "output_dir": str(folder / "out")}))
        folders.append(folder)
    straight, killed = folders
    codes = [p.wait() for p in start(straight / "run.yaml")]
    processes = start(killed / "run.yaml")
    while not list((killed / "out").glob("checkpoint-4")) and all(p.poll() is None for p in processes):
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.wait()
    codes += [p.wait() for p in start(killed / "run.yaml", "--resume")]
    if any(codes):
        logs = [f.read_text()[-1500:] for f in sorted(work.rglob("*.log"))]
        return [f"exit codes {codes}", *logs]
    return differences(straight / "out", killed / "out")


def warm() -> None:
    """Import what the runs need, so that a child has it at once; no tensor is computed before a fork."""
    import datasets
    import peft
    import torch
    import trl
    from trl import DPOTrainer, GRPOTrainer, SFTTrainer

    import aligntune.core.backend_factory
    import aligntune.report

    torch.set_num_threads(1)
    assert all((datasets, peft, trl, DPOTrainer, GRPOTrainer, SFTTrainer, aligntune.report))


def main() -> int:
    """See this module."""
    import tempfile

    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(KINDS))
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    warm()
    work = given.work or Path(tempfile.mkdtemp(prefix="aligntune-kill-"))
    found = []
    for name in given.names:
        (work / name).mkdir(parents=True)
        outcome = prove(name, given.model.absolute(), work / name, kills=given.kills, seed=given.seed)
        found.append(vars(outcome))
        print(f"{name}: {outcome.killed} killed, {len(outcome.faults)} faults, {outcome.seconds} s", file=sys.stderr)
    print(json.dumps(found, indent=1))
    return int(any(o["faults"] for o in found))


if __name__ == "__main__":
    sys.exit(main())
