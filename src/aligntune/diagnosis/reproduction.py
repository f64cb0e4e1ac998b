"""`reproduce`: run a finished run again from its own configuration, and say whether it came out the same.

    1. what the run would be made of now is collected in a fresh process, and compared with its manifest
    2. it is run again: `config.resolved.yaml`, its working folder, its thread settings, another output folder
    3. metrics step by step, final metrics and weights are compared

>>> found = reproduce("runs/a", output_dir="runs/a-again")
>>> found.verdict
'identical'

The verdict is `identical` (every number and every weight, to the last bit), `equal within tolerance`, or `different`,
with the differences of the two environments, most likely cause first. It does not install the old packages or check
out the old code: it names them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligntune import errors
from aligntune.diagnosis.curves import TOLERANCE
from aligntune.diagnosis.diff import RunDiff, compare_stored
from aligntune.diagnosis.differences import LIKELIHOOD, Difference, differences, rank
from aligntune.diagnosis.stored import Stored, read_stored
from aligntune.utils.parent import child_environment
from aligntune.utils.run_folder import CONFIG, RunFolder

KEPT_ENVIRONMENT = re.compile(r"^(OMP_|MKL_|CUBLAS_|PYTHONHASHSEED|TOKENIZERS_|TORCH_|PYTORCH_|HF_HUB_OFFLINE)")
"""Variables that the second run gets from the first one's manifest."""
LOADED = LIKELIHOOD["loaded"]
"""What is not likelier than this is no reason to expect another result."""
TAIL = 30
"""Lines of the second run's output to show where it fails."""


@dataclass(frozen=True)
class Reproduction:
    """What came of running a run again.

    Attributes:
        run: the run's folder.
        again: the second run's folder; None where only the environment was checked.
        before: differences between then and now that can change results, most likely first.
        comparison: how the two runs compare; None where only the environment was checked.
    """

    run: str
    again: str | None
    before: list[Difference] = field(default_factory=list)
    comparison: RunDiff | None = None

    @property
    def verdict(self) -> str:
        """That of the comparison; else `can be repeated here` or `differs here`."""
        if self.comparison is not None:
            return self.comparison.verdict
        return "differs here" if self.before else "can be repeated here"

    @property
    def passed(self) -> bool:
        """Whether it came out the same, or nothing stands in the way of that."""
        return self.verdict in ("identical", "equal within tolerance", "can be repeated here")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "run": self.run,
            "again": self.again,
            "verdict": self.verdict,
            "passed": self.passed,
            "differences": [d.to_dict() for d in self.before],
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
        }


def reproduce(
    run: str | os.PathLike[str],
    *,
    output_dir: str | os.PathLike[str] | None = None,
    check_only: bool = False,
    tolerance: float = TOLERANCE,
) -> Reproduction:
    """Check the environment against a run's manifest, run it again, and compare.

    Args:
        run: the folder of a finished run.
        output_dir: folder of the second run; None takes `<run>-reproduced` beside it.
        check_only: compare the environment, and train nothing.
        tolerance: relative difference that counts as rounding.

    Raises:
        ValidationError: it is not a run folder, or the run did not finish.
        ConfigurationError: the output folder cannot be used.
        EnvironmentError: what the run was made of is not here any more.
        TrainingError: the second run failed.
    """
    stored = read_stored(run)
    _check(stored)
    target = _target(stored, output_dir)
    if not check_only:
        RunFolder.check(target)
    now = collect_now(stored)
    before = [d for d in rank(differences(stored.manifest, _comparable(stored, now))) if d.likelihood > LOADED]
    if check_only:
        return Reproduction(str(stored.path), None, before)
    _train(stored, target)
    return Reproduction(str(stored.path), str(target), before, compare_stored(stored, read_stored(target), tolerance))


def _check(stored: Stored) -> None:
    if stored.status != "finished":
        raise errors.ValidationError(
            f"{stored.path} holds a run that did not finish (status: {stored.status})",
            hint="finish it first (aligntune train ... --resume), or look at it with `aligntune diagnose run`",
        )
    if not stored.config or not ({"algo", "task"} & stored.config.keys()):
        raise errors.ValidationError(
            f"{stored.path} has no {CONFIG} of a training run", hint="give the output_dir of `aligntune train`"
        )
    if int((stored.manifest.get("environment") or {}).get("WORLD_SIZE", "1")) > 1:
        raise errors.ValidationError(
            "the run had several processes, which its launcher starts",
            hint=f"start it again as before with {stored.path / CONFIG} and another output_dir, then `aligntune diff`",
        )


def _target(stored: Stored, given: str | os.PathLike[str] | None) -> Path:
    """The second run's folder, which must not be the first one's."""
    folder = stored.path
    beside = folder.with_name(f"{folder.name}-reproduced")
    target = Path(os.path.abspath(os.path.expanduser(given))) if given is not None else beside
    if target == folder:
        raise errors.ConfigurationError("the run cannot be repeated into itself", hint="give another --output-dir")
    return target


def _environment(stored: Stored) -> dict[str, str]:
    """This process's environment, with the variables that decide about numbers as the run had them."""
    then = stored.manifest.get("environment") or {}
    kept = {name: value for name, value in then.items() if KEPT_ENVIRONMENT.match(name)}
    others = {name: value for name, value in os.environ.items() if not KEPT_ENVIRONMENT.match(name)}
    return {**others, **kept}


def _folder(stored: Stored) -> str:
    """The folder that the run's relative paths mean.

    Raises:
        EnvironmentError: it is not there any more.
    """
    folder = str(stored.manifest.get("working_folder") or os.getcwd())
    if not os.path.isdir(folder):
        raise errors.EnvironmentError(
            f"the run's working folder {folder} is gone, and relative paths mean it",
            hint="make it again with the run's data and rewards, or train with absolute paths and use `aligntune diff`",
        )
    return folder


def collect_now(stored: Stored) -> dict[str, Any]:
    """What the run would be made of now.

    Raises:
        EnvironmentError: data, model or rewards are not there any more.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "now.json"
        command = [sys.executable, "-m", "aligntune.diagnosis.now", str(stored.path / CONFIG), str(out)]
        done = _child(command, stored)
        answer = json.loads(out.read_bytes()) if out.is_file() else {}
    if "entries" in answer:
        return dict(answer["entries"])
    fault = answer.get("error") or {"message": _last_lines(done), "hint": ""}
    raise errors.EnvironmentError(
        f"the run cannot be set up as it was: {fault['message']}",
        hint=fault["hint"] or "bring back what it names, or compare by hand with `aligntune diff`",
    )


def _comparable(stored: Stored, now: dict[str, Any]) -> dict[str, Any]:
    """What is collected now, in the place where the run was (`isolation` is the collector's own)."""
    config = {**(now.get("config") or {})}
    config["isolation"] = ((stored.manifest.get("config") or {}).get("isolation")) or config.get("isolation")
    return {**now, "config": config}


def _train(stored: Stored, target: Path) -> None:
    command = [sys.executable, "-m", "aligntune", "train", str(stored.path / CONFIG), f"output_dir={target}"]
    done = _child([*command, "--no-check", "--json"], stored)
    if done.returncode:
        raise errors.TrainingError(
            f"the second run failed (exit code {done.returncode}): {_last_lines(done)}",
            hint=f"`aligntune diagnose run {target}` says what went wrong",
        )


def _child(command: list[str], stored: Stored) -> subprocess.CompletedProcess[str]:
    """Run a program in the run's folder and environment; an interrupt reaches it too."""
    process = subprocess.Popen(
        command,
        cwd=_folder(stored),
        env=child_environment(_environment(stored)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        _, said = process.communicate()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, "", said)


def _last_lines(done: subprocess.CompletedProcess[str]) -> str:
    said = [line for line in done.stderr.splitlines() if line.strip()]
    faults = [i for i, line in enumerate(said) if line.startswith("error:")]
    return "\n".join(said[faults[-1] :] if faults else said[-TAIL:]) or "it said nothing"
