"""Runs the arms of a plan, one after the other, each in a fresh process, and reads what came out.

    compare("dpo.yaml", ["backend=[trl,unsloth]"], seeds=3, margin=0.02, output_dir="runs/backends")

A run is `aligntune train` on the arm's resolved file, in a clean interpreter: only a process boundary keeps one backend
from the other. Its words go to `train.log`. A run that fails is reported with its reason and the others go on; a
comparison that was killed goes on with the runs that are not finished (`resume`), and a run that was cut goes on from
its checkpoint.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aligntune.compare.analysis import Comparison, analyse, check_margins
from aligntune.compare.identity import agree
from aligntune.compare.measure import Measured, measure, read_process
from aligntune.compare.plan import Arm, Plan, make_plan
from aligntune.core.config.base import to_plain
from aligntune.core.isolation import clean_environment
from aligntune.errors import ConfigurationError
from aligntune.utils.files import disk_errors, write_atomic, write_json
from aligntune.utils.lock import alone
from aligntune.utils.logging import get_logger
from aligntune.utils.parent import child_environment
from aligntune.utils.run_folder import read_manifest
from aligntune.utils.signals import Terminated

log = get_logger(__name__)
PLAN, RESULT, PROCESS = "plan.json", "comparison.json", "process.json"
Runner = Callable[[Path, Path, bool], Mapping[str, Any]]


def compare(
    source: str | Path | Mapping[str, Any],
    settings: Sequence[str] = (),
    *,
    axes: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | Sequence[int] = 3,
    output_dir: str | Path,
    margin: float | Mapping[str, float] | None = None,
    ratio_margin: float = 0.05,
    resume: bool = False,
) -> Comparison:
    """Run and analyse a comparison.

    Args:
        source: a run's file, or its plain values.
        settings: `key=value` for all arms, `key=[a,b]` for an axis.
        axes: further axes, dotted key to values.
        seeds: how many, or which; at least 3 for an interval that says something.
        output_dir: of the comparison.
        margin: largest difference that does not matter, in a metric's units: one for all held-out metrics, or one for
            each by name. None gives differences with intervals and no verdict of equivalence.
        ratio_margin: the same for times and memory, as a share.
        resume: go on in a folder that holds the same comparison.

    Raises:
        ConfigurationError: the plan is wrong, or the folder holds another comparison, or one that is there already, or
            another process works on it.
        ValidationError: a margin that is not positive.
    """
    check_margins(margin, ratio_margin)
    plan = make_plan(source, settings, axes=axes, seeds=seeds, output_dir=output_dir)
    with alone(plan.output_dir):
        begin(plan, resume=resume)
        runs = run_all(plan)
        comparison = analyse(runs, [a.name for a in plan.arms], margin=margin, ratio_margin=ratio_margin)
        write(plan, comparison)
    return comparison


def begin(plan: Plan, *, resume: bool) -> None:
    """Claim the folder of a comparison.

    Raises:
        ConfigurationError: see `compare`.
    """
    path, wanted = plan.output_dir / PLAN, json.loads(json.dumps(plan.describe(), default=str))
    if path.exists():
        agree(path, wanted)
        if not resume:
            raise ConfigurationError(
                f"{plan.output_dir} holds this comparison already",
                hint="go on with it, or read its results again (--resume), or set another output folder",
            )
    with disk_errors(plan.output_dir):
        plan.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def run_all(plan: Plan, runner: Runner | None = None) -> list[Measured]:
    """Make every run that is not finished; what each measured, in the order of arms and seeds."""
    order = plan.order()
    for i, (arm, seed) in enumerate(order):
        folder = plan.folder(arm, seed)
        if (read_manifest(folder) or {}).get("status") == "finished":
            log.info("%d of %d: %s, seed %d is finished", i + 1, len(order), arm.name, seed)
            continue
        log.info("%d of %d: %s, seed %d", i + 1, len(order), arm.name, seed)
        _run(plan, arm, seed, runner or train_process)
    return [
        measure(arm.name, seed, plan.folder(arm, seed), read_process(_beside(plan, arm, seed, PROCESS)))
        for arm in plan.arms
        for seed in plan.seeds
    ]


def _beside(plan: Plan, arm: Arm, seed: int, name: str) -> Path:
    """A file of the comparison's own for a run, beside its folder."""
    folder = plan.folder(arm, seed)
    return folder.with_name(f"{folder.name}.{name}")


def _run(plan: Plan, arm: Arm, seed: int, runner: Runner) -> None:
    import yaml

    from aligntune.core.config.io import effective

    config, file = plan.config(arm, seed), _beside(plan, arm, seed, "yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    plain = yaml.safe_dump(to_plain(effective(config)), sort_keys=False, allow_unicode=True)
    write_atomic(file, plain.encode())
    begun = (read_manifest(plan.folder(arm, seed)) or {}).get("status") is not None
    record = dict(runner(file, _beside(plan, arm, seed, "train.log"), begun))
    write_json(_beside(plan, arm, seed, PROCESS), record)
    if record.get("code"):
        log.warning("%s, seed %d failed: %s", arm.name, seed, record.get("error"))


def train_process(file: Path, printed: Path, begun: bool) -> dict[str, Any]:
    """One run in a fresh interpreter.

    Args:
        file: its configuration.
        printed: gets what it prints.
        begun: its folder holds an unfinished run to go on with.

    Returns:
        `code`, `seconds`, and `error` where it failed.
    """
    line = [sys.executable, "-m", "aligntune", "train", str(file), "--json"]
    if begun:  # from its newest checkpoint, or from its first step where it left none
        line.append("--resume=latest")
    start, environment = time.monotonic(), child_environment(clean_environment())
    with open(printed, "ab") as log_file:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log_file, env=environment)
        try:
            out, _ = process.communicate()
        except KeyboardInterrupt as stop:  # the run gets Ctrl-C too, and writes a checkpoint before it ends
            if isinstance(stop, Terminated):
                process.terminate()
            process.wait()
            raise
    seconds = time.monotonic() - start
    record: dict[str, Any] = {"code": process.returncode, "seconds": seconds}
    if process.returncode == 130:
        raise KeyboardInterrupt
    if process.returncode:
        record["error"] = _message(out, process.returncode, printed)
    return record


def _message(out: bytes, code: int, printed: Path) -> str:
    try:
        error = json.loads(out)["error"]
    except (ValueError, KeyError, TypeError):
        killed = " (killed; it often means that memory ran out)" if code == -9 else ""
        return f"its process ended with code {code}{killed}; see {printed}"
    return f"{error['message']} (hint: {error['hint']})" if error.get("hint") else str(error["message"])


def write(plan: Plan, comparison: Comparison) -> None:
    """`comparison.json` and `comparison.html` in the comparison's folder."""
    from aligntune.compare.page import write_page

    write_json(plan.output_dir / RESULT, {"plan": plan.describe(), **comparison.to_dict()})
    write_page(plan.output_dir / "comparison.html", comparison, plan)
