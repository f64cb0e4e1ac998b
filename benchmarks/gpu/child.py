"""Processes of the suite: a program with a time limit, and a training run through `aligntune train`.

Every run is made in a fresh process, because a backend cannot be undone in one; a process that takes too long is ended
with all that it started.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu.record import OutOfTime, Settings, Values

RUNNING: set[subprocess.Popen] = set()
"""Processes that have not ended."""


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """Variables of a child: no network unless hub models are asked for, no GPU with `--cpu`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("UNSLOTH_", "PURE_TRL", "TRL_ONLY"))}
    env |= {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    env["UNSLOTH_DISABLE_STATISTICS"] = "1"
    if not settings.hub:
        env["HF_HUB_OFFLINE"] = "1"
    if settings.cpu:
        env |= {"CUDA_VISIBLE_DEVICES": "", "UNSLOTH_FORCE_CPU": "1", "UNSLOTH_CPU_BF16": "0"}
    return env | more


def run(line: list[str], seconds: float, *, env: dict[str, str]) -> subprocess.CompletedProcess:
    """A program's result.

    Raises:
        OutOfTime: it did not end within its seconds, and was ended with its children.
    """
    process = subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )
    RUNNING.add(process)
    try:
        out, err = process.communicate(timeout=seconds)
    except BaseException as error:
        _end(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise OutOfTime(f"it took more than {seconds:.0f} s") from None
        raise
    finally:
        RUNNING.discard(process)
    return subprocess.CompletedProcess(line, process.returncode, out, err)


def end_all() -> None:
    """End every process that still runs, for an end of the suite itself."""
    for process in list(RUNNING):
        _end(process)


def _end(process: subprocess.Popen) -> None:
    """End a process and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def answer(code: str, seconds: float, settings: Settings, **given: Any) -> Any:
    """What a piece of Python in a fresh process sets `result` to; it gets `given`.

    Raises:
        OutOfTime: as `run`.
        RuntimeError: it ended with an error, whose last lines are told.
    """
    head = f"import json\ngiven = json.loads({json.dumps(given, default=str)!r})\n"
    done = run(
        [sys.executable, "-c", f"{head}{code}\nprint('\\n@@' + json.dumps(result))"], seconds, env=environment(settings)
    )
    if done.returncode:
        raise RuntimeError(last(done.stderr) or f"its process ended with code {done.returncode}")
    return json.loads(done.stdout.rpartition("@@")[2])


def last(text: str, lines: int = 12) -> str:
    """The last lines of what a process said."""
    return "\n".join(text.strip().splitlines()[-lines:])


def train(values: Values, name: str, seconds: float, settings: Settings, python: str | None = None) -> Values:
    """Train one configuration with `aligntune train`, and say what came of it.

    Args:
        values: the configuration without `output_dir`.
        name: folder of the run below `settings.work`.
        seconds: that the process may take.
        settings: of the suite.
        python: another interpreter.

    Returns:
        ok; error (the message and hint) where it failed; else first_loss, last_loss, losses, steps, step_seconds
        (median, first steps left out), tokens_per_second, peak_bytes, peak_of ("GPU" or "process"), foreign (symbols
        that are Unsloth's), fingerprint, folder.
    """
    folder = settings.work / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file, out = folder / "run.yaml", folder / "run"
    file.write_text(json.dumps({**values, "output_dir": str(out)}), encoding="utf-8")  # JSON is YAML
    line = [python or sys.executable, "-m", "aligntune", "train", str(file), "--json"]
    env = environment(settings)
    if python:
        env.pop("PYTHONPATH", None)
    done = run(line, seconds, env=env)
    (folder / "stderr.txt").write_text(done.stderr, encoding="utf-8")
    if done.returncode:
        return {"ok": False, "code": done.returncode, "error": _error(done), "folder": str(folder)}
    return {"ok": True, **measured(out), "folder": str(folder)}


def _error(done: subprocess.CompletedProcess) -> str:
    try:
        error = json.loads(done.stdout)["error"]
    except (ValueError, KeyError, TypeError):
        return last(done.stderr) or f"its process ended with code {done.returncode}"
    return f"{error['message']} (hint: {error.get('hint')})"


def measured(folder: Path) -> Values:
    """The figures of a finished run's folder."""
    from aligntune.compare.measure import timings
    from aligntune.utils.files import read_lines
    from aligntune.utils.run_folder import read_manifest

    rows = [row for row in read_lines(folder / "metrics.jsonl") if "loss" in row]
    manifest = read_manifest(folder) or {}
    summary, code = manifest.get("summary") or {}, manifest.get("patch_fingerprint") or {}
    losses = [float(row["loss"]) for row in rows]
    on_gpu = summary.get("peak_gpu_memory")
    finite = bool(losses) and all(abs(x) < float("inf") for x in losses)
    return {
        **({} if finite else {"ok": False, "error": f"the losses are {losses}"}),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "losses": losses,
        "steps": len(losses),
        "step_seconds": timings(rows).get("step_time"),
        "tokens_per_second": timings(rows).get("tokens_per_second"),
        "peak_bytes": on_gpu or summary.get("peak_memory"),
        "peak_of": "GPU" if on_gpu else "process",
        "foreign": len(code.get("foreign") or []),
        "fingerprint": code.get("hash"),
        "class": manifest.get("trainer_class"),
    }


def short(values: Values, *keys: str) -> Values:
    """Only these entries, and whether it went well."""
    return {k: values[k] for k in ("ok", "error", *keys) if k in values}


def median(values: list[float]) -> float | None:
    """The median; None of nothing."""
    return statistics.median(values) if values else None
