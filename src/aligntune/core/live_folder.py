"""The live view of a run in another process: what it appends to its folder is shown here.

>>> with FolderView(Path("runs/sft"), "sft") as view:
...     while process.poll() is None:
...         view.poll()

It reads whole new lines of `metrics.jsonl`, `samples.jsonl` and `events.jsonl`, so the numbers are the run's own. What
was there before is passed over. A line that cannot be read is left out: `aligntune diagnose run` names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from aligntune.core.live import Mode, Progress
from aligntune.utils.run_folder import EVENTS, METRICS, SAMPLES, read_manifest


class FolderView:
    """Shows a run by its folder, which need not be there yet.

    Args:
        folder: the run's folder.
        title: what runs.
        mode: as `logging.display`.
        stream: where it is shown; None takes standard error.
    """

    def __init__(self, folder: Path, title: str, mode: Mode = "auto", stream: Any = None) -> None:
        self.folder = folder
        self.progress = Progress(title, stream, mode, str(folder))
        self.progress.seen.here = False
        self._at = {name: _size(folder / name) for name in (METRICS, SAMPLES, EVENTS)}
        self._total = 0

    def __enter__(self) -> FolderView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.close()

    def poll(self) -> None:
        """Show what was appended since the last look."""
        for row in self._new(SAMPLES):
            prompt = row.get("prompt")
            asked = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")) if prompt else ""
            self.progress.sample(int(row.get("step") or 0), asked, str(row.get("answer")))
        for row in self._new(EVENTS):
            self.progress.event(f"step {row.get('step')}: {row.get('message')} ({row.get('rule')})")
        for row in self._new(METRICS):
            at = row.get("time")
            if isinstance(row.get("step"), int) and isinstance(at, (int, float)):
                self.progress.show(row["step"], self._steps(), row, float(at))

    def _steps(self) -> int:
        """Steps of the whole run, as its manifest says; 0 until it does."""
        if not self._total:
            self._total = int((read_manifest(self.folder) or {}).get("total_steps") or 0)
        return self._total

    def _new(self, name: str) -> Iterator[dict[str, Any]]:
        path = self.folder / name
        size = _size(path)
        if size < self._at[name]:  # cut back to a checkpoint
            self._at[name] = size
        if size == self._at[name]:
            return
        try:
            with open(path, "rb") as file:
                file.seek(self._at[name])
                whole, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:  # the folder was cleared meanwhile
            return
        self._at[name] += len(whole) + len(end)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
