"""A smoke run: a few real steps of the real configuration on its longest rows, through every stage of a run.

    model -> data -> generation -> reward -> optimizer -> checkpoint -> evaluation -> saved model -> loaded again

The first step has the longest rows, so what does not fit does not fit at once. The run's folder is a temporary one.

>>> verdicts, folder = smoke(config)
>>> [v.name for v in verdicts]
['smoke-load', 'smoke-train', 'smoke-checkpoint', 'smoke-evaluate', 'smoke-reload']

It does not continue from its checkpoint, and algorithms of several rounds (SPIN, Meta-ES) have none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from aligntune.algorithms.base import Schema
from aligntune.core.config.io import dump_config
from aligntune.core.config.root import RunConfig
from aligntune.errors import AlignTuneError, TrainingError, first_line
from aligntune.preflight.arithmetic import counts
from aligntune.preflight.settings import gigabytes
from aligntune.preflight.subject import STREAM_ROWS, characters
from aligntune.preflight.verdict import Verdict

T = TypeVar("T")
HELD_OUT = 8
"""Held-out rows that are evaluated."""
SAME = 1e-3
"""Relative difference of a measure before saving and after loading that rounding explains."""


def smoke(config: RunConfig, *, keep: bool = False) -> tuple[list[Verdict], str | None]:
    """Run it in this process.

    Args:
        config: the real configuration.
        keep: leave the folder, and return it.
    """
    if config.algorithm.driver:
        told = f"{config.algorithm.key} trains in rounds, each of them a run, so that it has no smoke run"
        return [Verdict("smoke-train", "smoke", "skip", told)], None
    folder = Path(tempfile.mkdtemp(prefix="aligntune-smoke-"))
    found: list[Verdict] = []
    try:
        with contextlib.suppress(_Stopped):  # its verdict is in the list
            config = _try("smoke-load", found, lambda: _without_stream(config, folder))
            _stages(smoke_config(config, folder), found)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return found, str(folder) if keep else None


def _without_stream(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration with the first rows of a stream as a file, whose longest rows can be taken."""
    if not any(source.streaming for source in config.sources):
        return config
    from aligntune.core.rows import refuse_stream
    from aligntune.data.streaming import refuse_whole, write_first

    refuse_stream(config, config.sources, training=True)
    source = config.sources[0]
    refuse_whole(source, Schema(config.algorithm.data))
    made = write_first(source, STREAM_ROWS, folder / "first_rows.jsonl", config.cache.dir)
    return dataclasses.replace(config, **({"dataset": made} if config.kind == "sft" else {"datasets": [made]}))  # type: ignore[arg-type]


def smoke_config(config: RunConfig, folder: Path) -> RunConfig:
    """The real configuration, shortened: twice as many steps as the first checkpoint that can be resumed from needs."""
    params = config.algorithm
    save = next(step for step in range(1, 1000) if params.resumable(config, step))
    held = config.evaluation.dataset
    if held is not None:
        held = dataclasses.replace(held, name=held.name.split("#")[0], max_samples=HELD_OUT)
    return dataclasses.replace(
        config,
        output_dir=str(folder / "run"),
        isolation="auto",
        train=dataclasses.replace(
            config.train, max_steps=2 * save, save_steps=save, save_total_limit=None, warmup_steps=0, warmup_ratio=0.0,
            early_stopping_patience=None, best_metric=None, best_mode=None, keep_best="none",
        ),
        evaluation=dataclasses.replace(config.evaluation, dataset=held, every=None, tasks=[], at_start=False),
        logging=dataclasses.replace(config.logging, report_to=[], steps=1),
    )  # fmt: skip


class _Stopped(Exception):
    """A stage has failed, and its verdict is told."""


def _try(name: str, found: list[Verdict], run: Callable[[], T]) -> T:
    try:
        return run()
    except AlignTuneError as error:
        found.append(Verdict(name, "smoke", "fail", error.message, fix=error.hint or ""))
    except (RuntimeError, ValueError, OSError) as error:  # PyTorch's for memory, the libraries' for values and files
        told = first_line(error)
        fix = "lower train.per_device_batch_size or model.max_seq_length" if "memory" in told else "run it with --debug"
        found.append(Verdict(name, "smoke", "fail", f"{type(error).__name__}: {told}", fix=fix))
    raise _Stopped


def _stages(config: RunConfig, found: list[Verdict]) -> None:
    from aligntune.core.backend_factory import create_trainer
    from aligntune.core.evaluation import evaluate_model
    from aligntune.core.saving import find_checkpoint

    started = time.perf_counter()
    trainer = _try("smoke-load", found, lambda: create_trainer(config))
    length = _try("smoke-load", found, lambda: _longest_first(trainer))
    seconds = time.perf_counter() - started
    told = f"model and rows loaded in {seconds:.1f} s; the longest rows have up to {length:,} characters"
    found.append(Verdict("smoke-load", "smoke", "pass", told, data={"seconds": seconds}))
    result = _try("smoke-train", found, trainer.train)
    found += _trained(config, trainer, result)
    checkpoint = _try("smoke-checkpoint", found, lambda: find_checkpoint(config.output_dir, "latest"))
    size = sum(f.stat().st_size for f in Path(checkpoint.path).rglob("*") if f.is_file())
    told = f"checkpoint of step {checkpoint.step} is whole, {gigabytes(size)}"
    found.append(Verdict("smoke-checkpoint", "smoke", "pass", told, data={"bytes": size}))
    rows = trainer._eval_rows() or trainer._train_rows()
    before = _try("smoke-evaluate", found, lambda: evaluate_model(trainer, rows))
    shown = ", ".join(f"{k} {v:.4g}" for k, v in list(before.items())[:4])
    where = "held-out" if trainer._eval_data is not None else "training"
    found.append(
        Verdict("smoke-evaluate", "smoke", "pass", f"{len(rows.dataset)} {where} rows: {shown}", data=dict(before))
    )
    after = _try("smoke-reload", found, lambda: _again(trainer, result.model_path, rows))
    found.append(_same(before, after))


def _longest_first(trainer: Any) -> int:
    """Keep the rows of one step, the longest ones; returns the characters of the longest."""
    trainer._load()
    prepared = trainer._train_rows()
    rows, config = prepared.dataset, trainer.config
    sizes = list(map(len, rows["input_ids"])) if "input_ids" in rows.column_names else characters(rows)
    order = sorted(range(len(rows)), key=lambda i: -sizes[i])
    step = counts(config, None)
    need = min(math.ceil(step.prompts or step.sequences), len(rows))
    if config.algorithm.data is Schema.UNPAIRED:  # KTO needs both kinds
        labels = rows["label"]
        half = max(need // 2, 1)
        chosen = [[i for i in order if labels[i] is kind][:half] for kind in (True, False)]
        order = [i for side in chosen for i in side]
        need = len(order)
    trainer._train_data = dataclasses.replace(prepared, dataset=rows.select(order[:need]))
    return int(sizes[order[0]])


def _trained(config: RunConfig, trainer: Any, result: Any) -> list[Verdict]:
    """What the steps showed: time, memory, loss; and with rewards whether there is anything to learn from."""
    metrics, steps = result.metrics, result.total_steps
    each = result.training_time / max(steps, 1)
    told = (
        f"{steps} steps of the longest rows, {each:.2g} s each, mean loss {result.final_loss:.4g}, peak memory "
        f"{gigabytes(result.peak_memory)}"
    )
    data = {"steps": steps, "seconds_per_step": each, "loss": result.final_loss, "peak_memory": result.peak_memory}
    norm = metrics.get("grad_norm")
    evidence = [f"gradient norm {norm:.3g}"] if norm is not None else []
    status = "warn" if norm == 0 else "pass"
    fix = "look at the rows as trained: nothing in them teaches" if norm == 0 else ""
    found = [Verdict("smoke-train", "smoke", status, told, evidence, fix, data)]  # type: ignore[arg-type]
    if config.algorithm.uses_rewards:
        found.append(_rewarded(metrics))
    return found


def _rewarded(metrics: dict[str, float]) -> Verdict:
    cut = metrics.get("completions/clipped_ratio")
    flat = metrics.get("frac_reward_zero_std")
    mean = metrics.get("reward")
    told = ", ".join(
        f"{name} {value:.3g}"
        for name, value in (("mean reward", mean), ("groups without a difference", flat), ("cut completions", cut))
        if value is not None
    )
    if cut == 1:
        fix = "raise generation.max_completion_length, or look at `stop-token`"
        return Verdict("smoke-reward", "smoke", "warn", f"every completion reaches the length limit; {told}", [], fix)
    if flat == 1:
        fix = "an untrained model may earn nothing yet: start from one that sometimes does, or add a graded reward"
        return Verdict("smoke-reward", "smoke", "warn", f"no group has answers that differ in reward; {told}", [], fix)
    return Verdict("smoke-reward", "smoke", "pass", told or "completions are rewarded")


def _again(trainer: Any, path: str, rows: Any) -> dict[str, float]:
    from aligntune.core.evaluation import evaluate_model

    trainer.load_model(path)
    return dict(evaluate_model(trainer, rows))


def _same(before: dict[str, float], after: dict[str, float]) -> Verdict:
    off = {
        k: (before[k], after.get(k))
        for k in before
        if after.get(k) is None or abs(after[k] - before[k]) > SAME * max(abs(before[k]), 1e-6)
    }
    off = {k: v for k, v in off.items() if "time" not in k and "per_second" not in k}
    if not off:
        return Verdict("smoke-reload", "smoke", "pass", "the saved model, loaded again, evaluates to the same values")
    evidence = [f"{k}: {a} before, {b} after" for k, (a, b) in list(off.items())[:4]]
    return Verdict(
        "smoke-reload", "smoke", "warn", "the saved model, loaded again, evaluates to other values", evidence,
        "sampling (evaluation.temperature) and 16 bit weights explain small differences; larger ones are a defect",
    )  # fmt: skip


def smoke_in_process(config: RunConfig, *, keep: bool = False) -> tuple[list[Verdict], str | None]:
    """Run it in a fresh process, which the checks before have left no library in; see `smoke`.

    Raises:
        TrainingError: the process died without an answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "smoke.yaml"
        file.write_text(dump_config(config), encoding="utf-8")
        line = [sys.executable, "-m", "aligntune", "train", str(file), "--smoke", "--json"] + (
            ["--keep"] if keep else []
        )
        done = subprocess.run(line, capture_output=True, text=True, env=dict(os.environ))
    try:
        told = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise TrainingError(
            f"the smoke run ended with exit code {done.returncode}: {last[0]}",
            hint="137 and -9 mean that the system stopped it for memory; `aligntune train --smoke` shows it all",
        ) from error
    if "error" in told:
        error_ = told["error"]
        return [Verdict("smoke-load", "smoke", "fail", error_["message"], fix=error_["hint"] or "")], None
    return [Verdict(**v) for v in told["verdicts"]], told["smoke_folder"]
