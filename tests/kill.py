"""Runs that are killed with SIGKILL at a chosen moment, resumed, and compared bit for bit with the run never killed.

    python tests/kill.py sft grpo --kills 20 --seed 1        # prints one JSON document
    python tests/kill.py two:dpo --kills 4                   # two processes, killed after a random checkpoint
    python tests/kill.py full:sft denied:grpo --kills 10     # the disk is full, or denied, from a random write on

The libraries are imported once, and every run is a forked child that calls the command line (`aligntune train FILE
[--resume]`, or that of another case). A moment is the n-th file event (open for writing, rename, remove, mkdir) inside
the run's folder, drawn from those that the straight run made, so that kills fall inside checkpoint writing too; where
the work is done in further processes, every second moment is a time after the start. A child that is killed leaves
what a killed process leaves: nothing of Python runs any more.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

TIMED = ("time", "runtime", "per_second", "memory", "seconds", "tokens_per")
"""Parts of metric names that tell of time, throughput and memory."""
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
HELD = {"evaluation__every": 3, "evaluation__at_start": True, "evaluation__max_new_tokens": 4}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {"train__gradient_accumulation_steps": 2, "logging__steps": 3}),
    "dpo": ("dpo", {"logging__steps": 3}),
    "grpo": ("grpo", {"datasets__0__max_samples": 5}),
    "ppo": ("grpo", {"algo": {"name": "ppo", "num_ppo_epochs": 1}}),
    "pace": ("grpo", {"algo": {"name": "pace", "refresh": 2}, "rewards__0__threshold": 0.02}),
    "dapo": ("grpo", {"algo": {"name": "dapo", "num_generations": 4, "mask_truncated_completions": False}}),
    "sft-best": ("sft", {"train__keep_best": "model", **HELD}),
    "sft-rotation": ("sft", {"train__keep_best": "checkpoint", "train__save_total_limit": 1, **HELD}),
    "sft-lora": ("sft", {"model__peft": {"r": 4}, "logging__steps": 3}),
    "dpo-lora": ("dpo", {"model__peft": {"r": 4}}),
    "grpo-lora": ("grpo", {"model__peft": {"r": 4}}),
    "spin": ("spin", {"algo": {"name": "spin", "rounds": 2}, "generation__max_completion_length": 8}),
    "meta-es": ("meta_es", {}),
    "rewards-train": ("reward_model", {}),
    "eval": ("eval", {}),
    "compare": ("compare", {}),
}
"""Name of a case to the kind of its configuration and the changes of it."""
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "reward_model": (["rewards", "train"], ["--resume", "latest"]),
    "eval": (["eval"], ["--resume"]),
    "compare": (["compare"], ["--resume"]),
}
"""Commands of the kinds that are no plain `aligntune train FILE --no-check`, and what makes them go on."""
WITH_CHILDREN = ("meta_es", "compare")
"""Kinds whose work is done in further processes, so that a moment may be a time too."""
ERRORS = {"full": errno.ENOSPC, "denied": errno.EACCES}
MESSAGES = {"full": "no space left", "denied": "no permission"}
SEARCH = {"iterations": 1, "population": 2, "steps": 2, "num_generations": 4, "divergence_weight": 10.0}
STEPS, EVERY = 8, 2
COMMITTED = re.compile(r"^os\.rename .*/\.saving/checkpoint-\d+$")
"""The event that puts a checkpoint in its place."""
STORED = (".safetensors", ".json", ".pt", ".pth")
"""Suffixes of files of a checkpoint that are compared."""


@dataclass
class Outcome:
    """What was found about one case."""

    name: str
    kills: int = 0
    killed: int = 0
    inside_saving: int = 0
    before_first: int = 0
    resumes: int = 0
    witness: dict[str, float] = field(default_factory=dict)
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


def command_of(kind: str, file: Path, *, resume: bool) -> list[str]:
    """The arguments of `aligntune` for a case's file."""
    words, going_on = COMMANDS.get(kind, (["train"], ["--resume"]))
    given = [str(file)] if kind in COMMANDS else [str(file), "--no-check"]
    if kind == "compare":
        axis = ["train.weight_decay=[0.0,0.1]", "--seeds", "3,", "--output-dir", str(file.parent / "out")]
        given += axis
    return [*words, *given, *(going_on if resume else [])]


def call(kind: str, file: Path, *, resume: bool = False) -> int:
    """The command line, in this process."""
    from aligntune.cli.main import main

    return main(command_of(kind, file, resume=resume))


def watched(folder: Path, act: Callable[[int, str], None]) -> None:
    """Call `act(number, event and path)` at every file event inside `folder`, for the rest of this process."""
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
        act(count, f"{event} {path}")

    sys.addaudithook(hook)


def counted(kind: str, file: Path, folder: Path, events: Path) -> int:
    """The straight run, which writes down each file event."""
    seen: list[str] = []
    watched(folder, lambda number, what: seen.append(what))
    code = call(kind, file)
    events.write_text(json.dumps(seen), encoding="utf-8")
    return code


def killed_at(kind: str, file: Path, folder: Path, moment: int | float) -> int:
    """A run that is killed at its `moment`-th file event, or so many seconds after its start."""

    def end() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if isinstance(moment, float):
        import threading

        timer = threading.Timer(moment, end)
        timer.daemon = True
        timer.start()
    else:
        watched(folder, lambda count, what: end() if count == moment else None)
    return call(kind, file)


def lines(file: Path) -> list[dict[str, Any]]:
    """Lines of a file without time, throughput and memory."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{k: v for k, v in row.items() if not any(part in k for part in TIMED)} for row in rows]


def differences(straight: Path, other: Path) -> list[str]:
    """What of a finished run is not equal, bit for bit: its lines, its model, and everything in every checkpoint."""
    found = []
    for name in ("metrics.jsonl", "evaluations.jsonl", "samples.jsonl", "order.jsonl", "population.jsonl"):
        a, b = lines(straight / name), lines(other / name)
        if a != b:
            first = next((pair for pair in zip(a, b, strict=False) if pair[0] != pair[1]), (len(a), len(b)))
            found.append(f"{name}: {first}"[:600])
    folders = [sorted(p.relative_to(f).as_posix() for p in states(f)) for f in (straight, other)]
    if folders[0] != folders[1]:
        found.append(f"checkpoints {folders}")
    for part in ("", *(name for name in folders[0] if name in folders[1])):
        found += [f"{part}/{what}" for what in differences_of_states(straight / part, other / part)]
    from aligntune.utils.rollouts import read_rollouts

    # Sorted, because the parts of several processes are numbered in the order in which they come to write.
    if not same(*(sorted(read_rollouts(f).to_pylist(), key=str) for f in (straight, other))):
        found.append("rollouts")
    ends = [json.loads((f / "manifest.json").read_text()) for f in (straight, other)]
    summaries = [timeless({"metrics": e["summary"]["metrics"]}) for e in ends]
    if summaries[0] != summaries[1]:
        found.append(f"summary {summaries}"[:600])
    for key in ("final_loss", "total_steps"):
        if ends[0]["summary"][key] != ends[1]["summary"][key]:
            found.append(f"{key} {[e['summary'][key] for e in ends]}")
    best = [{k: v for k, v in (e.get("best") or {}).items() if k not in ("checkpoint", "model")} for e in ends]
    if best[0] != best[1]:
        found.append(f"best {best}")
    return found


def states(folder: Path) -> list[Path]:
    """Every folder of a run that holds a checkpoint, or a round's model."""
    return [p for kind in ("checkpoint-*", "round-*", "round-*/checkpoint-*") for p in folder.glob(kind) if p.is_dir()]


def differences_of_states(a: Path, b: Path) -> list[str]:
    """Files of one checkpoint, or of a run's own folder, that do not hold the same."""
    import torch
    from safetensors.torch import load_file

    found = []
    names = [{f.name for f in folder.iterdir() if f.is_file() and f.suffix in STORED} for folder in (a, b)]
    if names[0] != names[1]:
        return [f"files {sorted(names[0] ^ names[1])}"]
    for name in sorted(names[0]):
        if name.endswith(".safetensors"):
            equal = same(load_file(a / name), load_file(b / name))
        elif name.startswith("window-") or name in ("aligntune_state.json", "lines.json"):
            equal = timeless(json.loads((a / name).read_text())) == timeless(json.loads((b / name).read_text()))
        elif name.endswith(".json"):
            continue  # written for people, or with times
        else:
            equal = same(*(torch.load(f / name, weights_only=False) for f in (a, b)))
        if not equal:
            found.append(name)
    return found


def differences_of_evaluations(straight: Path, other: Path) -> list[str]:
    """What of two finished evaluations is not equal: values, intervals, and every item's bytes."""
    found = []
    values = [json.loads((f / "results.json").read_text())["tasks"] for f in (straight, other)]
    for tasks in values:
        for task in tasks.values():
            task.pop("seconds")
    if values[0] != values[1]:
        found.append(f"results.json {values}"[:600])
    items = [{p.name: p.read_bytes() for p in sorted((f / "items").glob("*.jsonl"))} for f in (straight, other)]
    if items[0] != items[1]:
        found.append("items")
    return found


def differences_of_comparisons(straight: Path, other: Path) -> list[str]:
    """What of two finished comparisons is not equal: every run of theirs, and every value that is no time or memory."""
    runs = [sorted(p.parent.relative_to(f) for p in f.rglob("manifest.json")) for f in (straight, other)]
    found = [] if runs[0] == runs[1] and len(runs[0]) == 2 else [f"runs {runs}"]
    for run in runs[0]:
        found += [f"{run}: {what}" for what in differences(straight / run, other / run)]
    results = [json.loads((f / "comparison.json").read_text()) for f in (straight, other)]
    measured = [
        {(r["arm"], r["seed"]): [r["status"], timeless({"metrics": r["values"]})] for r in result["runs"]}
        for result in results
    ]
    return found if measured[0] == measured[1] else [*found, f"comparison.json {measured}"[:900]]


FINDERS = {"eval": differences_of_evaluations, "compare": differences_of_comparisons}


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


def whole(folder: Path) -> set[str]:
    """The whole checkpoints of a run."""
    from aligntune.utils.checkpoints import CheckpointManager, fault

    found = [p for p in CheckpointManager(folder).candidates() if p.parent.name != ".saving" and fault(p) is None]
    return {p.relative_to(folder).as_posix() for p in found}


def raw_config(name: str, model: Path, data: Path, out: Path) -> dict[str, Any]:
    """Plain values of a case."""
    import runs

    kind, changes = KINDS[name]
    held = str(runs.write_rows(data / "held.jsonl", runs.SFT_ROWS[:6]))
    common = {"train__max_steps": STEPS, "train__save_steps": EVERY, "output_dir": str(out)}
    if kind == "eval":
        rows = runs.write_rows(data / "rows.jsonl", [{"prompt": f"{i}+1=?", "answer": str(i + 1)} for i in range(300)])
        task = {"dataset": str(rows), "max_new_tokens": 3, "temperature": 1.0, "batch_size": 1}
        tasks = [{"name": "one", "kind": "exact_match", **task}, {"name": "two", "kind": "exact_match", **task}]
        return {"model": {"name_or_path": str(model)}, "tasks": tasks, "output_dir": str(out)}
    if kind == "reward_model":
        from unit.test_reward_training import raw

        return raw(data, model, **common)
    if kind == "meta_es":
        evaluation = {"dataset": {"name": held}, "max_new_tokens": 8, "temperature": 1.0}
        return runs.plain(
            "grpo", model, data, algo={"name": "meta_es", **SEARCH}, evaluation=evaluation, **{**common, **changes},
            train__learning_rate=1e-2,
        )  # fmt: skip
    made = runs.plain("sft" if kind == "compare" else kind, model, data, **{**common, **changes})
    if kind == "compare":
        made.pop("output_dir")
    if made.get("evaluation"):
        made["evaluation"]["dataset"] = {"name": held}
    return made


def written(name: str, model: Path, work: Path, folder: Path) -> tuple[Path, Path]:
    """The file of a run of a case, and the folder that it will make."""
    import yaml

    folder.mkdir(parents=True)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(raw_config(name, model, work, folder / "out")), encoding="utf-8")
    return file, folder / "out"


def prove(name: str, model: Path, work: Path, *, kills: int, seed: int, saving: bool = True) -> Outcome:
    """Kill one case `kills` times, each in a run of its own, resume each, and compare.

    Args:
        name: a key of `KINDS`.
        model: the model folder.
        work: an empty folder.
        kills: runs to kill.
        seed: of the moments.
        saving: whether every second kill falls inside checkpoint writing, or between the processes of a case that
            works in several.
    """

    kind = KINDS[name][0]
    started, outcome, draw = time.monotonic(), Outcome(name, kills), random.Random(f"{seed}:{name}")

    file, straight = written(name, model, work, work / "straight")
    events, log = work / "events.json", work / "straight.log"
    begun = time.monotonic()
    code = in_child(lambda: counted(kind, file, straight, events), log=log)
    took = time.monotonic() - begun
    if code:
        outcome.faults.append(f"the straight run ended with {code}: {log.read_text()[-800:]}")
        return outcome
    outcome.witness = witness(straight)
    seen = json.loads(events.read_text())
    inside = [i for i, what in enumerate(seen, 1) if ".saving/" in what]
    first = next((i for i, what in enumerate(seen, 1) if COMMITTED.search(what)), len(seen) + 1)
    for i in range(kills):
        file, folder = written(name, model, work, work / f"kill-{i}")
        moment: int | float = draw.randint(1, len(seen))
        if saving and i % 2 == 0:
            moment = draw.uniform(0.2, took) if kind in WITH_CHILDREN else draw.choice(inside or [moment])
        where = f"{moment:.1f} s" if isinstance(moment, float) else f"event {moment} ({seen[moment - 1]})"
        log = work / f"kill-{i}.log"
        code = in_child(lambda: killed_at(kind, file, folder, moment), log=log)  # noqa: B023  the child runs at once
        outcome.killed += code == -signal.SIGKILL
        outcome.inside_saving += code == -signal.SIGKILL and ".saving/" in where
        before = whole(folder)
        outcome.before_first += not before
        found = []
        if isinstance(moment, int) and moment > first and not before:
            found.append("no checkpoint is whole, and one was committed before")
        status = json.loads(f.read_text())["status"] if (f := folder / "manifest.json").exists() else "missing"
        if code == 0 or (status == "finished" and kind != "compare"):  # killed while it drew its report
            code = 0
        else:
            resume = folder.exists() if kind in FINDERS else status != "missing"
            code = in_child(lambda: call(kind, file, resume=resume), log=log)  # noqa: B023
            outcome.resumes += 1
        lost = before - whole(folder) if "rotation" not in name else set()
        found += [f"resume ended with {code}: {log.read_text()[-1500:]}"] if code else []
        found += FINDERS.get(kind, differences)(straight, folder) if not code else []
        found += [f"checkpoints {sorted(lost)} are gone"] if lost else []
        outcome.faults += [f"kill {i} at {where}: {fault}" for fault in found]
        if not found:
            shutil.rmtree(work / f"kill-{i}")
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def failing(kind: str, file: Path, folder: Path, moment: int, code: int) -> int:
    """A run in whose folder every file event from the `moment`-th on fails, but for removing."""

    def fail(count: int, what: str) -> None:
        if count >= moment and not what.startswith(("os.remove", "os.rmdir")):
            raise OSError(code, os.strerror(code), what.partition(" ")[2])

    watched(folder, fail)
    return call(kind, file)


def prove_faults(error: str, name: str, model: Path, work: Path, *, kills: int, seed: int) -> Outcome:
    """The disk of a run is full (or not to be written to) from a random file event on: our message, and a resume to the
    same end once there is room.
    """

    kind, code = KINDS[name][0], ERRORS[error]
    started, outcome, draw = (
        time.monotonic(),
        Outcome(f"{error}:{name}", kills),
        random.Random(f"{seed}:{error}:{name}"),
    )

    file, straight = written(name, model, work, work / "straight")
    events = work / "events.json"
    if in_child(lambda: counted(kind, file, straight, events), log=work / "straight.log"):
        outcome.faults.append("the straight run failed")
        return outcome
    seen = json.loads(events.read_text())
    for i in range(kills):
        file, folder = written(name, model, work, work / f"fault-{i}")
        moment, log = draw.randint(1, len(seen)), work / f"fault-{i}.log"
        ended = in_child(lambda: failing(kind, file, folder, moment, code), log=log)  # noqa: B023
        said, before = log.read_text(), whole(folder)
        found = []
        status = json.loads(f.read_text())["status"] if (f := folder / "manifest.json").exists() else "missing"
        if ended == 2:
            outcome.killed += 1
            if "Traceback" in said or MESSAGES[error] not in said:
                found.append(f"it said {said[-900:]}")
        elif status != "finished":  # the report of a run that is finished may be missing
            found.append(f"it ended with {ended}: {said[-900:]}")
        if status != "finished":
            resume = status != "missing"
            again = in_child(lambda: call(kind, file, resume=resume), log=log)  # noqa: B023
            outcome.resumes += 1
            found += [f"resume ended with {again}: {log.read_text()[-900:]}"] if again else []
            found += [] if again else differences(straight, folder)
        found += [f"checkpoints {sorted(before - whole(folder))} are gone"] if before - whole(folder) else []
        outcome.faults += [f"fault {i} from event {moment} ({seen[moment - 1]}): {fault}" for fault in found]
        if not found:
            shutil.rmtree(work / f"fault-{i}")
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def witness(straight: Path) -> dict[str, float]:
    """What of the straight run says that the case holds what it is for."""
    rows = lines(straight / "metrics.jsonl")
    asked = ("dynamic_sampling/rounds", "dynamic_sampling/dropped_share", "pace/redraws")
    return {name: sum(row.get(name, 0.0) for row in rows) for name in asked if any(name in row for row in rows)}


def prove_two(name: str, model: Path, work: Path, *, kills: int, seed: int) -> Outcome:
    """The same over two processes (DDP on the CPU): both are killed soon after a random checkpoint, and
    started again.
    """
    import yaml

    started, outcome, draw = time.monotonic(), Outcome(f"two:{name}", kills), random.Random(f"{seed}:two:{name}")

    def config(folder: Path) -> Path:
        folder.mkdir(parents=True)
        raw = raw_config(name, model, work, folder / "out")
        (folder / "run.yaml").write_text(yaml.safe_dump(raw))
        return folder / "run.yaml"

    straight = config(work / "straight")
    codes = [p.wait() for p in start_two(straight)]
    if any(codes):
        outcome.faults.append(f"the straight run ended with {codes}: {logs_of(straight)}")
        return outcome
    for i in range(kills):
        file = config(work / f"kill-{i}")
        folder = file.parent / "out"
        pair = start_two(file)
        at, wait = draw.choice(range(EVERY, STEPS, EVERY)), draw.uniform(0.0, 0.5)
        while all(p.poll() is None for p in pair) and not (folder / f"checkpoint-{at}").exists():
            time.sleep(0.01)
        time.sleep(wait)
        for process in draw.sample(pair, 2):
            process.kill()
        outcome.killed += all(p.wait() == -signal.SIGKILL for p in pair)
        before = whole(folder)
        outcome.before_first += not before
        found = []
        if json.loads((folder / "manifest.json").read_text())["status"] != "finished":
            codes = [p.wait() for p in start_two(file, "--resume")]
            outcome.resumes += 1
            found = [f"resume ended with {codes}: {logs_of(file)}"] if any(codes) else []
        found = found or differences(straight.parent / "out", folder)
        outcome.faults += [
            f"kill {i} {wait:.2f} s after checkpoint-{at} with {sorted(before)}: {fault}" for fault in found
        ]
        if not found:
            shutil.rmtree(file.parent)
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def start_two(file: Path, *extra: str) -> list[subprocess.Popen[bytes]]:
    """Two processes of one run, which find each other on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "aligntune", "train", str(file), "--no-check", *extra]
    pair = []
    for rank in range(2):
        env = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        with open(file.with_suffix(f".{rank}.log"), "ab") as log:
            pair.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
    return pair


def logs_of(file: Path) -> list[str]:
    """The last words of two processes."""
    return [f.read_text()[-1200:] for f in sorted(file.parent.glob("*.log"))]


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


def tiny_model(work: Path) -> Path:
    """An untrained Llama of two layers, made in a child."""
    from helpers import save_tiny_model

    work.mkdir(parents=True, exist_ok=True)
    assert in_child(lambda: int(save_tiny_model(work / "model") is None), log=work / "model.log") == 0
    return work / "model"


def main() -> int:
    """See this module."""
    import tempfile

    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(KINDS))
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="a model folder; an untrained Llama of two layers without one")
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    warm()
    work = given.work or Path(tempfile.mkdtemp(prefix="aligntune-kill-"))
    model = given.model.absolute() if given.model else tiny_model(work)
    found = []
    for name in given.names:
        (work / name).mkdir(parents=True)
        kind, _, rest = name.partition(":")
        proof = partial(prove, name)
        if rest:
            proof = partial(prove_two, rest) if kind == "two" else partial(prove_faults, kind, rest)
        outcome = proof(model, work / name, kills=given.kills, seed=given.seed)
        found.append(vars(outcome))
        print(f"{name}: {outcome.killed} killed, {len(outcome.faults)} faults, {outcome.seconds} s", file=sys.stderr)
    print(json.dumps(found, indent=1))
    return int(any(o["faults"] for o in found))


if __name__ == "__main__":
    sys.exit(main())
