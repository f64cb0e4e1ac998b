"""The report of run folders and evaluations: which page they get, and where it is written.

>>> build_report("out/grpo")
PosixPath('out/grpo/report.html')

One run gets `run_page`, with evaluations beside it; several runs, or evaluations alone, get `runs_page`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligntune.errors import ValidationError
from aligntune.report.read import read_run
from aligntune.report.run_page import single_report
from aligntune.report.runs_page import several_report

RESULTS = "results.json"


def build_report(
    run_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None
) -> Path:
    """Write the report of one run or evaluation, or of several side by side; return the file's path.

    Args:
        run_dir: a run folder or a folder that `aligntune eval` wrote, or a list of both. Evaluations are compared with
            the first of them.
        out: the HTML file; None takes `report.html` in the first run's folder where there is one run, or in the
            evaluation's where there is nothing else, and `comparison.html` in the folder that holds them all otherwise.

    Raises:
        ValidationError: a folder is no run's and no evaluation's, no folder is given, or a line of it is damaged.
        ConfigurationError: the disk is full or writing is not permitted.
    """
    given = [run_dir] if isinstance(run_dir, (str, os.PathLike)) else list(run_dir)
    if not given:
        raise ValidationError("a report needs at least one run folder", hint="give the output_dir of a run")
    folders = [Path(folder) for folder in given]
    measured = [(folder, _read_result(folder)) for folder in folders if (folder / RESULTS).exists()]
    runs = [read_run(folder) for folder in folders if not (folder / RESULTS).exists()]
    if len(runs) == 1:
        return single_report(runs[0], measured, out)
    where = _place(folders, "report.html" if len(folders) == 1 else "comparison.html", out)
    return several_report(runs, measured, where)


def _read_result(folder: Path) -> Any:
    from aligntune.eval.result import EvalResult

    return EvalResult.load(folder)


def _place(folders: Sequence[Path], name: str, out: str | os.PathLike[str] | None) -> Path:
    if out is not None:
        return Path(out)
    if len(folders) == 1:
        return folders[0] / name
    return Path(os.path.commonpath([folder.absolute().parent for folder in folders])) / name
