"""The folder of one run: claimed once, written safely, and never overwritten when it is finished.

    config.resolved.yaml   manifest.json   metrics.jsonl   samples.jsonl   rollouts/part-00000.parquet
    evaluations.jsonl      evaluation/results.json, evaluation/items/<task>.jsonl
    order.jsonl            events.jsonl

`manifest.json` carries the state: `status` is running, finished, failed or interrupted. Source of the layout:
the Hugging Face convention of one output folder per run, with the model in its root.

>>> run = RunFolder.claim("out/sft")
>>> run.append_metrics({"step": 10, "epoch": 0.1, "time": 3.2, "loss": 2.31})
>>> run.mark_finished({"final_loss": 2.31})
>>> RunFolder.claim("out/sft")
ConfigurationError: out/sft holds a finished run

It does not write models or checkpoints (the trainer does, inside `disk_errors`), and does not draw the
report.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from aligntune.core.config.base import to_plain
from aligntune.errors import ConfigurationError
from aligntune.utils.files import (
    append_line,
    disk_errors,
    read_lines,
    rewrite_lines,
    sync_file,
    write_atomic,
    write_json,
)
from aligntune.utils.lock import RunLock
from aligntune.utils.rollouts import RolloutWriter, rewind_rollouts

Status = Literal["running", "finished", "failed", "interrupted"]

CONFIG = "config.resolved.yaml"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
EVALUATIONS = "evaluations.jsonl"
EVALUATION = "evaluation"
"""Folder with the results and items of the newest evaluation on tasks, and of the one before training."""
CODE_DIFF = "code.diff"
"""Uncommitted changes of the repository around the working folder, where there are any."""
ORDER = "order.jsonl"
"""Hash of the batches seen so far, at each line of the log (`aligntune.core.order`)."""
EVENTS = "events.jsonl"
"""What the health monitor noticed (`aligntune.utils.health`)."""
ROLLOUTS = "rollouts"
LINES = (METRICS, SAMPLES, EVALUATIONS, ORDER, EVENTS)
"""Files of one JSON object a line; a resumed run cuts what was written after its checkpoint."""
_RESULTS = (
    "checkpoint-*",
    "*.safetensors",
    "*.bin",
    f"{ROLLOUTS}/*.parquet",
    METRICS,
    SAMPLES,
    EVALUATIONS,
    ORDER,
    EVENTS,
    "population.jsonl",
    "meta_es/i*.json",
)


class RunFolder:
    """A claimed run folder. Make one with `claim`.

    Attributes:
        path: the folder.
        resumed: True where `claim` found an unfinished run and was told to go on with it.
        observer: is handed each row of metrics once it is written.
        notes: what was found on the way, one sentence each.
        leads: False in the processes of a distributed run that write nothing here but their own rollouts.
    """

    def __init__(self, path: Path, *, resumed: bool = False) -> None:
        self.path = path
        self.resumed = resumed
        self.notes: list[str] = []
        self.leads = _rank() == 0
        self.observer: Callable[[Mapping[str, Any]], None] | None = None
        self._started = time.monotonic()
        self._rollouts = RolloutWriter(path / ROLLOUTS, rank=_rank())

    @classmethod
    def check(cls, path: str | os.PathLike[str], *, resume: bool = False) -> Path:
        """Raise what `claim` would raise, and write nothing that stays. Returns the absolute path.

        Raises:
            ConfigurationError: the path is a file, may not be written to, holds a finished run, an unfinished
                one with results (unless `resume`), one that is still running, or files that a run would
                overwrite.
        """
        folder = Path(os.path.abspath(os.path.expanduser(path)))
        _check_writable(folder)
        if _rank():
            return folder  # the first process of the run decides, and may have claimed it already
        manifest = read_manifest(folder)
        if manifest is None:
            _check_free(folder)
        else:
            _check_state(folder, manifest, resume)
        RunLock(folder).check()
        return folder

    @classmethod
    def claim(cls, path: str | os.PathLike[str], *, resume: bool = False) -> RunFolder:
        """Check the folder, make it, and mark it as running.

        Args:
            path: the run's `output_dir`; made with its parents if it is not there.
            resume: go on in a folder whose run is not finished. A torn last line of `metrics.jsonl` and of
                the other files of lines is cut off, so that new lines follow whole ones.

        Raises:
            ConfigurationError: as `check`, or the disk is full. Nothing is left behind.
        """
        folder = cls.check(path, resume=resume)
        before = read_manifest(folder)
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, resumed=resume and (before is not None or _rank() > 0))
        if not run.leads:
            return run
        try:
            took = RunLock(folder).acquire()
            run.notes += [took] if took else []
            run._begin(before if run.resumed else None)
        except ConfigurationError:
            RunLock(folder).release()
            for made in missing:  # innermost first; a folder that is not empty is not ours to remove
                if made.is_dir() and not any(made.iterdir()):
                    made.rmdir()
            raise
        return run

    def _begin(self, before: dict[str, Any] | None) -> None:
        history = list(before.get("attempts", [])) if before else []
        if before:
            history.append({key: before.get(key) for key in ("status", "started_at", "ended_at")})
            for name in LINES:
                if (self.path / name).exists():
                    rewrite_lines(self.path / name, read_lines(self.path / name))
        fresh = {"status": "running", "started_at": _now(), "process": _process()}
        if history:
            fresh["attempts"] = history
        if before and "services" in before:  # logging services, in whose runs this one goes on
            fresh["services"] = before["services"]
        write_json(self.path / MANIFEST, fresh)

    @property
    def status(self) -> str:
        """The state that `manifest.json` holds; "missing" if there is none."""
        return str((read_manifest(self.path) or {}).get("status", "missing"))

    @property
    def elapsed(self) -> float:
        """Seconds since the folder was claimed by this process."""
        return time.monotonic() - self._started

    def write_config(self, config: Any) -> Path:
        """Write the resolved configuration (a section or nested plain values) as YAML. Returns its path."""
        import yaml

        text = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)
        if self.leads:
            write_atomic(self.path / CONFIG, text.encode())
        return self.path / CONFIG

    def write_json(self, name: str, value: Any) -> Path:
        """Write `value` to the file `name` in the folder, atomically. Returns its path."""
        if self.leads:
            write_json(self.path / name, value)
        return self.path / name

    def update_manifest(self, entries: Mapping[str, Any]) -> None:
        """Add or replace top-level entries of `manifest.json` (what `manifest.collect` returns, timings
        ...).
        """
        if self.leads:
            write_json(self.path / MANIFEST, {**(read_manifest(self.path) or {}), **entries})

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`; `time` (seconds since the claim) is added where it is
        missing.
        """
        timed = row if "time" in row else {**row, "time": round(self.elapsed, 3)}
        self._append(METRICS, [timed])
        if self.observer is not None:
            self.observer(timed)

    def append_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to `samples.jsonl`."""
        self._append(SAMPLES, rows)

    def append_evaluations(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to `evaluations.jsonl` (`aligntune.eval.in_training.evaluation_rows`)."""
        self._append(EVALUATIONS, rows)

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows if self.leads else ():
            append_line(self.path / name, row)

    def append_rollouts(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store sampled completions; written in parts of `rollouts.ROWS_PER_PART` rows and at `flush`.

        Args:
            rows: flat mappings such as step, prompt, completion, reward and one column per reward component.
        """
        self._rollouts.append(rows)

    def flush(self) -> None:
        """Write the rollouts that are still in memory, and let the system put every line on the disk. Call it before a
        checkpoint is written, so that no file ends before the checkpoint's step."""
        self._rollouts.flush()
        for name in LINES if self.leads else ():
            sync_file(self.path / name)

    def line_counts(self) -> dict[str, int]:
        """Lines in each of the files of lines, for a checkpoint to keep."""
        files = {name: self.path / name for name in LINES}
        return {name: file.read_bytes().count(b"\n") for name, file in files.items() if file.exists()}

    def rewind(self, step: int, counts: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Cut metrics, samples, evaluations and rollouts that were written after the restored checkpoint.

        Args:
            step: the checkpoint's; a row without `step` stays. -1 cuts everything that a run writes.
            counts: lines that were there when it was written (`line_counts`). The evaluation that ends a run stands at
                the step of its last checkpoint, and is told from what that knew by the counts only.

        Returns:
            The rows of `metrics.jsonl` that stay.
        """
        left: list[dict[str, Any]] = []
        for name in LINES:
            rows = read_lines(self.path / name)
            before = rows if counts is None else rows[: counts.get(name, 0)]
            kept = [row for row in before if row.get("step", 0) <= step]
            if len(kept) < len(rows) and self.leads:
                rewrite_lines(self.path / name, kept)
            left = kept if name == METRICS else left
        if self.leads:
            rewind_rollouts(self.path / ROLLOUTS, step)
        return left

    def mark_finished(self, summary: Mapping[str, Any] | None = None) -> None:
        """Flush, and mark the run as finished: the folder is refused to any other run from now on."""
        self._mark("finished", summary=dict(summary or {}), **self._outcome())

    def _outcome(self) -> dict[str, Any]:
        """Hashes of what a training run has made and of the order of its data; nothing for other folders."""
        from aligntune.utils.manifest import results

        if not (self.path / METRICS).exists():
            return {}
        order = read_lines(self.path / ORDER)[-1:]
        return {"results": results(self.path), "data_order": order[0] if order else None}

    def mark_failed(self, error: BaseException) -> None:
        """Mark the run as failed, with the error's class and message."""
        self._mark("failed", error={"type": type(error).__name__, "message": str(error)})

    def mark_interrupted(self) -> None:
        """Mark the run as stopped by the user or by a signal; `resume=True` goes on with it."""
        self._mark("interrupted")

    def _mark(self, status: Status, **entries: Any) -> None:
        try:
            self.flush()
            seconds = round(self.elapsed, 3)
            self.update_manifest({"status": status, "ended_at": _now(), "seconds": seconds, **entries})
        finally:
            self.release()

    def release(self) -> None:
        """Give the folder's lock back, whatever became of the run."""
        if self.leads:
            RunLock(self.path).release()


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """`manifest.json` of a run folder; None if there is none.

    Raises:
        ConfigurationError: the file is there and is not a JSON object.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ConfigurationError(
            f"{path} is damaged, so nobody can tell whether its run is finished ({error})",
            hint="set output_dir to another folder, or remove this one if you do not need it",
            context={"path": str(path)},
        ) from error
    if not isinstance(manifest, dict):
        raise ConfigurationError(f"{path} is not a run's manifest", hint="set output_dir to another folder")
    return manifest


def _check_writable(folder: Path) -> None:
    """Refuse a file, a file among the parents, or a place where a temporary file cannot be made."""
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise ConfigurationError(
            f"output_dir {folder}: {existing} is a file, not a folder",
            hint="set output_dir to a folder",
            context={"path": str(folder)},
        )
    # Asking the system by trying is the only test that also holds for root, network disks and full ones.
    with disk_errors(folder), tempfile.TemporaryFile(dir=existing) as probe:
        probe.write(b"\0" * 4096)
        probe.flush()
        os.fsync(probe.fileno())


def _check_free(folder: Path) -> None:
    """Refuse a folder without a manifest that holds files which a run would overwrite."""
    taken = sorted({found.name for pattern in (*_RESULTS, CONFIG) for found in folder.glob(pattern)})
    if taken:
        shown = ", ".join(taken[:5]) + (" ..." if len(taken) > 5 else "")
        raise ConfigurationError(
            f"output_dir {folder} holds files that are not this run's and would be overwritten: {shown}",
            hint="set output_dir to a new folder",
            context={"path": str(folder), "files": taken},
        )


def _check_state(folder: Path, manifest: dict[str, Any], resume: bool) -> None:
    status = manifest.get("status")
    context = {"path": str(folder), "status": status}
    if status == "finished":
        raise ConfigurationError(
            f"output_dir {folder} holds a finished run",
            hint="set output_dir to a new folder; a finished run is never overwritten",
            context=context,
        )
    if status == "running" and _alive(manifest.get("process", {})):
        raise ConfigurationError(
            f"output_dir {folder} is in use by the running process {manifest['process']['pid']}",
            hint="wait for it, stop it, or set output_dir to another folder",
            context=context,
        )
    results = any(found.stat().st_size for pattern in _RESULTS for found in folder.glob(pattern))
    if results and not resume:
        raise ConfigurationError(
            f"output_dir {folder} holds a run that did not finish (status: {status})",
            hint="go on with it (--resume), or set output_dir to a new folder",
            context=context,
        )


def _process() -> dict[str, Any]:
    """Who runs here: host, process id and its start time, which tells a reused id from the process itself."""
    import platform

    import psutil

    return {"host": platform.node(), "pid": os.getpid(), "created": psutil.Process().create_time()}


def _alive(process: Mapping[str, Any]) -> bool:
    """True if `process` still runs on this host and is another one than ours."""
    import psutil

    mine = _process()
    pid, created = process.get("pid"), process.get("created")
    if not isinstance(pid, int) or not isinstance(created, (int, float)):
        return False
    if process.get("host") != mine["host"] or pid == mine["pid"]:
        return False
    try:
        return bool(abs(psutil.Process(pid).create_time() - created) < 2)
    except psutil.NoSuchProcess:
        return False


def _rank() -> int:
    """Number of this process in a distributed run (torchrun's variable); 0 in any other."""
    return int(os.environ.get("RANK", "0"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
