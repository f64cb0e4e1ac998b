"""The report of a run that goes on: `report.html` is drawn again every minute or so, after a row of the log.

Drawing takes at most 1% of the time: after a drawing of 0.8 s comes none for 80 s. The report reads the run's files as
they are, so it may lack rollouts that are still in memory. A drawing that fails is told and does not stop the run: it
is not tried again before the end, and a run whose last drawing fails is finished all the same.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aligntune.core.services import survive
from aligntune.registry import import_attribute

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

REPORT = "aligntune.report:build_report"  # a lazy name, because the report stands in a higher layer
SECONDS = 60.0
SHARE = 0.01
"""Of the time that drawing may take."""


def draw_report(trainer: Trainer) -> bool:
    """Write `report.html` in the run's folder; the first of several processes does.

    Returns:
        whether that succeeded; a failure is told, and no end of the run.
    """
    return survive(trainer, "drawing report.html", lambda: _draw(trainer))


def _draw(trainer: Trainer) -> None:
    if trainer._run.leads:
        import_attribute(REPORT)(trainer._run.path)


class LiveReport:
    """Draws the report of one run from time to time.

    Args:
        trainer: the run, whose folder is claimed.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._next = time.monotonic() + SECONDS
        self._failed = False

    def refresh(self) -> None:
        """Draw it if its time has come."""
        began = time.monotonic()
        if began < self._next or self._failed:
            return
        self._failed = not draw_report(self.trainer)
        ended = time.monotonic()
        self._next = ended + max(SECONDS, (ended - began) / SHARE)
